//! Cursors: where one stream stands in each of its logs, and the merge of what it reads from them.
//!
//! A cursor is a position; what is read is in the logs, or in the history that the broker keeps of them. Logs of one sequence
//! are read up to one head and in its order, so the number of the last event tells the place in all of them. Between
//! sequences there is no order to keep: each is read as far as it goes, and an id tells the place in every one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use smallvec::SmallVec;

use super::backfill::BackfillRange;
use super::batch_cache::SharedBatch;
use super::inspect::Lag;
use super::lease::Lease;
use super::message::Format;
use super::{Item, TopicLog};
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::{COMPONENTS, Sequence};
use crate::protocol::frame::{self, Coding};
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// The cursors of one stream. Dropping them gives up the logs.
#[derive(Debug)]
pub struct Cursors {
    /// Those of one sequence stand together.
    pub(super) cursors: SmallVec<[Cursor; 1]>,
    /// They are of several sequences.
    pub(super) mixed: bool,
    /// It has not read yet all that there was when it opened.
    pub replaying: bool,
    /// The stream has once read all there was. What is evicted before its eyes from then on, it was too slow for.
    caught_up: bool,
}

#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) lease: Lease,
    /// Under which the log knows the stream's signal.
    reader: usize,
    /// Everything up to here was read, or told as a gap.
    pub(super) position: u64,
    /// While the stream is replaying, up to where that goes; while it is closing, up to where it is still read.
    pub(super) target: u64,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.lease.log().leave(self.reader);
    }
}

/// What comes next.
#[derive(Debug)]
pub enum Read {
    /// These events.
    Batch(Batch),
    /// Nothing: the stream has read all there is.
    Nothing,
    /// Nothing yet: what comes next is being fetched from the broker.
    Fetching,
}

/// Some whole events, in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// As they go to the socket.
    pub bytes: Bytes,
    /// Entries among them.
    pub entries: usize,
    /// The time of the oldest of them.
    pub oldest: Option<SystemTime>,
    /// Gaps among them that this reader alone has.
    pub gaps: SmallVec<[GapReason; 1]>,
}

impl Batch {
    /// So many entries of `log`, the first of them of that time.
    pub(super) fn count(&mut self, log: &TopicLog, entries: usize, time: SystemTime) {
        self.entries += entries;
        self.oldest = Some(self.oldest.map_or(time, |oldest| oldest.min(time)));
        log.rule.events.inc_by(entries as u64);
    }

    /// A gap in `log`.
    pub(super) fn count_gap(&mut self, log: &TopicLog, reason: GapReason) {
        self.gaps.push(reason);
        log.rule.gaps.inc();
    }
}

/// How it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadOptions<'a> {
    pub(super) format: Format,
    pub(super) coding: Coding,
    handle: &'a Arc<ReaderHandle>,
    /// A gap in what the log no longer holds has this reason.
    pub(super) reason: GapReason,
}

impl Cursors {
    /// Cursors over `leases`, of which those of one sequence come to stand together. `handle` is told of new entries from
    /// here on.
    pub(super) fn new(leases: Vec<Lease>, handle: &Arc<ReaderHandle>) -> Self {
        let mut cursors: SmallVec<[Cursor; 1]> = leases
            .into_iter()
            .map(|lease| Cursor { reader: lease.log().join(handle.clone()), lease, position: 0, target: 0 })
            .collect();
        let mixed = !cursors.is_empty() && cursors.iter().any(|cursor| !cursor.is_with(&cursors[0]));
        if mixed {
            // By the filter that comes first in each, so that the same topics have the same order everywhere.
            cursors.sort_unstable_by(|a, b| a.lease.filter().cmp(b.lease.filter()));
            let mut first: SmallVec<[Arc<Sequence>; 1]> = SmallVec::new();
            let mut places: Vec<usize> = Vec::with_capacity(cursors.len());
            for cursor in &cursors {
                let known = first.iter().position(|sequence| Arc::ptr_eq(sequence, cursor.sequence()));
                places.push(known.unwrap_or(first.len()));
                if known.is_none() {
                    first.push(cursor.sequence().clone());
                }
            }
            let mut placed: Vec<_> = places.into_iter().zip(cursors).collect();
            placed.sort_by_key(|(place, _)| *place); // stable
            cursors = placed.into_iter().map(|(_, cursor)| cursor).collect();
        }
        Cursors { cursors, mixed, replaying: false, caught_up: false }
    }

    /// What comes next. Where that is to be fetched, `handle` is told when it is there.
    pub fn read(&mut self, format: Format, coding: Coding, handle: &Arc<ReaderHandle>) -> Read {
        let reason = if self.caught_up { GapReason::Slow } else { GapReason::Evicted };
        let options = ReadOptions { format, coding, handle, reason };
        let replaying = self.replaying;
        let read = match &mut *self.cursors {
            [cursor] => cursor.read(options, replaying),
            _ => self.merge(options),
        };
        self.caught_up |= matches!(read, Read::Nothing);
        read
    }

    /// Whether they are of several sequences, so that one may go on while another waits.
    pub fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// Marks what each log has now: [`Cursors::has_reached_mark`] tells when all of it was read.
    pub fn mark(&mut self) {
        for cursor in &mut self.cursors {
            cursor.target = cursor.lease.sequence().head();
        }
    }

    /// Whether all up to the mark was read.
    pub fn has_reached_mark(&self) -> bool {
        self.cursors.iter().all(|cursor| cursor.position >= cursor.target)
    }

    /// Whether what was there when the stream opened is still to be read.
    pub fn is_replaying(&mut self) -> bool {
        self.replaying = self.replaying && !self.has_reached_mark();
        self.replaying
    }

    /// What was there when it opened has been read, or counts as such.
    pub fn end_replay(&mut self) {
        self.replaying = false;
    }

    /// The filters.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.cursors.iter().map(|cursor| cursor.lease.filter())
    }

    /// Where it has read up to everywhere. Of several sequences there is no one such place: then it is `u64::MAX`.
    pub fn position(&self) -> u64 {
        let positions = self.cursors.iter().map(|cursor| cursor.position);
        if self.mixed { u64::MAX } else { positions.min().unwrap_or_default() }
    }

    /// What was not read yet, in all logs.
    pub fn lag(&self) -> Lag {
        let lags = self.cursors.iter().map(|cursor| cursor.lease.log().lag(cursor.position));
        lags.fold(Lag::default(), Lag::and)
    }

    /// Where each sequence begins among the cursors, and ends.
    pub(super) fn sequences(&self) -> SmallVec<[std::ops::Range<usize>; 1]> {
        let mut ranges: SmallVec<[std::ops::Range<usize>; 1]> = SmallVec::new();
        for (index, cursor) in self.cursors.iter().enumerate() {
            match ranges.last_mut() {
                Some(range) if cursor.is_with(&self.cursors[range.start]) => range.end = index + 1,
                _ => ranges.push(index..index + 1),
            }
        }
        ranges
    }

    /// The event id of these places, one for each of [`Cursors::sequences`].
    pub(super) fn event_id(&self, places: &[(usize, u64)]) -> String {
        let part = |(cursor, place): &(usize, u64)| self.cursors[*cursor].lease.sequence().component(*place);
        let parts: Vec<String> = places.iter().map(part).collect();
        parts.join(COMPONENTS.encode_utf8(&mut [0; 4]))
    }
}

impl Cursor {
    /// Whether both are of one sequence.
    fn is_with(&self, other: &Cursor) -> bool {
        Arc::ptr_eq(self.lease.sequence(), other.lease.sequence())
    }

    pub(super) fn sequence(&self) -> &Arc<Sequence> {
        self.lease.sequence()
    }

    fn read(&mut self, options: ReadOptions, replaying: bool) -> Read {
        let head = self.sequence().head();
        while let Some(until) = self.history_until(self.position, replaying) {
            let Some(range) = self.range(self.position, until, options) else { return Read::Fetching };
            if range.gone > self.position {
                return self.told(range.gone, options);
            }
            match range.shared(self.position, options.format, options.coding) {
                Some(shared) => {
                    let read = self.taken(shared);
                    if range.entries.back().is_some_and(|last| last.sequence == self.position) {
                        self.position = range.through;
                    }
                    return read;
                }
                None => self.position = range.through, // nothing of it is held there
            }
        }
        match self.lease.log().shared(self.position, head, options.format, options.coding) {
            Ok(None) => Read::Nothing,
            Ok(Some(shared)) => self.taken(shared),
            // Evicted since it was looked at above.
            Err(_) if self.history_until(self.position, replaying).is_some() => self.read(options, replaying),
            Err(through) => self.told(through, options),
        }
    }

    fn taken(&mut self, shared: SharedBatch) -> Read {
        self.position = shared.last;
        let mut batch = Batch { bytes: shared.bytes, ..Batch::default() };
        batch.count(self.lease.log(), shared.entries, shared.time);
        Read::Batch(batch)
    }

    fn told(&mut self, through: u64, options: ReadOptions) -> Read {
        let mut batch = Batch { bytes: self.gap(through, options).bytes(options.coding), ..Batch::default() };
        batch.count_gap(self.lease.log(), options.reason);
        self.position = through;
        Read::Batch(batch)
    }

    /// The part of the history in which `from` lies. `None`: it is being fetched.
    fn range(&self, from: u64, until: u64, options: ReadOptions) -> Option<Arc<BackfillRange>> {
        let log = self.lease.log();
        log.history.as_ref()?.read(log, from, until, options.handle)
    }

    fn gap(&self, through: u64, options: ReadOptions) -> frame::Frame {
        let id = self.sequence().event_id(through, None);
        frame::stream_gap(Some(&id), self.lease.filter().as_str(), options.reason)
    }

    /// Up to where what follows `from` is to be read from the history that the broker keeps, if that is before what the log holds.
    pub(super) fn history_until(&self, from: u64, replaying: bool) -> Option<u64> {
        let log = self.lease.log();
        let history = log.history.as_ref()?;
        if history.of_values {
            // Only to begin with. Who falls behind later is told so: values alone do not say which keys were deleted.
            return (replaying && from < self.target).then_some(self.target);
        }
        let begin = log.evicted().0;
        (from < begin).then_some(begin)
    }

    /// Whether it may find something behind its position: asked of a log without its lock.
    pub(super) fn has_news(&self, replaying: bool) -> bool {
        let log = self.lease.log();
        let values = || replaying && log.history.as_ref().is_some_and(|history| history.of_values);
        !log.has_nothing_after(self.position) || values() && self.position < self.target
    }

    /// As [`super::TopicLog::collect`], after `from`, and from the history where the log no longer has it. `None`: it is being
    /// fetched.
    pub(super) fn collect(
        &self,
        mut from: u64,
        head: u64,
        options: ReadOptions,
        replaying: bool,
        count: usize,
        items: &mut VecDeque<Item>,
    ) -> Option<u64> {
        while let Some(until) = self.history_until(from, replaying) {
            let through = self.collect_history(from, until, options, count, items)?;
            if !items.is_empty() {
                return Some(through);
            }
            from = through;
        }
        Some(self.lease.log().collect(from, head, count, items))
    }

    /// Up to `count` of what the broker keeps after `from`; returns how far that is everything. `None`: it is being fetched.
    fn collect_history(
        &self,
        from: u64,
        until: u64,
        options: ReadOptions,
        count: usize,
        items: &mut VecDeque<Item>,
    ) -> Option<u64> {
        let range = self.range(from, until, options)?;
        if range.gone > from {
            items.push_back(Item::Evicted(range.gone));
        }
        let index = range.entries.partition_point(|entry| entry.sequence <= from);
        let mut left = count;
        for entry in range.entries.range(index..) {
            items.push_back(Item::Entry(entry.clone()));
            left -= 1;
            if left == 0 {
                return Some(entry.sequence);
            }
        }
        Some(range.through)
    }
}
