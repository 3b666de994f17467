//! The topic log: the one structure for live delivery and for replay.
//!
//! A log holds the last entries of one filter, each once and encoded, in the order of its sequence: that of the process, or
//! that of the history which the broker keeps. A gap is an entry too, so every reader meets it at its place. Reading past
//! what was evicted is an outcome of its own ([`Item::Evicted`]), never a jump; where the broker keeps the history, it is
//! read from there ([`history`]).
//!
//! One writer appends ([`Registry`], for ingest); any number of readers read at positions of their own. The log knows
//! nothing of brokers, HTTP or configuration.

mod cursor;
mod history;
mod lease;
mod look;
mod open;
mod piece;
mod registry;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use slab::Slab;

pub use self::cursor::{Batch, Cursors, Read};
use self::history::History;
pub use self::history::{ASK_CAPACITY, Ask};
pub use self::lease::{Lease, Subscription};
pub use self::look::{Lag, LogState, UpstreamState};
pub use self::open::{Opened, questions};
use self::piece::{Piece, Pieces};
pub use self::registry::{LeaseError, Reading, Registry};
use crate::message::{Format, Message};
use crate::metrics::RuleMetrics;
use crate::position::Sequence;
use crate::signal::{CloseCode, Signal};
use crate::sse::frame::{self, Coding, Frame, GapReason};
use crate::topic::Filter;

/// Bytes up to which entries are handed over in one piece. Small, because a reader that stops in the middle of one holds
/// on to it; large enough that a write call is cheap beside what it writes.
const BATCH_BYTES: usize = 64 * 1024;

/// For each reader that may be woken at once, how many are looked at.
const LOOKS: usize = 16;

/// How much a log holds, as its rule says. Whichever bound is met first counts.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Entries.
    pub messages: usize,
    /// Bytes, as held in memory. Envelopes count only among what all logs hold together: readers make them, not writers.
    pub bytes: usize,
    /// Age of the oldest entry.
    pub age: Duration,
    /// How long a log outlives its last reader.
    pub linger: Duration,
    /// Counters of the rule.
    pub rule: RuleMetrics,
}

/// One entry. Shared between logs that both hold it.
#[derive(Debug)]
pub struct Entry {
    /// Its number in the log's sequence.
    pub sequence: u64,
    /// When the broker took it, where it says so; else when it was taken in.
    pub time: SystemTime,
    /// What it is.
    pub kind: EntryKind,
    /// Counts its envelope, which may be made at any time and lives as long as the last log that holds it.
    usage: Arc<Usage>,
}

/// What an entry is.
#[derive(Debug)]
pub enum EntryKind {
    /// A message.
    Message(Message),
    /// Messages are missing here.
    Gap(GapReason, Frame),
}

impl Entry {
    fn new(sequence: u64, time: SystemTime, kind: EntryKind, usage: &Arc<Usage>) -> Arc<Self> {
        let entry = Entry { sequence, time, kind, usage: usage.clone() };
        let envelope = entry.message().map_or(0, Message::envelope_weight);
        usage.0.fetch_add(envelope, Ordering::Relaxed);
        Arc::new(entry)
    }

    fn frame(&self, format: Format) -> &Frame {
        match &self.kind {
            EntryKind::Message(message) => {
                message.frame(format, |weight| _ = self.usage.0.fetch_add(weight, Ordering::Relaxed))
            }
            EntryKind::Gap(_, frame) => frame,
        }
    }

    /// The event with another id, for a reader of several sequences. `filter` is that of the log it was read from.
    fn frame_with_id(&self, format: Format, filter: &Filter, id: &str) -> Frame {
        match &self.kind {
            EntryKind::Message(_) => self.frame(format).with_id(id),
            EntryKind::Gap(reason, _) => frame::stream_gap(Some(id), filter.as_str(), *reason),
        }
    }

    fn weight(&self) -> usize {
        size_of::<Self>()
            + match &self.kind {
                EntryKind::Message(message) => message.weight(),
                EntryKind::Gap(_, frame) => frame.weight(),
            }
    }

    fn message(&self) -> Option<&Message> {
        match &self.kind {
            EntryKind::Message(message) => Some(message),
            EntryKind::Gap(..) => None,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let envelope = self.message().map_or(0, Message::envelope_weight);
        self.usage.0.fetch_sub(envelope, Ordering::Relaxed);
    }
}

/// What a reader finds next in a log.
#[derive(Debug, Clone)]
enum Item {
    /// An entry.
    Entry(Arc<Entry>),
    /// Everything up to this sequence is gone, and the reader had not read it all.
    Evicted(u64),
}

impl Item {
    /// Its place in the order of the sequence. What was evicted stands where its last entry stood: no later entry of
    /// the log can come before it. It stands before another log's entry of the same number.
    fn place(&self) -> (u64, bool) {
        match self {
            Item::Entry(entry) => (entry.sequence, true),
            Item::Evicted(through) => (*through, false),
        }
    }
}

/// Bytes held by all logs together.
#[derive(Debug, Default)]
pub struct Usage(AtomicUsize);

impl Usage {
    /// Bytes now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The log of one filter. Shared as an `Arc`; the lock is held for a few lines at a time and never across an await.
#[derive(Debug)]
pub struct TopicLog {
    filter: Filter,
    /// Under which its messages and readers are counted, for as long as it lives.
    rule: RuleMetrics,
    usage: Arc<Usage>,
    /// Whose numbers its entries have. Set when its subscription begins, at the latest: nobody reads before.
    sequence: OnceLock<Arc<Sequence>>,
    /// Of what the broker keeps.
    history: Option<History>,
    /// The last sequence that the log knows of: of its newest entry, or where it began. Stored after the entry is in and
    /// before it is published.
    newest: AtomicU64,
    /// Up to where it is complete if its subscription has ended, else `u64::MAX`.
    sealed: AtomicU64,
    state: Mutex<State>,
    /// Apart from `state`, so that waking thousands does not hold up the first of them in reading.
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Readers {
    signals: Slab<Arc<Signal>>,
    /// While readers are being woken in parts: the key of the next one.
    waking: Option<usize>,
    /// More was appended since the first of them was woken, so they are all to be woken once more.
    again: bool,
    /// Nothing will be appended any more. Whoever joins is told so like those who had joined.
    ended: Option<CloseCode>,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    /// In ascending order of sequence.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Entries up to this sequence were evicted, or were published before the log began: what is at or before it is not
    /// all here.
    evicted: u64,
    /// The time of the entry `evicted`, or when the log began.
    evicted_time: SystemTime,
    /// Where a publisher's id stands, and how many entries have it. The first of several equal ids, since to resume
    /// there repeats what to resume at the last would lose; also once the first is evicted, which then is told.
    publisher_ids: HashMap<Box<str>, (u64, usize)>,
    /// What was put together for readers, for others at the same places.
    pieces: Pieces,
}

impl TopicLog {
    /// An empty log that is complete from `evicted` on.
    fn new(
        filter: Filter,
        bounds: Bounds,
        usage: Arc<Usage>,
        sequence: OnceLock<Arc<Sequence>>,
        history: Option<History>,
        (evicted, evicted_time): (u64, SystemTime),
    ) -> Self {
        let rule = bounds.rule.clone();
        let state = State {
            bounds,
            entries: VecDeque::new(),
            bytes: 0,
            evicted,
            evicted_time,
            publisher_ids: HashMap::new(),
            pieces: Pieces::new(usage.clone()),
        };
        TopicLog {
            filter,
            rule,
            usage,
            sequence,
            history,
            newest: AtomicU64::new(evicted),
            sealed: AtomicU64::new(u64::MAX),
            state: Mutex::new(state),
            readers: Mutex::default(),
        }
    }

    /// The filter whose messages it holds.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// What wakes each of its readers.
    pub fn readers(&self) -> Vec<Arc<Signal>> {
        self.readers.lock().signals.iter().map(|(_, signal)| signal.clone()).collect()
    }

    /// Its sequence. `None` as long as it is not known, which is while nobody reads it.
    fn sequence(&self) -> Option<&Arc<Sequence>> {
        self.sequence.get()
    }

    /// Its subscription follows a history that is at its head: the log begins there.
    fn begin(&self, sequence: &Arc<Sequence>, now: SystemTime) {
        let mut state = self.state.lock();
        let head = sequence.head();
        (state.evicted, state.evicted_time) = (head, now);
        self.newest.store(head, Ordering::Release);
        let _ = self.sequence.set(sequence.clone());
    }

    /// Appends, and evicts what is then beyond the bounds. Readers see the entry once it is published.
    fn append(&self, entry: Arc<Entry>) {
        let mut state = self.state.lock();
        let weight = entry.weight();
        if let Some(publisher_id) = entry.message().and_then(Message::publisher_id) {
            state.publisher_ids.entry(publisher_id.into()).or_insert((entry.sequence, 0)).1 += 1;
        }
        let (now, sequence) = (entry.time, entry.sequence);
        state.entries.push_back(entry);
        state.bytes += weight;
        self.usage.0.fetch_add(weight, Ordering::Relaxed);
        self.evict_surplus(&mut state);
        self.evict_aged(&mut state, now);
        self.newest.store(sequence, Ordering::Release);
    }

    /// From now on it holds so much.
    fn set_bounds(&self, bounds: &Bounds) {
        let mut state = self.state.lock();
        state.bounds = bounds.clone();
        self.evict_surplus(&mut state);
    }

    /// How long it outlives its last reader.
    fn linger(&self) -> Duration {
        self.state.lock().bounds.linger
    }

    fn evict_surplus(&self, state: &mut State) {
        // The newest stays even if it is more than the bound alone: its payload was allowed, and in memory it is more
        // than that. Evicted before it was read, it would be a gap for everyone.
        while state.entries.len() > state.bounds.messages
            || (state.bytes > state.bounds.bytes && state.entries.len() > 1)
        {
            self.evict_oldest(state);
        }
    }

    fn evict_oldest(&self, state: &mut State) {
        let Some(entry) = state.entries.pop_front() else { return };
        let weight = entry.weight();
        state.bytes -= weight;
        self.usage.0.fetch_sub(weight, Ordering::Relaxed);
        state.evicted = entry.sequence;
        state.evicted_time = entry.time;
        if let Some(publisher_id) = entry.message().and_then(Message::publisher_id)
            && let Some((_, held)) = state.publisher_ids.get_mut(publisher_id)
        {
            *held -= 1;
            if *held == 0 {
                state.publisher_ids.remove(publisher_id);
            }
        }
    }

    fn evict_aged(&self, state: &mut State, now: SystemTime) {
        while let Some(oldest) = state.entries.front()
            && now.duration_since(oldest.time).is_ok_and(|age| age > state.bounds.age)
        {
            self.evict_oldest(state);
        }
    }

    /// Drops what has grown too old, and memory that quiet logs need no more.
    fn sweep(&self, now: SystemTime) {
        let mut state = self.state.lock();
        state.pieces.clear();
        self.evict_aged(&mut state, now);
        if state.entries.capacity() > 64 && state.entries.len() * 4 < state.entries.capacity() {
            state.entries.shrink_to_fit();
        }
    }

    /// Gives up what was put together for readers.
    fn clear_pieces(&self) {
        self.state.lock().pieces.clear();
    }

    /// Evicts every entry up to and with `sequence`.
    fn evict_through(&self, sequence: u64) {
        let mut state = self.state.lock();
        state.pieces.clear();
        while state.entries.front().is_some_and(|entry| entry.sequence <= sequence) {
            self.evict_oldest(&mut state);
        }
    }

    /// The oldest entry's sequence.
    fn oldest(&self) -> Option<u64> {
        self.state.lock().entries.front().map(|entry| entry.sequence)
    }

    /// Where the log begins to be complete, and when that was.
    fn evicted(&self) -> (u64, SystemTime) {
        let state = self.state.lock();
        (state.evicted, state.evicted_time)
    }

    /// Where the first message stands that its publisher called so.
    fn find_publisher_id(&self, publisher_id: &str) -> Option<u64> {
        self.state.lock().publisher_ids.get(publisher_id).map(|(sequence, _)| *sequence)
    }

    /// Whether the message of that number is held, and its publisher called it so.
    fn has_publisher_id(&self, sequence: u64, publisher_id: &str) -> bool {
        let state = self.state.lock();
        let index = state.entries.partition_point(|entry| entry.sequence < sequence);
        let entry = state.entries.get(index).filter(|entry| entry.sequence == sequence);
        entry.and_then(|entry| entry.message()?.publisher_id()) == Some(publisher_id)
    }

    /// The last sequence before `time`: a reader there reads on with what came at `time` or later.
    fn position_before(&self, time: SystemTime) -> u64 {
        let state = self.state.lock();
        let index = state.entries.partition_point(|entry| entry.time < time);
        if index == 0 { state.evicted } else { state.entries[index - 1].sequence }
    }

    /// The sequences of the last `count` messages up to `head`, newest first.
    fn last_messages(&self, count: usize, head: u64) -> Vec<u64> {
        let state = self.state.lock();
        let newest_first = state.entries.iter().rev();
        newest_first
            .filter(|entry| entry.sequence <= head && entry.message().is_some())
            .take(count)
            .map(|entry| entry.sequence)
            .collect()
    }

    /// A log of `filter`, which lies inside this one's, that begins with what this one holds of it. A gap here concerns
    /// all of it, so the new log is complete from the last gap on.
    fn narrowed(&self, filter: &Filter, bounds: &Bounds, history: Option<History>) -> TopicLog {
        let state = self.state.lock();
        let last_gap = state.entries.iter().rposition(|entry| entry.message().is_none());
        let (evicted, time) = match last_gap.map(|index| &state.entries[index]) {
            Some(gap) => (gap.sequence, gap.time),
            None => (state.evicted, state.evicted_time),
        };
        let (usage, sequence) = (self.usage.clone(), self.sequence.clone());
        let log = TopicLog::new(filter.clone(), bounds.clone(), usage, sequence, history, (evicted, time));
        let complete = state.entries.range(last_gap.map_or(0, |index| index + 1)..);
        complete
            .filter(|entry| entry.message().is_some_and(|message| filter.matches(message.topic())))
            .for_each(|entry| log.append(entry.clone()));
        log
    }

    /// Puts into `items` what follows `position` up to `head`, about `budget` bytes of it. Returns how far that is
    /// everything.
    fn collect(&self, position: u64, head: u64, format: Format, budget: usize, items: &mut Vec<Item>) -> u64 {
        let head = head.min(self.sealed.load(Ordering::Acquire));
        if self.has_nothing_after(position) {
            return head;
        }
        let state = self.state.lock();
        if state.evicted > position {
            items.push(Item::Evicted(state.evicted));
        }
        let index = state.entries.partition_point(|entry| entry.sequence <= position);
        let mut bytes = 0;
        for entry in state.entries.range(index..) {
            if entry.sequence > head {
                break;
            }
            items.push(Item::Entry(entry.clone()));
            bytes += entry.frame(format).weight();
            if bytes >= budget {
                return entry.sequence;
            }
        }
        head
    }

    /// The entries that follow `position` up to `head`, in one piece that the readers at the same place share.
    fn piece(&self, position: u64, head: u64, format: Format, coding: Coding) -> Result<Option<Piece>, u64> {
        if self.has_nothing_after(position) {
            return Ok(None);
        }
        let mut state = self.state.lock();
        if state.evicted > position {
            return Err(state.evicted);
        }
        let State { entries, pieces, .. } = &mut *state;
        Ok(pieces.of(entries, position, head, format, coding))
    }

    /// Answers without the lock what a reader that has caught up asks after each event, and one of many topics of all
    /// those that nothing was published to.
    fn has_nothing_after(&self, position: u64) -> bool {
        self.newest() <= position
    }

    /// The last sequence that it knows of.
    fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Its subscription is confirmed: what came before is not all here.
    fn begins(&self, now: SystemTime) {
        let mut state = self.state.lock();
        let begin = state.entries.front().map_or(now, |oldest| oldest.time.min(now));
        state.evicted_time = state.evicted_time.max(begin);
    }

    /// Its subscription has ended, and it is complete up to `head` only: no reader may say that it has read further.
    fn seal(&self, head: u64) {
        self.sealed.store(head, Ordering::Release);
    }

    /// Up to where it is complete, if its subscription has ended.
    fn sealed(&self) -> Option<u64> {
        Some(self.sealed.load(Ordering::Acquire)).filter(|end| *end != u64::MAX)
    }

    /// Tells its readers to come back.
    fn close(&self, code: CloseCode) {
        let mut readers = self.readers.lock();
        readers.ended = Some(code);
        readers.signals.iter().for_each(|(_, signal)| signal.close(code));
    }

    fn join(&self, signal: Arc<Signal>) -> usize {
        let mut readers = self.readers.lock();
        readers.ended.into_iter().for_each(|code| signal.close(code));
        readers.signals.insert(signal)
    }

    fn leave(&self, key: usize) {
        let readers = &mut self.readers.lock().signals;
        readers.try_remove(key);
        if readers.is_empty() {
            readers.shrink_to_fit();
        }
    }

    /// Puts itself behind those whose readers are to be woken, unless it is there.
    fn queue_wake(self: &Arc<Self>, queue: &mut VecDeque<Arc<TopicLog>>) {
        let mut readers = self.readers.lock();
        match readers.waking {
            // Also without a reader: one that joins now may see the head from before this entry, and then sleep.
            None => {
                readers.waking = Some(0);
                queue.push_back(self.clone());
            }
            Some(next) => readers.again |= next > 0,
        }
    }

    /// Wakes up to `limit` of the readers that wait, from where it stopped the last time, or stops after a while of those
    /// that do not wait. Returns how many were woken, and whether there may be more.
    fn wake(&self, limit: usize) -> (usize, bool) {
        let mut readers = self.readers.lock();
        let mut woken = 0;
        let first = readers.waking.unwrap_or_default();
        let mut key = first;
        while woken < limit && key - first < limit.saturating_mul(LOOKS) {
            if key >= readers.signals.capacity() {
                readers.waking = std::mem::take(&mut readers.again).then_some(0);
                return (woken, readers.waking.is_some());
            }
            woken += usize::from(readers.signals.get(key).is_some_and(|signal| signal.entry()));
            key += 1;
        }
        readers.waking = Some(key);
        (woken, true)
    }
}

impl Drop for TopicLog {
    fn drop(&mut self) {
        self.usage.0.fetch_sub(self.state.get_mut().bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tokio::sync::mpsc;

    use crate::config::{Field, Source};
    use crate::message::{Fields, Found};
    use crate::position::{Epoch, Sequence, Start};
    use crate::topic::Topic;

    const MESSAGES: u64 = 2_000;

    fn full_registry() -> (Arc<Registry>, Lease) {
        let registry = Registry::new(Sequence::new(Epoch::random()), 10, usize::MAX, mpsc::channel(1).0);
        let lease = lease(&registry);
        append(&registry, "a", MESSAGES);
        (registry, lease)
    }

    fn append(registry: &Arc<Registry>, topic: &str, count: u64) {
        let topic = Topic::parse(topic, 9).unwrap();
        for _ in 0..count {
            registry.append(&topic.clone().into(), &topic, None, |_, sequence, time, _| {
                let id = registry.sequence().event_id(sequence, None);
                EntryKind::Message(Message::new(topic.clone(), time, id, Found::default(), &[b'x'; 200]))
            });
        }
    }

    fn read(cursors: &mut Cursors) -> Option<Batch> {
        match cursors.read(Format::Raw, Coding::Chunked, &Arc::default()) {
            Read::Batch(batch) => Some(batch),
            Read::Nothing | Read::Fetching => None,
        }
    }

    fn lease(registry: &Arc<Registry>) -> Lease {
        lease_of(registry, "a")
    }

    fn lease_of(registry: &Arc<Registry>, topic: &str) -> Lease {
        let age = Duration::from_secs(60);
        let bounds = Bounds {
            messages: usize::MAX,
            bytes: usize::MAX,
            age,
            linger: age,
            rule: RuleMetrics::default(),
        };
        let fields =
            Fields { source: Source::Pubsub, id: Field::Header("a".into()), kind: Field::Header("b".into()) };
        let (lease, subscription) =
            registry.lease(&Filter::parse(topic, 9).unwrap(), &bounds, &Arc::new(fields), None).unwrap();
        if let Some(subscription) = subscription {
            subscription.confirm();
        }
        lease
    }

    /// Where each piece that the reader is given lies in memory, to the end.
    fn places(registry: &Arc<Registry>, start: &Start) -> Vec<(*const u8, usize)> {
        let opened = Cursors::open(vec![lease(registry)], &Arc::default(), start, &[]);
        let mut cursors = opened.cursors;
        let read = || read(&mut cursors);
        std::iter::from_fn(read).map(|batch| (batch.bytes.as_ptr(), batch.bytes.len())).collect()
    }

    #[test]
    fn readers_who_go_through_the_same_places_share_every_piece() {
        let (registry, _lease) = full_registry();
        let first = places(&registry, &Start::All);
        assert!(first.len() > 4, "{}", first.len());
        assert_eq!(places(&registry, &Start::All), first);
    }

    #[test]
    fn a_reader_who_starts_elsewhere_comes_to_the_places_of_the_others() {
        let (registry, _lease) = full_registry();
        let middle = Start::After(Some(registry.sequence().event_id(MESSAGES / 2, None)));
        // The later starter builds one piece of its own, whichever of the two it is.
        let from_middle = places(&registry, &middle);
        let from_start = places(&registry, &Start::All);
        let shared = from_start.iter().filter(|place| from_middle.contains(place)).count();
        assert!(shared >= from_middle.len() - 1, "{shared} of {}", from_middle.len());
        let inside = Start::After(Some(registry.sequence().event_id(MESSAGES / 2 + 3, None)));
        let from_inside = places(&registry, &inside);
        assert_eq!(from_inside[1..], from_middle[1..]);
    }

    fn reader(registry: &Arc<Registry>, start: &Start) -> Cursors {
        Cursors::open(vec![lease(registry)], &Arc::default(), start, &[]).cursors
    }

    #[test]
    fn who_is_served_late_reads_what_came_meanwhile_in_one_piece_and_the_early_ones_share_the_rest() {
        let (registry, _lease) = full_registry();
        let mut readers: Vec<_> = (0..4).map(|_| reader(&registry, &Start::Now)).collect();
        let mut read = |index: usize| {
            read(&mut readers[index]).map(|batch| {
                let Batch { bytes, entries, .. } = batch;
                (entries, bytes.as_ptr())
            })
        };
        append(&registry, "a", 40);
        assert_eq!((read(0).unwrap().0, read(1).unwrap().0), (40, 40));
        append(&registry, "a", 10);
        let (late, later) = (read(2).unwrap(), read(3).unwrap());
        assert_eq!((late.0, late), (50, later));
        let (rest, other_rest) = (read(0).unwrap(), read(1).unwrap());
        assert_eq!((rest.0, rest), (10, other_rest));
        assert!((0..4).all(|index| read(index).is_none()));
    }

    #[test]
    fn a_piece_is_not_built_anew_for_a_little_more() {
        let (registry, _lease) = full_registry();
        let mut readers: Vec<_> = (0..2).map(|_| reader(&registry, &Start::Now)).collect();
        let mut entries = |index: usize| read(&mut readers[index]).unwrap().entries;
        append(&registry, "a", 40);
        assert_eq!(entries(0), 40);
        append(&registry, "a", 9);
        assert_eq!((entries(1), entries(1)), (40, 9));
    }

    #[test]
    fn readers_are_woken_in_parts_all_of_them_and_again_for_what_came_between() {
        let (registry, _lease) = full_registry();
        while registry.wake(usize::MAX) {}
        let (crowd, other) = (lease(&registry), lease_of(&registry, "b"));
        let waits = |log: &TopicLog| {
            let signal = Arc::new(Signal::default());
            signal.await_entries();
            log.join(signal.clone());
            signal
        };
        let crowd: Vec<_> = (0..10).map(|_| waits(crowd.log())).collect();
        let alone = waits(other.log());
        // Asking takes the wish away, so who is asked and still waited is put back.
        let woken = |signal: &Arc<Signal>| {
            !signal.entry() || {
                signal.await_entries();
                false
            }
        };
        append(&registry, "a", 1);
        assert!(registry.wake(4));
        assert_eq!(crowd.iter().filter(|signal| woken(signal)).count(), 4);
        append(&registry, "b", 1);
        crowd[0].await_entries();
        append(&registry, "a", 1);
        assert!(registry.wake(4), "six of the first pass, and the one that waits again");
        assert!(registry.wake(1));
        assert!(woken(&alone), "a crowd on one topic does not hold up another");
        while registry.wake(4) {}
        assert!(crowd.iter().all(woken));
        assert!(!registry.wake(1));
    }

    #[test]
    fn pieces_count_among_the_bytes_that_are_held_and_go_with_the_next_sweep() {
        let (registry, _lease) = full_registry();
        let before = registry.bytes();
        let pieces = places(&registry, &Start::All);
        let joined: usize = pieces.iter().rev().take(piece::PIECES).map(|(_, length)| length).sum();
        assert!(registry.bytes() >= before + joined / 2, "{joined}");
        registry.sweep(|_, _| true);
        assert_eq!(registry.bytes(), before);
    }
}
