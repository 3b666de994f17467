//! All slots: found by their filter, and gone through in parts, so that nobody has to hold the writer's lock for as long as
//! there are slots.

use std::collections::HashMap;
use std::ops::Range;

use parking_lot::MutexGuard;
use slab::Slab;

use super::slot::Slot;
use super::{Inner, Registry};
use crate::protocol::topic::Filter;

/// Slots that are looked at under one hold of the lock.
pub(super) const PART: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Slots {
    keys: HashMap<Filter, usize>,
    slots: Slab<Slot>,
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

    /// Puts in the slot of a filter that has none.
    pub(super) fn insert(&mut self, slot: Slot) {
        let filter = slot.log.filter().clone();
        let key = self.slots.insert(slot);
        self.keys.insert(filter, key);
    }

    pub(super) fn remove(&mut self, filter: &Filter) -> Option<Slot> {
        let key = self.keys.remove(filter)?;
        self.slots.try_remove(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().map(|(_, slot)| slot)
    }

    /// The slots of one part.
    pub(super) fn part(&self, part: Range<usize>) -> impl Iterator<Item = &Slot> {
        part.filter_map(|key| self.slots.get(key))
    }

    /// Gives memory back that a crowd has left.
    pub(super) fn shrink(&mut self) {
        if self.keys.capacity() > 1024 && self.keys.len() * 4 < self.keys.capacity() {
            self.keys.shrink_to_fit();
            self.slots.shrink_to_fit();
        }
    }
}

impl Registry {
    /// What `work` makes of the part of the slots that begins at `at`, and where the next one begins; `None` behind the last.
    /// Whoever waits for the lock has it before the next part. A slot that comes meanwhile may be left out.
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
        super::super::tests::go_through_part();
        let next = end.min(at + PART);
        let done = work(&mut inner, at..next);
        MutexGuard::unlock_fair(inner);
        Some((next, done))
    }
}
