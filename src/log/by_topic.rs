//! An index of a log by topic: each entry points to the previous entry of its topic, and for each topic the newest
//! entry is known. It grows and shrinks with the log, and holds no entries itself.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;

use super::Entry;
use super::time::Horizon;
use crate::protocol::topic::Topic;

/// Counts appended entries, from 1, so evictions do not change it.
pub(super) type Place = NonZeroU64;

/// Its approximate memory per entry, in bytes.
pub(super) const WEIGHT: usize = 64;

/// The index.
#[derive(Debug)]
pub(super) struct ByTopic {
    /// The place of the oldest entry in the log.
    first: Place,
    /// For each entry, the place of the previous entry of its topic, if it is known.
    before: VecDeque<Option<Place>>,
    newest: HashMap<Topic, Place>,
    /// Up to here, messages of any topic may be missing: where the index begins, or the last gap that is not of a single
    /// topic.
    pub(super) whole_from: Horizon,
}

impl ByTopic {
    /// An index for a log that already has `entries` entries, which it does not cover. It knows the entries after
    /// `whole_from`.
    pub(super) fn new(entries: usize, whole_from: Horizon) -> Self {
        ByTopic {
            first: Place::MIN,
            before: std::iter::repeat_n(None, entries).collect(),
            newest: HashMap::new(),
            whole_from,
        }
    }

    pub(super) fn append(&mut self, entry: &Entry) {
        let place = self.end();
        let before = match entry.topic() {
            Some(topic) => self.newest.insert(topic.clone(), place),
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

    /// The place after the newest entry.
    fn end(&self) -> Place {
        self.first.saturating_add(self.before.len() as u64)
    }

    /// The place of the newest entry.
    pub(super) fn last(&self) -> Option<Place> {
        if self.before.is_empty() { None } else { previous(self.end()) }
    }

    /// The place of the newest entry of `topic`.
    pub(super) fn newest(&self, topic: &Topic) -> Option<Place> {
        self.newest.get(topic).copied()
    }

    /// The place of the previous entry of the same topic before `place`, which must be in the log.
    pub(super) fn before(&self, place: Place) -> Option<Place> {
        self.before.get(self.index(place)?).copied().flatten()
    }

    /// The index of the entry at `place`, if it was not evicted.
    pub(super) fn index(&self, place: Place) -> Option<usize> {
        place.get().checked_sub(self.first.get()).and_then(|index| usize::try_from(index).ok())
    }
}

/// The place before that one, whatever is there.
pub(super) fn previous(place: Place) -> Option<Place> {
    Place::new(place.get() - 1)
}
