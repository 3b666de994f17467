//! Metrics, as Prometheus reads them (OpenMetrics text). One set per gateway, no globals; no topic is ever a label.
//!
//! Counters that cost something to keep (messages to subscribers) are added to once a batch.

mod asked;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use self::asked::{ForwardMetrics, KeyMetrics, Outcome};
use crate::signal::CloseCode;
use crate::sse::frame::GapReason;

/// One label and its value, from a closed set.
type Label = [(&'static str, &'static str); 1];

/// HTTP versions that streams come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    fn label(self) -> Label {
        let version = match self {
            HttpVersion::Http10 => "1.0",
            HttpVersion::Http11 => "1.1",
            HttpVersion::Http2 => "2",
        };
        [("http", version)]
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    streams: Family<Label, Gauge>,
    opened: Family<Label, Counter>,
    closed: Family<Label, Counter>,
    resumes: Family<Label, Counter>,
    recalls: Family<Label, Counter>,
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
    /// Times that a reader waited for its address's turn to be read more of what it missed.
    pub replay_waits: Counter,
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
    /// Bytes of all replay buffers.
    pub buffer_bytes: Gauge,
    /// Client addresses that are remembered.
    pub addresses: Gauge,
    /// Streams of the address that has most.
    pub address_streams_max: Gauge,
    /// Token subjects with a stream.
    pub subjects: Gauge,
    /// Streams of the subject that has most.
    pub subject_streams_max: Gauge,
    /// 1 while the broker is connected and everything subscribed.
    pub upstream_up: Gauge,
    /// Connections to the broker that were lost.
    pub upstream_losses: Counter,
    /// Questions to the backend of forward auth.
    pub forward: ForwardMetrics,
    /// The keys of tokens, where they are published at a URL.
    pub jwks: KeyMetrics,
    /// Bounds that the configuration sets, for ratios.
    limits: Family<Label, Gauge>,
}

impl Metrics {
    /// All at zero, and present from the start but for the codes of refused requests.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("topicgate");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
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
            replay_waits: register!(
                "replay_waits",
                "Times that a replay waited for its address's turn",
                Counter::default()
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
            buffer_bytes: register!("buffer_bytes", "Bytes of all replay buffers", Gauge::default()),
            addresses: register!("addresses", "Client addresses that are remembered", Gauge::default()),
            address_streams_max: register!(
                "address_streams_max",
                "Open streams of the client address that has most",
                Gauge::default()
            ),
            subjects: register!("subjects", "Token subjects with open streams", Gauge::default()),
            subject_streams_max: register!(
                "subject_streams_max",
                "Open streams of the token subject that has most",
                Gauge::default()
            ),
            upstream_up: register!("upstream_up", "1 while the broker is connected", Gauge::default()),
            upstream_losses: register!("upstream_losses", "Broker connections lost", Counter::default()),
            forward: ForwardMetrics::register(&mut registry),
            jwks: KeyMetrics::register(&mut registry),
            limits: register!("limit", "Configured bounds", Family::default()),
            registry,
        };
        for http in [HttpVersion::Http10, HttpVersion::Http11, HttpVersion::Http2] {
            drop(metrics.streams.get_or_create(&http.label()));
            drop(metrics.opened.get_or_create(&http.label()));
        }
        for code in CloseCode::ALL {
            drop(metrics.closed.get_or_create(&[("code", code.as_str())]));
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
        for what in ["message", "topic", "id", "type"] {
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

    /// A part of a history was fetched from the broker, or could not be.
    pub fn recalled(&self, fetched: bool) {
        self.recalls.get_or_create(&[("result", if fetched { "fetched" } else { "failed" })]).inc();
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
    pub fn refused_request(&self, code: &'static str) {
        self.refused_requests.get_or_create(&[("code", code)]).inc();
    }

    /// A configured bound, so that a dashboard can show how near it is.
    pub fn limit(&self, name: &'static str, value: u64) {
        self.limits.get_or_create(&[("limit", name)]).set(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// The text that Prometheus scrapes.
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
