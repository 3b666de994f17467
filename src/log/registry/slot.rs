//! A log, and what the registry knows of it: who reads it and what feeds it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::fed::Children;
use crate::log::TopicLog;
use crate::log::lease::Subscribed;
use crate::log::message::FieldMapping;
use crate::log::time::Line;
use crate::protocol::topic::{Filter, Topic};

/// A log, and what the registry knows of it.
#[derive(Debug)]
pub(in crate::log) struct Slot {
    pub(in crate::log) log: Arc<TopicLog>,
    pub(super) fields: Arc<FieldMapping>,
    /// The times of what the broker keeps, by its clock.
    pub(super) line: Line,
    pub(in crate::log) readers: usize,
    /// Who asked for it last, if that was a client.
    pub(in crate::log) asked_by: Option<IpAddr>,
    /// Since when it has no reader.
    pub(in crate::log) idle_since: Instant,
    pub(in crate::log) subscribed: watch::Sender<Subscribed>,
    /// Goes with it. Made for who waits for that.
    pub(super) end: Option<watch::Sender<()>>,
    /// [`super::Inner::feeding`] when it began.
    pub(super) begun: u32,
    /// It stays without a reader too: its rule is warm.
    pub(super) kept: bool,
    /// Its filter is to be read from another source: it goes as soon as it has no reader.
    pub(super) is_over: bool,
    pub(super) feed: Feed,
}

/// The least time between two questions for what the broker refuses, however many want to read it.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Where a log's messages come from.
#[derive(Debug)]
pub(super) enum Feed {
    /// A subscription of its own, for as long as it is held.
    Own,
    /// A subscription of its own, of a rule that is warm, or was when it fed others. It feeds logs inside its pattern too.
    Warm(Children),
    /// The warm log of this filter.
    By(Filter),
}

impl Slot {
    /// Somebody wants to read it. If the broker refused what feeds it, it is asked again before they are answered: what was
    /// missing may have been made since.
    pub(super) fn want(&self) {
        self.subscribed.send_if_modified(|state| {
            let is_due = matches!(state, Subscribed::Refused(at) if at.elapsed() >= REFUSED_PAUSE);
            if is_due {
                *state = Subscribed::Pending;
            }
            is_due
        });
    }

    /// The log, behind those that it feeds.
    pub(in crate::log) fn logs(&self) -> impl Iterator<Item = &Arc<TopicLog>> {
        let fed = match &self.feed {
            Feed::Warm(fed) => Some(fed),
            Feed::Own | Feed::By(_) => None,
        };
        let fed = fed.into_iter().flat_map(Children::logs);
        fed.chain(std::iter::once(&self.log))
    }

    /// Calls `work` with each of these logs that a message of `topic` is for; with all of them, if it is not known.
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
