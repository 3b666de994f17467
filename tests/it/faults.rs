//! Faults of the broker, seen through the gateway: streams stay open, readiness reports the fault, there is a gap where
//! messages may be missing, and delivery is back within two seconds of the broker's return.

use std::time::{Duration, Instant};

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::upstream::Upstream;

/// Within which delivery is back once the broker is.
const BACK: Duration = Duration::from_secs(2);

/// Within which a connection that went dead without a word is noticed.
const NOTICED: Duration = Duration::from_secs(15);

async fn reader_of(gateway: &Gateway, path: &str) -> Reader {
    let mut reader = gateway.open(path).await;
    reader.expect("stream-open").await;
    reader
}

/// Publishes until a message arrives past the gap that must come first. Returns the message.
async fn gap_then_message(upstream: &Upstream, topic: &str, reader: &mut Reader) -> String {
    let gap = reader.control("stream-gap").await;
    assert_eq!(gap["reason"], "broker");
    upstream.publish(topic, "after").await;
    reader.message().await
}

async fn a_killed_broker_leaves_a_gap_and_open_streams(mut upstream: Upstream) {
    let gateway = Gateway::with(&upstream.toml()).await;
    let mut one = reader_of(&gateway, "/topics/a/1").await;
    let mut several = reader_of(&gateway, "/topics?topic=a/1&topic=b").await;
    upstream.publish("a/1", "before").await;
    assert_eq!(one.message().await, "before");
    assert_eq!(several.message().await, "before");
    upstream.stop();
    eventually("readiness turns", async || gateway.ready().await.is_err()).await;
    let reason = gateway.ready().await.unwrap_err();
    assert!(reason.contains("broker away"), "{reason}");

    // While it is away, readers are served from the buffer, and requests for new topics are refused for now.
    let mut resumed = gateway.resume("/topics/a/1", &one.last_id).await;
    assert_eq!(resumed.control("stream-open").await["resumed"], true);
    let mut stranger = gateway.open("/topics/new").await;
    assert_eq!(stranger.control("stream-close").await["code"], "unavailable");
    assert!(stranger.next().await.is_none());
    let response = gateway.post("/topics/a/1", "lost?").await;
    assert_eq!((response.status, response.header("retry-after")), (503, "2"));

    upstream.restart().await;
    let back = Instant::now();
    eventually("readiness returns", async || gateway.ready().await.is_ok()).await;
    assert_eq!(gap_then_message(&upstream, "a/1", &mut one).await, "after");
    assert!(back.elapsed() < BACK, "{:?}", back.elapsed());
    let mut told: Vec<String> = Vec::new();
    for _ in 0..2 {
        told.push(several.control("stream-gap").await["topic"].as_str().unwrap().to_owned());
    }
    told.sort();
    assert_eq!(told, ["a/1", "b"]);
    assert_eq!(several.message().await, "after");
    assert!(gateway.metric("topicgate_gaps_total{reason=\"broker\"}").await >= 2.0);
    assert_eq!(gateway.metric("topicgate_upstream_losses_total").await, 1.0);
}

#[tokio::test]
async fn a_killed_nats_leaves_a_gap_and_open_streams() {
    a_killed_broker_leaves_a_gap_and_open_streams(Upstream::nats().await).await;
}

#[tokio::test]
async fn a_killed_redis_leaves_a_gap_and_open_streams() {
    a_killed_broker_leaves_a_gap_and_open_streams(Upstream::redis().await).await;
}

async fn a_broker_that_hangs_is_noticed(upstream: Upstream) {
    let gateway = Gateway::with(&upstream.toml()).await;
    let mut reader = reader_of(&gateway, "/topics/a").await;
    upstream.pause();
    let paused = Instant::now();
    eventually("readiness turns", async || gateway.ready().await.is_err()).await;
    assert!(paused.elapsed() < NOTICED, "{:?}", paused.elapsed());
    upstream.resume();
    let back = Instant::now();
    eventually("readiness returns", async || gateway.ready().await.is_ok()).await;
    assert_eq!(gap_then_message(&upstream, "a", &mut reader).await, "after");
    assert!(back.elapsed() < BACK + Duration::from_secs(1), "{:?}", back.elapsed());
}

#[tokio::test]
async fn a_nats_that_hangs_is_noticed_within_15_seconds() {
    a_broker_that_hangs_is_noticed(Upstream::nats().await).await;
}

#[tokio::test]
async fn a_redis_that_hangs_is_noticed_within_15_seconds() {
    a_broker_that_hangs_is_noticed(Upstream::redis().await).await;
}

async fn a_stream_that_comes_before_the_first_connection_waits_for_it(upstream: Upstream) {
    upstream.pause();
    let gateway = Gateway::unready(&upstream.toml()).await;
    let comes = async {
        let mut reader = gateway.open("/topics/a").await;
        reader.expect("stream-open").await;
        reader
    };
    let resumes = async {
        // One of them asks for the metric.
        eventually("it has come", async || gateway.metric("topicgate_connections").await == 2.0).await;
        upstream.resume();
    };
    let (mut reader, ()) = tokio::join!(comes, resumes);
    upstream.publish("a", "first").await;
    assert_eq!(reader.message().await, "first");
}

#[tokio::test]
async fn a_stream_that_comes_before_the_first_connection_to_nats_waits_for_it() {
    a_stream_that_comes_before_the_first_connection_waits_for_it(Upstream::nats().await).await;
}

#[tokio::test]
async fn a_stream_that_comes_before_the_first_connection_to_redis_waits_for_it() {
    a_stream_that_comes_before_the_first_connection_waits_for_it(Upstream::redis().await).await;
}

async fn a_broker_that_is_absent_at_the_start_is_waited_for(mut upstream: Upstream) {
    upstream.stop();
    let warm = "replay = { warm = true }\n";
    let gateway = Gateway::unready(&format!("{}{warm}", upstream.toml())).await;
    assert!(gateway.ready().await.unwrap_err().contains("broker away"));
    let mut early = gateway.open("/topics/a").await;
    assert_eq!(early.control("stream-close").await["reconnect"], true);
    upstream.restart().await;
    eventually("readiness comes", async || gateway.ready().await.is_ok()).await;
    eventually("the warm topics are subscribed", async || upstream.subscriptions().await == 1).await;
    upstream.publish("a", "held by the warm rule").await;
    eventually("it is held", async || gateway.metric("topicgate_messages_received_total").await == 1.0).await;
    let mut reader = gateway.open("/topics/a?last=1").await;
    reader.expect("stream-open").await;
    assert_eq!(reader.message().await, "held by the warm rule");
}

#[tokio::test]
async fn a_nats_that_is_absent_at_the_start_is_waited_for() {
    a_broker_that_is_absent_at_the_start_is_waited_for(Upstream::nats().await).await;
}

#[tokio::test]
async fn a_redis_that_is_absent_at_the_start_is_waited_for() {
    a_broker_that_is_absent_at_the_start_is_waited_for(Upstream::redis().await).await;
}

async fn every_number_arrives_or_a_gap_stands_in_its_place(mut upstream: Upstream) {
    const KILLS: usize = 3;
    let gateway = Gateway::with(&upstream.toml()).await;
    let mut reader = reader_of(&gateway, "/topics/numbers").await;
    let mut number = 0;
    let mut kills = 0;
    let mut last: Option<usize> = None;
    let mut gap = false;
    let mut gaps = 0;
    while kills < KILLS || gaps < KILLS {
        // Some arrive, some are on their way when the broker dies.
        for _ in 0..50 {
            upstream.publish("numbers", number.to_string()).await;
            number += 1;
        }
        if kills < KILLS {
            upstream.stop();
            kills += 1;
            eventually("readiness turns", async || gateway.ready().await.is_err()).await;
            upstream.restart().await;
            // Into the void, most likely: published while the gateway is on its way back.
            upstream.publish("numbers", number.to_string()).await;
            number += 1;
            eventually("readiness returns", async || gateway.ready().await.is_ok()).await;
        }
        upstream.publish("numbers", number.to_string()).await;
        number += 1;
        loop {
            let event = reader.next().await.unwrap();
            match event.event.as_str() {
                "stream-gap" => {
                    gap = true;
                    gaps += 1;
                }
                _ => {
                    let this: usize = event.data.parse().unwrap();
                    let expected = last.map_or(0, |last| last + 1);
                    assert!(
                        this == expected || (gap && this > expected),
                        "{this} after {last:?}, gap: {gap}"
                    );
                    (last, gap) = (Some(this), false);
                    if this == number - 1 {
                        break;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn every_number_from_nats_arrives_or_a_gap_stands_in_its_place() {
    every_number_arrives_or_a_gap_stands_in_its_place(Upstream::nats().await).await;
}

#[tokio::test]
async fn every_number_from_redis_arrives_or_a_gap_stands_in_its_place() {
    every_number_arrives_or_a_gap_stands_in_its_place(Upstream::redis().await).await;
}

async fn joins_and_leaves_leave_nothing_on_the_broker(upstream: Upstream) {
    let toml = format!("{}replay = {{ linger = \"0s\" }}\n", upstream.toml());
    let gateway = Gateway::with(&toml).await;
    for round in 0..10 {
        let mut readers = Vec::new();
        for topic in 0..20 {
            readers.push(gateway.open(&format!("/topics/t/{round}/{topic}")).await);
        }
        assert!(upstream.subscriptions().await >= 20);
        drop(readers);
    }
    eventually("no stream is open", async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 0.0)
        .await;
    eventually("no subscription is left", async || upstream.subscriptions().await == 0).await;
    eventually("no topic is held", async || gateway.metric("topicgate_topics").await == 0.0).await;
    assert_eq!(gateway.metric("topicgate_buffer_bytes").await, 0.0);
}

#[tokio::test]
async fn joins_and_leaves_leave_nothing_on_nats() {
    joins_and_leaves_leave_nothing_on_the_broker(Upstream::nats().await).await;
}

#[tokio::test]
async fn joins_and_leaves_leave_nothing_on_redis() {
    joins_and_leaves_leave_nothing_on_the_broker(Upstream::redis().await).await;
}

#[tokio::test]
async fn ids_and_types_from_nats_headers_reach_the_page() {
    let upstream = Upstream::nats().await;
    let gateway = Gateway::with(&upstream.toml()).await;
    let mut reader = reader_of(&gateway, "/topics/orders.eu").await;
    let Upstream::Nats { client, .. } = &upstream else { unreachable!() };
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "order-7");
    headers.insert("Event-Type", "created");
    client.publish_with_headers("orders.eu", headers, "x".into()).await.unwrap();
    let event = reader.expect("created").await;
    assert!(event.id.ends_with("-order-7"), "{}", event.id);
    // By that id alone, a gateway that never knew this client finds the place.
    client.publish("orders.eu", "y".into()).await.unwrap();
    assert_eq!(reader.message().await, "y");
    let mut stranger = gateway.resume("/topics/orders/eu", "order-7").await;
    assert_eq!(stranger.control("stream-open").await["resumed"], true);
    assert_eq!(stranger.message().await, "y");
}

#[tokio::test]
async fn ids_and_types_from_redis_payloads_reach_the_page() {
    let upstream = Upstream::redis().await;
    let fields = "id = { pointer = \"/id\" }\ntype = { pointer = \"/kind\" }\n";
    let gateway = Gateway::with(&format!("{}{fields}", upstream.toml())).await;
    let mut reader = reader_of(&gateway, "/topics/orders:eu").await;
    upstream.publish("orders/eu", r#"{"id":7,"kind":"created"}"#).await;
    let event = reader.expect("created").await;
    assert!(event.id.ends_with("-7"), "{}", event.id);
    let refused = gateway.post("/topics/orders/eu?type=x", "{}").await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("/kind"), "{}", refused.text());
}

async fn a_message_that_is_too_large_is_a_gap_in_its_place(upstream: Upstream) {
    let toml = format!("{}replay = {{ warm = true }}\n", upstream.toml());
    let gateway = Gateway::with(&toml).await;
    let mut concerned = reader_of(&gateway, "/topics/a").await;
    let mut other = reader_of(&gateway, "/topics/b").await;
    upstream.publish("a", "before").await;
    upstream.publish("a", vec![b'x'; 256 * 1024 + 1]).await;
    upstream.publish("a", "after").await;
    upstream.publish("b", "untouched").await;
    assert_eq!(concerned.message().await, "before");
    assert_eq!(concerned.control("stream-gap").await["reason"], "too_large");
    assert_eq!(concerned.message().await, "after");
    assert_eq!(other.message().await, "untouched");
    assert_eq!(gateway.metric("topicgate_rejected_total{what=\"message\"}").await, 1.0);
}

#[tokio::test]
async fn a_message_from_nats_that_is_too_large_is_a_gap_in_its_place() {
    a_message_that_is_too_large_is_a_gap_in_its_place(Upstream::nats().await).await;
}

#[tokio::test]
async fn a_message_from_redis_that_is_too_large_is_a_gap_in_its_place() {
    a_message_that_is_too_large_is_a_gap_in_its_place(Upstream::redis().await).await;
}

/// Two gateways on one NATS, both warm, and a publisher that gives ids: one gateway finds the ids of the other.
#[tokio::test]
async fn a_reader_with_publisher_ids_goes_on_at_another_replica_after_a_planned_stop() {
    let upstream = Upstream::nats().await;
    let toml = format!("{}replay = {{ warm = true }}\n", upstream.toml());
    let (first, second) = (Gateway::with(&toml).await, Gateway::with(&toml).await);
    eventually("both are subscribed", async || upstream.subscriptions().await == 2).await;
    let Upstream::Nats { client, .. } = &upstream else { unreachable!() };
    let publish = async |number: u32| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("m-{number}"));
        client.publish_with_headers("a", headers, number.to_string().into()).await.unwrap();
    };
    let mut reader = reader_of(&first, "/topics/a").await;
    publish(1).await;
    publish(2).await;
    assert_eq!(reader.messages(2).await, ["1", "2"]);
    // Resumed once on its own gateway, without a message since: the publisher's id must not get lost on the way.
    let mut reader = first.resume("/topics/a", &reader.last_id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
    let stopping = tokio::spawn(first.ended());
    assert_eq!(reader.control("stream-close").await["code"], "draining");
    publish(3).await;
    let mut reader = second.resume("/topics/a", &reader.last_id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
    assert_eq!(reader.message().await, "3");
    stopping.await.unwrap();
}

/// The broker withdraws the permission to read from a warm rule: its readers are closed with a code, and none is left
/// silent.
#[tokio::test]
async fn readers_of_a_warm_rule_are_closed_when_the_broker_withdraws_it() {
    let users = |deny: &str| {
        format!(
            "authorization {{ users = [ {{ user: gate, password: pass, permissions: {{ subscribe: {{ allow: [\">\"], deny: [{deny}] }} }} }} ] }}"
        )
    };
    let server = crate::common::nats::NatsServer::with(&users("\"nothing\""));
    let url = server.url().replace("nats://", "nats://gate:pass@");
    let toml = format!(
        "broker.url = \"{url}\"\n[[topics]]\nmatch = \"orders/**\"\nread = \"anyone\"\nreplay = {{ warm = true }}\n"
    );
    let gateway = Gateway::with(&toml).await;
    let mut one = reader_of(&gateway, "/topics/orders/eu").await;
    let mut all = reader_of(&gateway, "/topics/orders/**").await;
    server.configure(&users("\"orders.>\""));
    server.reload();
    for reader in [&mut one, &mut all] {
        assert_eq!(reader.control("stream-close").await["code"], "refused");
        assert!(reader.next().await.is_none());
    }
    let mut refused = gateway.open("/topics/orders/**").await;
    assert_eq!(refused.control("stream-close").await["code"], "refused");
}
