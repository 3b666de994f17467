//! The context of a stream: the services that all streams share, and the options of one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::outcome::OutcomeLog;
use crate::log::Registry;
use crate::log::message::Format;
use crate::metrics::Metrics;
use crate::protocol::gzip::Content;
use crate::protocol::seek::{SeekResult, Start};

/// The shortest reconnection delay: with less, browsers reconnect in a loop that harms both sides.
const MIN_RETRY_MS: u64 = 500;

/// The settings and services that all streams share.
#[derive(Debug)]
pub struct StreamContext {
    /// The logs.
    pub registry: Arc<Registry>,
    /// The metrics of the gateway.
    pub metrics: Arc<Metrics>,
    /// The silence after which a heartbeat is sent.
    pub heartbeat: Duration,
    /// The mean reconnection delay that clients receive.
    pub retry: Duration,
    /// The age at which a stream ends so that its reader reconnects, within 10 %.
    pub max_age: Option<Duration>,
    /// How long a reader may take no bytes.
    pub write_timeout: Duration,
    /// Writes the log lines about ended streams.
    pub why: Arc<OutcomeLog>,
}

impl StreamContext {
    /// A reconnection delay in milliseconds, different for each stream: with the same delay, all would reconnect at
    /// once.
    pub fn jittered_retry(&self) -> u64 {
        let middle = self.retry.as_millis() as u64;
        fastrand::u64(middle / 2..=middle + middle / 2).max(MIN_RETRY_MS)
    }
}

/// The options of one stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions<'a> {
    /// Where the stream begins.
    pub start: &'a Start,
    /// The broker's answers to [`crate::log::seeks_needed`], one place for each lease.
    pub located: &'a [Option<SeekResult>],
    /// The format of its messages.
    pub format: Format,
    /// The content coding of its body. gzip only if its reader has no view and gets control events: otherwise it could not
    /// share the batches of the other readers.
    pub content: Content,
    /// When the reader's permission expires: nothing is delivered from then on.
    pub expires: Option<SystemTime>,
    /// Whether it ends once all its topics have ended.
    pub until_end: bool,
    /// Whether the ends of topics in the logs count that came before it opened. Not if the broker has newer messages.
    pub may_have_ended: bool,
    /// Whether the gateway's own events are comments.
    pub without_control: bool,
}
