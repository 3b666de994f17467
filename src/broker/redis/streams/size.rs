//! The average size of recent entries, by which the number of entries to request is chosen.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::entry::Entry;

/// The average size of entries. Followed keys and lookups share it.
#[derive(Debug)]
pub(super) struct EntrySize(AtomicUsize);

impl EntrySize {
    pub(super) fn new() -> Self {
        EntrySize(AtomicUsize::new(1024))
    }

    /// Updates the average. Large entries have more weight: requesting too few costs a round trip, too many cost
    /// memory.
    pub(super) fn learn<'a>(&self, entries: impl Iterator<Item = &'a Entry>) {
        let (count, bytes) =
            entries.fold((0_usize, 0), |(count, bytes), entry| (count + 1, bytes + entry.size()));
        if let Some(seen) = bytes.checked_div(count) {
            let before = self.0.load(Ordering::Relaxed);
            self.0.store(seen.max((before * 3 + seen) / 4).max(1), Ordering::Relaxed);
        }
    }

    /// How many entries have about `bytes` bytes: at least one, at most `most`.
    pub(super) fn fitting(&self, bytes: usize, most: usize) -> usize {
        (bytes / self.0.load(Ordering::Relaxed)).clamp(1, most.max(1))
    }
}
