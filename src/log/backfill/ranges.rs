//! Fetched ranges of stored messages, and their bound: readers at the same position share them, and they are dropped when
//! nobody has read them for a while.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{BackfillRequest, History};
use crate::log::batch_cache::SharedBatch;
use crate::log::batches::Batches;
use crate::log::variant::Variant;
use crate::log::{BufferUsage, Entry};
use crate::protocol::seq::Seq;

/// Ranges may take one part in this many of the bound on all logs. A range that was dropped too early is fetched again.
const SHARE: usize = 8;

/// The newest ranges, which are never dropped, because readers have just been woken for them. At least as many as are
/// fetched at once.
pub(super) const NEWEST: usize = 8;

/// How far a fetched range goes, and what is missing in it.
#[derive(Debug, Clone, Copy)]
pub struct RangeExtent {
    /// It is complete up to this number.
    pub through: Seq,
    /// Messages up to this number are gone, if any are.
    pub gone: Option<Seq>,
    /// `gone` stands for single messages that were removed out of the middle, and not for the oldest.
    pub is_hole: bool,
    /// Single messages after `gone` are gone too. Then it serves only readers that start at its beginning.
    pub torn: bool,
}

/// A fetched range of stored messages.
#[derive(Debug)]
pub(crate) struct BackfillRange {
    pub(super) after: Seq,
    pub(super) until: Seq,
    /// The range is complete up to this number.
    pub(crate) through: Seq,
    /// Messages up to this number are gone, if any are.
    pub(crate) gone: Option<Seq>,
    /// As [`RangeExtent::is_hole`].
    pub(crate) is_hole: bool,
    /// Single messages after `gone` are gone too, and only `gone` stands for them.
    torn: bool,
    /// The entries by number.
    pub(crate) entries: VecDeque<Arc<Entry>>,
    /// Batches for its readers. A crowd that resumes together reads the same positions.
    batches: Mutex<Batches>,
    /// Whether it was read since the last sweep.
    pub(super) was_read: AtomicBool,
    bytes: usize,
    usage: Arc<BufferUsage>,
}

impl BackfillRange {
    /// The batch that follows `position` in it; `None` if nothing does.
    pub(crate) fn shared(&self, position: Seq, variant: Variant<'_>) -> Option<SharedBatch> {
        self.batches.lock().of(&self.entries, position, self.through, variant)
    }

    /// Whether it can serve a reader at `position`. A torn range serves only readers that start at its beginning,
    /// because only they receive its gap.
    pub(super) fn covers(&self, position: Seq) -> bool {
        if self.torn { self.after == position } else { (self.after..self.through).contains(&position) }
    }
}

impl Drop for BackfillRange {
    fn drop(&mut self) {
        self.usage.sub(self.bytes);
    }
}

/// The ranges of all logs, and their bound.
#[derive(Debug, Default)]
pub(crate) struct BackfillRanges(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    ranges: VecDeque<(Weak<History>, Arc<BackfillRange>)>,
    bytes: usize,
}

impl BackfillRanges {
    /// Delivers a range to the readers that wait for it, and keeps it for others as long as there is room.
    pub(crate) fn keep(
        &self,
        request: &BackfillRequest,
        extent: RangeExtent,
        entries: Vec<Arc<Entry>>,
        max_bytes: usize,
    ) {
        let RangeExtent { through, gone, is_hole, torn } = extent;
        let usage = request.history.usage.clone();
        let bytes = entries.iter().map(|entry| entry.weight()).sum();
        usage.add(bytes);
        let range = Arc::new(BackfillRange {
            after: request.after,
            until: request.until,
            through,
            gone,
            is_hole,
            torn,
            entries: entries.into(),
            batches: Mutex::new(Batches::new(usage.clone())),
            was_read: AtomicBool::new(true), // its readers are about to read it
            bytes,
            usage,
        });
        request.history.answer(request.id, range.clone());
        let given_up = {
            let mut kept = self.0.lock();
            kept.ranges.push_back((Arc::downgrade(&request.history), range));
            kept.bytes += bytes;
            let mut given_up = Vec::new();
            while kept.bytes > max_bytes / SHARE && kept.ranges.len() > NEWEST {
                let Some(oldest) = kept.ranges.pop_front() else { break };
                kept.bytes -= oldest.1.bytes;
                given_up.push(oldest);
            }
            given_up
        };
        given_up.iter().for_each(forget);
    }

    /// Drops the ranges that nobody has read since the last sweep.
    pub(crate) fn sweep(&self) {
        let mut kept = self.0.lock();
        let ranges = std::mem::take(&mut kept.ranges).into_iter();
        let (read, given_up): (VecDeque<_>, VecDeque<_>) =
            ranges.partition(|(_, range)| range.was_read.swap(false, Ordering::Relaxed));
        kept.bytes = read.iter().map(|(_, range)| range.bytes).sum();
        kept.ranges = read;
        drop(kept);
        given_up.iter().for_each(forget);
    }
}

fn forget((history, range): &(Weak<History>, Arc<BackfillRange>)) {
    if let Some(history) = history.upgrade() {
        history.forget(range);
    }
}
