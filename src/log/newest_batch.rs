//! The batches of one view with an interval: each has the newest message of each topic and type, and is made once for all
//! readers that read at the same tick.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::message::Format;
use super::newest::Chosen;
use super::variant::Variant;
use super::{BATCH_BYTES, BufferUsage};
use crate::protocol::frame::Coding;
use crate::protocol::seq::Seq;
use crate::reader::clock::Millis;

/// The most batches that are cached: readers of one tick that are at different positions, or read one of several parts.
const CACHED: usize = 32;

/// The batch for readers at one position, of the entries up to another one.
#[derive(Debug, Clone)]
pub(crate) struct NewestBatch {
    from: Seq,
    /// The end of the round: the last entry from which it was selected.
    pub(crate) until: Seq,
    /// Where a reader continues: before `until` if this is only a part of the selection.
    pub(crate) last: Seq,
    made: Millis,
    format: Format,
    coding: Coding,
    pub(crate) entries: usize,
    pub(crate) filtered: usize,
    pub(crate) conflated: usize,
    /// The time of its oldest entry.
    pub(crate) time: SystemTime,
    pub(crate) bytes: Bytes,
}

/// The request of a reader with an interval to a log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    /// Everything up to here was read.
    pub(crate) from: Seq,
    /// The end of the round, if an earlier part of it was read already.
    pub(crate) until: Option<Seq>,
    /// The end of what can be read.
    pub(crate) head: Seq,
    pub(crate) now: Millis,
    /// A batch that was made before this is too old.
    pub(crate) oldest: Millis,
}

/// The cached batches.
#[derive(Debug)]
pub(super) struct NewestBatches {
    kept: VecDeque<NewestBatch>,
    usage: Arc<BufferUsage>,
}

impl NewestBatches {
    pub(super) fn new(usage: Arc<BufferUsage>) -> Self {
        NewestBatches { kept: VecDeque::new(), usage }
    }

    /// The batch of that round, if one is cached.
    pub(super) fn find(&self, round: Round, variant: Variant<'_>) -> Option<NewestBatch> {
        let fits = |batch: &&NewestBatch| {
            let same =
                (batch.from, batch.format, batch.coding) == (round.from, variant.format, variant.coding);
            let in_time = match round.until {
                Some(until) => batch.until == until,
                None => batch.made >= round.oldest && batch.until <= round.head,
            };
            same && in_time
        };
        self.kept.iter().rev().find(fits).cloned()
    }

    /// The end of a round that begins now: the same as for the other readers of this tick, so that the next tick finds
    /// all of them at the same position.
    pub(super) fn end(&self, round: Round) -> Seq {
        let others = self.kept.iter().filter(|batch| batch.made >= round.oldest).map(|batch| batch.until);
        let end = others.filter(|until| *until > round.from && *until <= round.head).max();
        round.until.or(end).unwrap_or(round.head)
    }

    /// Makes the batch of `chosen`, from the entries up to `until`, and caches it.
    pub(super) fn make(
        &mut self,
        round: Round,
        until: Seq,
        chosen: &Chosen,
        variant: Variant<'_>,
    ) -> NewestBatch {
        let frames: Vec<_> = chosen
            .entries
            .iter()
            .scan(0, |length, entry| {
                let is_full = *length >= BATCH_BYTES;
                if is_full {
                    return None;
                }
                let frame = variant.frame(entry);
                *length += frame.slice(variant.coding).len();
                Some(frame)
            })
            .collect();
        let bytes = match &*frames {
            [] => Bytes::new(),
            [frame] => frame.bytes(variant.coding),
            frames => {
                frames.iter().map(|frame| frame.slice(variant.coding)).collect::<Vec<_>>().concat().into()
            }
        };
        let is_whole = frames.len() == chosen.entries.len();
        let last = chosen.entries.get(frames.len().wrapping_sub(1)).filter(|_| !is_whole);
        // Messages that were left out of a round are counted with its first part.
        let is_first = round.until.is_none();
        let batch = NewestBatch {
            from: round.from,
            until,
            last: last.map_or(until, |entry| entry.sequence),
            made: round.now,
            format: variant.format,
            coding: variant.coding,
            entries: frames.len(),
            filtered: if is_first { chosen.filtered } else { 0 },
            conflated: if is_first { chosen.conflated } else { 0 },
            time: chosen.entries.first().map_or(SystemTime::UNIX_EPOCH, |entry| entry.time()),
            bytes,
        };
        self.usage.add(batch.bytes.len());
        self.kept.push_back(batch.clone());
        if self.kept.len() > CACHED {
            let given_up = self.kept.pop_front();
            self.usage.sub(given_up.map_or(0, |batch| batch.bytes.len()));
        }
        batch
    }
}

impl Drop for NewestBatches {
    fn drop(&mut self) {
        let bytes: usize = self.kept.iter().map(|batch| batch.bytes.len()).sum();
        self.usage.sub(bytes);
    }
}
