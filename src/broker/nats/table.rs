//! The subscriptions: each filter and the number (`sid`) by which the server knows it. The table outlives the
//! connections.

use std::collections::HashMap;
use std::hash::Hash;

use crate::protocol::topic::Filter;

/// A table with fewer entries than this never shrinks.
const SMALL: usize = 1024;

/// The subscribed filters.
#[derive(Default)]
pub(super) struct Table {
    filters: HashMap<u64, Filter>,
    entries: HashMap<Filter, Entry>,
    /// The last number that was given. Numbers are never reused, so that a late message cannot be taken for another
    /// subscription's.
    last: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    sid: u64,
    /// Whether the subscription has been confirmed.
    is_confirmed: bool,
}

impl Table {
    /// Adds a filter; returns its number, and whether it is new.
    pub(super) fn add(&mut self, filter: &Filter) -> (u64, bool) {
        if let Some(entry) = self.entries.get(filter) {
            return (entry.sid, false);
        }
        self.last += 1;
        self.filters.insert(self.last, filter.clone());
        self.entries.insert(filter.clone(), Entry { sid: self.last, is_confirmed: false });
        (self.last, true)
    }

    /// Marks a subscription as confirmed. `false` if it has ended.
    pub(super) fn confirm(&mut self, filter: &Filter, sid: u64) -> bool {
        let entry = self.entries.get_mut(filter).filter(|entry| entry.sid == sid);
        entry.is_some_and(|entry| {
            entry.is_confirmed = true;
            true
        })
    }

    /// Removes a filter; returns its number, if it was there.
    pub(super) fn remove(&mut self, filter: &Filter) -> Option<u64> {
        let entry = self.entries.remove(filter)?;
        self.filters.remove(&entry.sid);
        shrink(&mut self.entries);
        shrink(&mut self.filters);
        Some(entry.sid)
    }

    /// Removes a filter that was not confirmed; returns whether it was there.
    pub(super) fn remove_unconfirmed(&mut self, filter: &Filter, sid: u64) -> bool {
        let is_meant = |entry: &Entry| entry.sid == sid && !entry.is_confirmed;
        self.entries.get(filter).is_some_and(is_meant) && self.remove(filter).is_some()
    }

    /// The filter of a number.
    pub(super) fn filter(&self, sid: u64) -> Option<&Filter> {
        self.filters.get(&sid)
    }

    /// Every filter with its number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Filter, u64)> {
        self.entries.iter().map(|(filter, entry)| (filter, entry.sid))
    }
}

/// Frees memory once most of a table is empty.
fn shrink<K: Hash + Eq, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > SMALL && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len() * 2);
    }
}
