//! The state of logs for operators: their size and rate, their source, and the lag of their readers. Nothing of
//! delivery depends on it.

use std::time::{Duration, SystemTime};

use super::TopicLog;
use crate::protocol::seq::Seq;
use crate::protocol::topic::Filter;

/// The longest time over which the rate of a log is measured.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// The lag of a reader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Unread entries in the logs.
    pub messages: usize,
    /// The age of the oldest unread entry.
    pub time: Duration,
}

impl Lag {
    /// The lag of a reader of two logs.
    pub fn and(self, other: Lag) -> Lag {
        Lag { messages: self.messages + other.messages, time: self.time.max(other.time) }
    }
}

/// The state of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogState {
    /// Its topic or pattern.
    pub filter: Filter,
    /// The number of streams that read it.
    pub readers: usize,
    /// Entries held.
    pub messages: usize,
    /// Bytes held.
    pub bytes: usize,
    /// Entries per second over the last ten seconds, or over the time that the log covers.
    pub rate: f64,
    /// The age of the oldest entry; `None` if there is none.
    pub oldest: Option<Duration>,
    /// The source of its messages.
    pub upstream: UpstreamState,
    /// How long it has had no reader; `None` if it has one.
    pub idle: Option<Duration>,
    /// Whether its topic has ended.
    pub ended: bool,
}

/// The source of a log's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamState {
    /// The broker has not confirmed its subscription yet.
    Pending,
    /// Its own subscription.
    Subscribed,
    /// Its own subscription, kept because its rule is warm.
    Warm,
    /// The warm log of its rule.
    Children,
    /// The broker does not allow the gateway to read it.
    Refused,
    /// The broker, or its part of it, has been away for a while.
    Stale,
}

impl UpstreamState {
    /// The name of the state.
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamState::Pending => "pending",
            UpstreamState::Subscribed => "subscribed",
            UpstreamState::Warm => "warm",
            UpstreamState::Children => "fed",
            UpstreamState::Refused => "refused",
            UpstreamState::Stale => "stale",
        }
    }
}

impl TopicLog {
    /// The lag of a reader at `position`.
    pub(crate) fn lag(&self, position: Seq) -> Lag {
        if self.has_nothing_after(position) {
            return Lag::default();
        }
        let state = self.state.lock();
        let index = state.entries.partition_point(|entry| entry.sequence <= position);
        let since = state.entries.get(index).map(|entry| entry.stamp.taken().elapsed());
        Lag { messages: state.entries.len() - index, time: since.unwrap_or_default() }
    }

    /// Its state, with what the registry adds.
    pub(crate) fn state(&self, readers: usize, upstream: UpstreamState, idle: Option<Duration>) -> LogState {
        let state = self.state.lock();
        let now = SystemTime::now();
        // Nothing is known of the time before the last eviction.
        let from =
            now.checked_sub(RATE_WINDOW).map_or(state.evicted.time, |from| from.max(state.evicted.time));
        let lately = state.entries.len() - state.entries.partition_point(|entry| entry.time() <= from);
        let seconds = now.duration_since(from).unwrap_or_default().as_secs_f64();
        LogState {
            filter: self.filter.clone(),
            readers,
            messages: state.entries.len(),
            bytes: state.bytes,
            rate: if lately == 0 { 0.0 } else { lately as f64 / seconds.max(0.001) },
            oldest: state.entries.front().map(|entry| entry.stamp.taken().elapsed()),
            upstream,
            idle,
            ended: self.end.as_ref().is_some_and(|end| end.at().is_some()),
        }
    }
}
