//! All slots, found by their filter. They are visited in parts, so that nobody holds the writer's lock for all of them
//! at once.

use std::collections::HashMap;
use std::ops::Range;

use parking_lot::MutexGuard;
use slab::Slab;

use super::slot::Slot;
use super::{Inner, Registry};
use crate::protocol::filter_index::FilterIndex;
use crate::protocol::topic::Filter;

/// Slots that are visited while the lock is held once.
pub(super) const PART: usize = 256;

/// The slots by filter.
#[derive(Debug, Default)]
pub(super) struct Slots {
    keys: HashMap<Filter, usize>,
    slots: Slab<Slot>,
    /// Those of patterns.
    patterns: FilterIndex<()>,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, filter: &Filter) -> Option<&Slot> {
        self.slots.get(*self.keys.get(filter)?)
    }

    pub(super) fn get_mut(&mut self, filter: &Filter) -> Option<&mut Slot> {
        self.slots.get_mut(*self.keys.get(filter)?)
    }

    /// Inserts the slot of a filter that has none.
    pub(super) fn insert(&mut self, slot: Slot) {
        let filter = slot.log.filter().clone();
        if filter.is_pattern() {
            self.patterns.insert(&filter, ());
        }
        let key = self.slots.insert(slot);
        self.keys.insert(filter, key);
    }

    pub(super) fn remove(&mut self, filter: &Filter) -> Option<Slot> {
        let key = self.keys.remove(filter)?;
        if filter.is_pattern() {
            self.patterns.remove(filter);
        }
        self.slots.try_remove(key)
    }

    /// Whether a pattern with a slot covers `topic`.
    pub(super) fn has_pattern_over(&self, topic: &Filter) -> bool {
        let mut found = false;
        self.patterns.covering(topic, |()| found = true);
        found
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().map(|(_, slot)| slot)
    }

    /// The slots of one part.
    pub(super) fn part(&self, part: Range<usize>) -> impl Iterator<Item = &Slot> {
        part.filter_map(|key| self.slots.get(key))
    }

    /// Frees the memory that a former crowd needed.
    pub(super) fn shrink(&mut self) {
        if self.keys.capacity() > 1024 && self.keys.len() * 4 < self.keys.capacity() {
            self.keys.shrink_to_fit();
            self.slots.shrink_to_fit();
        }
    }
}

impl Registry {
    /// Calls `work` with the part of the slots that begins at `at`. Returns its result and where the next part begins;
    /// `None` after the last. Other tasks get the lock between two parts. A slot that is added meanwhile may be missed.
    pub(super) fn with_part<T>(
        &self,
        at: usize,
        work: impl FnOnce(&mut Inner, Range<usize>) -> T,
    ) -> Option<(usize, T)> {
        let mut inner = self.inner.lock();
        let end = inner.slots.slots.capacity();
        if at >= end {
            return None;
        }
        #[cfg(test)]
        super::super::tests::count_part();
        let next = end.min(at + PART);
        let done = work(&mut inner, at..next);
        MutexGuard::unlock_fair(inner);
        Some((next, done))
    }
}
