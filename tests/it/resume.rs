//! Nothing missing, nothing twice, nothing out of order: readers behind a proxy that cuts their connections at and inside
//! events, with FIN and with RST, while numbered messages are published on a real broker.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::nats::NatsServer;
use crate::common::proxy::Proxy;
use crate::common::upstream::Upstream;

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
        // A compressed stream has fewer bytes to be cut in.
        let least = if crate::common::are_all_compressed() { 3 } else { 10 };
        assert!(proxy.cuts() >= least, "{}", proxy.cuts());
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

/// Two gateways on one NATS that hold a topic from the start, and the id after the second of four messages, as the
/// first wrote it.
async fn two_gateways(publisher_ids: bool) -> (NatsServer, [Gateway; 2], String) {
    let server = NatsServer::start();
    let rule = "[[topics]]\nmatch = \"news/*\"\nread = \"anyone\"\nreplay.warm = true\n";
    let toml = format!("broker.url = \"{}\"\n{rule}", server.url());
    let gateways = [Gateway::with(&toml).await, Gateway::with(&toml).await];
    let mut readers = [gateways[0].open("/topics/news/eu").await, gateways[1].open("/topics/news/eu").await];
    let client = async_nats::connect(server.url()).await.unwrap();
    for number in 1..=4 {
        let mut headers = async_nats::HeaderMap::new();
        if publisher_ids {
            headers.insert("Nats-Msg-Id", format!("news-{number}"));
        }
        client.publish_with_headers("news.eu", headers, number.to_string().into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let mut ids = Vec::new();
    for reader in &mut readers {
        reader.expect("stream-open").await;
        for number in 1..=4 {
            let event = reader.expect("message").await;
            assert_eq!(event.data, number.to_string());
            ids.push(event.id);
        }
    }
    (server, gateways, ids.swap_remove(1))
}

#[tokio::test]
async fn the_id_that_a_publisher_gave_resumes_at_another_gateway() {
    let (_server, [_, other], id) = two_gateways(true).await;
    let mut reader = other.resume("/topics/news/eu", &id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
    assert_eq!(reader.messages(2).await, ["3", "4"]);
}

#[tokio::test]
async fn without_it_another_gateway_says_restarted_and_begins_with_the_oldest_that_it_holds() {
    let (_server, [_, other], id) = two_gateways(false).await;
    let mut reader = other.resume("/topics/news/eu", &id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    assert_eq!(reader.control("stream-gap").await["reason"], "restarted");
    assert_eq!(reader.messages(4).await, ["1", "2", "3", "4"]);
}
