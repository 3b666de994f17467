//! Whether a topic has ended: whether its last message is one that ends it, as a job or an answer that is complete. A
//! message after the end opens the topic again, and so does a gap, because the messages that are missing there may have.
//!
//! Only the log of a single topic knows this. Nothing is added for other messages: the log has two numbers, which the
//! writer sets under its lock and readers compare with their positions.

use super::{Entry, EntryKind};
use crate::protocol::seq::{AtomicSeq, Seq};
use crate::protocol::topic::Filter;

/// It is not known whether the topic has ended, because its last message is only in the broker. No entry has this number.
const UNKNOWN: Seq = Seq::MAX;

/// The end of one topic. Only the writer of the log changes it, under the log's lock.
#[derive(Debug)]
pub(super) struct TopicEnd {
    /// The number of the topic's last message if that ended the topic; the start if not; or [`UNKNOWN`].
    at: AtomicSeq,
    /// The number of the newest message that ended the topic, even if another followed.
    newest: AtomicSeq,
}

impl TopicEnd {
    /// The end of a topic whose last message is not known yet.
    pub(super) fn unknown() -> Self {
        TopicEnd { at: AtomicSeq::new(UNKNOWN), newest: AtomicSeq::new(Seq::START) }
    }

    /// Called when an entry was appended.
    pub(super) fn take(&self, entry: &Entry) {
        if entry.kind.ends() {
            self.newest.store(entry.sequence);
            self.at.store(entry.sequence);
        } else if self.at.load() != Seq::START {
            self.at.store(Seq::START);
        }
    }

    /// Called when an older entry was inserted. If nothing is known yet, it is the last one.
    pub(super) fn take_older(&self, entry: &Entry) {
        if self.is_unknown() {
            self.take(entry);
        } else if entry.kind.ends() && !self.is_after(entry.sequence) {
            self.newest.store(entry.sequence);
        }
    }

    /// If nothing is known yet: the last message of the topic in the broker ended it, with this number. `None`: it did not.
    pub(super) fn learn_of_broker(&self, end: Option<Seq>) {
        if self.is_unknown() {
            self.at.store(end.unwrap_or(Seq::START));
        }
    }

    /// The number of the message that ended the topic, if it has ended.
    pub(super) fn at(&self) -> Option<Seq> {
        Some(self.at.load()).filter(|at| *at != UNKNOWN && !at.is_start())
    }

    /// Whether only the broker knows.
    pub(super) fn is_unknown(&self) -> bool {
        self.at.load() == UNKNOWN
    }

    /// Whether a message with a higher number than `position` has ended the topic, even if another followed.
    pub(super) fn is_after(&self, position: Seq) -> bool {
        self.newest.load() > position
    }
}

impl EntryKind {
    /// Whether this entry ends its topic.
    pub fn ends(&self) -> bool {
        match self {
            EntryKind::Message(message) => message.ends(),
            EntryKind::Gap(_) => false,
        }
    }

    /// The same for a log of `filter`, of which a gap is already.
    pub(super) fn in_log_of(self, filter: &Filter) -> Self {
        match self {
            EntryKind::Message(message) => EntryKind::Message(message.for_log_of(filter).unwrap_or(message)),
            EntryKind::Gap(_) => self,
        }
    }
}
