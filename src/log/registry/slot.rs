//! A log, and what the registry knows of it: who reads it and what feeds it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;

use super::super::TopicLog;
use super::super::lease::Subscribed;
use crate::message::Fields;
use crate::topic::Filter;

/// A log, and what the registry knows of it.
#[derive(Debug)]
pub(in crate::log) struct Slot {
    pub(in crate::log) log: Arc<TopicLog>,
    pub(super) fields: Arc<Fields>,
    /// Of what the broker keeps, the time of the last message.
    pub(super) stored_time: Option<SystemTime>,
    pub(in crate::log) readers: usize,
    /// Since when it has no reader.
    pub(in crate::log) idle_since: Instant,
    pub(in crate::log) subscribed: watch::Sender<Subscribed>,
    /// It stays without a reader too: its rule is warm.
    pub(super) kept: bool,
    pub(super) feed: Feed,
}

/// Where a log's messages come from.
#[derive(Debug)]
pub(super) enum Feed {
    /// A subscription of its own, for as long as it is held.
    Own,
    /// A subscription of its own, of a rule that is warm, or was when it fed others. It feeds logs inside its pattern too.
    Warm(Fed),
    /// The warm log of this filter.
    By(Filter),
}

/// Logs that a warm one feeds.
#[derive(Debug, Default)]
pub(super) struct Fed {
    pub(super) topics: HashMap<Filter, Arc<TopicLog>>,
    pub(super) patterns: Vec<Arc<TopicLog>>,
}

impl Fed {
    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.patterns.is_empty()
    }
}

impl Slot {
    /// The log, behind those that it feeds.
    pub(in crate::log) fn logs(&self) -> impl Iterator<Item = &Arc<TopicLog>> {
        let fed = match &self.feed {
            Feed::Warm(fed) => Some(fed),
            Feed::Own | Feed::By(_) => None,
        };
        let fed = fed.into_iter().flat_map(|fed| fed.topics.values().chain(&fed.patterns));
        fed.chain(std::iter::once(&self.log))
    }
}
