//! The batches that the readers of a log share: plain, stored in a gzip body, or compressed.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{State, TopicLog};
use crate::log::Entry;
use crate::log::batch_cache::SharedBatch;
use crate::log::compression::{Next, PIECE_BYTES};
use crate::log::merged::{Merged, Wanted};
use crate::log::variant::Variant;
use crate::protocol::frame::Coding;
use crate::protocol::gzip::Content;
use crate::protocol::seq::Seq;

/// Where a reader is in a log.
#[derive(Debug, Clone, Copy)]
pub(in crate::log) struct Place {
    /// It has received everything up to this number.
    pub(in crate::log) position: Seq,
    /// In a gzip body: it has received every entry of this log after this number, and nothing else since then.
    pub(in crate::log) since: Seq,
    /// It reads no further than this number. `None`: to the head.
    pub(in crate::log) until: Option<Seq>,
}

/// Entries that follow each other, and the number of the one before them.
struct Following {
    after: Seq,
    entries: SmallVec<[Arc<Entry>; 16]>,
}

impl TopicLog {
    /// The entries that follow `place`, as a batch that readers at the same position share. `Err`: entries up to that
    /// number were evicted.
    pub(in crate::log) fn shared(
        &self,
        place: Place,
        variant: Variant<'_>,
    ) -> Result<Option<SharedBatch>, Seq> {
        if self.has_nothing_after(place.position) {
            return Ok(None);
        }
        match variant.content {
            Content::Identity => {
                let mut state = self.state.lock();
                let head = self.head(place);
                state.batch(place.position, head, head, variant)
            }
            Content::Gzip => self.shared_gzip(place, variant),
        }
    }

    /// What another stream has merged of this log and others, this one first.
    pub(in crate::log) fn merged(&self, wanted: &Wanted) -> Option<Merged> {
        self.state.lock().batches.merged(wanted)
    }

    /// Keeps it for other streams.
    pub(in crate::log) fn keep_merged(&self, merged: Merged) {
        self.state.lock().batches.keep_merged(merged);
    }

    /// Under a lock of the log, so that every batch that was built before ends by then.
    fn head(&self, place: Place) -> Seq {
        place.until.unwrap_or_else(|| self.numbering.head())
    }

    fn shared_gzip(&self, place: Place, variant: Variant<'_>) -> Result<Option<SharedBatch>, Seq> {
        let Place { position, since, .. } = place;
        let mut compression = self.compression.lock();
        let head = self.head(place);
        let track = compression.of(variant.format);
        let mut until = head;
        if let Some(compressor) = &mut track.compressor {
            let mut next = compressor.next(position, since, head);
            if next == Next::New {
                let Following { after, entries } = self.state.lock().following(position, head, variant)?;
                compressor.add(&entries, after, since, variant.format);
                next = compressor.next(position, since, head);
            }
            match next {
                Next::Pieces => {
                    // The pieces may still have entries that the log has evicted, but no reader gets more than the others.
                    let evicted = self.state.lock().evicted.number;
                    if evicted > position {
                        return Err(evicted);
                    }
                    let batch = compressor.read(position, head, variant);
                    track.delivered(batch.as_ref().map_or(0, |batch| batch.entries));
                    return Ok(batch);
                }
                Next::Stored { until: end } => until = end.min(head),
                Next::New => {} // nothing follows
            }
        }
        let mut state = self.state.lock();
        let batch = state.batch(position, until, head, variant)?;
        let appended = state.appended;
        drop(state);
        track.delivered(batch.as_ref().map_or(0, |batch| batch.entries));
        track.compress_for_a_crowd(appended, &self.usage);
        Ok(batch)
    }
}

impl State {
    /// The entries after `position` up to `until`, or if there are none, up to `head`.
    fn batch(
        &mut self,
        position: Seq,
        until: Seq,
        head: Seq,
        variant: Variant<'_>,
    ) -> Result<Option<SharedBatch>, Seq> {
        if self.evicted.number > position {
            return Err(self.evicted.number);
        }
        let State { entries, batches, .. } = self;
        let batch = batches.of(entries, position, until, variant);
        Ok(batch.or_else(|| if until < head { batches.of(entries, position, head, variant) } else { None }))
    }

    /// The entries after `position` up to `head`, as many as one piece takes.
    fn following(&self, position: Seq, head: Seq, variant: Variant<'_>) -> Result<Following, Seq> {
        if self.evicted.number > position {
            return Err(self.evicted.number);
        }
        let index = self.entries.partition_point(|entry| entry.sequence <= position);
        let before = index.checked_sub(1).and_then(|index| self.entries.get(index));
        let after = before.map_or(self.evicted.number, |entry| entry.sequence);
        let mut left = PIECE_BYTES;
        let mut entries = SmallVec::new();
        for entry in self.entries.range(index..).take_while(|entry| entry.sequence <= head) {
            let length = entry.frame(variant.format).slice(Coding::Plain).len();
            if length > left && !entries.is_empty() {
                break;
            }
            left = left.saturating_sub(length);
            entries.push(entry.clone());
        }
        Ok(Following { after, entries })
    }
}
