//! Shared batches: consecutive entries in one allocation, built for one reader and cached for others that reach the
//! same position a moment later. If each reader of a crowd built its own, each would cost a copy, and the memory of
//! that copy until the socket has taken it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use smallvec::SmallVec;

use super::message::Format;
use super::variant::Variant;
use super::{BATCH_BYTES, BufferUsage, Entry};
use crate::protocol::frame::{Coding, Frame};
use crate::protocol::seq::Seq;

/// The most batches that a log caches. If it were fewer than a crowd reads at once, each reader would build all of them
/// again.
pub(crate) const CACHED_BATCHES: usize = 32;

/// The most entries of which a view chooses at once, under the lock of the log. More than a batch of the shortest messages has.
const MOST_ENTRIES: usize = 4096;

/// Consecutive entries, as they are written to a socket.
#[derive(Debug, Clone)]
pub(crate) struct SharedBatch {
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    /// The time of the first entry.
    pub(crate) time: SystemTime,
    /// The entries in its bytes.
    pub(crate) entries: usize,
    /// The messages that the view left out.
    pub(crate) left_out: usize,
    /// Whether the last entry was left out, so that no id in its bytes says how far it goes.
    pub(crate) ends_left_out: bool,
    pub(crate) format: Format,
    pub(crate) coding: Coding,
    pub(crate) bytes: Bytes,
}

impl SharedBatch {
    /// The batch of a single entry: its own bytes.
    fn single(entry: &Entry, format: Format, coding: Coding) -> Self {
        SharedBatch {
            first: entry.sequence,
            last: entry.sequence,
            time: entry.time(),
            entries: 1,
            left_out: 0,
            ends_left_out: false,
            format,
            coding,
            bytes: entry.frame(format).bytes(coding),
        }
    }

    /// Whether a batch of `entries` should replace it. Only if that is a quarter more: so it is rebuilt a few times at
    /// most, however often something is appended while a crowd reads this position.
    fn is_outgrown_by(&self, entries: usize) -> bool {
        let own = self.entries + self.left_out;
        4 * entries >= 5 * own && own < MOST_ENTRIES && self.bytes.len() < BATCH_BYTES
    }
}

/// A reader's position among the cached batches.
#[derive(Debug)]
enum CachePosition {
    /// At the beginning of this batch. It may be extended, no further than `until`.
    Kept { shared: SharedBatch, until: Seq },
    /// Outside of all: the reader builds a batch, no further than `until`, where the next one begins.
    Free { until: Seq },
    /// Inside of one: the reader builds a batch up to its end, `until`, and shares from there.
    Within { until: Seq },
}

/// The cached batches of one view of a log or of a backfill range, oldest first. Batches of one format and coding never
/// overlap. They count among the bytes of all logs, and are dropped by the next sweep.
#[derive(Debug)]
pub(crate) struct BatchCache {
    kept: VecDeque<SharedBatch>,
    /// The last batch that was built inside of another one. Readers that had read the first part of a batch when it was
    /// extended are a crowd too. If they come from different positions, it helps none of them but costs only one batch.
    inner: Option<SharedBatch>,
    usage: Arc<BufferUsage>,
}

impl BatchCache {
    /// An empty cache.
    pub(crate) fn new(usage: Arc<BufferUsage>) -> Self {
        BatchCache { kept: VecDeque::new(), inner: None, usage }
    }

    /// The entries after `position` up to `head`: a cached batch, or a new one.
    pub(crate) fn of(
        &mut self,
        entries: &VecDeque<Arc<Entry>>,
        position: Seq,
        head: Seq,
        variant: Variant<'_>,
    ) -> Option<SharedBatch> {
        let Variant { format, coding, view } = variant;
        let index = entries.partition_point(|entry| entry.sequence <= position);
        let first = entries.get(index).filter(|entry| entry.sequence <= head)?;
        let place = self.find(first.sequence, head, format, coding);
        let until = match &place {
            CachePosition::Kept { shared, until } => {
                let end = entries.partition_point(|entry| entry.sequence <= *until);
                if !shared.is_outgrown_by(end - index) {
                    return Some(shared.clone());
                }
                *until
            }
            CachePosition::Free { until } | CachePosition::Within { until } => *until,
        };
        if view.is_some() {
            let chosen = entries.range(index..).take_while(|entry| entry.sequence <= until);
            let (shared, is_copy) = Self::choose(chosen, first, variant);
            if is_copy {
                self.keep(shared.clone(), &place);
            }
            return Some(shared);
        }
        // The size is measured first: a buffer that grows while it is filled would be copied, and take up to twice its
        // size.
        let mut length = first.frame(format).slice(coding).len();
        let more = entries.range(index + 1..).take_while(|entry| entry.sequence <= until);
        let mut count = 1;
        for entry in more {
            if length >= BATCH_BYTES {
                break;
            }
            length += entry.frame(format).slice(coding).len();
            count += 1;
        }
        if count == 1 {
            // A single entry is shared as it is, without a copy.
            return Some(SharedBatch::single(first, format, coding));
        }
        let last = entries[index + count - 1].sequence;
        let mut joined = Vec::with_capacity(length);
        for entry in entries.range(index..index + count) {
            joined.extend_from_slice(entry.frame(format).slice(coding));
        }
        let shared = SharedBatch {
            last,
            entries: count,
            bytes: joined.into(),
            ..SharedBatch::single(first, format, coding)
        };
        self.keep(shared.clone(), &place);
        Some(shared)
    }

    /// The batch of those of `entries` that the view admits; the first of all is `first`. Also returns whether it took
    /// work or memory of its own, so that it is worth keeping.
    fn choose<'a>(
        entries: impl Iterator<Item = &'a Arc<Entry>>,
        first: &Entry,
        variant: Variant<'_>,
    ) -> (SharedBatch, bool) {
        let Variant { format, coding, .. } = variant;
        let mut chosen: SmallVec<[Cow<'_, Frame>; 4]> = SmallVec::new();
        let (mut length, mut left_out, mut ends_left_out, mut last) = (0, 0, false, first.sequence);
        for entry in entries.take(MOST_ENTRIES) {
            (last, ends_left_out) = (entry.sequence, !variant.admits(entry));
            left_out += usize::from(ends_left_out);
            if !ends_left_out {
                let frame = variant.frame(entry);
                length += frame.slice(coding).len();
                chosen.push(frame);
            }
            if length >= BATCH_BYTES {
                break;
            }
        }
        let bytes = match &*chosen {
            [] => Bytes::new(),
            [frame] => frame.bytes(coding),
            frames => {
                let mut joined = Vec::with_capacity(length);
                frames.iter().for_each(|frame| joined.extend_from_slice(frame.slice(coding)));
                joined.into()
            }
        };
        let is_copy = chosen.len() + left_out > 1 || matches!(&*chosen, [Cow::Owned(_)]);
        let (first, time, entries) = (first.sequence, first.time(), chosen.len());
        (SharedBatch { first, last, time, entries, left_out, ends_left_out, format, coding, bytes }, is_copy)
    }

    /// The position of a reader whose next entry is `first`; it reads no further than `head`.
    fn find(&self, first: Seq, head: Seq, format: Format, coding: Coding) -> CachePosition {
        let is_fit = |shared: &&SharedBatch| (shared.format, shared.coding) == (format, coding);
        let (mut until, mut within, mut found) = (head, false, None);
        for shared in self.kept.iter().filter(is_fit) {
            if shared.first == first {
                found = Some(shared);
            } else if shared.first > first {
                until = until.min(shared.first.previous());
            } else if shared.last >= first {
                (until, within) = (until.min(shared.last), true);
            }
        }
        let inner = self.inner.iter().find(|shared| is_fit(shared) && shared.first == first);
        match (found, inner) {
            (Some(shared), _) => CachePosition::Kept { shared: shared.clone(), until },
            (None, Some(shared)) if shared.last <= until => {
                CachePosition::Kept { shared: shared.clone(), until: shared.last }
            }
            _ if within => CachePosition::Within { until },
            _ => CachePosition::Free { until },
        }
    }

    /// Caches a batch that was built for a reader at `place`.
    fn keep(&mut self, shared: SharedBatch, place: &CachePosition) {
        let added = shared.bytes.len();
        let replaced = match place {
            CachePosition::Within { .. } => self.inner.replace(shared),
            CachePosition::Kept { shared: outgrown, .. } => {
                let same = |kept: &&mut SharedBatch| kept.bytes.as_ptr() == outgrown.bytes.as_ptr();
                let Some(kept) = self.kept.iter_mut().find(same) else { return };
                Some(std::mem::replace(kept, shared))
            }
            CachePosition::Free { .. } => {
                self.kept.push_back(shared);
                if self.kept.len() > CACHED_BATCHES { self.kept.pop_front() } else { None }
            }
        };
        self.usage.0.fetch_add(added, Ordering::Relaxed);
        self.usage.0.fetch_sub(replaced.map_or(0, |shared| shared.bytes.len()), Ordering::Relaxed);
    }

    /// Drops all batches, and frees the memory.
    pub(crate) fn clear(&mut self) {
        let given_up = std::mem::take(&mut self.kept).into_iter().chain(self.inner.take());
        let bytes: usize = given_up.map(|shared| shared.bytes.len()).sum();
        self.usage.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for BatchCache {
    fn drop(&mut self) {
        self.clear();
    }
}
