//! Logs as they are seen from outside: how full one is and how fast, what feeds it, and how far behind it a reader is. For
//! people who look; nothing of delivery depends on it.

use std::time::{Duration, SystemTime};

use super::TopicLog;
use crate::protocol::topic::Filter;

/// How far back the rate of a log is measured, at most.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// What a reader has not read yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Entries that are held.
    pub messages: usize,
    /// Since when the oldest of them is there.
    pub time: Duration,
}

impl Lag {
    /// That of one reader of two logs.
    pub fn and(self, other: Lag) -> Lag {
        Lag { messages: self.messages + other.messages, time: self.time.max(other.time) }
    }
}

/// How a log stands.
#[derive(Debug, Clone, PartialEq)]
pub struct LogState {
    /// Its topic or pattern.
    pub filter: Filter,
    /// Streams that read it.
    pub readers: usize,
    /// Entries held.
    pub messages: usize,
    /// Bytes held.
    pub bytes: usize,
    /// Entries a second, lately: over ten seconds, or as far back as it holds any.
    pub rate: f64,
    /// Since when the oldest entry is there; `None` if there is none.
    pub oldest: Option<Duration>,
    /// How its messages come.
    pub upstream: UpstreamState,
    /// How long it has had no reader; `None` if it has one.
    pub idle: Option<Duration>,
}

/// How the messages of a log come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamState {
    /// The broker has not confirmed its subscription yet.
    Pending,
    /// By a subscription of its own.
    Subscribed,
    /// Likewise, and for good, since its rule says `warm`.
    Warm,
    /// By the warm log of its rule.
    Children,
    /// The broker does not let the gateway read it.
    Refused,
}

impl UpstreamState {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamState::Pending => "pending",
            UpstreamState::Subscribed => "subscribed",
            UpstreamState::Warm => "warm",
            UpstreamState::Children => "fed",
            UpstreamState::Refused => "refused",
        }
    }
}

impl TopicLog {
    /// What a reader who is at `position` has not read.
    pub(crate) fn lag(&self, position: u64) -> Lag {
        if self.has_nothing_after(position) {
            return Lag::default();
        }
        let state = self.state.lock();
        let index = state.entries.partition_point(|entry| entry.sequence <= position);
        let since = state.entries.get(index).map(|entry| entry.stamp.taken().elapsed());
        Lag { messages: state.entries.len() - index, time: since.unwrap_or_default() }
    }

    /// How it stands, with what the registry knows of it.
    pub(crate) fn state(&self, readers: usize, upstream: UpstreamState, idle: Option<Duration>) -> LogState {
        let state = self.state.lock();
        let now = SystemTime::now();
        // Further back than what was evicted it is not known what there was.
        let from =
            now.checked_sub(RATE_WINDOW).map_or(state.evicted_time, |from| from.max(state.evicted_time));
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
        }
    }
}
