//! Where a stream starts: what a request can ask for, and the question and the answer when only the broker can tell.

use std::time::SystemTime;

/// Where a stream starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Live, from now.
    Now,
    /// After the event of this id. `None` is an id that could not be read at all.
    After(Option<String>),
    /// With the first message at or after this time.
    Since(SystemTime),
    /// With the oldest message that is held.
    All,
    /// With the last so many messages of each topic and pattern of the stream.
    Last(usize),
}

/// A place in a history that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Right after this number.
    After(u64),
    /// Before the oldest message that is held.
    Oldest,
    /// Before the first message that was taken at this time or later.
    Since(SystemTime),
    /// Before the last so many messages.
    Last(usize),
}

/// A place that was found. A reader there reads on with what has a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekResult {
    /// All that was asked for follows.
    At(u64),
    /// Something of what was asked for is gone; what follows is what is left.
    Evicted(u64),
    /// That number was never given to a message here; what follows is all that is held.
    Unknown(u64),
}

impl SeekResult {
    /// The number after which a reader reads on.
    pub fn number(self) -> u64 {
        let (SeekResult::At(number) | SeekResult::Evicted(number) | SeekResult::Unknown(number)) = self;
        number
    }
}
