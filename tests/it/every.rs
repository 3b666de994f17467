//! `?every=`: a reader receives the newest message of each topic and type, the first at once and the last always. Messages
//! that are left out are no gap.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::browser::Client;
use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::sources::{OnSource, number};
use serde_json::json;

const REPLAY: &str = "messages = 1000";

/// So that a log holds less than comes in an interval.
const FEW: &str = "messages = 3";

crate::on_each_source!(
    the_first_comes_at_once_and_then_only_the_newest,
    the_first_of_its_types_comes_at_once_after_others,
    of_each_topic_and_type_the_newest_comes,
    a_reader_that_resumes_or_replays_receives_only_the_newest,
    a_reader_that_is_closed_receives_the_last_state,
    messages_evicted_from_the_log_are_no_gap_for_readers_with_an_interval,
);

async fn open(at: &OnSource, path: &str) -> Reader {
    let mut reader = at.gateway.open(path).await;
    reader.expect("stream-open").await;
    reader
}

/// The kind and the number of the next event, which must not be a gap.
async fn next(reader: &mut Reader) -> (String, usize) {
    let event = reader.next().await.unwrap();
    assert!(!event.event.starts_with("stream-"), "{event:?}");
    (event.event.clone(), number(&event.data))
}

/// Reads until each kind has come with its last number. The numbers of a kind must rise. Returns how many events came.
async fn until_the_last(reader: &mut Reader, last: &[(&str, usize)]) -> usize {
    let mut seen = BTreeMap::new();
    let mut count = 0;
    while last.iter().any(|(kind, n)| seen.get(*kind) != Some(n)) {
        let (kind, n) = next(reader).await;
        let before = seen.insert(kind.clone(), n);
        assert!(before.is_none_or(|before| before < n), "{kind} {n} after {before:?}");
        count += 1;
    }
    count
}

async fn the_first_comes_at_once_and_then_only_the_newest(at: OnSource) {
    let mut all = open(&at, "/topics/s/a").await;
    let mut reader = open(&at, "/topics/s/a?every=1m").await;
    at.publish("s/a", "", 0).await;
    assert_eq!(next(&mut reader).await.1, 0, "at once, although the interval is a minute");
    drop(reader);
    let mut reader = open(&at, "/topics/s/a?every=500ms").await;
    let begin = Instant::now();
    for n in 1..=60 {
        at.publish("s/a", "", n).await;
    }
    let count = until_the_last(&mut reader, &[("message", 60)]).await;
    // One at once, and at most one for each interval that has begun; an interval may be a quarter shorter.
    let most = 2 + begin.elapsed().as_millis() / 375;
    assert!(count as u128 <= most, "{count} of at most {most}");
    // Messages that were left out are counted, and none was a gap.
    let conflated = async || at.gateway.metric("topicgate_conflated_messages_total").await;
    eventually("it is counted", async || conflated().await == (60 - count) as f64).await;
    for n in 0..=60 {
        assert_eq!(next(&mut all).await.1, n);
    }
}

async fn the_first_of_its_types_comes_at_once_after_others(at: OnSource) {
    let mut all = open(&at, "/topics/s/a").await;
    let mut reader = open(&at, "/topics/s/a?every=1m&type=q").await;
    at.publish("s/a", "other", 0).await;
    assert_eq!(next(&mut all).await.1, 0);
    at.publish("s/a", "q", 1).await;
    // With a limit far below the interval.
    assert_eq!(next(&mut reader).await, ("q".to_owned(), 1));
}

async fn of_each_topic_and_type_the_newest_comes(at: OnSource) {
    let several = "/topics?topic=s/a&topic=s/b&every=300ms";
    let mut readers =
        vec![open(&at, several).await, open(&at, &format!("{several}&format=cloudevents")).await];
    let mut typed = open(&at, &format!("{several}&type=price,trade")).await;
    let mut untyped = open(&at, &format!("{several}&type=trade&event=none")).await;
    for n in 0..40 {
        at.publish("s/a", "price", n).await;
        at.publish("s/a", "trade", 100 + n).await;
        at.publish("s/b", "news", 200 + n).await;
        at.publish("s/b", "", 300 + n).await;
    }
    let last = [("price", 39), ("trade", 139), ("news", 239), ("message", 339)];
    for reader in &mut readers {
        assert!(until_the_last(reader, &last).await < 160);
    }
    until_the_last(&mut typed, &last[..2]).await;
    until_the_last(&mut untyped, &[("message", 139)]).await;
}

async fn a_reader_that_resumes_or_replays_receives_only_the_newest(at: OnSource) {
    let mut all = open(&at, "/topics/s/a").await;
    let mut ids = Vec::new();
    for n in 0..40 {
        at.publish("s/a", ["price", "trade"][n % 2], n).await;
        next(&mut all).await;
        ids.push(all.last_id.clone());
    }
    let mut again = at.gateway.resume("/topics/s/a?every=1s", &ids[3]).await;
    assert_eq!(again.control("stream-open").await["resumed"], true);
    let mut replay = open(&at, "/topics/s/a?every=1s&since=all").await;
    let mut both = open(&at, "/topics?topic=s/a&topic=s/b&every=1s&since=all").await;
    for reader in [&mut again, &mut replay, &mut both] {
        assert_eq!([next(reader).await, next(reader).await], [("price".into(), 38), ("trade".into(), 39)]);
    }
    assert_eq!(
        [again.last_id.as_str(), replay.last_id.as_str()],
        [ids[39].as_str(); 2],
        "those of the messages"
    );
    // From one of these ids too.
    at.publish("s/a", "price", 40).await;
    at.publish("s/a", "price", 41).await;
    next(&mut all).await;
    next(&mut all).await;
    let mut again = at.gateway.resume("/topics/s/a?every=1s", &again.last_id).await;
    assert_eq!(again.control("stream-open").await["resumed"], true);
    assert_eq!(next(&mut again).await, ("price".into(), 41));
}

async fn a_reader_that_is_closed_receives_the_last_state(mut at: OnSource) {
    let mut reader = open(&at, "/topics?topic=s/a&topic=s/b&every=1m").await;
    let mut all = open(&at, "/topics/s/a").await;
    for n in 0..10 {
        at.publish("s/a", "", n).await;
        next(&mut all).await;
    }
    let first = next(&mut reader).await.1;
    at.gateway.begin_to_stop();
    if first < 9 {
        assert_eq!(next(&mut reader).await.1, 9);
    }
    assert_eq!(reader.control("stream-close").await["code"], "draining");
}

async fn messages_evicted_from_the_log_are_no_gap_for_readers_with_an_interval(at: OnSource) {
    // The rule of the fixture holds a thousand messages; this test publishes more.
    let path = "/topics?topic=s/rare&topic=s/busy&every=1s";
    let mut reader = open(&at, path).await;
    at.publish("s/busy", "", 0).await;
    next(&mut reader).await;
    at.publish("s/rare", "once", 1).await;
    for n in 2..1_200 {
        at.publish("s/busy", ["", "other"][n % 2], n).await;
    }
    until_the_last(&mut reader, &[("once", 1), ("message", 1_198), ("other", 1_199)]).await;
    assert_eq!(at.gateway.metric("topicgate_gaps_total{reason=\"slow\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_of_many_topics_shows_the_newest_of_each_with_a_small_buffer() {
    for at in [OnSource::embedded(FEW).await, OnSource::nats(FEW).await, OnSource::jetstream(FEW).await] {
        let mut reader = open(&at, "/topics/s/*?every=500ms&event=none").await;
        at.publish("s/first", "", 0).await;
        next(&mut reader).await;
        for round in 0..4 {
            for sensor in 0..50 {
                at.publish(&format!("s/{sensor}"), "", round * 100 + sensor + 1).await;
            }
        }
        let mut newest = vec![0; 50];
        while newest.iter().any(|n| *n < 300) {
            let (_, n) = next(&mut reader).await;
            let sensor = (n - 1) % 100;
            assert!(n > newest[sensor]);
            newest[sensor] = n;
        }
        assert_eq!(at.gateway.metric("topicgate_gaps_total{reason=\"slow\"}").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_stored_message_of_each_type_comes_once() {
    for at in [OnSource::jetstream(FEW).await, OnSource::redis_stream(FEW).await] {
        for n in 0..400 {
            at.publish("s/a", ["price", "trade", "news"][n % 3], n).await;
            if n == 100 {
                at.publish("s/b", "once", 1_000).await;
            }
        }
        let path = "/topics?topic=s/a&topic=s/b&since=all&every=1s";
        for (path, expected) in [
            (path.to_owned(), vec![("once", 1_000), ("trade", 397), ("news", 398), ("price", 399)]),
            (format!("{path}&type=trade"), vec![("trade", 397)]),
            ("/topics/s/a?since=all&every=1s".into(), vec![("trade", 397), ("news", 398), ("price", 399)]),
        ] {
            let mut reader = open(&at, &path).await;
            let mut told = Vec::new();
            for _ in &expected {
                told.push(next(&mut reader).await);
            }
            // Redis Streams are sequences of their own, between which there is no order.
            told.sort();
            let mut expected: Vec<_> = expected.into_iter().map(|(kind, n)| (kind.to_owned(), n)).collect();
            expected.sort();
            assert_eq!(told, expected, "{path}");
            reader.quiet(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gaps_are_sent_to_readers_with_an_interval() {
    let at = OnSource::embedded(REPLAY).await;
    let mut reader = open(&at, "/topics/s/a?every=1s").await;
    at.publish("s/a", "", 0).await;
    next(&mut reader).await;
    let foreign = format!("zzzzzzzz-{}", reader.last_id.split_once('-').unwrap().1);
    let mut reader = at.gateway.resume("/topics/s/a?every=1s", &foreign).await;
    reader.expect("stream-open").await;
    assert_eq!(reader.control("stream-gap").await, json!({"topic":"s/a","reason":"restarted"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_shows_the_newest_once_per_interval_and_resumes() {
    let at = OnSource::embedded(REPLAY).await;
    let path = "/topics/s/*?every=300ms&event=none";
    let mut page = Client::open("chromium", at.gateway.address, path).await;
    for n in 0..100 {
        at.publish("s/a", "price", n).await;
    }
    let (mut last, mut count) = (0, 0);
    while last < 99 {
        let event = page.message().await;
        last = number(&event.data);
        count += 1;
    }
    assert!(count < 100, "{count}");
    assert_eq!(at.gateway.ask_admin("DELETE", "/streams?topic=**", &[]).await.status, 200);
    assert_eq!(page.event().await.kind, "stream-close");
    for n in 100..110 {
        at.publish("s/a", "price", n).await;
    }
    let mut last = 0;
    while last < 109 {
        last = number(&page.message().await.data);
        assert!(last >= 100, "{last} came before");
    }
    page.close().await;
}

#[tokio::test]
async fn an_invalid_interval_is_a_bad_query() {
    let gateway = Gateway::start().await;
    for bad in ["", "1", "500", "99ms", "0s", "61s", "2min", "-1s", "soon"] {
        let response = gateway.request("GET", &format!("/topics/a?every={bad}"), &[]).await;
        assert_eq!((response.status, &response.json()["code"]), (400, &json!("bad_query")), "{bad}");
    }
    for good in ["100ms", "500ms", "1s", "1min", "60s", "1m"] {
        gateway.open(&format!("/topics/a?every={good}")).await.expect("stream-open").await;
    }
}
