//! The registry of logs: which filters are held, who reads them, and the one writer's way to them.
//!
//! It says what should be subscribed (through what it returns to its caller) and never talks to a broker itself. All
//! writing goes through its lock: one writer assigns a sequence and appends before it takes the next, so whoever sees
//! entry *n* can see every entry before it, in any log.

mod look;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use self::look::Reading;
use super::history::{Ask, History, Runs};
use super::lease::{Lease, Subscribed, Subscription};
use super::{Bounds, Entry, EntryKind, TopicLog, Usage};
use crate::config::Source;
use crate::message::Fields;
use crate::position::{Sequence, Tag};
use crate::signal::CloseCode;
use crate::sse::frame::{self, GapReason};
use crate::topic::{Filter, Topic};

/// When the logs together hold too much, they are brought to this part of the bound, so that it is not looked at again
/// for the very next message.
const RECLAIM_TO: f64 = 0.9;

/// Why there is no hold on a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// As many topics are held as may be. Those without a reader are about to be given up.
    #[error("as many topics are held as may be (limits.topics)")]
    Full,
    /// The subscription that feeds all topics of the rule is not there now.
    #[error("what feeds the topics of the rule is not there")]
    NotFed,
}

/// Every log of the process.
#[derive(Debug)]
pub struct Registry {
    /// Of what the broker does not keep.
    sequence: Arc<Sequence>,
    usage: Arc<Usage>,
    /// Of what it does keep.
    runs: Runs,
    asks: mpsc::Sender<Ask>,
    max_topics: AtomicUsize,
    max_bytes: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: HashMap<Filter, Slot>,
    /// Logs of which readers are still to be woken, each once.
    waking: VecDeque<Arc<TopicLog>>,
    /// Times never run backwards within the logs, whatever the system's clock or the broker's does: `since=` searches them.
    last_time: Option<SystemTime>,
}

/// A log, and what the registry knows of it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) log: Arc<TopicLog>,
    fields: Arc<Fields>,
    /// Of what the broker keeps, the time of the last message.
    stored_time: Option<SystemTime>,
    pub(super) readers: usize,
    /// Since when it has no reader.
    pub(super) idle_since: Instant,
    pub(super) subscribed: watch::Sender<Subscribed>,
    /// It stays without a reader too: its rule is warm.
    kept: bool,
    feed: Feed,
}

/// Where a log's messages come from.
#[derive(Debug)]
enum Feed {
    /// A subscription of its own, for as long as it is held.
    Own,
    /// A subscription of its own, of a rule that is warm, or was when it fed others. It feeds logs inside its pattern too.
    Warm(Fed),
    /// The warm log of this filter.
    By(Filter),
}

/// Logs that a warm one feeds.
#[derive(Debug, Default)]
struct Fed {
    topics: HashMap<Filter, Arc<TopicLog>>,
    patterns: Vec<Arc<TopicLog>>,
}

impl Fed {
    fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.patterns.is_empty()
    }
}

impl Slot {
    /// The log, behind those that it feeds.
    pub(super) fn logs(&self) -> impl Iterator<Item = &Arc<TopicLog>> {
        let fed = match &self.feed {
            Feed::Warm(fed) => Some(fed),
            Feed::Own | Feed::By(_) => None,
        };
        let fed = fed.into_iter().flat_map(|fed| fed.topics.values().chain(&fed.patterns));
        fed.chain(std::iter::once(&self.log))
    }
}

impl Inner {
    /// Takes a log out, and with a warm one those that it feeds: nothing would reach them any more. Returns them all.
    fn remove(&mut self, filter: &Filter) -> Vec<Arc<TopicLog>> {
        let Some(slot) = self.slots.remove(filter) else { return Vec::new() };
        match &slot.feed {
            Feed::Own => {}
            Feed::Warm(_) => {
                self.slots.retain(|_, other| !matches!(&other.feed, Feed::By(warm) if warm == filter));
            }
            Feed::By(warm) => {
                if let Some(Slot { feed: Feed::Warm(fed), .. }) = self.slots.get_mut(warm) {
                    fed.topics.remove(filter);
                    fed.patterns.retain(|log| log.filter != *filter);
                }
            }
        }
        slot.logs().cloned().collect()
    }
}

impl Registry {
    /// What `work` makes of the slot of `log`; `None` if the log was given up.
    pub(super) fn with_slot<T>(&self, log: &Arc<TopicLog>, work: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.slots.get_mut(&log.filter).filter(|slot| Arc::ptr_eq(&slot.log, log)).map(work)
    }

    /// Gives `log` up, if that has not happened yet.
    pub(super) fn forget(&self, log: &Arc<TopicLog>) {
        let mut inner = self.inner.lock();
        if inner.slots.get(&log.filter).is_some_and(|slot| Arc::ptr_eq(&slot.log, log)) {
            inner.remove(&log.filter);
        }
    }

    /// An empty one. What is to be fetched from the broker goes to `asks`.
    pub fn new(
        sequence: Sequence,
        max_topics: usize,
        max_bytes: usize,
        asks: mpsc::Sender<Ask>,
    ) -> Arc<Self> {
        Arc::new(Registry {
            sequence: Arc::new(sequence),
            usage: Arc::default(),
            runs: Runs::default(),
            asks,
            max_topics: AtomicUsize::new(max_topics),
            max_bytes: AtomicUsize::new(max_bytes),
            inner: Mutex::default(),
        })
    }

    /// From now on so many topics and bytes are held at most. Topics that are more stay for as long as they are read.
    pub fn set_bounds(&self, max_topics: usize, max_bytes: usize) {
        self.max_topics.store(max_topics, Ordering::Relaxed);
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.keep_bound();
    }

    /// Gives each log the bounds and fields that `settings` has for its filter. What is fetched from a history is to be
    /// encoded as what came live, so its fields stay.
    pub fn set_rules(&self, settings: impl Fn(&Filter) -> Option<(Bounds, Arc<Fields>)>) {
        for (filter, slot) in &mut self.inner.lock().slots {
            if let Some((bounds, fields)) = settings(filter)
                && fields.source == slot.fields.source
            {
                slot.log.set_bounds(&bounds);
                if !fields.source.is_stored() {
                    slot.fields = fields;
                }
            }
        }
    }

    /// The sequence of what the broker does not keep.
    pub fn sequence(&self) -> &Arc<Sequence> {
        &self.sequence
    }

    /// Topics and patterns held.
    pub fn topics(&self) -> usize {
        self.inner.lock().slots.len()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.usage.bytes()
    }

    /// A hold on the log of `filter`. If the log is new, also the duty to subscribe to it.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease(
        self: &Arc<Self>,
        filter: &Filter,
        bounds: &Bounds,
        fields: &Arc<Fields>,
        warm: Option<&Filter>,
    ) -> Result<(Lease, Option<Subscription>), LeaseError> {
        let mut inner = self.inner.lock();
        if let Some(slot) = inner.slots.get_mut(filter) {
            slot.readers += 1;
            return Ok((Lease::new(self.clone(), slot.log.clone()), None));
        }
        if inner.slots.len() >= self.max_topics.load(Ordering::Relaxed) {
            return Err(LeaseError::Full);
        }
        let warm =
            warm.filter(|warm| matches!(inner.slots.get(*warm).map(|slot| &slot.feed), Some(Feed::Warm(_))));
        let (log, feed) = match warm {
            Some(warm) => (self.feed_from(&mut inner, warm, filter, bounds, fields), Feed::By(warm.clone())),
            None if fields.source.is_shared() => return Err(LeaseError::NotFed),
            None => (self.empty_log(filter, bounds, fields), Feed::Own),
        };
        let subscribed = match warm.and_then(|warm| inner.slots.get(warm)) {
            Some(warm) => warm.subscribed.clone(),
            None => watch::Sender::new(Subscribed::Pending),
        };
        let own = matches!(feed, Feed::Own);
        let slot = Slot {
            log: log.clone(),
            fields: fields.clone(),
            stored_time: None,
            readers: 1,
            idle_since: Instant::now(),
            subscribed,
            kept: false,
            feed,
        };
        inner.slots.insert(filter.clone(), slot);
        let subscription = own.then(|| Subscription::new(self.clone(), log.clone()));
        Ok((Lease::new(self.clone(), log), subscription))
    }

    /// Makes the log of a rule warm: it stays, subscribed, until [`Registry::cool`] or until the broker ends its
    /// subscription ([`Registry::ended`]). If the log is new, the caller has the duty to subscribe to it.
    pub fn warm(
        self: &Arc<Self>,
        filter: &Filter,
        bounds: &Bounds,
        fields: &Arc<Fields>,
    ) -> Option<Subscription> {
        let mut inner = self.inner.lock();
        // A reader may have been here first.
        if let Some(slot) = inner.slots.get_mut(filter) {
            if slot.fields.source != fields.source {
                return None; // of a rule that is gone; it ends with its last reader
            }
            slot.kept = true;
            // One that another warm log feeds has its messages from there.
            if matches!(slot.feed, Feed::Own) {
                slot.feed = Feed::Warm(Fed::default());
            }
            return None;
        }
        let log = self.empty_log(filter, bounds, fields);
        let slot = Slot {
            log: log.clone(),
            fields: fields.clone(),
            stored_time: None,
            readers: 0,
            idle_since: Instant::now(),
            subscribed: watch::Sender::new(Subscribed::Pending),
            kept: true,
            feed: Feed::Warm(Fed::default()),
        };
        inner.slots.insert(filter.clone(), slot);
        Some(Subscription::new(self.clone(), log))
    }

    /// Ends what [`Registry::warm`] began: the log goes once nobody reads it nor one that it feeds.
    pub fn cool(&self, filter: &Filter) {
        if let Some(slot) = self.inner.lock().slots.get_mut(filter) {
            slot.kept = false;
        }
    }

    /// Waits until the log of `filter` is given up: nothing is subscribed for it any more.
    pub fn ended(&self, filter: &Filter) -> impl Future<Output = ()> + Send + use<> {
        let subscribed = self.inner.lock().slots.get(filter).map(|slot| slot.subscribed.subscribe());
        async move {
            // Its sender goes with the slot.
            if let Some(mut subscribed) = subscribed {
                while subscribed.changed().await.is_ok() {}
            }
        }
    }

    /// A log that begins now. It takes a number of its own, so that every id given out before is from before it: what
    /// was published to the filter while there was no log took none, and would not show. That of a history begins where its
    /// subscription does. Under the writer's lock.
    fn empty_log(&self, filter: &Filter, bounds: &Bounds, fields: &Arc<Fields>) -> Arc<TopicLog> {
        let history = self.history(fields);
        let (sequence, begin) = match history {
            Some(_) => (OnceLock::new(), 0),
            None => {
                let begin = self.sequence.next();
                self.sequence.publish(begin);
                (OnceLock::from(self.sequence.clone()), begin)
            }
        };
        let begin = (begin, SystemTime::now());
        let (filter, bounds, usage) = (filter.clone(), bounds.clone(), self.usage.clone());
        Arc::new(TopicLog::new(filter, bounds, usage, sequence, history, begin))
    }

    fn history(&self, fields: &Arc<Fields>) -> Option<History> {
        fields.source.is_stored().then(|| History::new(fields.clone(), self.asks.clone()))
    }

    /// A log that begins with what the warm one holds of its filter, and is fed by it from now on. Under the writer's
    /// lock, so that no message falls between the two.
    fn feed_from(
        &self,
        inner: &mut Inner,
        warm: &Filter,
        filter: &Filter,
        bounds: &Bounds,
        fields: &Arc<Fields>,
    ) -> Arc<TopicLog> {
        let Some(Slot { log: source, feed: Feed::Warm(fed), .. }) = inner.slots.get_mut(warm) else {
            return self.empty_log(filter, bounds, fields);
        };
        let log = Arc::new(source.narrowed(filter, bounds, self.history(fields)));
        if filter.is_pattern() {
            fed.patterns.push(log.clone());
        } else {
            fed.topics.insert(filter.clone(), log.clone());
        }
        log
    }

    /// The subscription of `filter` follows a history: its logs, which have no entry yet, begin at its head.
    pub fn begin(&self, filter: &Filter, tag: Tag, head: u64) {
        let mut inner = self.inner.lock();
        let Some(slot) = inner.slots.get_mut(filter) else { return };
        let sequence = match slot.fields.source {
            Source::RedisStream { .. } => Sequence::of_entry_ids(tag, head),
            Source::Pubsub | Source::Sharded | Source::JetStream { .. } | Source::Kv { .. } => {
                Sequence::stored(tag, head)
            }
        };
        let (sequence, now) = (Arc::new(sequence), SystemTime::now());
        slot.logs().for_each(|log| log.begin(&sequence, now));
        slot.subscribed.send_replace(Subscribed::Confirmed);
    }

    /// Appends a message of `topic` that came by the subscription of `filter`; `stored` says under which number the broker
    /// keeps it, and since when. `encode` is given its place. Nothing happens if nothing holds that filter any more.
    pub fn append(
        &self,
        filter: &Filter,
        topic: &Topic,
        stored: Option<(u64, SystemTime)>,
        encode: impl FnOnce(&Sequence, u64, SystemTime, &Fields) -> EntryKind,
    ) {
        let mut inner = self.inner.lock();
        let Inner { slots, waking, last_time } = &mut *inner;
        let Some(slot) = slots.get_mut(filter) else { return };
        let Some(sequence) = slot.log.sequence().cloned() else { return };
        let (number, time) = match stored {
            Some((number, time)) => (number, next_time(&mut slot.stored_time, time)),
            None => (sequence.next(), next_time(last_time, SystemTime::now())),
        };
        if number <= sequence.head() {
            return; // nothing comes twice, whatever a broker does
        }
        slot.log.rule.messages.inc();
        let entry = Entry::new(number, time, encode(&sequence, number, time, &slot.fields), &self.usage);
        if let Feed::Warm(fed) = &slot.feed {
            let topics = fed.topics.get(&Filter::from(topic.clone())).into_iter();
            for log in topics.chain(fed.patterns.iter().filter(|log| log.filter.matches(topic))) {
                log.append(entry.clone());
                log.queue_wake(waking);
            }
        }
        slot.log.append(entry);
        slot.log.queue_wake(waking);
        sequence.publish(number);
    }

    /// Marks that messages with numbers up to `through`, of `topic` if it is known, are not in the logs that the subscription of
    /// `filter` feeds from a history. Returns how many gaps that is.
    pub fn skip(&self, filter: &Filter, topic: Option<&Topic>, through: u64, reason: GapReason) -> usize {
        let mut inner = self.inner.lock();
        let Inner { slots, waking, .. } = &mut *inner;
        let Some(slot) = slots.get_mut(filter) else { return 0 };
        let Some(sequence) = slot.log.sequence().cloned().filter(|sequence| sequence.head() < through) else {
            return 0;
        };
        let time = next_time(&mut slot.stored_time, SystemTime::now());
        let id = sequence.event_id(through, None);
        let concerned = |log: &&Arc<TopicLog>| topic.is_none_or(|topic| log.filter.matches(topic));
        let mut gaps = 0;
        for log in slot.logs().filter(concerned) {
            let frame = frame::stream_gap(Some(&id), log.filter.as_str(), reason);
            log.append(Entry::new(through, time, EntryKind::Gap(reason, frame), &self.usage));
            log.rule.gaps.inc();
            log.queue_wake(waking);
            gaps += 1;
        }
        sequence.publish(through);
        gaps
    }

    /// The event id of what the broker gave `number`, as it comes by the subscription of `filter`; `None` while nothing
    /// follows that.
    pub fn event_id(&self, filter: &Filter, number: u64) -> Option<String> {
        let inner = self.inner.lock();
        Some(inner.slots.get(filter)?.log.sequence()?.event_id(number, None))
    }

    /// The history of `filter` is no more. Its readers are told to come back, and will find another or none.
    pub fn end(&self, filter: &Filter) {
        self.give_up(filter, CloseCode::Restarted);
    }

    /// Hands a part of a history to those who wait for it: what lies up to `through`, of which up to `gone` something is
    /// missing, and single messages behind that too if it is `torn`: then it is for readers who come from its beginning.
    pub fn recall(
        &self,
        ask: &Ask,
        through: u64,
        gone: u64,
        torn: bool,
        entries: impl IntoIterator<Item = (u64, SystemTime, EntryKind)>,
    ) {
        let entry = |(number, time, kind)| Entry::new(number, time, kind, &self.usage);
        let max_bytes = self.max_bytes.load(Ordering::Relaxed);
        self.runs.keep(ask, through, gone, torn, entries.into_iter().map(entry).collect(), max_bytes);
    }

    /// Marks that messages may be missing here: in the logs of `filters` and those that they feed, of `topic` if it is known,
    /// or in every log of plain publish/subscribe. Returns how many gaps that is.
    pub fn append_gap(&self, filters: Option<&[Filter]>, topic: Option<&Topic>, reason: GapReason) -> usize {
        let mut inner = self.inner.lock();
        let Inner { slots, waking, last_time } = &mut *inner;
        let time = next_time(last_time, SystemTime::now());
        let mut gaps = 0;
        let mut append = |log: &Arc<TopicLog>| {
            // Each has a number of its own, though they are one event: an id must tell which of them a client has seen.
            let sequence = self.sequence.next();
            let id = self.sequence.event_id(sequence, None);
            let frame = frame::stream_gap(Some(&id), log.filter.as_str(), reason);
            log.append(Entry::new(sequence, time, EntryKind::Gap(reason, frame), &self.usage));
            log.rule.gaps.inc();
            log.queue_wake(waking);
            self.sequence.publish(sequence);
            gaps += 1;
        };
        // A warm log comes behind those that it feeds: whoever has seen the gap of one of them and comes back when they are
        // gone is fed from it anew, and has its gap before them, for the others.
        match filters {
            None => {
                let plain = || slots.values().filter(|slot| slot.fields.source == Source::Pubsub);
                let is_warm = |slot: &&Slot| matches!(slot.feed, Feed::Warm(_));
                let (fed, warm) = (plain().filter(|slot| !is_warm(slot)), plain().filter(is_warm));
                fed.chain(warm).for_each(|slot| append(&slot.log));
            }
            // Looked up one by one: there may be as many as there are slots.
            Some(filters) => {
                let slots = filters.iter().filter_map(|filter| slots.get(filter));
                let logs = slots.filter(|slot| !slot.fields.source.is_stored()).flat_map(Slot::logs);
                logs.filter(|log| topic.is_none_or(|topic| log.filter.matches(topic))).for_each(append);
            }
        }
        gaps
    }

    /// Wakes up to `limit` of those who wait for what was appended. Returns whether there may be more, to be woken by
    /// another call: whoever is served late then finds what was appended meanwhile, and reads all of it at once.
    pub fn wake(&self, limit: usize) -> bool {
        let mut waking = std::mem::take(&mut self.inner.lock().waking);
        let mut left = limit;
        while left > 0
            && let Some(log) = waking.pop_front()
        {
            let (woken, more) = log.wake(left);
            left -= woken;
            if more {
                waking.push_back(log); // behind the others: a crowd on one topic must not hold up the next
            }
        }
        let mut inner = self.inner.lock();
        waking.append(&mut inner.waking);
        inner.waking = waking;
        !inner.waking.is_empty()
    }

    /// Frees memory if the logs hold more than they may together. Returns whether they did.
    pub fn keep_bound(&self) -> bool {
        let beyond = self.bytes() > self.max_bytes.load(Ordering::Relaxed);
        if beyond {
            self.reclaim();
        }
        beyond
    }

    /// The broker has ended the subscription of `filter`. Its readers are told to come back, which will tell them why.
    pub fn refuse(&self, filter: &Filter) {
        self.give_up(filter, CloseCode::Refused);
    }

    fn give_up(&self, filter: &Filter, code: CloseCode) {
        let mut inner = self.inner.lock();
        let removed = inner.remove(filter);
        removed.iter().for_each(|log| log.seal(log.sequence().map_or(0, |sequence| sequence.head())));
        drop(inner);
        removed.iter().for_each(|log| log.close(code));
    }

    /// Frees memory until the process-wide bound is kept: logs without a reader give way first, the longest idle first,
    /// then the oldest entries wherever they are.
    fn reclaim(&self) {
        let target = (self.max_bytes.load(Ordering::Relaxed) as f64 * RECLAIM_TO) as usize;
        let (mut idle, busy): (Vec<_>, Vec<_>) = {
            let inner = self.inner.lock();
            let logs = inner.slots.values().map(|slot| (slot.readers > 0, slot.idle_since, slot.log.clone()));
            logs.partition(|(read, ..)| !read)
        };
        // What is only put together anew costs nobody a message.
        idle.iter().chain(&busy).for_each(|(_, _, log)| log.clear_pieces());
        idle.sort_unstable_by_key(|(_, since, _)| *since);
        for (_, _, log) in &idle {
            if self.usage.bytes() <= target {
                return;
            }
            log.evict_through(u64::MAX);
        }
        let mut oldest_first: BinaryHeap<_> = busy
            .iter()
            .enumerate()
            .filter_map(|(index, (_, _, log))| log.oldest().map(|oldest| Reverse((oldest, index))))
            .collect();
        while self.usage.bytes() > target
            && let Some(Reverse((oldest, index))) = oldest_first.pop()
        {
            let log = &busy[index].2;
            log.evict_through(oldest);
            oldest_first.extend(log.oldest().map(|oldest| Reverse((oldest, index))));
        }
    }

    /// Gives up logs that have had no reader for their linger time, and ages the others. `unsubscribe` is called under
    /// the lock, so that whoever leases the filter next is behind it; it returns `false` to be asked again later. Returns
    /// as [`Registry::keep_bound`].
    pub fn sweep(&self, mut unsubscribe: impl FnMut(&Filter, &Source) -> bool) -> bool {
        let now = Instant::now();
        let logs: Vec<_> = {
            let mut inner = self.inner.lock();
            // Short of room for new topics, nothing lingers.
            let crowded = inner.slots.len() * 10 >= self.max_topics.load(Ordering::Relaxed) * 9;
            let idle = |slot: &Slot| {
                slot.readers == 0
                    && !slot.kept
                    && (crowded || now.saturating_duration_since(slot.idle_since) >= slot.log.linger())
            };
            // While one waits to be confirmed, its subscription is not there to be ended yet.
            let mut ends = |filter: &Filter, slot: &Slot| {
                idle(slot)
                    && *slot.subscribed.borrow() != Subscribed::Pending
                    && unsubscribe(filter, &slot.fields.source)
            };
            let ended: Vec<Filter> = inner
                .slots
                .iter()
                .filter(|(filter, slot)| match &slot.feed {
                    Feed::Warm(fed) => fed.is_empty() && ends(filter, slot),
                    Feed::By(_) => idle(slot),
                    Feed::Own => ends(filter, slot),
                })
                .map(|(filter, _)| filter.clone())
                .collect();
            ended.iter().for_each(|filter| drop(inner.remove(filter)));
            if inner.slots.capacity() > 1024 && inner.slots.len() * 4 < inner.slots.capacity() {
                inner.slots.shrink_to_fit();
            }
            inner.slots.values().map(|slot| slot.log.clone()).collect()
        };
        let now = SystemTime::now();
        logs.iter().for_each(|log| log.sweep(now));
        self.runs.sweep();
        // Readers can fill memory too, with envelopes.
        self.keep_bound()
    }
}

fn next_time(last: &mut Option<SystemTime>, now: SystemTime) -> SystemTime {
    let time = last.map_or(now, |last| last.max(now));
    *last = Some(time);
    time
}
