//! JetStream and buckets where something is unusual: markers, ids, header fields that cannot be read, streams that drop early,
//! streams that a rule cannot be read from.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::gateway::Gateway;
use common::jetstream::Admin;
use common::nats::NatsServer;
use serde_json::{Value, json};

const ORDERS: &str = "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"";

fn rules(server: &NatsServer, rules: &[&str]) -> String {
    let rule = |keys: &&str| format!("[[topics]]\nread = \"anyone\"\npublish = \"anyone\"\n{keys}\n");
    format!("broker.url = \"{}\"\n{}", server.url(), rules.iter().map(rule).collect::<String>())
}

async fn start() -> (NatsServer, Admin) {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    (server, admin)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_marker_of_an_expired_subject_is_a_deletion_live_and_later() {
    let (server, admin) = start().await;
    let second = 1_000_000_000u64;
    let limits = json!({"max_age": second, "allow_msg_ttl": true, "subject_delete_marker_ttl": 60 * second});
    admin.stream("ORDERS", &["orders.>"], limits).await;
    let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    admin.put("orders.eu", "here").await;
    assert_eq!(reader.message().await, "here");
    let deleted = reader.control("stream-delete").await;
    assert_eq!(deleted, json!({"topic": "orders/eu", "operation": "delete"}));
    // As another gateway reads it from the stream.
    let other = Gateway::with(&rules(&server, &[ORDERS])).await;
    let mut late = other.open("/topics/orders/eu?since=all").await;
    late.expect("stream-open").await;
    assert_eq!(late.control("stream-delete").await, deleted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_of_an_envelope_is_the_publishers_and_the_event_id_the_streams() {
    let (server, admin) = start().await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
    let mut reader = gateway.open("/topics/orders/eu?format=cloudevents").await;
    reader.expect("stream-open").await;
    admin.put_with("orders.eu", &[("Nats-Msg-Id", "o-17")], "1").await;
    admin.put("orders.eu", "2").await;
    let mut envelopes = Vec::new();
    for _ in 0..2 {
        let event = reader.expect("message").await;
        let envelope: Value = serde_json::from_str(&event.data).unwrap();
        assert!(reader.last_id.ends_with(&format!("-{}", envelopes.len() + 1)), "{}", reader.last_id);
        envelopes.push((envelope["id"].clone(), reader.last_id.clone()));
    }
    assert_eq!(envelopes[0].0, "o-17");
    assert_eq!(envelopes[1].0, json!(envelopes[1].1));
}
