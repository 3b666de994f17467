//! The registry of all logs: it creates, feeds and releases them, counts their readers, and gives the one writer
//! access.
//!
//! It decides what should be subscribed, by the duties that it returns, but never talks to a broker itself. All writing
//! goes through its lock: the writer assigns a number and appends before it takes the next, so a reader that sees entry
//! *n* sees every entry before it, in any log.

mod departed;
mod fed;
mod feeding;
mod idle;
mod lease;
mod outages;
mod progress;
mod reclaim;
mod slot;
mod slots;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::departed::Departed;
use self::feeding::begin_now;
pub use self::idle::Idle;
pub use self::lease::{Lease, LeaseError, Subscription};
use self::outages::Outages;
pub use self::progress::ReaderProgress;
use self::slot::{Feed, Slot, Subscribed};
use self::slots::Slots;
use super::backfill::{BackfillRanges, BackfillRequest, History, Requests};
use super::message::FieldMapping;
use super::numbering::Numbering;
use super::time::{Horizon, Line};
use super::{Bounds, BufferUsage, TopicLog};
use crate::protocol::codes::CloseCode;
use crate::protocol::event_id::Sequence;
use crate::protocol::filter_index::FilterIndex;
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;

/// Every log of the process.
#[derive(Debug)]
pub struct Registry {
    /// The sequence of live sources.
    sequence: Arc<Sequence>,
    usage: Arc<BufferUsage>,
    /// The backfill ranges of stored sources.
    ranges: BackfillRanges,
    requests: Requests,
    max_topics: AtomicUsize,
    max_bytes: AtomicUsize,
    /// How often a feed has become stale or live.
    feed_changes: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: Slots,
    /// Logs whose readers must still be woken, each once.
    waking: VecDeque<Arc<TopicLog>>,
    /// The filters of warm logs.
    warm: FilterIndex<Filter>,
    /// Counts the changes of what feeds which filter.
    feeding: u32,
    /// The times of the entries that this process numbers.
    line: Line,
    /// Sequences of shared sources that have ended, until their replacements are followed.
    ended: HashMap<Filter, Arc<Sequence>>,
    /// Subscriptions that receive nothing now.
    outages: Outages,
    /// The topics that were held before.
    departed: Departed,
    /// Whether a reload has changed the source of topics since the process began.
    sources_changed: bool,
}

impl Registry {
    /// Calls `work` with the slot of `log`; `None` if the log was released.
    fn with_slot<T>(&self, log: &Arc<TopicLog>, work: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.slots.get_mut(&log.filter).filter(|slot| Arc::ptr_eq(&slot.log, log)).map(work)
    }

    /// Releases `log`, if the registry still has it.
    fn forget(&self, log: &Arc<TopicLog>) {
        self.take_out(&log.filter, |slot| Arc::ptr_eq(&slot.log, log));
    }

    /// An empty registry. Requests for stored messages go to `requests`.
    pub fn new(
        sequence: Sequence,
        max_topics: usize,
        max_bytes: usize,
        requests: mpsc::Sender<BackfillRequest>,
    ) -> Arc<Self> {
        let usage = Arc::<BufferUsage>::default();
        usage.compressors.set_bound(max_bytes);
        Arc::new(Registry {
            sequence: Arc::new(sequence),
            usage,
            ranges: BackfillRanges::default(),
            requests: Requests::new(requests),
            max_topics: AtomicUsize::new(max_topics),
            max_bytes: AtomicUsize::new(max_bytes),
            feed_changes: AtomicU32::new(0),
            inner: Mutex::default(),
        })
    }

    /// Changes the limits on topics and bytes. Topics beyond a lower limit stay as long as they are read.
    pub fn set_bounds(&self, max_topics: usize, max_bytes: usize) {
        self.max_topics.store(max_topics, Ordering::Relaxed);
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.usage.compressors.set_bound(max_bytes);
        self.keep_bound();
    }

    /// Applies the bounds and fields of `settings` to each log. Logs of stored sources keep their fields, because
    /// backfilled messages must be encoded like live ones. A log whose source has changed ends, and its readers
    /// reconnect. The lock is released in between.
    pub fn set_rules(&self, settings: impl Fn(&Filter) -> Option<(Bounds, Arc<FieldMapping>)>) {
        let mut at = 0;
        let found = |inner: &mut Inner, part| {
            let slots = inner.slots.part(part).map(|slot| (slot.log.clone(), slot.fields.clone()));
            slots.collect::<Vec<_>>()
        };
        while let Some((next, found)) = self.with_part(at, found) {
            at = next;
            for (log, before) in found {
                if let Some((bounds, fields)) = settings(&log.filter) {
                    self.set_rule_of(&log, &before, &bounds, fields);
                }
            }
        }
    }

    /// The same for one log, of a stream that was opened while the rules changed.
    pub fn set_rule(&self, filter: &Filter, bounds: &Bounds, fields: Arc<FieldMapping>) {
        let found = self.inner.lock().slots.get(filter).map(|slot| (slot.log.clone(), slot.fields.clone()));
        if let Some((log, before)) = found {
            self.set_rule_of(&log, &before, bounds, fields);
        }
    }

    fn set_rule_of(
        &self,
        log: &Arc<TopicLog>,
        before: &FieldMapping,
        bounds: &Bounds,
        fields: Arc<FieldMapping>,
    ) {
        if fields.source != before.source {
            let is_over = self.with_slot(log, |slot| {
                slot.is_over = !slot.kept;
                slot.is_over
            });
            if is_over == Some(true) {
                log.readers.close(CloseCode::Restarted);
            }
            return;
        }
        log.set_bounds(bounds);
        if !fields.source.is_stored() && *fields != *before {
            self.with_slot(log, |slot| slot.fields = fields);
        }
    }

    /// The sequence of live sources.
    pub fn sequence(&self) -> &Arc<Sequence> {
        &self.sequence
    }

    /// The number of topics and patterns that are held.
    pub fn topics(&self) -> usize {
        self.inner.lock().slots.len()
    }

    /// How many of these are not held yet.
    pub fn not_held(&self, filters: &[Filter]) -> usize {
        let inner = self.inner.lock();
        filters.iter().filter(|filter| inner.slots.get(filter).is_none()).count()
    }

    /// The bytes that all logs hold.
    pub fn bytes(&self) -> usize {
        self.usage.bytes()
    }

    /// The number of logs that are compressed now; a log counts once for each format.
    pub fn compressors(&self) -> usize {
        self.usage.compressors.count()
    }

    /// Sets by how many readers a batch must be read before a log is compressed; for tests and benchmarks.
    pub fn set_crowd(&self, readers: u32) {
        self.usage.compressors.set_crowd(readers);
    }

    /// Ends [`Registry::warm`]: the log is released once it has no readers, and the logs that it feeds have none.
    pub fn stop_warming(&self, filter: &Filter) {
        if let Some(slot) = self.inner.lock().slots.get_mut(filter) {
            slot.kept = false;
        }
    }

    /// Waits until the log of `filter` is released and no longer subscribed.
    pub fn ended(&self, filter: &Filter) -> impl Future<Output = ()> + Send + use<> {
        let mut inner = self.inner.lock();
        let slot = inner.slots.get_mut(filter);
        let end = slot.map(|slot| slot.end.get_or_insert_with(|| watch::Sender::new(())).subscribe());
        async move {
            // The sender is dropped with the slot.
            if let Some(mut end) = end {
                while end.changed().await.is_ok() {}
            }
        }
    }

    /// A slot for a new log with its own subscription.
    fn own_slot(&self, inner: &Inner, filter: &Filter, bounds: &Bounds, fields: &Arc<FieldMapping>) -> Slot {
        Slot {
            log: self.empty_log(&inner.line, filter, bounds, fields),
            fields: fields.clone(),
            line: Line::default(),
            readers: 0,
            asked_by: None,
            idle_since: Instant::now(),
            subscribed: watch::Sender::new(Subscribed::Pending),
            end: None,
            begun: inner.feeding,
            kept: false,
            is_over: false,
            feed: Feed::Own,
        }
    }

    /// A slot for a new log that the log of `warm` feeds from now on. Once it is ready, it also has the older messages
    /// of that log. Called under the writer's lock, so that no message is lost in between.
    fn fed_slot(&self, inner: &mut Inner, warm: Filter, filter: &Filter, bounds: &Bounds) -> Option<Slot> {
        let begun = inner.feeding;
        let Slot { log: source, fields, subscribed, feed: Feed::Warm(fed), .. } =
            inner.slots.get_mut(&warm)?
        else {
            return None;
        };
        // Its messages are encoded by the rule that is subscribed.
        let (fields, subscribed) = (fields.clone(), subscribed.clone());
        let history = self.history(filter, &fields, &source.numbering);
        let log = Arc::new(source.fed(filter, bounds, history, fed.complete_from(filter)));
        fed.add(&log);
        Some(Slot {
            log,
            fields,
            line: Line::default(),
            readers: 0,
            asked_by: None,
            idle_since: Instant::now(),
            subscribed,
            end: None,
            begun,
            kept: false,
            is_over: false,
            feed: Feed::By(warm),
        })
    }

    /// A log that begins now. It takes a number of its own, so that every id sent before is from before it: messages
    /// that were published to the filter while there was no log have no numbers, so a gap would not show otherwise. A
    /// log of a stored source begins where its subscription does. Called under the writer's lock.
    fn empty_log(
        &self,
        line: &Line,
        filter: &Filter,
        bounds: &Bounds,
        fields: &Arc<FieldMapping>,
    ) -> Arc<TopicLog> {
        // Where a history begins is set once it is known.
        let (numbering, number) = match fields.source.is_stored() {
            true => (Numbering::unknown(), Seq::START),
            false => (Numbering::by(self.sequence.clone()), begin_now(&self.sequence, line).number),
        };
        let history = self.history(filter, fields, &numbering);
        let begin = Horizon { number, time: line.now() };
        let (filter, bounds, usage) = (filter.clone(), bounds.clone(), self.usage.clone());
        Arc::new(TopicLog::new(filter, bounds, usage, numbering, history, begin))
    }

    /// The backfill of a log; `None` if the broker stores no messages.
    fn history(
        &self,
        filter: &Filter,
        fields: &Arc<FieldMapping>,
        numbering: &Arc<Numbering>,
    ) -> Option<Arc<History>> {
        let make = || {
            let (filter, fields, numbering) = (filter.clone(), fields.clone(), numbering.clone());
            History::new(filter, fields, numbering, self.requests.clone(), self.usage.clone())
        };
        fields.source.is_stored().then(make)
    }
}
