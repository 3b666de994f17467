//! The registry of logs: which filters are held, who reads them, and the one writer's way to them.
//!
//! It says what should be subscribed (through what it returns to its caller) and never talks to a broker itself. All
//! writing goes through its lock: one writer assigns a sequence and appends before it takes the next, so whoever sees
//! entry *n* can see every entry before it, in any log.

mod fed;
mod feeding;
mod idle;
mod progress;
mod reclaim;
mod slot;
mod slots;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::feeding::begin_now;
pub use self::idle::{Due, Idle};
pub use self::progress::ReaderProgress;
use self::slot::Feed;
pub(super) use self::slot::Slot;
use self::slots::Slots;
use super::backfill::{BackfillRanges, BackfillRequest, History};
use super::lease::{Lease, Subscribed, Subscription};
use super::message::FieldMapping;
use super::time::Line;
use super::{Bounds, BufferUsage, TopicLog};
use crate::protocol::codes::CloseCode;
use crate::protocol::event_id::Sequence;
use crate::protocol::filter_index::FilterIndex;
use crate::protocol::topic::Filter;

/// Why there is no hold on a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// As many topics are held as may be. Those without a reader are about to be given up.
    #[error("as many topics are held as may be (limits.topics)")]
    Full,
    /// The subscription that feeds all topics of the rule is not there now, or the topic is still read from another source.
    #[error("what feeds the topics of the rule is not there")]
    NotFed,
}

/// Every log of the process.
#[derive(Debug)]
pub struct Registry {
    /// Of what the broker does not keep.
    sequence: Arc<Sequence>,
    usage: Arc<BufferUsage>,
    /// Of what it does keep.
    ranges: BackfillRanges,
    requests: mpsc::Sender<BackfillRequest>,
    max_topics: AtomicUsize,
    max_bytes: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    slots: Slots,
    /// Logs of which readers are still to be woken, each once.
    waking: VecDeque<Arc<TopicLog>>,
    /// Filters of warm logs.
    warm: FilterIndex<Filter>,
    /// How often it has changed what feeds which filter.
    feeding: u32,
    /// The times of what this process numbers.
    line: Line,
    /// Histories of shared sources that have ended, until what is in their place is followed.
    ended: HashMap<Filter, Arc<Sequence>>,
}

impl Registry {
    /// What `work` makes of the slot of `log`; `None` if the log was given up.
    pub(super) fn with_slot<T>(&self, log: &Arc<TopicLog>, work: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.slots.get_mut(&log.filter).filter(|slot| Arc::ptr_eq(&slot.log, log)).map(work)
    }

    /// Gives `log` up, if that has not happened yet.
    pub(super) fn forget(&self, log: &Arc<TopicLog>) {
        self.take_out(&log.filter, |slot| Arc::ptr_eq(&slot.log, log));
    }

    /// An empty one. What is to be fetched from the broker goes to `requests`.
    pub fn new(
        sequence: Sequence,
        max_topics: usize,
        max_bytes: usize,
        requests: mpsc::Sender<BackfillRequest>,
    ) -> Arc<Self> {
        Arc::new(Registry {
            sequence: Arc::new(sequence),
            usage: Arc::default(),
            ranges: BackfillRanges::default(),
            requests,
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
    /// encoded as what came live, so its fields stay. A log that is to be read from another source is over: its readers are told
    /// to come back. The lock is let go in between.
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

    /// The same for one log, of a stream that was opened while other rules came to hold.
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
                log.close(CloseCode::Restarted);
            }
            return;
        }
        log.set_bounds(bounds);
        if !fields.source.is_stored() && *fields != *before {
            self.with_slot(log, |slot| slot.fields = fields);
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

    /// How many of these are not held yet.
    pub fn not_held(&self, filters: &[Filter]) -> usize {
        let inner = self.inner.lock();
        filters.iter().filter(|filter| inner.slots.get(filter).is_none()).count()
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
        fields: &Arc<FieldMapping>,
        warm: Option<&Filter>,
    ) -> Result<(Lease, Option<Subscription>), LeaseError> {
        let mut inner = self.inner.lock();
        let mut ended = None;
        if let Some(slot) = inner.slots.get_mut(filter) {
            if slot.log.sealed().is_none() {
                if slot.is_over {
                    return Err(LeaseError::NotFed);
                }
                slot.readers += 1;
                slot.want();
                return Ok((Lease::new(self.clone(), slot.log.clone()), None));
            }
            ended = inner.remove(filter, &self.sequence); // what fed it is gone
        }
        if inner.slots.len() >= self.max_topics.load(Ordering::Relaxed) {
            return Err(LeaseError::Full);
        }
        let warm = warm.and_then(|warm| inner.feeder(warm, &fields.source));
        let slot = match warm.and_then(|warm| self.fed_slot(&mut inner, warm, filter, bounds)) {
            Some(slot) => slot,
            None if fields.source.is_shared() => return Err(LeaseError::NotFed),
            None => self.own_slot(&inner, filter, bounds, fields),
        };
        let log = slot.log.clone();
        let subscription =
            matches!(slot.feed, Feed::Own).then(|| Subscription::new(self.clone(), log.clone()));
        slot.want();
        inner.slots.insert(Slot { readers: 1, ..slot });
        drop(inner);
        drop(ended);
        // What there is to take over is little as a rule, and who waits until it is ready finds it done.
        log.take_over();
        Ok((Lease::new(self.clone(), log), subscription))
    }

    /// Makes the log of a rule warm: it stays, subscribed, until [`Registry::stop_warming`] or until the broker ends its
    /// subscription ([`Registry::ended`]). If the log is new, the caller has the duty to subscribe to it.
    pub fn warm(
        self: &Arc<Self>,
        filter: &Filter,
        bounds: &Bounds,
        fields: &Arc<FieldMapping>,
    ) -> Option<Subscription> {
        let mut inner = self.inner.lock();
        // A reader may have been here first.
        if let Some(slot) = inner.slots.get_mut(filter) {
            // One of a rule that is gone ends with its last reader, and so does one that another warm log feeds: then this is
            // asked again.
            let is_ours = slot.fields.source == fields.source && !matches!(slot.feed, Feed::By(_));
            if is_ours && !slot.kept {
                slot.kept = true;
                inner.begin_to_feed(filter, &self.sequence);
            }
            return None;
        }
        let slot = Slot { kept: true, ..self.own_slot(&inner, filter, bounds, fields) };
        let log = slot.log.clone();
        inner.slots.insert(slot);
        inner.begin_to_feed(filter, &self.sequence);
        Some(Subscription::new(self.clone(), log))
    }

    /// Ends what [`Registry::warm`] began: the log goes once nobody reads it nor one that it feeds.
    pub fn stop_warming(&self, filter: &Filter) {
        if let Some(slot) = self.inner.lock().slots.get_mut(filter) {
            slot.kept = false;
        }
    }

    /// Waits until the log of `filter` is given up: nothing is subscribed for it any more.
    pub fn ended(&self, filter: &Filter) -> impl Future<Output = ()> + Send + use<> {
        let mut inner = self.inner.lock();
        let slot = inner.slots.get_mut(filter);
        let end = slot.map(|slot| slot.end.get_or_insert_with(|| watch::Sender::new(())).subscribe());
        async move {
            // Its sender goes with the slot.
            if let Some(mut end) = end {
                while end.changed().await.is_ok() {}
            }
        }
    }

    /// What is held of a log with a subscription of its own, which begins now.
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

    /// What is held of a log that is fed by the one of `warm` from now on, and has what that holds of its filter once it is ready.
    /// Under the writer's lock, so that no message falls between the two.
    fn fed_slot(&self, inner: &mut Inner, warm: Filter, filter: &Filter, bounds: &Bounds) -> Option<Slot> {
        let begun = inner.feeding;
        let Slot { log: source, fields, subscribed, feed: Feed::Warm(fed), .. } =
            inner.slots.get_mut(&warm)?
        else {
            return None;
        };
        // As its messages come: encoded for the rule that is subscribed.
        let (fields, subscribed) = (fields.clone(), subscribed.clone());
        let history = self.history(&fields);
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

    /// A log that begins now. It takes a number of its own, so that every id given out before is from before it: what
    /// was published to the filter while there was no log took none, and would not show. That of a history begins where its
    /// subscription does. Under the writer's lock.
    fn empty_log(
        &self,
        line: &Line,
        filter: &Filter,
        bounds: &Bounds,
        fields: &Arc<FieldMapping>,
    ) -> Arc<TopicLog> {
        let history = self.history(fields);
        let (sequence, begin) = match history {
            Some(_) => (OnceLock::new(), 0),
            None => (OnceLock::from(self.sequence.clone()), begin_now(&self.sequence, line).0),
        };
        let begin = (begin, line.now());
        let (filter, bounds, usage) = (filter.clone(), bounds.clone(), self.usage.clone());
        Arc::new(TopicLog::new(filter, bounds, usage, sequence, history, begin))
    }

    fn history(&self, fields: &Arc<FieldMapping>) -> Option<History> {
        fields.source.is_stored().then(|| History::new(fields.clone(), self.requests.clone()))
    }
}
