//! The window of a gzip body: the bytes that its reader has received last, to which compressed pieces may refer.

use crate::protocol::seq::Seq;

/// Every entry of one log after a number, and nothing else since then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// The index of that log's cursor, or [`NO_CURSOR`].
    pub(super) cursor: u8,
    pub(super) since: Seq,
}

/// No cursor, or a cursor whose index does not fit here. It has no window: a stream of that many topics rarely has one.
const NO_CURSOR: u8 = u8::MAX;

impl Window {
    /// The last bytes were of no single log.
    pub(super) const NONE: Window = Window { cursor: NO_CURSOR, since: Seq::START };

    /// The number after which it has received every entry of the cursor's log, which is now at `position`.
    pub(super) fn since(self, cursor: usize, position: Seq) -> Seq {
        if self.is_of(cursor) { self.since } else { position }
    }

    /// Records that the reader receives entries of that log after `position`.
    pub(super) fn extend(&mut self, cursor: usize, position: Seq) {
        if !self.is_of(cursor) {
            *self = Window { cursor: u8::try_from(cursor).unwrap_or(NO_CURSOR), since: position };
        }
    }

    fn is_of(self, cursor: usize) -> bool {
        self.cursor != NO_CURSOR && usize::from(self.cursor) == cursor
    }
}
