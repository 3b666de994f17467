//! Reloads that change the feed of a topic: its own subscription, the one of a warm rule, or the one of another rule.

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use serde_json::json;

async fn opened(gateway: &Gateway, path: &str) -> Reader {
    let mut reader = gateway.open(path).await;
    reader.expect("stream-open").await;
    reader
}

fn rule(keys: &str) -> String {
    format!("[[topics]]\nread = \"anyone\"\npublish = \"anyone\"\n{keys}\n")
}

/// Resumes at `id` after the message `seen`, when `published` is the last one: missing messages must be reported by a gap,
/// and no message comes twice.
async fn resumes_or_gets_a_gap(gateway: &Gateway, path: &str, id: &str, seen: u32, published: u32) {
    let mut reader = gateway.resume(path, id).await;
    reader.expect("stream-open").await;
    let (mut next, mut is_told) = (seen + 1, false);
    gateway.publish(path.strip_prefix("/topics/").unwrap(), (published + 1).to_string()).await;
    while next <= published + 1 {
        let event = reader.next().await.unwrap();
        if event.event == "stream-gap" {
            is_told = true;
            continue;
        }
        let number: u32 = event.data.parse().unwrap();
        assert!(number >= next, "{number} came twice, after {seen}");
        assert!(number == next || is_told, "{next} was lost in silence: {number} came after {seen}");
        next = number + 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_from_before_a_rule_became_warm_is_no_position_in_the_warm_rule() {
    let toml = |warm: bool| rule(&format!("match = \"**\"\nreplay = {{ warm = {warm}, linger = \"0s\" }}"));
    let gateway = Gateway::with(&toml(false)).await;
    let mut reader = opened(&gateway, "/topics/a").await;
    let mut other = opened(&gateway, "/topics/b").await;
    assert!(gateway.reload_with(&toml(true)));
    // As soon as this one is there, so is the subscription of the rule.
    let probe = opened(&gateway, "/topics/**").await;
    let mut ids = Vec::new();
    for number in 0..20_u32 {
        gateway.publish("a", number.to_string()).await;
        assert_eq!(reader.message().await, number.to_string());
        ids.push(reader.last_id.clone());
        gateway.publish("b", "x").await;
        other.message().await;
    }
    drop((reader, other, probe));
    eventually("the topics are given up", async || gateway.metric("topicgate_topics").await == 1.0).await;
    for (published, (seen, id)) in (19..).zip(ids.iter().enumerate()) {
        resumes_or_gets_a_gap(&gateway, "/topics/a", id, seen as u32, published).await;
        eventually("the topic is given up", async || gateway.metric("topicgate_topics").await == 1.0).await;
        if seen == 3 {
            break; // a second each
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_another_warm_rule_takes_over_accepts_no_cursor_of_the_first_rule() {
    let warm =
        |pattern: &str| rule(&format!("match = \"{pattern}\"\nreplay = {{ warm = true, linger = \"0s\" }}"));
    let (narrow, wide) = (format!("{}{}", warm("a/*"), warm("**")), warm("**"));
    let gateway = Gateway::with(&narrow).await;
    let probe = [opened(&gateway, "/topics/a/*").await, opened(&gateway, "/topics/**").await];
    let mut reader = opened(&gateway, "/topics/a/b").await;
    let mut ids = Vec::new();
    for number in 0..10_u32 {
        gateway.publish("a/b", number.to_string()).await;
        assert_eq!(reader.message().await, number.to_string());
        ids.push(reader.last_id.clone());
    }
    drop((reader, probe));
    // A reader that is away while the rule is removed reconnects to the other rule.
    assert!(gateway.reload_with(&wide));
    eventually("the first is given up", async || gateway.metric("topicgate_topics").await == 1.0).await;
    resumes_or_gets_a_gap(&gateway, "/topics/a/b", &ids[4], 4, 9).await;
    // And the other way round.
    let mut reader = opened(&gateway, "/topics/a/b").await;
    gateway.publish("a/b", "11").await;
    assert_eq!(reader.message().await, "11");
    let id = reader.last_id.clone();
    assert!(gateway.reload_with(&narrow));
    gateway.publish("a/b", "12").await;
    assert_eq!(reader.message().await, "12");
    drop(reader);
    eventually("both rules are held", async || gateway.metric("topicgate_topics").await == 2.0).await;
    resumes_or_gets_a_gap(&gateway, "/topics/a/b", &id, 11, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_changes_no_matching_rule_keeps_the_messages_of_a_warm_rule() {
    let toml = |limit: u32| {
        let rules =
            rule("match = \"other\"") + &rule("match = \"**\"\nreplay = { warm = true, linger = \"0s\" }");
        format!("{rules}[limits]\nstreams = {limit}\n")
    };
    let gateway = Gateway::with(&toml(100)).await;
    let probe = opened(&gateway, "/topics/a").await;
    gateway.publish("a", "0").await;
    let id = probe.last_id.clone();
    drop(probe);
    eventually("the topic is given up", async || gateway.metric("topicgate_topics").await == 1.0).await;
    assert!(gateway.reload_with(&toml(200)));
    let mut back = gateway.resume("/topics/a", &id).await;
    assert_eq!(back.control("stream-open").await["resumed"], true);
    assert_eq!(back.message().await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrower_stored_rule_is_served_at_once_though_its_pattern_has_a_reader() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let stored = |pattern: &str, source: &str| {
        rule(&format!("match = \"{pattern}\"\n{source}\nreplay = {{ linger = \"0s\" }}"))
    };
    let jetstream = "source = \"jetstream\"\nstream = \"ORDERS\"";
    let broker = format!("broker.url = \"{}\"\n", server.url());
    let wide = format!("{broker}{}", stored("orders/**", jetstream));
    let narrow = format!("{broker}{}{}", stored("orders/eu/*", jetstream), stored("orders/**", jetstream));
    let gateway = Gateway::with(&wide).await;
    let mut pattern = opened(&gateway, "/topics/orders/eu/*").await;
    admin.put("orders.eu.1", "1").await;
    assert_eq!(pattern.message().await, "1");
    let id = pattern.last_id.clone();
    assert!(gateway.reload_with(&narrow));
    let mut topic = gateway.resume("/topics/orders/eu/1", &id).await;
    assert_eq!(topic.control("stream-open").await["resumed"], true);
    admin.put("orders.eu.1", "2").await;
    for reader in [&mut pattern, &mut topic] {
        assert_eq!(reader.message().await, "2");
    }
    // Once they have no reader, the rule has its own consumer.
    drop((pattern, topic));
    let consumers = || server.monitor("/jsz?consumers=true")["consumers"].as_u64().unwrap();
    eventually("each rule has its consumer", async || consumers() == 2).await;
    eventually("it is served again", async || {
        let mut again = gateway.resume("/topics/orders/eu/1", &id).await;
        let open = again.next().await.unwrap();
        let is_served = open.event == "stream-open" && open.data.contains("\"resumed\":true");
        is_served && again.message().await == "2"
    })
    .await;
}

/// Opens a stream on `path`, and retries like a browser that was refused for now.
async fn served(gateway: &Gateway, path: &str) -> Reader {
    crate::common::found("the stream is served", crate::common::LIMIT, async || {
        let mut reader = gateway.open(path).await;
        (reader.next().await?.event == "stream-open").then_some(reader)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrower_bucket_rule_takes_the_readers_of_its_topics_over() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.bucket("ALL", json!({})).await;
    admin.bucket("EU", json!({})).await;
    let bucket = |pattern: &str, bucket: &str| {
        rule(&format!("match = \"{pattern}\"\nsource = \"kv\"\nbucket = \"{bucket}\""))
    };
    let broker = format!("broker.url = \"{}\"\n", server.url());
    let wide = format!("{broker}{}", bucket("prices/**", "ALL"));
    let gateway = Gateway::with(&wide).await;
    let mut pattern = opened(&gateway, "/topics/prices/eu/*").await;
    let mut other = opened(&gateway, "/topics/prices/us").await;
    assert!(gateway.reload_with(&format!(
        "{broker}{}{}",
        bucket("prices/eu/*", "EU"),
        bucket("prices/**", "ALL")
    )));
    assert_eq!(pattern.control("stream-close").await["code"], "restarted");
    let mut pattern = served(&gateway, "/topics/prices/eu/*").await;
    let mut topic = served(&gateway, "/topics/prices/eu/x").await;
    gateway.publish("prices/eu/x", "1").await;
    gateway.publish("prices/us", "2").await;
    assert_eq!((pattern.message().await, topic.message().await), ("1".into(), "1".into()));
    assert_eq!(other.message().await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_streams_of_a_topic_end_if_a_reload_changes_its_source() {
    let server = RedisServer::start();
    let broker = format!("broker.url = \"{}\"\n", server.url());
    let plain = rule("match = \"**\"");
    let stream = rule("match = \"orders/*\"\nsource = \"redis-stream\"\npayload = { field = \"n\" }");
    let gateway = Gateway::with(&format!("{broker}{plain}")).await;
    let mut readers = [opened(&gateway, "/topics/orders/eu").await, opened(&gateway, "/topics/other").await];
    assert!(gateway.reload_with(&format!("{broker}{stream}{plain}")));
    assert_eq!(readers[0].control("stream-close").await["code"], "restarted");
    let mut reader = served(&gateway, "/topics/orders/eu").await;
    gateway.publish("orders/eu", "stored").await;
    assert_eq!(reader.message().await, "stored");
    gateway.publish("other", "on").await;
    assert_eq!(readers[1].message().await, "on");
    // And back.
    assert!(gateway.reload_with(&format!("{broker}{plain}")));
    assert_eq!(reader.control("stream-close").await["code"], "restarted");
    let id = reader.last_id.clone();
    let mut reader = served(&gateway, "/topics/orders/eu").await;
    gateway.publish("orders/eu", "plain").await;
    assert_eq!(reader.message().await, "plain");
    let mut back = gateway.resume("/topics/orders/eu", &id).await;
    back.expect("stream-open").await;
    assert_eq!(back.control("stream-gap").await["reason"], "unknown_id");
}
