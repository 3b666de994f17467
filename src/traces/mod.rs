//! Traces (OpenTelemetry): a span for each request that publishes or opens a stream, and for each received message that
//! belongs to a sampled trace. There are none per reader: a message to ten thousand readers is one span.
//!
//! Each gateway has its own, without globals. Without `[traces]` in the configuration, nothing here does anything.
//! While a request is served, its span is the current one ([`Context::current`]), so handlers need not pass it on.
//! `export.rs` sends the spans.

mod export;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{SpanBuilder, SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};

pub use self::export::Export;
use crate::config::{self, BrokerKind};
use crate::metrics::Metrics;
use crate::protocol::headers::Headers;
use crate::protocol::topic::{Filter, Topic};

/// The longest `tracestate` that is passed on: what W3C Trace Context requires. Longer ones are dropped.
const MAX_STATE: usize = 512;

/// The most topics of a request that its span names.
const MAX_TOPICS: usize = 8;

/// The traces of a gateway; the default does nothing. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<On>);

#[derive(Debug, Clone)]
struct On {
    tracer: SdkTracer,
    /// The broker's name in the semantic conventions for messaging.
    system: &'static str,
    has_headers: bool,
}

impl Traces {
    /// Creates the traces, and the task that sends spans to the collector, which the caller runs.
    ///
    /// # Errors
    /// The configuration key and what is wrong with it, in one line.
    pub fn new(
        traces: &config::Traces,
        broker: &config::Broker,
        metrics: &Metrics,
    ) -> Result<(Self, Export), String> {
        let (queue, export) = export::new(&traces.endpoint.0, metrics)?;
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(traces.sample))))
            .build();
        let system = match broker.kind() {
            BrokerKind::Memory => "memory",
            BrokerKind::Nats => "nats",
            BrokerKind::Redis => "redis",
        };
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok((Traces(Some(On { tracer, system, has_headers: broker.has_headers() })), export))
    }

    /// Whether traces are on.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the span of a request, in the trace that its headers name or in a new one. It lasts until it is ended.
    pub fn request(&self, name: &'static str, headers: &HeaderMap) -> Option<Context> {
        let on = self.0.as_ref()?;
        let parent = extract(&HeaderExtractor(headers));
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
        let span = on.tracer.build_with_context(span, &parent);
        Some(parent.with_span(span))
    }

    /// Writes the current trace into the headers of a message to publish, if the broker has headers.
    pub fn inject(&self, headers: &mut Headers) {
        if self.0.as_ref().is_some_and(|on| on.has_headers) {
            TraceContextPropagator::new().inject_context(&Context::current(), &mut HeaderCarrier(headers));
        }
    }

    /// Begins the span of a message from the broker, if its headers say that its trace is sampled. It ends when it is
    /// dropped.
    pub fn received(&self, topic: &Topic, headers: &Headers, bytes: usize) -> Option<Span> {
        let on = self.0.as_ref()?;
        let parent = extract(&FieldsOf(headers));
        if !parent.span().span_context().is_sampled() {
            return None;
        }
        let span = SpanBuilder::from_name("receive").with_kind(SpanKind::Consumer).with_attributes([
            KeyValue::new("messaging.system", on.system),
            KeyValue::new("messaging.operation.type", "receive"),
            KeyValue::new("messaging.destination.name", topic.as_str().to_owned()),
            KeyValue::new("messaging.message.body.size", bytes as i64),
        ]);
        Some(on.tracer.build_with_context(span, &parent))
    }
}

/// Adds topics to the span of the current request, if there is one.
pub fn note_topics<'a>(filters: impl ExactSizeIterator<Item = &'a Filter>) {
    let context = Context::current();
    let span = context.span();
    if !span.is_recording() {
        return;
    }
    span.set_attribute(KeyValue::new("topicgate.topics.count", filters.len() as i64));
    let names: Vec<StringValue> =
        filters.take(MAX_TOPICS).map(|filter| filter.as_str().to_owned().into()).collect();
    span.set_attribute(KeyValue::new("topicgate.topics", Value::Array(Array::String(names))));
}

/// The resource: the attributes of the environment (`OTEL_RESOURCE_ATTRIBUTES`), and our name and version.
fn resource() -> Resource {
    Resource::builder()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The trace that the headers name, or none.
fn extract(headers: &dyn Extractor) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Bounded(headers))
}

/// Drops a `tracestate` that is too long, because a span would keep it in memory.
struct Bounded<'a>(&'a dyn Extractor);

impl Extractor for Bounded<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).filter(|value| value.len() <= MAX_STATE)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys()
    }
}

struct FieldsOf<'a>(&'a Headers);

impl Extractor for FieldsOf<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

struct HeaderCarrier<'a>(&'a mut Headers);

impl Injector for HeaderCarrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        // A trace without a state has an empty string here, which is not a valid field value.
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}
