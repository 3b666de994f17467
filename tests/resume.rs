//! Nothing missing, nothing twice, nothing out of order: readers behind a proxy that cuts their connections at and inside
//! events, with FIN and with RST, while numbered messages are published on a real broker.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use common::client::Reader;
use common::gateway::Gateway;
use common::proxy::Proxy;
use common::upstream::Upstream;

/// Messages on each topic.
const MESSAGES: usize = 600;

/// Connections of each reader that are cut.
const CUTS: usize = 25;

/// Bytes after which a connection is cut: within the head, within `stream-open`, at and inside messages.
fn cut_after(connection: usize) -> usize {
    const STEPS: [usize; 9] = [900, 1301, 333, 2750, 611, 5003, 1777, 40, 8191];
    STEPS[connection % STEPS.len()]
}

/// Reads until it has the last message of every topic, coming back with its last id after each cut. Returns what it read
/// of each topic.
async fn read_all(proxy: SocketAddr, path: &str, topics: usize) -> HashMap<String, Vec<usize>> {
    let mut seen: HashMap<String, Vec<usize>> = HashMap::new();
    let mut id = String::new();
    while seen.values().filter(|numbers| numbers.last() == Some(&(MESSAGES - 1))).count() < topics {
        // A connection that is cut within its head has no response.
        let Ok(mut reader) = Reader::try_open(proxy, path, &[("last-event-id", id.as_str())]).await else {
            continue;
        };
        loop {
            let event = match reader.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) | Err(_) => break,
            };
            match event.event.as_str() {
                "stream-open" => {}
                "message" => {
                    let envelope: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                    let topic = envelope["subject"].as_str().unwrap().to_owned();
                    seen.entry(topic).or_default().push(envelope["data"].as_u64().unwrap() as usize);
                }
                _ => panic!("{event:?}"),
            }
            id.clone_from(&reader.last_id);
            if seen.values().filter(|numbers| numbers.last() == Some(&(MESSAGES - 1))).count() == topics {
                break;
            }
        }
    }
    seen
}

async fn readers_lose_nothing(upstream: Upstream) {
    let gateway = Gateway::with(&upstream.toml()).await;
    let topics = ["news/a", "news/b", "news/c"];
    let one = "/topics/news/a?format=cloudevents";
    let three = "/topics?topic=news/a&topic=news/b&topic=news/c&format=cloudevents";
    let pattern = "/topics/news/*?format=cloudevents";
    let mut readers = Vec::new();
    for (path, count) in [(one, 1), (three, 3), (pattern, 3)] {
        // The first cursor is taken before the first message; every connection after it may be cut.
        let mut first = gateway.open(path).await;
        first.expect("stream-open").await;
        let proxy = Proxy::start(gateway.address, CUTS, cut_after).await;
        let address = proxy.address;
        let path = format!("{path}&last_event_id={}", first.last_id);
        readers.push((proxy, count, tokio::spawn(async move { read_all(address, &path, count).await })));
    }
    for number in 0..MESSAGES {
        for topic in topics {
            upstream.publish(topic, number.to_string()).await;
        }
        if number % 8 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await; // so that the cuts fall among them
        }
    }
    for (proxy, count, reader) in readers {
        let seen = reader.await.unwrap();
        assert_eq!(seen.len(), count);
        for (topic, numbers) in seen {
            assert!(numbers.into_iter().eq(0..MESSAGES), "{topic}");
        }
        assert!(proxy.cuts() >= 10, "{}", proxy.cuts());
    }
    assert_eq!(gateway.metric("topicgate_resumes_total{outcome=\"gap\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_are_cut_off_lose_nothing_of_nats() {
    readers_lose_nothing(Upstream::nats().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_are_cut_off_lose_nothing_of_redis() {
    readers_lose_nothing(Upstream::redis().await).await;
}
