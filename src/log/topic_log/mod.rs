//! The log of one filter: its newest entries, bounded by count, bytes and age, and the reads and searches on them. The
//! registry decides which logs exist.

mod newest;
mod past;
mod shared;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use self::newest::Retained;
use self::past::Past;
pub(super) use self::shared::Place;
use super::backfill::History;
use super::batches::Batches;
use super::by_topic::{self, ByTopic};
use super::compression::Compression;
use super::end::TopicEnd;
use super::message::Message;
use super::numbering::Numbering;
use super::readers::Readers;
use super::time::Horizon;
use super::{Bounds, BufferUsage, Entry, Item};
use crate::metrics::RuleMetrics;
use crate::protocol::event_id::{EventId, Sequence};
use crate::protocol::seq::{AtomicSeq, Seq};
use crate::protocol::topic::Filter;
use crate::reader::handle::ReaderHandle;

/// The log of one filter. It is shared as an `Arc`; its lock is held briefly and never across an await.
#[derive(Debug)]
pub struct TopicLog {
    pub(super) filter: Filter,
    /// The rule under which its messages and readers are counted, for its whole life.
    pub(super) rule: Arc<RuleMetrics>,
    pub(super) usage: Arc<BufferUsage>,
    pub(super) numbering: Arc<Numbering>,
    /// The backfill, if the source is stored.
    pub(super) history: Option<Arc<History>>,
    /// The last number of the log: of its newest entry, or where it began. Stored after the entry is inserted and
    /// before it is published.
    pub(super) newest: AtomicSeq,
    /// The end of its topic; `None` for a pattern, which never ends.
    pub(super) end: Option<TopicEnd>,
    pub(super) state: Mutex<State>,
    /// Apart from `state`, so that the writer does not wait while entries are compressed. Locked before `state`.
    compression: Mutex<Compression>,
    /// The older messages that it must still take over from the log that feeds it. Locked before `state`.
    past: Mutex<Option<Box<Past>>>,
    /// Apart from `state`, so that waking thousands does not block the first of them in reading.
    pub(super) readers: Readers,
}

/// The state that its lock protects.
#[derive(Debug)]
pub(super) struct State {
    pub(super) bounds: Bounds,
    /// The entries by number.
    pub(super) entries: VecDeque<Arc<Entry>>,
    pub(super) bytes: usize,
    /// Counts the entries that were appended, around at the end of its range.
    appended: u32,
    /// Entries up to here were evicted, or were published before the log began: the log is incomplete up to it. The time is
    /// by the broker's clock for a stored source.
    pub(super) evicted: Horizon,
    /// The position of each publisher id, and how many entries have it. For several equal ids, the position of the
    /// first, because resuming at the first repeats messages, while resuming at the last would lose them. It stays
    /// after the first is evicted; a resume then has a gap.
    pub(super) publisher_ids: HashMap<Box<str>, Holders>,
    /// Batches for readers at the same positions.
    batches: Batches,
    /// Evicted entries that readers with an interval still need, while there are such readers.
    retained: Option<Box<Retained>>,
    /// The index by topic, in a log that feeds others.
    pub(super) by_topic: Option<Box<ByTopic>>,
    /// Whether nothing has been evicted since it began.
    is_whole: bool,
    /// Whether older entries are still to be inserted before these. Ends when an entry is evicted.
    pub(super) taking_over: bool,
}

/// The entries of a log that have one publisher id.
#[derive(Debug)]
pub(super) struct Holders {
    /// The number of the first.
    first: Seq,
    /// How many of them the log holds.
    entries: usize,
}

impl TopicLog {
    /// An empty log that is complete after `evicted`.
    pub(super) fn new(
        filter: Filter,
        bounds: Bounds,
        usage: Arc<BufferUsage>,
        numbering: Arc<Numbering>,
        history: Option<Arc<History>>,
        evicted: Horizon,
    ) -> Self {
        let rule = bounds.rule.clone();
        let state = State {
            bounds,
            entries: VecDeque::new(),
            bytes: 0,
            appended: 0,
            evicted,
            publisher_ids: HashMap::new(),
            batches: Batches::new(usage.clone()),
            retained: None,
            by_topic: None,
            is_whole: true,
            taking_over: false,
        };
        TopicLog {
            end: if filter.is_pattern() { None } else { Some(TopicEnd::unknown()) },
            filter,
            rule,
            usage,
            numbering,
            history,
            newest: AtomicSeq::new(evicted.number),
            state: Mutex::new(state),
            compression: Mutex::default(),
            past: Mutex::default(),
            readers: Readers::default(),
        }
    }

    /// The filter of the log.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Its sequence. `None` until it is known; nobody reads before.
    pub(super) fn sequence(&self) -> Option<&Arc<Sequence>> {
        self.numbering.sequence()
    }

    /// Begins the log at the head of the stored source that its subscription follows, with that time.
    pub(super) fn begin(&self, sequence: &Arc<Sequence>, time: SystemTime) {
        let mut state = self.state.lock();
        let head = sequence.head();
        let begin = Horizon { number: head, time };
        state.evicted = begin;
        self.forget_retained(&mut state);
        state.taking_over = false;
        if let Some(by_topic) = &mut state.by_topic {
            by_topic.whole_from = begin;
        }
        self.newest.store(head);
        self.numbering.begin(sequence);
    }

    /// Appends an entry, and evicts entries beyond the bounds. Readers see the entry once it is published.
    pub(super) fn append(&self, entry: Arc<Entry>) {
        let mut state = self.state.lock();
        let weight = state.weight_of(&entry);
        if let Some(by_topic) = &mut state.by_topic {
            by_topic.append(&entry);
        }
        if let Some(publisher_id) = entry.message().and_then(Message::publisher_id) {
            let holders = state.publisher_ids.entry(publisher_id.into());
            holders.or_insert(Holders { first: entry.sequence, entries: 0 }).entries += 1;
        }
        let (now, sequence) = (entry.stamp.taken(), entry.sequence);
        if self.history.is_some() {
            // The messages that are missing in the gaps before it are older than this entry.
            let gaps = state.entries.iter().rev().take_while(|entry| entry.message().is_none());
            gaps.for_each(|gap| gap.stamp.bring_back(entry.time()));
        }
        if let Some(end) = &self.end {
            end.take(&entry);
        }
        state.entries.push_back(entry);
        state.bytes += weight;
        state.appended = state.appended.wrapping_add(1);
        self.usage.add(weight);
        self.evict_surplus(&mut state);
        self.evict_aged(&mut state, now);
        self.newest.store(sequence);
    }

    /// Whether only the broker knows if its topic has ended: it stores the topic's last message, and this log does not
    /// have it.
    pub(super) fn must_ask_for_end(&self) -> bool {
        self.history.is_some() && self.end.as_ref().is_some_and(TopicEnd::is_unknown)
    }

    /// Records whether the topic has ended according to the broker: the number of its last message, if that ended it.
    pub(super) fn learn_end(&self, end: Option<Seq>) {
        let _state = self.state.lock(); // like every other change of it
        self.end.iter().for_each(|topic| topic.learn_of_broker(end));
    }

    /// Changes its bounds.
    pub(super) fn set_bounds(&self, bounds: &Bounds) {
        let mut state = self.state.lock();
        state.bounds = bounds.clone();
        self.evict_surplus(&mut state);
    }

    /// How long it is kept after its last reader.
    pub(super) fn linger(&self) -> Duration {
        self.state.lock().bounds.linger
    }

    fn evict_surplus(&self, state: &mut State) {
        // The newest entry stays even if it alone exceeds the bound: its payload is allowed, but takes more in memory.
        // If it were evicted before it was read, every reader would have a gap.
        while state.entries.len() > state.bounds.messages
            || (state.bytes > state.bounds.bytes && state.entries.len() > 1)
        {
            self.evict_oldest(state);
        }
    }

    fn evict_oldest(&self, state: &mut State) {
        let Some(entry) = state.entries.pop_front() else { return };
        let weight = state.weight_of(&entry);
        (state.is_whole, state.taking_over) = (false, false);
        if let Some(by_topic) = &mut state.by_topic {
            by_topic.evict(&entry);
        }
        state.bytes -= weight;
        self.usage.sub(weight);
        state.evicted = Horizon { number: entry.sequence, time: entry.time() };
        if let Some(retained) = &mut state.retained {
            retained.insert(&entry, state.bounds.bytes);
        }
        if let Some(publisher_id) = entry.message().and_then(Message::publisher_id)
            && let Some(holders) = state.publisher_ids.get_mut(publisher_id)
        {
            holders.entries -= 1;
            if holders.entries == 0 {
                state.publisher_ids.remove(publisher_id);
            }
        }
    }

    fn evict_aged(&self, state: &mut State, now: Instant) {
        while let Some(oldest) = state.entries.front()
            && now.saturating_duration_since(oldest.stamp.taken()) > state.bounds.age
        {
            self.evict_oldest(state);
        }
    }

    /// Drops entries that are too old, and memory that quiet logs no longer need.
    pub(super) fn sweep(&self, now: Instant) {
        self.compression.lock().sweep(self.state.lock().appended, &self.usage);
        let mut state = self.state.lock();
        state.batches.clear();
        self.evict_aged(&mut state, now);
        if state.entries.capacity() > 64 && state.entries.len() * 4 < state.entries.capacity() {
            state.entries.shrink_to_fit();
        }
        state.by_topic.iter_mut().for_each(|by_topic| by_topic.shrink());
    }

    /// Drops the cached batches and the compressors.
    pub(super) fn clear_batches(&self) {
        self.compression.lock().clear();
        self.state.lock().batches.clear();
    }

    /// Evicts every entry up to and including `sequence`.
    pub(super) fn evict_through(&self, sequence: Seq) {
        let mut state = self.state.lock();
        state.batches.clear();
        while state.entries.front().is_some_and(|entry| entry.sequence <= sequence) {
            self.evict_oldest(&mut state);
        }
        self.forget_retained(&mut state);
    }

    /// Evicts every entry.
    pub(super) fn evict_all(&self) {
        self.evict_through(Seq::MAX);
    }

    /// Brings the times of all entries back to `latest`, because the clock was set back.
    pub(super) fn bring_back(&self, latest: SystemTime) {
        let mut state = self.state.lock();
        state.evicted.time = state.evicted.time.min(latest);
        state.entries.iter().for_each(|entry| entry.stamp.bring_back(latest));
    }

    /// The number of the oldest entry.
    pub(super) fn oldest(&self) -> Option<Seq> {
        self.state.lock().entries.front().map(|entry| entry.sequence)
    }

    /// The point after which the log is complete.
    pub(super) fn evicted(&self) -> Horizon {
        self.state.lock().evicted
    }

    /// Whether it has all that was published since it began.
    pub(super) fn is_whole(&self) -> bool {
        self.state.lock().is_whole
    }

    /// The event id of the message with this number, with its publisher id, if the message is here.
    pub(super) fn event_id(&self, number: Seq) -> Option<EventId> {
        let state = self.state.lock();
        let index = state.entries.binary_search_by_key(&number, |entry| entry.sequence).ok()?;
        state.entries[index].message().map(|message| message.event_id().clone())
    }

    /// Whether this is the number of an entry here, or the number after which the log is complete.
    pub(super) fn has(&self, number: Seq) -> bool {
        let state = self.state.lock();
        number == state.evicted.number
            || state.entries.binary_search_by_key(&number, |entry| entry.sequence).is_ok()
    }

    /// The number of the first message with this publisher id.
    pub(super) fn find_publisher_id(&self, publisher_id: &str) -> Option<Seq> {
        self.state.lock().publisher_ids.get(publisher_id).map(|holders| holders.first)
    }

    /// Whether the message with this number is here and has this publisher id.
    pub(super) fn has_publisher_id(&self, sequence: Seq, publisher_id: &str) -> bool {
        let state = self.state.lock();
        let index = state.entries.partition_point(|entry| entry.sequence < sequence);
        let entry = state.entries.get(index).filter(|entry| entry.sequence == sequence);
        entry.and_then(|entry| entry.message()?.publisher_id()) == Some(publisher_id)
    }

    /// The last number before `time`: a reader there continues with the first entry at `time` or later.
    pub(super) fn position_before(&self, time: SystemTime) -> Seq {
        let state = self.state.lock();
        let index = state.entries.partition_point(|entry| entry.time() < time);
        if index == 0 { state.evicted.number } else { state.entries[index - 1].sequence }
    }

    /// The sequences of the last `count` messages up to `head`, newest first.
    pub(super) fn last_messages(&self, count: usize, head: Seq) -> Vec<Seq> {
        let state = self.state.lock();
        let newest_first = state.entries.iter().rev();
        newest_first
            .filter(|entry| entry.sequence <= head && entry.message().is_some())
            .take(count)
            .map(|entry| entry.sequence)
            .collect()
    }

    /// Adds up to `count` items after `position` up to `head` to `items`. Returns the number up to which they are
    /// complete.
    pub(super) fn collect(&self, position: Seq, head: Seq, count: usize, items: &mut VecDeque<Item>) -> Seq {
        let head = self.numbering.end(head);
        if self.has_nothing_after(position) {
            return head;
        }
        let state = self.state.lock();
        if state.evicted.number > position {
            items.push_back(Item::Evicted(state.evicted.number));
        }
        let index = state.entries.partition_point(|entry| entry.sequence <= position);
        let mut left = count;
        for entry in state.entries.range(index..).take_while(|entry| entry.sequence <= head) {
            #[cfg(test)]
            super::tests::count_visit();
            items.push_back(Item::Entry(entry.clone()));
            left -= 1;
            if left == 0 {
                return entry.sequence;
            }
        }
        head
    }

    /// Checks without the lock whether nothing follows `position`. A reader that has caught up asks this after each
    /// event, and a reader of many topics for every quiet topic.
    pub(super) fn has_nothing_after(&self, position: Seq) -> bool {
        self.newest() <= position
    }

    /// The last number of the log.
    pub(super) fn newest(&self) -> Seq {
        self.newest.load()
    }

    /// Its subscription is confirmed: it is complete from now on. Called under the writer's lock.
    pub(super) fn begins(&self, now: SystemTime) {
        let mut state = self.state.lock();
        state.taking_over = false; // the log that feeds it does not have it either
        let head = self.numbering.head();
        let (number, time) = match state.entries.front() {
            Some(oldest) => (oldest.sequence.previous(), oldest.time().min(now)),
            None => (head, now),
        };
        let Horizon { number: before, time: before_time } = state.evicted;
        state.evicted = Horizon { number: before.max(number), time: before_time.max(time) };
        self.forget_retained(&mut state);
        self.newest.raise(state.evicted.number);
    }

    /// The handles of its readers.
    pub fn readers(&self) -> Vec<Arc<ReaderHandle>> {
        self.readers.handles()
    }

    /// Adds the log to the queue of logs whose readers must be woken, unless it is in it.
    pub(super) fn queue_wake(self: &Arc<Self>, queue: &mut VecDeque<Arc<TopicLog>>) {
        if self.readers.queue_wake() {
            queue.push_back(self.clone());
        }
    }
}

impl State {
    /// The bytes that `entry` counts for.
    fn weight_of(&self, entry: &Entry) -> usize {
        entry.weight() + if self.by_topic.is_some() { by_topic::WEIGHT } else { 0 }
    }
}

impl Drop for TopicLog {
    fn drop(&mut self) {
        self.usage.sub(self.state.get_mut().bytes);
    }
}
