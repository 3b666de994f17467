//! Numbers in a sequence. They are compared, and stepped to the next or the previous one, but never calculated with, so
//! that a count, a time or a stream's id cannot stand where a position is meant.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The number of an entry in its sequence ([`super::event_id::Sequence`]), and so a position in it: a reader at a number
/// has read everything up to it and continues with the next higher one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[repr(transparent)]
pub struct Seq(u64);

impl Seq {
    /// The position before every entry. No entry has this number.
    pub const START: Seq = Seq(0);

    /// The highest number.
    pub const MAX: Seq = Seq(u64::MAX);

    /// The number `number`.
    pub const fn new(number: u64) -> Self {
        Seq(number)
    }

    /// The number for the wire and for the broker.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether it is the position before every entry.
    pub const fn is_start(self) -> bool {
        self.0 == 0
    }

    /// The next number.
    pub const fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }

    /// The number before this one; the start stays the start.
    pub const fn previous(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }

    /// How many numbers follow `earlier` up to this one; none if `earlier` is not earlier.
    pub const fn distance(self, earlier: Seq) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that one thread writes and others read. A reader that sees a number also sees everything that was written
/// before it.
#[derive(Debug, Default)]
pub struct AtomicSeq(AtomicU64);

impl AtomicSeq {
    /// Holds `number`.
    pub fn new(number: Seq) -> Self {
        AtomicSeq(AtomicU64::new(number.0))
    }

    /// The number.
    pub fn load(&self) -> Seq {
        Seq(self.0.load(Ordering::Acquire))
    }

    /// Replaces the number.
    pub fn store(&self, number: Seq) {
        self.0.store(number.0, Ordering::Release);
    }

    /// Replaces the number, if `number` is higher.
    pub fn raise(&self, number: Seq) {
        self.0.fetch_max(number.0, Ordering::Release);
    }
}

/// As [`AtomicSeq`], or no number. The default is the start, as for a reader that has read nothing.
#[derive(Debug, Default)]
pub struct AtomicOptionSeq(AtomicU64);

impl AtomicOptionSeq {
    /// Inside, no number is the highest one, which no entry reaches.
    const NONE: u64 = u64::MAX;

    /// Holds `number`, or none.
    pub fn new(number: Option<Seq>) -> Self {
        AtomicOptionSeq(AtomicU64::new(number.map_or(Self::NONE, Seq::get)))
    }

    /// The number, if there is one.
    pub fn load(&self) -> Option<Seq> {
        Some(self.0.load(Ordering::Acquire)).filter(|number| *number != Self::NONE).map(Seq)
    }

    /// Replaces the number.
    pub fn store(&self, number: Option<Seq>) {
        self.0.store(number.map_or(Self::NONE, Seq::get), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_steps_within_its_range_and_a_distance_is_never_negative() {
        let seq = Seq::new(7);
        assert_eq!((seq.previous().get(), seq.next().get()), (6, 8));
        assert_eq!((Seq::START.previous(), Seq::MAX.next()), (Seq::START, Seq::MAX));
        assert_eq!((seq.distance(Seq::new(3)), Seq::new(3).distance(seq)), (4, 0));
    }

    #[test]
    fn an_absent_number_is_not_the_start() {
        let number = AtomicOptionSeq::new(None);
        assert_eq!(number.load(), None);
        number.store(Some(Seq::START));
        assert_eq!(number.load(), Some(Seq::START));
    }
}
