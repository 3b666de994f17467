//! A key that is followed: how far it is read, and whether something was gone before it could be read.
//!
//! An answer to `XREAD` does not say that entries before its first one were trimmed away. The server counts what it adds,
//! though: between two samples ([`Sample`]) as many entries must have been read as the count has grown. Nothing here
//! talks to the server.

use tokio::time::Instant;

use super::entry::{Entry, EntryId};
use super::sample::Sample;
use crate::broker::{BrokerError, Event};
use crate::protocol::event_id::Tag;
use crate::protocol::topic::{Filter, Topic};

/// So many entries were ever added when `at` was the last id.
#[derive(Debug, Clone, Copy)]
struct Count {
    added: u64,
    at: EntryId,
}

/// So many entries are missing somewhere up to this id, which may be one of them.
struct Missing {
    count: u64,
    before: EntryId,
}

/// See the module.
#[derive(Debug)]
pub(in crate::broker::redis) struct Key {
    filter: Filter,
    topic: Topic,
    payload: Option<String>,
    /// Since when it is followed here. What was read of it before is of another time.
    pub(super) since: Instant,
    /// Everything up to here was read, or is known to be gone.
    pub(super) cursor: EntryId,
    /// When it was sampled last. `None`: it must be before anything more of it is told.
    pub(super) sampled: Option<Instant>,
    /// Whether more is held than the last answer had room for.
    pub(super) behind: bool,
    /// The number that was told last.
    told: u64,
    /// Whether that was a gap.
    ends_in_gap: bool,
    /// Up to here, what was read is compared. `None`: the next sample says from where.
    counted: Option<Count>,
    /// Entries that were read above it.
    read: u64,
    /// To compare with once it is reached.
    check: Option<Count>,
}

impl Key {
    /// Follows from what `sample` says. Also what the number of its last entry is.
    pub(super) fn begin(
        filter: Filter,
        topic: Topic,
        payload: Option<String>,
        sample: &Sample,
    ) -> Result<(Self, u64), BrokerError> {
        let head = sample.last.number_at_most().ok_or_else(|| BrokerError::Refused(too_late(sample.last)))?;
        let key = Key {
            filter,
            topic,
            payload,
            since: Instant::now(),
            cursor: sample.last,
            sampled: Some(Instant::now()),
            behind: false,
            told: head,
            ends_in_gap: false,
            counted: Some(Count { added: sample.added, at: sample.last }),
            read: 0,
            check: None,
        };
        Ok((key, head))
    }

    /// Takes what an answer brought: the entries after [`Key::cursor`], and a sample made after them. What is to be told
    /// goes into `events`.
    ///
    /// # Errors
    /// The event with which the key's subscription ends.
    pub(super) fn take(
        &mut self,
        mut entries: Vec<Entry>,
        sample: Option<Sample>,
        events: &mut Vec<Event>,
    ) -> Result<(), Box<Event>> {
        // Followed anew while it was read, it has other plans than when that was asked.
        entries.retain(|entry| entry.id > self.cursor);
        let last = entries.last().map_or(self.cursor, |entry| entry.id);
        if let Some(sample) = sample {
            self.sampled = Some(Instant::now());
            self.compare_later(&entries, last, &sample, events)?;
        }
        let mut missing = self.missing(&entries, last, sample.as_ref());
        for entry in entries {
            if let Some(Missing { count, .. }) = missing.take_if(|missing| missing.before <= entry.id) {
                let through = entry.id.number_at_most().map(|number| number.saturating_sub(1));
                self.gap(through, were_removed(count), events);
            }
            self.cursor = entry.id;
            self.read += u64::from(self.counted.is_some_and(|counted| entry.id > counted.at));
            match entry.id.number() {
                Some(number) if number > self.told => {
                    self.told = number;
                    self.ends_in_gap = false;
                    let message =
                        entry.into_message(number, &self.filter, &self.topic, self.payload.as_deref());
                    events.push(Event::Message(message));
                }
                Some(_) => {} // inside of a gap that is told
                None => {
                    let through = entry
                        .id
                        .number_at_most()
                        .ok_or_else(|| Box::new(self.refused(too_late(entry.id))))?;
                    if through > self.told || !self.ends_in_gap {
                        let why = format!("the entry {} has an id that cannot be carried", entry.id);
                        self.gap(Some(through), why, events);
                    }
                }
            }
        }
        if let Some(Missing { count, before }) = missing {
            self.gap(before.number_at_most(), were_removed(count), events);
        }
        Ok(())
    }

    /// Whether a sample waits to be compared.
    pub(super) fn is_checked(&self) -> bool {
        self.check.is_some()
    }

    /// An answer was asked for what is after [`Key::cursor`], once a sample was made, and brought nothing.
    ///
    /// # Errors
    /// As [`Key::take`].
    pub(super) fn nothing_more(&mut self, events: &mut Vec<Event>) -> Result<(), Box<Event>> {
        let Some(check) = self.check.take().filter(|check| check.at > self.cursor) else { return Ok(()) };
        let counted = self.counted.replace(check).unwrap_or(check);
        let missing = check.added.saturating_sub(counted.added + self.read);
        self.cursor = check.at;
        self.read = 0;
        if missing > 0 {
            let through =
                check.at.number_at_most().ok_or_else(|| Box::new(self.refused(too_late(check.at))))?;
            self.gap(Some(through), were_removed(missing), events);
        }
        Ok(())
    }

    /// Another server is read now: what the one before had given to nobody yet may be missing in it.
    pub(super) fn moved(&mut self, why: &str, events: &mut Vec<Event>) {
        self.sampled = None;
        self.counted = None;
        self.check = None;
        self.gap(None, why.into(), events);
    }

    /// Begins to compare with `sample`, unless another one is waited for.
    fn compare_later(
        &mut self,
        entries: &[Entry],
        last: EntryId,
        sample: &Sample,
        events: &mut Vec<Event>,
    ) -> Result<(), Box<Event>> {
        if !sample.exists && last > EntryId::ZERO {
            return Err(Box::new(self.ended("the key was deleted", events)));
        }
        if sample.last < last {
            let why = "the key was deleted and made again, or lost its last entries: its last id went back";
            return Err(Box::new(self.ended(why, events)));
        }
        let here = Count { added: sample.added, at: sample.last };
        let Some(counted) = self.counted else {
            self.counted = Some(here);
            self.read = 0;
            return Ok(());
        };
        let fresh = entries.iter().filter(|entry| entry.id > counted.at).count() as u64;
        if sample.added < counted.added + self.read + fresh {
            let why = "the key was deleted and made again: fewer entries were added than it had";
            return Err(Box::new(self.ended(why, events)));
        }
        self.check.get_or_insert(here);
        Ok(())
    }

    /// What is missing up to the sample that is waited for, once it is reached.
    fn missing(&mut self, entries: &[Entry], last: EntryId, sample: Option<&Sample>) -> Option<Missing> {
        let check = self.check.take_if(|check| check.at <= last)?;
        let counted = self.counted.replace(check)?;
        let within = |entry: &&Entry| entry.id > counted.at && entry.id <= check.at;
        let read = self.read + entries.iter().filter(within).count() as u64;
        self.read = 0;
        let count = check.added.checked_sub(counted.added + read).filter(|count| *count > 0)?;
        // Trimming takes the oldest. What was deleted one by one can be anywhere up to the sample.
        let is_trimmed = sample.is_some_and(|sample| sample.deleted <= self.cursor);
        let first = entries.first().map(|entry| entry.id).filter(|_| is_trimmed);
        Some(Missing { count, before: first.map_or(check.at, |first| first.min(check.at)) })
    }

    /// Tells a gap up to `through`, or as near as the numbers leave room. An entry whose number it takes is inside of it.
    fn gap(&mut self, through: Option<u64>, why: String, events: &mut Vec<Event>) {
        self.told = through.unwrap_or(0).max(self.told.saturating_add(1));
        self.ends_in_gap = true;
        events.push(Event::Gone { filter: self.filter.clone(), through: self.told, why });
    }

    /// The history is no more. What was told since it was compared last may be of the next one already, and between the two
    /// something may be missing.
    fn ended(&mut self, why: &str, events: &mut Vec<Event>) -> Event {
        if self.read > 0 && !self.ends_in_gap {
            self.gap(None, why.into(), events);
        }
        Event::Ended { filter: self.filter.clone(), why: why.into() }
    }

    fn refused(&self, why: String) -> Event {
        Event::Refused { filter: self.filter.clone(), why }
    }

    /// With which its subscription ends: the server does not let it be read any more.
    pub(super) fn refuse(self, why: String) -> Event {
        Event::Refused { filter: self.filter, why }
    }

    /// That it is followed from `head` on.
    pub(super) fn begun(&self, name: &str, head: u64) -> Event {
        let tag = Tag::of(&[b"redis-stream", name.as_bytes()]);
        Event::Begun { filter: self.filter.clone(), tag, head, time: EntryId::of(head).time() }
    }
}

fn were_removed(missing: u64) -> String {
    format!("{missing} entries were removed before they were read")
}

fn too_late(id: EntryId) -> String {
    format!("the entry {id} is of a time after the year 2527, which no position can say")
}
