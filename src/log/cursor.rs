//! Cursors: the positions of one stream in its logs, and the reading from them. `merge` reads several logs in order.
//!
//! A cursor is only a position; the messages are in the logs or in backfill ranges. Logs of one sequence are read in
//! order up to one head, so the number of the last event is the position in all of them. Between sequences there is no
//! order: each is read as far as it goes, and an event id has a position for each.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::backfill::BackfillRange;
use super::batch::{Batch, Read};
use super::batch_cache::SharedBatch;
use super::inspect::Lag;
use super::message::Format;
use super::paced::Paced;
use super::readers::ReaderKey;
use super::registry::Lease;
use super::rows::Rows;
use super::topic_log::Place;
use super::variant::Variant;
use super::{Item, TopicLog};
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::{EventId, Sequence, join_components};
use crate::protocol::frame::{self, Coding};
use crate::protocol::gzip::Content;
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// The cursors of one stream. Dropping them releases the logs.
#[derive(Debug)]
pub struct Cursors {
    /// Cursors of one sequence are next to each other.
    pub(super) cursors: SmallVec<[Cursor; 1]>,
    /// Whether they have several sequences.
    pub(super) mixed: bool,
    /// What is read, and so what the ends of the cursors are.
    pub(super) phase: Phase,
    /// Whether the stream has ever read everything. If messages are evicted before it reads them after that, it was too
    /// slow.
    caught_up: bool,
    /// Whether the stream ends when all its topics have ended.
    pub ends: bool,
    /// Whether they are beyond the last id that was sent, because the last messages were left out.
    beyond_id: bool,
    /// If the reader has an interval.
    pub(super) paced: Option<Box<Paced>>,
    content: Content,
    /// The two fields of [`Run`], apart because they take less so.
    run_cursor: u8,
    run_since: Seq,
}

/// In a gzip body: what the reader has received last, which compressed pieces may refer to. Every entry of one log after
/// a number, and nothing else since then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// The index of that log's cursor, or [`NO_CURSOR`].
    cursor: u8,
    since: Seq,
}

/// No cursor, or one that has no number here. It has no run: a stream of so many topics seldom does.
const NO_CURSOR: u8 = u8::MAX;

impl Run {
    /// The last bytes were of no single log.
    pub(super) const NONE: Run = Run { cursor: NO_CURSOR, since: Seq::START };

    /// The number after which it has received every entry of the cursor's log, which is now at `position`.
    pub(super) fn since(self, cursor: usize, position: Seq) -> Seq {
        if self.is_of(cursor) { self.since } else { position }
    }

    /// It receives entries of that log after `position`.
    pub(super) fn extend(&mut self, cursor: usize, position: Seq) {
        if !self.is_of(cursor) {
            *self = Run { cursor: u8::try_from(cursor).unwrap_or(NO_CURSOR), since: position };
        }
    }

    fn is_of(self, cursor: usize) -> bool {
        self.cursor != NO_CURSOR && usize::from(self.cursor) == cursor
    }
}

/// What cursors read. Apart from the stream's own phase, because a stream that closes in the middle of a replay still
/// finishes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Messages from before the opening, up to the end of each cursor.
    Replay,
    /// New messages, without an end.
    Live,
    /// What was published before the order to close, up to the end of each cursor.
    Closing {
        /// Whether messages from before the opening may be among it.
        replays: bool,
    },
}

#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) lease: Lease,
    /// The key of the stream's handle in the log.
    reader: ReaderKey,
    /// The reader was sent that the topic is stale.
    pub(super) told_stale: bool,
    /// Everything up to this number was read or sent as a gap.
    pub(super) position: Seq,
    /// The end of the current [`Phase`]. For new messages, where they begin.
    pub(super) end: Seq,
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

impl Cursors {
    /// Creates cursors over `leases`, grouped by sequence. From here on, new entries wake `handle`.
    pub(super) fn new(leases: Vec<Lease>, handle: &Arc<ReaderHandle>) -> Self {
        let mut cursors: SmallVec<[Cursor; 1]> = leases
            .into_iter()
            .map(|lease| Cursor {
                reader: lease.log().join(handle),
                lease,
                told_stale: false,
                position: Seq::START,
                end: Seq::START,
            })
            .collect();
        let mixed = !cursors.is_empty() && cursors.iter().any(|cursor| !cursor.is_with(&cursors[0]));
        if mixed {
            // Sorted by the first filter of each sequence, so that the same topics have the same order in every
            // replica.
            cursors.sort_unstable_by(|a, b| a.lease.filter().cmp(b.lease.filter()));
            cursors = by_sequence(cursors);
        }
        let (ends, beyond_id, paced) = (true, false, None);
        let (content, phase, caught_up) = (Content::Identity, Phase::Live, false);
        let Run { cursor: run_cursor, since: run_since } = Run::NONE;
        Cursors { cursors, mixed, phase, caught_up, ends, beyond_id, paced, content, run_cursor, run_since }
    }

    pub(super) fn run(&self) -> Run {
        Run { cursor: self.run_cursor, since: self.run_since }
    }

    pub(super) fn set_run(&mut self, run: Run) {
        (self.run_cursor, self.run_since) = (run.cursor, run.since);
    }

    /// From now on, they are read for a body of this content coding.
    pub fn set_content(&mut self, content: Content) {
        self.content = content;
    }

    /// The content coding of the body for which they are read.
    pub fn content(&self) -> Content {
        self.content
    }

    /// Something else is sent to the reader between two batches.
    pub fn interrupt(&mut self) {
        self.set_run(Run::NONE);
    }

    /// Reads the next events. If they must be fetched, `handle` is woken when they are there.
    pub fn read(&mut self, format: Format, coding: Coding, handle: &Arc<ReaderHandle>) -> Read {
        let reason = if self.caught_up { GapReason::Slow } else { GapReason::Evicted };
        let shared = Variant { format, coding, content: self.content, view: handle.reader.view.as_deref() };
        let options = ReadOptions { variant: shared.own(), shared, handle, reason };
        let replays = self.is_replaying();
        let mut run = self.run();
        let read = match &mut *self.cursors {
            _ if self.paced.is_some() => self.read_newest(options, None),
            [cursor] => {
                let read = cursor.read(options, replays, &mut run);
                self.set_run(run);
                read
            }
            _ => self.merge(options, None),
        };
        self.caught_up |= matches!(read, Read::Nothing);
        if let Read::Batch(batch) = &read {
            self.beyond_id = batch.ends_left_out;
        }
        read
    }

    /// As [`Cursors::read`], but into `rows`, as far as they take it. The batch has no bytes.
    pub fn read_rows(&mut self, rows: &mut Rows, handle: &Arc<ReaderHandle>) -> Read {
        let reason = if self.caught_up { GapReason::Slow } else { GapReason::Evicted };
        let (format, coding, content) = (rows.format, Coding::Plain, Content::Identity);
        let variant = Variant { format, coding, content, view: handle.reader.view.as_deref() };
        let options = ReadOptions { variant, shared: variant, handle, reason };
        let read = match self.paced {
            Some(_) => self.read_newest(options, Some(rows)),
            None => self.merge(options, Some(rows)),
        };
        self.caught_up |= matches!(read, Read::Nothing);
        read
    }

    /// Whether there may be more to read now.
    pub fn has_more(&self) -> bool {
        self.has_backlog() || self.cursors.iter().any(|cursor| cursor.has_news(self.is_replaying()))
    }

    /// Whether they have several sequences, of which one may continue while another waits.
    pub fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// Begins with what comes from now on.
    pub(super) fn start_live(&mut self) {
        self.set_phase(Phase::Live, |cursor| cursor.lease.log().newest());
    }

    /// Begins a replay, up to `end` of each cursor.
    pub(super) fn replay(&mut self, end: impl Fn(&Cursor) -> Seq) {
        self.set_phase(Phase::Replay, end);
    }

    /// Begins to close: nothing is read beyond the current heads.
    pub fn close(&mut self) {
        let replays = self.is_replaying();
        self.set_phase(Phase::Closing { replays }, |cursor| cursor.sequence().head());
    }

    fn set_phase(&mut self, phase: Phase, end: impl Fn(&Cursor) -> Seq) {
        self.phase = phase;
        self.cursors.iter_mut().for_each(|cursor| cursor.end = end(cursor));
    }

    /// Whether a stream that closes has read everything that it still sends.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. }) && self.are_at_end()
    }

    fn are_at_end(&self) -> bool {
        self.cursors.iter().all(|cursor| cursor.position >= cursor.end) && !self.has_backlog()
    }

    /// Whether messages from before the opening may still be read.
    pub fn is_replaying(&self) -> bool {
        matches!(self.phase, Phase::Replay | Phase::Closing { replays: true })
    }

    /// Ends the replay if each cursor has come to its end. Returns whether it goes on.
    pub fn goes_on_replaying(&mut self) -> bool {
        if self.is_replaying() && self.are_at_end() {
            self.end_replay();
        }
        self.is_replaying()
    }

    /// Ends the replay: messages from before the opening were read, or count as read.
    pub fn end_replay(&mut self) {
        match self.phase {
            // A topic that ended before the opening has ended for this reader too: it asked for what was there.
            Phase::Replay => self.set_phase(Phase::Live, |_| Seq::START),
            Phase::Live => {}
            Phase::Closing { .. } => self.phase = Phase::Closing { replays: false },
        }
    }

    /// The filters.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.cursors.iter().map(|cursor| cursor.lease.filter())
    }

    /// The position up to which it has read. `None` with several sequences: there is no single position.
    pub fn position(&self) -> Option<Seq> {
        let positions = self.cursors.iter().map(|cursor| cursor.position);
        if self.mixed { None } else { Some(positions.min().unwrap_or_default()) }
    }

    /// The unread entries of all logs.
    pub fn lag(&self) -> Lag {
        let lags = self.cursors.iter().map(|cursor| cursor.lease.log().lag(cursor.position));
        lags.fold(Lag::default(), Lag::and)
    }

    /// The range of cursors of each sequence.
    pub(super) fn sequences(&self) -> SmallVec<[Range<usize>; 1]> {
        let mut ranges: SmallVec<[Range<usize>; 1]> = SmallVec::new();
        for (index, cursor) in self.cursors.iter().enumerate() {
            match ranges.last_mut() {
                Some(range) if cursor.is_with(&self.cursors[range.start]) => range.end = index + 1,
                _ => ranges.push(index..index + 1),
            }
        }
        ranges
    }

    /// The components of an event id for these positions, joined.
    pub(super) fn components(&self, positions: &[SequencePosition]) -> String {
        let components: Vec<String> = positions
            .iter()
            .map(|SequencePosition { cursor, position }| {
                self.cursors[*cursor].sequence().component(*position)
            })
            .collect();
        join_components(components.iter().map(String::as_str))
    }

    /// The event id of the current position, if it is beyond the last id that was sent. Then that is sent now.
    pub fn take_unsent_id(&mut self) -> Option<EventId> {
        // A backlog is from before the position.
        if self.has_backlog() || !std::mem::take(&mut self.beyond_id) {
            return None;
        }
        let positions = self.positions(&self.sequences());
        let [SequencePosition { cursor, position }] = *positions else {
            return Some(EventId::of_components([&*self.components(&positions)]));
        };
        // With the publisher id of the message that was left out: another replica may find the place by it.
        let known = self.cursors.iter().find_map(|cursor| cursor.lease.log().event_id(position));
        Some(known.unwrap_or_else(|| self.cursors[cursor].sequence().event_id(position, None)))
    }

    /// The position in each of these sequences.
    pub(super) fn positions(&self, ranges: &[Range<usize>]) -> Vec<SequencePosition> {
        let position = |range: &Range<usize>| {
            let positions = self.cursors[range.clone()].iter().map(|cursor| cursor.position);
            SequencePosition { cursor: range.start, position: positions.min().unwrap_or_default() }
        };
        ranges.iter().map(position).collect()
    }
}

/// A position in one of the sequences of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct SequencePosition {
    /// The index of a cursor with that sequence.
    pub(super) cursor: usize,
    pub(super) position: Seq,
}

/// The same cursors, with those of one sequence together, in the order in which the first of each comes.
fn by_sequence(mut left: SmallVec<[Cursor; 1]>) -> SmallVec<[Cursor; 1]> {
    let mut grouped = SmallVec::with_capacity(left.len());
    while let Some(first) = left.first() {
        let sequence = first.sequence().clone();
        let (same, others): (SmallVec<_>, SmallVec<_>) =
            left.into_iter().partition(|cursor: &Cursor| Arc::ptr_eq(cursor.sequence(), &sequence));
        grouped.extend(same);
        left = others;
    }
    grouped
}

impl Cursor {
    /// Whether both have the same sequence.
    fn is_with(&self, other: &Cursor) -> bool {
        Arc::ptr_eq(self.lease.sequence(), other.lease.sequence())
    }

    pub(super) fn sequence(&self) -> &Arc<Sequence> {
        self.lease.sequence()
    }

    /// As [`Cursors::read`], for a stream of this log alone.
    fn read(&mut self, options: ReadOptions, replays: bool, run: &mut Run) -> Read {
        while let Some(until) = self.history_until(self.position, replays) {
            let Some(range) = self.range(self.position, until, options) else { return Read::Fetching };
            *run = Run::NONE;
            if let Some(gone) = range.gone.filter(|gone| *gone > self.position) {
                return self.told(gone, options);
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
        let since = run.since(0, self.position);
        match self.lease.log().shared(Place { position: self.position, since, until: None }, options.shared) {
            Ok(None) => Read::Nothing,
            Ok(Some(shared)) => {
                run.extend(0, self.position);
                self.taken(shared)
            }
            // Evicted since the check above.
            Err(_) if self.history_until(self.position, replays).is_some() => {
                self.read(options, replays, run)
            }
            Err(through) => {
                *run = Run::NONE;
                self.told(through, options)
            }
        }
    }

    fn taken(&mut self, shared: SharedBatch) -> Read {
        self.position = shared.last;
        let mut batch = Batch::default();
        batch.take(self.lease.log(), shared);
        Read::Batch(batch)
    }

    fn told(&mut self, through: Seq, options: ReadOptions) -> Read {
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

    fn gap(&self, through: Seq, options: ReadOptions) -> frame::Frame {
        let id = self.sequence().event_id(through, None);
        frame::stream_gap(Some(&id), self.lease.filter().as_str(), options.reason)
    }

    /// If the entries after `from` must be backfilled because the log begins later: up to which number.
    pub(super) fn history_until(&self, from: Seq, replays: bool) -> Option<Seq> {
        self.history_before(|log| log.evicted().number, from, replays)
    }

    /// The same, if the log has everything that the reader wants after `begin`.
    pub(super) fn history_before(
        &self,
        begin: impl FnOnce(&TopicLog) -> Seq,
        from: Seq,
        replays: bool,
    ) -> Option<Seq> {
        let log = self.lease.log();
        let history = log.history.as_ref()?;
        if history.of_values {
            // Key-value sources are backfilled only at the start. A reader that falls behind later receives a gap,
            // because values alone do not show which keys were deleted.
            return (replays && from < self.end).then_some(self.end);
        }
        let begin = begin(log);
        (from < begin).then_some(begin)
    }

    /// Whether there may be entries after its position; checks the log without its lock.
    pub(super) fn has_news(&self, replays: bool) -> bool {
        let log = self.lease.log();
        let values = || replays && log.history.as_ref().is_some_and(|history| history.of_values);
        !log.has_nothing_after(self.position) || values() && self.position < self.end
    }

    /// As [`super::TopicLog::collect`], after `from`, but from backfill ranges where the log has no entries any more.
    /// `None`: a range is being fetched.
    pub(super) fn collect(
        &self,
        mut from: Seq,
        head: Seq,
        options: ReadOptions,
        replays: bool,
        count: usize,
        items: &mut VecDeque<Item>,
    ) -> Option<Seq> {
        while let Some(until) = self.history_until(from, replays) {
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
        items.extend(range.gone.filter(|gone| *gone > from).map(Item::Evicted));
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
