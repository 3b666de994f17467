//! JetStream streams and buckets, as a reader of a gateway sees them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::process::Process;
use crate::common::{LIMIT, eventually};
use serde_json::{Value, json};

fn rules(server: &NatsServer, rules: &[&str]) -> String {
    let rule = |keys: &&str| format!("[[topics]]\nread = \"anyone\"\npublish = \"anyone\"\n{keys}\n");
    format!("broker.url = \"{}\"\n{}", server.url(), rules.iter().map(rule).collect::<String>())
}

const ORDERS: &str = "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"";
const PRICES: &str = "match = \"prices/**\"\nsource = \"kv\"\nbucket = \"PRICES\"";

/// Consumers that the broker's own monitoring knows of.
fn consumers(server: &NatsServer) -> u64 {
    server.monitor("/jsz?consumers=true")["consumers"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_topics_of_a_rule_are_one_consumer() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let limits = "[limits]\nstreams_per_address = 1000\ntopics_per_address = 100000\n";
    let gateway = Gateway::with(&format!("{}{limits}", rules(&server, &[ORDERS]))).await;
    let mut readers = Vec::new();
    // 50 streams of 100 topics.
    for stream in 0..50 {
        let topics: Vec<_> = (0..100).map(|topic| format!("topic=orders/{stream}/{topic}")).collect();
        let mut reader = gateway.open(&format!("/topics?{}", topics.join("&"))).await;
        reader.expect("stream-open").await;
        readers.push(reader);
    }
    // And the rule's own.
    eventually("5,000 topics are held", async || gateway.metric("topicgate_topics").await == 5001.0).await;
    assert_eq!(consumers(&server), 1);
    for (stream, reader) in readers.iter_mut().enumerate() {
        admin.put(&format!("orders.{stream}.{}", stream * 2), stream.to_string()).await;
        assert_eq!(reader.message().await, stream.to_string());
    }
    // A reader that resumes messages that are no longer in memory adds no consumer either.
    let mut late = gateway.open("/topics/orders/**?since=all").await;
    late.expect("stream-open").await;
    assert_eq!(late.messages(50).await.len(), 50);
    assert_eq!(consumers(&server), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_answers_the_event_id_that_readers_will_see_while_nothing_can_be_read_too() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    let few = json!({"max_consumers": 1});
    admin.stream("ORDERS", &["orders.>"], few.clone()).await;
    admin.bucket("PRICES", few).await;
    for stream in ["ORDERS", "KV_PRICES"] {
        let config = json!({"durable_name": "other", "ack_policy": "explicit"});
        let question = json!({"stream_name": stream, "config": config});
        admin.tell(&format!("CONSUMER.DURABLE.CREATE.{stream}.other"), question).await;
    }
    let gateway = Gateway::with(&rules(&server, &[ORDERS, PRICES])).await;
    for (path, stream) in [("/topics/orders/eu", "ORDERS"), ("/topics/prices/eur", "KV_PRICES")] {
        let posted = gateway.post(path, "1").await;
        assert_eq!(posted.status, 202, "{}", posted.text());
        let id = posted.json()["id"].as_str().expect("an id").to_owned();
        admin.tell(&format!("CONSUMER.DELETE.{stream}.other"), json!({})).await;
        let begin = std::time::Instant::now();
        let mut reader = loop {
            let mut reader = gateway.open(&format!("{path}?last=1")).await;
            if reader.next().await.unwrap().event == "stream-open" {
                break reader;
            }
            assert!(begin.elapsed() < LIMIT, "it cannot be read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let event = reader.next().await.unwrap();
        assert_eq!((event.data.as_str(), event.id.as_str()), ("1", id.as_str()));
        let live = gateway.post(path, "2").await.json();
        let event = reader.next().await.unwrap();
        assert_eq!((event.data.as_str(), event.id.as_str()), ("2", live["id"].as_str().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_broker_finds_too_large_is_413_with_the_limit_and_one_line_warns() {
    let server = NatsServer::jetstream_with("max_payload: 2048");
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({"max_msg_size": 1024})).await;
    admin.bucket("PRICES", json!({"max_msg_size": 1024})).await;
    let gateway = Gateway::with(&rules(&server, &["match = \"plain\"", ORDERS, PRICES])).await;
    for (path, size, words) in [
        ("/topics/plain", 3000, "at most 2048"),
        ("/topics/orders/eu", 3000, "at most 2048"),
        ("/topics/orders/eu", 1500, "max_msg_size"),
        ("/topics/prices/eur", 1500, "max_value_size"),
    ] {
        let refused = gateway.post(path, "x".repeat(size)).await;
        let said = refused.json();
        assert_eq!((refused.status, said["code"].as_str()), (413, Some("too_large")), "{path}: {said}");
        assert!(said["detail"].as_str().unwrap().contains(words), "{path}: {said}");
        assert_eq!(gateway.post(path, "x".repeat(500)).await.status, 202, "{path}");
    }
    let url = server.url();
    let rules = "[{ match = \"plain\", read = \"anyone\", publish = \"anyone\" }]";
    let process = Process::start(&[("TOPICGATE_BROKER__URL", &url), ("TOPICGATE_TOPICS", rules)]).await;
    let warnings = || process.log().matches("less than limits.message").count();
    eventually("it warns", async || warnings() > 0).await;
    // Nothing is to come: longer than it takes until it is looked at again.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(warnings(), 1);
}

/// Reads on until a stream that is not closed at once, as a browser does.
async fn come_back(gateway: &Gateway, path: &str, id: &str) -> (Reader, Value) {
    let begin = std::time::Instant::now();
    loop {
        let mut reader = gateway.resume(path, id).await;
        let event = reader.next().await.unwrap();
        match event.event.as_str() {
            "stream-close" => assert!(begin.elapsed() < LIMIT, "{}", event.data),
            _ => return (reader, json!({"event": event.event, "data": event.data})),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_under_a_live_reader_is_no_gap_and_under_an_absent_one_it_is() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let config = rules(&server, &[ORDERS]);
    let gateway = Gateway::with(&config).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    admin.put("orders.eu", "1").await;
    assert_eq!(reader.message().await, "1");
    let id = reader.last_id.clone();
    admin.put("orders.eu", "2").await;
    assert_eq!(reader.message().await, "2");
    admin.purge("ORDERS").await;
    admin.put("orders.eu", "3").await;
    assert_eq!(reader.message().await, "3");
    // The memory of this gateway still has it; that of another never had.
    let mut same = gateway.resume("/topics/orders/eu", &id).await;
    assert_eq!(same.control("stream-open").await["resumed"], true);
    assert_eq!(same.messages(2).await, ["2", "3"]);
    let other = Gateway::with(&config).await;
    let mut moved = other.resume("/topics/orders/eu", &id).await;
    assert_eq!(moved.control("stream-open").await["resumed"], false);
    assert_eq!(moved.control("stream-gap").await["reason"], "evicted");
    assert_eq!(moved.message().await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_deleted_and_created_again_is_another_one() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let gateway = Gateway::with(&rules(&server, &[ORDERS])).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    for number in 1..=3 {
        admin.put("orders.eu", number.to_string()).await;
        assert_eq!(reader.message().await, number.to_string());
    }
    admin.delete("ORDERS").await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    for number in 11..=15 {
        admin.put("orders.eu", number.to_string()).await;
    }
    // None of its messages is sent as the continuation after 3.
    let close = reader.control("stream-close").await;
    assert_eq!(close["code"], "restarted", "{close}");
    let (mut back, first) = come_back(&gateway, "/topics/orders/eu", &reader.last_id).await;
    let open: Value = serde_json::from_str(first["data"].as_str().unwrap()).unwrap();
    assert_eq!((&first["event"], &open["resumed"]), (&json!("stream-open"), &json!(false)));
    assert_eq!(back.control("stream-gap").await["reason"], "restarted");
    assert_eq!(back.messages(5).await, ["11", "12", "13", "14", "15"]);
    admin.put("orders.eu", "16").await;
    assert_eq!(back.message().await, "16");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_deleted_messages_are_a_gap_for_every_reader_that_passes_them() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let config = rules(&server, &[ORDERS]);
    let gateway = Gateway::with(&config).await;
    let mut reader = gateway.open("/topics/orders/**").await;
    reader.expect("stream-open").await;
    let mut ids = Vec::new();
    for number in 1..=30 {
        admin.put(&format!("orders.{}", number % 3), number.to_string()).await;
        assert_eq!(reader.message().await, number.to_string());
        ids.push(reader.last_id.clone());
    }
    let gone = [5, 12, 13, 21];
    for number in gone {
        admin.tell("STREAM.MSG.DELETE.ORDERS", json!({"seq": number})).await;
    }
    // One after the other, so that later readers find the ranges that were fetched for earlier ones.
    let other = Gateway::with(&config).await;
    for (index, id) in ids.iter().enumerate() {
        let mut reader = other.resume("/topics/orders/**", id).await;
        let after = index as u64 + 1;
        let (mut told, mut last) = (BTreeSet::new(), after);
        let mut is_told = false;
        while last < 30 {
            let event = reader.next().await.unwrap();
            match event.event.as_str() {
                "stream-open" => {}
                "stream-gap" => is_told = true,
                "message" => {
                    let number: u64 = event.data.parse().unwrap();
                    let missing = (last + 1..number).count() > 0;
                    assert!(!missing || is_told, "after {after}: {number} after {last} without a gap");
                    told.insert(number);
                    last = number;
                }
                other => panic!("{other}"),
            }
        }
        let expected: BTreeSet<u64> = (after + 1..=30).filter(|number| !gone.contains(number)).collect();
        assert_eq!(told, expected, "after {after}");
        assert_eq!(is_told, gone.iter().any(|number| *number > after), "after {after}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_its_state_and_then_its_changes() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.bucket("PRICES", json!({})).await;
    for round in 0..3 {
        for key in ["eur", "usd.bid", "old"] {
            admin.put(&format!("$KV.PRICES.{key}"), format!("{key} {round}")).await;
        }
    }
    admin.put_with("$KV.PRICES.old", &[("KV-Operation", "DEL")], "").await;
    let gateway = Gateway::with(&rules(&server, &[PRICES])).await;
    let mut all = gateway.open("/topics/prices/**").await;
    all.expect("stream-open").await;
    assert_eq!(all.messages(2).await, ["eur 2", "usd.bid 2"]);
    let mut one = gateway.open("/topics/prices/usd/bid").await;
    one.expect("stream-open").await;
    assert_eq!(one.message().await, "usd.bid 2");
    gateway.publish("prices/usd/bid", "usd.bid 3").await;
    assert_eq!((all.message().await, one.message().await), ("usd.bid 3".into(), "usd.bid 3".into()));
    admin.put_with("$KV.PRICES.usd.bid", &[("KV-Operation", "DEL")], "").await;
    for reader in [&mut all, &mut one] {
        let deleted = reader.next().await.unwrap();
        assert_eq!(deleted.event, "stream-delete", "{deleted:?}");
    }
    // A reader that was away for a moment receives the messages that it missed, including the deletion.
    let id = one.last_id.clone();
    drop(one);
    gateway.publish("prices/usd/bid", "usd.bid 4").await;
    let mut back = gateway.resume("/topics/prices/usd/bid", &id).await;
    assert_eq!(back.control("stream-open").await["resumed"], true);
    assert_eq!((back.message().await, all.message().await), ("usd.bid 4".into(), "usd.bid 4".into()));
    let id = back.last_id.clone();
    drop(back);
    admin.put_with("$KV.PRICES.usd.bid", &[("KV-Operation", "DEL")], "").await;
    all.expect("stream-delete").await;
    for path in ["/topics/prices/usd/bid", "/topics/prices/**", "/topics/prices/**?every=100ms"] {
        let mut back = gateway.resume(path, &id).await;
        assert_eq!(back.control("stream-open").await["resumed"], true);
        assert_eq!(back.control("stream-delete").await["topic"], "prices/usd/bid", "{path}");
    }
    assert_eq!(consumers(&server), 1);
}
