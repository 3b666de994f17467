//! A slot of the registry: a log, its readers and its feed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::fed::Children;
use crate::log::TopicLog;
use crate::log::message::FieldMapping;
use crate::log::time::Line;
use crate::protocol::codes::CloseCode;
use crate::protocol::topic::{Filter, Topic};

/// The state of a log's subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subscribed {
    Pending,
    Confirmed,
    Failed(CloseCode),
    /// The broker refused at this time. The subscription is tried again when a reader wants the log, or after a while.
    Refused(Instant),
}

/// A log with its state in the registry.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) log: Arc<TopicLog>,
    pub(super) fields: Arc<FieldMapping>,
    /// The times of stored messages, by the broker's clock.
    pub(super) line: Line,
    pub(super) readers: usize,
    /// The address of the client that requested it last.
    pub(super) asked_by: Option<IpAddr>,
    /// Since when it has had no reader.
    pub(super) idle_since: Instant,
    pub(super) subscribed: watch::Sender<Subscribed>,
    /// Dropped with the slot. Created if somebody waits for its end.
    pub(super) end: Option<watch::Sender<()>>,
    /// The value of [`super::Inner::feeding`] when it began.
    pub(super) begun: u32,
    /// It stays without a reader, because its rule is warm.
    pub(super) kept: bool,
    /// The source of its filter has changed: it is released as soon as it has no reader.
    pub(super) is_over: bool,
    pub(super) feed: Feed,
}

/// The shortest time between two attempts to subscribe to a filter that the broker refuses, however many readers want
/// it.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// The feed of a log.
#[derive(Debug)]
pub(super) enum Feed {
    /// Its own subscription, for as long as it is held.
    Own,
    /// Its own subscription, of a rule that is warm or was warm. It also feeds the logs inside its pattern.
    Warm(Children),
    /// The warm log of this filter.
    By(Filter),
}

impl Slot {
    /// Records that a reader wants the log. If the broker refused the subscription, it is tried again before the reader
    /// is answered, because the missing stream may have been created since.
    pub(super) fn want(&self) {
        self.subscribed.send_if_modified(|state| {
            let is_due = matches!(state, Subscribed::Refused(at) if at.elapsed() >= REFUSED_PAUSE);
            if is_due {
                *state = Subscribed::Pending;
            }
            is_due
        });
    }

    /// The log, after the logs that it feeds.
    pub(super) fn logs(&self) -> impl Iterator<Item = &Arc<TopicLog>> {
        let fed = match &self.feed {
            Feed::Warm(fed) => Some(fed),
            Feed::Own | Feed::By(_) => None,
        };
        let fed = fed.into_iter().flat_map(Children::logs);
        fed.chain(std::iter::once(&self.log))
    }

    /// Calls `work` with each of these logs that matches `topic`; with all of them if `topic` is not known.
    pub(super) fn logs_of<'a>(&'a self, topic: Option<&Topic>, mut work: impl FnMut(&'a Arc<TopicLog>)) {
        let Some(topic) = topic else { return self.logs().for_each(work) };
        if let Feed::Warm(fed) = &self.feed {
            fed.matching(topic, &mut work);
        }
        if self.log.filter().matches(topic) {
            work(&self.log);
        }
    }
}
