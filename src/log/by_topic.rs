//! An index of a log by topic: each entry points to the previous entry of its topic, and for each topic the newest
//! entry is known. It grows and shrinks with the log, and holds no entries itself.

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use super::Entry;
use crate::protocol::topic::Topic;

/// No previous entry is known.
const NONE: u64 = u64::MAX;

/// Its approximate memory per entry, in bytes.
pub(super) const WEIGHT: usize = 64;

/// The index. Its places count appended entries, so evictions do not change them.
#[derive(Debug)]
pub(super) struct ByTopic {
    /// The place of the oldest entry in the log.
    first: u64,
    /// For each entry, the place of the previous entry of its topic.
    before: VecDeque<u64>,
    newest: HashMap<Topic, u64>,
    /// Up to this sequence and time, messages of any topic may be missing: where the index begins, or the last gap that
    /// is not of a single topic.
    pub(super) whole_from: (u64, SystemTime),
}

impl ByTopic {
    /// An index for a log that already has `entries` entries, which it does not cover. It knows the entries after
    /// `whole_from`.
    pub(super) fn new(entries: usize, whole_from: (u64, SystemTime)) -> Self {
        ByTopic {
            first: 0,
            before: std::iter::repeat_n(NONE, entries).collect(),
            newest: HashMap::new(),
            whole_from,
        }
    }

    pub(super) fn append(&mut self, entry: &Entry) {
        let place = self.end();
        let before = match entry.topic() {
            Some(topic) => self.newest.insert(topic.clone(), place).unwrap_or(NONE),
            None => {
                self.whole_from = (entry.sequence, entry.time());
                NONE
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
        self.first += 1;
    }

    pub(super) fn shrink(&mut self) {
        if self.before.capacity() > 64 && self.before.len() * 4 < self.before.capacity() {
            self.before.shrink_to_fit();
        }
        if self.newest.capacity() > 64 && self.newest.len() * 4 < self.newest.capacity() {
            self.newest.shrink_to_fit();
        }
    }

    /// The place after the newest entry.
    pub(super) fn end(&self) -> u64 {
        self.first + self.before.len() as u64
    }

    /// The place of the newest entry of `topic`.
    pub(super) fn newest(&self, topic: &Topic) -> Option<u64> {
        self.newest.get(topic).copied()
    }

    /// The place of the previous entry of the same topic before `place`, which must be in the log.
    pub(super) fn before(&self, place: u64) -> Option<u64> {
        let index = self.index(place)?;
        self.before.get(index).copied().filter(|before| *before != NONE)
    }

    /// The index of the entry at `place`, if it was not evicted.
    pub(super) fn index(&self, place: u64) -> Option<usize> {
        place.checked_sub(self.first).and_then(|index| usize::try_from(index).ok())
    }
}
