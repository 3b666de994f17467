//! Cursors: the positions of one stream in its logs.
//!
//! Logs of one sequence are read in order up to one head, so the number of the last event is the position in all of them.
//! Between sequences there is no order: each is read as far as it goes, and an event id has a position for each.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::batch::Read;
use super::cursor::{Asked, Cursor, ReadOptions};
use super::inspect::Lag;
use super::merged::SetName;
use super::message::Format;
use super::paced::Paced;
use super::registry::Lease;
use super::rows::Rows;
use super::sharing::Sharing;
use super::variant::Variant;
use super::window::Window;
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::{EventId, Position, join_components};
use crate::protocol::frame::Coding;
use crate::protocol::gzip::Content;
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// The cursors of one stream. Dropping them releases the logs.
#[derive(Debug)]
pub struct Cursors {
    /// Cursors of one sequence are next to each other.
    pub(super) cursors: SmallVec<[Cursor; 1]>,
    pub(super) order: Order,
    /// The current phase, which determines the ends of the cursors.
    pub(super) phase: Phase,
    /// Whether the stream has ever read everything. If messages are evicted before it reads them after that, it was too
    /// slow.
    caught_up: bool,
    /// Whether the stream ends when all its topics have ended.
    pub ends: bool,
    /// Whether they are beyond the last id that was sent, because the last messages were left out.
    beyond_id: bool,
    /// The state of a reader with an interval.
    pub(super) paced: Option<Box<Paced>>,
    sharing: Sharing,
}

/// How the positions of several cursors belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// They are in several sequences, between which there is no order.
    Mixed,
    /// They are in one sequence, each at its own position.
    Apart,
    /// They are in one sequence, and all are where the first is, whatever their own positions say: a stream of a hundred
    /// topics moves one.
    Level,
}

/// The phase of the cursors. It is separate from the phase of the stream, because a stream that closes during a replay
/// still finishes the replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Messages from before the opening, up to the end of each cursor.
    Replay,
    /// New messages, without an end.
    Live,
    /// Messages from before the order to close, up to the end of each cursor.
    Closing {
        /// Whether messages from before the opening may be among them.
        replays: bool,
    },
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
                reads_values: false,
                position: Seq::START,
                end: Seq::START,
                asked: Asked::All,
            })
            .collect();
        let mixed = !cursors.is_empty() && cursors.iter().any(|cursor| !cursor.is_with(&cursors[0]));
        if mixed {
            // Sorted by the first filter of each sequence, so that the same topics have the same order in every
            // replica.
            cursors.sort_unstable_by(|a, b| a.lease.filter().cmp(b.lease.filter()));
            cursors = by_sequence(cursors);
        }
        let is_set = cursors.len() > 1 && !mixed;
        let filters = || cursors.iter().map(|cursor| cursor.lease.filter());
        let set =
            if is_set { SetName::of(filters(), handle.reader.view.as_deref()) } else { SetName::default() };
        let order = if mixed { Order::Mixed } else { Order::Apart };
        let (phase, caught_up, ends, beyond_id, paced) = (Phase::Live, false, true, false, None);
        Cursors { cursors, order, phase, caught_up, ends, beyond_id, paced, sharing: Sharing::by_set(set) }
    }

    /// The window of a gzip body.
    pub(super) fn window(&self) -> Window {
        self.sharing.window()
    }

    pub(super) fn set_window(&mut self, window: Window) {
        self.sharing.set_window(window);
    }

    /// The name of several cursors of one sequence, unless the body is gzip: streams that read the same share batches.
    pub(super) fn set_name(&self) -> Option<SetName> {
        self.sharing.set()
    }

    /// The body for which they are read is gzip. Called before anything is read.
    pub fn set_gzip(&mut self) {
        self.sharing = Sharing::by_window();
    }

    /// The content coding of the body for which they are read.
    pub fn content(&self) -> Content {
        self.sharing.content()
    }

    /// Called when the stream sends other bytes between two batches.
    pub fn interrupt(&mut self) {
        self.set_window(Window::NONE);
    }

    /// Reads the next events. If they must be fetched, `handle` is woken when they are there.
    pub fn read(&mut self, format: Format, coding: Coding, handle: &Arc<ReaderHandle>) -> Read {
        let reason = if self.caught_up { GapReason::Slow } else { GapReason::Evicted };
        let shared = Variant { format, coding, content: self.content(), view: handle.reader.view.as_deref() };
        let options = ReadOptions { variant: shared.own(), shared, handle, reason };
        let was_among_values = self.is_among_values();
        let mut window = self.window();
        let read = match &mut *self.cursors {
            _ if self.paced.is_some() => self.read_newest(options, None),
            [cursor] => {
                let read = cursor.read(options, &mut window);
                self.set_window(window);
                read
            }
            _ => self.read_several(options),
        };
        self.note(&read);
        if let Read::Batch(batch) = &read {
            self.beyond_id = batch.ends_left_out;
        }
        // The id of the last value says less than that all of them were sent.
        self.beyond_id |= was_among_values && !self.is_among_values();
        read
    }

    fn note(&mut self, read: &Read) {
        self.caught_up |= matches!(read, Read::Nothing);
        if matches!(read, Read::Batch(_)) && self.is_replaying() {
            let asking = self.cursors.iter_mut().filter(|cursor| cursor.asked == Asked::WhatIsThere);
            asking.for_each(|cursor| cursor.asked = Asked::Rest);
        }
    }

    /// As [`Cursors::read`], but into `rows`, as far as they take it. The batch has no bytes.
    pub fn read_rows(&mut self, rows: &mut Rows, handle: &Arc<ReaderHandle>) -> Read {
        let reason = if self.caught_up { GapReason::Slow } else { GapReason::Evicted };
        let (format, coding, content) = (rows.format, Coding::Plain, Content::Identity);
        let variant = Variant { format, coding, content, view: handle.reader.view.as_deref() };
        let options = ReadOptions { variant, shared: variant, handle, reason };
        let was_among_values = self.is_among_values();
        let read = match self.paced {
            Some(_) => self.read_newest(options, Some(rows)),
            None => self.merge(options, Some(rows)),
        };
        self.note(&read);
        self.beyond_id |= was_among_values && !self.is_among_values();
        read
    }

    /// From here on, each moves on by itself.
    pub(super) fn part(&mut self) {
        if self.order == Order::Level
            && let [first, others @ ..] = &mut *self.cursors
        {
            others.iter_mut().for_each(|cursor| cursor.position = first.position);
            self.order = Order::Apart;
        }
    }

    /// Where `cursor`, one of these, is.
    pub(super) fn place(&self, cursor: &Cursor) -> Seq {
        if self.order == Order::Level { self.cursors[0].position } else { cursor.position }
    }

    /// Whether there may be more to read now.
    pub fn has_more(&mut self) -> bool {
        self.part();
        self.has_backlog() || self.cursors.iter().any(|cursor| cursor.has_news())
    }

    /// Whether they have several sequences, of which one may continue while another waits.
    pub fn is_mixed(&self) -> bool {
        self.order == Order::Mixed
    }

    /// Begins to read new messages.
    pub(super) fn start_live(&mut self) {
        self.set_phase(Phase::Live, |cursor| cursor.lease.log().newest());
    }

    /// Begins a replay, up to `end` of each cursor.
    pub(super) fn replay(&mut self, end: impl Fn(&Cursor) -> Seq) {
        self.set_phase(Phase::Replay, end);
    }

    /// Begins to close: nothing is read beyond the current heads, or beyond the values.
    pub fn close(&mut self) {
        let replays = self.is_replaying();
        self.part();
        self.cursors.iter_mut().for_each(|cursor| cursor.read_values(cursor.values_until()));
        self.set_phase(Phase::Closing { replays }, |cursor| match cursor.reads_values {
            true => cursor.end,
            false => cursor.sequence().head(),
        });
    }

    pub(super) fn set_phase(&mut self, phase: Phase, end: impl Fn(&Cursor) -> Seq) {
        self.phase = phase;
        self.cursors.iter_mut().for_each(|cursor| cursor.end = end(cursor));
    }

    /// Whether a stream that closes has read everything that it still sends.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. }) && self.are_at_end()
    }

    fn are_at_end(&self) -> bool {
        self.cursors.iter().all(|cursor| self.place(cursor) >= cursor.end) && !self.has_backlog()
    }

    /// Whether messages from before the opening may still be read.
    pub fn is_replaying(&self) -> bool {
        matches!(self.phase, Phase::Replay | Phase::Closing { replays: true })
    }

    /// Ends the replay if each cursor has come to its end. Returns whether it goes on.
    pub fn goes_on_replaying(&mut self) -> bool {
        if self.is_replaying() && self.are_at_end() {
            if self.phase == Phase::Replay && self.cursors.iter().any(|cursor| cursor.reads_values) {
                // Then come the messages since the number as of which the values are.
                self.cursors.iter_mut().for_each(|cursor| cursor.reads_values = false);
                self.replay(|cursor| cursor.lease.log().newest());
            }
            if self.are_at_end() {
                self.end_replay();
            }
        }
        self.is_replaying()
    }

    /// Whether the reader asked for the messages that are there, and has not read all of them yet.
    pub fn wants_what_is_there(&self) -> bool {
        self.cursors.iter().any(|cursor| cursor.asked != Asked::All)
    }

    /// Ends the replay: messages from before the opening were read, or count as read.
    pub fn end_replay(&mut self) {
        if !self.is_replaying() {
            return;
        }
        for cursor in &mut self.cursors {
            // Another gateway may have given values as of a number that this one has not reached. The log brings them.
            (cursor.asked, cursor.reads_values) = (Asked::All, false);
        }
        match self.phase {
            // A topic that ended before the opening has ended for this reader too: it asked for what was there.
            Phase::Replay | Phase::Live => self.set_phase(Phase::Live, |_| Seq::START),
            Phase::Closing { .. } => self.phase = Phase::Closing { replays: false },
        }
    }

    /// The filters.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.cursors.iter().map(|cursor| cursor.lease.filter())
    }

    /// The position up to which it has read. `None` with several sequences: there is no single position.
    pub fn position(&self) -> Option<Seq> {
        let moved = match self.order {
            Order::Mixed => return None,
            Order::Apart => &*self.cursors,
            Order::Level => &self.cursors[..1],
        };
        Some(moved.iter().map(|cursor| cursor.position).min().unwrap_or_default())
    }

    /// The unread entries of all logs.
    pub fn lag(&self) -> Lag {
        let lags = self.cursors.iter().map(|cursor| cursor.lease.log().lag(self.place(cursor)));
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

    /// The event id of the current position, if it is beyond the last id that was sent. It then counts as sent.
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
        let known = self.cursors.iter().find_map(|cursor| cursor.lease.log().event_id(position.number));
        let known = known.filter(|_| !position.is_among_values());
        Some(known.unwrap_or_else(|| self.cursors[cursor].sequence().event_id(position, None)))
    }

    /// The position in each of these sequences.
    pub(super) fn positions(&self, ranges: &[Range<usize>]) -> Vec<SequencePosition> {
        let position = |range: &Range<usize>| {
            let positions = self.cursors[range.clone()].iter().map(|cursor| self.place(cursor));
            let number = positions.min().unwrap_or_default();
            let position = Position::among_values(number, self.values_until(range));
            SequencePosition { cursor: range.start, position }
        };
        ranges.iter().map(position).collect()
    }

    /// The number as of which the cursors of one sequence read the values of a bucket, if any of them does. If they do
    /// so as of several, it is the lowest, because an id must be true of all of them; the start if one reads no values.
    pub(super) fn values_until(&self, range: &Range<usize>) -> Seq {
        self.cursors[range.clone()].iter().map(Cursor::values_until).min().unwrap_or_default()
    }

    fn is_among_values(&self) -> bool {
        self.is_replaying() && self.cursors.iter().any(|cursor| self.place(cursor) < cursor.values_until())
    }
}

/// A position in one of the sequences of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct SequencePosition {
    /// The index of a cursor with that sequence.
    pub(super) cursor: usize,
    pub(super) position: Position,
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
