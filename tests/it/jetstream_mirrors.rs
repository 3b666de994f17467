//! Readers of a JetStream stream or a bucket that has a mirror. The mirror also answers Direct Get requests for its origin, with
//! its own messages. For each request the server chooses one of the two, so each test reads often enough for both.

use std::collections::BTreeSet;

use crate::common::LIMIT;
use crate::common::client::Reader;
use crate::common::found;
use crate::common::gateway::Gateway;
use crate::common::jetstream::{Admin, start};
use crate::common::nats::NatsServer;
use serde_json::{Value, json};

const ROUNDS: usize = 8;

fn rule(server: &NatsServer, keys: &str) -> String {
    format!("broker.url = \"{}\"\n[[topics]]\nread = \"anyone\"\n{keys}\n", server.url())
}

/// A mirror with these settings, once it has `messages` messages.
async fn mirror(admin: &Admin, name: &str, origin: Value, more: Value, messages: u64) {
    let mut config = json!({
        "mirror": origin, "allow_direct": true, "mirror_direct": true,
        "retention": "limits", "storage": "file", "num_replicas": 1,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config["name"] = json!(name);
    admin.tell(&format!("STREAM.CREATE.{name}"), config).await;
    found("the mirror has its messages", LIMIT, async || {
        let info = admin.ask(&format!("STREAM.INFO.{name}"), json!({})).await;
        (info["state"]["messages"] == json!(messages)).then_some(())
    })
    .await;
}

/// `n` messages of each of the topics `o/a` and `o/b` in turns, numbered from 1.
async fn fill(admin: &Admin, n: u64) {
    for number in 1..=2 * n {
        let topic = if number % 2 == 0 { "o.a" } else { "o.b" };
        admin.put(topic, number.to_string()).await;
    }
}

/// What comes after `stream-open` until the message `last`: messages, and the names of other events.
async fn until(reader: &mut Reader, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|text| text != last) {
        let event = reader.next().await.unwrap();
        all.push(if event.event == "message" { event.data } else { event.event });
    }
    all
}

async fn every_reader_gets_all(origin: Value, more: Value, mirrored: u64) {
    let (server, admin) = start().await;
    admin.stream("O", &["o.>"], json!({})).await;
    fill(&admin, 20).await;
    mirror(&admin, "M", origin, more, mirrored).await;
    let config = rule(&server, "match = \"o/**\"\nsource = \"jetstream\"\nstream = \"O\"");
    for _ in 0..ROUNDS {
        // A new gateway has nothing in memory, and does not know of the mirror.
        let gateway = Gateway::with(&config).await;
        for (path, step, last) in [("o/**", 1, 40), ("o/a", 2, 40), ("o/b", 2, 39)] {
            let first = if step == 1 { 1 } else { last - 38 };
            let wanted: Vec<String> = (first..=last).step_by(step).map(|n: u64| n.to_string()).collect();
            let mut reader = gateway.open(&format!("/topics/{path}?since=all")).await;
            reader.expect("stream-open").await;
            assert_eq!(until(&mut reader, &last.to_string()).await, wanted, "{path}");
            let mut reader = gateway.open(&format!("/topics/{path}?last=15")).await;
            reader.expect("stream-open").await;
            assert_eq!(until(&mut reader, &last.to_string()).await, wanted[wanted.len() - 15..], "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_keeps_less_takes_nothing_from_the_readers_of_its_origin() {
    every_reader_gets_all(json!({"name": "O"}), json!({"max_msgs": 10}), 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_some_subjects_takes_nothing_from_the_readers_of_its_origin() {
    every_reader_gets_all(json!({"name": "O", "filter_subject": "o.b"}), json!({}), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_a_stream_that_was_replaced_does_not_pass_its_messages_off_as_the_new_ones() {
    let (server, admin) = start().await;
    admin.stream("O", &["o.>"], json!({})).await;
    for number in 0..5 {
        admin.put("o.a", format!("old {number}")).await;
    }
    mirror(&admin, "M", json!({"name": "O"}), json!({}), 5).await;
    admin.delete("O").await;
    admin.stream("O", &["o.>"], json!({})).await;
    for number in 0..5 {
        admin.put("o.a", format!("new {number}")).await;
    }
    let config = rule(&server, "match = \"o/**\"\nsource = \"jetstream\"\nstream = \"O\"");
    for _ in 0..ROUNDS {
        let gateway = Gateway::with(&config).await;
        let mut reader = gateway.open("/topics/o/a?since=all").await;
        reader.expect("stream-open").await;
        let wanted: Vec<String> = (0..5).map(|number| format!("new {number}")).collect();
        assert_eq!(reader.messages(5).await, wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_some_keys_takes_none_from_the_readers_of_a_bucket() {
    let (server, admin) = start().await;
    admin.bucket("P", json!({"max_msgs_per_subject": 3})).await;
    for round in 0..2 {
        for key in 0..20 {
            admin
                .put(&format!("$KV.P.{}.{key}", if key % 2 == 0 { "x" } else { "y" }), round.to_string())
                .await;
        }
    }
    let some = json!({"name": "KV_P", "filter_subject": "$KV.P.x.>"});
    mirror(&admin, "KV_M", some, json!({"max_msgs_per_subject": 3}), 20).await;
    let config = rule(&server, "match = \"p/**\"\nsource = \"kv\"\nbucket = \"P\"");
    for _ in 0..ROUNDS {
        let gateway = Gateway::with(&config).await;
        let mut reader = gateway.open("/topics/p/**").await;
        reader.expect("stream-open").await;
        let mut newest = BTreeSet::new();
        while newest.len() < 20 {
            let event = reader.expect("message").await;
            if event.data == "1" {
                newest.insert(reader.last_id.clone());
            }
        }
    }
}
