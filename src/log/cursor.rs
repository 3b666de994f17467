//! Cursors: where one stream stands in each of its logs, and the merge of what it reads from them.
//!
//! A cursor is a position; what is read is in the logs. Reading several logs goes up to one head and in the order of the
//! process-wide sequence, so the id of the last event tells the place in all of them.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::lease::Lease;
use super::look::Lag;
use super::{BATCH_BYTES, Item};
use crate::message::Format;
use crate::position::{EventId, Sequence, Start};
use crate::signal::Signal;
use crate::sse::frame::{self, Coding, GapReason};
use crate::topic::Filter;

/// The cursors of one stream. Dropping them gives up the logs.
#[derive(Debug)]
pub struct Cursors {
    cursors: SmallVec<[Cursor; 1]>,
    /// The stream has once read all there was. What is evicted before its eyes from then on, it was too slow for.
    caught_up: bool,
}

#[derive(Debug)]
struct Cursor {
    lease: Lease,
    /// Under which the log knows the stream's signal.
    reader: usize,
    /// Everything up to here was read, or told as a gap.
    position: u64,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.lease.log().leave(self.reader);
    }
}

/// Cursors at their start.
#[derive(Debug)]
pub struct Opened {
    /// To read from.
    pub cursors: Cursors,
    /// The position from which the stream is complete, once `gaps` have been told.
    pub position: u64,
    /// What the publisher called the message there, if the client came with that. To be handed back with the position:
    /// an id without it would take from the client what another process can find the place by.
    pub publisher_id: Option<String>,
    /// Whether the stream goes on exactly where the client asked, with nothing missing.
    pub resumed: bool,
    /// Topics of which messages are missing before the first that will be read.
    pub gaps: Vec<(Filter, GapReason)>,
}

/// Some whole events, in order.
#[derive(Debug)]
pub struct Batch {
    /// As they go to the socket.
    pub bytes: Bytes,
    /// Entries among them.
    pub entries: usize,
    /// Gaps among them that this reader alone has.
    pub gaps: SmallVec<[GapReason; 1]>,
}

impl Cursors {
    /// Places cursors where the client asked to start. From here on `signal` is told of new entries.
    pub fn open(leases: Vec<Lease>, signal: &Arc<Signal>, start: &Start, sequence: &Sequence) -> Opened {
        let cursors: SmallVec<[Cursor; 1]> = leases
            .into_iter()
            .map(|lease| Cursor { reader: lease.log().join(signal.clone()), lease, position: 0 })
            .collect();
        let mut opened = Opened {
            cursors: Cursors { cursors, caught_up: false },
            position: 0,
            publisher_id: None,
            resumed: false,
            gaps: Vec::new(),
        };
        match start {
            Start::Now => opened.start_at(sequence.head()),
            Start::After(None) => opened.start_at_oldest(Some(GapReason::UnknownId)),
            Start::After(Some(id)) => match sequence.read_event_id(id) {
                EventId::Own { sequence, publisher_id } => {
                    opened.resumed =
                        opened.cursors.logs().all(|cursor| cursor.lease.log().evicted().0 <= sequence);
                    opened.start_at(sequence);
                    // As it stands in these logs, not as the client says.
                    let known = |id: &&str| {
                        opened.cursors.logs().any(|cursor| cursor.lease.log().has_publisher_id(sequence, id))
                    };
                    opened.publisher_id = publisher_id.filter(known).map(str::to_owned);
                }
                EventId::Unknown => opened.start_at_oldest(Some(GapReason::UnknownId)),
                EventId::Foreign { publisher_id: None } => opened.start_at_oldest(Some(GapReason::Restarted)),
                EventId::Foreign { publisher_id: Some(id) } => {
                    opened.start_after_publisher_id(id, GapReason::Restarted)
                }
                EventId::Publisher(id) => opened.start_after_publisher_id(id, GapReason::UnknownId),
            },
            Start::Since(time) => {
                let mut before = 0;
                for cursor in &mut opened.cursors.cursors {
                    let log = cursor.lease.log();
                    cursor.position = log.position_before(*time);
                    if log.evicted().1 >= *time {
                        opened.gaps.push((log.filter().clone(), GapReason::Evicted));
                    } else {
                        before = before.max(cursor.position);
                    }
                }
                // What came at that time or later has a higher number than all that came before, in whichever log. So
                // the one id that stands for all cursors brings nothing older to a client that comes back with it.
                for cursor in &mut opened.cursors.cursors {
                    cursor.position = cursor.position.max(before);
                }
                opened.resumed = opened.gaps.is_empty();
                opened.position = opened.cursors.position();
            }
            Start::All => opened.start_at_oldest(None),
            Start::Last(count) => {
                let head = sequence.head();
                let mut last: Vec<u64> = opened
                    .cursors
                    .logs()
                    .flat_map(|cursor| cursor.lease.log().last_messages(*count, head))
                    .collect();
                last.sort_unstable_by(|a, b| b.cmp(a));
                last.truncate(*count);
                opened.start_at(last.last().map_or(sequence.head(), |oldest| oldest - 1));
                for cursor in &mut opened.cursors.cursors {
                    // No promise was made of older ones, so what is gone before the last so many is no gap.
                    cursor.position = cursor.position.max(cursor.lease.log().evicted().0);
                }
            }
        }
        opened.stop_at_the_end();
        opened
    }

    /// What comes next, or `None` if the stream has read all there is.
    pub fn read(&mut self, sequence: &Sequence, format: Format, coding: Coding) -> Option<Batch> {
        let head = sequence.head();
        let batch = match &mut *self.cursors {
            [cursor] => cursor.read(head, sequence, format, coding, self.caught_up),
            _ => self.merge(head, sequence, format, coding),
        };
        self.caught_up |= batch.is_none();
        batch
    }

    /// The last that any of the logs knows of. Who has read up to here has read all that there is now.
    pub fn newest(&self) -> u64 {
        self.logs().map(|cursor| cursor.lease.log().newest()).max().unwrap_or_default()
    }

    /// Everything up to here was read or told, in every log.
    pub fn position(&self) -> u64 {
        self.logs().map(|cursor| cursor.position).min().unwrap_or_default()
    }

    /// The filters, in the order they were asked for.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.logs().map(|cursor| cursor.lease.log().filter())
    }

    fn logs(&self) -> impl Iterator<Item = &Cursor> {
        self.cursors.iter()
    }

    /// What was not read yet, in all logs.
    pub fn lag(&self) -> Lag {
        let lags = self.logs().map(|cursor| cursor.lease.log().lag(cursor.position));
        lags.fold(Lag::default(), Lag::and)
    }

    fn gap_reason(caught_up: bool) -> GapReason {
        if caught_up { GapReason::Slow } else { GapReason::Evicted }
    }

    fn merge(&mut self, head: u64, sequence: &Sequence, format: Format, coding: Coding) -> Option<Batch> {
        let mut items: Vec<(usize, Item)> = Vec::new();
        let mut found = Vec::new();
        let mut limit = head;
        for (index, cursor) in self.cursors.iter().enumerate() {
            // A log that had more than fits limits all: beyond its last item here, its entries would come too late.
            limit = limit.min(cursor.lease.log().collect(cursor.position, head, format, &mut found));
            items.extend(found.drain(..).map(|item| (index, item)));
        }
        items.retain(|(_, item)| item.place().0 <= limit);
        items.sort_by_key(|(_, item)| item.place());
        let mut joined = BytesMut::new();
        let mut batch = Batch { bytes: Bytes::new(), entries: 0, gaps: SmallVec::new() };
        let mut items = items.into_iter().peekable();
        while let Some((index, item)) = items.next() {
            let (place, _) = item.place();
            let followed = items.peek().is_some_and(|(_, next)| next.place().0 == place);
            match item {
                Item::Entry(entry) => {
                    joined.extend_from_slice(entry.frame(format).slice(coding));
                    batch.entries += 1;
                }
                Item::Evicted(through) => {
                    let reason = Self::gap_reason(self.caught_up);
                    let filter = self.cursors[index].lease.log().filter();
                    // Two logs can have lost the same number. An id that says "read up to here" is for the last of them.
                    let id = sequence.event_id(if followed { through - 1 } else { through }, None);
                    joined.extend_from_slice(
                        &frame::stream_gap(Some(&id), filter.as_str(), reason).bytes(coding),
                    );
                    batch.gaps.push(reason);
                }
            }
            if joined.len() >= BATCH_BYTES && !followed {
                limit = place;
                break;
            }
        }
        for cursor in &mut self.cursors {
            cursor.position = cursor.position.max(limit);
        }
        batch.bytes = joined.freeze();
        (!batch.bytes.is_empty()).then_some(batch)
    }
}

impl Cursor {
    fn read(
        &mut self,
        head: u64,
        sequence: &Sequence,
        format: Format,
        coding: Coding,
        caught_up: bool,
    ) -> Option<Batch> {
        let log = self.lease.log();
        match log.piece(self.position, head, format, coding) {
            Ok(piece) => {
                let piece = piece?;
                self.position = piece.last;
                Some(Batch { bytes: piece.bytes, entries: piece.entries, gaps: SmallVec::new() })
            }
            Err(through) => {
                let reason = Cursors::gap_reason(caught_up);
                let id = sequence.event_id(through, None);
                let frame = frame::stream_gap(Some(&id), log.filter().as_str(), reason);
                self.position = through;
                Some(Batch { bytes: frame.bytes(coding), entries: 0, gaps: SmallVec::from_elem(reason, 1) })
            }
        }
    }
}

impl Opened {
    /// A log whose subscription ended just now is not complete up to the head, and no id may say so.
    fn stop_at_the_end(&mut self) {
        for cursor in &mut self.cursors.cursors {
            if let Some(end) = cursor.lease.log().sealed() {
                cursor.position = cursor.position.min(end);
                if end < self.position {
                    (self.position, self.publisher_id) = (end, None);
                }
            }
        }
    }

    fn start_at(&mut self, position: u64) {
        self.position = position;
        self.cursors.cursors.iter_mut().for_each(|cursor| cursor.position = position);
    }

    /// From the oldest that each log holds; `reason` tells what is missing before it.
    fn start_at_oldest(&mut self, reason: Option<GapReason>) {
        for cursor in &mut self.cursors.cursors {
            let log = cursor.lease.log();
            cursor.position = log.evicted().0;
            self.gaps.extend(reason.map(|reason| (log.filter().clone(), reason)));
        }
        self.position = self.cursors.position();
    }

    /// After the message that its publisher gave this id. It tells the place in its own topic only: another process took
    /// messages of other topics in at other places, so for those it is a gap, and for a pattern too.
    fn start_after_publisher_id(&mut self, id: &str, otherwise: GapReason) {
        let place = self.cursors.logs().enumerate().find_map(|(index, cursor)| {
            cursor.lease.log().find_publisher_id(id).map(|position| (index, position))
        });
        let Some((found, position)) = place else { return self.start_at_oldest(Some(otherwise)) };
        self.start_at(position);
        self.publisher_id = Some(id.to_owned());
        let mut evicted = false;
        for (index, cursor) in self.cursors.cursors.iter_mut().enumerate() {
            let log = cursor.lease.log();
            if index != found || log.filter().is_pattern() {
                cursor.position = position.max(log.evicted().0);
                self.gaps.push((log.filter().clone(), otherwise));
            } else {
                evicted = log.evicted().0 > position;
            }
        }
        self.resumed = self.gaps.is_empty() && !evicted;
    }
}
