//! Metrics, as Prometheus reads them; `docs/metrics.md` has each. One set per gateway, no globals; no topic is ever a label,
//! but a rule is.
//!
//! Counters that cost something to keep (messages to subscribers) are added to once a batch.

use crate::protocol::codes::HttpVersion;
mod asked;
mod limits;
#[cfg(target_os = "linux")]
mod process;
mod rules;
mod snapshot;
mod text;
pub mod throttle;

use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::asked::{ForwardMetrics, KeyMetrics, Outcome, SpanMetrics};
pub use self::limits::{Limit, LimitMetrics};
pub use self::rules::{RuleMetrics, RulesMetrics};
pub use self::text::negotiate;
use crate::protocol::codes::{CloseCode, Code, GapReason, RefusalCode};

/// The upper ends of the buckets of waits for a broker, in seconds: from one next door to one that is given up.
const WAITS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Those of the time that a message takes to a reader, who may be slow.
const DELIVERIES: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// Of so many deliveries one is looked at.
const SAMPLE: u8 = 16;

/// One label and its value, from a closed set.
type Label = [(&'static str, &'static str); 1];

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    streams: Family<Label, Gauge>,
    opened: Family<Label, Counter>,
    closed: Family<Label, Counter>,
    resumes: Family<Label, Counter>,
    recalls: Family<Label, Counter>,
    recalled_bytes: Counter,
    gaps: Family<Label, Counter>,
    rejected: Family<Label, Counter>,
    publishes: Family<Label, Counter>,
    refused_requests: Family<Label, Counter>,
    /// Events written to subscribers.
    pub events_sent: Counter,
    /// Bytes of events written to subscribers.
    pub bytes_sent: Counter,
    /// Those among them that a reader missed and came back for.
    pub bytes_replayed: Counter,
    /// Times that a reader waited for its address's turn to be read more of what it missed: [`Limit::ResumeBytes`] was met.
    pub replay_waits: Counter,
    /// Seconds from when a message was taken in until it was handed to a reader who is not behind. A sample.
    pub delivery_seconds: Histogram,
    /// Seconds from when the broker took a message until it was taken in here, where the broker says when.
    pub upstream_lag_seconds: Histogram,
    /// Seconds until a stream was open, its subscriptions confirmed.
    pub open_seconds: Histogram,
    /// Seconds until the broker had a message that was published.
    pub publish_seconds: Histogram,
    /// Messages taken in from the broker.
    pub messages_received: Counter,
    /// Their payload bytes.
    pub bytes_received: Counter,
    /// Open connections of both listeners, streams among them.
    pub connections: Gauge,
    /// Connections that could not be accepted, most often for want of file descriptors.
    pub accept_errors: Counter,
    handshakes: Family<Label, Counter>,
    certificate_reloads: Family<Label, Counter>,
    config_reloads: Family<Label, Counter>,
    certificate_expires: Family<Label, Gauge>,
    /// Topics and patterns held.
    pub topics: Gauge,
    /// Those of them that nobody reads.
    pub topics_lingering: Gauge,
    /// Bytes of all replay buffers.
    pub buffer_bytes: Gauge,
    /// Client addresses that are remembered.
    pub addresses: Gauge,
    /// Token subjects with a stream.
    pub subjects: Gauge,
    /// 1 while new streams are served.
    pub ready: Gauge,
    /// 1 while the broker is connected and everything subscribed.
    pub upstream_up: Gauge,
    /// What the broker does not let the gateway read now.
    pub sources_refused: Gauge,
    /// Connections to the broker that were lost.
    pub upstream_losses: Counter,
    /// Questions to the backend of forward auth.
    pub forward: ForwardMetrics,
    /// The keys of tokens, where they are published at a URL.
    pub jwks: KeyMetrics,
    /// Spans of traces.
    pub spans: SpanMetrics,
    /// Bounds, how much of them is used, and how often they were met.
    pub limits: LimitMetrics,
    /// What is counted for each rule.
    pub rules: RulesMetrics,
}

impl Metrics {
    /// All at zero, and present from the start but for refused requests by the codes of closed streams.
    pub fn new() -> Self {
        let mut whole = Registry::default();
        #[cfg(target_os = "linux")]
        whole.register_collector(Box::new(process::Process));
        let registry = whole.sub_registry_with_prefix("topicgate");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        registry.register(
            "build",
            "The version that runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let limits = LimitMetrics::register(registry);
        let metrics = Metrics {
            streams: register!("streams", "Open streams", Family::default()),
            opened: register!("streams_opened", "Streams opened", Family::default()),
            closed: register!("streams_closed", "Streams ended, by code", Family::default()),
            resumes: register!("resumes", "Streams that asked to resume, by outcome", Family::default()),
            recalls: register!(
                "recalls",
                "Parts of a history that were fetched from the broker for readers, by result",
                Family::default()
            ),
            recalled_bytes: register!(
                "recalled_bytes",
                "Payload bytes that were fetched from the broker for readers",
                Counter::default()
            ),
            gaps: register!(
                "gaps",
                "Gaps: by topic where the broker lost, by stream where the reader did",
                Family::default()
            ),
            rejected: register!(
                "rejected",
                "Messages, or fields of messages, that could not be carried",
                Family::default()
            ),
            publishes: register!("publishes", "Publish requests, by result", Family::default()),
            refused_requests: register!("refused_requests", "Requests refused, by code", Family::default()),
            events_sent: register!("events_sent", "Events written to subscribers", Counter::default()),
            bytes_sent: register!("sent_bytes", "Bytes of events written to subscribers", Counter::default()),
            bytes_replayed: register!(
                "replayed_bytes",
                "Bytes of events that subscribers came back for",
                Counter::default()
            ),
            replay_waits: limits.counter(Limit::ResumeBytes),
            delivery_seconds: register!(
                "delivery_seconds",
                "From when a message was taken in until it was handed to a reader, of those who are not behind; a sample",
                Histogram::new(DELIVERIES)
            ),
            upstream_lag_seconds: register!(
                "upstream_lag_seconds",
                "From when the broker took a message until it was taken in here, where the broker says when",
                Histogram::new(DELIVERIES)
            ),
            open_seconds: register!(
                "open_seconds",
                "How long it took to open a stream, until its subscriptions were confirmed",
                Histogram::new(WAITS)
            ),
            publish_seconds: register!(
                "publish_seconds",
                "How long it took until the broker had a published message",
                Histogram::new(WAITS)
            ),
            messages_received: register!("messages_received", "Messages from the broker", Counter::default()),
            bytes_received: register!("received_bytes", "Payload bytes from the broker", Counter::default()),
            connections: register!(
                "connections",
                "Open connections of both listeners, streams among them",
                Gauge::default()
            ),
            accept_errors: register!(
                "accept_errors",
                "Connections that could not be accepted",
                Counter::default()
            ),
            handshakes: register!("tls_handshakes", "TLS handshakes, by result", Family::default()),
            certificate_reloads: register!(
                "tls_certificate_reloads",
                "Times that a changed certificate was read, by result",
                Family::default()
            ),
            config_reloads: register!(
                "config_reloads",
                "Times that the configuration was read anew, by result",
                Family::default()
            ),
            certificate_expires: register!(
                "tls_certificate_expires",
                "When the certificate expires, in seconds of unix time",
                Family::default()
            ),
            topics: register!("topics", "Topics and patterns held", Gauge::default()),
            topics_lingering: register!(
                "topics_lingering",
                "Topics and patterns held that nobody reads now",
                Gauge::default()
            ),
            buffer_bytes: register!("buffer_bytes", "Bytes of all replay buffers", Gauge::default()),
            addresses: register!("addresses", "Client addresses that are remembered", Gauge::default()),
            subjects: register!("subjects", "Token subjects with open streams", Gauge::default()),
            ready: register!("ready", "1 while new streams are served", Gauge::default()),
            upstream_up: register!(
                "upstream_up",
                "1 while the broker is connected, and every part of it",
                Gauge::default()
            ),
            sources_refused: register!(
                "sources_refused",
                "Rules and topics that the broker does not let the gateway read now",
                Gauge::default()
            ),
            upstream_losses: register!("upstream_losses", "Broker connections lost", Counter::default()),
            forward: ForwardMetrics::register(registry),
            jwks: KeyMetrics::register(registry),
            spans: SpanMetrics::register(registry),
            limits,
            rules: RulesMetrics::register(registry),
            registry: whole,
        };
        for http in [HttpVersion::Http10, HttpVersion::Http11, HttpVersion::Http2] {
            drop(metrics.streams.get_or_create(&http.label()));
            drop(metrics.opened.get_or_create(&http.label()));
        }
        for code in CloseCode::ALL {
            drop(metrics.closed.get_or_create(&[("code", code.as_str())]));
        }
        for code in RefusalCode::ALL {
            drop(metrics.refused_requests.get_or_create(&[("code", code.as_str())]));
        }
        for reason in GapReason::ALL {
            drop(metrics.gaps.get_or_create(&[("reason", reason.as_str())]));
        }
        for result in ["accepted", "refused", "broker_away", "broker_refused"] {
            drop(metrics.publishes.get_or_create(&[("result", result)]));
        }
        for outcome in ["exact", "gap"] {
            drop(metrics.resumes.get_or_create(&[("outcome", outcome)]));
        }
        for result in ["fetched", "failed"] {
            drop(metrics.recalls.get_or_create(&[("result", result)]));
        }
        for result in ["done", "failed", "plain", "timeout"] {
            drop(metrics.handshakes.get_or_create(&[("result", result)]));
        }
        for result in ["done", "refused"] {
            drop(metrics.certificate_reloads.get_or_create(&[("result", result)]));
            drop(metrics.config_reloads.get_or_create(&[("result", result)]));
        }
        for what in ["message", "topic", "id", "type", "header"] {
            drop(metrics.rejected.get_or_create(&[("what", what)]));
        }
        metrics
    }

    /// A stream opened.
    pub fn stream_opened(&self, http: HttpVersion) {
        self.streams.get_or_create(&http.label()).inc();
        self.opened.get_or_create(&http.label()).inc();
    }

    /// A stream ended.
    pub fn stream_closed(&self, http: HttpVersion, code: CloseCode) {
        self.streams.get_or_create(&http.label()).dec();
        self.not_opened(code);
    }

    /// A request for a stream was told to come back later.
    pub fn not_opened(&self, code: CloseCode) {
        self.closed.get_or_create(&[("code", code.as_str())]).inc();
    }

    /// Something that was taken in at `since` is handed to a reader who was waiting for it. One in [`SAMPLE`] is looked at,
    /// whichever it is: looking at each would have all readers meet at one lock.
    pub fn delivered(&self, since: SystemTime) {
        if fastrand::u8(..SAMPLE) == 0 {
            self.delivery_seconds.observe(since.elapsed().unwrap_or_default().as_secs_f64());
        }
    }

    /// A stream asked to resume.
    pub fn resumed(&self, exactly: bool) {
        self.resumes.get_or_create(&[("outcome", if exactly { "exact" } else { "gap" })]).inc();
    }

    /// So many gaps for that reason.
    pub fn gaps(&self, reason: GapReason, count: usize) {
        self.gaps.get_or_create(&[("reason", reason.as_str())]).inc_by(count as u64);
    }

    /// Something of a message could not be carried.
    pub fn rejected(&self, what: &'static str) {
        self.rejected.get_or_create(&[("what", what)]).inc();
    }

    /// A part of a history was fetched from the broker, of so many bytes, or could not be.
    pub fn recalled(&self, fetched: Option<usize>) {
        let result = if fetched.is_some() { "fetched" } else { "failed" };
        self.recalls.get_or_create(&[("result", result)]).inc();
        self.recalled_bytes.inc_by(fetched.unwrap_or_default() as u64);
    }

    /// The result of a publish request.
    pub fn published(&self, result: &'static str) {
        self.publishes.get_or_create(&[("result", result)]).inc();
    }

    /// A TLS handshake ended: `done`, `failed`, `timeout`, or `plain` where it was no TLS at all.
    pub fn handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&[("result", result)]).inc();
    }

    /// A certificate was read anew: `done` or `refused`.
    pub fn certificate_reloaded(&self, result: &'static str) {
        self.certificate_reloads.get_or_create(&[("result", result)]).inc();
    }

    /// The configuration was read anew: `done` or `refused`.
    pub fn config_reloaded(&self, result: &'static str) {
        self.config_reloads.get_or_create(&[("result", result)]).inc();
    }

    /// When the certificate in use expires, in seconds of unix time. Without one there is no such sample.
    pub fn certificate_expires(&self, time: i64) {
        self.certificate_expires.get_or_create(&[("listener", "public")]).set(time);
    }

    /// A request was refused.
    pub fn refused_request(&self, code: Code) {
        self.refused_requests.get_or_create(&[("code", code.as_str())]).inc();
    }

    /// All of it, as OpenMetrics.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail, and every metric above encodes.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}
