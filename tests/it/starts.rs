//! Where streams start: `last` and `since`, of several topics, of stored sources, and with clocks that differ.

use std::time::{Duration, SystemTime};

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

fn toml(url: &str, rule: &str) -> String {
    format!("broker.url = \"{url}\"\n[[topics]]\nread = \"anyone\"\n{rule}\n")
}

const ORDERS: &str = "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"";
const KEYS: &str =
    "match = \"**\"\nsource = \"redis-stream\"\npayload = { field = \"n\" }\nreplay = { messages = 10 }";

/// Adds entries of these numbers with ids that Redis gives.
async fn add(redis: &mut MultiplexedConnection, key: &str, numbers: std::ops::Range<u64>) {
    let mut pipeline = redis::pipe();
    for number in numbers {
        pipeline.cmd("XADD").arg(key).arg("*").arg("n").arg(number);
    }
    pipeline.exec_async(redis).await.unwrap();
}

/// What comes until a message is `last`: messages as they are, gaps as `gap <topic> <reason>`. Also whether it resumed.
async fn until(reader: &mut Reader, last: &str) -> (bool, Vec<String>) {
    let resumed = reader.control("stream-open").await["resumed"] == true;
    let mut told = Vec::new();
    loop {
        let event = reader.next().await.unwrap();
        match event.event.as_str() {
            "stream-gap" => {
                let gap: Value = serde_json::from_str(&event.data).unwrap();
                told.push(format!(
                    "gap {} {}",
                    gap["topic"].as_str().unwrap(),
                    gap["reason"].as_str().unwrap()
                ));
            }
            "message" => {
                told.push(event.data);
                if told.last().is_some_and(|told| told == last) {
                    return (resumed, told);
                }
            }
            _ => panic!("{event:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_counts_for_each_topic_of_a_rule_in_either_order_wherever_it_is_held() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    for number in 0..300 {
        admin.put("orders.stored", format!("stored {number}")).await;
    }
    let gateway = Gateway::with(&toml(&server.url(), ORDERS)).await;
    let mut live = gateway.open("/topics/orders/held").await;
    live.expect("stream-open").await;
    for number in 0..15 {
        admin.put("orders.held", format!("held {number}")).await;
        live.message().await;
    }
    let mut expected: Vec<_> = (295..300).map(|number| format!("stored {number}")).collect();
    expected.extend((10..15).map(|number| format!("held {number}")));
    for topics in ["topic=orders/held&topic=orders/stored", "topic=orders/stored&topic=orders/held"] {
        let mut reader = gateway.open(&format!("/topics?{topics}&last=5")).await;
        assert_eq!(until(&mut reader, "held 14").await, (false, expected.clone()), "{topics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_gives_as_many_as_a_trimmed_redis_stream_holds() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    add(&mut redis, "a", 0..100).await;
    redis::cmd("XTRIM").arg("a").arg("MAXLEN").arg(50).exec_async(&mut redis).await.unwrap();
    let gateway = Gateway::with(&toml(&server.url(), KEYS)).await;
    let held: Vec<String> = (50..100).map(|number| number.to_string()).collect();
    for last in [50, 51, 1_000_000] {
        let mut reader = gateway.open(&format!("/topics/a?last={last}")).await;
        assert_eq!(until(&mut reader, "99").await, (false, held.clone()), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn since_before_the_first_entry_of_a_whole_redis_stream_misses_nothing_and_says_so() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    add(&mut redis, "a", 0..40).await;
    let gateway = Gateway::with(&toml(&server.url(), KEYS)).await;
    let all: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    for (query, resumed) in [("since=1h", true), ("since=1700000000", true), ("since=all", false)] {
        let mut reader = gateway.open(&format!("/topics/a?{query}")).await;
        assert_eq!(until(&mut reader, "39").await, (resumed, all.clone()), "{query}");
    }
    // One that was trimmed does miss something.
    redis::cmd("XTRIM").arg("a").arg("MAXLEN").arg(30).exec_async(&mut redis).await.unwrap();
    let mut reader = gateway.open("/topics/a?since=1h").await;
    let (resumed, told) = until(&mut reader, "39").await;
    assert_eq!((resumed, &*told[0], &*told[1]), (false, "gap a evicted", "10"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_is_a_gap_of_its_own_topic_alone_in_a_warm_rule() {
    let server = NatsServer::start();
    let admin = Admin::connect(&server.url()).await;
    let rule = "match = \"orders/**\"\nreplay = { warm = true }\n[limits]\nmessage = \"1KiB\"";
    let begin = SystemTime::now();
    let gateway = Gateway::with(&toml(&server.url(), rule)).await;
    // As soon as this reader is there, the rule is subscribed to.
    let mut all = gateway.open("/topics/orders/**").await;
    all.expect("stream-open").await;
    let from = SystemTime::now();
    while SystemTime::now().duration_since(from).unwrap() < Duration::from_millis(2) {}
    let large = "x".repeat(5_000);
    for (topic, payload) in [("1", "a"), ("2", "b"), ("2", &large), ("1", "c"), ("2", "d"), ("1", "end")] {
        admin.client.publish(format!("orders.{topic}"), payload.to_owned().into()).await.unwrap();
    }
    let mut expected = ["a", "b", "gap orders/** too_large", "c", "d", "end"].map(str::to_owned).to_vec();
    let mut told = Vec::new();
    while told.last().is_none_or(|told| told != "end") {
        let event = all.next().await.unwrap();
        told.push(if event.event == "stream-gap" { expected[2].clone() } else { event.data });
    }
    assert_eq!(told, expected);
    let since = |time: SystemTime| format!("since={}", humantime::format_rfc3339_nanos(time));
    let open =
        async |topic: &str, time| gateway.open(&format!("/topics/orders/{topic}?{}", since(time))).await;
    let one = until(&mut open("1", from).await, "end").await;
    assert_eq!(one, (true, ["a", "c", "end"].map(str::to_owned).to_vec()));
    admin.client.publish("orders.2", "end".into()).await.unwrap();
    expected = ["b", "gap orders/2 too_large", "d", "end"].map(str::to_owned).to_vec();
    let two = until(&mut open("2", from).await, "end").await;
    assert_eq!(two, (true, expected));
    // Before the rule was subscribed to nothing is known.
    let (resumed, told) = until(&mut open("1", begin).await, "end").await;
    assert_eq!((resumed, &*told[0]), (false, "gap orders/1 evicted"));
    eventually("the gap is counted", async || {
        gateway.metric("topicgate_gaps_total{reason=\"too_large\"}").await >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn since_compares_the_times_of_a_redis_stream_with_each_other() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let now = SystemTime::now();
    // The server's clock is ten seconds ahead.
    let ms = |seconds: u64| {
        let time = now + Duration::from_secs(10 + seconds);
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
    };
    let put = |number: u64| {
        let mut command = redis::cmd("XADD");
        command.arg("a").arg(format!("{}-0", ms(number))).arg("n").arg(number).to_owned()
    };
    for number in 0..8 {
        put(number).exec_async(&mut redis).await.unwrap();
    }
    let gateway = Gateway::with(&toml(&server.url(), KEYS)).await;
    let mut live = gateway.open("/topics/a").await;
    live.expect("stream-open").await;
    for number in 8..10 {
        put(number).exec_async(&mut redis).await.unwrap();
        assert_eq!(live.message().await, number.to_string());
    }
    for first in 0..10 {
        let time = now + Duration::from_secs(10 + first);
        let mut reader =
            gateway.open(&format!("/topics/a?since={}", humantime::format_rfc3339_nanos(time))).await;
        let expected: Vec<_> = (first..10).map(|number| number.to_string()).collect();
        assert_eq!(until(&mut reader, "9").await, (true, expected), "{first}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_of_another_redis_server_is_no_position_in_the_server_that_replaced_it() {
    let mut server = RedisServer::start();
    let mut redis = server.connect().await;
    let base = 1_700_000_000_000_u64;
    let put = |ms: u64, seq: u64, number: u64| {
        let mut command = redis::cmd("XADD");
        command.arg("a").arg(format!("{}-{seq}", base + ms)).arg("n").arg(number).to_owned()
    };
    let config = toml(&server.url(), KEYS);
    let gateway = Gateway::with(&config).await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let mut ids = Vec::new();
    for number in 0..10 {
        put(number, 0, number).exec_async(&mut redis).await.unwrap();
        assert_eq!(reader.message().await, number.to_string());
        ids.push(reader.last_id.clone());
    }
    drop(reader);
    // It is replaced by one that lacks the last five, and whose clock is behind.
    server.restart();
    let mut redis = server.connect().await;
    for number in 0..5 {
        put(number, 0, number).exec_async(&mut redis).await.unwrap();
    }
    for (ms, number) in [(6, 15), (7, 16), (20, 17)] {
        put(ms, 5, number).exec_async(&mut redis).await.unwrap();
    }
    let other = Gateway::with(&config).await;
    for gateway in [&gateway, &other] {
        eventually("the new server is read", async || {
            let mut last = gateway.open("/topics/a?last=1").await;
            let open = last.next().await.unwrap();
            open.event == "stream-open" && last.message().await == "17"
        })
        .await;
        for (lost, id) in ids.iter().enumerate().take(10).skip(5) {
            let mut reader = gateway.resume("/topics/a", id).await;
            let (resumed, told) = until(&mut reader, "17").await;
            assert!(told.iter().any(|told| told.starts_with("gap")), "after {lost}: {resumed} {told:?}");
        }
    }
    let mut known = other.resume("/topics/a", &ids[3]).await;
    assert_eq!(until(&mut known, "17").await, (true, ["4", "15", "16", "17"].map(str::to_owned).to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_a_stream_assigns_again_after_a_loss_is_no_position() {
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        assert!(std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    };
    let mut server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let gateway = Gateway::with(&toml(&server.url(), ORDERS)).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    let (store, kept) = (server.directory().join("jetstream"), server.directory().join("kept"));
    let mut ids = Vec::new();
    for number in 1..=9 {
        if number == 6 {
            server.stop();
            copy(&store, &kept);
            server.restart();
        }
        admin.put_until_stored("orders.eu", &number.to_string()).await;
        let mut event = reader.next().await.unwrap();
        while event.event != "message" {
            event = reader.next().await.unwrap();
        }
        ids.push(reader.last_id.clone());
    }
    drop(reader);
    // As a disk that has lost what was written last.
    server.stop();
    copy(&kept, &store);
    server.restart();
    for number in 16..=22 {
        admin.put_until_stored("orders.eu", &number.to_string()).await;
    }
    for (lost, id) in ids.iter().enumerate().take(9).skip(6) {
        eventually("it is served again", async || {
            let mut reader = gateway.resume("/topics/orders/eu", id).await;
            let open = reader.next().await.unwrap();
            if open.event != "stream-open" {
                return false;
            }
            let mut told = Vec::new();
            while told.last().is_none_or(|told| told != "22") {
                let event = reader.next().await.unwrap();
                if event.event == "stream-close" {
                    return false;
                }
                told.push(if event.event == "stream-gap" { "gap".into() } else { event.data });
            }
            assert!(told.contains(&"gap".to_owned()), "after {}: {told:?}", lost + 1);
            true
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn since_a_time_before_a_purge_is_a_gap() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let since = |time| format!("/topics/orders/eu?since={}", humantime::format_rfc3339_nanos(time));
    let begin = SystemTime::now();
    for number in 0..3 {
        admin.put("orders.eu", number.to_string()).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let late = SystemTime::now();
    admin.purge("ORDERS").await;
    let gateway = Gateway::with(&toml(&server.url(), ORDERS)).await;
    let mut live = gateway.open(&since(late)).await;
    let mut reader = gateway.open(&since(begin)).await;
    assert_eq!(live.control("stream-open").await["resumed"], true);
    admin.put("orders.eu", "3").await;
    assert_eq!(live.message().await, "3");
    assert_eq!(
        until(&mut reader, "3").await,
        (false, ["gap orders/eu evicted", "3"].map(str::to_owned).to_vec())
    );
}
