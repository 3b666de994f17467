//! Metrics, as Prometheus reads them; `docs/metrics.md` explains each. One set per gateway, no globals. No label holds a
//! topic, an address or a subject; a rule's `match` is one.
//!
//! `table.rs` lists every metric, `labels.rs` the values of their labels. This file has the counts that take more than one
//! step. Counters on the path of every message to every reader are increased once per batch.

mod labels;
mod limits;
#[cfg(target_os = "linux")]
mod process;
mod rules;
mod shown_rules;
mod table;
mod text;
pub mod throttle;

use std::time::{Instant, SystemTime};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

pub use self::labels::{
    By, FetchResult, ForwardOutcome, HandshakeResult, Limit, Listener, PublishResult, Rejected, ReloadResult,
    ResumeOutcome, SpanResult,
};
pub use self::shown_rules::RuleMetrics;
pub use self::table::Metrics;
pub use self::text::negotiate;
use crate::protocol::codes::{CloseCode, Code, GapReason, HttpVersion};

/// One delivery in this many is measured.
const SAMPLE: u8 = 16;

impl Metrics {
    /// Counts a stream that opened.
    pub fn stream_opened(&self, http: HttpVersion) {
        self.streams.of(http).inc();
        self.streams_opened.inc(http);
    }

    /// Counts a stream that ended.
    pub fn stream_closed(&self, http: HttpVersion, code: CloseCode) {
        self.streams.of(http).dec();
        self.streams_closed.inc(code);
    }

    /// Measures the time from `since`, when a message was received, until a waiting reader gets it. One delivery in
    /// [`SAMPLE`] is measured, at random, because all readers would contend for the histogram's lock.
    pub fn delivered(&self, since: SystemTime) {
        if fastrand::u8(..SAMPLE) == 0 {
            self.delivery_seconds.observe(since.elapsed().unwrap_or_default().as_secs_f64());
        }
    }

    /// Counts gaps for one reason.
    pub fn gaps(&self, reason: GapReason, count: usize) {
        self.gaps.of(reason).inc_by(count as u64);
    }

    /// Counts a part of a history that was fetched from the broker, with its bytes, or that could not be.
    pub fn recalled(&self, fetched: Option<usize>) {
        let result = if fetched.is_some() { FetchResult::Fetched } else { FetchResult::Failed };
        self.recalls.inc(result);
        self.recalled_bytes.inc_by(fetched.unwrap_or_default() as u64);
    }

    /// Counts a question to the backend of forward auth as open until the returned value is dropped.
    pub fn asking_backend(&self) -> impl Drop + use<> {
        self.forward_asking.inc();
        Asking {
            asking: self.forward_asking.clone(),
            seconds: self.forward_seconds.clone(),
            begin: Instant::now(),
        }
    }

    /// Requests refused so far, by code.
    pub fn requests_refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Code::refusals().map(|code| (code.as_str(), self.refused_requests.of(code).get()))
    }

    /// All metrics, as OpenMetrics.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail, and every metric of the table encodes.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

struct Asking {
    asking: Gauge,
    seconds: Histogram,
    begin: Instant,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.asking.dec();
        self.seconds.observe(self.begin.elapsed().as_secs_f64());
    }
}
