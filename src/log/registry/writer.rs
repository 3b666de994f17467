//! The writer's access to the logs: appends entries and gaps, and begins and ends what a subscription feeds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::time::Instant;

use super::slot::{Feed, Slot, Subscribed};
use super::slots::Slots;
use super::{Inner, Registry};
use crate::log::backfill::{BackfillRequest, RangeExtent};
use crate::log::message::FieldMapping;
use crate::log::time::{Line, Stamp};
use crate::log::{Entry, EntryKind, Gap, StoredPosition, TopicLog};
use crate::protocol::codes::{CloseCode, GapReason};
use crate::protocol::event_id::{Sequence, Tag};
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::{Filter, Topic};

impl Registry {
    /// The subscription of `filter` follows a stored source now: its logs, which have no entry yet, begin at its head.
    /// `time` is when the broker stored the last message up to there, or had none yet; everything later follows.
    pub fn begin(&self, filter: &Filter, tag: Tag, head: Seq, time: SystemTime) {
        let mut inner = self.inner.lock();
        let Inner { slots, ended, .. } = &mut *inner;
        let Some(slot) = slots.get_mut(filter) else { return };
        let sequence = match slot.fields.source {
            Source::RedisStream { .. } => Sequence::of_entry_ids(tag, head, time),
            Source::Pubsub | Source::Sharded | Source::JetStream { .. } | Source::Kv { .. } => {
                Sequence::stored(tag, head)
            }
        };
        let sequence = Arc::new(match ended.remove(filter) {
            Some(before) => sequence.in_place_of(&before),
            None => sequence,
        });
        slot.line = Line::after(time);
        slot.logs().for_each(|log| log.begin(&sequence, time));
        slot.subscribed.send_replace(Subscribed::Confirmed);
    }

    /// Appends a message of `topic` that arrived by the subscription of `filter`; `stored` has its number and time in
    /// the broker. `encode` receives its position. Does nothing if the filter is no longer held.
    pub fn append(
        &self,
        filter: &Filter,
        topic: &Topic,
        stored: Option<StoredPosition>,
        encode: impl FnOnce(&Sequence, Seq, SystemTime, &FieldMapping) -> EntryKind,
    ) {
        let mut inner = self.inner.lock();
        let Inner { slots, waking, line, .. } = &mut *inner;
        let Some(sequence) = slots.get(filter).and_then(|slot| slot.log.sequence().cloned()) else { return };
        if stored.is_some() != sequence.is_stored() {
            return; // from an old subscription: the filter is read from another source now
        }
        let number = stored.map_or_else(|| sequence.next(), |stored| stored.number);
        if number <= sequence.head() {
            return; // never append a number twice, whatever a broker does
        }
        let said = stored.map_or_else(|| next_time(line, slots), |stored| stored.time);
        let Some(slot) = slots.get_mut(filter) else { return };
        let time = if stored.is_some() { slot.line.highest(said) } else { said };
        slot.log.rule.messages.inc();
        let kind = encode(&sequence, number, said, &slot.fields);
        let entry = Entry::new(number, Stamp::new(time, Instant::now()), kind, &self.usage);
        if let Feed::Warm(fed) = &slot.feed {
            fed.matching(topic, |log| {
                log.append(entry.in_log_of(&log.filter, &sequence));
                log.queue_wake(waking);
            });
        }
        slot.log.append(entry.in_log_of(filter, &sequence));
        slot.log.queue_wake(waking);
        sequence.publish(number);
    }

    /// Appends gaps for messages with numbers up to `through`, of `topic` if it is known, to the logs that the
    /// subscription of `filter` feeds from a stored source. Returns the number of gaps.
    pub fn skip(&self, filter: &Filter, topic: Option<&Topic>, through: Seq, reason: GapReason) -> usize {
        let mut inner = self.inner.lock();
        let Inner { slots, waking, .. } = &mut *inner;
        let Some(slot) = slots.get_mut(filter) else { return 0 };
        let Some(sequence) = slot.log.sequence().cloned().filter(|sequence| sequence.head() < through) else {
            return 0;
        };
        let id = sequence.event_id(through, None);
        let mut gaps = 0;
        slot.logs_of(topic, |log| {
            let gap = Gap::new(&id, &log.filter, reason, topic.cloned());
            log.append(Entry::new(through, Stamp::unknown(), EntryKind::Gap(gap), &self.usage));
            log.rule.gaps.inc();
            log.queue_wake(waking);
            gaps += 1;
        });
        sequence.publish(through);
        gaps
    }

    /// The stored source of `filter` was deleted or replaced. Its readers are closed with `restarted` and reconnect.
    pub fn end(&self, filter: &Filter) {
        {
            // One for each rule at most: sources that are followed topic by topic never give a number twice.
            let mut inner = self.inner.lock();
            let slot = inner.slots.get(filter).filter(|slot| slot.fields.source.is_shared());
            if let Some(sequence) = slot.and_then(|slot| slot.log.sequence().cloned()) {
                inner.ended.insert(filter.clone(), sequence);
            }
        }
        self.give_up(filter, CloseCode::Restarted);
    }

    /// Delivers a backfill range to the readers that wait for it.
    pub fn answer_backfill(
        &self,
        request: &BackfillRequest,
        extent: RangeExtent,
        messages: impl IntoIterator<Item = (StoredPosition, EntryKind)>,
    ) {
        let entries = messages.into_iter().map(|(StoredPosition { number, time }, kind)| {
            let kind = kind.in_log_of(request.filter());
            Entry::new(number, Stamp::new(time, Instant::now()), kind, &self.usage)
        });
        self.ranges.keep(request, extent, entries.collect(), self.max_bytes.load(Ordering::Relaxed));
    }

    /// Appends gaps because messages may be missing here: in the logs of `filters` and those that they feed, of `topic`
    /// if it is known, or in every log of plain publish/subscribe. Returns the number of gaps.
    pub fn append_gap(&self, filters: Option<&[Filter]>, topic: Option<&Topic>, reason: GapReason) -> usize {
        let mut inner = self.inner.lock();
        let Inner { slots, waking, line, .. } = &mut *inner;
        let time = next_time(line, slots);
        let mut gaps = 0;
        let mut append = |log: &Arc<TopicLog>| {
            // Each gap has its own number, though they are one event: an id must show which of them a client has seen.
            let sequence = self.sequence.next();
            let id = self.sequence.event_id(sequence, None);
            let gap = Gap::new(&id, &log.filter, reason, topic.cloned());
            let stamp = Stamp::new(time, Instant::now());
            log.append(Entry::new(sequence, stamp, EntryKind::Gap(gap), &self.usage));
            log.rule.gaps.inc();
            log.queue_wake(waking);
            self.sequence.publish(sequence);
            gaps += 1;
        };
        // A warm log comes after the logs that it feeds. A reader that has seen the gap of one of them, and resumes
        // when that log is gone, gets a new log from the warm one, in which the gap still follows.
        match filters {
            None => {
                let plain = || slots.values().filter(|slot| slot.fields.source == Source::Pubsub);
                let is_warm = |slot: &&Slot| matches!(slot.feed, Feed::Warm(_));
                let (fed, warm) = (plain().filter(|slot| !is_warm(slot)), plain().filter(is_warm));
                fed.chain(warm).for_each(|slot| append(&slot.log));
            }
            // Looked up one by one: there may be as many filters as slots.
            Some(filters) => {
                let slots = filters.iter().filter_map(|filter| slots.get(filter));
                let slots = slots.filter(|slot| !slot.fields.source.is_stored());
                slots.for_each(|slot| slot.logs_of(topic, &mut append));
            }
        }
        gaps
    }

    /// Wakes up to `limit` readers that wait for new entries. Returns whether there may be more, to be woken by another
    /// call: readers that are woken late also find what was appended meanwhile, and read all of it at once.
    pub fn wake(&self, limit: usize) -> bool {
        let mut waking = std::mem::take(&mut self.inner.lock().waking);
        let mut left = limit;
        while left > 0
            && let Some(log) = waking.pop_front()
        {
            let (woken, more) = log.readers.wake(left);
            left -= woken;
            if more {
                waking.push_back(log); // after the others: a crowd on one topic must not delay the next
            }
        }
        let mut inner = self.inner.lock();
        waking.append(&mut inner.waking);
        inner.waking = waking;
        !inner.waking.is_empty()
    }

    /// The broker has ended the subscription of `filter`. Its readers are closed; when they reconnect, they learn why.
    pub fn refuse(&self, filter: &Filter) {
        self.give_up(filter, CloseCode::Refused);
    }

    fn give_up(&self, filter: &Filter, code: CloseCode) {
        self.take_out(filter, |_| true).iter().for_each(|log| log.readers.close(code));
    }
}

/// The time of a message that arrives now. If the clock was set back, the times of all logs that use it are brought
/// back too.
fn next_time(line: &mut Line, slots: &Slots) -> SystemTime {
    let (time, is_set_back) = line.next(SystemTime::now());
    if is_set_back {
        let ours = slots.values().filter(|slot| !slot.fields.source.is_stored());
        ours.for_each(|slot| slot.log.bring_back(time));
    }
    time
}
