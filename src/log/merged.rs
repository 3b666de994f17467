//! Merged batches: entries of several logs, in order, made by one stream and shared with the others that read the same logs from
//! the same position. A crowd with the same topics merges each entry once, and a stream of a hundred topics looks at one
//! place, not at a hundred logs, to see that nothing is new.
//!
//! They are kept by the first of their logs, and dropped with its other batches.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use bytes::Bytes;
use smallvec::SmallVec;

use super::message::Format;
use super::{BATCH_BYTES, BufferUsage};
use crate::metrics::RuleMetrics;
use crate::protocol::frame::Coding;
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;
use crate::protocol::view::View;

/// The most batches that a log keeps, of all sets of logs that it is the first of. With more, streams merge for themselves.
const KEPT: usize = 32;

/// How many entries of each rule are in a batch.
pub(super) type RuleCounts = SmallVec<[(Arc<RuleMetrics>, usize); 1]>;

/// The name of a set of logs and of what is read of them. It is a hash with a key of this process, so nobody can find two sets
/// with one name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SetName(pub(super) u64);

impl SetName {
    /// The name of these logs of one sequence, read with that view.
    pub(super) fn of<'a>(filters: impl Iterator<Item = &'a Filter>, view: Option<&View>) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let filters: Vec<&str> = filters.map(Filter::as_str).collect();
        SetName(KEY.hash_one((filters, view)))
    }
}

/// What a stream asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) set: SetName,
    /// It has read all logs up to here.
    pub(super) from: Seq,
    /// The head of the sequence.
    pub(super) head: Seq,
    pub(super) format: Format,
    pub(super) coding: Coding,
}

/// Everything that the logs of a set have after one position up to another one, perhaps nothing.
#[derive(Debug, Clone)]
pub(super) struct Merged {
    pub(super) wanted: Wanted,
    pub(super) until: Seq,
    pub(super) bytes: Bytes,
    pub(super) entries: usize,
    pub(super) oldest: Option<SystemTime>,
    pub(super) filtered: usize,
    pub(super) ends_left_out: bool,
    pub(super) counts: RuleCounts,
}

impl Merged {
    fn is_for(&self, wanted: &Wanted) -> bool {
        let Wanted { set, from, format, coding, .. } = self.wanted;
        (set, from, format, coding) == (wanted.set, wanted.from, wanted.format, wanted.coding)
    }

    /// Its bytes, if they are not those of an entry alone.
    fn weight(&self) -> usize {
        if self.entries > 1 { self.bytes.len() } else { 0 }
    }

    /// Whether it should be made again, because much more follows. So it is made a few times at most, however often something is
    /// appended while a crowd reads this position.
    fn is_outgrown(&self, head: Seq) -> bool {
        let (has, more) = (self.until.distance(self.wanted.from), head.distance(self.until));
        4 * more >= has && self.bytes.len() < BATCH_BYTES
    }
}

/// The merged batches that a log keeps, oldest first. They count among the bytes of all logs.
#[derive(Debug)]
pub(super) struct MergedBatches {
    kept: VecDeque<Merged>,
    usage: Arc<BufferUsage>,
}

impl MergedBatches {
    pub(super) fn new(usage: Arc<BufferUsage>) -> Self {
        MergedBatches { kept: VecDeque::new(), usage }
    }

    /// The batch that was made for others, if it has enough.
    pub(super) fn find(&self, wanted: &Wanted) -> Option<Merged> {
        let found = self.kept.iter().rev().find(|merged| merged.is_for(wanted))?;
        let is_empty = found.entries + found.filtered == 0;
        let is_enough = if is_empty { found.until >= wanted.head } else { !found.is_outgrown(wanted.head) };
        is_enough.then(|| found.clone())
    }

    /// Keeps a batch for others, instead of the one that it has outgrown.
    pub(super) fn keep(&mut self, merged: Merged) {
        self.usage.add(merged.weight());
        let outgrown = self.kept.iter().position(|kept| kept.is_for(&merged.wanted));
        let given_up = match outgrown {
            Some(index) => self.kept.remove(index),
            None if self.kept.len() == KEPT => self.kept.pop_front(),
            None => None,
        };
        self.usage.sub(given_up.map_or(0, |merged| merged.weight()));
        self.kept.push_back(merged);
    }
}

impl Drop for MergedBatches {
    fn drop(&mut self) {
        self.usage.sub(self.kept.iter().map(Merged::weight).sum());
    }
}
