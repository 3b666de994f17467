//! `data = { pointer = … }`: the payload is taken out of its JSON envelope, for every source, live and replayed.

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use crate::common::upstream::Upstream;

/// The messages of publishers, and the payloads that readers get.
const ENVELOPES: [(&str, &str, &str); 9] = [
    (
        r#"{"event":"price","data":{"eur": 3.10, "id": 12345678901234567890123},"socket":null}"#,
        "price",
        r#"{"eur":3.10,"id":12345678901234567890123}"#,
    ),
    (r#"{"data":"<b>\u00e9</b>\nnext","event":"html"}"#, "html", "<b>é</b>\nnext"),
    (r#"{"event":"none","data":null}"#, "none", "null"),
    (r#"{"event":"twice","data":1,"data":[2 , 3]}"#, "twice", "[2,3]"),
    (r#"{"event":"huge","data":1e999}"#, "huge", "1e999"),
    (r#"{"event":"empty","data":""}"#, "empty", ""),
    // Delivered as they are.
    (r#"{"event":"missing"}"#, "missing", r#"{"event":"missing"}"#),
    (r#"{"event":"half","data":"\ud800"}"#, "half", r#"{"event":"half","data":"\ud800"}"#),
    ("text", "message", "text"),
];

const RULE: &str = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\ntype = { pointer = \"/event\" }\n\
                    data = { pointer = \"/data\" }\n";

/// A stream whose first event was read.
async fn open(gateway: &Gateway, path: &str) -> Reader {
    let mut reader = gateway.open(path).await;
    reader.expect("stream-open").await;
    reader
}

/// Whether a gateway counts three messages that have no payload where the rule says.
async fn assert_reported(gateway: &Gateway) {
    let counted = gateway.metric("topicgate_rejected_total{what=\"data\"}").await;
    assert_eq!(counted, 3.0, "messages without a value at the pointer");
}

/// Reads the messages of `a`: live, and again from the start.
async fn assert_unwrapped(gateway: &Gateway, publish: impl AsyncFn(&str)) {
    let mut live = open(gateway, "/topics/a").await;
    for (envelope, ..) in ENVELOPES {
        publish(envelope).await;
    }
    let mut events = Vec::new();
    for (_, kind, data) in ENVELOPES {
        let event = live.expect(kind).await;
        assert_eq!(event.data, data);
        events.push(event);
    }
    assert_reported(gateway).await;
    let mut again = open(gateway, "/topics/a?last=9").await;
    for event in &events {
        let replayed = again.expect(&event.event).await;
        assert_eq!((&replayed.id, &replayed.data), (&event.id, &event.data));
    }
}

#[tokio::test]
async fn the_embedded_broker_unwraps_payloads() {
    let gateway = Gateway::with(RULE).await;
    assert_unwrapped(&gateway, async |envelope| gateway.publish("a", envelope).await).await;
}

#[tokio::test]
async fn payloads_of_nats_and_of_redis_are_unwrapped() {
    for upstream in [Upstream::nats().await, Upstream::redis().await] {
        let gateway = Gateway::with(&format!("broker.url = \"{}\"\n{RULE}", upstream.url())).await;
        assert_unwrapped(&gateway, async |envelope| upstream.publish("a", envelope).await).await;
    }
}

/// Reads the same stored messages through another gateway, which has nothing in memory.
async fn assert_same_from_the_broker(toml: &str, of_first: &Gateway) {
    let other = Gateway::with(toml).await;
    let mut stored = open(&other, "/topics/a?since=all").await;
    let mut held = open(of_first, "/topics/a?since=all").await;
    for (_, kind, data) in ENVELOPES {
        let (stored, held) = (stored.expect(kind).await, held.expect(kind).await);
        assert_eq!((&*stored.data, stored.id), (data, held.id));
        assert_eq!(stored.data, held.data);
    }
    assert_reported(&other).await;
}

#[tokio::test]
async fn a_jetstream_stream_gives_the_same_payloads_live_and_from_the_broker() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("A", &["a"], serde_json::json!({})).await;
    let toml = format!(
        "broker.url = \"{}\"\n{}source = \"jetstream\"\n",
        server.url(),
        RULE.replace("\"**\"", "\"a\"")
    );
    let gateway = Gateway::with(&toml).await;
    let put = async |envelope: &str| _ = admin.put("a", envelope.to_owned()).await;
    assert_unwrapped(&gateway, put).await;
    assert_same_from_the_broker(&toml, &gateway).await;
}

#[tokio::test]
async fn a_redis_stream_gives_the_same_payloads_live_and_from_the_broker() {
    let server = RedisServer::start();
    let toml = format!(
        "broker.url = \"{}\"\n{RULE}source = \"redis-stream\"\npayload = {{ field = \"p\" }}\n",
        server.url()
    );
    let gateway = Gateway::with(&toml).await;
    let connection = server.connect().await;
    let add = async |envelope: &str| {
        let mut add = redis::cmd("XADD");
        add.arg("a").arg("*").arg("p").arg(envelope).exec_async(&mut connection.clone()).await.unwrap();
    };
    assert_unwrapped(&gateway, add).await;
    assert_same_from_the_broker(&toml, &gateway).await;
}

#[tokio::test]
async fn the_whole_document_unwraps_a_json_string_and_bytes_are_left_alone() {
    let toml = RULE.replace("\"/data\"", "\"\"").replace("type =", "#type =");
    let gateway = Gateway::with(&toml).await;
    let mut reader = open(&gateway, "/topics/a").await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for (sent, data) in [
        (&br#""\u003cturbo-stream action=\"append\"\u003e\n""#[..], "<turbo-stream action=\"append\">\n"),
        (br#" { "a" : [ 1 , "x y" ] } "#, r#"{"a":[1,"x y"]}"#),
        (b"\"a\xff\"", "data:application/octet-stream;base64,ImH/Ig=="),
        (b"\"\\uDC00\"", "\"\\uDC00\""),
        (deep.as_bytes(), &deep),
        (b"", ""),
    ] {
        gateway.publish("a", sent).await;
        assert!(reader.message().await == data, "{}", String::from_utf8_lossy(&sent[..sent.len().min(99)]));
    }
}

#[tokio::test]
async fn an_envelope_with_an_envelope_of_cloudevents_has_the_payload_as_its_data() {
    let gateway = Gateway::with(RULE).await;
    let mut reader = open(&gateway, "/topics/a?format=cloudevents").await;
    gateway.publish("a", r#"{"event":"price","data":{"eur":3}}"#).await;
    let event: serde_json::Value = serde_json::from_str(&reader.expect("price").await.data).unwrap();
    assert_eq!((&event["type"], &event["data"]), (&"price".into(), &serde_json::json!({"eur":3})));
}
