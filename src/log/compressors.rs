//! The compressors of all logs: limits their number, and decides which logs get one.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::protocol::gzip::Deflater;

/// A log gets a compressor once this many readers receive each of its entries. For fewer readers, compressing costs more
/// than a tenth of the CPU of their deliveries.
const CROWD: u32 = 32;

/// Compressors may take one part in this many of the bound on all logs.
pub(super) const SHARE: usize = 8;

/// The compressors of all logs.
#[derive(Debug)]
pub(super) struct Compressors {
    /// [`CROWD`], except in tests.
    crowd: AtomicU32,
    count: AtomicUsize,
    most: AtomicUsize,
    /// The most entries that a log without a place has delivered between two sweeps.
    wanted: AtomicU64,
}

impl Default for Compressors {
    fn default() -> Self {
        let (count, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Compressors { crowd: AtomicU32::new(CROWD), count, most, wanted: AtomicU64::new(0) }
    }
}

impl Compressors {
    /// Sets the number of readers that count as a crowd.
    pub(super) fn set_crowd(&self, readers: u32) {
        self.crowd.store(readers, Ordering::Relaxed);
    }

    /// Whether a crowd has received these entries: `delivered` counts deliveries to all readers, `appended` the entries.
    pub(super) fn is_crowd(&self, delivered: u64, entries: u64) -> bool {
        delivered >= u64::from(self.crowd.load(Ordering::Relaxed)) * entries
    }

    /// The number of logs that are compressed now.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Sets the bound, from the bound on all logs.
    pub(super) fn set_bound(&self, buffer: usize) {
        self.most.store(buffer / SHARE / Deflater::MEMORY, Ordering::Relaxed);
    }

    /// Takes a place, if there is one.
    pub(super) fn take(&self) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let more = |count| (count < most).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Frees a place.
    pub(super) fn give_back(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records that a log that has delivered this many entries found no place.
    pub(super) fn want(&self, delivered: u64) {
        self.wanted.fetch_max(delivered, Ordering::Relaxed);
    }

    /// Whether a log that has delivered this many entries must give its place to one that has delivered far more.
    pub(super) fn must_give_way(&self, delivered: u64) -> bool {
        let fewer = |wanted: u64| (delivered < wanted / 2).then_some(0);
        self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }
}
