//! The sequence that numbers the entries of a log, and the number up to which the log is complete. A log, the logs that
//! it feeds, and their histories share one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::protocol::event_id::Sequence;
use crate::protocol::seq::{AtomicOptionSeq, Seq};

/// The numbering of one or more logs.
#[derive(Debug)]
pub(crate) struct Numbering {
    sequence: OnceLock<Arc<Sequence>>,
    /// The number up to which it is complete; none while it is open.
    end: AtomicOptionSeq,
    /// The outage of the subscription: twice its number, plus one once readers must receive it. 0 if there is none.
    outage: AtomicU64,
}

impl Numbering {
    /// A numbering whose sequence is set when the subscription begins. Nobody reads before.
    pub(super) fn unknown() -> Arc<Self> {
        Arc::new(Numbering::of(OnceLock::new()))
    }

    pub(super) fn by(sequence: Arc<Sequence>) -> Arc<Self> {
        Arc::new(Numbering::of(OnceLock::from(sequence)))
    }

    fn of(sequence: OnceLock<Arc<Sequence>>) -> Self {
        Numbering { sequence, end: AtomicOptionSeq::new(None), outage: AtomicU64::new(0) }
    }

    /// Begins the outage `number` of the subscription, unless it is in one. Returns whether it began.
    pub(super) fn lose_feed(&self, number: u64) -> bool {
        self.outage.compare_exchange(0, number << 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Marks the outage `number` as lasting, if it is not over.
    pub(super) fn mark_stale(&self, number: u64) {
        let (brief, long) = (number << 1, number << 1 | 1);
        let _ = self.outage.compare_exchange(brief, long, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Marks an outage that was not marked before as lasting.
    pub(super) fn lose_feed_for_long(&self, number: u64) {
        self.outage.store(number << 1 | 1, Ordering::Release);
    }

    /// Ends the outage. Returns whether it had lasted.
    pub(super) fn regain_feed(&self) -> bool {
        self.outage.swap(0, Ordering::AcqRel) & 1 == 1
    }

    /// Whether the broker, or its part that feeds the subscription, is away, even if only since a moment ago.
    pub(super) fn has_lost_feed(&self) -> bool {
        self.outage.load(Ordering::Acquire) != 0
    }

    /// Whether the subscription has received nothing for so long that readers must receive it.
    pub(super) fn is_stale(&self) -> bool {
        self.outage.load(Ordering::Acquire) & 1 == 1
    }

    pub(super) fn sequence(&self) -> Option<&Arc<Sequence>> {
        self.sequence.get()
    }

    /// Sets the sequence, if it is not set yet.
    pub(super) fn begin(&self, sequence: &Arc<Sequence>) {
        let _ = self.sequence.set(sequence.clone());
    }

    pub(super) fn head(&self) -> Seq {
        self.sequence().map_or(Seq::START, |sequence| sequence.head())
    }

    /// Seals the log: its subscription has ended, and it is complete only up to the head. No reader may claim to have read
    /// further.
    pub(super) fn seal(&self) {
        self.end.store(Some(self.head()));
    }

    /// The number up to which it is complete, if its subscription has ended.
    pub(super) fn sealed(&self) -> Option<Seq> {
        self.end.load()
    }

    /// The number up to which it can be read, if everything up to `head` is published.
    pub(super) fn end(&self, head: Seq) -> Seq {
        self.sealed().map_or(head, |end| head.min(end))
    }
}
