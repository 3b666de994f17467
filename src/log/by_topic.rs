//! An index of a log by topic: each entry points to the previous entry of its topic, and for each topic the newest
//! entry is known. It grows and shrinks with the log, and holds no entries itself.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;

use super::Entry;
use super::time::Horizon;
use crate::protocol::topic::Topic;

/// Counts appended entries, from 1, so evictions do not change it.
pub(super) type Position = NonZeroU64;

/// Its approximate memory per entry, in bytes.
pub(super) const WEIGHT: usize = 64;

/// The index.
#[derive(Debug)]
pub(super) struct ByTopic {
    /// The position of the oldest entry in the log.
    first: Position,
    /// For each entry, the position of the previous entry of its topic, if it is known.
    before: VecDeque<Option<Position>>,
    newest: HashMap<Topic, Position>,
    /// Up to here, messages of any topic may be missing: where the index begins, or the last gap that is not of a single
    /// topic.
    pub(super) whole_from: Horizon,
}

impl ByTopic {
    /// An index for a log that already has `entries` entries, which it does not cover. It knows the entries after
    /// `whole_from`.
    pub(super) fn new(entries: usize, whole_from: Horizon) -> Self {
        ByTopic {
            first: Position::MIN,
            before: std::iter::repeat_n(None, entries).collect(),
            newest: HashMap::new(),
            whole_from,
        }
    }

    pub(super) fn append(&mut self, entry: &Entry) {
        let position = self.end();
        let before = match entry.topic() {
            Some(topic) => self.newest.insert(topic.clone(), position),
            None => {
                self.whole_from = Horizon { number: entry.sequence, time: entry.time() };
                None
            }
        };
        self.before.push_back(before);
    }

    pub(super) fn evict(&mut self, oldest: &Entry) {
        self.before.pop_front();
        if let Some(topic) = oldest.topic()
            && self.newest.get(topic) == Some(&self.first)
        {
            self.newest.remove(topic);
        }
        self.first = self.first.saturating_add(1);
    }

    pub(super) fn shrink(&mut self) {
        if self.before.capacity() > 64 && self.before.len() * 4 < self.before.capacity() {
            self.before.shrink_to_fit();
        }
        if self.newest.capacity() > 64 && self.newest.len() * 4 < self.newest.capacity() {
            self.newest.shrink_to_fit();
        }
    }

    /// The position after the newest entry.
    fn end(&self) -> Position {
        self.first.saturating_add(self.before.len() as u64)
    }

    /// The position of the newest entry.
    pub(super) fn last(&self) -> Option<Position> {
        if self.before.is_empty() { None } else { previous(self.end()) }
    }

    /// The position of the newest entry of `topic`.
    pub(super) fn newest(&self, topic: &Topic) -> Option<Position> {
        self.newest.get(topic).copied()
    }

    /// The position of the previous entry of the same topic before `position`, which must be in the log.
    pub(super) fn before(&self, position: Position) -> Option<Position> {
        self.before.get(self.index(position)?).copied().flatten()
    }

    /// The index of the entry at `position`, if it was not evicted.
    pub(super) fn index(&self, position: Position) -> Option<usize> {
        position.get().checked_sub(self.first.get()).and_then(|index| usize::try_from(index).ok())
    }
}

/// The position before that one, whatever is there.
pub(super) fn previous(position: Position) -> Option<Position> {
    Position::new(position.get() - 1)
}
