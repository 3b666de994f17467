//! The table of all metrics. A row has the name of a metric (without the prefix `topicgate_` and, for a counter, without
//! `_total`), its type, its labels and its help text. A new metric also needs a row in `docs/metrics.md` and a panel in
//! `deploy/grafana/topicgate.json`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::labels::{
    By, ByRule, FetchResult, ForwardOutcome, HandshakeResult, Limit, Listener, PublishResult, Rejected,
    ReloadResult, ResumeOutcome, SpanResult,
};
#[cfg(target_os = "linux")]
use super::process::Process;
use super::shown_rules::ShownRules;
use crate::protocol::codes::{CloseCode, Code, GapReason, HttpVersion};

/// The upper bounds of the buckets for waits for a broker, in seconds: from a broker on the same network to the longest
/// wait.
const WAITS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// The same for the time that a message takes to reach a reader, which may be slow.
const DELIVERIES: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// The same for the answers of a backend: from a backend on the same network to the default of `auth.forward.timeout`.
const ANSWERS: [f64; 8] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

macro_rules! metrics {
    ($($name:ident: $type:ty = $new:expr, $help:literal;)*) => {
        /// Every metric of one gateway, as a field under the metric's name.
        #[derive(Debug)]
        pub struct Metrics {
            pub(super) registry: Registry,
            pub(super) rules: ShownRules,
            $(#[doc = $help] pub $name: $type,)*
        }

        impl Metrics {
            /// Creates all metrics, at zero.
            pub fn new() -> Self {
                let mut registry = Registry::default();
                #[cfg(target_os = "linux")]
                registry.register_collector(Box::new(Process));
                let own = registry.sub_registry_with_prefix("topicgate");
                let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
                own.register("build", "The running version", version);
                $(
                    let $name: $type = $new;
                    own.register(stringify!($name), $help, $name.clone());
                )*
                Metrics { registry, rules: ShownRules::default(), $($name),* }
            }
        }
    };
}

metrics! {
    ready: Gauge = Gauge::default(),
        "1 while new streams are served";
    upstream_up: Gauge = Gauge::default(),
        "1 while every part of the broker is connected and everything is subscribed";
    sources_refused: Gauge = Gauge::default(),
        "Rules and topics that the broker does not let the gateway read now";
    upstream_losses: Counter = Counter::default(),
        "Broker connections lost";
    config_reloads: By<ReloadResult, Counter> = By::all("result"),
        "Reloads of the configuration, by result";

    streams: By<HttpVersion, Gauge> = By::all("http"),
        "Open streams, by HTTP version";
    streams_opened: By<HttpVersion, Counter> = By::all("http"),
        "Streams opened, by HTTP version";
    streams_closed: By<CloseCode, Counter> = By::all("code"),
        "Streams that ended, and requests for a stream that were refused for now, by code";
    resumes: By<ResumeOutcome, Counter> = By::all("outcome"),
        "Streams that began with a cursor, by outcome";
    open_seconds: Histogram = Histogram::new(WAITS),
        "Time to open a stream, until the broker had confirmed its subscriptions";
    refused_requests: By<Code, Counter> = By::with("code", Code::refusals()),
        "Refused requests, by code";
    connections: Gauge = Gauge::default(),
        "Open connections of both listeners, including streams";
    accept_errors: Counter = Counter::default(),
        "Connections that could not be accepted";
    addresses: Gauge = Gauge::default(),
        "Client addresses that are remembered";
    subjects: Gauge = Gauge::default(),
        "Token subjects with an open stream";

    messages_received: Counter = Counter::default(),
        "Messages from the broker";
    received_bytes: Counter = Counter::default(),
        "Payload bytes from the broker";
    events_sent: Counter = Counter::default(),
        "Messages and broker gaps handed to readers";
    filtered_messages: Counter = Counter::default(),
        "Messages that were left out for a reader because of their type";
    conflated_messages: Counter = Counter::default(),
        "Messages that were left out for a reader because a newer one followed within its interval";
    sent_bytes: Counter = Counter::default(),
        "Bytes handed to readers";
    saved_bytes: Counter = Counter::default(),
        "Bytes that readers did not have to receive, because they were compressed";
    compressors: Gauge = Gauge::default(),
        "Topics and patterns that are compressed once for all their readers";
    replayed_bytes: Counter = Counter::default(),
        "Bytes of replay handed to readers";
    delivery_seconds: Histogram = Histogram::new(DELIVERIES),
        "Time from the intake of a message until it is handed to a reader, without replays; one write of sixteen is measured";
    upstream_lag_seconds: Histogram = Histogram::new(DELIVERIES),
        "Time from when the broker received a message until the gateway received it, if the broker reports the time";
    recalls: By<FetchResult, Counter> = By::all("result"),
        "Parts of stored sources that were fetched for readers who resume further back than the log, by result";
    recalled_bytes: Counter = Counter::default(),
        "Payload bytes of stored sources that were fetched for readers";
    publishes: By<PublishResult, Counter> = By::all("result"),
        "Publish requests, by result";
    publish_seconds: Histogram = Histogram::new(WAITS),
        "Time until the broker had a published message";
    topics: Gauge = Gauge::default(),
        "Topics and patterns held";
    topics_lingering: Gauge = Gauge::default(),
        "Topics and patterns held without a reader";
    topics_stale: Gauge = Gauge::default(),
        "Topics and patterns held whose part of the broker has been away for more than two seconds";
    buffer_bytes: Gauge = Gauge::default(),
        "Bytes of all replay buffers";

    gaps: By<GapReason, Counter> = By::all("reason"),
        "Gaps, by reason: one per topic if the broker lost messages, otherwise one per reader";
    topics_ended: Counter = Counter::default(),
        "Messages that ended their topic";
    rejected: By<Rejected, Counter> = By::all("what"),
        "Messages, or fields of messages, that could not be carried";

    rule_messages: ByRule<Counter> = ByRule::default(),
        "Messages from the broker, by rule";
    rule_events: ByRule<Counter> = ByRule::default(),
        "Messages and gaps handed to readers, by rule";
    rule_gaps: ByRule<Counter> = ByRule::default(),
        "Gaps, by rule: one per topic if the broker lost messages, otherwise one per reader";
    rule_readers: ByRule<Gauge> = ByRule::default(),
        "Open streams, by rule: counted once per topic or pattern of the rule that they read";

    limit: By<Limit, Gauge> = By::empty("limit"),
        "Limits, by name";
    limit_used: By<Limit, Gauge> = By::empty("limit"),
        "How much of a limit is used now, for limits that are a level";
    limit_met: By<Limit, Counter> = By::all("limit"),
        "Times that a limit was hit";

    forward_questions: By<ForwardOutcome, Counter> = By::all("outcome"),
        "Questions to the backend of forward auth, by outcome";
    forward_cached: Counter = Counter::default(),
        "Requests that were decided by the backend's answer to another request";
    forward_asking: Gauge = Gauge::default(),
        "Questions to the backend of forward auth that are open now";
    forward_seconds: Histogram = Histogram::new(ANSWERS),
        "Time until the backend of forward auth answered";
    jwks_fetches: By<FetchResult, Counter> = By::all("outcome"),
        "Fetches of the key set, by outcome";
    jwks_keys: Gauge = Gauge::default(),
        "Keys in use";
    jwks_skipped_keys: Gauge = Gauge::default(),
        "Keys of the last set that are not usable";
    tls_handshakes: By<HandshakeResult, Counter> = By::all("result"),
        "TLS handshakes, by result";
    tls_certificate_reloads: By<ReloadResult, Counter> = By::all("result"),
        "Loads of a changed certificate, by result";
    tls_certificate_expires: By<Listener, Gauge> = By::empty("listener"),
        "When the certificate expires, as a Unix time in seconds";

    spans: By<SpanResult, Counter> = By::all("result"),
        "Spans of traces, by result";
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}
