//! A page changes what its stream carries: it opens the new list of topics with its last event id, and then closes the old
//! stream. Topics of the old list continue without loss or gap; new topics begin live.

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use serde_json::json;

/// Opens the new list with the last id of the old stream, which is closed then. There must be no gap.
async fn change(gateway: &Gateway, old: Reader, path: &str) -> Reader {
    let mut new = gateway.resume(path, &old.last_id).await;
    assert_eq!(new.control("stream-open").await["resumed"], true, "{path} after {}", old.last_id);
    drop(old);
    new
}

async fn opened(gateway: &Gateway, path: &str) -> Reader {
    let mut reader = gateway.open(path).await;
    reader.expect("stream-open").await;
    reader
}

#[tokio::test]
async fn topics_of_one_source_are_added_and_left_out_without_a_gap() {
    let gateway = Gateway::start().await;
    let mut reader = opened(&gateway, "/topics/a").await;
    gateway.publish("a", "1").await;
    gateway.publish("b", "nobody reads it").await;
    assert_eq!(reader.message().await, "1");
    let old_id = reader.last_id.clone();
    gateway.publish("a", "2").await;
    let mut reader = change(&gateway, reader, "/topics?topic=a&topic=b").await;
    assert_eq!(reader.message().await, "2");
    gateway.publish("b", "3").await;
    gateway.publish("a", "4").await;
    assert_eq!(reader.messages(2).await, ["3", "4"]);
    // Repeatedly, also with the same id: the messages from meanwhile are there.
    let mut again = gateway.resume("/topics?topic=a&topic=b", &old_id).await;
    assert_eq!(again.control("stream-open").await["resumed"], true);
    assert_eq!(again.messages(3).await, ["2", "3", "4"]);

    gateway.publish("a", "not read any more").await;
    gateway.publish("b", "5").await;
    let mut reader = change(&gateway, reader, "/topics?topic=b&topic=c/d&topic=c/e").await;
    assert_eq!(reader.message().await, "5");
    gateway.publish("c/e", "6").await;
    assert_eq!(reader.message().await, "6");
    let mut reader = change(&gateway, reader, "/topics/c/e").await;
    gateway.publish("c/e", "7").await;
    assert_eq!(reader.message().await, "7");
}

#[tokio::test]
async fn a_topic_that_may_have_been_read_before_gets_its_gap() {
    let rule =
        "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { linger = \"1s\" }\n";
    let gateway = Gateway::with(rule).await;
    let mut keeps = opened(&gateway, "/topics/a").await;
    let reader = opened(&gateway, "/topics?topic=a&topic=b").await;
    let id = reader.last_id.clone();
    drop(reader);
    eventually("b is held no longer", async || gateway.metric("topicgate_topics").await == 1.0).await;
    gateway.publish("b", "missed").await;
    gateway.publish("a", "1").await;
    assert_eq!(keeps.message().await, "1");
    let mut reader = gateway.resume("/topics?topic=a&topic=b", &id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    let told = [reader.next().await.unwrap(), reader.next().await.unwrap()];
    let gap = told.iter().find(|event| event.event == "stream-gap").map(|event| event.data.as_str());
    assert_eq!(gap, Some(r#"{"topic":"b","reason":"evicted"}"#), "{told:?}");

    // And so has one inside of a pattern that was read.
    let mut pattern = opened(&gateway, "/topics/p/*").await;
    gateway.publish("p/x", "2").await;
    assert_eq!(pattern.message().await, "2");
    let mut reader = gateway.resume("/topics/p/x", &pattern.last_id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    drop(pattern);
    reader.expect("stream-gap").await;
}

fn rules(url: &str, rules: &[&str]) -> String {
    let rule = |keys: &&str| format!("[[topics]]\nread = \"anyone\"\npublish = \"anyone\"\n{keys}\n");
    format!("broker.url = \"{url}\"\n{}", rules.iter().map(rule).collect::<String>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_are_added_and_left_out_without_a_gap_on_nats() {
    let nats = NatsServer::jetstream();
    let admin = Admin::connect(&nats.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    admin.stream("NEWS", &["news.>"], json!({})).await;
    admin.bucket("PRICES", json!({})).await;
    let text = rules(
        &nats.url(),
        &[
            "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"",
            "match = \"news/**\"\nsource = \"jetstream\"\nstream = \"NEWS\"",
            "match = \"prices/**\"\nsource = \"kv\"\nbucket = \"PRICES\"",
            "match = \"plain/**\"",
        ],
    );
    admin.put("orders.eu", "old").await;
    admin.put("news.eu", "old").await;
    admin.put("$KV.PRICES.eur", "old").await;
    let gateway = Gateway::with(&text).await;
    for path in ["/topics/orders/eu", "/topics/news/eu", "/topics/prices/eur"] {
        eventually("it is followed", async || {
            gateway.request("GET", path, &[("accept", "application/json")]).await.status == 200
        })
        .await;
    }
    // Each list, the message that is published before it is opened and must arrive, and the one after that.
    let mut reader = opened(&gateway, "/topics/orders/eu").await;
    for (number, (lists, before, first, after)) in [
        ("orders/eu plain/a", "orders.eu", &["0"][..], "plain.a"),
        ("orders/eu news/eu plain/a", "plain.a", &["1"], "news.eu"),
        ("orders/eu plain/a", "orders.eu", &["2"], "plain.a"),
        ("news/eu plain/a", "plain.a", &["3"], "news.eu"),
        ("news/eu", "news.eu", &["4"], "news.eu"),
        // A bucket begins with its values.
        ("news/eu prices/eur", "news.eu", &["5", "old"], "news.eu"),
        ("orders/eu prices/eur", "orders.gb", &[], "orders.eu"),
        ("plain/b prices/eur", "plain.c", &[], "plain.b"),
    ]
    .into_iter()
    .enumerate()
    {
        let publish = async |subject: &str, payload: String| match subject.strip_prefix("plain.") {
            Some(topic) => gateway.publish(&format!("plain/{topic}"), payload).await,
            None => drop(admin.put(subject, payload).await),
        };
        publish(before, number.to_string()).await;
        let path = format!("/topics?topic={}", lists.replace(' ', "&topic="));
        reader = change(&gateway, reader, &path).await;
        let mut found = reader.messages(first.len()).await;
        found.sort();
        assert_eq!(found, first, "{lists}");
        publish(after, format!("{number} live")).await;
        assert_eq!(reader.message().await, format!("{number} live"), "{lists}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_added_and_left_out_without_a_gap_on_redis() {
    let server = RedisServer::start();
    let text = rules(
        &server.url(),
        &["match = \"plain\"", "match = \"**\"\nsource = \"redis-stream\"\npayload = { field = \"n\" }"],
    );
    let gateways = [Gateway::with(&text).await, Gateway::with(&text).await];
    for key in ["a", "b", "c"] {
        gateways[0].publish(key, "old").await;
    }
    let mut reader = opened(&gateways[0], "/topics/a").await;
    for (number, list) in
        ["a b", "a b plain", "a plain", "a", "a c b", "c", "c plain", "plain a"].iter().enumerate()
    {
        // Another gateway knows the position in each key as well; for live topics, only the same gateway does.
        let gateway = &gateways[usize::from(!list.contains("plain") && number > 4)];
        let first = list.split(' ').next().unwrap();
        let is_old = number < 7;
        if is_old {
            gateway.publish(first, number.to_string()).await;
        }
        reader = change(gateway, reader, &format!("/topics?topic={}", list.replace(' ', "&topic="))).await;
        if is_old {
            assert_eq!(reader.message().await, number.to_string(), "{list}");
        }
        for topic in list.split(' ') {
            gateway.publish(topic, format!("{number} live")).await;
            assert_eq!(reader.message().await, format!("{number} live"), "{list}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_from_before_a_topic_changed_its_source_gets_a_gap() {
    let nats = NatsServer::jetstream();
    let admin = Admin::connect(&nats.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let stored = ["match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"", "match = \"plain\""];
    let live = [&["match = \"orders/eu\""], &stored[..]].concat();
    let file = |all: &[&str]| rules("URL", all).replace("URL", &nats.url());
    let gateway = Gateway::with(&file(&live)).await;
    let path = "/topics?topic=orders/eu&topic=plain";
    let mut reader = opened(&gateway, path).await;
    assert!(gateway.reload_with(&file(&stored)));
    assert_eq!(reader.control("stream-close").await["code"], "restarted");
    admin.put("orders.eu", "meanwhile").await;
    let mut new = loop {
        let mut new = gateway.resume(path, &reader.last_id).await;
        let first = new.next().await.unwrap();
        if first.event == "stream-open" {
            assert!(first.data.contains("\"resumed\":false"), "{first:?}");
            break new;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(new.control("stream-gap").await["topic"], "orders/eu");
    assert_eq!(new.message().await, "meanwhile");
}
