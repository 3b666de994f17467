//! Bounds: what the configuration (or the code) sets, how much of it is used, and how often it was met. One label for all
//! three, so that one line of a dashboard or of an alert looks at all of them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Label;
use crate::broker::EVENT_CAPACITY;
use crate::config;
use crate::protocol::codes::CloseCode;

/// A bound. Named as its key in `[limits]`, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `limits.streams`.
    Streams,
    /// `limits.streams_per_address`; used: by the address that has most.
    StreamsPerAddress,
    /// `limits.streams_per_subject`; used: by the subject that has most.
    StreamsPerSubject,
    /// `limits.opens_per_second`.
    OpensPerSecond,
    /// `limits.new_topics_per_second`.
    NewTopicsPerSecond,
    /// `limits.publishes_per_second`.
    PublishesPerSecond,
    /// `limits.resume_bytes`; met: a replay waited for its address's turn.
    ResumeBytes,
    /// `limits.connections`; met: those who come wait until one ends.
    Connections,
    /// Connections of the admin listener, likewise.
    AdminConnections,
    /// `limits.topics`.
    Topics,
    /// `limits.topics_per_address`; used: by the address that has most.
    TopicsPerAddress,
    /// `limits.topics_per_stream`.
    TopicsPerStream,
    /// `limits.topic_length`.
    TopicLength,
    /// `limits.message`, of the broker's and of publishers.
    Message,
    /// `limits.bodies`; met: a publisher was told to come back, by its address's part of it or by all of it.
    Bodies,
    /// Looks into the broker's histories that wait for their turn; met: one that had no place is asked for again.
    Lookups,
    /// `limits.buffer`; met: logs gave way.
    Buffer,
    /// `limits.head`, of HTTP/1.
    Head,
    /// `limits.head_timeout`, of the body of what is published.
    HeadTimeout,
    /// Client addresses that are remembered.
    Addresses,
    /// Events of the broker that wait to be taken in. Met, it is told as a gap.
    BrokerEvents,
}

impl Limit {
    const ALL: [Limit; 21] = [
        Limit::Streams,
        Limit::StreamsPerAddress,
        Limit::StreamsPerSubject,
        Limit::OpensPerSecond,
        Limit::NewTopicsPerSecond,
        Limit::PublishesPerSecond,
        Limit::ResumeBytes,
        Limit::Connections,
        Limit::AdminConnections,
        Limit::Topics,
        Limit::TopicsPerAddress,
        Limit::TopicsPerStream,
        Limit::TopicLength,
        Limit::Message,
        Limit::Bodies,
        Limit::Lookups,
        Limit::Buffer,
        Limit::Head,
        Limit::HeadTimeout,
        Limit::Addresses,
        Limit::BrokerEvents,
    ];

    fn label(self) -> Label {
        let name = match self {
            Limit::Streams => "streams",
            Limit::StreamsPerAddress => "streams_per_address",
            Limit::StreamsPerSubject => "streams_per_subject",
            Limit::OpensPerSecond => "opens_per_second",
            Limit::NewTopicsPerSecond => "new_topics_per_second",
            Limit::PublishesPerSecond => "publishes_per_second",
            Limit::ResumeBytes => "resume_bytes",
            Limit::Bodies => "bodies",
            Limit::Lookups => "lookups",
            Limit::Connections => "connections",
            Limit::AdminConnections => "admin_connections",
            Limit::Topics => "topics",
            Limit::TopicsPerAddress => "topics_per_address",
            Limit::TopicsPerStream => "topics_per_stream",
            Limit::TopicLength => "topic_length",
            Limit::Message => "message",
            Limit::Buffer => "buffer",
            Limit::Head => "head",
            Limit::HeadTimeout => "head_timeout",
            Limit::Addresses => "addresses",
            Limit::BrokerEvents => "broker_events",
        };
        [("limit", name)]
    }
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LimitMetrics {
    bounds: Family<Label, Gauge>,
    used: Family<Label, Gauge>,
    met: Family<Label, Counter>,
}

impl LimitMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics =
            LimitMetrics { bounds: Family::default(), used: Family::default(), met: Family::default() };
        for limit in Limit::ALL {
            drop(metrics.met.get_or_create(&limit.label()));
        }
        metrics.set_bound(Limit::BrokerEvents, EVENT_CAPACITY as u64);
        registry.register("limit", "Bounds, by name", metrics.bounds.clone());
        registry.register(
            "limit_used",
            "What is used of a bound now, where it is a level",
            metrics.used.clone(),
        );
        registry.register(
            "limit_met",
            "Times that a bound was met: refused, made to wait, or given way",
            metrics.met.clone(),
        );
        metrics
    }

    /// The bounds that the configuration sets.
    pub fn configure(&self, limits: &config::Limits) {
        for (limit, bound) in [
            (Limit::Streams, limits.streams as u64),
            (Limit::StreamsPerAddress, limits.streams_per_address as u64),
            (Limit::StreamsPerSubject, limits.streams_per_subject as u64),
            (Limit::OpensPerSecond, limits.opens_per_second as u64),
            (Limit::NewTopicsPerSecond, limits.new_topics_per_second as u64),
            (Limit::PublishesPerSecond, limits.publishes_per_second as u64),
            (Limit::ResumeBytes, limits.resume_bytes),
            (Limit::Topics, limits.topics as u64),
            (Limit::TopicsPerAddress, limits.topics_per_address as u64),
            (Limit::TopicsPerStream, limits.topics_per_stream as u64),
            (Limit::TopicLength, limits.topic_length as u64),
            (Limit::Message, limits.message),
            (Limit::Bodies, limits.bodies),
            (Limit::Buffer, limits.buffer),
            (Limit::Head, limits.head),
        ] {
            self.set_bound(limit, bound);
        }
    }

    /// A bound that the code sets.
    pub fn set_bound(&self, limit: Limit, bound: u64) {
        self.bounds.get_or_create(&limit.label()).set(i64::try_from(bound).unwrap_or(i64::MAX));
    }

    /// How much of it is used now.
    pub fn set_used(&self, limit: Limit, used: usize) {
        self.used(limit).set(i64::try_from(used).unwrap_or(i64::MAX));
    }

    /// The gauge of [`LimitMetrics::set_used`], for one who sets it often.
    pub fn used(&self, limit: Limit) -> Gauge {
        self.used.get_or_create(&limit.label()).clone()
    }

    /// It was met once more.
    pub fn hit(&self, limit: Limit) {
        self.counter(limit).inc();
    }

    /// The counter of [`LimitMetrics::met`], for one who adds to it often.
    pub fn counter(&self, limit: Limit) -> Counter {
        self.met.get_or_create(&limit.label()).clone()
    }

    /// A client was told to come back by the table of clients: the bound that it met.
    pub fn hit_by_client(&self, code: CloseCode) {
        match code {
            CloseCode::TooManyStreams => self.hit(Limit::StreamsPerAddress),
            CloseCode::TooManyTopics => self.hit(Limit::TopicsPerAddress),
            CloseCode::TooManySubjectStreams => self.hit(Limit::StreamsPerSubject),
            CloseCode::TooFast => self.hit(Limit::OpensPerSecond),
            CloseCode::Overloaded => self.hit(Limit::Addresses),
            _ => {}
        }
    }
}
