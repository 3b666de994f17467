//! Traces: the spans that a collector receives, the traces that they belong to, and that nothing waits for a collector.

use std::time::Duration;

use crate::common::backend::{Backend, Reply};
use crate::common::client::{self, Reader};
use crate::common::gateway::Gateway;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use crate::common::{LIMIT, eventually, within};
use futures_util::StreamExt;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SAMPLED: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
const NOT_SAMPLED: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");

/// Makes the client of these tests a proxy, whose trace is believed.
const PROXY: &str = "proxies.trusted = [\"127.0.0.1\"]";

const OPEN: &str = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n";

/// A collector that takes everything.
async fn collector() -> Backend {
    Backend::start(|_| Reply::status(200)).await
}

/// A gateway that sends its spans there, with more of a configuration file.
async fn gateway(collector: &Backend, sample: f64, more: &str) -> Gateway {
    let endpoint = collector.url("");
    Gateway::with(&format!("{more}\n{OPEN}[traces]\nendpoint = \"{endpoint}\"\nsample = {sample}\n")).await
}

/// Every span that the collector was sent so far.
fn spans(collector: &Backend) -> Vec<Span> {
    let requests = collector.asked().into_iter().map(|asked| {
        assert_eq!((asked.method.as_str(), asked.uri.as_str()), ("POST", "/v1/traces"));
        assert_eq!(asked.header("content-type"), "application/x-protobuf");
        ExportTraceServiceRequest::decode(asked.body).unwrap()
    });
    let resources = requests.flat_map(|request| request.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

async fn wait_for(collector: &Backend, count: usize) -> Vec<Span> {
    eventually("the spans arrive", async || spans(collector).len() >= count).await;
    let spans = spans(collector);
    assert_eq!(spans.len(), count, "{spans:#?}");
    spans
}

/// An attribute, as text.
fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    let show = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::ArrayValue(array)) => array
            .values
            .iter()
            .filter_map(|value| value.value.as_ref().map(show))
            .collect::<Vec<_>>()
            .join(" "),
        Some(value) => show(value),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn publish(gateway: &Gateway, topic: &str, headers: &[(&str, &str)]) {
    let response = client::request(gateway.address, "POST", &format!("/topics/{topic}"), headers, b"x").await;
    assert_eq!(response.status, 202);
}

#[tokio::test]
async fn a_publish_is_a_span_in_the_trace_of_its_request() {
    let collector = collector().await;
    let gateway = gateway(&collector, 0.0, PROXY).await;
    publish(&gateway, "a/b", &[SAMPLED, ("tracestate", "vendor=1")]).await;
    let spans = wait_for(&collector, 1).await;
    let span = &spans[0];
    assert_eq!(
        (hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()),
        (TRACE, "b7ad6b7169203331")
    );
    assert_eq!((span.name.as_str(), span.kind()), ("POST /topics/{topic}", SpanKind::Server));
    assert_eq!(span.trace_state, "vendor=1");
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/topics/{topic}"),
        ("http.response.status_code", "202"),
        ("topicgate.topics", "a/b"),
    ] {
        assert_eq!(attribute(span, key), value, "{key}");
    }
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
}

#[tokio::test]
async fn a_client_does_not_decide_which_requests_are_traced() {
    let collector = collector().await;
    let gateway = gateway(&collector, 0.0, "proxies.trusted = [\"10.0.0.0/8\"]").await;
    publish(&gateway, "a", &[SAMPLED, ("x-forwarded-for", "10.0.0.1")]).await;
    let mut reader = Reader::open(gateway.address, "/topics/a", &[SAMPLED]).await;
    reader.expect("stream-open").await;
    // It reads the trace that it is in from nobody, and begins one of its own where it is to be traced.
    let traced = self::gateway(&collector, 1.0, "").await;
    publish(&traced, "b", &[NOT_SAMPLED, ("tracestate", "vendor=1")]).await;
    let spans = wait_for(&collector, 1).await;
    assert_eq!(attribute(&spans[0], "topicgate.topics"), "b");
    assert_ne!(hex(&spans[0].trace_id), TRACE);
    assert_eq!((spans[0].parent_span_id.len(), spans[0].trace_state.as_str()), (0, ""));
}

#[tokio::test]
async fn an_opened_stream_is_a_span_that_names_its_topics_and_no_url() {
    let collector = collector().await;
    let gateway = gateway(&collector, 1.0, "").await;
    let mut reader = gateway.open("/topics?topic=a&topic=b/*&access_token=s3cret").await;
    reader.expect("stream-open").await;
    let spans = wait_for(&collector, 1).await;
    assert_eq!((spans[0].name.as_str(), spans[0].kind()), ("GET /topics", SpanKind::Server));
    assert_eq!(attribute(&spans[0], "topicgate.topics"), "a b/*");
    assert_eq!(attribute(&spans[0], "http.response.status_code"), "200");
    assert!(!format!("{spans:?}").contains("s3cret"));
    assert!(spans[0].parent_span_id.is_empty());
}

#[tokio::test]
async fn a_refusal_and_a_stream_that_has_to_come_back_carry_their_code() {
    let collector = collector().await;
    let gateway = gateway(&collector, 1.0, "limits = { streams = 1 }").await;
    assert_eq!(gateway.get("/topics/a//b").await.status, 400);
    let mut first = gateway.open("/topics/a").await;
    first.expect("stream-open").await;
    let mut second = gateway.open("/topics/a").await;
    second.expect("stream-close").await;
    let mut codes: Vec<_> =
        wait_for(&collector, 3).await.iter().map(|span| attribute(span, "topicgate.code")).collect();
    codes.sort();
    assert_eq!(codes, ["", "bad_topic", "overloaded"]);
}

#[tokio::test]
async fn a_message_through_nats_is_one_trace_from_the_request_to_its_arrival_for_any_number_of_readers() {
    let nats = NatsServer::start();
    let collector = collector().await;
    let gateway = gateway(&collector, 1.0, &format!("broker.url = \"{}\"", nats.url())).await;
    let mut readers: Vec<Reader> = Vec::new();
    for _ in 0..3 {
        let mut reader = gateway.open("/topics/a").await;
        reader.expect("stream-open").await;
        readers.push(reader);
    }
    publish(&gateway, "a", &[]).await;
    for reader in &mut readers {
        assert_eq!(reader.message().await, "x");
    }
    // Three streams, the request, and the message once.
    let spans = wait_for(&collector, 5).await;
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let (sent, received) = (named("POST /topics/{topic}"), named("receive"));
    assert_eq!((sent.len(), received.len()), (1, 1));
    assert_eq!(received[0].trace_id, sent[0].trace_id);
    assert_eq!(received[0].parent_span_id, sent[0].span_id);
    assert_eq!(received[0].kind(), SpanKind::Consumer);
    for (key, value) in [
        ("messaging.system", "nats"),
        ("messaging.destination.name", "a"),
        ("messaging.operation.type", "receive"),
        ("messaging.message.body.size", "1"),
    ] {
        assert_eq!(attribute(received[0], key), value, "{key}");
    }
}

#[tokio::test]
async fn messages_of_other_publishers_are_traced_as_their_headers_say() {
    let nats = NatsServer::start();
    let collector = collector().await;
    let gateway = gateway(&collector, 0.0, &format!("broker.url = \"{}\"", nats.url())).await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let publisher = async_nats::connect(nats.url()).await.unwrap();
    let long = "v=".repeat(1000);
    for (headers, payload) in [
        (vec![NOT_SAMPLED], "not sampled"),
        (vec![("traceparent", "00-nonsense")], "nonsense"),
        (vec![("traceparent", long.as_str())], "too long"),
        (vec![SAMPLED, ("tracestate", long.as_str())], "sampled"),
    ] {
        let mut fields = async_nats::HeaderMap::new();
        headers.iter().for_each(|(name, value)| fields.insert(*name, *value));
        publisher.publish_with_headers("a", fields, payload.into()).await.unwrap();
        publisher.flush().await.unwrap();
        assert_eq!(reader.message().await, payload);
    }
    let spans = wait_for(&collector, 1).await;
    assert_eq!((hex(&spans[0].trace_id).as_str(), spans[0].name.as_str()), (TRACE, "receive"));
    assert_eq!(spans[0].trace_state, "");
}

#[tokio::test]
async fn without_a_collector_in_the_configuration_messages_are_published_as_they_are() {
    let nats = NatsServer::start();
    let gateway = Gateway::with(&format!("broker.url = \"{}\"\n{OPEN}", nats.url())).await;
    let reader = async_nats::connect(nats.url()).await.unwrap();
    let mut messages = reader.subscribe("a").await.unwrap();
    // What comes back shows that the server knows of the subscription.
    reader.publish("a", "subscribed".into()).await.unwrap();
    let mut next = async || within("a message", LIMIT, messages.next()).await.unwrap();
    assert_eq!(next().await.payload, "subscribed");
    publish(&gateway, "a", &[SAMPLED]).await;
    let message = next().await;
    assert_eq!((message.payload, message.headers), ("x".into(), None));
}

#[tokio::test]
async fn publishing_to_a_broker_without_headers_is_traced_too() {
    let redis = RedisServer::start();
    let collector = collector().await;
    let gateway = gateway(&collector, 1.0, &format!("broker.url = \"{}\"", redis.url())).await;
    publish(&gateway, "a", &[]).await;
    assert_eq!(attribute(&wait_for(&collector, 1).await[0], "topicgate.topics"), "a");
}

#[tokio::test]
async fn only_the_configured_share_of_the_requests_is_traced() {
    let collector = collector().await;
    let gateway = gateway(&collector, 0.0, PROXY).await;
    publish(&gateway, "a", &[]).await;
    publish(&gateway, "a", &[NOT_SAMPLED]).await;
    publish(&gateway, "a", &[SAMPLED]).await;
    // In order, so the first two would be there too.
    assert_eq!(hex(&wait_for(&collector, 1).await[0].trace_id), TRACE);
}

#[tokio::test]
async fn a_collector_that_hangs_or_is_down_delays_nothing_and_the_dropped_spans_are_counted() {
    let collector = Backend::start(|_| Reply::status(200).held()).await;
    // Each of the many requests counts against the pace of its address.
    let gateway = gateway(&collector, 1.0, "limits.opens_per_second = 100000").await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let mut connection = client::Connection::open(gateway.address).await;
    let dropped = "topicgate_spans_total{result=\"dropped\"}";
    // A refusal has its span too, and is quicker had than a message.
    let mut requests = 0;
    while gateway.metric(dropped).await == 0.0 {
        for _ in 0..500 {
            assert_eq!(connection.request("GET", "/topics/a//b", &[]).await, 400);
        }
        requests += 500;
        assert!(requests < 20_000, "the queue has an end");
    }
    publish(&gateway, "a", &[]).await;
    assert_eq!(reader.message().await, "x");
    let failed = async || gateway.metric("topicgate_spans_total{result=\"failed\"}").await > 0.0;
    eventually("the collector is given up", failed).await;
}

#[tokio::test]
async fn a_batch_that_the_collector_refuses_is_lost_and_the_next_is_sent() {
    let collector = Backend::start(|_| Reply::status(400)).await;
    let gateway = gateway(&collector, 1.0, "").await;
    let spans =
        async |result: &str| gateway.metric(&format!("topicgate_spans_total{{result=\"{result}\"}}")).await;
    publish(&gateway, "a", &[]).await;
    eventually("it is counted", async || spans("failed").await == 1.0).await;
    collector.answer(|_| Reply::status(200));
    publish(&gateway, "a", &[]).await;
    eventually("the next arrives", async || spans("exported").await == 1.0).await;
    assert_eq!(spans("dropped").await, 0.0);
}

#[tokio::test]
async fn the_last_spans_are_sent_before_the_process_ends_and_a_dead_collector_does_not_hold_it_up() {
    let collector = collector().await;
    let gateway = gateway(&collector, 1.0, "").await;
    publish(&gateway, "a", &[]).await;
    gateway.ended().await;
    assert_eq!(spans(&collector).len(), 1);

    let dead = Backend::start(|_| Reply::status(200).held()).await;
    let gateway = self::gateway(&dead, 1.0, "").await;
    publish(&gateway, "a", &[]).await;
    within("the end", Duration::from_secs(4), gateway.ended()).await;
}
