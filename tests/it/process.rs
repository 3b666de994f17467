//! The process: signals, the drain, the ways it ends, and its log. The real binary.
#![cfg(unix)]

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::client::{self, Reader};
use crate::common::nats::NatsServer;
use crate::common::process::Process;
use crate::common::wire::{Wire, dechunk, events, publish_all};
use crate::common::{LIMIT, eventually, within};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The margin of the system, a debug build and a busy machine on a promised time.
const SLACK: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_thousand_streams_within_the_window_each_at_an_event_boundary() {
    const STREAMS: usize = 1000;
    const MESSAGES: usize = 20;
    let window = Duration::from_secs(3);
    let all_from_here = [("TOPICGATE_DRAIN", "3s"), ("TOPICGATE_LIMITS__OPENS_PER_SECOND", "1000")];
    let process = Process::start(&all_from_here).await;
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let mut wire = Wire::open(process.address, "/topics/a").await;
        readers.push(tokio::spawn(async move {
            wire.until_end().await;
            (wire.body, Instant::now())
        }));
    }
    publish_all(process.address, "a", (0..MESSAGES).map(|n| n.to_string())).await;
    let begin = Instant::now();
    process.signal("TERM");

    eventually("not ready", async || process.readyz().await.status == 503).await;
    assert_eq!(process.readyz().await.text(), "draining\n");
    let mut late = Reader::open(process.address, "/topics/a", &[]).await;
    let close = late.expect("stream-close").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&close.data).unwrap()["code"], "draining");
    assert!(close.retry.unwrap() >= Duration::from_millis(500));
    assert!(late.next().await.is_none());

    let ended = process.ended_within(window + SLACK).await;
    let took = begin.elapsed();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let (mut retries, mut times) = (HashSet::new(), Vec::new());
    for reader in readers {
        let (body, time) = reader.await.unwrap();
        times.push(time);
        let events = events(dechunk(&body)).await;
        assert_eq!(events[0].event, "stream-open");
        let messages: Vec<_> = events.iter().filter(|event| event.event == "message").collect();
        assert_eq!(messages.len(), MESSAGES, "published before the signal, so delivered before the close");
        let close = events.last().unwrap();
        assert_eq!(close.event, "stream-close");
        let data: serde_json::Value = serde_json::from_str(&close.data).unwrap();
        assert_eq!(data, json!({"code":"draining","reconnect":true}));
        assert_eq!(close.id, messages.last().unwrap().id, "from here on the client would be complete");
        retries.insert(close.retry.unwrap());
    }
    assert!(retries.len() > STREAMS / 4, "{} different delays", retries.len());
    times.sort_unstable();
    let spread = times[STREAMS - 1] - times[0];
    println!("drained {STREAMS} streams: first to last {spread:?}, signal to exit {took:?}");
    assert!(spread > Duration::from_millis(800), "all at once: {spread:?}");
    // Ten batches of the smallest size within a tenth of a second would not be spread.
    assert!(times.windows(320).all(|part| part[319] - part[0] > Duration::from_millis(100)));
}

#[tokio::test]
async fn the_container_without_a_configuration_shows_the_demo_and_says_so() {
    let image = [("TOPICGATE_DEMO", "true")];
    let process = Process::with(&["--listen", "0.0.0.0:0"], &image).await;
    assert!(
        process.log().contains("this is the demo: everyone who reaches 0.0.0.0:0 may read and publish"),
        "{}",
        process.log()
    );
    let address = SocketAddr::from(([127, 0, 0, 1], process.address.port()));
    let page = client::request(address, "GET", "/", &[], b"").await.text();
    assert!(page.contains("<strong>This is the demo.</strong>"), "{page}");
    let mut reader = Reader::open(address, "/topics/hello", &[]).await;
    reader.expect("stream-open").await;
    let published = client::request(address, "POST", "/topics/hello", &[], b"it works").await;
    assert_eq!((published.status, reader.message().await), (202, "it works".to_owned()));
    process.kill().await;

    // With a rule, it is none.
    let rules = ("TOPICGATE_TOPICS", "[{ match = \"a\", read = \"anyone\" }]");
    let process = Process::with(&["--listen", "0.0.0.0:0"], &[image[0], rules]).await;
    assert!(!process.log().contains("demo"), "{}", process.log());
    let address = SocketAddr::from(([127, 0, 0, 1], process.address.port()));
    let page = client::request(address, "GET", "/", &[], b"").await.text();
    assert!(!page.contains("This is the demo"), "{page}");
    assert_eq!(client::request(address, "POST", "/topics/a", &[], b"x").await.status, 404);
    process.kill().await;
}

#[tokio::test]
async fn readers_that_take_nothing_do_not_hold_up_the_end() {
    let window = Duration::from_secs(1);
    let process = Process::start(&[("TOPICGATE_DRAIN", "1s")]).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(Wire::narrow(process.address, "/topics/a").await);
    }
    let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
    reader.expect("stream-open").await;
    let payload = "x".repeat(64 * 1024);
    for _ in 0..25 {
        publish_all(process.address, "a", std::iter::repeat_n(&payload, 8)).await;
        assert!(reader.messages(8).await.iter().all(|message| *message == payload));
    }
    let begin = Instant::now();
    process.signal("TERM");
    assert_eq!(reader.control("stream-close").await["code"], "draining");
    let ended = process.ended_within(window + SLACK).await;
    println!("with 20 stalled readers: signal to exit {:?}", begin.elapsed());
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn streams_over_http_2_are_drained_too_and_an_open_connection_does_not_delay_the_end() {
    let process = Process::start(&[]).await;
    let socket = TokioIo::new(TcpStream::connect(process.address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    tokio::spawn(connection);
    let mut bodies = Vec::new();
    for _ in 0..50 {
        let url = format!("http://{}/topics/a", process.address);
        let request = Request::get(url).body(Empty::<Bytes>::new()).unwrap();
        bodies.push(sender.send_request(request).await.unwrap().into_body());
    }
    process.publish("a", "1").await;
    process.signal("TERM");
    for body in bodies {
        let body = body.collect().await.expect("cut off").to_bytes();
        let events = events(body.to_vec()).await;
        let names: Vec<_> = events.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(names, ["stream-open", "message", "stream-close"]);
    }
    let ended = process.ended_within(SLACK).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    drop(sender);
}

#[tokio::test]
async fn a_request_that_was_begun_before_sigterm_is_answered() {
    let process = Process::start(&[]).await;
    let mut socket = TcpStream::connect(process.address).await.unwrap();
    let head = format!("POST /topics/a HTTP/1.1\r\nHost: {}\r\nContent-Length: 4\r\n\r\n12", process.address);
    socket.write_all(head.as_bytes()).await.unwrap();
    eventually("accepted", async || process.connections().await == 2.0).await;
    process.signal("TERM");
    eventually("draining", async || process.log().contains("draining")).await;
    socket.write_all(b"34").await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer:?}");
    assert_eq!(process.ended().await.code, Some(0));
}

#[tokio::test]
async fn connections_that_ask_for_nothing_do_not_hold_up_the_end() {
    let process = Process::start(&[]).await;
    let _silent = TcpStream::connect(process.address).await.unwrap();
    let mut idle = TcpStream::connect(process.address).await.unwrap();
    idle.write_all(format!("HEAD /topics/a HTTP/1.1\r\nHost: {}\r\n\r\n", process.address).as_bytes())
        .await
        .unwrap();
    idle.read_u8().await.unwrap();
    let begin = Instant::now();
    process.signal("TERM");
    assert_eq!(process.ended().await.code, Some(0));
    assert!(begin.elapsed() < SLACK, "{:?} of a window of 10 s", begin.elapsed());
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let process = Process::start(&[("TOPICGATE_DRAIN", "60s")]).await;
    let mut readers = Vec::new();
    for _ in 0..200 {
        readers.push(Wire::open(process.address, "/topics/a").await);
    }
    process.signal("TERM");
    eventually("not ready", async || process.readyz().await.status == 503).await;
    let begin = Instant::now();
    process.signal("INT");
    let ended = process.ended().await;
    assert!(begin.elapsed() < SLACK);
    assert_eq!(ended.code, Some(1));
    assert!(ended.log.contains("second stop signal"), "{}", ended.log);
}

#[tokio::test]
async fn hangups_broken_pipes_and_readers_that_reset_end_nothing() {
    let process = Process::start(&[]).await;
    let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
    reader.expect("stream-open").await;
    process.signal("HUP");
    process.signal("PIPE");
    let payload = "x".repeat(200 * 1024);
    for _ in 0..10 {
        let mut rude = Wire::narrow(process.address, "/topics/a").await;
        rude.until(b"stream-open").await;
        process.publish("a", &payload).await;
        rude.reset(); // most of the message is still to be written to it
        process.publish("a", &payload).await;
        assert!(reader.messages(2).await.iter().all(|message| *message == payload));
    }
    assert!(process.runs());
    eventually("only this reader and the question are left", async || process.connections().await == 2.0)
        .await;
}

#[tokio::test]
async fn a_bad_configuration_ends_with_64_and_says_the_key() {
    let ended = Process::spawn(&[], &[("TOPICGATE_STREAMS__RETRY", "soon")]).ended().await;
    assert_eq!(ended.code, Some(64));
    assert!(ended.log.contains("streams.retry"), "{}", ended.log);
    assert_eq!(Process::spawn(&["--no-such-flag"], &[]).ended().await.code, Some(64));
}

#[tokio::test]
async fn a_broker_url_with_white_space_around_it_reaches_that_broker() {
    let nats = NatsServer::start();
    for url in [format!(" {}", nats.url()), format!("\t{}\n", nats.url())] {
        let rules = "[{ match = \"**\", read = \"anyone\", publish = \"anyone\" }]";
        let process = Process::start(&[("TOPICGATE_BROKER__URL", &url), ("TOPICGATE_TOPICS", rules)]).await;
        let client = async_nats::connect(nats.url()).await.unwrap();
        let mut others = client.subscribe("a").await.unwrap();
        client.flush().await.unwrap();
        eventually("the broker is there", async || process.readyz().await.status == 200).await;
        let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
        reader.expect("stream-open").await;
        process.publish("a", "x").await;
        assert_eq!(reader.message().await, "x");
        let message = within("others read it too", LIMIT, others.next()).await.unwrap();
        assert_eq!(message.payload.as_ref(), b"x");
    }
}

#[tokio::test]
async fn an_address_in_use_ends_with_1_and_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = Process::spawn(&["--listen", &address], &[]).ended().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.log.contains(&format!("listen = \"{address}\"")), "{}", ended.log);
}

#[tokio::test]
async fn after_a_kill_an_old_cursor_gets_a_restart_gap_before_anything_else() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let rule =
        "[[topics]]\nmatch = \"a\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { warm = true }\n";
    std::fs::write(&file, rule).unwrap();
    let config = file.path().to_str().unwrap();
    let process = Process::with(&["--config", config], &[]).await;
    let address = process.address.to_string();
    let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
    reader.expect("stream-open").await;
    process.publish("a", "before").await;
    assert_eq!(reader.message().await, "before");
    process.kill().await;
    assert!(reader.try_next().await.is_err(), "cut off, and no pretence of an orderly end");

    let process = Process::with(&["--config", config, "--listen", &address], &[]).await;
    eventually("ready", async || process.readyz().await.status == 200).await;
    process.publish("a", "after").await;
    let id = reader.last_id.clone();
    let mut reader = Reader::open(process.address, "/topics/a", &[("last-event-id", &id)]).await;
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    assert_eq!(reader.control("stream-gap").await, json!({"topic":"a","reason":"restarted"}));
    assert_eq!(reader.message().await, "after");
    assert_ne!(reader.last_id.split('-').next(), id.split('-').next(), "an epoch of its own");
}

#[tokio::test]
async fn no_secret_is_in_the_log_at_its_most_talkative() {
    let process = Process::with(&["--log-level", "debug"], &[]).await;
    let mut reader =
        Reader::open(process.address, "/topics/a?last_event_id=s3cret-query&x=s3cret-other", &[]).await;
    reader.expect("stream-open").await;
    process.publish("a", "s3cret-payload").await;
    let refused = client::request(process.address, "GET", "/topics/a//b?token=s3cret-token", &[], b"").await;
    assert_eq!(refused.status, 400);
    process.signal("TERM");
    let log = process.ended().await.log;
    assert!(!log.contains("s3cret"), "{log}");

    let process = Process::spawn(
        &["--log-level", "debug", "--broker", "nats://127.0.0.1:1"],
        &[("TOPICGATE_BROKER__USER", "gate"), ("TOPICGATE_BROKER__PASSWORD", "s3cret-password")],
    );
    eventually("it learns that the broker is away", async || {
        process.log().contains("away") || !process.runs()
    })
    .await;
    assert!(!process.log().contains("s3cret"), "{}", process.log());
}

#[tokio::test]
async fn more_streams_are_held_than_the_soft_limit_of_descriptors_has_room_for() {
    let mut child = tokio::process::Command::new("prlimit")
        .args(["--nofile=32:1024", env!("CARGO_BIN_EXE_topicgate"), "--log-format", "json"])
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // It may warn of the limit first, or tell that the broker is there.
    let address = loop {
        let line = lines.next_line().await.unwrap().unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if let Some(address) = line["listen"].as_str() {
            break address.parse().unwrap();
        }
    };
    let mut readers = vec![];
    for _ in 0..100 {
        let mut reader = Reader::open(address, "/topics/a", &[]).await;
        reader.expect("stream-open").await;
        readers.push(reader);
    }
}
