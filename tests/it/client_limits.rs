//! Limits per client: each limit is reached, the refusal has the form that the client understands, other clients do not
//! notice, and the limit frees up again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::browser::Client;
use crate::common::client::{Reader, Response};
use crate::common::gateway::Gateway;
use crate::common::process::Process;
use crate::common::raw::{Raw, ask};
use crate::common::token::{JWT, token};
use crate::common::upstream::Upstream;
use crate::common::wire::{Wire, dechunk, events, publish_all};
use crate::common::{LIMIT, eventually, within};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

/// The temporary refusal of an EventSource: 200, one event, the end.
async fn is_refused_for_now(gateway: &Gateway, path: &str, code: &str) {
    let mut reader = gateway.open(path).await;
    let close = reader.expect("stream-close").await;
    let data: serde_json::Value = serde_json::from_str(&close.data).unwrap();
    assert_eq!(data, json!({"code":code,"reconnect":true}));
    assert!(close.retry.unwrap() >= Duration::from_millis(500));
    assert!(reader.next().await.is_none());
}

/// As anyone else is.
fn assert_refused(response: &Response, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), "application/problem+json");
    assert_eq!(response.header("cache-control"), "no-store");
    assert_eq!(response.json()["code"], code);
    assert!((1..=5).contains(&response.header("retry-after").parse::<u32>().unwrap()));
}

/// The first is as curl asks, the others as scripts and people do.
const NOT_EVENT_SOURCES: [&[(&str, &str)]; 3] = [&[("accept", "*/*")], &[], &[("accept", "text/*")]];

async fn refused_to_others(gateway: &Gateway, path: &str, status: u16, code: &str) {
    for headers in NOT_EVENT_SOURCES {
        assert_refused(&gateway.request("GET", path, headers).await, status, code);
    }
}

/// A stream for another address of this machine. Insists that it is opened.
async fn open_from_elsewhere(gateway: &Gateway, path: &str) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    let mut wire = Wire::over(socket, gateway.address, path, "1.1").await;
    wire.until(b"event: stream-open\n").await;
    wire
}

async fn closed(gateway: &Gateway, code: &str) -> f64 {
    gateway.metric(&format!("topicgate_streams_closed_total{{code=\"{code}\"}}")).await
}

#[tokio::test]
async fn the_streams_of_an_address_are_limited_until_one_has_left() {
    let gateway = Gateway::with("limits = { streams_per_address = 2 }").await;
    let mut held = vec![];
    for path in ["/topics/a", "/topics/b"] {
        let mut reader = gateway.open(path).await;
        reader.expect("stream-open").await;
        held.push(reader);
    }
    is_refused_for_now(&gateway, "/topics/a", "too_many_streams").await;
    refused_to_others(&gateway, "/topics/c", 429, "too_many_streams").await;
    let head = gateway.request("HEAD", "/topics/a", &[]).await;
    assert_eq!(head.status, 200, "which opens none");
    let elsewhere = open_from_elsewhere(&gateway, "/topics/a").await;
    assert_eq!(closed(&gateway, "too_many_streams").await, 4.0);
    assert_eq!(gateway.metric("topicgate_refused_requests_total{code=\"too_many_streams\"}").await, 3.0);
    assert_eq!(gateway.metric("topicgate_limit{limit=\"streams_per_address\"}").await, 2.0);
    // The gauges are taken once a second.
    eventually("the fullest is shown", async || {
        gateway.metric("topicgate_limit_used{limit=\"streams_per_address\"}").await == 2.0
    })
    .await;
    assert_eq!(gateway.metric("topicgate_addresses").await, 2.0);
    gateway.publish("b", "1").await;
    assert_eq!(held[1].message().await, "1", "who was here is not disturbed");

    drop(held.remove(0));
    let again = async || gateway.open("/topics/a").await.next().await.unwrap().event == "stream-open";
    eventually("there is a place", again).await;
    drop((held, elsewhere));
    eventually("nobody is remembered", async || gateway.metric("topicgate_addresses").await == 0.0).await;
    assert_eq!(gateway.metric("topicgate_limit_used{limit=\"streams_per_address\"}").await, 0.0);
}

/// Whether a new connection is closed before anything is sent on it.
async fn is_closed_at_once(address: SocketAddr) -> bool {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(1), socket.read(&mut [0])).await;
    read.is_ok_and(|read| matches!(read, Ok(0) | Err(_)))
}

#[tokio::test]
async fn the_connections_of_an_address_are_limited_and_others_still_get_in() {
    let toml = |most: usize| format!("limits = {{ connections_per_address = {most} }}");
    let gateway = Gateway::with(&toml(3)).await;
    let mut held = vec![];
    for _ in 0..2 {
        let mut reader = gateway.open("/topics/a").await;
        reader.expect("stream-open").await;
        held.push(reader);
    }
    // One that says nothing counts as well, and has no part in the rest.
    let silent = TcpStream::connect(gateway.address).await.unwrap();
    eventually("all are accepted", async || gateway.metric("topicgate_connections").await == 4.0).await;
    assert!(is_closed_at_once(gateway.address).await);
    let met = "topicgate_limit_met_total{limit=\"connections_per_address\"}";
    assert_eq!(gateway.metric(met).await, 1.0);
    assert_eq!(gateway.metric("topicgate_limit{limit=\"connections_per_address\"}").await, 3.0);
    eventually("the fullest is shown", async || {
        gateway.metric("topicgate_limit_used{limit=\"connections_per_address\"}").await == 3.0
    })
    .await;
    let _elsewhere = open_from_elsewhere(&gateway, "/topics/a").await;
    // A place is free again once one has left, and there are more once they are allowed.
    drop(silent);
    eventually("there is a place", async || !is_closed_at_once(gateway.address).await).await;
    assert!(gateway.reload_with(&toml(9)));
    let mut third = gateway.open("/topics/a").await;
    third.expect("stream-open").await;
    gateway.publish("a", "1").await;
    for reader in &mut held {
        assert_eq!(reader.message().await, "1", "who was here is not disturbed");
    }
}

#[tokio::test]
async fn streams_of_http_2_count_among_those_of_their_address() {
    let gateway = Gateway::with("limits = { streams_per_address = 2 }").await;
    let socket = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async |accept: &str| {
        let request = Request::get(format!("http://{}/topics/a", gateway.address)).header("accept", accept);
        sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
    };
    let held = [ask("*/*").await, ask("text/event-stream").await];
    assert!(held.iter().all(|response| response.status() == 200));
    assert_eq!(ask("*/*").await.status(), 429);
    let told = ask("text/event-stream").await;
    assert_eq!(told.status(), 200);
    let told = within("it ends", LIMIT, told.into_body().collect()).await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&told).contains("\"code\":\"too_many_streams\""), "{told:?}");
    drop(held);
    eventually("there is a place", async || ask("*/*").await.status() == 200).await;
}

#[tokio::test]
async fn an_address_that_opens_streams_too_fast_is_slowed_down_and_others_are_not() {
    let gateway = Gateway::with("limits = { opens_per_second = 1 }").await;
    let begin = Instant::now();
    let mut opened = 0;
    // That they are closed again does not matter.
    let told = loop {
        let mut reader = gateway.open("/topics/a").await;
        match reader.next().await.unwrap() {
            event if event.event == "stream-open" => opened += 1,
            event => break event,
        }
    };
    let allowed = 5 + begin.elapsed().as_secs();
    assert!(
        (5..=allowed).contains(&opened),
        "{opened} of {allowed}: five seconds' worth at once, one a second after it"
    );
    assert_eq!(
        (told.event.as_str(), told.data.as_str()),
        ("stream-close", r#"{"code":"too_fast","reconnect":true}"#)
    );
    for headers in NOT_EVENT_SOURCES {
        let refused = loop {
            let mut raw = Raw::connect(gateway.address).await;
            let accept: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            raw.send(ask("GET", "/topics/a", &accept)).await.unwrap();
            match raw.head().await {
                (200, _) => {} // another second has passed
                (status, head) => break (status, head),
            }
        };
        assert_eq!(refused.0, 429);
        assert!(refused.1.contains("\r\nretry-after: ") && refused.1.contains("application/problem+json"));
    }
    open_from_elsewhere(&gateway, "/topics/a").await;
    let again = async || gateway.open("/topics/a").await.next().await.unwrap().event == "stream-open";
    eventually("a second has passed", again).await;
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(closed(&gateway, "too_fast").await >= 4.0);
}

#[tokio::test]
async fn the_topics_of_an_address_are_limited_across_its_streams() {
    let gateway = Gateway::with("limits = { topics_per_address = 4, topics_per_stream = 4 }").await;
    let held = gateway.open("/topics?topic=a&topic=b&topic=c/*").await;
    is_refused_for_now(&gateway, "/topics?topic=a&topic=d", "too_many_topics").await;
    refused_to_others(&gateway, "/topics?topic=a&topic=d", 429, "too_many_topics").await;
    // A topic that another one covers does not count.
    let _fourth = gateway.open("/topics?topic=d/1&topic=d/*").await.expect("stream-open").await;
    drop(held);
    let path = "/topics?topic=e&topic=f&topic=g&topic=h";
    let again = async || gateway.open(path).await.next().await.unwrap().event == "stream-open";
    eventually("there is room", again).await;
}

#[tokio::test]
async fn a_temporary_fault_is_503_for_clients_that_do_not_ask_for_an_event_stream() {
    let gateway = Gateway::with("limits = { streams = 1 }").await;
    let _held = gateway.open("/topics/a").await;
    is_refused_for_now(&gateway, "/topics/a", "overloaded").await;
    refused_to_others(&gateway, "/topics/a", 503, "overloaded").await;
    assert_eq!(closed(&gateway, "overloaded").await, 4.0);
}

#[tokio::test]
async fn a_stream_that_fails_to_open_or_is_abandoned_no_longer_counts() {
    let mut upstream = Upstream::redis().await;
    let gateway = Gateway::with(&format!("limits.streams_per_address = 1\n{}", upstream.toml())).await;
    let before = upstream.subscriptions().await;
    // A broker that is silent keeps a request waiting; it has its place meanwhile.
    upstream.pause();
    let mut waiting = Raw::connect(gateway.address).await;
    waiting.send(ask("GET", "/topics/a", "")).await.unwrap();
    let most = async || gateway.metric("topicgate_limit_used{limit=\"streams_per_address\"}").await;
    eventually("it has its place", async || most().await == 1.0).await;
    refused_to_others(&gateway, "/topics/b", 429, "too_many_streams").await;
    drop(waiting);
    eventually("its place is free", async || most().await == 0.0).await;
    upstream.resume();
    let opened = async || gateway.open("/topics/c").await.next().await.unwrap().event == "stream-open";
    eventually("the broker answers again", opened).await;
    // The broker was not asked about refused topics.
    let asked_for = upstream.subscriptions().await;
    assert!((before + 1..=before + 2).contains(&asked_for), "{asked_for}");
    upstream.stop();
    eventually("it is noticed", async || gateway.ready().await.is_err()).await;
    for _ in 0..3 {
        refused_to_others(&gateway, "/topics/d", 503, "unavailable").await;
        is_refused_for_now(&gateway, "/topics/d", "unavailable").await;
    }
}

#[tokio::test]
async fn the_streams_of_a_subject_are_limited_across_addresses() {
    let rules =
        "[[topics]]\nmatch = \"open/**\"\nread = \"anyone\"\n[[topics]]\nmatch = \"**\"\nread = \"token\"\n";
    let gateway = Gateway::with(&format!("limits.streams_per_subject = 2\n{JWT}{rules}")).await;
    let bearer = |subject: &str| format!("Bearer {}", token(json!({ "sub": subject })));
    let (alice, bob) = (bearer("alice"), bearer("bob"));
    let open = async |path: &str, authorization: &str| {
        let mut reader = Reader::open(gateway.address, path, &[("authorization", authorization)]).await;
        let first = reader.next().await.unwrap();
        if first.event == "stream-open" {
            return Ok(reader);
        }
        Err(first.data)
    };
    let (first, _second) =
        (open("/topics/a", &alice).await.unwrap(), open("/topics/b", &alice).await.unwrap());
    assert!(open("/topics/a", &alice).await.is_err_and(|data| data.contains("too_many_subject_streams")));
    let headers = [("authorization", alice.as_str())];
    let told = gateway.request("GET", "/topics/a", &headers).await;
    assert_refused(&told, 429, "too_many_subject_streams");
    open("/topics/a", &bob).await.unwrap();
    open("/topics/open/a", &alice).await.unwrap(); // where nobody asks who it is
    drop(first);
    eventually("its place is free", async || open("/topics/a", &alice).await.is_ok()).await;
}

#[tokio::test]
async fn chromium_comes_back_by_itself_once_the_limit_has_passed() {
    let gateway = Gateway::with("limits.streams_per_address = 1\nstreams.retry = \"500ms\"").await;
    let mut held = gateway.open("/topics/a").await;
    held.expect("stream-open").await;
    let url = format!("http://{}/topics/a", gateway.address);
    let mut page = Client::start("chromium", &url, &json!({ "page": "same-origin" }));
    for _ in 0..2 {
        let event = page.event().await;
        assert_eq!((event.kind.as_str(), event.id.as_str()), ("stream-close", ""));
        assert!(event.data.contains("too_many_streams"), "{event:?}");
    }
    drop(held);
    while page.event().await.kind != "stream-open" {}
    gateway.publish("a", "at last").await;
    assert_eq!(page.message().await.data, "at last");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_topics_of_one_address_are_a_few_at_the_broker_and_none_after_it() {
    const ATTEMPTS: usize = 10_000;
    const STREAMS: usize = 150;
    let upstream = Upstream::nats().await;
    let limits = format!("limits = {{ streams_per_address = {STREAMS}, opens_per_second = {ATTEMPTS} }}\n");
    let gateway =
        Gateway::with(&format!("{limits}{}replay = {{ linger = \"0s\" }}\n", upstream.toml())).await;
    let before = upstream.subscriptions().await;
    let address = gateway.address;
    let attackers = (0..20).map(|attacker| {
        tokio::spawn(async move {
            let mut held = vec![];
            for n in 0..ATTEMPTS / 20 {
                let mut reader = Reader::open(address, &format!("/topics/attack/{attacker}/{n}"), &[]).await;
                match reader.next().await.unwrap().event.as_str() {
                    "stream-open" => held.push(reader),
                    other => assert_eq!(other, "stream-close"),
                }
            }
            held
        })
    });
    let held: Vec<Reader> = join_all(attackers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(held.len(), STREAMS);
    assert_eq!(closed(&gateway, "too_many_streams").await, (ATTEMPTS - STREAMS) as f64);
    // No other client has to wait.
    open_from_elsewhere(&gateway, "/topics/orders/eu").await;
    assert!(upstream.subscriptions().await <= before + STREAMS as u64 + 1);
    drop(held);
    eventually("all is given back", async || {
        let [topics, addresses] = ["topicgate_topics", "topicgate_addresses"];
        gateway.metric(topics).await + gateway.metric(addresses).await == 0.0
    })
    .await;
    eventually("unsubscribed", async || upstream.subscriptions().await == before).await;
}

/// With 64 KiB of replay a second, so 320 KiB at once, and this many messages of 8 KiB that were published.
async fn paced_gateway(messages: usize) -> Gateway {
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                replay = { messages = 2000, bytes = \"32MiB\" }\n";
    let gateway = Gateway::with(&format!("limits.resume_bytes = \"64KiB\"\n{rule}")).await;
    let mut first = gateway.open("/topics/a").await;
    publish_all(gateway.address, "a", (0..messages).map(numbered)).await;
    first.expect("stream-open").await;
    for n in 0..messages {
        assert!(first.message().await == numbered(n), "live delivery has no pace");
    }
    gateway
}

fn numbered(n: usize) -> String {
    format!("{n} {}", "x".repeat(8 * 1024))
}

async fn waits(gateway: &Gateway) -> f64 {
    gateway.metric("topicgate_limit_met_total{limit=\"resume_bytes\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_beyond_its_pace_waits_its_turn_loses_nothing_and_holds_up_nobody() {
    const MESSAGES: usize = 90; // 720 KiB
    let gateway = paced_gateway(MESSAGES).await;
    assert_eq!(waits(&gateway).await, 0.0);
    let begin = Instant::now();
    let mut replay = gateway.open("/topics/a?since=all").await;
    replay.expect("stream-open").await;
    for n in 0..30 {
        assert!(replay.message().await == numbered(n), "the burst");
    }
    eventually("it waits", async || waits(&gateway).await > 0.0).await;

    // Of the same address: readers that have missed nothing, live or resumed, and messages that are published
    // meanwhile.
    let mut live = gateway.open("/topics/a").await;
    live.expect("stream-open").await;
    let mut back = gateway.resume("/topics/a", &live.last_id.clone()).await;
    assert_eq!(back.control("stream-open").await["resumed"], true);
    // Of another: its own pace, with which it is at the end at once.
    let mut elsewhere = open_from_elsewhere(&gateway, "/topics/a?last=30").await;
    elsewhere.until(format!("data: {} ", MESSAGES - 1).as_bytes()).await;
    gateway.publish("a", "now").await;
    for reader in [&mut live, &mut back] {
        assert_eq!(reader.message().await, "now");
    }
    elsewhere.until(b"data: now\n").await;
    let replayed = gateway.metric("topicgate_replayed_bytes_total").await;
    assert!(replayed < 1024.0 * (720.0 + 240.0), "it waits still, and they have not: {replayed}");

    for n in 30..MESSAGES {
        assert!(replay.message().await == numbered(n));
    }
    assert_eq!(replay.message().await, "now");
    // 720 KiB at 64 a second, without the 320 at once and the piece of 64 that overdraws.
    assert!(begin.elapsed() > Duration::from_secs(5), "{:?}", begin.elapsed());
    // Once at the end it has no pace any more, though its address owes still.
    publish_all(gateway.address, "a", (0..1000).map(numbered)).await;
    let live = Instant::now();
    for n in 0..1000 {
        assert!(replay.message().await == numbered(n));
    }
    // Two minutes at the pace.
    assert!(live.elapsed() < Duration::from_secs(30), "{:?}", live.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnecting_repeatedly_with_an_old_cursor_brings_no_more_than_the_pace() {
    let gateway = paced_gateway(60).await;
    let (begin, address) = (Instant::now(), gateway.address);
    let sent = async || gateway.metric("topicgate_replayed_bytes_total").await;
    let loops = (0..8).map(|_| {
        tokio::spawn(async move {
            while begin.elapsed() < Duration::from_secs(4) {
                let mut wire = Wire::open(address, "/topics/a?since=all").await;
                // For as long as something comes.
                let some = tokio::time::timeout(Duration::from_millis(50), wire.until(b"data: 20 ")).await;
                drop((some, wire));
            }
        })
    });
    for each in join_all(loops).await {
        each.unwrap();
    }
    let allowed = 64.0 * 1024.0 * (5.0 + begin.elapsed().as_secs_f64());
    let sent = sent().await;
    println!("{} KiB, of {} that the pace allows", sent / 1024.0, allowed / 1024.0);
    // Beyond it no more than a piece for each of two threads.
    assert!(sent <= allowed + 3.0 * 64.0 * 1024.0, "{sent} of {allowed}");
    assert!(sent >= allowed / 2.0, "{sent} of {allowed}");
    assert!(waits(&gateway).await > 0.0);
}

#[tokio::test]
async fn a_waiting_replay_ends_with_the_drain_and_continues_on_another_replica() {
    let mut gateway = paced_gateway(60).await;
    let mut wire = Wire::open(gateway.address, "/topics/a?since=all").await;
    let reading = tokio::spawn(async move {
        wire.until_end().await;
        wire
    });
    eventually("it waits", async || waits(&gateway).await > 0.0).await;
    gateway.begin_to_stop();
    let begin = Instant::now();
    let wire = reading.await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let events = events(dechunk(&wire.body)).await;
    let (close, before) = events.split_last().unwrap();
    assert_eq!(close.event, "stream-close");
    assert!(close.data.contains("draining"));
    // A whole number of messages from the first on, and the id of the last of them is what it comes back with.
    assert!(before[1..].iter().enumerate().all(|(n, event)| event.data == numbered(n)));
    assert!((30..60).contains(&(before.len() - 1)), "{}", before.len());
    assert_eq!(close.id, before.last().unwrap().id);
}

#[tokio::test]
async fn a_replay_that_waits_still_sends_heartbeats() {
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n";
    let limits = "limits.resume_bytes = \"64KiB\"\nstreams.heartbeat = \"1s\"\n";
    let gateway = Gateway::with(&format!("{limits}{rule}replay = {{ bytes = \"4MiB\" }}\n")).await;
    let mut first = gateway.open("/topics/a").await;
    // Messages of 256 KiB: one overdraws by more than a heartbeat's time.
    publish_all(gateway.address, "a", vec!["x".repeat(256 * 1024); 4]).await;
    first.expect("stream-open").await;
    first.messages(4).await;
    let mut wire = Wire::open(gateway.address, "/topics/a?since=all").await;
    wire.until(b"\r\n2\r\n:\n\r\n").await;
    assert!(waits(&gateway).await > 0.0);
    wire.until(b"\r\n2\r\n:\n\r\n2\r\n:\n\r\n").await;
}

#[tokio::test]
async fn the_log_names_the_key_to_set_if_all_clients_may_be_behind_one_proxy() {
    let limit = ("TOPICGATE_LIMITS__STREAMS_PER_ADDRESS", "1");
    let trusted = ("TOPICGATE_PROXIES__TRUSTED", "10.0.0.0/8");
    for (environment, said) in [(&[limit][..], true), (&[limit, trusted], false)] {
        let process = Process::start(environment).await;
        let _held = Reader::open(process.address, "/topics/a", &[]).await;
        for _ in 0..3 {
            let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
            reader.expect("stream-close").await;
        }
        let told =
            || process.log().lines().filter(|line| line.contains("a client was refused for now")).count();
        eventually("it says so", async || told() > 0).await;
        assert_eq!(told(), 1, "now and then, not each time");
        assert_eq!(process.log().contains("proxies.trusted"), said, "{}", process.log());
        assert!(process.log().contains("127.0.0.1") && process.log().contains("too_many_streams"));
    }
}

/// A request that is refused for its own sake, as often as it takes until the pace of its address is met.
#[tokio::test]
async fn the_pace_of_an_address_is_checked_before_its_topics_are_parsed() {
    let gateway = Gateway::with("limits = { opens_per_second = 1 }").await;
    let all: String = (0..101).map(|n| format!("&topic=a/{n}")).collect();
    for path in
        ["/topics/a//b".to_owned(), format!("/topics?topic=b{all}"), "/topics?topic=a/*&topic=*/b".into()]
    {
        let mut refused = 0;
        while gateway.get(&path).await.status != 429 {
            refused += 1;
            assert!(refused < 50, "{path}: it has no pace");
        }
    }
    assert!(closed(&gateway, "too_fast").await >= 3.0);
}

#[tokio::test]
async fn a_topic_that_is_named_repeatedly_counts_once() {
    let gateway = Gateway::start().await;
    let path = format!("/topics?{}topic=b", "topic=a&".repeat(1_500));
    let mut reader = gateway.open(&path).await;
    let topics = reader.control("stream-open").await["topics"].clone();
    assert_eq!(topics, json!(["a", "b"]));
}

/// Opens `count` streams of ten topics each, one after the other, each on its own topics, and leaves each.
async fn pass_through(gateway: &Gateway, streams: std::ops::Range<usize>) {
    for n in streams {
        let path: String = (0..10).map(|topic| format!("&topic=pass/{n}/{topic}")).collect();
        gateway.open(&format!("/topics?topic=pass/{n}{path}")).await.expect("stream-open").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lingering_topics_count_for_their_last_address_and_its_oldest_are_released() {
    let upstream = Upstream::nats().await;
    let limits = "limits = { topics_per_address = 100, opens_per_second = 1000 }\n";
    let gateway = Gateway::with(&format!("{limits}{}", upstream.toml())).await;
    let before = upstream.subscriptions().await;
    let mut elsewhere = open_from_elsewhere(&gateway, "/topics/pass/0/1").await;
    pass_through(&gateway, 0..50).await;
    // They linger for a minute, which is much longer than this test waits.
    let topics = async || gateway.metric("topicgate_topics").await;
    eventually("as many as the address may have are left", async || topics().await <= 101.0).await;
    eventually("and the broker knows", async || upstream.subscriptions().await <= before + 101).await;
    eventually("they are counted", async || gateway.metric("topicgate_topics_lingering").await <= 100.0)
        .await;
    let listed = gateway.ask_admin("GET", "/topics?prefix=pass/49/&limit=1000", &[]).await.json();
    assert_eq!(listed["topics"].as_array().unwrap().len(), 10, "the newest stay");
    gateway.publish("pass/0/1", "still read").await;
    elsewhere.until(b"data: still read\n").await;
    // And in time for the next stream, which is not refused because of lingering topics.
    pass_through(&gateway, 50..60).await;
}

#[tokio::test]
async fn new_topics_have_a_pace_for_an_address_and_topics_in_memory_have_none() {
    let gateway = Gateway::with("limits = { new_topics_per_second = 1 }").await;
    // Five at once; a stream may go over it, and then it is made up for.
    let many: String = (0..60).map(|n| format!("&topic=many/{n}")).collect();
    let many = format!("/topics?topic=many{many}");
    let _held = gateway.open(&many).await.expect("stream-open").await;
    is_refused_for_now(&gateway, "/topics/new", "too_fast").await;
    refused_to_others(&gateway, "/topics/new", 429, "too_fast").await;
    gateway.open(&many).await.expect("stream-open").await;
    open_from_elsewhere(&gateway, "/topics/new").await;
    gateway.open("/topics/new").await.expect("stream-open").await;
    assert!(gateway.metric("topicgate_limit_met_total{limit=\"new_topics_per_second\"}").await >= 4.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_released_as_fast_as_they_are_opened() {
    // More than one sweep a second could give up within the limit of a test, with the 1024 that fit into its way to the
    // broker.
    const STREAMS: usize = 300;
    let limits = "limits = { topics_per_address = 1000000, topics = 1000000, new_topics_per_second = 1000000, \
                  opens_per_second = 1000 }\n";
    let rule =
        "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { linger = \"0s\" }\n";
    let gateway = Gateway::with(&format!("{limits}{rule}")).await;
    let mut held = vec![];
    for stream in 0..STREAMS {
        let topics: Vec<String> = (0..100).map(|n| format!("topic={stream}/{n}")).collect();
        let mut reader = gateway.open(&format!("/topics?{}", topics.join("&"))).await;
        reader.expect("stream-open").await;
        held.push(reader);
    }
    drop(held);
    eventually("all are given up", async || gateway.metric("topicgate_topics").await == 0.0).await;
}

async fn post_from(gateway: &Gateway, last: u8, length: usize, sent: usize) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    let mut raw = Raw::over(socket.connect(gateway.address).await.unwrap());
    let mut bytes = ask("POST", "/topics/a", &format!("Content-Length: {length}\r\n"));
    bytes.extend(vec![b'x'; sent]);
    raw.send(bytes).await.unwrap();
    raw
}

#[tokio::test]
async fn the_bytes_of_unfinished_bodies_are_limited_for_an_address_and_in_total() {
    // An address may have 32 KiB and a head of 16: one message, and half of a second one.
    let limits = "limits = { message = \"32KiB\", bodies = \"64KiB\", head_timeout = \"1m\" }\n";
    let rule = "[[topics]]\nmatch = \"**\"\npublish = \"anyone\"\n";
    let gateway = Gateway::with(&format!("{limits}{rule}")).await;
    let used = async || gateway.metric("topicgate_limit_used{limit=\"bodies\"}").await;
    let mut first = post_from(&gateway, 1, 32 * 1024, 30_000).await;
    eventually("it is counted", async || used().await >= 30_000.0).await;
    let refused = post_from(&gateway, 1, 32 * 1024, 30_000).await.reply().await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("2")), "{}", refused.text());
    assert!(
        refused.text().contains("too_fast") && refused.text().contains("limits.bodies"),
        "{}",
        refused.text()
    );
    let mut second = post_from(&gateway, 2, 28_000, 27_000).await;
    eventually("it has its own part", async || used().await >= 57_000.0).await;
    let refused = post_from(&gateway, 3, 30_000, 29_000).await.reply().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("2")), "{}", refused.text());
    assert!(refused.text().contains("overloaded"), "{}", refused.text());
    assert_eq!(gateway.metric("topicgate_limit_met_total{limit=\"bodies\"}").await, 2.0);
    first.send(vec![b'x'; 32 * 1024 - 30_000]).await.unwrap();
    assert_eq!(first.reply().await.status, 202);
    second.send(vec![b'x'; 1_000]).await.unwrap();
    assert_eq!(second.reply().await.status, 202);
    eventually("all is free again", async || used().await == 0.0).await;
    assert_eq!(post_from(&gateway, 3, 30_000, 30_000).await.reply().await.status, 202);
}

#[tokio::test]
async fn the_publishing_pace_of_an_address_is_checked_before_anything_else() {
    let gateway = Gateway::with("limits = { publishes_per_second = 1 }").await;
    let mut accepted = 0;
    let begin = Instant::now();
    // Requests that are refused for another reason count too.
    let refused = loop {
        let path = if accepted == 0 { "/topics/a/*" } else { "/topics/a" };
        let answer = gateway.post(path, "x").await;
        match answer.status {
            429 => break answer,
            400 | 202 => accepted += 1,
            status => panic!("{status}"),
        }
    };
    assert!((5..=5 + begin.elapsed().as_secs()).contains(&accepted), "{accepted}");
    assert_eq!((refused.json()["code"].clone(), refused.header("retry-after")), (json!("too_fast"), "2"));
    assert!(refused.text().contains("limits.publishes_per_second"), "{}", refused.text());
    assert_eq!(post_from(&gateway, 2, 1, 1).await.reply().await.status, 202);
    gateway.open("/topics/a").await.expect("stream-open").await;
    assert!(gateway.metric("topicgate_limit_met_total{limit=\"publishes_per_second\"}").await >= 1.0);
}
