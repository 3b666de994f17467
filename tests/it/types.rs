//! `?type=` and `?event=none`: a reader receives only the messages that it wants, its cursor moves past the others, and
//! gaps always come.

use crate::common::browser::Client;
use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::raw::{Raw, ask};
use crate::common::sources::{OnSource, number};
use serde_json::json;

const REPLAY: &str = "messages = 1000";

/// So that most of what a reader missed is no longer in memory.
const FEW: &str = "messages = 10";

crate::on_each_source!(
    only_the_types_that_it_names_reach_a_reader,
    a_reader_of_some_types_resumes_and_replays,
    without_event_lines_every_message_is_an_ordinary_one,
);

/// The kind and the number of the next event.
async fn next(reader: &mut Reader) -> (String, usize) {
    let event = reader.next().await.unwrap();
    (event.event.clone(), number(&event.data))
}

async fn only_the_types_that_it_names_reach_a_reader(at: OnSource) {
    let open = async |path: &str| {
        let mut reader = at.gateway.open(path).await;
        reader.expect("stream-open").await;
        reader
    };
    let mut some = open("/topics/s/a?type=price,trade").await;
    let mut listed = open("/topics?topic=s/a&topic=s/b&type=price&type=trade&format=cloudevents").await;
    let mut untyped = open("/topics/s/a?type=message").await;
    let mut all = open("/topics/s/a").await;
    for n in 0..40 {
        at.publish("s/a", ["price", "news", "", "trade"][n % 4], n).await;
        at.publish("s/b", ["news", "price"][n % 2], 100 + n).await;
    }
    for n in 0..40 {
        let kind = ["price", "news", "message", "trade"][n % 4];
        assert_eq!(next(&mut all).await, (kind.to_owned(), n));
        match n % 4 {
            0 | 3 => assert_eq!(next(&mut some).await, (kind.to_owned(), n)),
            2 => assert_eq!(next(&mut untyped).await, (kind.to_owned(), n)),
            _ => {}
        }
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let (kind, n) = next(&mut listed).await;
        if n < 100 { a.push((kind, n)) } else { b.push((kind, n)) }
    }
    let expected: Vec<_> = (0..40).filter(|n| matches!(n % 4, 0 | 3)).collect();
    assert_eq!(a.iter().map(|(_, n)| *n).collect::<Vec<_>>(), expected);
    assert!(b.iter().all(|(kind, _)| kind == "price"));
    assert_eq!(
        b.iter().map(|(_, n)| *n).collect::<Vec<_>>(),
        (0..20).map(|n| 101 + 2 * n).collect::<Vec<_>>()
    );
    // 20 of `some`, 20 and 20 of `listed`, 30 of `untyped`; the last of them may still be on their way.
    let filtered = async || at.gateway.metric("topicgate_filtered_messages_total").await;
    eventually("what was left out is counted", async || filtered().await == 90.0).await;
}

async fn a_reader_of_some_types_resumes_and_replays(at: OnSource) {
    let path = "/topics/s/a?type=price";
    let mut reader = at.gateway.open(path).await;
    reader.expect("stream-open").await;
    let mut all = at.gateway.open("/topics/s/a").await;
    all.expect("stream-open").await;
    for n in 0..6 {
        at.publish("s/a", ["price", "news"][n % 2], n).await;
        next(&mut all).await;
    }
    assert_eq!(next(&mut reader).await, ("price".into(), 0));
    let id = reader.last_id.clone();
    drop(reader);
    let mut again = at.gateway.resume(path, &id).await;
    assert_eq!(again.control("stream-open").await["resumed"], true);
    for n in [2, 4] {
        assert_eq!(next(&mut again).await, ("price".into(), n));
    }
    let mut replay = at.gateway.open(&format!("{path}&since=all")).await;
    replay.expect("stream-open").await;
    at.publish("s/a", "news", 6).await;
    at.publish("s/a", "price", 7).await;
    for n in [0, 2, 4, 7] {
        assert_eq!(next(&mut replay).await, ("price".into(), n));
    }
    assert_eq!(next(&mut again).await, ("price".into(), 7));
}

async fn without_event_lines_every_message_is_an_ordinary_one(at: OnSource) {
    let mut reader = at.gateway.open("/topics/s/a?event=none").await;
    reader.expect("stream-open").await;
    let mut chosen = at.gateway.open("/topics?topic=s/a&topic=s/b&event=none&type=price").await;
    chosen.expect("stream-open").await;
    for n in 0..20 {
        at.publish("s/a", ["price", ""][n % 2], n).await;
    }
    for n in 0..20 {
        assert_eq!(next(&mut reader).await, ("message".into(), n));
    }
    for n in 0..10 {
        assert_eq!(next(&mut chosen).await, ("message".into(), 2 * n));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_applies_to_messages_that_the_broker_stores() {
    for at in [OnSource::jetstream(FEW).await, OnSource::redis_stream(FEW).await] {
        for n in 0..100 {
            at.publish("s/a", if n % 20 == 0 { "price" } else { "news" }, n).await;
        }
        let mut reader = at.gateway.open("/topics/s/a?since=all&type=price&event=none").await;
        reader.expect("stream-open").await;
        for n in 0..5 {
            assert_eq!(next(&mut reader).await, ("message".into(), 20 * n));
        }
    }
}

#[tokio::test]
async fn a_gap_is_sent_to_readers_of_any_types() {
    let gateway = Gateway::with("[limits]\nmessage = \"1KiB\"\n").await;
    let mut reader = gateway.open("/topics/a?type=price&event=none").await;
    let id = reader.expect("stream-open").await.id;
    drop(reader);
    let foreign = format!("zzzzzzzz-{}", id.split_once('-').unwrap().1);
    let mut reader = gateway.resume("/topics/a?type=price&event=none", &foreign).await;
    reader.expect("stream-open").await;
    assert_eq!(reader.control("stream-gap").await, json!({"topic":"a","reason":"restarted"}));
}

#[tokio::test]
async fn a_cursor_moves_past_messages_that_the_view_leaves_out() {
    let at = OnSource::embedded(REPLAY).await;
    let mut all = at.gateway.open("/topics/s/a").await;
    all.expect("stream-open").await;
    let mut raw = Raw::connect(at.gateway.address).await;
    raw.send(ask("GET", "/topics/s/a?type=price", "Accept: text/event-stream\r\n")).await.unwrap();
    raw.until("\"resumed\":false}").await;
    at.publish("s/a", "price", 0).await;
    raw.until("\"n\":0").await;
    at.publish("s/a", "news", 1).await;
    all.messages_of(&["price", "news"]).await;
    let id = all.last_id.clone();
    // At the heartbeat, an id alone. After it, silence is a comment again.
    let beat = raw.until(&format!("id: {id}\n\n")).await;
    assert!(!beat.contains("data"), "{beat}");
    let beat = raw.until("\n:\n").await;
    assert!(!beat.contains("id"), "{beat}");
}

#[tokio::test]
async fn chromium_resumes_after_messages_that_its_view_left_out() {
    let at = OnSource::embedded(FEW).await;
    let options = json!({ "page": "same-origin", "types": ["price"] });
    let mut page = Client::with("chromium", at.gateway.address, "/topics/s/a?type=price", &options).await;
    at.publish("s/a", "price", 0).await;
    let first = page.event().await;
    assert_eq!((first.kind.as_str(), number(&first.data)), ("price", 0));
    // More than is held, so that the id of the first message is no position any more.
    for n in 1..30 {
        at.publish("s/a", "news", n).await;
    }
    // Two heartbeats: the first has the id of the last message that was left out.
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert_eq!(at.gateway.ask_admin("DELETE", "/streams?topic=**", &[]).await.status, 200);
    assert_eq!(page.event().await.kind, "stream-close");
    let open = page.event().await;
    assert_eq!(
        (open.kind.as_str(), open.data.contains("\"resumed\":true")),
        ("stream-open", true),
        "{open:?}"
    );
    at.publish("s/a", "price", 30).await;
    let next = page.event().await;
    assert_eq!((next.kind.as_str(), number(&next.data)), ("price", 30), "no ghost and no gap before it");
    page.close().await;
}

#[tokio::test]
async fn chromium_gets_every_type_at_onmessage_without_event_lines() {
    let at = OnSource::embedded(REPLAY).await;
    let mut page = Client::open("chromium", at.gateway.address, "/topics/s/a?event=none").await;
    for (n, kind) in ["price", "", "open", "error"].into_iter().enumerate() {
        at.publish("s/a", kind, n).await;
    }
    for n in 0..4 {
        let event = page.message().await;
        assert_eq!(number(&event.data), n);
    }
    page.close().await;
}

#[tokio::test]
async fn an_invalid_view_is_a_bad_query() {
    let gateway = Gateway::start().await;
    let many = |count: usize| (0..count).map(|n| format!("t{n}")).collect::<Vec<_>>().join(",");
    let long = "a".repeat(129);
    for bad in [
        "type=",
        "type=a,,b",
        "type=a%0Ab",
        "type=stream-gap",
        &format!("type={long}"),
        &format!("type={}", many(33)),
        &format!("type={}&type=more", many(32)),
        "event=",
        "event=message",
        "event=NONE",
    ] {
        for method in ["GET", "HEAD"] {
            let response = gateway.request(method, &format!("/topics/a?{bad}"), &[]).await;
            assert_eq!(response.status, 400, "{bad}");
            if method == "GET" {
                assert_eq!(response.json()["code"], "bad_query", "{bad}");
            }
        }
    }
    for good in
        [format!("type={}", many(32)), "type=a&type=a".into(), "type=%C3%A9".into(), "event=none".into()]
    {
        gateway.open(&format!("/topics/a?{good}")).await.expect("stream-open").await;
    }
}

#[tokio::test]
async fn a_read_leaves_out_the_same_messages_and_its_cursor_moves_past_them() {
    let at = OnSource::embedded(REPLAY).await;
    let mut all = at.gateway.open("/topics/s/a").await;
    all.expect("stream-open").await;
    for (n, kind) in ["price", "news", "price", "news"].into_iter().enumerate() {
        at.publish("s/a", kind, n).await;
        next(&mut all).await;
    }
    let read = async |query: &str| {
        let accept = [("accept", "application/json")];
        at.gateway.request("GET", &format!("/topics/s/a?{query}"), &accept).await.json()
    };
    let numbers = |answer: &serde_json::Value| -> Vec<usize> {
        let messages = answer["messages"].as_array().unwrap();
        messages.iter().map(|message| number(message["data"].as_str().unwrap())).collect()
    };
    let prices = read("since=all&type=price").await;
    assert_eq!(numbers(&prices), [0, 2], "{prices}");
    assert_eq!(prices["cursor"], all.last_id, "past the news");
    assert_eq!(numbers(&read("since=all&every=1s").await), [2, 3]);
    assert_eq!(numbers(&read("since=all&every=1s&type=news&limit=1").await), [3]);
}

#[tokio::test]
async fn the_end_of_a_topic_is_sent_with_every_view() {
    let at = OnSource::embedded(REPLAY).await;
    for view in ["type=price", "every=100ms", "type=price&every=100ms", "type=price&event=none"] {
        let mut one = at.gateway.open(&format!("/topics/s/a?{view}")).await;
        one.expect("stream-open").await;
        let mut pattern = at.gateway.open(&format!("/topics/s/*?{view}")).await;
        pattern.expect("stream-open").await;
        let mut several = at.gateway.open(&format!("/topics?topic=s/a&topic=s/b&{view}")).await;
        several.expect("stream-open").await;
        at.publish("s/a", "news", 1).await;
        let ended = at.gateway.post("/topics/s/a?end=true", r#"{"type":"done","n":2}"#).await;
        assert_eq!(ended.status, 202, "{}", ended.text());
        for (reader, end) in
            [(&mut one, "stream-close"), (&mut pattern, "stream-end"), (&mut several, "stream-end")]
        {
            loop {
                let event = reader.next().await.unwrap();
                if event.event == end {
                    break;
                }
                let (kind, n) = (event.event.as_str(), number(&event.data));
                assert!(n == 2 || n == 1 && kind == "news" && view == "every=100ms", "{view}: {event:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_of_another_type_is_sent_once_per_interval_even_if_the_topic_has_opened_again() {
    // So that a log holds less than comes in an interval.
    let few = "messages = 3";
    for (at, is_stored) in [
        (OnSource::embedded(few).await, false),
        (OnSource::nats(few).await, false),
        (OnSource::jetstream(few).await, true),
        (OnSource::redis_stream(few).await, true),
    ] {
        let path = "/topics/s/a?type=price&every=1s";
        let mut reader = at.gateway.open(path).await;
        reader.expect("stream-open").await;
        at.publish("s/a", "price", 0).await;
        assert_eq!(next(&mut reader).await, ("price".to_owned(), 0));
        let id = reader.last_id.clone();
        let ended = at.gateway.post("/topics/s/a?end=true", r#"{"type":"done","n":1}"#).await;
        assert_eq!(ended.status, 202, "{}", ended.text());
        for n in 2..12 {
            at.publish("s/a", "done", n).await;
        }
        at.publish("s/a", "price", 12).await;
        let expected = [("done".to_owned(), 1), ("price".to_owned(), 12)];
        assert_eq!([next(&mut reader).await, next(&mut reader).await], expected);
        if is_stored {
            let mut again = at.gateway.resume(path, &id).await;
            assert_eq!(again.control("stream-open").await["resumed"], true);
            assert_eq!([next(&mut again).await, next(&mut again).await], expected);
        }
    }
}
