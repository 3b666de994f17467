//! Readers with an interval (`every=`): once per tick, they receive the newest message of each topic and type.
//!
//! Such a reader reads in rounds. A round reads everything up to the head at its beginning, in several parts if necessary.
//! Then the reader waits for its next tick, and entries do not wake it. If nothing is new at a tick, it waits for the next
//! entry and reads that at once. Stored messages from before the logs are gathered in a backlog first, so that only the
//! newest of them are sent. Their ids are in order like all others, so a reader that was cut off resumes as usual.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use smallvec::smallvec;

use super::batch::{Batch, Read};
use super::cursor::{Cursor, ReadOptions};
use super::cursors::{Cursors, SequencePosition};
use super::merge::{Output, Target};
use super::newest_batch::Round;
use super::paced::{Paced, PacedCursor};
use super::rows::Rows;
use super::{BATCH_BYTES, Entry, Item, TopicLog};
use crate::protocol::event_id::Position;
use crate::protocol::seq::Seq;
use crate::protocol::view::{Interval, View};
use crate::reader::clock::{Clock, Millis};
use crate::reader::ticks;

/// The most bytes of a backlog before it is sent, whether or not newer messages follow.
const BACKLOG_BYTES: usize = 256 * 1024;

/// The obstacle before a round.
enum Stored {
    /// Nothing: the logs can be read.
    Read,
    /// The backlog is full, and its messages up to this number must be sent.
    Full(Seq),
    /// More is being fetched from the broker.
    Fetching,
}

impl Cursors {
    /// From now on, the newest message of each topic and type is read once per interval.
    pub fn pace(&mut self, interval: Interval, clock: Clock) {
        let cursors = self.cursors.iter().map(|_| PacedCursor::default()).collect();
        self.paced = Some(Box::new(Paced { interval, clock, due: None, cursors }));
    }

    /// When the reader reads again, if it has an interval and has read in this one.
    pub fn due(&self) -> Option<Millis> {
        self.paced.as_ref()?.due
    }

    /// Whether it must not read yet.
    pub fn is_paused(&self) -> bool {
        let paused = |paced: &Paced| paced.due.is_some_and(|due| paced.clock.now() < due);
        self.paced.as_deref().is_some_and(paused)
    }

    /// Whether stored messages were read that are not sent yet.
    pub(super) fn has_backlog(&self) -> bool {
        self.paced.as_ref().is_some_and(|paced| paced.cursors.iter().any(PacedCursor::has_backlog))
    }

    /// Reads the next batch of a reader with an interval.
    pub(super) fn read_newest(&mut self, options: ReadOptions, mut rows: Option<&mut Rows>) -> Read {
        let paced = self.paced.take().zip(options.variant.view);
        let Some((mut paced, view)) = paced else { return Read::Nothing };
        paced.due = None;
        let mut read = paced.read(self, options, view, rows.as_deref_mut());
        if !matches!(read, Read::Batch(_)) {
            // Only now must entries wake it. One that came before this is read.
            self.cursors.iter().for_each(|cursor| cursor.lease.log().readers.await_paced());
            read = paced.read(self, options, view, rows);
        }
        // Messages that its types leave out begin no interval: the first one for it after them comes at once.
        if matches!(&read, Read::Batch(batch) if batch.has_events()) {
            options.handle.ignore_entries();
            let between_rounds =
                paced.cursors.iter().all(|cursor| cursor.until.is_none() && !cursor.has_backlog());
            paced.due = between_rounds.then(|| ticks::next_tick(paced.interval, paced.clock.now()));
        }
        self.paced = Some(paced);
        read
    }
}

impl Paced {
    fn read(
        &mut self,
        cursors: &mut Cursors,
        options: ReadOptions,
        view: &View,
        rows: Option<&mut Rows>,
    ) -> Read {
        let mixed = cursors.is_mixed();
        let ranges = if mixed { cursors.sequences() } else { smallvec![0..cursors.cursors.len()] };
        let mut target = rows.map_or_else(|| Target::Bytes(BytesMut::new()), Target::Rows);
        let (mut batch, mut fetching) = (Batch::default(), false);
        for (index, range) in ranges.iter().enumerate() {
            if matches!(&target, Target::Rows(rows) if rows.is_full()) {
                break;
            }
            let end = match self.take_stored(&mut cursors.cursors, range.clone(), options, view) {
                Stored::Read => None,
                Stored::Full(end) => Some(end),
                Stored::Fetching => {
                    fetching = true;
                    continue;
                }
            };
            let is_shared = !mixed && end.is_none() && matches!(target, Target::Bytes(_));
            if is_shared && self.read_shared(cursors, options, view, &mut batch) {
                continue;
            }
            let around = mixed.then(|| cursors.around(&self.sent(cursors, &ranges), index));
            let values_until = cursors.values_until(range);
            let (several, target, batch) = (cursors.cursors.len() > 1, &mut target, &mut batch);
            let output = Output { options, around, values_until, several, target, batch };
            self.write(&mut cursors.cursors, range.clone(), end, BATCH_BYTES / ranges.len(), output, view);
        }
        if let Target::Bytes(joined) = target
            && !joined.is_empty()
        {
            batch.bytes = joined.freeze();
        }
        batch.oldest = None; // it waited for the tick, which is no delay of the delivery
        match batch.is_empty() {
            false => Read::Batch(batch),
            true if fetching => Read::Fetching,
            true => Read::Nothing,
        }
    }

    /// The position in each sequence up to which everything was sent, which is before the backlog.
    fn sent(&self, cursors: &Cursors, ranges: &[Range<usize>]) -> Vec<SequencePosition> {
        let mut positions = cursors.positions(ranges);
        for (position, range) in positions.iter_mut().zip(ranges) {
            let first = self.cursors[range.clone()].iter().filter_map(PacedCursor::first).min();
            let number = position.position.number;
            let number = first.map_or(number, |first| number.min(first.previous()));
            position.position = Position::among_values(number, cursors.values_until(range));
        }
        positions
    }

    /// Takes the stored messages between the cursors of one sequence and the beginning of their logs into the backlog.
    fn take_stored(
        &mut self,
        cursors: &mut [Cursor],
        range: Range<usize>,
        options: ReadOptions,
        view: &View,
    ) -> Stored {
        loop {
            // The lowest first: ids can be sent only up to there.
            let needy = range.clone().filter_map(|index| {
                let cursor = &cursors[index];
                let until = cursor.history_before(TopicLog::whole_from, cursor.position)?;
                Some((cursor.position, index, until))
            });
            let Some((position, index, until)) = needy.min() else { return Stored::Read };
            let bytes: usize = self.cursors[range.clone()].iter().map(|paced| paced.backlog.bytes()).sum();
            let first = self.cursors[range.clone()].iter().filter_map(PacedCursor::first).min();
            if bytes > BACKLOG_BYTES && first.is_some_and(|first| first <= position) {
                return Stored::Full(position);
            }
            let (cursor, paced) = (&mut cursors[index], &mut self.cursors[index]);
            let Some(part) = cursor.range(position, until, options) else { return Stored::Fetching };
            let gone = cursor.missing(&part, position);
            paced.gone = paced.gone.max(gone);
            let from = part.entries.partition_point(|entry| entry.sequence <= position);
            for entry in part.entries.range(from..) {
                // A message that is left out must not replace an end of its type, which is sent.
                paced.conflated += usize::from(paced.backlog.insert(entry, !entry.is_in(view)));
            }
            cursor.position = part.through.max(position.next());
        }
    }

    /// Reads the batch that is shared with others, if only one log has new entries. Returns whether that is so.
    fn read_shared(
        &mut self,
        cursors: &mut Cursors,
        options: ReadOptions,
        view: &View,
        batch: &mut Batch,
    ) -> bool {
        if self.cursors.iter().any(PacedCursor::has_backlog) {
            return false;
        }
        let Some(first) = cursors.cursors.first() else { return true };
        // Read before the logs are checked for new entries.
        let head =
            cursors.cursors.iter().map(|cursor| cursor.lease.log().numbering.end(first.sequence().head()));
        let head = head.min().unwrap_or_default();
        let until = self.cursors.iter().find_map(|cursor| cursor.until);
        let mut news = cursors.cursors.iter().enumerate().filter(|(_, cursor)| cursor.has_news());
        let (index, cursor) = match (news.next(), news.next()) {
            (None, _) => {
                self.cursors.iter_mut().for_each(|cursor| cursor.until = None);
                return true;
            }
            (Some(found), None) => found,
            _ => return false,
        };
        if cursors.cursors.len() > 1 && cursor.must_tell_end() {
            return false; // a batch of this log alone does not say so
        }
        let now = self.clock.now();
        let oldest = Millis::at(now.as_u64().saturating_sub(ticks::grace(self.interval)));
        let (from, log) = (cursor.position, cursor.lease.log());
        let round = Round { from, until, head, now, oldest };
        let end = match log.newest_batch(round, options.variant, view) {
            Ok(Some(newest)) => {
                batch.count(log, newest.entries, newest.time);
                batch.filtered += newest.filtered;
                batch.conflated += newest.conflated;
                batch.bytes = newest.bytes;
                self.cursors[index].until = Some(newest.until).filter(|until| newest.last < *until);
                batch.ends_left_out = newest.filtered > 0;
                newest.last
            }
            Ok(None) => {
                self.cursors[index].until = None;
                until.unwrap_or(from)
            }
            Err(_) => return false,
        };
        cursors.cursors.iter_mut().for_each(|cursor| cursor.position = cursor.position.max(end));
        true
    }

    /// Writes the next items of the logs of one sequence and of their backlogs, of about `budget` bytes and up to `end` if
    /// that is given.
    fn write(
        &mut self,
        cursors: &mut [Cursor],
        range: Range<usize>,
        end: Option<Seq>,
        budget: usize,
        mut output: Output<'_, '_>,
        view: &View,
    ) {
        let head = range.clone().map(|index| {
            let cursor = &cursors[index];
            cursor.lease.log().numbering.end(cursor.sequence().head())
        });
        let head = head.min().unwrap_or_default();
        let begun = self.cursors[range.clone()].iter().find_map(|paced| paced.until);
        let until = end.or(begun).unwrap_or(head);
        let (mut items, mut filtered, mut conflated) = (Vec::new(), 0, 0);
        for index in range.clone() {
            let (missing, chosen) =
                cursors[index].lease.log().newest_after(cursors[index].position, until, view);
            filtered += chosen.filtered;
            conflated += chosen.conflated;
            let paced = &self.cursors[index];
            let newer: HashSet<_> = chosen
                .entries
                .iter()
                .filter_map(|entry| entry.message())
                .map(|it| (it.topic(), it.kind()))
                .collect();
            let backlog = paced.backlog.after(Seq::START).take_while(|entry| entry.sequence <= until);
            let is_newest = |entry: &&Arc<Entry>| {
                entry.message().is_none_or(|message| !newer.contains(&(message.topic(), message.kind())))
            };
            let (backlog, superseded): (Vec<_>, Vec<_>) = backlog.partition(is_newest);
            conflated += paced.conflated + superseded.len();
            let gone = paced.gone.filter(|gone| *gone <= until).into_iter().chain(missing).map(Item::Evicted);
            let all = backlog.into_iter().chain(&chosen.entries).cloned().map(Item::Entry).chain(gone);
            items.extend(all.map(|item| (item.position(), index, item)));
        }
        if begun.is_none() {
            // What was left out of a round is counted with its first part.
            output.batch.filtered += filtered;
            output.batch.conflated += conflated;
        }
        items.sort_by_key(|(position, index, _)| (*position, *index));
        let begin = output.written();
        let mut limit = until;
        let mut items = items.into_iter().peekable();
        while let Some((position, index, item)) = items.next() {
            let place = position.number;
            if item.is_gap() && output.ends_before_gap(begin) {
                limit = place.previous();
                break;
            }
            let followed = items.peek().is_some_and(|(next, ..)| next.number == place);
            // As in a merge: only the last item of a place has an id that says "complete up to here".
            output.write(item, &cursors[index], if followed { place.previous() } else { place }, followed);
            if output.is_full(begin, budget) && !followed && items.peek().is_some() {
                limit = place;
                break;
            }
        }
        output.batch.ends_left_out |= filtered > 0 && limit == until;
        for index in range {
            let (cursor, paced) = (&mut cursors[index], &mut self.cursors[index]);
            cursor.position = cursor.position.max(limit);
            paced.backlog.remove_through(limit);
            paced.conflated = 0;
            paced.gone = paced.gone.filter(|gone| *gone > limit);
            paced.until = Some(until).filter(|until| end.is_none() && limit < *until);
        }
    }
}
