//! Leases: a stream's claim on a log, and the duty to subscribe that comes with a new log. The registry creates both.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use thiserror::Error;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::Registry;
use super::slot::{Feed, Slot, Subscribed};
use crate::log::backfill::History;
use crate::log::message::FieldMapping;
use crate::log::{Bounds, TopicLog};
use crate::protocol::codes::CloseCode;
use crate::protocol::event_id::Sequence;
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;

/// Why a log cannot be leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// The limit of topics is reached. Topics without a reader are about to be released.
    #[error("the gateway holds too many topics (limits.topics)")]
    Full,
    /// The subscription that feeds all topics of the rule is down, or the topic is still read from another source.
    #[error("the subscription that feeds the topics of the rule is down")]
    NotFed,
}

impl Registry {
    /// Leases the log of `filter`. If the log is new, also returns the duty to subscribe to it.
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
            if slot.log.numbering.sealed().is_none() {
                if slot.is_over {
                    return Err(LeaseError::NotFed);
                }
                slot.readers += 1;
                slot.want();
                return Ok((Lease::new(self.clone(), slot.log.clone()), None));
            }
            ended = inner.remove(filter, &self.sequence); // the log that fed it is gone
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
        // There is usually little to take over, and it is done when the lease is ready.
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
        // A reader may have created the log first.
        if let Some(slot) = inner.slots.get_mut(filter) {
            // A log of a rule that is gone ends with its last reader, and so does one that another warm log feeds: then
            // this is called again.
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
}

/// A stream's claim on a log: as long as there is a lease, the log stays subscribed.
#[derive(Debug)]
pub struct Lease {
    pub(super) registry: Arc<Registry>,
    log: Arc<TopicLog>,
}

impl Lease {
    /// Creates a lease that the registry has already counted.
    pub(super) fn new(registry: Arc<Registry>, log: Arc<TopicLog>) -> Self {
        log.rule.readers.inc();
        Lease { registry, log }
    }

    /// The log.
    pub(in crate::log) fn log(&self) -> &Arc<TopicLog> {
        &self.log
    }

    /// The sequence of its log. For a stored source that is not followed yet, and so not [`Lease::ready`], it is the
    /// sequence of the process.
    pub(in crate::log) fn sequence(&self) -> &Arc<Sequence> {
        self.log.sequence().unwrap_or(self.registry.sequence())
    }

    /// The filter of its log.
    pub fn filter(&self) -> &Filter {
        &self.log.filter
    }

    /// Records that `address` requested the log: the log lingers for the last address that requested it.
    pub fn asked_by(&self, address: IpAddr) {
        self.registry.with_slot(&self.log, |slot| slot.asked_by = Some(address));
    }

    /// Waits until the log's subscription is confirmed, and until it has taken over the older messages of the warm log
    /// that feeds it.
    ///
    /// # Errors
    /// The code of the failure to subscribe.
    pub async fn ready(&self) -> Result<(), CloseCode> {
        let receiver = self.registry.with_slot(&self.log, |slot| slot.subscribed.subscribe());
        // The log was removed from the registry: its subscription has failed.
        let Some(mut receiver) = receiver else { return Err(CloseCode::Unavailable) };
        match receiver.wait_for(|state| *state != Subscribed::Pending).await.as_deref() {
            Ok(Subscribed::Failed(code)) => return Err(*code),
            Ok(Subscribed::Refused(_)) => return Err(CloseCode::Refused),
            Ok(_) => {}
            Err(_) => return Err(CloseCode::Unavailable),
        }
        while !self.log.take_over() {
            yield_now().await; // let other tasks run
        }
        Ok(())
    }
}

impl Lease {
    /// The number of the message that ended the topic, if it has ended as far as the log knows.
    pub fn end(&self) -> Option<Seq> {
        self.log.end.as_ref()?.at()
    }

    /// The question whether the topic has ended, if only the broker can answer it. Readers ask it one after the other:
    /// usually the answer to the first is enough for all.
    pub async fn asks_for_end(&self) -> Option<EndQuestion<'_>> {
        if !self.log.must_ask_for_end() {
            return None;
        }
        let history = self.log.history.as_deref()?;
        let turn = history.asking_for_end.lock().await;
        self.log.must_ask_for_end().then_some(EndQuestion { log: &self.log, history, _turn: turn })
    }
}

/// The question whether the last message of a topic in the broker ended the topic.
#[derive(Debug)]
pub struct EndQuestion<'a> {
    log: &'a TopicLog,
    history: &'a History,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl EndQuestion<'_> {
    /// Where messages of the topic are marked as its end.
    pub fn fields(&self) -> &FieldMapping {
        self.history.fields()
    }

    /// `end` is the number of the message that ended the topic. `None`: it has not ended.
    pub fn answer(self, end: Option<Seq>) {
        self.log.learn_end(end);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.log.rule.readers.dec();
        self.registry.with_slot(&self.log, |slot| {
            slot.readers -= 1;
            slot.idle_since = Instant::now();
        });
    }
}

/// The duty to subscribe to the filter of a new log. If it is dropped, the subscription counts as failed, so that
/// nobody waits for ever.
#[derive(Debug)]
pub struct Subscription {
    registry: Arc<Registry>,
    log: Arc<TopicLog>,
    outcome: Outcome,
}

/// The state of the duty to subscribe.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Failed(CloseCode),
    /// The log of a live source begins with the broker's answer.
    Begins,
    /// The log of a stored source begins where the broker says: with [`Registry::begin`], before this or after.
    BeginsInHistory,
}

impl Subscription {
    fn new(registry: Arc<Registry>, log: Arc<TopicLog>) -> Self {
        Subscription { registry, log, outcome: Outcome::Failed(CloseCode::Unavailable) }
    }

    /// The filter to subscribe to.
    pub fn filter(&self) -> &Filter {
        &self.log.filter
    }

    /// Records that the broker refuses for now: readers are refused at once, and the duty to subscribe remains.
    pub fn refuse(&self) {
        let refused = Subscribed::Refused(Instant::now());
        self.registry.with_slot(&self.log, |slot| slot.subscribed.send_replace(refused));
    }

    /// Waits until a reader wants the log that was refused.
    pub async fn wanted(&self) {
        let receiver = self.registry.with_slot(&self.log, |slot| slot.subscribed.subscribe());
        let wanted = match receiver {
            Some(mut receiver) => receiver.wait_for(|state| *state == Subscribed::Pending).await.is_ok(),
            None => false,
        };
        if !wanted {
            std::future::pending::<()>().await; // no reader can come any more
        }
    }

    /// Records that the broker has accepted the subscription. That confirms a live source; a stored source is confirmed by
    /// [`Registry::begin`], which knows where it begins.
    pub fn accepted(mut self) {
        let is_stored = self.log.history.is_some();
        self.outcome = if is_stored { Outcome::BeginsInHistory } else { Outcome::Begins };
    }

    /// Records that the subscription failed.
    pub fn fail(mut self, code: CloseCode) {
        self.outcome = Outcome::Failed(code);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        match self.outcome {
            Outcome::BeginsInHistory => {}
            Outcome::Begins => {
                self.registry.with_slot(&self.log, |slot: &mut Slot| {
                    slot.subscribed.send_replace(Subscribed::Confirmed);
                    slot.logs().for_each(|log| log.begins(SystemTime::now()));
                });
            }
            Outcome::Failed(code) => {
                let failed = Subscribed::Failed(code);
                self.registry.with_slot(&self.log, |slot| slot.subscribed.send_replace(failed));
                self.registry.forget(&self.log);
            }
        }
    }
}
