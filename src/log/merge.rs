//! The merge of several logs for one stream. It takes a few entries of each log, and more only once those are used, so
//! that a batch reads little more than it returns, however many logs there are. Logs without new entries are skipped.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use bytes::BytesMut;
use smallvec::{SmallVec, smallvec};

use super::batch::{Batch, Read};
use super::batch_cache::SharedBatch;
use super::cursor::{Cursor, ReadOptions};
use super::cursors::{Cursors, Order, Phase, SequencePosition};
use super::entry::ItemPosition;
use super::merged::Wanted;
use super::rows::Rows;
use super::topic_log::Place;
use super::variant::Variant;
use super::window::Window;
use super::{BATCH_BYTES, Item};
use crate::protocol::event_id::{EventId, Position, Sequence};
use crate::protocol::frame;
use crate::protocol::seq::Seq;

/// About half the entries of a batch of short messages. Divided by the number of logs with new entries, it is how many
/// entries are taken of each at once, so that few are taken in vain.
const HALF_BATCH: usize = 128;

impl Cursors {
    /// Reads all logs for a socket: what another stream has merged of them, or what this one merges now, for others too.
    pub(super) fn read_several(&mut self, options: ReadOptions) -> Read {
        let Some(wanted) = self.wanted(options) else { return self.merge(options, None) };
        if wanted.head <= wanted.from {
            return Read::Nothing;
        }
        if let Some(merged) = self.cursors[0].lease.log().merged(&wanted) {
            self.cursors[0].position = merged.until;
            let batch = Batch::of_merged(merged);
            return if batch.is_empty() { Read::Nothing } else { Read::Batch(batch) };
        }
        let read = self.merge(options, None);
        if self.order == Order::Level {
            let Cursor { position, lease, .. } = &self.cursors[0];
            let merged = match &read {
                Read::Batch(batch) if batch.gaps.is_empty() => Some(batch.merged(wanted, *position)),
                Read::Nothing => Some(Batch::default().merged(wanted, *position)),
                Read::Batch(_) | Read::Fetching => None, // concerns this reader alone
            };
            merged.into_iter().for_each(|merged| lease.log().keep_merged(merged));
        }
        read
    }

    /// What it would share with others that are where it is.
    fn wanted(&self, options: ReadOptions) -> Option<Wanted> {
        let Variant { format, coding, .. } = options.shared;
        let (first, set) = (self.cursors.first()?, self.set_name()?);
        let is_shared = self.order == Order::Level && self.phase == Phase::Live;
        let (from, head) = (first.position, first.sequence().head());
        is_shared.then_some(Wanted { set, from, head, format, coding })
    }

    /// Reads all logs, each sequence in its order: into `rows`, or as bytes if there are none.
    pub(super) fn merge(&mut self, options: ReadOptions, rows: Option<&mut Rows>) -> Read {
        self.part();
        let mixed = self.is_mixed();
        let ranges = if mixed { self.sequences() } else { smallvec![0..self.cursors.len()] };
        let mut target = rows.map_or_else(|| Target::Bytes(BytesMut::new()), Target::Rows);
        let mut batch = Batch::default();
        let mut fetching = false;
        for (index, range) in ranges.iter().enumerate() {
            if matches!(&target, Target::Rows(rows) if rows.is_full()) {
                break;
            }
            let mut merge = Merge::new(&self.cursors[range.clone()]);
            if !mixed
                && matches!(target, Target::Bytes(_))
                && let Some(shared) = merge.only_piece(&self.cursors, options, self.window())
            {
                merge.limit = shared.last;
                let Ahead { cursor, through, .. } = merge.ahead[0];
                let mut window = self.window();
                window.extend(cursor, through);
                self.set_window(window);
                let log = self.cursors[cursor].lease.log();
                batch.note_merged(log, shared.entries);
                batch.take(log, shared);
            } else if !merge.ahead.is_empty() {
                let around = mixed.then(|| self.around(&self.positions(&ranges), index));
                let values_until = self.values_until(range);
                let (several, target, batch) = (self.cursors.len() > 1, &mut target, &mut batch);
                let output = Output { options, around, values_until, several, target, batch };
                merge.write(&self.cursors[range.clone()], BATCH_BYTES / ranges.len(), output);
            }
            fetching |= merge.fetching;
            let mut is_level = !mixed;
            for cursor in &mut self.cursors[range.clone()] {
                cursor.position = cursor.position.max(merge.limit);
                is_level &= cursor.position == merge.limit;
            }
            if is_level {
                self.order = Order::Level;
            }
        }
        if let Target::Bytes(joined) = target
            && !joined.is_empty()
        {
            self.set_window(Window::NONE);
            batch.bytes = joined.freeze();
        }
        match batch.is_empty() {
            false => Read::Batch(batch),
            true if fetching => Read::Fetching,
            true => Read::Nothing,
        }
    }

    /// The parts of an event id before and after the position in the sequence `index` of these.
    pub(super) fn around(&self, positions: &[SequencePosition], index: usize) -> OtherParts {
        let (before, after) = (&positions[..index], &positions[index + 1..]);
        OtherParts { before: self.components(before), after: self.components(after) }
    }
}

/// The parts of an event id for several sequences, without the part of one of them.
#[derive(Debug)]
pub(super) struct OtherParts {
    before: String,
    after: String,
}

/// What a merge fills.
pub(super) enum Target<'a> {
    /// Events for a socket.
    Bytes(BytesMut),
    /// Messages and gaps of one read.
    Rows(&'a mut Rows),
}

/// What a merge writes to.
pub(super) struct Output<'a, 'b> {
    pub(super) options: ReadOptions<'a>,
    /// The other parts of its ids, if the stream reads several sequences.
    pub(super) around: Option<OtherParts>,
    /// [`Cursors::values_until`] of its sequence.
    pub(super) values_until: Seq,
    /// Whether the stream has several topics or patterns, and so tells of the end of each.
    pub(super) several: bool,
    pub(super) target: &'a mut Target<'b>,
    pub(super) batch: &'a mut Batch,
}

/// The next items of one log.
#[derive(Debug)]
struct Ahead {
    cursor: usize,
    items: VecDeque<Item>,
    /// The items are complete up to this number.
    through: Seq,
}

/// The next items of the logs of one sequence.
#[derive(Debug)]
struct Merge {
    /// The head of the sequence, read before any log.
    head: Seq,
    /// No log is read beyond this number, because one of them waits for the broker there, or has ended, or the batch is
    /// full.
    limit: Seq,
    fetching: bool,
    /// How many entries are taken from a log at once.
    count: usize,
    ahead: SmallVec<[Ahead; 2]>,
    /// The position of the next item of each log that has one.
    next: BinaryHeap<Reverse<(ItemPosition, usize)>>,
}

impl Merge {
    /// Finds the cursors with new entries.
    fn new(cursors: &[Cursor]) -> Self {
        let head = cursors.first().map_or(Seq::START, |cursor| cursor.sequence().head());
        let (ahead, next) = (SmallVec::new(), BinaryHeap::new());
        let mut merge = Merge { head, limit: head, fetching: false, count: 0, ahead, next };
        for (index, cursor) in cursors.iter().enumerate() {
            merge.limit = merge.limit.min(cursor.lease.log().numbering.end(head));
            if cursor.has_news() {
                merge.ahead.push(Ahead { cursor: index, items: VecDeque::new(), through: cursor.position });
            }
        }
        merge
    }

    /// If only one log has new entries, as is usual when a message arrives: the batch that the readers of that log
    /// share.
    fn only_piece(&self, cursors: &[Cursor], options: ReadOptions, window: Window) -> Option<SharedBatch> {
        let [Ahead { cursor, through, .. }] = &*self.ahead else { return None };
        let since = window.since(*cursor, *through);
        let cursor = &cursors[*cursor];
        if cursor.must_tell_end() || cursor.history_until(*through).is_some() {
            return None;
        }
        let place = Place { position: *through, since, until: Some(self.limit) };
        cursor.lease.log().shared(place, options.shared).ok().flatten()
    }

    /// Takes more items of one log.
    fn take(&mut self, index: usize, cursors: &[Cursor], options: ReadOptions) {
        let ahead = &mut self.ahead[index];
        let (from, cursor) = (ahead.through, &cursors[ahead.cursor]);
        match cursor.collect(from, self.head, options, self.count, &mut ahead.items) {
            Some(through) => ahead.through = through,
            // Beyond this position, its entries would come too late.
            None => (self.limit, self.fetching) = (self.limit.min(from), true),
        }
        self.next.extend(ahead.items.front().map(|item| Reverse((item.position(), index))));
    }

    /// Writes the next items, of about `budget` bytes.
    fn write(&mut self, cursors: &[Cursor], budget: usize, mut output: Output<'_, '_>) {
        let options = output.options;
        self.count = (HALF_BATCH / self.ahead.len()).max(1);
        (0..self.ahead.len()).for_each(|index| self.take(index, cursors, options));
        let begin = output.written();
        while let Some(Reverse((ItemPosition { number, .. }, index))) = self.next.pop()
            && number <= self.limit
            && let Some(item) = self.ahead[index].items.pop_front()
        {
            if item.is_gap() && output.ends_before_gap(begin) {
                self.limit = number.previous();
                return;
            }
            match self.ahead[index].items.front() {
                Some(next) => self.next.push(Reverse((next.position(), index))),
                None => self.take(index, cursors, options),
            }
            let next = self.next.peek().map(|Reverse((position, _))| position.number);
            let followed = next == Some(number);
            // Two logs can have a gap with the same number. Only the last of them has an id that says "complete up to
            // here".
            let id_position = if followed { number.previous() } else { number };
            let cursor = &cursors[self.ahead[index].cursor];
            output.write(item, cursor, id_position, followed);
            if output.is_full(begin, budget) && !followed {
                self.limit = number;
                return;
            }
        }
    }
}

impl Output<'_, '_> {
    /// How much was written: bytes, or messages.
    pub(super) fn written(&self) -> usize {
        match &self.target {
            Target::Bytes(joined) => joined.len(),
            Target::Rows(rows) => rows.count(),
        }
    }

    pub(super) fn is_full(&self, begin: usize, budget: usize) -> bool {
        match &self.target {
            Target::Bytes(joined) => joined.len() - begin >= budget,
            Target::Rows(rows) => rows.is_full(),
        }
    }

    /// Ends rows that have messages of this sequence, because a gap follows.
    pub(super) fn ends_before_gap(&mut self, begin: usize) -> bool {
        match &mut self.target {
            Target::Rows(rows) if rows.count() > begin => {
                rows.end();
                true
            }
            Target::Bytes(_) | Target::Rows(_) => false,
        }
    }

    /// Appends one item of `cursor`. Its id is the one of the position `id_position`, which is not its own if `another` item
    /// follows at the same position.
    pub(super) fn write(&mut self, item: Item, cursor: &Cursor, id_position: Seq, another: bool) {
        let (log, sequence): (_, &Sequence) = (cursor.lease.log(), cursor.sequence());
        let ReadOptions { variant, reason, .. } = self.options;
        let position = Position::among_values(id_position, self.values_until);
        let event_id = || match &self.around {
            Some(OtherParts { before, after }) => {
                EventId::of_components([before.as_str(), &sequence.component(position), after.as_str()])
            }
            None => sequence.event_id(position, None),
        };
        // Another cursor may be among older values.
        let keeps_id = !another && self.around.is_none() && cursor.values_until() == self.values_until;
        self.batch.ends_left_out = matches!(&item, Item::Entry(entry) if !variant.admits(entry));
        match (&item, &mut *self.target) {
            (Item::Entry(_), Target::Bytes(_)) if self.batch.ends_left_out => {}
            (Item::Entry(_), Target::Rows(rows)) if self.batch.ends_left_out => rows.skip(event_id()),
            (Item::Entry(entry), Target::Bytes(joined)) if keeps_id => {
                joined.extend_from_slice(variant.frame(entry).slice(variant.coding));
            }
            (Item::Entry(entry), Target::Bytes(joined)) => {
                let frame = variant.frame_with_id(entry, log.filter(), &event_id());
                joined.extend_from_slice(frame.slice(variant.coding));
            }
            (Item::Entry(entry), Target::Rows(rows)) => match (entry.message(), entry.gap()) {
                (Some(message), _) if keeps_id => rows.push(message, message.event_id().clone()),
                (Some(message), _) => rows.push(message, event_id()),
                (None, gap) => rows.push_gap(log.filter(), gap.unwrap_or(reason), event_id()),
            },
            (Item::Evicted(_), Target::Bytes(joined)) => {
                let gap = frame::stream_gap(Some(&event_id()), log.filter().as_str(), reason);
                joined.extend_from_slice(gap.slice(variant.coding));
            }
            (Item::Evicted(_), Target::Rows(rows)) => rows.push_gap(log.filter(), reason, event_id()),
        }
        match item {
            Item::Entry(_) if self.batch.ends_left_out => self.batch.filtered += 1,
            Item::Entry(entry) => {
                // A log of one topic has no such event in its entries, which a stream of this topic alone reads too.
                if let Target::Bytes(joined) = &mut *self.target
                    && self.several
                    && log.end.is_some()
                    && entry.kind.ends()
                {
                    joined.extend_from_slice(frame::stream_end(log.filter().as_str()).slice(variant.coding));
                }
                self.batch.count(log, 1, entry.time());
                self.batch.note_merged(log, 1);
            }
            Item::Evicted(_) => self.batch.count_gap(log, reason),
        }
    }
}
