//! Hostile connections: slow or endless heads, too many of anything, and unexpected bytes. A connection costs little, and
//! not for long.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::gateway::Gateway;
use crate::common::raw::{Raw, ask, exchange};
use crate::common::{LIMIT, eventually};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

const SHORT_HEADS: &str = "limits = { head_timeout = \"1s\" }\n";

/// How late a deadline of one second may be: it holds for the first bytes and for the rest of a head, each.
const SLACK: Duration = Duration::from_secs(4);

async fn assert_alive(gateway: &Gateway) {
    let mut reader = gateway.open("/topics/alive").await;
    gateway.publish("alive", "yes").await;
    reader.expect("stream-open").await;
    assert_eq!(reader.message().await, "yes");
}

/// Sends `bytes`, and checks that the connection is then closed in time. Returns the answer.
async fn closed_after(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let begin = Instant::now();
    let mut raw = Raw::connect(address).await;
    raw.send(bytes).await.unwrap();
    let rest = raw.rest().await;
    assert!(begin.elapsed() < SLACK, "closed after {:?}", begin.elapsed());
    rest
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_half_a_head_is_closed_in_time() {
    let gateway = Gateway::with(SHORT_HEADS).await;
    let address = gateway.address;
    let half = b"GET /topics/a HTTP/1.1\r\nHost: localhost\r\n";
    let (nothing, one, preface, half) = tokio::join!(
        closed_after(address, ""),
        closed_after(address, "G"),
        closed_after(address, "PRI * HTTP/2.0\r\n"),
        closed_after(address, half),
    );
    assert_eq!([nothing.as_str(), &one, &preface, &half], [""; 4]);
    assert_alive(&gateway).await;
}

#[tokio::test]
async fn a_head_that_arrives_too_slowly_is_cut_off_even_if_bytes_keep_coming() {
    let gateway = Gateway::with(SHORT_HEADS).await;
    let begin = Instant::now();
    let mut raw = Raw::connect(gateway.address).await;
    let mut trickle = tokio::time::interval(Duration::from_millis(50));
    for byte in ask("GET", "/topics/a", &format!("X-Padding: {}\r\n", "x".repeat(1000))) {
        trickle.tick().await;
        if raw.send([byte]).await.is_err() {
            break;
        }
    }
    assert!(begin.elapsed() < SLACK, "{:?}", begin.elapsed());
    assert_alive(&gateway).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_last_request_and_a_slow_body_is_cut_off() {
    let gateway = Gateway::with(SHORT_HEADS).await;
    let address = gateway.address;
    let publish = ask("POST", "/topics/a", "Content-Length: 1\r\n\r\nx");
    let slow = ask("POST", "/topics/a", "Content-Length: 10\r\n\r\nx");
    let (idle, slow) = tokio::join!(
        closed_after(address, &publish[..publish.len() - 2]), // without the line end that `ask` puts last
        closed_after(address, slow),
    );
    assert!(idle.starts_with("HTTP/1.1 202 ") && idle.matches("HTTP/1.1").count() == 1, "{idle}");
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    assert_alive(&gateway).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_or_ambiguous_is_refused_and_its_connection_closed() {
    let gateway = Gateway::start().await;
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (what, head, statuses) in [
        ("200 fields", ask("GET", "/topics/a", &many), &[431][..]),
        ("1 MiB", ask("GET", "/topics/a", &format!("X: {}\r\n", "x".repeat(1 << 20))), &[431, 400]),
        ("two lengths", ask("POST", "/topics/a", "Content-Length: 1\r\nContent-Length: 2\r\n\r\nx"), &[400]),
        ("a bad length", ask("POST", "/topics/a", "Content-Length: +1\r\n\r\nx"), &[400]),
        ("a folded field", ask("GET", "/topics/a", "X: a\r\n b\r\n"), &[400]),
        ("a space before the colon", ask("GET", "/topics/a", "X : a\r\n"), &[400]),
        ("chunked not last", ask("POST", "/topics/a", "Transfer-Encoding: chunked, gzip\r\n"), &[400]),
        ("no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), &[400]),
        ("HTTP/3.0", b"GET /topics/a HTTP/3.0\r\nHost: localhost\r\n\r\n".to_vec(), &[400]),
        ("no version", b"GET /topics/a\r\n\r\n".to_vec(), &[400]),
    ] {
        let mut raw = Raw::connect(gateway.address).await;
        let _ = raw.send(head).await; // it may be refused before all of it is sent
        let (status, _) = raw.head().await;
        assert!(statuses.contains(&status), "{what}: {status}");
        assert!(!raw.rest().await.contains("HTTP/1.1"), "{what}");
    }
    assert_alive(&gateway).await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let gateway = Gateway::with(SHORT_HEADS).await;
    for (target, field, status) in [
        ("/topics/$SYS/a", "Content-Length: 33554432", 404),
        ("/topics/a", "Content-Length: 33554432", 413),
        ("/topics/a", "Transfer-Encoding: chunked", 413),
    ] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(ask("POST", target, &format!("{field}\r\n"))).await.unwrap();
        let chunk = format!("100000\r\n{}\r\n", "x".repeat(0x100000));
        for _ in 0..8 {
            raw.send(&chunk).await.expect("it was reset"); // 8 MiB: more than lies between two sockets
        }
        assert_eq!(raw.reply().await.status, status);
        if field.starts_with("Transfer") {
            // That does not go on for ever.
            let begin = Instant::now();
            while raw.send([b'x'; 4096]).await.is_ok() {
                assert!(begin.elapsed() < SLACK, "it takes and takes");
            }
        }
    }
    assert_alive(&gateway).await;
}

#[tokio::test]
async fn a_length_beside_chunks_smuggles_no_second_request() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.address).await;
    let smuggled = "0\r\n\r\nPOST /topics/smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let fields =
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}", smuggled.len());
    let request = ask("POST", "/topics/a", &fields);
    raw.send(&request[..request.len() - 2]).await.unwrap();
    // Refused, or read by its chunks with the connection closed after it (RFC 9112, section 6.1).
    let answers = raw.rest().await;
    assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{answers}");
    assert_alive(&gateway).await;
}

#[tokio::test]
async fn bytes_after_the_request_of_a_stream_are_not_answered_and_are_limited() {
    let gateway = Gateway::start().await;
    for (what, first) in [
        (
            "pipelined",
            [ask("GET", "/topics/a", ""), ask("POST", "/topics/a", "Content-Length: 0\r\n")].concat(),
        ),
        ("a body", ask("GET", "/topics/a", "Content-Length: 5\r\n\r\nhello")),
        ("a part of a body", ask("GET", "/topics/a", "Content-Length: 50000\r\n\r\nhello")),
        ("chunks", ask("GET", "/topics/a", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")),
        ("an expectation", ask("GET", "/topics/a", "Expect: 100-continue\r\nContent-Length: 5\r\n")),
        (
            "an upgrade",
            ask("GET", "/topics/a", "Connection: upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n"),
        ),
    ] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(first).await.unwrap();
        let (status, _) = raw.head().await;
        assert_eq!(status, 200, "{what}");
        raw.until("event: stream-open\n").await;
        gateway.publish("a", what).await;
        let before = raw.until(&format!("data: {what}\n\n\r\n")).await;
        assert!(!before.contains("HTTP/1.1") && before.matches("data:").count() == 2, "{what}: {before}");
        // Nor does it matter a while later, within a bound.
        raw.send("stray".repeat(1000)).await.unwrap();
        gateway.publish("a", "and on").await;
        raw.until("data: and on\n\n\r\n").await;
        let mut sent = 0;
        while raw.send([b'x'; 4096]).await.is_ok() {
            sent += 4096;
            assert!(sent < 16 << 20, "{what}: it takes and takes");
            tokio::task::yield_now().await;
        }
    }
    eventually("no stream is left", || async {
        gateway.metric("topicgate_streams{http=\"1.1\"}").await == 0.0
    })
    .await;
    assert_alive(&gateway).await;
}

#[tokio::test]
async fn a_stream_can_follow_other_requests_on_its_connection_pipelined_or_not() {
    let gateway = Gateway::start().await;
    let publish = b"POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";
    let requests = [ask("HEAD", "/topics/a", ""), publish.to_vec(), ask("GET", "/topics/a", "")];
    let mut raw = Raw::connect(gateway.address).await;
    for request in &requests {
        raw.send(request).await.unwrap();
        raw.head().await;
    }
    raw.until("event: stream-open\n").await;
    let mut pipelined = Raw::connect(gateway.address).await;
    pipelined.send(requests.concat()).await.unwrap();
    assert!(!pipelined.head().await.1.contains("transfer-encoding: chunked\r\n\r\n0"));
    assert_eq!(pipelined.reply().await.status, 202);
    assert_eq!(pipelined.head().await.0, 200);
    for raw in [&mut raw, &mut pipelined] {
        gateway.publish("a", "last").await;
        raw.until("data: last\n\n\r\n").await;
    }
}

#[tokio::test]
async fn http_1_0_is_served_without_chunks_and_closed_at_the_end() {
    let gateway = Gateway::with("streams = { max_age = \"1s\" }\n").await;
    for connection in ["", "Connection: keep-alive\r\n"] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(format!("GET /topics/a HTTP/1.0\r\nHost: localhost\r\n{connection}\r\n")).await.unwrap();
        let (status, head) = raw.head().await;
        assert_eq!(status, 200);
        assert!(!head.contains("transfer-encoding") && head.contains("\r\nconnection: close\r\n"), "{head}");
        let stream = raw.rest().await;
        assert!(stream.starts_with("event: stream-open\n"), "{stream}");
        assert!(stream.contains("\"code\":\"max_age\"") && stream.ends_with("}\n\n"), "{stream}");
    }
}

#[tokio::test]
async fn a_head_that_waits_behind_unread_responses_is_complete_before_the_stream_begins() {
    // Each of the refused requests counts against the pace of its address.
    let gateway = Gateway::with("[limits]\nopens_per_second = 100000").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let (read, mut write) = socket.connect(gateway.address).await.unwrap().into_split();
    let requests = 20_000;
    assert_eq!(gateway.get("/topics/%3E").await.status, 400); // from here on the metric is there
    let sent = tokio::spawn(async move {
        write.write_all(&ask("GET", "/topics/%3E", "").repeat(requests)).await.unwrap();
        write.write_all(&ask("GET", "/topics/a", "")).await.unwrap();
        write
    });
    let answered = || gateway.metric("topicgate_refused_requests_total{code=\"bad_topic\"}");
    eventually("the gateway is stuck", || async {
        let before = answered().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        before > 1.0 && before == answered().await
    })
    .await;
    // In the middle of some response, with the stream's head far behind.
    assert!(answered().await < requests as f64);
    let mut reader = tokio::io::BufReader::new(read);
    let mut answered = 0;
    let head = loop {
        let mut line = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut line);
        let read = tokio::time::timeout(LIMIT, read).await.expect("no more responses").unwrap();
        assert!(read > 0, "the connection has ended after {answered} responses: {line}");
        match line.trim_end() {
            // The body of a refusal has no line end, so the next head follows it on the same line.
            line if line.ends_with("HTTP/1.1 400 Bad Request") => answered += 1,
            line if line.ends_with("HTTP/1.1 200 OK") => break line.to_owned(),
            _ => {}
        }
    };
    assert!(head.starts_with("{\"title\""), "{head}");
    assert_eq!(answered, requests);
    let _write = sent.await.unwrap();
    gateway.publish("a", "after all").await;
    let mut text = String::new();
    while !text.ends_with("data: after all\n") {
        let read = tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut text);
        assert!(tokio::time::timeout(LIMIT, read).await.expect("no event").unwrap() > 0, "{text}");
    }
    let (fields, stream) = text.split_once("\r\n\r\n").unwrap();
    assert!(fields.contains("transfer-encoding: chunked"), "{fields}");
    assert!(stream.lines().nth(1) == Some("event: stream-open"), "{stream}");
}

#[tokio::test]
async fn a_client_that_closes_its_side_is_gone_and_its_stream_with_it() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(ask("GET", "/topics/a", "")).await.unwrap();
    raw.until("event: stream-open\n").await;
    raw.socket.shutdown().await.unwrap();
    raw.rest().await;
    eventually("no stream is left", || async {
        gateway.metric("topicgate_streams{http=\"1.1\"}").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn beyond_the_limit_on_connections_the_next_one_waits_until_one_leaves() {
    let gateway = Gateway::with("limits = { connections = 8 }\n").await;
    let mut open = vec![];
    for _ in 0..8 {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(ask("GET", "/topics/a", "")).await.unwrap();
        assert_eq!(raw.head().await.0, 200);
        open.push(raw);
    }
    let mut ninth = Raw::connect(gateway.address).await;
    ninth.send(ask("GET", "/topics/a", "")).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), ninth.head()).await.is_err());
    assert_eq!(gateway.metric("topicgate_streams{http=\"1.1\"}").await, 8.0);
    drop(open.pop());
    assert_eq!(ninth.head().await.0, 200);
}

#[tokio::test]
async fn beyond_the_limit_on_streams_the_next_one_is_closed_to_reconnect() {
    let gateway = Gateway::with("limits = { streams = 2 }\n").await;
    let held = [gateway.open("/topics/a").await, gateway.open("/topics/b").await];
    for topic in ["a", "c"] {
        let mut third = gateway.open(&format!("/topics/{topic}")).await;
        let event = third.expect("stream-close").await;
        assert!(event.data.contains("\"overloaded\""), "{}", event.data);
        assert!(event.retry.unwrap() >= Duration::from_millis(500));
        assert!(third.next().await.is_none());
    }
    drop(held);
    eventually("there is room again", || async {
        gateway.metric("topicgate_streams{http=\"1.1\"}").await == 0.0
    })
    .await;
    assert_alive(&gateway).await;
    assert_eq!(exchange(gateway.address, ask("GET", "/topics/%3E", "")).await.status, 400);
}
