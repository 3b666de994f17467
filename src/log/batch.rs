//! A batch: the events that one stream receives at once, and their counts.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use smallvec::SmallVec;

use super::TopicLog;
use super::batch_cache::SharedBatch;
use super::merged::{Merged, RuleCounts, Wanted};
use crate::protocol::codes::GapReason;
use crate::protocol::gzip::Checksum;
use crate::protocol::seq::Seq;

/// The result of a read.
#[derive(Debug)]
pub enum Read {
    /// Events to send.
    Batch(Batch),
    /// Nothing: the stream has read everything.
    Nothing,
    /// Nothing yet: the next messages are being fetched from the broker.
    Fetching,
}

/// Some whole events, in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// Their bytes, as the body has them; for a gzip body without a checksum here, they must still be stored in it.
    pub bytes: Bytes,
    /// If these are bytes of a gzip body: the checksum of their events.
    pub checksum: Option<Checksum>,
    /// The number of entries.
    pub entries: usize,
    /// The time of the oldest entry.
    pub oldest: Option<SystemTime>,
    /// The messages that were left out because of their type. A batch of which everything was left out has no bytes.
    pub filtered: usize,
    /// The messages that were left out because a newer one followed.
    pub conflated: usize,
    /// Whether no id in its bytes says how far it goes, because the last messages were left out.
    pub(super) ends_left_out: bool,
    /// Gaps that only this reader has.
    pub gaps: SmallVec<[GapReason; 1]>,
    /// If it was merged from several logs: its entries by rule.
    pub(super) counts: RuleCounts,
}

impl Batch {
    /// Counts `entries` of `log`, the first of them with that time.
    pub(super) fn count(&mut self, log: &TopicLog, entries: usize, time: SystemTime) {
        if entries > 0 {
            self.entries += entries;
            self.oldest = Some(self.oldest.map_or(time, |oldest| oldest.min(time)));
        }
        log.rule.events.inc_by(entries as u64);
    }

    /// Notes `entries` of `log` for the streams that will share what was merged.
    pub(super) fn note_merged(&mut self, log: &TopicLog, entries: usize) {
        match self.counts.iter_mut().find(|(rule, _)| Arc::ptr_eq(rule, &log.rule)) {
            Some((_, counted)) => *counted += entries,
            None => self.counts.push((log.rule.clone(), entries)),
        }
    }

    /// What it is for other streams that ask for `wanted`: everything up to `until`.
    pub(super) fn merged(&self, wanted: Wanted, until: Seq) -> Merged {
        let Batch { entries, oldest, filtered, ends_left_out, .. } = *self;
        let (bytes, counts) = (self.bytes.clone(), self.counts.clone());
        Merged { wanted, until, bytes, entries, oldest, filtered, ends_left_out, counts }
    }

    /// What another stream has merged, counted for this one too.
    pub(super) fn of_merged(merged: Merged) -> Self {
        for (rule, entries) in &merged.counts {
            rule.events.inc_by(*entries as u64);
        }
        let Merged { bytes, entries, oldest, filtered, ends_left_out, .. } = merged;
        Batch { bytes, entries, oldest, filtered, ends_left_out, ..Batch::default() }
    }

    /// Takes over a batch of `log`.
    pub(super) fn take(&mut self, log: &TopicLog, shared: SharedBatch) {
        (self.bytes, self.checksum) = (shared.bytes, shared.checksum);
        self.filtered += shared.left_out;
        self.ends_left_out = shared.ends_left_out;
        self.count(log, shared.entries, shared.time);
    }

    /// Whether it has anything for the reader, and not only messages that the view leaves out.
    pub(super) fn has_events(&self) -> bool {
        self.entries > 0 || !self.gaps.is_empty()
    }

    /// Whether nothing was read.
    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0 && self.gaps.is_empty() && self.filtered == 0
    }

    /// Counts a gap in `log`.
    pub(super) fn count_gap(&mut self, log: &TopicLog, reason: GapReason) {
        self.gaps.push(reason);
        log.rule.gaps.inc();
    }
}
