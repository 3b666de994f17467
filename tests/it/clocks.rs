//! A gateway whose clock differs from its broker's, and one whose clock is set while it runs. The real binary.
#![cfg(target_os = "linux")]

use std::time::{Duration, SystemTime};

use crate::common::client::Reader;
use crate::common::clock::Clock;
use crate::common::eventually;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::process::Process;
use serde_json::json;

/// A gateway that goes by this clock, with this configuration.
async fn gateway(clock: &Clock, toml: &str) -> Process {
    let file = clock.directory.path().join("topicgate.toml");
    std::fs::write(&file, toml).unwrap();
    let environment = clock.environment();
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let gateway = Process::with(&["--config", file.to_str().unwrap()], &environment).await;
    eventually("the gateway is ready", async || gateway.readyz().await.status == 200).await;
    gateway
}

fn since(time: SystemTime) -> String {
    format!("since={}", humantime::format_rfc3339_nanos(time))
}

async fn pass(milliseconds: u64) -> SystemTime {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    SystemTime::now()
}

/// The messages of a stream until `last`, which must come without a gap and with `resumed`.
async fn resumed(gateway: &Process, path: &str, last: &str) -> Vec<String> {
    let mut reader = Reader::open(gateway.address, path, &[]).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true, "{path}");
    let mut messages = vec![reader.message().await];
    while messages.last().is_some_and(|message| message != last) {
        messages.push(reader.message().await);
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn since_uses_the_clock_of_the_stream_and_not_that_of_the_gateway() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let toml = format!(
        "broker.url = \"{}\"\n[[topics]]\nmatch = \"orders/**\"\nsource = \"jetstream\"\nread = \"anyone\"\nreplay = {{ messages = 4 }}\n",
        server.url()
    );
    admin.put("orders.eu", "before").await;
    let begin = pass(20).await;
    for number in 1..=5 {
        admin.put("orders.eu", number.to_string()).await;
    }
    for milliseconds in [-3_000, 3_000, -3_600_000, 3_600_000] {
        let clock = Clock::ahead_by(milliseconds);
        let gateway = gateway(&clock, &toml).await;
        let path = format!("/topics/orders/eu?{}", since(begin));
        assert_eq!(resumed(&gateway, &path, "5").await, ["1", "2", "3", "4", "5"], "{milliseconds} ms ahead");
        // Some in memory, some at the broker; and, in time, in memory alone.
        let mut live = Reader::open(gateway.address, "/topics/orders/us", &[]).await;
        live.expect("stream-open").await;
        let middle = pass(20).await;
        for number in 0..6 {
            admin.put("orders.us", number.to_string()).await;
            live.message().await;
        }
        let path = |time| format!("/topics/orders/us?{}", since(time));
        let all = ["0", "1", "2", "3", "4", "5"];
        assert_eq!(resumed(&gateway, &path(middle), "5").await, all, "{milliseconds} ms ahead");
        let late = pass(20).await;
        admin.put("orders.us", "late").await;
        assert_eq!(live.message().await, "late");
        assert_eq!(resumed(&gateway, &path(late), "late").await, ["late"], "{milliseconds} ms ahead");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_ahead_and_back_is_soon_trusted_again() {
    let clock = Clock::ahead_by(0);
    let rule =
        "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { age = \"10s\" }\n";
    let gateway = gateway(&clock, rule).await;
    let mut reader = Reader::open(gateway.address, "/topics/a?format=cloudevents", &[]).await;
    reader.expect("stream-open").await;
    gateway.publish("a", "0").await;
    let time = async |reader: &mut Reader| {
        let envelope: serde_json::Value = serde_json::from_str(&reader.message().await).unwrap();
        humantime::parse_rfc3339(envelope["time"].as_str().unwrap()).unwrap()
    };
    let soon = |time: SystemTime| time < SystemTime::now() + Duration::from_secs(2);
    assert!(soon(time(&mut reader).await));
    clock.set(3_600_000);
    gateway.publish("a", "1").await;
    assert!(!soon(time(&mut reader).await));
    // An hour has passed by the clock, and none in truth: nothing was given up for it.
    let mut all = Reader::open(gateway.address, "/topics/a?since=all", &[]).await;
    all.expect("stream-open").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut held = Reader::open(gateway.address, "/topics/a?since=all", &[]).await;
    held.expect("stream-open").await;
    assert_eq!(held.messages(2).await, ["0", "1"]);
    clock.set(0);
    gateway.publish("a", "2").await;
    assert!(soon(time(&mut reader).await), "the next message has the time of day again");
    let late = pass(20).await;
    gateway.publish("a", "3").await;
    assert!(soon(time(&mut reader).await));
    assert_eq!(resumed(&gateway, &format!("/topics/a?{}", since(late)), "3").await, ["3"]);
    // Messages from the time of the wrong clock age like all others.
    eventually("all has grown too old", async || {
        let mut reader = Reader::open(gateway.address, "/topics/a?since=all", &[]).await;
        reader.expect("stream-open").await;
        let next = tokio::time::timeout(Duration::from_millis(200), reader.next()).await;
        next.is_err()
    })
    .await;
}
