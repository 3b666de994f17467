//! Bounds: readers that are slow or gone, silence, age, and how much may be held at once.

use std::time::{Duration, Instant};

use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::wire::{Wire, dechunk, events, publish_all};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};

async fn total_streams(gateway: &Gateway) -> f64 {
    gateway.metric("topicgate_streams{http=\"1.1\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_costs_the_fast_ones_nothing_and_receives_a_gap() {
    const MESSAGES: usize = 10_000;
    // Slow, and never so slow on a busy machine that it counts as gone.
    let gateway = Gateway::with("[streams]\nwrite_timeout = \"5m\"").await;
    let mut fast = Vec::new();
    for _ in 0..3 {
        let mut reader = gateway.open("/topics/a").await;
        reader.expect("stream-open").await;
        fast.push(tokio::spawn(async move {
            for n in 0..MESSAGES {
                assert!(reader.message().await.starts_with(&format!("{n} ")));
            }
        }));
    }
    let mut slow = Wire::buffered(gateway.address, "/topics/a", 128 * 1024).await;
    let mut pacer = gateway.open("/topics/a").await;
    pacer.expect("stream-open").await;
    let text = "x".repeat(1024);
    for begin in (0..MESSAGES).step_by(250) {
        publish_all(gateway.address, "a", (begin..begin + 250).map(|n| format!("{n} {text}"))).await;
        pacer.messages(250).await;
        slow.take(1024).await;
    }
    for reader in join_all(fast).await {
        reader.unwrap();
    }
    slow.until(b"event: stream-gap").await;
    slow.until(b"\"reason\":\"slow\"}\n\n").await;
    assert!(gateway.metric("topicgate_gaps_total{reason=\"slow\"}").await >= 1.0);
    // From the gap on, it is complete.
    slow.until(format!("data: {} ", MESSAGES - 1).as_bytes()).await;
    let text = String::from_utf8_lossy(&slow.body);
    let after = &text[text.rfind("\"reason\":\"slow\"}").unwrap()..];
    let numbers = after
        .lines()
        .filter_map(|line| line.strip_prefix("data: ")?.split(' ').next()?.parse::<usize>().ok());
    let numbers: Vec<_> = numbers.collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]) && numbers.last() == Some(&(MESSAGES - 1)));
}

#[tokio::test]
async fn a_reader_that_reads_nothing_is_closed_and_counted_as_slow() {
    let gateway = Gateway::with("[streams]\nwrite_timeout = \"1s\"").await;
    let _takes_nothing = Wire::narrow(gateway.address, "/topics/a").await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let payload = "x".repeat(200 * 1024);
    for _ in 0..60 {
        gateway.publish("a", &payload).await;
        assert_eq!(reader.message().await.len(), payload.len());
    }
    eventually("it is closed", async || total_streams(&gateway).await == 1.0).await;
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"slow\"}").await, 1.0);
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"gone\"}").await, 0.0);
    gateway.publish("a", "on").await;
    assert_eq!(reader.message().await, "on");
}

#[tokio::test]
async fn a_reader_whose_buffer_fills_up_slowly_is_slow_too() {
    let gateway = Gateway::with("[streams]\nwrite_timeout = \"1s\"").await;
    let _takes_nothing = Wire::narrow(gateway.address, "/topics/a").await;
    // More than its own buffer takes, less than the system would take in for it.
    gateway.publish("a", "x".repeat(20 * 1024)).await;
    eventually("it is closed", async || total_streams(&gateway).await == 0.0).await;
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"slow\"}").await, 1.0);
}

#[tokio::test]
async fn an_http_2_stream_that_reads_nothing_is_slow_too() {
    // The first event that finds the client's window full still leaves us, so it shows with the one after it.
    let gateway = Gateway::with("[streams]\nwrite_timeout = \"1s\"\nheartbeat = \"1s\"").await;
    let socket = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let mut client = http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) =
        client.initial_stream_window_size(16 * 1024).handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::get(format!("http://{}/topics/a", gateway.address)).body(Empty::<Bytes>::new()).unwrap();
    let _never_read = sender.send_request(request).await.unwrap();
    gateway.publish("a", "x".repeat(64 * 1024)).await;
    eventually("it is closed", async || gateway.metric("topicgate_streams{http=\"2\"}").await == 0.0).await;
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"slow\"}").await, 1.0);
}

#[tokio::test]
async fn a_silent_stream_gets_comments_of_two_bytes_and_a_busy_stream_gets_none() {
    let gateway = Gateway::with("[streams]\nheartbeat = \"1s\"").await;
    let mut chunked = Wire::open(gateway.address, "/topics/a").await;
    let socket = TcpSocket::new_v4().unwrap();
    let mut plain = Wire::over(socket, gateway.address, "/topics/a", "1.0").await;
    let mut busy = Wire::open(gateway.address, "/topics/busy").await;
    chunked.until(b"\n\n\r\n").await;
    plain.until(b"\n\n").await;
    let (ends, begin) = (chunked.body.len(), Instant::now());
    let flow = async {
        for n in 0.. {
            gateway.publish("busy", n.to_string()).await;
            busy.until(format!("data: {n}\n\n\r\n").as_bytes()).await;
            if begin.elapsed() > Duration::from_millis(2500) {
                break;
            }
        }
    };
    let silence = async {
        chunked.until(b"2\r\n:\n\r\n2\r\n:\n\r\n").await;
        plain.until(b"\n\n:\n:\n").await;
        begin.elapsed()
    };
    let ((), silent) = tokio::join!(flow, silence);
    assert_eq!(&chunked.body[ends..], b"2\r\n:\n\r\n2\r\n:\n\r\n");
    assert!(plain.body.ends_with(b"\n\n:\n:\n"));
    assert!((Duration::from_millis(1900)..Duration::from_millis(4500)).contains(&silent), "{silent:?}");
    assert!(!busy.body.windows(3).any(|three| three == b"\n:\n"), "messages flowed");
}

#[tokio::test]
async fn a_stream_of_maximum_age_is_closed_to_reconnect_and_misses_nothing() {
    let gateway = Gateway::with("[streams]\nmax_age = \"1s\"").await;
    let mut wire = Wire::open(gateway.address, "/topics/a").await;
    let flow = async {
        let mut n = 0;
        while total_streams(&gateway).await > 0.0 {
            gateway.publish("a", n.to_string()).await;
            n += 1;
        }
        n
    };
    let (published, _) = tokio::join!(flow, wire.until_end());
    let events = events(dechunk(&wire.body)).await;
    let (close, before) = events.split_last().unwrap();
    assert_eq!(close.event, "stream-close");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&close.data).unwrap(),
        json!({"code":"max_age","reconnect":true})
    );
    assert!(close.retry.unwrap() >= Duration::from_millis(500));
    let mut got: Vec<_> = before[1..].iter().map(|event| event.data.clone()).collect();
    let mut reader = gateway.resume("/topics/a", &close.id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
    got.extend(reader.messages(published - got.len()).await);
    assert!(got.into_iter().eq((0..published).map(|n| n.to_string())));
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"max_age\"}").await, 1.0);
}

#[tokio::test]
async fn a_topic_above_the_limit_is_refused_for_now_until_others_are_released() {
    let gateway = Gateway::with("[limits]\ntopics = 2").await;
    let mut a = gateway.open("/topics/a").await;
    let mut b = gateway.open("/topics/b").await;
    a.expect("stream-open").await;
    b.expect("stream-open").await;
    let mut c = gateway.open("/topics/c").await;
    assert_eq!(c.control("stream-close").await, json!({"code":"overloaded","reconnect":true}));
    assert!(c.next().await.is_none());
    drop(a);
    // Without its linger time of a minute: there is no room for that.
    let opened = async || gateway.open("/topics/c").await.next().await.unwrap().event == "stream-open";
    eventually("there is room", opened).await;
    gateway.publish("b", "1").await;
    assert_eq!(b.message().await, "1", "who was here is not disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_on_all_buffers_holds_and_topics_without_readers_are_evicted_first() {
    const BOUND: f64 = (4 * 1024 * 1024) as f64;
    let gateway = Gateway::with("[limits]\nbuffer = \"4MiB\"").await;
    let mut idle = gateway.open("/topics/idle").await;
    idle.expect("stream-open").await;
    let text = "x".repeat(8 * 1024);
    publish_all(gateway.address, "idle", std::iter::repeat_n(&text, 100)).await;
    idle.messages(99).await;
    let id = idle.last_id.clone();
    drop(idle);
    let mut kept = gateway.open("/topics/kept").await;
    kept.expect("stream-open").await;
    gateway.publish("kept", "1").await;
    let mut readers = Vec::new();
    for topic in 0..50 {
        let mut reader = gateway.open(&format!("/topics/t{topic}")).await;
        reader.expect("stream-open").await;
        readers.push(reader);
    }
    let held = async || gateway.metric("topicgate_buffer_bytes").await;
    for round in 0..10 {
        for (topic, reader) in readers.iter_mut().enumerate() {
            publish_all(gateway.address, &format!("t{topic}"), std::iter::repeat_n(&text, 4)).await;
            reader.messages(4).await;
        }
        assert!(held().await <= BOUND);
        if round == 1 {
            // 800 KiB idle and 3.3 MiB of the others: the idle ones have gone, and none that has a reader.
            let mut idle = gateway.resume("/topics/idle", &id).await;
            idle.expect("stream-open").await;
            assert_eq!(idle.control("stream-gap").await["reason"], "evicted");
            let mut again = gateway.open("/topics/kept?since=all").await;
            again.expect("stream-open").await;
            assert_eq!(again.message().await, "1");
        }
    }
    eventually("the gauge has come near the bound", async || held().await > BOUND / 2.0).await;
    assert!(held().await <= BOUND);
}
