//! A stream's permission lasts as long as its token: the stream ends exactly when the token does, and a resume receives no
//! more than a live reader would.

use std::process::Stdio;
use std::time::Duration;

use crate::common::client::{self, Reader};
use crate::common::gateway::Gateway;
use crate::common::token::{JWT, seconds, token};
use crate::common::upstream::Upstream;
use crate::common::wire::{Wire, dechunk, events, publish_all};
use crate::common::{eventually, within};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

const RULES: &str = "leeway = \"0s\"\n[auth.token]\nquery = true\n\
                     [[topics]]\nmatch = \"members/**\"\nread = \"token\"\npublish = \"anyone\"\n\
                     [[topics]]\nmatch = \"granted/**\"\nread = \"granted\"\npublish = \"anyone\"\n\
                     replay = { messages = 10000, bytes = \"64MiB\" }\n";

/// Until a little after `time`, in seconds since 1970. The clock is the condition.
async fn after(time: f64) {
    eventually("the token has expired", async || seconds(0.0) > time).await;
}

/// A token that grants everything for this many seconds, and when it ends.
fn short(life: f64) -> (String, f64) {
    let end = seconds(life);
    (token(json!({"sub": "me", "exp": end, "topicgate": {"subscribe": ["**"]}})), end)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_a_resume_with_it_is_refused() {
    let gateway = Gateway::with(&format!("{JWT}{RULES}")).await;
    let (token, end) = short(1.5);
    let value = bearer(&token);
    let mut reader = Reader::open(gateway.address, "/topics/members/a", &[("authorization", &value)]).await;
    reader.expect("stream-open").await;
    gateway.publish("members/a", "in time").await;
    assert_eq!(reader.message().await, "in time");
    let close = reader.expect("stream-close").await;
    // The gateway counts in whole milliseconds, and rather ends a stream one too early than one too late.
    assert!((-0.002..1.5).contains(&(seconds(0.0) - end)), "{} s late", seconds(0.0) - end);
    assert_eq!(close.data, r#"{"code":"expired","reconnect":true}"#);
    assert!(close.retry.unwrap().as_millis() >= 500);
    assert!(reader.next().await.is_none());
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"expired\"}").await, 1.0);

    gateway.publish("members/a", "too late").await;
    let headers = [("authorization", value.as_str()), ("last-event-id", reader.last_id.as_str())];
    let again = gateway.request("GET", "/topics/members/a", &headers).await;
    assert_eq!((again.status, again.json()["code"].as_str()), (401, Some("expired_token")));

    // With a new one it goes on where it was.
    let headers = [("authorization", &*bearer(&short(60.0).0)), ("last-event-id", &reader.last_id)];
    let mut renewed = Reader::open(gateway.address, "/topics/members/a", &headers).await;
    assert_eq!(renewed.control("stream-open").await["resumed"], true);
    assert_eq!(renewed.message().await, "too late");
}

#[tokio::test]
async fn no_message_published_after_the_expiry_is_delivered() {
    let gateway = Gateway::with(&format!("{JWT}{RULES}")).await;
    // Several ends within one beat of the clock that would wake the streams anyway.
    let mut readers = Vec::new();
    let begin = seconds(1.5);
    for step in 0..10 {
        let (token, _) = short(begin - seconds(0.0) + f64::from(step) * 0.04);
        let value = bearer(&token);
        let path = "/topics?topic=members/a&topic=granted/*";
        let mut reader = Reader::open(gateway.address, path, &[("authorization", &value)]).await;
        reader.expect("stream-open").await;
        readers.push(reader);
    }
    after(begin + 0.37).await;
    for topic in ["members/a", "granted/a"] {
        gateway.publish(topic, "too late").await;
    }
    for mut reader in readers {
        assert_eq!(reader.control("stream-close").await["code"], "expired");
        assert!(reader.next().await.is_none());
    }
}

#[tokio::test]
async fn a_replay_to_a_slow_reader_ends_with_the_token() {
    const MESSAGES: usize = 600;
    let gateway = Gateway::with(&format!("{JWT}{RULES}")).await;
    let warm = token(json!({"topicgate": {"subscribe": ["**"]}}));
    let path = |token: &str| format!("/topics/granted/a?since=all&access_token={token}");
    let _hold = gateway.open(&path(&warm)).await;
    let payload = |n: usize| format!("{n:05}{}", "x".repeat(16 * 1024));
    publish_all(gateway.address, "granted/a", (0..MESSAGES).map(payload)).await;

    let (token, end) = short(1.5);
    let mut slow = Wire::narrow(gateway.address, &path(&token)).await;
    slow.until(b"00001").await;
    after(end).await;
    slow.until_end().await;
    let events = events(dechunk(&slow.body)).await;
    let (close, before) = events.split_last().unwrap();
    assert_eq!((close.event.as_str(), close.data.contains("expired")), ("stream-close", true));
    let numbers: Vec<usize> = before[1..].iter().map(|event| event.data[..5].parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
    // Messages that the system had already taken may come; messages that waited in the log must not.
    assert!((1..MESSAGES / 4).contains(&numbers.len()), "{} of {MESSAGES}", numbers.len());
}

#[tokio::test]
async fn a_stream_is_not_opened_if_its_token_expires_while_the_broker_is_asked() {
    let broker = Upstream::nats().await;
    let gateway = Gateway::with(&format!("broker.url = \"{}\"\n{JWT}{RULES}", broker.url())).await;
    broker.pause();
    let (token, end) = short(1.0);
    let path = format!("/topics/members/a?access_token={token}");
    let asked = tokio::spawn(async move { client::request(gateway.address, "GET", &path, &[], b"").await });
    after(end).await;
    assert!(!asked.is_finished(), "the broker has not confirmed");
    broker.resume();
    let answer = asked.await.unwrap();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (401, Some("expired_token")));
}

#[tokio::test]
async fn the_earlier_of_age_and_expiry_ends_a_stream() {
    let gateway = Gateway::with(&format!("streams.max_age = \"1s\"\n{JWT}{RULES}")).await;
    for (life, code) in [(30.0, "max_age"), (0.5, "expired")] {
        let path = format!("/topics/members/a?access_token={}", short(life).0);
        let mut reader = gateway.open(&path).await;
        reader.expect("stream-open").await;
        assert_eq!(reader.control("stream-close").await["code"], code);
    }
}

#[tokio::test]
async fn a_cursor_of_a_forbidden_topic_reveals_nothing() {
    let gateway = Gateway::with(&format!("{JWT}{RULES}")).await;
    let all = bearer(&token(json!({"topicgate": {"subscribe": ["**"]}})));
    let mut owner = Reader::open(gateway.address, "/topics/granted/a", &[("authorization", &all)]).await;
    owner.expect("stream-open").await;
    gateway.post("/topics/granted/a?id=s3cret-id", "s3cret").await;
    let id = owner.expect("message").await.id;
    assert!(id.ends_with("-s3cret-id"));
    gateway.publish("granted/a", "s3cret too").await;

    let mine = bearer(&token(json!({"topicgate": {"subscribe": ["members/*"]}})));
    let place = id.strip_suffix("-s3cret-id").unwrap();
    // Existing ids, and ids that do not exist but look the same.
    let pairs = [
        (id.as_str(), &*format!("{place}-another")),
        ("s3cret-id", "another"),
        ("00000000-1-s3cret-id", "00000000-1-another"),
    ];
    for (round, (real, guess)) in pairs.into_iter().enumerate() {
        let mut seen = Vec::new();
        for cursor in [real, guess] {
            let headers = [("authorization", mine.as_str()), ("last-event-id", cursor)];
            for path in [
                "/topics/granted/a",
                "/topics/granted/a?since=all",
                "/topics?topic=members/a&topic=granted/a",
            ] {
                assert_eq!(gateway.request("GET", path, &headers).await.status, 403, "{path}");
            }
            let topic = format!("members/{round}-{}", seen.len());
            let mut reader = Reader::open(gateway.address, &format!("/topics/{topic}"), &headers).await;
            gateway.publish(&topic, "mine").await;
            let mut events = Vec::new();
            while events.last().is_none_or(|(_, data)| data != "mine") {
                let event = reader.next().await.unwrap();
                assert!(
                    !event.id.contains("s3cret") && !event.data.contains("s3cret"),
                    "{cursor}: {event:?}"
                );
                events.push((event.event, event.data.replace(&topic, "TOPIC")));
            }
            seen.push(events);
        }
        assert_eq!(seen[0], seen[1], "{real} differs from {guess}");
    }
}

#[tokio::test]
async fn a_page_that_renews_its_cookie_misses_nothing_and_one_that_does_not_is_closed_with_the_reason() {
    // Long enough for a busy machine to set the cookie before the browser comes back.
    let gateway = Gateway::with(&format!("streams.retry = \"3s\"\n{JWT}{RULES}")).await;
    let url = format!("http://{}/topics/members/a", gateway.address);
    let mut page = Command::new("node")
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/renew.mjs"), &url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node is needed, and `npm ci` in tests/clients: run scripts/tools");
    let mut tokens = page.stdin.take().unwrap();
    let mut lines = BufReader::new(page.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = within("the page says something", Duration::from_secs(60), lines.next_line()).await;
        let line: Value = serde_json::from_str(&line.unwrap().expect("the page ended")).unwrap();
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        (text("type") + &line["readyState"].to_string().replace("null", ""), text("data"))
    };
    let (open, close) = ("stream-open".to_owned(), "stream-close".to_owned());
    assert_eq!(next().await.0, "", "it is ready");
    tokens.write_all(format!("{}\n", short(3.0).0).as_bytes()).await.unwrap();
    assert_eq!(next().await.0, open);
    gateway.publish("members/a", "first").await;
    assert_eq!(next().await, ("message".to_owned(), "first".to_owned()));
    assert_eq!(next().await, (close.clone(), r#"{"code":"expired","reconnect":true}"#.to_owned()));
    assert_eq!(next().await.0, "0", "it comes back by itself");
    gateway.publish("members/a", "meanwhile").await;
    tokens.write_all(format!("{}\n", short(6.0).0).as_bytes()).await.unwrap();
    assert_eq!(next().await.0, open);
    assert_eq!(next().await, ("message".to_owned(), "meanwhile".to_owned()));
    assert_eq!(next().await.0, close);
    assert_eq!(next().await.0, "0");
    assert_eq!(next().await.0, "2", "401 is for good");
    drop(tokens);
    within("the browser ends", Duration::from_secs(60), page.wait()).await.unwrap();
}
