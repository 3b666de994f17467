//! `stream-stale` and `stream-live`: a reader receives when the feed of its topics is away, and when it is back.

use std::time::{Duration, Instant};

use crate::common::browser::Client;
use crate::common::client::Reader;
use crate::common::command::Running;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use crate::common::redis_cluster::RedisCluster;
use crate::common::upstream::Upstream;
use crate::common::{eventually, within};
use serde_json::{Value, json};

/// A reader that wants to know.
async fn open(gateway: &Gateway, path: &str) -> Reader {
    let mut reader = gateway.open(path).await;
    reader.feeds = true;
    reader.expect("stream-open").await;
    reader
}

/// The topics of the next event, which must be of this kind and have no id of its own.
async fn topics(reader: &mut Reader, kind: &str) -> Vec<String> {
    let id = reader.last_id.clone();
    // A broker that is silent is noticed within seconds.
    let told = within(kind, Duration::from_secs(40), reader.control(kind)).await;
    assert_eq!(reader.last_id, id, "{kind} moves no cursor");
    let topics = told["topics"].as_array().unwrap();
    topics.iter().map(|topic| topic.as_str().unwrap().to_owned()).collect()
}

async fn read(gateway: &Gateway, path: &str) -> Value {
    gateway.request("GET", path, &[("accept", "application/json")]).await.json()
}

async fn publish_subscribe(mut upstream: Upstream) {
    let gateway = Gateway::with(&upstream.toml()).await;
    let mut reader = open(&gateway, "/topics?topic=a&topic=b/*").await;
    let mut other = open(&gateway, "/topics/b/*").await;
    let answer = read(&gateway, "/topics/a").await;
    assert_eq!(answer.get("stale"), None);
    let begin = Instant::now();
    upstream.stop();
    assert_eq!(topics(&mut reader, "stream-stale").await, ["a", "b/*"]);
    assert!(begin.elapsed() > Duration::from_secs(2), "after {:?}", begin.elapsed());
    assert_eq!(topics(&mut other, "stream-stale").await, ["b/*"]);

    // What is opened now, as far as it can be, knows at once.
    let mut late = open(&gateway, "/topics/a").await;
    assert_eq!(topics(&mut late, "stream-stale").await, ["a"]);
    let cursor = answer["cursor"].as_str().unwrap();
    let answer = read(&gateway, &format!("/topics/a?last_event_id={cursor}")).await;
    assert_eq!(answer["stale"], json!(["a"]));
    eventually("it is counted", async || gateway.metric("topicgate_topics_stale").await == 2.0).await;
    let list = gateway.ask_admin("GET", "/topics", &[]).await.json();
    assert_eq!(list["topics"][0]["upstream"], "stale", "{list}");

    upstream.restart().await;
    let mut gaps = Vec::new();
    for _ in 0..2 {
        gaps.push(reader.control("stream-gap").await["topic"].as_str().unwrap().to_owned());
    }
    gaps.sort();
    assert_eq!(gaps, ["a", "b/*"]);
    assert_eq!(topics(&mut reader, "stream-live").await, ["a", "b/*"]);
    late.expect("stream-gap").await;
    assert_eq!(topics(&mut late, "stream-live").await, ["a"]);
    upstream.publish("a", "live").await;
    assert_eq!(reader.message().await, "live");
    assert_eq!(late.message().await, "live");
    eventually("none is left", async || gateway.metric("topicgate_topics_stale").await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_nats_receive_stale_and_live() {
    publish_subscribe(Upstream::nats().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_redis_receive_stale_and_live() {
    publish_subscribe(Upstream::redis().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_waits_is_answered_when_its_topics_become_stale_and_live() {
    let mut upstream = Upstream::nats().await;
    let gateway = Gateway::with(&upstream.toml()).await;
    let position = read(&gateway, "/topics/a").await;
    let path = format!("/topics/a?wait=15s&last_event_id={}", position["cursor"].as_str().unwrap());
    upstream.stop();
    let answer = read(&gateway, &path).await;
    assert_eq!((&answer["stale"], &answer["messages"]), (&json!(["a"]), &json!([])));
    // The state alone is nothing new.
    let begin = Instant::now();
    let answer = read(&gateway, &path.replace("15s", "1s")).await;
    assert_eq!(answer["stale"], json!(["a"]));
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    let (answer, ()) = tokio::join!(read(&gateway, &path), upstream.restart());
    assert_eq!(answer.get("stale"), None, "{answer}");
}

fn rules(url: &str, rules: &[&str]) -> String {
    let rule = |keys: &&str| format!("[[topics]]\nread = \"anyone\"\npublish = \"anyone\"\n{keys}\n");
    format!("broker.url = \"{url}\"\n{}", rules.iter().map(rule).collect::<String>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_jetstream_and_of_a_bucket_receive_stale_and_live_and_miss_nothing() {
    let mut nats = NatsServer::jetstream();
    let admin = Admin::connect(&nats.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    admin.bucket("PRICES", json!({})).await;
    let text = rules(
        &nats.url(),
        &[
            "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"",
            "match = \"prices/**\"\nsource = \"kv\"\nbucket = \"PRICES\"",
            "match = \"plain\"",
        ],
    );
    let gateway = Gateway::with(&text).await;
    let path = "/topics?topic=orders/eu&topic=plain&topic=prices/eur";
    eventually("all are followed", async || read(&gateway, path).await["cursor"].is_string()).await;
    let mut reader = open(&gateway, path).await;
    nats.stop();
    let mut stale = Vec::new();
    while stale.len() < 3 {
        stale.extend(topics(&mut reader, "stream-stale").await);
    }
    stale.sort();
    assert_eq!(stale, ["orders/eu", "plain", "prices/eur"]);
    let mut late = open(&gateway, "/topics/orders/eu").await;
    assert_eq!(topics(&mut late, "stream-stale").await, ["orders/eu"]);
    nats.restart();
    let (mut live, mut gaps) = (Vec::new(), Vec::new());
    while live.len() < 3 {
        let event = reader.next().await.unwrap();
        let told: Value = serde_json::from_str(&event.data).unwrap();
        match event.event.as_str() {
            "stream-live" => live.extend(told["topics"].as_array().unwrap().clone()),
            "stream-gap" => gaps.push(told["topic"].clone()),
            _ => panic!("{event:?}"),
        }
    }
    assert_eq!(gaps, ["plain"], "what is stored is not lost");
    assert_eq!(topics(&mut late, "stream-live").await, ["orders/eu"]);
    admin.put_until_stored("orders.eu", "on").await;
    assert_eq!(reader.message().await, "on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_redis_streams_receive_stale_and_live_and_miss_nothing() {
    let mut server = RedisServer::start_with(&["appendonly yes", "appendfsync always"]);
    let text =
        rules(&server.url(), &["match = \"**\"\nsource = \"redis-stream\"\npayload = { field = \"n\" }"]);
    let gateway = Gateway::with(&text).await;
    let mut reader = open(&gateway, "/topics?topic=a&topic=b").await;
    gateway.publish("a", "before").await;
    assert_eq!(reader.message().await, "before");
    server.stop();
    assert_eq!(topics(&mut reader, "stream-stale").await, ["a", "b"]);
    server.restart();
    assert_eq!(topics(&mut reader, "stream-live").await, ["a", "b"]);
    eventually("it publishes", async || gateway.post("/topics/b", "after").await.status == 202).await;
    assert_eq!(reader.message().await, "after");
}

/// One master of three is away: a reader of a topic of each learns of the topics of that one alone.
async fn one_master_is_away(source: &str) {
    let mut cluster = RedisCluster::start(3, 0).await;
    let text = rules(&cluster.url(), &[source]).replace("[[topics]]", "broker.cluster = true\n[[topics]]");
    let gateway = Gateway::with(&text).await;
    let all = cluster.topic_each("t").await;
    let mut reader = open(&gateway, &format!("/topics?topic={}", all.join("&topic="))).await;
    let mut others = open(&gateway, &format!("/topics?topic={}&topic={}", all[0], all[1])).await;
    cluster.nodes[2].stop();
    assert_eq!(topics(&mut reader, "stream-stale").await, [all[2].clone()]);
    let mut late = open(&gateway, &format!("/topics/{}", all[2])).await;
    assert_eq!(topics(&mut late, "stream-stale").await, [all[2].clone()]);
    cluster.nodes[2].restart();
    loop {
        let event = within("it is live", Duration::from_secs(60), reader.next()).await.unwrap();
        match event.event.as_str() {
            "stream-gap" => assert!(event.data.contains(&all[2]), "{event:?}"),
            "stream-live" => {
                assert_eq!(event.data, json!({"topics": [all[2]]}).to_string());
                break;
            }
            _ => panic!("{event:?}"),
        }
    }
    others.quiet(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sharded_publish_subscribe_only_the_topics_of_the_shard_are_stale() {
    one_master_is_away("match = \"**\"\nsource = \"sharded-pubsub\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redis_streams_in_a_cluster_only_the_keys_of_the_master_are_stale() {
    one_master_is_away("match = \"**\"\nsource = \"redis-stream\"\npayload = { field = \"n\" }").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_in_chromium_and_topicgate_sub_receive_stale_and_live() {
    let mut upstream = Upstream::redis().await;
    let gateway = Gateway::with(&upstream.toml()).await;
    let options = json!({"page": "same-origin", "types": ["stream-stale", "stream-live"]});
    let mut page = Client::with("chromium", gateway.address, "/topics/a", &options).await;
    let mut command = Running::start(&["sub", &format!("http://{}/topics/a", gateway.address)]);
    eventually("both read", async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 2.0).await;
    upstream.stop();
    let event = page.event().await;
    assert_eq!((event.kind.as_str(), event.data.as_str()), ("stream-stale", r#"{"topics":["a"]}"#));
    command.says("stale: nothing of a arrives now").await;
    upstream.restart().await;
    assert_eq!(page.event().await.kind, "stream-gap");
    let event = page.event().await;
    assert_eq!((event.kind.as_str(), event.data.as_str()), ("stream-live", r#"{"topics":["a"]}"#));
    command.says("live").await;
    page.close().await;
}
