//! Traces (OpenTelemetry): a span for each request that publishes or opens a stream, and for each received message that
//! belongs to a sampled trace. None for readers: a message to ten thousand of them is one span.
//!
//! One set a gateway, no globals; without `[traces]` in the configuration nothing is done here at all. The span of a request
//! is the current one ([`Context::current`]) while the request is served, so what is served need not hand it on. Where spans
//! go, and what becomes of those that cannot go there, is in `export.rs`.

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
use crate::broker::Message;
use crate::config::{self, BrokerKind};
use crate::metrics::Metrics;
use crate::protocol::headers::Headers;
use crate::protocol::topic::Filter;

/// Bytes of `tracestate` that are carried on: as many as W3C Trace Context asks for. Longer ones are left out.
const MAX_STATE: usize = 512;

/// Topics of a request that its span names.
const MAX_TOPICS: usize = 8;

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<On>);

#[derive(Debug, Clone)]
struct On {
    tracer: SdkTracer,
    /// What the conventions for messaging call the broker.
    system: &'static str,
    has_headers: bool,
}

impl Traces {
    /// With the task that sends spans to the collector, for the caller to run.
    ///
    /// # Errors
    /// The configuration key and what is wrong, one line.
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

    /// Whether anything is traced.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins the span of a request: in the trace that its headers name, or one of its own. It is over when it is ended.
    pub fn request(&self, name: &'static str, headers: &HeaderMap) -> Option<Context> {
        let on = self.0.as_ref()?;
        let parent = extract(&HeaderExtractor(headers));
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
        let span = on.tracer.build_with_context(span, &parent);
        Some(parent.with_span(span))
    }

    /// Writes the current trace into the headers of a message that is about to be published, where a broker has headers.
    pub fn inject(&self, headers: &mut Headers) {
        if self.0.as_ref().is_some_and(|on| on.has_headers) {
            TraceContextPropagator::new().inject_context(&Context::current(), &mut HeaderCarrier(headers));
        }
    }

    /// The span of a message that came from the broker, if its headers say that its trace is sampled. It ends when it is
    /// dropped.
    pub fn received(&self, message: &Message) -> Option<Span> {
        let on = self.0.as_ref()?;
        let parent = extract(&FieldsOf(&message.headers));
        if !parent.span().span_context().is_sampled() {
            return None;
        }
        let span = SpanBuilder::from_name("receive").with_kind(SpanKind::Consumer).with_attributes([
            KeyValue::new("messaging.system", on.system),
            KeyValue::new("messaging.operation.type", "receive"),
            KeyValue::new("messaging.destination.name", message.topic.as_str().to_owned()),
            KeyValue::new("messaging.message.body.size", message.payload.len() as i64),
        ]);
        Some(on.tracer.build_with_context(span, &parent))
    }
}

/// The topics of the current request, for its span. Without one nothing happens.
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

/// What the environment names (`OTEL_RESOURCE_ATTRIBUTES`), and who we are.
fn resource() -> Resource {
    Resource::builder()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The trace that headers name, in no trace if they name none.
fn extract(headers: &dyn Extractor) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Bounded(headers))
}

/// Leaves out what is longer than it has to be carried: a span holds on to it.
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
        // A trace without a state has an empty one here, which is no value of the field.
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}
