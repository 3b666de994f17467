//! Cursors: where one stream stands in each of its logs, and the merge of what it reads from them.
//!
//! A cursor is a position; what is read is in the logs, or in the history that the broker keeps of them. Logs of one sequence
//! are read up to one head and in its order, so the number of the last event tells the place in all of them. Between
//! sequences there is no order to keep: each is read as far as it goes, and an id tells the place in every one.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::history::Run;
use super::lease::Lease;
use super::look::Lag;
use super::piece::Piece;
use super::{BATCH_BYTES, Item, TopicLog};
use crate::message::Format;
use crate::position::{COMPONENTS, Sequence};
use crate::signal::Signal;
use crate::sse::frame::{self, Coding, GapReason};
use crate::topic::Filter;

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
    fn count(&mut self, log: &TopicLog, entries: usize, time: SystemTime) {
        self.entries += entries;
        self.oldest = Some(self.oldest.map_or(time, |oldest| oldest.min(time)));
        log.rule.events.inc_by(entries as u64);
    }

    /// A gap in `log`.
    fn count_gap(&mut self, log: &TopicLog, reason: GapReason) {
        self.gaps.push(reason);
        log.rule.gaps.inc();
    }
}

/// How it is read.
#[derive(Debug, Clone, Copy)]
struct Way<'a> {
    format: Format,
    coding: Coding,
    signal: &'a Arc<Signal>,
    /// A gap in what the log no longer holds has this reason.
    reason: GapReason,
}

impl Cursors {
    /// Cursors over `leases`, of which those of one sequence come to stand together. `signal` is told of new entries from
    /// here on.
    pub(super) fn new(leases: Vec<Lease>, signal: &Arc<Signal>) -> Self {
        let mut cursors: SmallVec<[Cursor; 1]> = leases
            .into_iter()
            .map(|lease| Cursor { reader: lease.log().join(signal.clone()), lease, position: 0, target: 0 })
            .collect();
        let mixed = !cursors.is_empty() && cursors.iter().any(|cursor| !cursor.is_with(&cursors[0]));
        if mixed {
            // By the filter that comes first in each, so that the same topics have the same order everywhere.
            let first = |cursor: &Cursor, all: &[Cursor]| {
                let with = all.iter().filter(|other| other.is_with(cursor));
                with.map(|other| other.lease.filter().as_str().to_owned()).min()
            };
            let keys: Vec<_> = cursors
                .iter()
                .map(|cursor| (first(cursor, &cursors), cursor.lease.filter().clone()))
                .collect();
            let mut keyed: Vec<_> = keys.into_iter().zip(cursors).collect();
            keyed.sort_by(|(a, _), (b, _)| (&a.0, a.1.as_str()).cmp(&(&b.0, b.1.as_str())));
            cursors = keyed.into_iter().map(|(_, cursor)| cursor).collect();
        }
        Cursors { cursors, mixed, replaying: false, caught_up: false }
    }

    /// What comes next. Where that is to be fetched, `signal` is told when it is there.
    pub fn read(&mut self, format: Format, coding: Coding, signal: &Arc<Signal>) -> Read {
        let reason = if self.caught_up { GapReason::Slow } else { GapReason::Evicted };
        let way = Way { format, coding, signal, reason };
        let replaying = self.replaying;
        let read = match &mut *self.cursors {
            [cursor] => cursor.read(way, replaying),
            _ => self.merge(way),
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

    fn merge(&mut self, way: Way) -> Read {
        let ranges = self.sequences();
        let mut joined = BytesMut::new();
        let mut batch = Batch::default();
        let mut fetching = false;
        for (index, range) in ranges.iter().enumerate() {
            let places = |cursors: &Cursors, ranges: &[std::ops::Range<usize>]| -> Vec<(usize, u64)> {
                let place = |range: &std::ops::Range<usize>| {
                    let positions = cursors.cursors[range.clone()].iter().map(|cursor| cursor.position);
                    (range.start, positions.min().unwrap_or_default())
                };
                ranges.iter().map(place).collect()
            };
            // The parts of an id before and after the place in this sequence, where there are others.
            let around = self.mixed.then(|| {
                let mut before = self.event_id(&places(self, &ranges[..index]));
                let mut after = self.event_id(&places(self, &ranges[index + 1..]));
                if !before.is_empty() {
                    before.push(COMPONENTS);
                }
                if !after.is_empty() {
                    after.insert(0, COMPONENTS);
                }
                (before, after)
            });
            let budget = BATCH_BYTES / ranges.len();
            let replaying = self.replaying;
            let cursors = &mut self.cursors[range.clone()];
            fetching |= merge_one(cursors, way, replaying, budget, around.as_ref(), &mut joined, &mut batch);
        }
        batch.bytes = joined.freeze();
        match batch.bytes.is_empty() {
            false => Read::Batch(batch),
            true if fetching => Read::Fetching,
            true => Read::Nothing,
        }
    }
}

/// Reads the cursors of one sequence, in its order, and appends what it finds. Returns whether something is being fetched.
fn merge_one(
    cursors: &mut [Cursor],
    way: Way,
    replaying: bool,
    budget: usize,
    around: Option<&(String, String)>,
    joined: &mut BytesMut,
    batch: &mut Batch,
) -> bool {
    let Some(sequence) = cursors.first().map(|cursor| cursor.lease.sequence().clone()) else { return false };
    let head = sequence.head();
    let mut items: Vec<(usize, Item)> = Vec::new();
    let mut found = Vec::new();
    let mut limit = u64::MAX;
    let mut fetching = false;
    for (index, cursor) in cursors.iter_mut().enumerate() {
        // A log that had more than fits limits all: beyond its last item here, its entries would come too late.
        let collected = cursor.collect(head, way, replaying, budget, &mut found);
        fetching |= collected.is_none();
        limit = limit.min(collected.unwrap_or(cursor.position));
        items.extend(found.drain(..).map(|item| (index, item)));
    }
    items.retain(|(_, item)| item.place().0 <= limit);
    items.sort_by_key(|(_, item)| item.place());
    let event_id = |place: u64| match around {
        Some((before, after)) => format!("{before}{}{after}", sequence.component(place)),
        None => sequence.event_id(place, None),
    };
    let begin = joined.len();
    let mut items = items.into_iter().peekable();
    while let Some((index, item)) = items.next() {
        let (place, _) = item.place();
        let followed = items.peek().is_some_and(|(_, next)| next.place().0 == place);
        // Two logs can have lost the same number. An id that says "read up to here" is for the last of them.
        let told = if followed { place - 1 } else { place };
        let filter = cursors[index].lease.filter();
        match item {
            Item::Entry(entry) if !followed && around.is_none() => {
                joined.extend_from_slice(entry.frame(way.format).slice(way.coding));
                batch.count(cursors[index].lease.log(), 1, entry.time());
            }
            Item::Entry(entry) => {
                let frame = entry.frame_with_id(way.format, filter, &event_id(told));
                joined.extend_from_slice(frame.slice(way.coding));
                batch.count(cursors[index].lease.log(), 1, entry.time());
            }
            Item::Evicted(_) => {
                let gap = frame::stream_gap(Some(&event_id(told)), filter.as_str(), way.reason);
                joined.extend_from_slice(gap.slice(way.coding));
                batch.count_gap(cursors[index].lease.log(), way.reason);
            }
        }
        if joined.len() - begin >= budget && !followed {
            limit = place;
            break;
        }
    }
    for cursor in cursors {
        cursor.position = cursor.position.max(limit);
    }
    fetching
}

impl Cursor {
    /// Whether both are of one sequence.
    fn is_with(&self, other: &Cursor) -> bool {
        Arc::ptr_eq(self.lease.sequence(), other.lease.sequence())
    }

    pub(super) fn sequence(&self) -> &Arc<Sequence> {
        self.lease.sequence()
    }

    fn read(&mut self, way: Way, replaying: bool) -> Read {
        let head = self.sequence().head();
        while let Some(until) = self.history_until(replaying) {
            let Some(run) = self.run(until, way) else { return Read::Fetching };
            if run.gone > self.position {
                return self.told(run.gone, way);
            }
            match run.piece(self.position, way.format, way.coding) {
                Some(piece) => {
                    let read = self.taken(piece);
                    if run.entries.back().is_some_and(|last| last.sequence == self.position) {
                        self.position = run.through;
                    }
                    return read;
                }
                None => self.position = run.through, // nothing of it is held there
            }
        }
        match self.lease.log().piece(self.position, head, way.format, way.coding) {
            Ok(None) => Read::Nothing,
            Ok(Some(piece)) => self.taken(piece),
            // Evicted since it was looked at above.
            Err(_) if self.history_until(replaying).is_some() => self.read(way, replaying),
            Err(through) => self.told(through, way),
        }
    }

    fn taken(&mut self, piece: Piece) -> Read {
        self.position = piece.last;
        let mut batch = Batch { bytes: piece.bytes, ..Batch::default() };
        batch.count(self.lease.log(), piece.entries, piece.time);
        Read::Batch(batch)
    }

    fn told(&mut self, through: u64, way: Way) -> Read {
        let mut batch = Batch { bytes: self.gap(through, way).bytes(way.coding), ..Batch::default() };
        batch.count_gap(self.lease.log(), way.reason);
        self.position = through;
        Read::Batch(batch)
    }

    /// The part of the history in which it stands. `None`: it is being fetched.
    fn run(&self, until: u64, way: Way) -> Option<Arc<Run>> {
        let log = self.lease.log();
        log.history.as_ref()?.read(log, self.position, until, way.signal)
    }

    fn gap(&self, through: u64, way: Way) -> frame::Frame {
        let id = self.sequence().event_id(through, None);
        frame::stream_gap(Some(&id), self.lease.filter().as_str(), way.reason)
    }

    /// Up to where it is to be read from the history that the broker keeps, if it stands before what the log holds.
    fn history_until(&self, replaying: bool) -> Option<u64> {
        let log = self.lease.log();
        let history = log.history.as_ref()?;
        if history.of_values {
            // Only to begin with. Who falls behind later is told so: values alone do not say which keys were deleted.
            return (replaying && self.position < self.target).then_some(self.target);
        }
        let begin = log.evicted().0;
        (self.position < begin).then_some(begin)
    }

    /// As [`super::TopicLog::collect`], from the history where the log no longer has it. `None`: it is being fetched.
    fn collect(
        &mut self,
        head: u64,
        way: Way,
        replaying: bool,
        budget: usize,
        items: &mut Vec<Item>,
    ) -> Option<u64> {
        while let Some(until) = self.history_until(replaying) {
            let through = self.collect_history(until, way, budget, items)?;
            if !items.is_empty() {
                return Some(through);
            }
            self.position = through;
        }
        Some(self.lease.log().collect(self.position, head, way.format, budget, items))
    }

    /// What the broker keeps after the position, about `budget` bytes of it; returns how far that is everything. `None`: it is
    /// being fetched.
    fn collect_history(&self, until: u64, way: Way, budget: usize, items: &mut Vec<Item>) -> Option<u64> {
        let run = self.run(until, way)?;
        if run.gone > self.position {
            items.push(Item::Evicted(run.gone));
        }
        let index = run.entries.partition_point(|entry| entry.sequence <= self.position);
        let mut bytes = 0;
        for entry in run.entries.range(index..) {
            items.push(Item::Entry(entry.clone()));
            bytes += entry.frame(way.format).weight();
            if bytes >= budget {
                return Some(entry.sequence);
            }
        }
        Some(run.through)
    }
}
