//! HTTP/2 that means harm, by prior knowledge: too many streams, streams that are dropped at once, windows that never
//! open, connections that want nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::gateway::Gateway;
use common::raw::Raw;
use common::{LIMIT, eventually};
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use hyper::Request;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const STREAMS: &str = "topicgate_streams{http=\"2\"}";

/// A write timeout of a second, late by what the clocks look away for.
const IMPATIENT: &str =
    "streams = { write_timeout = \"1s\", heartbeat = \"1s\" }\nlimits = { head_timeout = \"1s\" }\n";
const SLACK: Duration = Duration::from_secs(4);

async fn connect(gateway: &Gateway, builder: &Builder) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let socket = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = builder.handshake(socket).await.unwrap();
    let connection = tokio::spawn(async {
        let _ = connection.await;
    });
    (client.ready().await.unwrap(), connection)
}

fn get(gateway: &Gateway, path: &str) -> Request<()> {
    Request::get(format!("http://{}{path}", gateway.address)).body(()).unwrap()
}

/// Opens a stream and insists on 200.
async fn open(gateway: &Gateway, client: &mut SendRequest<Bytes>, path: &str) -> RecvStream {
    let (response, _) = client.send_request(get(gateway, path), true).unwrap();
    let response = tokio::time::timeout(LIMIT, response).await.expect("no response").unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("connection").is_none());
    response.into_body()
}

async fn until(body: &mut RecvStream, needle: &str) -> String {
    let mut text = String::new();
    while !text.contains(needle) {
        let data = tokio::time::timeout(LIMIT, body.data()).await.expect("no data").expect("an end").unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    text
}

async fn assert_alive_and_empty(gateway: &Gateway) {
    eventually("no stream is left", || async { gateway.metric(STREAMS).await == 0.0 }).await;
    let (mut client, _) = connect(gateway, &Builder::new()).await;
    let mut body = open(gateway, &mut client, "/topics/alive").await;
    gateway.publish("alive", "yes").await;
    until(&mut body, "data: yes\n\n").await;
}

#[tokio::test]
async fn streams_share_a_connection_and_refusals_come_over_it_too() {
    let gateway = Gateway::start().await;
    let (mut client, _) = connect(&gateway, &Builder::new()).await;
    let mut a = open(&gateway, &mut client, "/topics/a").await;
    let mut b = open(&gateway, &mut client, "/topics/b").await;
    for (path, status) in [("/topics/%3E", 400), ("/topics/$SYS/a", 404)] {
        let (response, _) = client.send_request(get(&gateway, path), true).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{path}");
    }
    let attacker =
        Request::get("http://attacker.example/topics/a").header("host", "localhost").body(()).unwrap();
    let (response, _) = client.send_request(attacker, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 421);
    let tunnel = Request::connect("attacker.example:443").body(()).unwrap();
    let (response, _) = client.send_request(tunnel, true).unwrap();
    assert!(response.await.unwrap().status().is_client_error());
    let large = Request::get(format!("http://{}/topics/a", gateway.address)).header("x", "x".repeat(20_000));
    let (response, _) = client.send_request(large.body(()).unwrap(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    gateway.publish("a", "for a").await;
    gateway.publish("b", "for b").await;
    let (a, b) = (until(&mut a, "data: for a\n\n").await, until(&mut b, "data: for b\n\n").await);
    assert!(a.starts_with("event: stream-open\n") && b.starts_with("event: stream-open\n"));
}

#[tokio::test]
async fn the_streams_of_one_connection_are_bounded() {
    let gateway = Gateway::start().await;
    let (mut client, connection) = connect(&gateway, &Builder::new()).await;
    // With the first response the client knows the bound, and keeps it. Streams beyond it would be refused.
    let mut bodies = vec![open(&gateway, &mut client, "/topics/first").await];
    let mut open = tokio::task::JoinSet::new();
    for n in 0..300 {
        let (client, request) = (client.clone(), get(&gateway, &format!("/topics/t{n}")));
        open.spawn(async move {
            let (response, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
            let mut body = response.await.unwrap().into_body();
            // h2 gives a connection up on which much waits unread.
            until(&mut body, "event: stream-open\n").await;
            body
        });
    }
    while bodies.len() < 256 {
        let body = tokio::time::timeout(LIMIT, open.join_next()).await.expect("no more streams");
        bodies.push(body.unwrap().unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), open.join_next()).await.is_err());
    assert_eq!(gateway.metric(STREAMS).await, 256.0);
    // One that leaves makes room for one that waits.
    drop(bodies.pop());
    let _body = tokio::time::timeout(LIMIT, open.join_next()).await.expect("no room").unwrap().unwrap();
    open.abort_all();
    connection.abort();
    assert_alive_and_empty(&gateway).await;
}

#[tokio::test]
async fn a_client_that_never_opens_its_window_is_closed() {
    let gateway = Gateway::with(IMPATIENT).await;
    let begin = Instant::now();
    let (mut client, connection) = connect(&gateway, Builder::new().initial_window_size(0)).await;
    let _body = open(&gateway, &mut client, "/topics/a").await;
    tokio::time::timeout(LIMIT, connection).await.expect("it is never closed").unwrap();
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    assert_alive_and_empty(&gateway).await;
}

#[tokio::test]
async fn a_client_that_stops_taking_is_closed_and_one_that_takes_all_is_not() {
    let gateway = Gateway::with(IMPATIENT).await;
    let (mut quick, _) = connect(&gateway, &Builder::new()).await;
    let mut taken = open(&gateway, &mut quick, "/topics/a").await;
    let (mut slow, connection) = connect(&gateway, &Builder::new()).await;
    let _body = open(&gateway, &mut slow, "/topics/a").await;
    gateway.publish("a", "m".repeat(200_000)).await; // the default window is 65,535
    until(&mut taken, "mm\n\n").await;
    // Bytes beyond the window may wait in h2's buffer. It is the next heartbeat that finds no way out.
    tokio::time::timeout(SLACK, connection).await.expect("it is not closed").unwrap();
    gateway.publish("a", "and on").await;
    until(&mut taken, "data: and on\n\n").await;
}

#[tokio::test]
async fn streams_that_are_reset_as_soon_as_they_are_asked_for_leave_nothing_behind() {
    // The limit on new streams is not to spare it the trouble.
    let gateway = Gateway::with("limits = { opens_per_second = 10000 }\n").await;
    let mut asked = 0;
    while asked < 1000 {
        let (mut client, connection) = connect(&gateway, &Builder::new()).await;
        // A flood of resets is answered by the end of the connection, after which the attacker opens the next.
        while asked < 1000 && !connection.is_finished() {
            let Ok((response, mut stream)) = client.send_request(get(&gateway, "/topics/alive"), true) else {
                break;
            };
            asked += 1;
            if asked % 3 == 0 {
                let _ = tokio::time::timeout(LIMIT, response).await.expect("neither a response nor an end");
            }
            stream.send_reset(Reason::CANCEL);
            if asked % 50 == 0 {
                tokio::task::yield_now().await;
            }
            match client.ready().await {
                Ok(ready) => client = ready,
                Err(_) => break,
            }
        }
        connection.abort();
    }
    assert_alive_and_empty(&gateway).await;
    eventually("one topic is held", || async { gateway.metric("topicgate_topics").await == 1.0 }).await;
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed_however_well_it_answers_pings() {
    let gateway = Gateway::with(IMPATIENT).await;
    let (mut client, kept) = connect(&gateway, &Builder::new()).await;
    let mut body = open(&gateway, &mut client, "/topics/a").await;
    let begin = Instant::now();
    let (_client, connection) = connect(&gateway, &Builder::new()).await;
    tokio::time::timeout(LIMIT, connection).await.expect("it is never closed").unwrap();
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    // One with a stream is not idle, for as long as the stream is silent.
    assert!(!kept.is_finished());
    gateway.publish("a", "still here").await;
    until(&mut body, "data: still here\n\n").await;
    drop(body);
    tokio::time::timeout(LIMIT, kept).await.expect("it is never closed").unwrap();
}

#[tokio::test]
async fn a_connection_that_says_nothing_after_its_preface_is_closed() {
    let gateway = Gateway::with(IMPATIENT).await;
    let begin = Instant::now();
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    raw.rest().await;
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    // Nor does a field block that is never finished hold it open.
    let begin = Instant::now();
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    raw.send(b"\0\0\x01\x01\x01\0\0\0\x01\x82").await.unwrap(); // HEADERS without END_HEADERS
    raw.rest().await;
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    assert_alive_and_empty(&gateway).await;
}
