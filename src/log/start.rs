//! The start of a stream: turns the start that a client requests into positions in its logs, and finds the gaps before
//! them.
//!
//! For a stored source, the position may be outside of the log. [`seeks_needed`] returns the seeks that the broker must
//! answer first; [`Cursors::open`] takes the answers.

use std::sync::Arc;

use smallvec::SmallVec;

use super::cursor::{Asked, Cursor};
use super::cursors::{Cursors, SequencePosition};
use super::registry::Lease;
use super::start_ids::{groups, ids_of_leases, start_ids};
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::{EventId, ParsedEventId, Position, Sequence};
use crate::protocol::seek::{Seek, SeekResult, Start};
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// An opened stream: its cursors at their start.
#[derive(Debug)]
pub struct Opened {
    /// The cursors to read with.
    pub cursors: Cursors,
    /// The event id from which the stream is complete, once `gaps` have been sent. It ends with the publisher id of the
    /// message there, if the client's id had it: without it, another process could no longer find the position.
    pub id: EventId,
    /// Whether the stream resumes exactly where the client asked, with nothing missing.
    pub resumed: bool,
    /// Whether every topic has ended, and the client's cursor is at its end or behind it.
    pub ended: bool,
    /// Filters that miss messages before the first one that will be read, with the reasons.
    pub gaps: Vec<(Filter, GapReason)>,
}

/// The seeks that the broker must answer before a stream over `leases` can begin at `start`: one for each lease, or
/// none. All leases must be ready.
pub fn seeks_needed(leases: &[Lease], start: &Start) -> Vec<Option<Seek>> {
    if !leases.iter().any(|lease| lease.log().history.is_some()) {
        return vec![None; leases.len()];
    }
    let ids = ids_of_leases(leases, start);
    leases.iter().zip(ids).map(|(lease, id)| seek_needed(lease, start, id)).collect()
}

fn seek_needed(lease: &Lease, start: &Start, id: Option<ParsedEventId>) -> Option<Seek> {
    let log = lease.log();
    let history = log.history.as_ref()?;
    let begin = log.evicted();
    let head = lease.sequence().head();
    match (start, id) {
        (Start::After(_), Some(ParsedEventId::Own { position, .. })) if history.of_values => {
            let Position { number, as_of } = position;
            // If the log begins later, the last message of a single key says all that has changed.
            let is_key_before = !number.is_start() && as_of < begin.number && !log.filter().is_pattern();
            (as_of > head || is_key_before).then_some(Seek::After(as_of))
        }
        (Start::After(_), Some(ParsedEventId::Own { position: Position { number, .. }, .. })) => {
            let is_known = !lease.sequence().is_shuffled() || log.has(number);
            let within = number >= begin.number && is_known;
            (!within || number > head).then_some(Seek::After(number))
        }
        _ if history.of_values => None,
        (Start::After(_), Some(ParsedEventId::Absent)) => None,
        (Start::Now | Start::End, _) => None,
        (Start::After(_) | Start::All, _) => Some(Seek::Oldest),
        (Start::Since(time), _) => {
            let time = lease.sequence().as_told(*time);
            (begin.time >= time).then_some(Seek::Since(time))
        }
        (Start::Last(count), _) => {
            (log.last_messages(*count, head).len() < *count).then_some(Seek::Last(*count))
        }
    }
}

impl Cursors {
    /// Opens cursors where the client asked to start; `located` has the answers to the [`seeks_needed`] of these
    /// leases, in their order. From here on, new entries wake `handle`.
    pub fn open(
        leases: Vec<Lease>,
        handle: &Arc<ReaderHandle>,
        start: &Start,
        located: &[Option<SeekResult>],
    ) -> Opened {
        let answers: Vec<(Filter, SeekResult)> = leases
            .iter()
            .zip(located)
            .filter_map(|(lease, located)| Some((lease.filter().clone(), (*located)?)))
            .collect();
        let mut cursors = Cursors::new(leases, handle);
        let ranges = cursors.sequences();
        let groups = groups(cursors.cursors.iter().map(|cursor| &cursor.lease));
        let ids = start_ids(start, &groups, Some(&answers));
        let sequences: SmallVec<[Arc<Sequence>; 1]> =
            groups.into_iter().map(|group| group.sequence).collect();
        let mut places = Vec::with_capacity(ranges.len());
        let (mut gaps, mut resumed, mut publisher_id) = (Vec::new(), true, None);
        for ((range, sequence), id) in ranges.iter().zip(&sequences).zip(ids) {
            let mut placing = StartResolver {
                cursors: &mut cursors.cursors[range.clone()],
                sequence,
                answers: &answers,
                position: Seq::START,
                publisher_id: None,
                resumed: false,
                gaps: &mut gaps,
            };
            placing.place(start, id);
            placing.begin_with_values();
            placing.stop_at_the_end();
            resumed &= placing.resumed;
            let (number, id) = (placing.position, placing.publisher_id);
            let position = Position::among_values(number, cursors.values_until(range));
            places.push(SequencePosition { cursor: range.start, position });
            publisher_id = id;
        }
        let replays = match start {
            Start::End => false,
            Start::Now => cursors.cursors.iter().any(Cursor::is_of_values),
            _ => true,
        };
        if replays {
            cursors.replay(|cursor| match cursor.reads_values {
                true => cursor.end,
                false => cursor.lease.log().newest(),
            });
        } else {
            cursors.start_live();
        }
        let id = match (&*places, &*sequences) {
            ([SequencePosition { position, .. }], [sequence]) => {
                sequence.event_id(*position, publisher_id.as_deref())
            }
            _ => EventId::of_components([&*cursors.components(&places)]),
        };
        for (filter, _) in &gaps {
            let log =
                cursors.cursors.iter().map(|cursor| cursor.lease.log()).find(|log| log.filter == *filter);
            log.inspect(|log| _ = log.rule.gaps.inc());
        }
        let ended = matches!(start, Start::After(_)) && resumed && gaps.is_empty() && cursors.begin_at_ends();
        Opened { cursors, id, resumed, ended, gaps }
    }
}

/// Places the cursors of one sequence.
struct StartResolver<'a> {
    cursors: &'a mut [Cursor],
    sequence: &'a Sequence,
    answers: &'a [(Filter, SeekResult)],
    position: Seq,
    publisher_id: Option<String>,
    resumed: bool,
    gaps: &'a mut Vec<(Filter, GapReason)>,
}

impl StartResolver<'_> {
    fn place(&mut self, start: &Start, id: Option<ParsedEventId>) {
        match (start, id) {
            (
                Start::After(_),
                Some(ParsedEventId::Own { position: Position { number, .. }, publisher_id }),
            ) if !self.sequence.is_stored() => {
                self.start_at(number);
                self.resumed = true;
                for cursor in &mut *self.cursors {
                    let begin = cursor.lease.log().evicted().number;
                    if begin > number && cursor.lease.is_new_after(number) {
                        // With all that came since the topic is held, because the client keeps its id until something
                        // comes.
                        cursor.position = begin;
                    } else {
                        self.resumed &= begin <= number;
                    }
                }
                // From these logs, not from the client.
                let known = |id: &&str| {
                    self.cursors.iter().any(|cursor| cursor.lease.log().has_publisher_id(number, id))
                };
                self.publisher_id = publisher_id.filter(known).map(str::to_owned);
            }
            (Start::After(_), Some(ParsedEventId::Own { position, .. }))
                if self.cursors.iter().any(Cursor::is_of_values) =>
            {
                self.start_in_bucket(position);
            }
            (Start::After(_), Some(ParsedEventId::Own { position, .. })) => {
                self.start_after_stored(position.number);
            }
            (Start::After(_), Some(ParsedEventId::Foreign { publisher_id: Some(id) }))
                if !self.sequence.is_stored() =>
            {
                self.start_after_publisher_id(id, GapReason::Restarted);
            }
            (Start::After(_), Some(ParsedEventId::Publisher(id))) => {
                self.start_after_publisher_id(id, GapReason::UnknownId);
            }
            (Start::After(_), Some(ParsedEventId::Absent)) => {
                self.resumed = true;
                let is_of_values = self.cursors.iter().any(Cursor::is_of_values);
                self.start_at(if is_of_values { Seq::START } else { self.sequence.head() });
            }
            (Start::After(_), Some(ParsedEventId::Foreign { .. })) => {
                self.start_at_oldest(Some(GapReason::Restarted))
            }
            (Start::After(_), _) => self.start_at_oldest(Some(GapReason::UnknownId)),
            (Start::End, _) => self.start_at(self.sequence.head()),
            _ if self.cursors.iter().any(Cursor::is_of_values) => {
                self.start_at(Seq::START);
            }
            (Start::Now, _) => self.start_at(self.sequence.head()),
            (Start::Since(time), _) => self.start_since(*time),
            (Start::All, _) => self.start_at_oldest(None),
            (Start::Last(count), _) => self.start_with_last(*count),
        }
    }

    /// A log whose subscription has just ended is not complete up to the head, and no id may claim that.
    fn stop_at_the_end(&mut self) {
        for cursor in &mut *self.cursors {
            if let Some(end) = cursor.lease.log().numbering.sealed() {
                (cursor.position, cursor.end) = (cursor.position.min(end), cursor.end.min(end));
                if end < self.position {
                    (self.position, self.publisher_id) = (end, None);
                }
            }
        }
    }

    fn start_at(&mut self, position: Seq) {
        self.position = position;
        self.cursors.iter_mut().for_each(|cursor| cursor.position = position);
    }

    /// The broker's answer for this log.
    fn located(answers: &[(Filter, SeekResult)], filter: &Filter) -> Option<SeekResult> {
        answers.iter().find(|(other, _)| other == filter).map(|(_, located)| *located)
    }

    /// The lowest position of all cursors: up to there, everything was read or sent as a gap.
    fn meet(&mut self) {
        self.position = self.cursors.iter().map(|cursor| cursor.position).min().unwrap_or_default();
    }

    /// Starts after a number of the broker.
    fn start_after_stored(&mut self, number: Seq) {
        self.resumed = true;
        for cursor in &mut *self.cursors {
            let filter = cursor.lease.filter();
            let (position, reason) = match Self::located(self.answers, filter) {
                None => (number, None),
                Some(SeekResult::At(position)) => (position, None),
                Some(SeekResult::Evicted(position)) => (position, Some(GapReason::Evicted)),
                Some(SeekResult::Unknown(position)) => (position, Some(GapReason::UnknownId)),
            };
            if let Some(reason) = reason {
                self.resumed = false;
                self.gaps.push((filter.clone(), reason));
            }
            cursor.position = position;
        }
        self.meet();
    }

    /// Starts at a position in a bucket. If the logs have all changes since `as_of`, nothing is missing. Otherwise the broker
    /// has the values of all keys, but perhaps no mark of those that were deleted.
    fn start_in_bucket(&mut self, from: Position) {
        self.resumed = true;
        let (head, gaps) = (self.sequence.head(), self.gaps.len());
        let mut lost = None;
        for cursor in &mut *self.cursors {
            let log = cursor.lease.log();
            let place = match Self::located(self.answers, log.filter()) {
                Some(SeekResult::Unknown(_)) => Err(GapReason::UnknownId),
                _ if from.as_of >= log.evicted().number => Ok((from.number, from.as_of)),
                // It has received nothing yet.
                _ if from.number.is_start() => Ok((Seq::START, head)),
                Some(SeekResult::At(_)) => Ok((from.number, head)),
                Some(SeekResult::Evicted(_)) => {
                    self.gaps.push((log.filter().clone(), GapReason::Evicted));
                    Ok((head, head)) // the broker has nothing of this key
                }
                None => Err(GapReason::Evicted),
            };
            match place {
                Ok((number, as_of)) => {
                    cursor.position = number;
                    cursor.read_values(as_of);
                }
                Err(reason) => lost = Some(reason),
            }
        }
        if let Some(reason) = lost {
            // An id must be true of all cursors, so all begin with the values, or go on with them: a reader that never
            // has all of them before the log moves on would otherwise never come to the last ones.
            let goes_on = from.is_among_values() && reason == GapReason::Evicted;
            self.gaps.truncate(gaps);
            for cursor in &mut *self.cursors {
                cursor.position = if goes_on { from.number } else { Seq::START };
                cursor.read_values(head);
                self.gaps.push((cursor.lease.filter().clone(), reason));
            }
        }
        self.resumed = self.gaps.len() == gaps;
        self.meet();
    }

    /// A reader at the start of a bucket begins with the values.
    fn begin_with_values(&mut self) {
        let head = self.sequence.head();
        let at_start = |cursor: &&mut Cursor| {
            cursor.is_of_values() && cursor.position.is_start() && !cursor.reads_values
        };
        self.cursors.iter_mut().filter(at_start).for_each(|cursor| cursor.read_values(head));
    }

    fn start_since(&mut self, time: std::time::SystemTime) {
        let time = self.sequence.as_told(time);
        let mut before = Seq::START;
        self.resumed = true;
        for cursor in &mut *self.cursors {
            let log = cursor.lease.log();
            let located = Self::located(self.answers, log.filter());
            cursor.position = match located {
                Some(located) => located.number(),
                None => log.position_before(time),
            };
            let whole = match located {
                Some(located) => matches!(located, SeekResult::At(_)),
                None => log.evicted().time < time,
            };
            if whole {
                before = before.max(cursor.position);
            } else {
                self.resumed = false;
                self.gaps.push((log.filter().clone(), GapReason::Evicted));
            }
        }
        // Messages from that time or later have higher numbers than all before, in any log. So one id for all cursors
        // brings nothing older to a client that resumes with it. A broker's clock may be set back between two numbers,
        // so this does not hold there.
        if !self.sequence.is_stored() {
            for cursor in &mut *self.cursors {
                cursor.position = cursor.position.max(before);
            }
        }
        self.meet();
    }

    /// Starts at the oldest entry; `reason` is the reason of the gap before it, if there is one.
    fn start_at_oldest(&mut self, reason: Option<GapReason>) {
        for cursor in &mut *self.cursors {
            let log = cursor.lease.log();
            cursor.position = match Self::located(self.answers, log.filter()) {
                Some(located) => located.number(),
                None if cursor.is_of_values() => Seq::START,
                None => log.evicted().number,
            };
            self.gaps.extend(reason.map(|reason| (log.filter().clone(), reason)));
        }
        if reason.is_none() {
            self.ask_for_what_is_there();
        }
        self.meet();
    }

    fn ask_for_what_is_there(&mut self) {
        self.cursors.iter_mut().for_each(|cursor| cursor.asked = Asked::WhatIsThere);
    }

    /// Starts with the last `count` messages of each topic and pattern, or as many as there are. Older messages were
    /// not requested, so if they are gone, that is not a gap.
    fn start_with_last(&mut self, count: usize) {
        let head = self.sequence.head();
        for cursor in &mut *self.cursors {
            let log = cursor.lease.log();
            cursor.position = match Self::located(self.answers, log.filter()) {
                Some(located) => located.number(),
                None => {
                    let last = log.last_messages(count, head);
                    last.last().map_or(head, |oldest| oldest.previous()).max(log.evicted().number)
                }
            };
        }
        self.ask_for_what_is_there();
        self.meet();
    }

    /// Starts after the message with this publisher id. The id shows the position in its own topic only: another
    /// process received messages of other topics in another order, so for those, and for a pattern, there is a gap.
    fn start_after_publisher_id(&mut self, id: &str, otherwise: GapReason) {
        let place = self.cursors.iter().enumerate().find_map(|(index, cursor)| {
            cursor.lease.log().find_publisher_id(id).map(|position| (index, position))
        });
        let Some((found, position)) = place else { return self.start_at_oldest(Some(otherwise)) };
        self.start_at(position);
        self.publisher_id = Some(id.to_owned());
        let mut evicted = false;
        let gaps = self.gaps.len();
        for (index, cursor) in self.cursors.iter_mut().enumerate() {
            let log = cursor.lease.log();
            if index != found || log.filter().is_pattern() {
                cursor.position = position.max(log.evicted().number);
                self.gaps.push((log.filter().clone(), otherwise));
            } else {
                evicted = log.evicted().number > position;
            }
        }
        self.resumed = self.gaps.len() == gaps && !evicted;
    }
}

impl Cursor {
    fn is_of_values(&self) -> bool {
        self.lease.log().history.as_ref().is_some_and(|history| history.of_values)
    }
}
