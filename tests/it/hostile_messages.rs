//! Hostile cursors and payloads: they must not break the framing, leak another topic or cost more than a gap.

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::raw::{Raw, ask, exchange};
use serde_json::json;

/// A gateway whose topic `a` holds one message, and the id of that message.
async fn with_one_message() -> (Gateway, String) {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    gateway.publish("a", "held").await;
    assert_eq!(reader.message().await, "held");
    let id = reader.last_id.clone();
    (gateway, id)
}

/// The stream tells a gap of that reason, and goes on from the oldest that is held.
async fn assert_unknown(mut reader: Reader, reason: &str) {
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    assert_eq!(reader.control("stream-gap").await, json!({"topic": "a", "reason": reason}));
    assert_eq!(reader.message().await, "held");
}

#[tokio::test]
async fn a_cursor_that_cannot_be_served_is_a_gap_and_never_a_refusal() {
    let (gateway, id) = with_one_message().await;
    let epoch = id.split('-').next().unwrap();
    let long = "x".repeat(257);
    for (cursor, reason) in [
        (long.as_str(), "unknown_id"),
        ("no-such-id", "unknown_id"),
        ("a\tb", "unknown_id"),
        ("-1", "unknown_id"),
        ("aaaaaaaa-1", "restarted"),
        ("aaaaaaaa-1-some-id", "restarted"),
        ("aaaaaaaa-18446744073709551615", "restarted"),
        (&format!("{epoch}-999999"), "unknown_id"),
        (&format!("{epoch}-18446744073709551615"), "unknown_id"),
        (&format!("{epoch}-18446744073709551616"), "unknown_id"),
        (&format!("{epoch}--1"), "unknown_id"),
        (&format!("{epoch}-+1"), "unknown_id"),
    ] {
        assert_unknown(gateway.resume("/topics/a", cursor).await, reason).await;
        let query: String = form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
        for name in ["last_event_id", "lastEventId", "lastEventID"] {
            assert_unknown(gateway.open(&format!("/topics/a?{name}={query}")).await, reason).await;
        }
    }
    assert_unknown(gateway.open("/topics/a?lastEventId=%ff%fe%00%0d%0a").await, "unknown_id").await;
}

#[tokio::test]
async fn a_cursor_of_any_bytes_is_a_gap_and_one_beyond_the_head_s_limit_ends_the_connection() {
    let (gateway, _) = with_one_message().await;
    for cursor in [&b"\xff\xfe"[..], b"\xc3\xa9", b"\x80", b"a\xffb"] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(b"GET /topics/a HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: ").await.unwrap();
        raw.send(cursor).await.unwrap();
        raw.send(b"\r\n\r\n").await.unwrap();
        assert_eq!(raw.head().await.0, 200);
        raw.until("event: stream-gap\n").await;
        raw.until("\"reason\":\"unknown_id\"").await;
        raw.until("data: held\n").await;
    }
    let mut raw = Raw::connect(gateway.address).await;
    let head = ask("GET", "/topics/a", &format!("Last-Event-ID: {}\r\n", "1".repeat(65536)));
    let _ = raw.send(head).await; // it may be refused before all of it is sent
    assert_eq!(raw.head().await.0, 431);
    raw.rest().await;
    for bad in [&b"a\0b"[..], b"a\x01b"] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(b"GET /topics/a HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: ").await.unwrap();
        raw.send(bad).await.unwrap();
        raw.send(b"\r\n\r\n").await.unwrap();
        assert_eq!(raw.head().await.0, 400);
    }
}

#[tokio::test]
async fn an_empty_cursor_is_ignored_and_the_header_wins_over_the_query() {
    let (gateway, id) = with_one_message().await;
    gateway.publish("a", "second").await;
    for (path, header) in [
        ("/topics/a", ""),
        ("/topics/a", "  "),
        ("/topics/a?last_event_id=", ""),
        ("/topics/a?lastEventId=", "\t"),
    ] {
        let mut reader = gateway.resume(path, header).await;
        assert_eq!(reader.control("stream-open").await["resumed"], false);
        gateway.publish("a", "live").await;
        assert_eq!(reader.message().await, "live", "{path} {header:?}");
    }
    let mut reader = gateway.resume("/topics/a?last_event_id=nonsense&lastEventId=nonsense", &id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
    assert_eq!(reader.message().await, "second");
    let mut reader = gateway.resume(&format!("/topics/a?lastEventId={id}"), "nonsense").await;
    reader.expect("stream-open").await;
    assert_eq!(reader.control("stream-gap").await["reason"], "unknown_id");
    // An empty header says nothing, so the query counts.
    let mut reader = gateway.resume(&format!("/topics/a?lastEventId={id}"), "").await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
}

#[tokio::test]
async fn a_cursor_of_another_topic_leaks_neither_its_events_nor_its_ids() {
    let rules = "[[topics]]\nmatch = \"open/**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                 [[topics]]\nmatch = \"hidden/**\"\nread = \"nobody\"\npublish = \"anyone\"\n\
                 replay = { warm = true }\n";
    let gateway = Gateway::with(rules).await;
    crate::common::eventually("ready", || async { gateway.ready().await.is_ok() }).await;
    let mut reader = gateway.open("/topics/open/a").await;
    reader.expect("stream-open").await;
    gateway.publish("open/a", "mine").await;
    assert_eq!(reader.message().await, "mine");
    let mine = reader.last_id.clone();
    let response = gateway.post("/topics/hidden/b?id=invoice-4711", "secret").await;
    assert_eq!(response.status, 202);
    crate::common::eventually("both came in", || async {
        gateway.metric("topicgate_messages_received_total").await == 2.0
    })
    .await;
    let epoch = mine.split('-').next().unwrap();
    let hidden = format!("{epoch}-2-invoice-4711");
    for cursor in
        [hidden.as_str(), "invoice-4711", "aaaaaaaa-7-invoice-4711", &format!("{epoch}-1-invoice-4711")]
    {
        let mut reader = gateway.resume("/topics/open/a", cursor).await;
        gateway.publish("open/a", "next").await;
        loop {
            let event = reader.next().await.unwrap();
            assert!(!event.id.contains("invoice") && !event.data.contains("secret"), "{event:?}");
            assert!(!event.data.contains("hidden") && !event.data.contains("invoice"), "{event:?}");
            if event.data == "next" {
                break;
            }
        }
        let forbidden = gateway.request("GET", "/topics/hidden/b", &[("last-event-id", cursor)]).await;
        assert_eq!(forbidden.status, 404);
    }
}

#[tokio::test]
async fn a_payload_that_forges_events_is_one_event_with_its_data() {
    let gateway = Gateway::start().await;
    for (payload, data) in [
        ("x\nid: 999\nevent: evil\n\ndata: forged", "x\nid: 999\nevent: evil\n\ndata: forged"),
        ("x\rid: 999\revent: evil\r\rdata: forged\r\r", "x\nid: 999\nevent: evil\n\ndata: forged\n\n"),
        ("x\r\n\r\nevent: stream-close\r\ndata: {}", "x\n\nevent: stream-close\ndata: {}"),
        ("\n\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "\n\n0\n\nHTTP/1.1 200 OK\n\n"),
        (": comment", ": comment"),
        ("retry: 0", "retry: 0"),
        ("\u{feff}bom\0nul", "\u{feff}bom\0nul"),
        ("\u{2028}\u{85}\u{b}\u{c}", "\u{2028}\u{85}\u{b}\u{c}"),
        ("", ""),
        ("  two spaces", "  two spaces"),
    ] {
        let mut reader = gateway.open("/topics/a").await;
        reader.expect("stream-open").await;
        gateway.publish("a", payload).await;
        gateway.publish("a", "after").await;
        let event = reader.expect("message").await;
        assert_eq!(event.data, data, "{payload:?}");
        assert!(!event.id.contains("999"));
        assert_eq!(reader.message().await, "after", "{payload:?}");
    }
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    gateway.publish("a", b"\xff\xfe\0A").await;
    assert_eq!(reader.message().await, "data:application/octet-stream;base64,//4AQQ==");
}

#[tokio::test]
async fn an_id_or_a_type_that_cannot_be_carried_is_refused_and_nothing_is_published() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    for query in [
        "id=1%0d2",
        "id=1%0a2",
        "id=1%00",
        "id=",
        "id=a%20b",
        "id=%ff",
        "id=%C3%A9",
        "type=message%0aevent:%20admin",
        "type=a%0db",
        "type=a%00",
        "type=",
        "type=stream-close",
        "type=stream-",
        "type=%ff%fe",
    ] {
        let response = gateway.post(&format!("/topics/a?{query}"), "x").await;
        assert_eq!(
            (response.status, response.json()["code"].as_str()),
            (400, Some("bad_request")),
            "{query}"
        );
        assert_eq!(response.header("x-content-type-options"), "nosniff");
    }
    let long = "x".repeat(129);
    for query in [format!("id={long}"), format!("type={long}")] {
        assert_eq!(gateway.post(&format!("/topics/a?{query}"), "x").await.status, 400);
    }
    for field in [
        &b"Event-Id: a b"[..],
        b"Event-Id: \xff",
        b"Event-Id: \xc3\xa9",
        b"Event-Type: stream-close",
        b"Event-Type: stream-gap",
        b"Event-Type: \xff\xfe",
        b"Event-Type: a\xc3",
    ] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(b"POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n").await.unwrap();
        raw.send(field).await.unwrap();
        raw.send(b"\r\n\r\nx").await.unwrap();
        assert_eq!(raw.reply().await.status, 400, "{}", String::from_utf8_lossy(field));
    }
    assert_eq!(gateway.metric("topicgate_messages_received_total").await, 0.0);
    let response = gateway.post("/topics/a?id=order-7&type=price%20of%20%C3%A9t%C3%A9", "x").await;
    assert_eq!(response.status, 202);
    let event = reader.expect("price of été").await;
    assert!(event.id.ends_with("-order-7"), "{}", event.id);
}

#[tokio::test]
async fn the_largest_message_arrives_and_one_byte_more_is_refused() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let largest = "m".repeat(256 * 1024);
    gateway.publish("a", &largest).await;
    assert_eq!(reader.message().await, largest);
    let response = gateway.post("/topics/a", format!("{largest}m")).await;
    assert_eq!((response.status, response.json()["code"].as_str()), (413, Some("too_large")));
    // The same without an announced length, and with one that is far beyond any limit.
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(ask("POST", "/topics/a", "Transfer-Encoding: chunked\r\n")).await.unwrap();
    for _ in 0..80 {
        if raw.send(format!("1000\r\n{}\r\n", "m".repeat(0x1000))).await.is_err() {
            break;
        }
    }
    assert_eq!(raw.reply().await.status, 413);
    let huge = exchange(gateway.address, ask("POST", "/topics/a", "Content-Length: 9000000000000\r\n")).await;
    assert_eq!(huge.status, 413);
    assert_eq!(gateway.metric("topicgate_messages_received_total").await, 1.0);
}

#[tokio::test]
async fn a_body_is_requested_only_if_it_could_be_published() {
    let gateway = Gateway::with("[[topics]]\nmatch = \"a\"\nread = \"anyone\"\npublish = \"anyone\"\n").await;
    let expect = "Expect: 100-continue\r\nContent-Length: 5\r\n";
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(ask("POST", "/topics/a", expect)).await.unwrap();
    assert_eq!(raw.head().await.0, 100);
    raw.send("hello").await.unwrap();
    assert_eq!(raw.reply().await.status, 202);
    for (target, length, status) in [
        ("/topics/b", "5", 404),
        ("/topics/%3E", "5", 400),
        ("/topics/a?type=stream-close", "5", 400),
        ("/topics/a", "262145", 413),
    ] {
        let mut raw = Raw::connect(gateway.address).await;
        let expect = format!("Expect: 100-continue\r\nContent-Length: {length}\r\n");
        raw.send(ask("POST", target, &expect)).await.unwrap();
        assert_eq!(raw.head().await.0, status, "{target}");
    }
}
