//! Where the entries of each topic are in a log of many topics: each knows the one before it of the same topic, and of each
//! topic the newest is known. It grows and shrinks with the log's entries, and holds none of them.

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use super::Entry;
use crate::protocol::topic::Topic;

/// There is no entry before it that is known.
const NONE: u64 = u64::MAX;

/// About how much memory it takes for each entry.
pub(super) const WEIGHT: usize = 64;

/// See the module. Its places count what was appended, so they stay the same whatever is evicted.
#[derive(Debug)]
pub(super) struct ByTopic {
    /// The place of the log's oldest entry.
    first: u64,
    /// Of each entry, the place of the one before it of its topic.
    before: VecDeque<u64>,
    newest: HashMap<Topic, u64>,
    /// Up to this sequence and time something is missing of every topic: where this begins, or the last gap that is not of one topic.
    pub(super) whole_from: (u64, SystemTime),
}

impl ByTopic {
    /// For a log that has so many entries, which are not in it. It knows what comes after `whole_from`.
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

    /// Behind the newest entry.
    pub(super) fn end(&self) -> u64 {
        self.first + self.before.len() as u64
    }

    /// The place of the newest entry of `topic`.
    pub(super) fn newest(&self, topic: &Topic) -> Option<u64> {
        self.newest.get(topic).copied()
    }

    /// The place of the entry of the same topic before that at `place`, which is held.
    pub(super) fn before(&self, place: u64) -> Option<u64> {
        let index = self.index(place)?;
        self.before.get(index).copied().filter(|before| *before != NONE)
    }

    /// Which of the entries stands at `place`, if it was not evicted.
    pub(super) fn index(&self, place: u64) -> Option<usize> {
        place.checked_sub(self.first).and_then(|index| usize::try_from(index).ok())
    }
}
