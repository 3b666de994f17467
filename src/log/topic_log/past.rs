//! A new log that is fed by a warm log takes over the older messages of its filter from it: newest first, in parts,
//! without the writer's lock, and before anybody reads. It is already fed meanwhile, so nothing is lost in between. For
//! a single topic, only its own messages are visited.

use std::sync::Arc;
use std::time::SystemTime;

use super::{Holders, TopicLog};
use crate::log::backfill::History;
use crate::log::by_topic::{self, ByTopic, Position};
use crate::log::message::Message;
use crate::log::time::Horizon;
use crate::log::{Bounds, Entry};
use crate::protocol::topic::{Filter, Topic};

/// How many entries are visited before the lock of the warm log is released for others.
const PART: usize = 256;

/// The older messages that are still to be taken over.
#[derive(Debug)]
pub(super) struct Past {
    source: Arc<TopicLog>,
    /// The topic, if the filter is a single topic.
    topic: Option<Topic>,
    /// The position of the next entry to visit in the warm log; `None` if the last one was the oldest known.
    next: Option<Position>,
    /// The warm log has all messages of the filter after this, except evicted ones.
    whole_from: Horizon,
}

/// Some of these messages, newest first.
struct Part {
    entries: Vec<Arc<Entry>>,
    /// If there are no more: where the warm log begins to be complete.
    begin: Option<Horizon>,
}

impl TopicLog {
    /// Starts to index entries by topic.
    pub(in crate::log) fn index_topics(&self) {
        let mut state = self.state.lock();
        if state.by_topic.is_some() {
            return;
        }
        let whole_from = match state.entries.back() {
            Some(newest) => Horizon { number: newest.sequence, time: newest.time() },
            None => state.evicted,
        };
        let entries = state.entries.len();
        state.by_topic = Some(Box::new(ByTopic::new(entries, whole_from)));
        state.bytes += entries * by_topic::WEIGHT;
        self.usage.add(entries * by_topic::WEIGHT);
    }

    /// Creates a log of `filter`, which this log covers, and feeds it from now on. Called under the writer's lock. The
    /// messages that this log has had since `from` must be taken over with [`TopicLog::take_over`] before the new log
    /// is read.
    pub(in crate::log) fn fed(
        self: &Arc<Self>,
        filter: &Filter,
        bounds: &Bounds,
        history: Option<Arc<History>>,
        from: Horizon,
    ) -> TopicLog {
        let state = self.state.lock();
        let topic = filter.topic();
        let mut whole_from = state.evicted;
        let mut next = None;
        if let Some(by_topic) = &state.by_topic {
            whole_from = whole_from.later(by_topic.whole_from);
            next = match &topic {
                Some(topic) => by_topic.newest(topic),
                None => by_topic.last(),
            };
        }
        if self.history.is_none() {
            whole_from = whole_from.later(from); // stored messages have the same numbers by any subscription
        }
        drop(state);
        // Until the older messages are taken over, the log is complete from here on; the time is set then.
        let begin = match next {
            Some(_) => Horizon { number: self.newest(), time: SystemTime::UNIX_EPOCH },
            None => whole_from,
        };
        let (filter, bounds, usage) = (filter.clone(), bounds.clone(), self.usage.clone());
        let mut log = TopicLog::new(filter, bounds, usage, self.numbering.clone(), history, begin);
        if next.is_some() {
            log.state.get_mut().taking_over = true;
            let past = Past { source: self.clone(), topic, next, whole_from };
            *log.past.get_mut() = Some(Box::new(past));
        }
        log
    }

    /// Takes over a part of the older messages of the log that feeds it. Returns whether that was the last part.
    pub(in crate::log) fn take_over(&self) -> bool {
        let mut left = self.past.lock();
        let Some(past) = &mut *left else { return true };
        let part = past.part(&self.filter);
        let whole = self.prepend(part);
        if whole {
            *left = None;
        }
        whole
    }

    /// Inserts older entries before the existing ones. Returns whether these were the last ones.
    fn prepend(&self, part: Part) -> bool {
        let mut state = self.state.lock();
        let mut begin = part.begin;
        for entry in part.entries {
            // Entries that it had to evict meanwhile, or was reset without, are newer than these.
            if !state.taking_over {
                return true;
            }
            let weight = entry.weight();
            let full = state.entries.len() >= state.bounds.messages
                || (state.bytes + weight > state.bounds.bytes && !state.entries.is_empty());
            if full {
                begin = Some(Horizon { number: entry.sequence, time: entry.time() });
                break;
            }
            if let Some(end) = &self.end {
                end.take_older(&entry);
            }
            if let Some(publisher_id) = entry.message().and_then(Message::publisher_id) {
                let known = state.publisher_ids.entry(publisher_id.into());
                let known = known.or_insert(Holders { first: entry.sequence, entries: 0 });
                *known = Holders { first: entry.sequence, entries: known.entries + 1 };
            }
            state.bytes += weight;
            self.usage.add(weight);
            state.entries.push_front(entry);
        }
        let Some(begin) = begin.filter(|_| state.taking_over) else { return !state.taking_over };
        state.taking_over = false;
        let held = state.entries.front().map(|oldest| oldest.sequence.previous());
        state.evicted = Horizon {
            number: held.map_or(begin.number, |held| held.min(begin.number)),
            // It is later if its subscription was confirmed meanwhile.
            time: state.evicted.time.max(begin.time),
        };
        let newest = state.entries.back().map_or(state.evicted.number, |newest| newest.sequence);
        self.newest.store(newest);
        true
    }
}

impl Past {
    fn part(&mut self, filter: &Filter) -> Part {
        let state = self.source.state.lock();
        let begin = self.whole_from.later(state.evicted);
        let mut entries = Vec::new();
        for _ in 0..PART {
            let found = self.next.zip(state.by_topic.as_deref()).and_then(|(position, by_topic)| {
                Some((position, by_topic, state.entries.get(by_topic.index(position)?)?))
            });
            let Some((position, by_topic, entry)) = found.filter(|(.., entry)| entry.sequence > begin.number)
            else {
                return Part { entries, begin: Some(begin) };
            };
            #[cfg(test)]
            crate::log::tests::count_visit();
            let is_of_filter = match &self.topic {
                Some(_) => true,
                None => entry.topic().is_some_and(|topic| filter.matches(topic)),
            };
            // Set when its subscription began, before any message.
            if let Some(sequence) = self.source.sequence().filter(|_| is_of_filter) {
                entries.push(entry.in_log_of(filter, sequence));
            }
            self.next = match &self.topic {
                Some(_) => by_topic.before(position),
                None => by_topic::previous(position),
            };
        }
        Part { entries, begin: None }
    }
}
