//! Shared batches: consecutive parts of a log in one allocation, built for one reader and cached for others that reach
//! the same position a moment later. If each reader of a crowd built its own, each would cost a copy, and the memory of
//! that copy until the socket has taken it. A part is an entry, or a piece of several entries that is already compressed.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use smallvec::SmallVec;

use super::message::Format;
use super::variant::Variant;
use super::{BATCH_BYTES, BufferUsage, Entry};
use crate::protocol::frame::{Coding, Frame};
use crate::protocol::gzip::{self, Checksum, Content};
use crate::protocol::seq::Seq;

/// The most batches that a log caches. If it were fewer than a crowd reads at once, each reader would build all of them
/// again.
pub(crate) const CACHED_BATCHES: usize = 32;

/// The most entries from which a view selects at once, under the lock of the log. A batch of the shortest messages has
/// fewer.
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
    pub(crate) content: Content,
    pub(crate) bytes: Bytes,
    /// In a gzip body: the checksum of its events.
    pub(crate) checksum: Option<Checksum>,
    /// The parts of which it was made, those that the view left out included.
    pub(crate) parts: usize,
}

/// A part of a log, of which batches consist: an entry, or a compressed piece of several.
pub(crate) trait Part {
    /// The number of its first entry.
    fn first(&self) -> Seq;
    /// The number of its last entry.
    fn last(&self) -> Seq;
    /// The batch of the first of these parts and as many others as it takes, and whether it took work or memory of its own,
    /// so that it is worth keeping. There is at least one.
    fn batch<'a>(
        first: &'a Self,
        parts: impl Iterator<Item = &'a Self> + Clone,
        variant: Variant<'_>,
    ) -> (SharedBatch, bool);
}

impl Part for Arc<Entry> {
    fn first(&self) -> Seq {
        self.sequence
    }

    fn last(&self) -> Seq {
        self.sequence
    }

    fn batch<'a>(
        first: &'a Self,
        parts: impl Iterator<Item = &'a Self> + Clone,
        variant: Variant<'_>,
    ) -> (SharedBatch, bool) {
        if variant.view.is_some() {
            return choose(parts, first, variant);
        }
        let Variant { format, coding, content, .. } = variant;
        let slice = |entry: &'a Self| entry.frame(format).slice(variant.own().coding);
        // The size is measured first: a buffer that grows while it is filled would be copied, and take up to twice its
        // size.
        let (mut length, mut count, mut last) = (0, 0, first.sequence);
        for entry in parts.clone() {
            if length >= BATCH_BYTES {
                break;
            }
            (length, count, last) = (length + slice(entry).len(), count + 1, entry.sequence);
        }
        let slices = parts.take(count).map(slice);
        let (bytes, checksum) = match content {
            // A single entry is shared as it is, without a copy.
            Content::Identity if count == 1 => (first.frame(format).bytes(coding), None),
            Content::Identity => {
                let mut joined = Vec::with_capacity(length);
                slices.for_each(|slice| joined.extend_from_slice(slice));
                (joined.into(), None)
            }
            Content::Gzip => {
                let gzip::Piece { frame, checksum } = gzip::stored(slices, length);
                (frame.bytes(coding), Some(checksum))
            }
        };
        let is_copy = count > 1 || content == Content::Gzip;
        let (time, first) = (first.time(), first.sequence);
        let batch = SharedBatch {
            first,
            last,
            time,
            entries: count,
            left_out: 0,
            ends_left_out: false,
            format,
            coding,
            content,
            bytes,
            checksum,
            parts: count,
        };
        (batch, is_copy)
    }
}

impl SharedBatch {
    /// Whether a batch of `parts` should replace it. Only if that is a quarter more: so it is rebuilt a few times at
    /// most, however often something is appended while a crowd reads this position.
    fn is_outgrown_by(&self, parts: usize) -> bool {
        4 * parts >= 5 * self.parts && self.parts < MOST_ENTRIES && self.bytes.len() < BATCH_BYTES
    }
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
    let parts = entries + left_out;
    let batch = SharedBatch {
        first,
        last,
        time,
        entries,
        left_out,
        ends_left_out,
        format,
        coding,
        content: Content::Identity,
        bytes,
        checksum: None,
        parts,
    };
    (batch, is_copy)
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

    /// The parts after `position` up to `head`: a cached batch, or a new one. `None` if the next part does not end by
    /// then.
    pub(crate) fn of<P: Part>(
        &mut self,
        parts: &VecDeque<P>,
        position: Seq,
        head: Seq,
        variant: Variant<'_>,
    ) -> Option<SharedBatch> {
        let index = parts.partition_point(|part| part.last() <= position);
        let first = parts.get(index).filter(|part| part.last() <= head)?;
        let place = self.find(first.first(), head, variant);
        let until = match &place {
            CachePosition::Kept { shared, until } => {
                let end = parts.partition_point(|part| part.last() <= *until);
                if !shared.is_outgrown_by(end - index) {
                    return Some(shared.clone());
                }
                *until
            }
            CachePosition::Free { until } | CachePosition::Within { until } => *until,
        };
        let (shared, is_copy) =
            P::batch(first, parts.range(index..).take_while(|part| part.last() <= until), variant);
        if is_copy {
            self.keep(shared.clone(), &place);
        }
        Some(shared)
    }

    /// The position of a reader whose next entry is `first`; it reads no further than `head`.
    fn find(&self, first: Seq, head: Seq, variant: Variant<'_>) -> CachePosition {
        let Variant { format, coding, content, .. } = variant;
        let is_fit = |shared: &&SharedBatch| {
            (shared.format, shared.coding, shared.content) == (format, coding, content)
        };
        let (mut until, mut within, mut found) = (head, false, None);
        for shared in self.kept.iter().filter(is_fit) {
            if shared.first == first && shared.last <= head {
                found = Some(shared);
            } else if shared.first == first {
                within = true; // it was built for a reader that reads further
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
        self.usage.add(added);
        self.usage.sub(replaced.map_or(0, |shared| shared.bytes.len()));
    }

    /// Drops all batches, and frees the memory.
    pub(crate) fn clear(&mut self) {
        let given_up = std::mem::take(&mut self.kept).into_iter().chain(self.inner.take());
        let bytes: usize = given_up.map(|shared| shared.bytes.len()).sum();
        self.usage.sub(bytes);
    }
}

impl Drop for BatchCache {
    fn drop(&mut self) {
        self.clear();
    }
}
