//! What the registry hands out: a reader's hold on a log, and the duty to subscribe to a new one.

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

/// How far the subscription of a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subscribed {
    Pending,
    Confirmed,
    Failed(CloseCode),
    /// The broker refused at this time. It is asked again once somebody wants to read it, or after a while.
    Refused(Instant),
}

/// A reader's hold on a log: as long as there is one, the log stays subscribed.
#[derive(Debug)]
pub struct Lease {
    registry: Arc<Registry>,
    log: Arc<TopicLog>,
}

impl Lease {
    /// The registry has counted this reader.
    pub(super) fn new(registry: Arc<Registry>, log: Arc<TopicLog>) -> Self {
        log.rule.readers.inc();
        Lease { registry, log }
    }

    /// The log.
    pub(super) fn log(&self) -> &Arc<TopicLog> {
        &self.log
    }

    /// Its sequence. Until a history is followed, which is before it is [`Lease::ready`], that of the process stands for it.
    pub(super) fn sequence(&self) -> &Arc<Sequence> {
        self.log.sequence().unwrap_or(self.registry.sequence())
    }

    /// The filter whose messages it holds.
    pub fn filter(&self) -> &Filter {
        &self.log.filter
    }

    /// Once nobody reads it any more, it lingers for `address`, unless another one asks for it after.
    pub fn asked_by(&self, address: IpAddr) {
        self.registry.with_slot(&self.log, |slot| slot.asked_by = Some(address));
    }

    /// Waits until the log's subscription is confirmed, and until it has what the log that feeds it held before.
    ///
    /// # Errors
    /// Why it could not be subscribed.
    pub async fn ready(&self) -> Result<(), CloseCode> {
        let receiver = self.registry.with_slot(&self.log, |slot| slot.subscribed.subscribe());
        // Taken out of the registry meanwhile: its subscription has failed.
        let Some(mut receiver) = receiver else { return Err(CloseCode::Unavailable) };
        match receiver.wait_for(|state| *state != Subscribed::Pending).await.as_deref() {
            Ok(Subscribed::Failed(code)) => return Err(*code),
            Ok(Subscribed::Refused(_)) => return Err(CloseCode::Refused),
            Ok(_) => {}
            Err(_) => return Err(CloseCode::Unavailable),
        }
        while !self.log.take_over() {
            yield_now().await; // others have their turn
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

/// The duty to subscribe to a new log's filter. Dropped without a word it counts as failed, so nobody waits for ever.
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

    /// What to subscribe to.
    pub fn filter(&self) -> &Filter {
        &self.log.filter
    }

    /// The broker refuses for now: its readers are told so at once, and the duty to subscribe stays.
    pub fn refuse(&self) {
        let refused = Subscribed::Refused(Instant::now());
        self.registry.with_slot(&self.log, |slot| slot.subscribed.send_replace(refused));
    }

    /// Waits until somebody wants to read what was refused.
    pub async fn wanted(&self) {
        let receiver = self.registry.with_slot(&self.log, |slot| slot.subscribed.subscribe());
        let wanted = match receiver {
            Some(mut receiver) => receiver.wait_for(|state| *state == Subscribed::Pending).await.is_ok(),
            None => false,
        };
        if !wanted {
            std::future::pending::<()>().await; // nobody can want it any more
        }
    }

    /// The broker has confirmed. What it keeps is confirmed by [`Registry::begin`] alone, which knows where it begins.
    pub fn confirm(mut self) {
        self.outcome = Subscribed::Confirmed;
    }

    /// The broker could not or would not.
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
