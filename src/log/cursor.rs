//! A cursor: the position of one stream in one log, and the reading from it. `cursors` has all of a stream, and `merge`
//! reads several logs in order.
//!
//! A cursor is only a position; the messages are in the log or in backfill ranges.

use std::collections::VecDeque;
use std::sync::Arc;

use super::backfill::BackfillRange;
use super::batch::{Batch, Read};
use super::batch_cache::SharedBatch;
use super::readers::ReaderKey;
use super::registry::Lease;
use super::topic_log::Place;
use super::variant::Variant;
use super::window::Window;
use super::{Item, TopicLog};
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::Sequence;
use crate::protocol::frame;
use crate::protocol::seq::Seq;
use crate::reader::handle::ReaderHandle;

#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) lease: Lease,
    /// The key of the stream's handle in the log.
    pub(super) reader: ReaderKey,
    /// Whether the reader has received that the topic is stale.
    pub(super) told_stale: bool,
    /// Whether it reads the values of a bucket first, as they were at the number `end`, and from there on the log.
    pub(super) reads_values: bool,
    /// Everything up to this number was read or sent as a gap.
    pub(super) position: Seq,
    /// The end of the current [`super::cursors::Phase`], or the number as of which it reads values. For new messages, where
    /// they begin.
    pub(super) end: Seq,
    /// The messages that it asked for, up to the end of the replay.
    pub(super) asked: Asked,
}

/// The messages that a reader asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of them.
    All,
    /// Those that are there (`since=all`, `last=`). What was removed before is no gap. Nothing was sent yet.
    WhatIsThere,
    /// The same, after some were sent.
    Rest,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.lease.log().leave(self.reader);
    }
}

/// How cursors are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadOptions<'a> {
    /// The variant of events that are for this reader alone.
    pub(super) variant: Variant<'a>,
    /// The variant of shared batches.
    pub(super) shared: Variant<'a>,
    pub(super) handle: &'a Arc<ReaderHandle>,
    /// The reason of a gap if entries were evicted.
    pub(super) reason: GapReason,
}

impl Cursor {
    /// Whether both have the same sequence.
    pub(super) fn is_with(&self, other: &Cursor) -> bool {
        Arc::ptr_eq(self.lease.sequence(), other.lease.sequence())
    }

    pub(super) fn sequence(&self) -> &Arc<Sequence> {
        self.lease.sequence()
    }

    /// The number as of which it reads the values of a bucket; the start if it reads the log alone.
    pub(super) fn values_until(&self) -> Seq {
        if self.reads_values { self.end } else { Seq::START }
    }

    /// From its position on, it reads values as they were at the number `as_of`, if any are left.
    pub(super) fn read_values(&mut self, as_of: Seq) {
        (self.reads_values, self.end) = (self.position < as_of, as_of);
    }

    /// As [`super::cursors::Cursors::read`], for a stream of this log alone.
    pub(super) fn read(&mut self, options: ReadOptions, window: &mut Window) -> Read {
        while let Some(until) = self.history_until(self.position) {
            let Some(range) = self.range(self.position, until, options) else { return Read::Fetching };
            *window = Window::NONE;
            if let Some(gone) = self.missing(&range, self.position) {
                return self.read_gap(gone, options);
            }
            match range.shared(self.position, options.shared) {
                Some(shared) => {
                    let read = self.taken(shared);
                    if range.entries.back().is_some_and(|last| last.sequence == self.position) {
                        self.position = range.through;
                    }
                    return read;
                }
                None => self.position = range.through, // the range has no entries there
            }
        }
        let since = window.since(0, self.position);
        match self.lease.log().shared(Place { position: self.position, since, until: None }, options.shared) {
            Ok(None) => Read::Nothing,
            Ok(Some(shared)) => {
                window.extend(0, self.position);
                self.taken(shared)
            }
            // Evicted since the check above.
            Err(_) if self.history_until(self.position).is_some() => self.read(options, window),
            Err(through) => {
                *window = Window::NONE;
                self.read_gap(through, options)
            }
        }
    }

    fn taken(&mut self, shared: SharedBatch) -> Read {
        self.position = shared.last;
        let mut batch = Batch::default();
        batch.take(self.lease.log(), shared);
        Read::Batch(batch)
    }

    fn read_gap(&mut self, through: Seq, options: ReadOptions) -> Read {
        let mut batch =
            Batch { bytes: self.gap(through, options).bytes(options.variant.coding), ..Batch::default() };
        batch.count_gap(self.lease.log(), options.reason);
        self.position = through;
        Read::Batch(batch)
    }

    /// The backfill range that contains `from`. `None`: it is being fetched.
    pub(super) fn range(&self, from: Seq, until: Seq, options: ReadOptions) -> Option<Arc<BackfillRange>> {
        let log = self.lease.log();
        log.history.as_ref()?.read(from, until, options.handle)
    }

    /// Up to where messages after `from` are missing, according to that range. Of the messages that are there, none is missing
    /// before the first, nor one that was removed out of the middle. But if the stream drops its oldest faster than this
    /// reader reads them, those were there when it asked.
    pub(super) fn missing(&self, range: &BackfillRange, from: Seq) -> Option<Seq> {
        let gone = range.gone.filter(|gone| *gone > from)?;
        let is_expected = match self.asked {
            Asked::All => false,
            Asked::WhatIsThere => range.is_hole || from == self.position,
            Asked::Rest => range.is_hole,
        };
        (!is_expected || gone > self.end).then_some(gone)
    }

    fn gap(&self, through: Seq, options: ReadOptions) -> frame::Frame {
        let id = self.sequence().event_id(through, None);
        frame::stream_gap(Some(&id), self.lease.filter().as_str(), options.reason)
    }

    /// If the entries after `from` must be backfilled because the log begins later: up to which number.
    pub(super) fn history_until(&self, from: Seq) -> Option<Seq> {
        self.history_before(|log| log.evicted().number, from)
    }

    /// The same, if the log has everything that the reader wants after `begin`.
    pub(super) fn history_before(&self, begin: impl FnOnce(&TopicLog) -> Seq, from: Seq) -> Option<Seq> {
        let log = self.lease.log();
        let history = log.history.as_ref()?;
        if history.of_values {
            // Values alone do not show which keys were deleted. So a reader that has the values reads the log, and
            // receives a gap if it falls behind later.
            return Some(self.values_until()).filter(|until| from < *until);
        }
        let begin = begin(log);
        (from < begin).then_some(begin)
    }

    /// Whether there may be entries after its position; checks the log without its lock.
    pub(super) fn has_news(&self) -> bool {
        !self.lease.log().has_nothing_after(self.position) || self.position < self.values_until()
    }

    /// As [`super::TopicLog::collect`], after `from`, but from backfill ranges where the log has no entries any more.
    /// `None`: a range is being fetched.
    pub(super) fn collect(
        &self,
        mut from: Seq,
        head: Seq,
        options: ReadOptions,
        count: usize,
        items: &mut VecDeque<Item>,
    ) -> Option<Seq> {
        while let Some(until) = self.history_until(from) {
            let through = self.collect_history(from, until, options, count, items)?;
            if !items.is_empty() {
                return Some(through);
            }
            from = through;
        }
        Some(self.lease.log().collect(from, head, count, items))
    }

    /// Collects up to `count` stored messages after `from`; returns the number up to which they are complete. `None`:
    /// the range is being fetched.
    fn collect_history(
        &self,
        from: Seq,
        until: Seq,
        options: ReadOptions,
        count: usize,
        items: &mut VecDeque<Item>,
    ) -> Option<Seq> {
        let range = self.range(from, until, options)?;
        items.extend(self.missing(&range, from).map(Item::Evicted));
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
