//! Leases: a stream's claim on a log, and the duty to subscribe that comes with a new log. The registry creates both.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::yield_now;
use tokio::time::Instant;

use super::TopicLog;
use super::registry::{Registry, Slot};
use crate::protocol::codes::CloseCode;
use crate::protocol::event_id::Sequence;
use crate::protocol::topic::Filter;

/// The state of a log's subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subscribed {
    Pending,
    Confirmed,
    Failed(CloseCode),
    /// The broker refused at this time. The subscription is tried again when a reader wants the log, or after a while.
    Refused(Instant),
}

/// A stream's claim on a log: as long as there is a lease, the log stays subscribed.
#[derive(Debug)]
pub struct Lease {
    registry: Arc<Registry>,
    log: Arc<TopicLog>,
}

impl Lease {
    /// Creates a lease that the registry has already counted.
    pub(super) fn new(registry: Arc<Registry>, log: Arc<TopicLog>) -> Self {
        log.rule.readers.inc();
        Lease { registry, log }
    }

    /// The log.
    pub(super) fn log(&self) -> &Arc<TopicLog> {
        &self.log
    }

    /// The sequence of its log. For a stored source that is not followed yet, and so not [`Lease::ready`], it is the
    /// sequence of the process.
    pub(super) fn sequence(&self) -> &Arc<Sequence> {
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
    outcome: Subscribed,
}

impl Subscription {
    pub(super) fn new(registry: Arc<Registry>, log: Arc<TopicLog>) -> Self {
        Subscription { registry, log, outcome: Subscribed::Failed(CloseCode::Unavailable) }
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

    /// Records that the broker has confirmed. A stored source is confirmed only by [`Registry::begin`], which knows
    /// where it begins.
    pub fn confirm(mut self) {
        self.outcome = Subscribed::Confirmed;
    }

    /// Records that the subscription failed.
    pub fn fail(mut self, code: CloseCode) {
        self.outcome = Subscribed::Failed(code);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let failed = matches!(self.outcome, Subscribed::Failed(_));
        if !failed && self.log.history.is_some() {
            return;
        }
        self.registry.with_slot(&self.log, |slot: &mut Slot| {
            slot.subscribed.send_replace(self.outcome);
            if !failed {
                slot.logs().for_each(|log| log.begins(SystemTime::now()));
            }
        });
        if failed {
            self.registry.forget(&self.log);
        }
    }
}
