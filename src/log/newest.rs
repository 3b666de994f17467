//! Selects the newest message of each topic and type, for readers with an interval. Gaps are never left out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use super::Entry;
use super::message::Message;
use crate::protocol::seq::Seq;
use crate::protocol::topic::Topic;
use crate::protocol::view::View;

/// Its approximate memory per entry, in bytes, apart from the entry.
const WEIGHT: usize = 128;

/// What two messages have in common of which only the newer one is kept: their topic, their type, and whether they were
/// inserted apart from others.
type Key = (Topic, Option<Box<str>>, bool);

/// Entries of which each message is the newest of its topic and type, and gaps.
#[derive(Debug, Default)]
pub(super) struct Newest {
    entries: BTreeMap<Seq, (Arc<Entry>, bool)>,
    by_key: HashMap<Key, Seq>,
    bytes: usize,
}

impl Newest {
    /// Adds an entry with a higher number than all before. It replaces the message of the same topic and type, if there
    /// is one; returns whether it did. Entries that are `apart` replace only each other, because some readers of the
    /// others do not receive them, or the reverse.
    pub(super) fn insert(&mut self, entry: &Arc<Entry>, apart: bool) -> bool {
        let before = entry.message().and_then(|it| self.by_key.insert(key(it, apart), entry.sequence));
        let replaced = before.and_then(|before| self.entries.remove(&before));
        self.bytes -= replaced.as_ref().map_or(0, |(replaced, _)| weight(replaced));
        self.bytes += weight(entry);
        self.entries.insert(entry.sequence, (entry.clone(), apart));
        replaced.is_some()
    }

    /// Removes the oldest entry, and returns its number.
    pub(super) fn remove_oldest(&mut self) -> Option<Seq> {
        let (number, (entry, apart)) = self.entries.pop_first()?;
        self.bytes -= weight(&entry);
        if let Some(message) = entry.message() {
            self.by_key.remove(&key(message, apart));
        }
        Some(number)
    }

    /// Removes all entries up to `number`.
    pub(super) fn remove_through(&mut self, number: Seq) {
        while self.entries.first_key_value().is_some_and(|(oldest, _)| *oldest <= number) {
            self.remove_oldest();
        }
    }

    /// The entries after `from`, oldest first.
    pub(super) fn after(&self, from: Seq) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.entries.range((Bound::Excluded(from), Bound::Unbounded)).map(|(_, (entry, _))| entry)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Their bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn key(message: &Message, apart: bool) -> Key {
    (message.topic().clone(), message.kind().map(Box::from), apart)
}

fn weight(entry: &Entry) -> usize {
    entry.weight() + WEIGHT
}

/// The selected entries, oldest first.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) entries: Vec<Arc<Entry>>,
    /// Messages of other types than the view admits.
    pub(super) filtered: usize,
    /// Messages that were not the newest.
    pub(super) conflated: usize,
}

impl Chosen {
    /// Selects from `newest_first` the entries that a reader with that view receives.
    pub(super) fn of<'a>(newest_first: impl Iterator<Item = &'a Arc<Entry>>, view: &View) -> Self {
        let mut chosen = Chosen::default();
        let mut seen = HashSet::new();
        for entry in newest_first {
            if !entry.is_in(view) {
                chosen.filtered += 1;
                continue;
            }
            if let Some(message) = entry.message()
                && !seen.insert((message.topic(), message.kind()))
            {
                chosen.conflated += 1;
                continue;
            }
            chosen.entries.push(entry.clone());
        }
        chosen.entries.reverse();
        chosen
    }
}
