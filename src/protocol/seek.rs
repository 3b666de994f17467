//! Where a stream starts: what a request can ask for, and the seek and its result if only the broker can answer.

use std::time::SystemTime;

use super::seq::Seq;

/// Where a stream starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Live, from now.
    Now,
    /// At the end, for buckets too: a read that asks only for the position.
    End,
    /// After the event with this id. `None`: the id could not be decoded.
    After(Option<String>),
    /// With the first message at or after this time.
    Since(SystemTime),
    /// With the oldest message that is held.
    All,
    /// With the last messages of each topic and pattern of the stream, this many of each.
    Last(usize),
}

/// A position to find among stored messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Right after this number. Of a single key of a bucket: whether all that has changed since then is known.
    After(Seq),
    /// Before the oldest message that is held.
    Oldest,
    /// Before the first message that was stored at this time or later.
    Since(SystemTime),
    /// Before the last messages, this many.
    Last(usize),
}

/// The result of a seek. A reader continues with the next higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekResult {
    /// Everything requested follows.
    At(Seq),
    /// Some of the requested messages are gone; the rest follows.
    Evicted(Seq),
    /// The number was never given to a message here; all stored messages follow.
    Unknown(Seq),
}

impl SeekResult {
    /// The number after which a reader continues.
    pub fn number(self) -> Seq {
        let (SeekResult::At(number) | SeekResult::Evicted(number) | SeekResult::Unknown(number)) = self;
        number
    }
}
