//! Rows: the result of one read of the logs, with messages as JSON and the gaps before them, instead of bytes for a socket.
//!
//! Cursors fill them as they fill a batch, entry by entry. Rows are bounded, and end before a gap that follows messages of
//! the same sequence, so that gaps always come before the messages that they concern.

use super::message::{Format, Message};
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::EventId;
use crate::protocol::topic::Filter;

/// The bytes of JSON after which rows take no further message.
const ROWS_BYTES: usize = 256 * 1024;

/// The messages and gaps of one read.
#[derive(Debug)]
pub struct Rows {
    pub(super) format: Format,
    /// The most messages.
    limit: usize,
    count: usize,
    /// Elements of a JSON array, separated by commas.
    messages: Vec<u8>,
    gaps: Vec<(Filter, GapReason)>,
    /// The event id of the last message or gap.
    last_id: Option<EventId>,
    /// Whether a gap comes next, which belongs to the next read.
    ended: bool,
}

impl Rows {
    /// Empty rows for at most `limit` messages.
    pub fn new(format: Format, limit: usize) -> Self {
        let (messages, gaps) = (Vec::new(), Vec::new());
        Rows { format, limit, count: 0, messages, gaps, last_id: None, ended: false }
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.gaps.is_empty()
    }

    /// Whether they are full; the next read may find more.
    pub fn is_full(&self) -> bool {
        self.ended || self.count >= self.limit || self.messages.len() >= ROWS_BYTES
    }

    /// The bytes of the messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// The messages as elements of a JSON array, the gaps before them, and the event id of the last of all.
    pub fn into_parts(self) -> (Vec<u8>, Vec<(Filter, GapReason)>, Option<EventId>) {
        (self.messages, self.gaps, self.last_id)
    }

    /// The number of messages.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, message: &Message, id: EventId) {
        if self.count > 0 {
            self.messages.push(b',');
        }
        message.write_row(self.format, &id, &mut self.messages);
        self.count += 1;
        self.last_id = Some(id);
    }

    /// Moves the cursor past a message that the view leaves out.
    pub(super) fn skip(&mut self, id: EventId) {
        self.last_id = Some(id);
    }

    pub(super) fn push_gap(&mut self, filter: &Filter, reason: GapReason, id: EventId) {
        self.gaps.push((filter.clone(), reason));
        self.last_id = Some(id);
    }

    /// Marks them as full.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}
