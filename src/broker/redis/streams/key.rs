//! A followed key: its read position, and the detection of entries that were removed before they could be read.
//!
//! An answer to `XREAD` does not show that earlier entries were trimmed. But the server counts added entries: between
//! two samples ([`Sample`]), as many entries must have been read as the count has grown. Nothing here talks to the
//! server.

use std::time::SystemTime;

use tokio::time::Instant;

use super::entry::{Entry, EntryId};
use super::sample::Sample;
use crate::broker::{BrokerError, Event};
use crate::protocol::event_id::Tag;
use crate::protocol::seq::Seq;
use crate::protocol::topic::{Filter, Topic};

const COUNT_WENT_BACK: &str = "the key was deleted and created again: its count of added entries went back";

/// The total number of entries ever added when `at` was the last id.
#[derive(Debug, Clone, Copy)]
struct Count {
    added: u64,
    at: EntryId,
}

/// The number of entries that are missing somewhere up to and including this id.
struct Missing {
    count: u64,
    before: EntryId,
}

/// The number of entries that were trimmed, all of them before this id.
struct Trimmed {
    count: u64,
    before: EntryId,
}

/// The state of one followed key.
#[derive(Debug)]
pub(in crate::broker::redis) struct Key {
    filter: Filter,
    topic: Topic,
    payload: Option<String>,
    /// Since when it has been followed here. Reads from before are obsolete.
    pub(super) since: Instant,
    /// Everything up to this id was read or is known to be gone.
    pub(super) cursor: EntryId,
    /// When it was sampled last. `None`: it must be sampled before further events.
    pub(super) sampled: Option<Instant>,
    /// The number of entries that it had then.
    pub(super) length: u64,
    /// Whether there are more entries than fitted into the last answer.
    pub(super) behind: bool,
    /// The last number that was sent.
    last_emitted: Seq,
    /// Whether that was a gap.
    ends_in_gap: bool,
    /// Up to this id, reads have been compared with the count. `None`: the next sample is the starting point.
    counted: Option<Count>,
    /// The number of entries read after it.
    read: u64,
    /// The count to compare with once it is reached.
    check: Option<Count>,
}

impl Key {
    /// The filter that it is followed for.
    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Starts to follow at `sample`. Also returns the number of its last entry.
    pub(super) fn begin(
        filter: Filter,
        topic: Topic,
        payload: Option<String>,
        sample: &Sample,
    ) -> Result<(Self, Seq), BrokerError> {
        let head = sample.last.number_at_most().ok_or_else(|| BrokerError::Refused(too_late(sample.last)))?;
        let key = Key {
            filter,
            topic,
            payload,
            since: Instant::now(),
            cursor: sample.last,
            sampled: Some(Instant::now()),
            length: sample.length,
            behind: false,
            last_emitted: head,
            ends_in_gap: false,
            counted: Some(Count { added: sample.added, at: sample.last }),
            read: 0,
            check: None,
        };
        Ok((key, head))
    }

    /// Handles an answer: the entries after [`Key::cursor`], and a sample made after them. Adds the events to send to
    /// `events`.
    ///
    /// # Errors
    /// The event with which the key's subscription ends.
    pub(super) fn take(
        &mut self,
        mut entries: Vec<Entry>,
        sample: Option<Sample>,
        events: &mut Vec<Event>,
    ) -> Result<(), Box<Event>> {
        // The key was followed again during the read, so its position has changed.
        entries.retain(|entry| entry.id > self.cursor);
        let last = entries.last().map_or(self.cursor, |entry| entry.id);
        if let Some(sample) = sample {
            (self.sampled, self.length) = (Some(Instant::now()), sample.length);
            self.compare_later(&entries, last, &sample, events)?;
        }
        let trimmed = sample.and_then(|sample| self.trimmed(&entries, &sample));
        let mut missing = self.missing(&entries, last, sample.as_ref(), events)?;
        if let (Some(Trimmed { count, before }), Some(first)) = (&trimmed, entries.first()) {
            self.gap_if_there_is_room(first.id.min(*before), *count, events);
        }
        for entry in entries {
            if let Some(Missing { count, .. }) = missing.take_if(|missing| missing.before <= entry.id) {
                let through = entry.id.number_at_most().map(Seq::previous);
                self.gap(through, were_removed(count), events);
            }
            self.cursor = entry.id;
            self.read += u64::from(self.counted.is_some_and(|counted| entry.id > counted.at));
            match entry.id.number() {
                Some(number) if number > self.last_emitted => {
                    self.last_emitted = number;
                    self.ends_in_gap = false;
                    let message =
                        entry.into_message(number, &self.filter, &self.topic, self.payload.as_deref());
                    events.push(Event::Message(message));
                }
                Some(_) => {} // inside of a gap that was sent
                None => {
                    let through = entry
                        .id
                        .number_at_most()
                        .ok_or_else(|| Box::new(self.refused(too_late(entry.id))))?;
                    if through > self.last_emitted || !self.ends_in_gap {
                        let why = format!("the entry {} has an id that cannot be an event id", entry.id);
                        self.gap(Some(through), why, events);
                    }
                }
            }
        }
        if let Some(Missing { count, before }) = missing {
            self.gap(before.number_at_most(), were_removed(count), events);
        }
        // What was trimmed may also have been newer than this answer.
        if let Some(Trimmed { count, before }) = trimmed {
            self.gap_if_there_is_room(before, count, events);
        }
        Ok(())
    }

    /// Whether a sample waits to be compared.
    pub(super) fn is_checked(&self) -> bool {
        self.check.is_some()
    }

    /// Handles a read after a sample that returned no entries after [`Key::cursor`].
    ///
    /// # Errors
    /// As [`Key::take`].
    pub(super) fn nothing_more(&mut self, events: &mut Vec<Event>) -> Result<(), Box<Event>> {
        let Some(check) = self.check.take().filter(|check| check.at > self.cursor) else { return Ok(()) };
        let counted = self.counted.replace(check).unwrap_or(check);
        let Some(missing) = check.added.checked_sub(counted.added + self.read) else {
            return Err(Box::new(self.ended(COUNT_WENT_BACK, events)));
        };
        self.cursor = check.at;
        self.read = 0;
        if missing > 0 {
            let through =
                check.at.number_at_most().ok_or_else(|| Box::new(self.refused(too_late(check.at))))?;
            self.gap(Some(through), were_removed(missing), events);
        }
        Ok(())
    }

    /// Another server is read now: it may lack entries of the previous one that nobody had read yet.
    pub(super) fn moved(&mut self, why: &str, events: &mut Vec<Event>) {
        self.sampled = None;
        self.counted = None;
        self.check = None;
        self.gap(None, why.into(), events);
    }

    /// Starts to compare with `sample`, unless another one is still to be reached.
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
            let why =
                "the key was deleted and created again, or lost its last entries: its last id went back";
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
            return Err(Box::new(self.ended(COUNT_WENT_BACK, events)));
        }
        if here.at <= last {
            // This answer reaches an earlier sample too, so one comparison and one gap are enough.
            self.check = Some(here);
        } else {
            self.check.get_or_insert(here);
        }
        Ok(())
    }

    /// The entries that were trimmed before they could be read. All of them are older than the first entry of the sample,
    /// so that it need not be reached to know them. If entries were deleted one by one, it must be: see [`Key::missing`].
    fn trimmed(&mut self, entries: &[Entry], sample: &Sample) -> Option<Trimmed> {
        let counted = self.counted.as_mut()?;
        let before = sample.first.unwrap_or(sample.last.next());
        if before <= self.cursor || sample.deleted > self.cursor {
            return None;
        }
        let within = |entry: &&Entry| entry.id > counted.at && entry.id < before;
        let read = self.read + entries.iter().filter(within).count() as u64;
        let added = sample.added.saturating_sub(sample.length);
        let count = added.checked_sub(counted.added + read).filter(|count| *count > 0)?;
        counted.added += count;
        self.check = Some(Count { added: sample.added, at: sample.last });
        Some(Trimmed { count, before })
    }

    /// The entries that are missing up to the sample, once it is reached.
    ///
    /// # Errors
    /// The event with which the subscription ends: more was read than was ever added. So the key was created again
    /// before the sample, and its new entries were read only after it.
    fn missing(
        &mut self,
        entries: &[Entry],
        last: EntryId,
        sample: Option<&Sample>,
        events: &mut Vec<Event>,
    ) -> Result<Option<Missing>, Box<Event>> {
        let Some(check) = self.check.take_if(|check| check.at <= last) else { return Ok(None) };
        let Some(counted) = self.counted.replace(check) else { return Ok(None) };
        let within = |entry: &&Entry| entry.id > counted.at && entry.id <= check.at;
        let read = self.read + entries.iter().filter(within).count() as u64;
        let Some(count) = check.added.checked_sub(counted.added + read) else {
            return Err(Box::new(self.ended(COUNT_WENT_BACK, events)));
        };
        self.read = 0;
        if count == 0 {
            return Ok(None);
        }
        // Trimming removes the oldest entries. Entries that were deleted one by one can be anywhere up to the sample.
        let is_trimmed = sample.is_some_and(|sample| sample.deleted <= self.cursor);
        let first = entries.first().map(|entry| entry.id).filter(|_| is_trimmed);
        Ok(Some(Missing { count, before: first.map_or(check.at, |first| first.min(check.at)) }))
    }

    /// Adds a gap for entries before `before`, unless no id fits in between, so that none of them can be missing there.
    fn gap_if_there_is_room(&mut self, before: EntryId, count: u64, events: &mut Vec<Event>) {
        let through = before.number_at_most().map(Seq::previous);
        if through.is_some_and(|through| through > self.last_emitted) {
            self.gap(through, were_removed(count), events);
        }
    }

    /// Adds a gap up to `through`, or as near as the numbers allow. An entry whose number it takes is inside of the
    /// gap.
    fn gap(&mut self, through: Option<Seq>, why: String, events: &mut Vec<Event>) {
        self.last_emitted = through.unwrap_or(Seq::START).max(self.last_emitted.next());
        self.ends_in_gap = true;
        events.push(Event::Gone { filter: self.filter.clone(), through: self.last_emitted, why });
    }

    /// The key was deleted or replaced. Entries that were sent since the last comparison may already belong to its
    /// replacement, and entries in between may be missing.
    fn ended(&mut self, why: &str, events: &mut Vec<Event>) -> Event {
        if self.read > 0 && !self.ends_in_gap {
            self.gap(None, why.into(), events);
        }
        Event::Ended { filter: self.filter.clone(), why: why.into() }
    }

    fn refused(&self, why: String) -> Event {
        Event::Refused { filter: self.filter.clone(), why }
    }

    /// The event that ends its subscription, because the server no longer allows it to be read.
    pub(super) fn refuse(self, why: String) -> Event {
        Event::Refused { filter: self.filter, why }
    }

    /// The event that it is followed from `head` on. If it had no entry yet, that was so at `empty_at`.
    pub(super) fn begun(&self, name: &str, head: Seq, empty_at: Option<SystemTime>) -> Event {
        let tag = Tag::of(&[b"redis-stream", name.as_bytes()]);
        let time = empty_at.filter(|_| head.is_start()).unwrap_or_else(|| EntryId::of(head).time());
        Event::Begun { filter: self.filter.clone(), tag, head, time }
    }
}

fn were_removed(missing: u64) -> String {
    format!("{missing} entries were removed before they were read")
}

fn too_late(id: EntryId) -> String {
    format!("the entry {id} has a time after the year 2527, which an event id cannot express")
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn entry(ms: u64) -> Entry {
        let text = |text: String| Value::BulkString(text.into_bytes());
        let fields = Value::Array(vec![text("body".into()), text("x".into())]);
        let entry = Value::Array(vec![text(format!("{ms}-0")), fields]);
        Entry::list(Value::Array(vec![entry])).unwrap().remove(0)
    }

    fn sample(added: u64, last: u64) -> Sample {
        let last = EntryId { ms: last, seq: 0 };
        Sample { exists: true, length: 1, added, last, ..Sample::default() }
    }

    /// A key whose one entry was read, and which was then deleted, created again and sampled before its new entry was
    /// read.
    fn sampled_after_it_was_created_again() -> (Key, Vec<Event>) {
        let topic = Topic::parse("k", 9).unwrap();
        let (mut key, _) = Key::begin(topic.clone().into(), topic, None, &Sample::default()).unwrap();
        let mut events = Vec::new();
        key.take(vec![entry(1)], None, &mut events).unwrap();
        key.take(Vec::new(), Some(sample(1, 2)), &mut events).unwrap();
        assert!(matches!(events[..], [Event::Message(_)]));
        events.clear();
        (key, events)
    }

    #[test]
    fn a_key_that_was_created_again_ends_even_if_its_sample_came_before_its_new_entry() {
        let (mut key, mut events) = sampled_after_it_was_created_again();
        let end = key.take(vec![entry(2)], None, &mut events).unwrap_err();
        assert!(matches!(*end, Event::Ended { .. }), "{end:?}");
        assert!(matches!(events[..], [Event::Gone { .. }]), "{events:?}");
    }

    #[test]
    fn a_key_that_was_created_again_ends_even_if_its_new_entry_is_gone_before_it_is_read() {
        let (mut key, mut events) = sampled_after_it_was_created_again();
        // As many as were read were added since: the new key lacks what the reader has.
        key.read += 1;
        let end = key.nothing_more(&mut events).unwrap_err();
        assert!(matches!(*end, Event::Ended { .. }), "{end:?}");
    }
}
