//! Metrics with a label, and the values that each label can have: closed sets, never a topic or an address.

use std::fmt;
use std::marker::PhantomData;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use strum::{IntoStaticStr, VariantArray};

type Series<M> = Family<[(&'static str, &'static str); 1], M>;

/// One metric with a series for each rule, whose label is the rule's `match`.
pub(super) type ByRule<M> = Family<[(&'static str, String); 1], M>;

/// One metric with one label. `L` names the values of the label; each value is a series.
#[derive(Debug, Clone)]
pub struct By<L, M> {
    label: &'static str,
    series: Series<M>,
    values: PhantomData<L>,
}

impl<L: Copy + Into<&'static str>, M: Clone + Default> By<L, M> {
    /// Each series appears when it is first used.
    pub(super) fn empty(label: &'static str) -> Self {
        By { label, series: Family::default(), values: PhantomData }
    }

    /// Shows these series from the start, at zero.
    pub(super) fn with(label: &'static str, values: impl IntoIterator<Item = L>) -> Self {
        let metric = By::empty(label);
        values.into_iter().for_each(|value| drop(metric.of(value)));
        metric
    }

    /// The series of this value. Keep it if you use it often: this looks it up under a lock.
    pub fn of(&self, value: L) -> M {
        self.series.get_or_create_owned(&[(self.label, value.into())])
    }
}

impl<L: Copy + Into<&'static str> + VariantArray, M: Clone + Default> By<L, M> {
    /// Shows every series from the start, at zero.
    pub(super) fn all(label: &'static str) -> Self {
        By::with(label, L::VARIANTS.iter().copied())
    }
}

impl<L: Copy + Into<&'static str>> By<L, Counter> {
    /// Counts one more of this value.
    pub fn inc(&self, value: L) {
        self.series.get_or_create(&[(self.label, value.into())]).inc();
    }
}

impl<L: Copy + Into<&'static str> + VariantArray> By<L, Counter> {
    /// The count of each value, by its name.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        L::VARIANTS.iter().map(|value| ((*value).into(), self.of(*value).get()))
    }
}

impl<L, M> EncodeMetric for By<L, M>
where
    Series<M>: EncodeMetric,
{
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.series.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.series.metric_type()
    }
}

/// A limit, named as its key in `[limits]` if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Limit {
    /// `limits.streams`.
    Streams,
    /// `limits.streams_per_address`; used: by the address with the most.
    StreamsPerAddress,
    /// `limits.streams_per_subject`; used: by the subject with the most.
    StreamsPerSubject,
    /// `limits.opens_per_second`.
    OpensPerSecond,
    /// `limits.new_topics_per_second`.
    NewTopicsPerSecond,
    /// `limits.publishes_per_second`.
    PublishesPerSecond,
    /// `limits.resume_bytes`; hit: a replay waited because its address was over its rate.
    ResumeBytes,
    /// `limits.connections`; hit: no more are accepted until one ends.
    Connections,
    /// Connections of the admin listener, likewise.
    AdminConnections,
    /// `limits.connections_per_address`; used: by the address with the most; hit: a connection was closed at once.
    ConnectionsPerAddress,
    /// Streams of the console; hit: another one was refused for now.
    ConsoleStreams,
    /// `limits.topics`.
    Topics,
    /// `limits.topics_per_address`; used: by the address with the most.
    TopicsPerAddress,
    /// `limits.topics_per_stream`.
    TopicsPerStream,
    /// `limits.topic_length`.
    TopicLength,
    /// `limits.message`, for messages from the broker and from publishers.
    Message,
    /// `limits.bodies`; hit: a publisher was refused for now, because its address's share or the total is used up.
    Bodies,
    /// Backfills and lookups in the queue; hit: one had no place in it and is tried again.
    Lookups,
    /// `limits.buffer`; hit: the oldest messages were evicted.
    Buffer,
    /// `limits.head`, for HTTP/1.
    Head,
    /// `limits.head_timeout`, for the body of a publish request.
    HeadTimeout,
    /// Client addresses that are remembered.
    Addresses,
    /// Events of the broker in the queue of ingest; hit: a gap, counted there.
    BrokerEvents,
}

/// How a question to the backend of forward auth ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ForwardOutcome {
    /// 2xx.
    Allowed,
    /// 401 or 403.
    Refused,
    /// No connection, another status, or a body that cannot be understood.
    Failed,
    /// No answer in time.
    Late,
    /// Too many questions were open, so it was not asked.
    Busy,
}

/// How a fetch of a history, or of a key set, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum FetchResult {
    /// It was fetched.
    Fetched,
    /// It was not.
    Failed,
}

/// How a stream with a cursor began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ResumeOutcome {
    /// Right behind its cursor.
    Exact,
    /// With a gap.
    Gap,
    /// Not at all: everything was read, and the topics have ended.
    Ended,
}

/// How a publish request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum PublishResult {
    /// The broker has the message.
    Accepted,
    /// The gateway refused it.
    Refused,
    /// The broker did not confirm it.
    BrokerAway,
    /// The broker refused it.
    BrokerRefused,
}

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum HandshakeResult {
    /// With a connection.
    Done,
    /// With an error.
    Failed,
    /// The client did not speak TLS.
    Plain,
    /// The client took too long.
    Timeout,
}

/// How a reload of the configuration, or of a certificate, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ReloadResult {
    /// It is in force.
    Done,
    /// It cannot be used; the old one stays in force.
    Refused,
}

/// The part of a broker's message that could not be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Rejected {
    /// The message: it is too large.
    Message,
    /// Its subject or channel: it is no valid topic.
    Topic,
    /// The publisher's id.
    Id,
    /// The event type.
    Type,
    /// A header field that cannot be read.
    Header,
    /// The payload in its envelope: the message has nothing at the rule's pointer, and is delivered as it is.
    Data,
}

/// The outcome of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum SpanResult {
    /// The collector has it.
    Exported,
    /// The collector did not accept it.
    Failed,
    /// The queue to the collector was full.
    Dropped,
}

/// A listener with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantArray, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Listener {
    /// The one for browsers.
    Public,
}
