//! A reload: its changes apply from then on, also to open streams; a reader that is still allowed notices nothing.

use std::time::Duration;

use crate::common::backend::{Backend, Reply};
use crate::common::client::{self, Connection, Reader, Response};
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::token::{JWT, key, signed, token};
use crate::common::upstream::Upstream;
use crate::common::wire::{Wire, dechunk, events, publish_all};
use serde_json::json;

const OTHER_JWT: &str = "[auth.jwt]\nsecret = \"fedcba9876543210fedcba9876543210\"\n";

/// A rule of a pattern and who may read, where anyone may publish.
fn rule(pattern: &str, read: &str) -> String {
    format!("[[topics]]\nmatch = \"{pattern}\"\nread = \"{read}\"\npublish = \"anyone\"\n")
}

async fn opened(gateway: &Gateway, path: &str) -> Reader {
    let mut reader = gateway.open(path).await;
    reader.expect("stream-open").await;
    reader
}

async fn opened_with(gateway: &Gateway, path: &str, token: &str) -> Reader {
    let value = format!("Bearer {token}");
    let mut reader = Reader::open(gateway.address, path, &[("authorization", &value)]).await;
    reader.expect("stream-open").await;
    reader
}

async fn asked_with(gateway: &Gateway, path: &str, token: &str) -> Response {
    gateway.request("GET", path, &[("authorization", &format!("Bearer {token}"))]).await
}

/// Insists that the stream is closed with `revoked`, asks its reader to reconnect, and ends.
async fn is_revoked(reader: &mut Reader) {
    let close = reader.expect("stream-close").await;
    assert_eq!(close.data, r#"{"code":"revoked","reconnect":true}"#);
    assert!(close.retry.unwrap() >= Duration::from_millis(500));
    assert!(reader.next().await.is_none());
}

async fn revoked(gateway: &Gateway) -> f64 {
    gateway.metric("topicgate_streams_closed_total{code=\"revoked\"}").await
}

async fn reloads(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("topicgate_config_reloads_total{{result=\"{result}\"}}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_still_allowed_lose_no_message() {
    const MESSAGES: usize = 2_000;
    let open = rule("a/**", "anyone");
    let gateway = Gateway::with(&open).await;
    let mut readers = vec![];
    for path in ["/topics/a/b", "/topics/a/*", "/topics/a/**", "/topics?topic=a/b&topic=a/c"] {
        readers.push(opened(&gateway, path).await);
    }
    let address = gateway.address;
    let publishing =
        tokio::spawn(publish_all(address, "a/b", (0..MESSAGES).map(|number| number.to_string())));
    let mut times = 0;
    while !publishing.is_finished() {
        let (more, limit) = (rule("b/**", "nobody"), 5_000 + times);
        assert!(gateway.reload_with(&format!("limits.streams = {limit}\n{more}{open}")));
        times += 1;
        tokio::time::sleep(Duration::from_millis(1)).await; // so that something is published in between
    }
    publishing.await.unwrap();
    for reader in &mut readers {
        let numbers: Vec<usize> =
            reader.messages(MESSAGES).await.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>());
    }
    assert!(times > 1, "{times}");
    assert_eq!((reloads(&gateway, "done").await, revoked(&gateway).await), (times as f64, 0.0));
}

#[tokio::test]
async fn a_topic_that_is_withdrawn_ends_its_readers_and_no_others() {
    let (a, b) = (rule("a/*", "anyone"), rule("b", "anyone"));
    let gateway = Gateway::with(&format!("{a}{b}")).await;
    let mut withdrawn = vec![];
    for path in ["/topics/a/x", "/topics/a/*", "/topics?topic=a/y&topic=b"] {
        withdrawn.push(opened(&gateway, path).await);
    }
    let mut stays = opened(&gateway, "/topics/b").await;
    assert!(gateway.reload_with(&b));
    for reader in &mut withdrawn {
        is_revoked(reader).await;
    }
    // A reader that reconnects receives the right status.
    let again = gateway.request("GET", "/topics/a/x", &[]).await;
    assert_eq!((again.status, again.json()["code"].as_str()), (404, Some("not_found")));
    assert_eq!(gateway.post("/topics/a/x", "x").await.status, 404);
    gateway.publish("b", "on").await;
    assert_eq!(stays.message().await, "on");
    assert_eq!(revoked(&gateway).await, 3.0);
    // And it is there again once it is exposed again.
    assert!(gateway.reload_with(&format!("{a}{b}")));
    opened(&gateway, "/topics/a/x").await;
    assert_eq!(revoked(&gateway).await, 3.0);
}

#[tokio::test]
async fn a_rule_that_becomes_restricted_keeps_the_readers_that_it_still_allows() {
    let own = "[[topics]]\nmatch = \"a/{sub}\"\nread = \"token\"\n";
    let gateway = Gateway::with(&format!("{JWT}{own}{}", rule("a/*", "token"))).await;
    let mine = token(json!({"sub": "me", "topicgate": {"subscribe": ["a/b"]}}));
    let mut own = opened_with(&gateway, "/topics/a/me", &mine).await;
    // The first rule binds the segment, so only its subject passes.
    assert_eq!(asked_with(&gateway, "/topics/a/b", &mine).await.status, 403);
    let open = |read: &str| format!("{JWT}{}", rule("a/*", read));
    assert!(gateway.reload_with(&open("token")));
    let mut other = opened_with(&gateway, "/topics/a/b", &mine).await;
    let mut third = opened_with(&gateway, "/topics/a/c", &mine).await;
    assert!(gateway.reload_with(&open("granted")));
    is_revoked(&mut own).await;
    is_revoked(&mut third).await;
    gateway.publish("a/b", "granted").await;
    assert_eq!(other.message().await, "granted");
    assert!(gateway.reload_with(&open("anyone")));
    let mut nobody = opened(&gateway, "/topics/a/b").await;
    assert!(gateway.reload_with(&open("granted")));
    is_revoked(&mut nobody).await;
    assert_eq!(gateway.get("/topics/a/b").await.status, 401);
    gateway.publish("a/b", "still").await;
    assert_eq!(other.message().await, "still");
}

#[tokio::test]
async fn a_slow_reader_of_a_withdrawn_topic_is_read_nothing_more() {
    const MESSAGES: usize = 600;
    let toml = format!("{}replay = {{ messages = 10000, bytes = \"64MiB\" }}\n", rule("a", "anyone"));
    let gateway = Gateway::with(&toml).await;
    let _hold = gateway.open("/topics/a").await;
    let payload = |n: usize| format!("{n:05}{}", "x".repeat(16 * 1024));
    publish_all(gateway.address, "a", (0..MESSAGES).map(payload)).await;
    let mut slow = Wire::narrow(gateway.address, "/topics/a?since=all").await;
    slow.until(b"00001").await;
    assert!(gateway.reload_with(&rule("b", "anyone")));
    slow.until_end().await;
    let events = events(dechunk(&slow.body)).await;
    let (close, before) = events.split_last().unwrap();
    assert_eq!((close.event.as_str(), close.data.contains("revoked")), ("stream-close", true));
    assert!((2..MESSAGES / 4).contains(&before.len()), "{} of {MESSAGES}", before.len());
}

#[tokio::test]
async fn a_stream_that_is_opening_during_a_reload_is_held_to_the_new_rules() {
    let broker = Upstream::nats().await;
    let toml = |rules: &str| format!("broker.url = \"{}\"\n{rules}", broker.url());
    let (a, b) = (rule("a", "anyone"), rule("b", "anyone"));
    let gateway = Gateway::with(&toml(&format!("{a}{b}"))).await;
    broker.pause();
    let address = gateway.address;
    let opening = ["/topics/a", "/topics/b"].map(|path| {
        tokio::spawn(async move {
            let mut reader = Reader::open(address, path, &[]).await;
            reader.next().await.unwrap().event
        })
    });
    let held = || async { gateway.metric("topicgate_topics").await == 2.0 };
    eventually("both are asked for at the broker", held).await;
    assert!(gateway.reload_with(&toml(&b)));
    assert!(opening.iter().all(|opening| !opening.is_finished()), "the broker has confirmed nothing");
    broker.resume();
    let [a, b] = opening;
    assert_eq!((a.await.unwrap().as_str(), b.await.unwrap().as_str()), ("stream-close", "stream-open"));
    assert_eq!(revoked(&gateway).await, 1.0);
}

#[tokio::test]
async fn a_key_that_is_replaced_ends_the_streams_of_its_tokens_and_of_no_others() {
    let rules = format!("{}{}", rule("open", "anyone"), rule("members", "token"));
    let gateway = Gateway::with(&format!("{JWT}{rules}")).await;
    let old = token(json!({"sub": "me"}));
    let mut member = opened_with(&gateway, "/topics/members", &old).await;
    let mut open = opened_with(&gateway, "/topics/open", &old).await;
    assert!(gateway.reload(), "with the same key");
    gateway.publish("members", "on").await;
    assert_eq!(member.message().await, "on");

    assert!(gateway.reload_with(&format!("{OTHER_JWT}{rules}")));
    is_revoked(&mut member).await;
    let refused = asked_with(&gateway, "/topics/members", &old).await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (401, Some("bad_token")));
    gateway.publish("open", "on").await;
    assert_eq!(open.message().await, "on", "the caller did not have to be identified");

    // A key in a file, of which the configuration says no more than before.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    let toml = format!("[auth.jwt]\npublic_key = {path:?}\n{rules}");
    std::fs::copy(key("p256.pub.pem"), &path).unwrap();
    assert!(gateway.reload_with(&toml));
    let claims = || crate::common::token::hour(json!({"sub": "me"}));
    let mut member = opened_with(&gateway, "/topics/members", &signed("ES256", claims())).await;
    std::fs::copy(key("ed25519.pub.pem"), &path).unwrap();
    assert!(gateway.reload_with(&toml));
    is_revoked(&mut member).await;
    assert_eq!(asked_with(&gateway, "/topics/members", &signed("ES256", claims())).await.status, 401);
    opened_with(&gateway, "/topics/members", &signed("EdDSA", claims())).await;
}

#[tokio::test]
async fn a_reload_applies_to_the_required_claims_but_not_to_the_clock_tolerance() {
    let rules = rule("members", "token");
    let jwt = |more: &str| format!("{JWT}{more}\n{rules}");
    let gateway = Gateway::with(&jwt("issuer = \"https://one.example\"")).await;
    let mine = token(json!({"sub": "me", "iss": "https://one.example"}));
    let mut member = opened_with(&gateway, "/topics/members", &mine).await;
    assert!(gateway.reload_with(&jwt("issuer = \"https://one.example\"\nleeway = \"1m\"")));
    gateway.publish("members", "on").await;
    assert_eq!(member.message().await, "on");
    assert!(gateway.reload_with(&jwt("issuer = \"https://two.example\"")));
    is_revoked(&mut member).await;
    assert_eq!(asked_with(&gateway, "/topics/members", &mine).await.status, 401);
}

#[tokio::test]
async fn a_caller_admitted_by_a_backend_is_checked_again_by_a_new_backend() {
    let yes = || Backend::start(|_| Reply::json(json!({"subject": "me"})));
    let (one, two) = (yes().await, Backend::start(|_| Reply::status(403)).await);
    let toml = |backend: &Backend, more: &str, rules: &str| {
        format!("[auth.forward]\nurl = \"http://{}/\"\n{more}\n{rules}", backend.address)
    };
    let half_open = rule("b", "anyone") + &rule("*", "token");
    let gateway = Gateway::with(&toml(&one, "", &half_open)).await;
    let mut a = opened(&gateway, "/topics/a").await;
    let mut both = opened(&gateway, "/topics?topic=a&topic=b").await;
    assert!(gateway.reload_with(&toml(&one, "timeout = \"1s\"", &half_open)));
    gateway.publish("a", "on").await;
    assert_eq!((a.message().await, both.message().await), ("on".into(), "on".into()));
    // It was asked about a and not about b, which needed no question then.
    assert!(gateway.reload_with(&toml(&one, "", &rule("*", "token"))));
    is_revoked(&mut both).await;
    gateway.publish("a", "on").await;
    assert_eq!(a.message().await, "on");
    assert!(gateway.reload_with(&toml(&two, "", &half_open)));
    is_revoked(&mut a).await;
    let refused = gateway.get("/topics/a").await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (403, Some("backend_refused")));
}

#[tokio::test]
async fn limits_are_raised_and_lowered_without_closing_open_streams() {
    let toml = |limits: &str| format!("limits = {{ {limits} }}\n{}", rule("**", "anyone"));
    let gateway = Gateway::with(&toml("streams = 1")).await;
    let refused = async || gateway.open("/topics/a").await.control("stream-close").await["code"].clone();
    let mut first = opened(&gateway, "/topics/a").await;
    assert_eq!(refused().await, "overloaded");
    assert!(gateway.reload_with(&toml("streams = 3")));
    assert_eq!(gateway.metric("topicgate_limit{limit=\"streams\"}").await, 3.0);
    let _second = opened(&gateway, "/topics/a").await;
    assert!(gateway.reload_with(&toml("streams = 1")));
    assert_eq!(refused().await, "overloaded");
    gateway.publish("a", "on").await;
    assert_eq!(first.message().await, "on");
    for (limit, code) in [
        ("streams_per_address = 2", "too_many_streams"),
        ("topics_per_address = 2, topics_per_stream = 1", "too_many_topics"),
    ] {
        assert!(gateway.reload_with(&toml(limit)), "{limit}");
        assert_eq!(refused().await, code);
    }
    assert!(gateway.reload_with(&toml("topics = 1")));
    assert_eq!(gateway.open("/topics/b").await.control("stream-close").await["code"], "overloaded");
    // What is published, and what comes from the broker.
    let post = async |bytes: usize| gateway.post("/topics/a", "x".repeat(bytes)).await.status;
    assert_eq!(post(2_000).await, 202);
    assert!(gateway.reload_with(&toml("message = \"1KiB\"")));
    assert_eq!((post(2_000).await, post(1_000).await), (413, 202));
    let long = format!("/topics/{}", "x".repeat(100));
    assert!(gateway.reload_with(&toml("topic_length = 99, opens_per_second = 1")));
    assert_eq!(gateway.get(&long).await.status, 400);
    let head = async || gateway.request("HEAD", "/topics/a", &[]).await.status;
    eventually("they come too fast", async || head().await == 429).await;
    assert!(gateway.reload_with(&toml("opens_per_second = 1000")));
    eventually("they do not", async || head().await == 200).await;
    assert!(gateway.reload_with(&toml("head = \"8KiB\"")));
    let head = [("x-long", &*"x".repeat(12_000))];
    assert_eq!(gateway.request("HEAD", "/topics/a", &head).await.status, 431);
}

#[tokio::test]
async fn messages_of_the_broker_are_held_to_the_new_size() {
    let broker = Upstream::nats().await;
    let toml = |limit: &str| format!("limits.message = \"{limit}\"\n{}", broker.toml());
    let gateway = Gateway::with(&toml("64KiB")).await;
    let mut reader = opened(&gateway, "/topics/a").await;
    broker.publish("a", "x".repeat(2_000)).await;
    assert_eq!(reader.message().await.len(), 2_000);
    assert!(gateway.reload_with(&toml("1KiB")));
    broker.publish("a", "x".repeat(2_000)).await;
    assert_eq!(reader.control("stream-gap").await["reason"], "too_large");
}

#[tokio::test]
async fn replay_bounds_and_the_places_of_fields_hold_for_topics_that_are_read_already() {
    let broker = Upstream::nats().await;
    let toml = |more: &str| format!("{}{more}\n", broker.toml());
    let gateway = Gateway::with(&toml("replay = { messages = 100 }")).await;
    let mut reader = opened(&gateway, "/topics/a").await;
    let from = reader.last_id.clone();
    broker.publish_all("a", (0..10).map(|n| n.to_string())).await;
    reader.messages(10).await;
    let missed =
        async || gateway.resume("/topics/a", &from).await.control("stream-open").await["resumed"].clone();
    assert_eq!(missed().await, true);
    assert!(gateway.reload_with(&toml("replay = { messages = 5 }\ntype = { pointer = \"/kind\" }")));
    assert_eq!(missed().await, false);
    assert_eq!(opened(&gateway, "/topics/a?since=all").await.message().await, "5");
    broker.publish("a", r#"{"kind":"price"}"#).await;
    reader.expect("price").await;
}

#[tokio::test]
async fn warm_rules_begin_and_end_to_be_warm() {
    let broker = Upstream::nats().await;
    let toml = |warm: bool| format!("{}replay = {{ warm = {warm}, linger = \"0s\" }}\n", broker.toml());
    let rest = broker.subscriptions().await;
    let gateway = Gateway::with(&toml(false)).await;
    let own = broker.subscriptions().await - rest;
    let subscriptions = async |count: u64| {
        eventually("the expected number of subscriptions", async || {
            broker.subscriptions().await == rest + own + count
        })
        .await;
    };
    assert!(gateway.reload_with(&toml(true)));
    subscriptions(1).await;
    broker.publish("a", "early").await;
    eventually("it is held", async || gateway.metric("topicgate_messages_received_total").await == 1.0).await;
    let mut reader = opened(&gateway, "/topics/a?since=all").await;
    assert_eq!(reader.message().await, "early");
    subscriptions(1).await;
    // The reader has it from the warm log, which so stays for it.
    assert!(gateway.reload_with(&toml(false)));
    let mut other = opened(&gateway, "/topics/b").await;
    for (reader, topic) in [(&mut reader, "a"), (&mut other, "b")] {
        broker.publish(topic, "on").await;
        assert_eq!(reader.message().await, "on");
    }
    subscriptions(2).await;
    drop(reader);
    subscriptions(1).await;
    drop(other);
    subscriptions(0).await;
    // Warm, cold and warm again before it was let go.
    let mut reader = opened(&gateway, "/topics/**").await;
    for warm in [true, false, true] {
        assert!(gateway.reload_with(&toml(warm)));
    }
    broker.publish("a", "once").await;
    assert_eq!(reader.message().await, "once");
    drop(reader);
    let mut late = opened(&gateway, "/topics/a?since=all").await;
    assert_eq!(late.message().await, "once");
    subscriptions(1).await;
}

#[tokio::test]
async fn allowed_origins_change_on_open_connections() {
    let toml = |more: &str| format!("{more}\n{}", rule("a", "anyone"));
    let gateway = Gateway::with(&toml("")).await;
    const LISTED: &str = "cors.origins = [\"https://app.example.com\"]";
    let elsewhere = format!("{LISTED}\nhosts = [\"events.example.com\"]");
    let page = [("origin", "https://app.example.com")];
    for (more, refusal) in [("", 403), (elsewhere.as_str(), 421)] {
        // Of no page: it stays open, whatever page asks on it next.
        let mut connection = Connection::open(gateway.address).await;
        assert!(gateway.reload_with(&toml("")));
        assert_eq!(connection.request("HEAD", "/topics/a", &[]).await, 200);
        assert!(gateway.reload_with(&toml(LISTED)));
        assert_eq!(connection.request("HEAD", "/topics/a", &page).await, 200);
        assert!(gateway.reload_with(&toml(more)));
        assert_eq!(connection.request("HEAD", "/topics/a", &page).await, refusal, "{more}");
        // And ends with the refusal, so that a page that may not ask holds none.
        connection.ended().await;
    }
}

#[tokio::test]
async fn a_client_behind_a_proxy_counts_as_itself_once_the_proxy_is_named() {
    let toml = |more: &str| format!("{more}limits.streams_per_address = 1\n{}", rule("a", "anyone"));
    let gateway = Gateway::with(&toml("")).await;
    let through = async |client: &str| {
        let mut reader = Reader::open(gateway.address, "/topics/a", &[("x-forwarded-for", client)]).await;
        let event = reader.next().await.unwrap().event;
        (reader, event)
    };
    let (_one, event) = through("192.0.2.1").await;
    assert_eq!(event, "stream-open");
    assert_eq!(through("192.0.2.2").await.1, "stream-close");
    assert!(gateway.reload_with(&toml("proxies.trusted = [\"127.0.0.0/8\"]\n")));
    let (_two, event) = through("192.0.2.2").await;
    assert_eq!(event, "stream-open");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_changes_nothing() {
    let rules = rule("a", "anyone");
    let gateway = Gateway::with(&rules).await;
    let mut reader = opened(&gateway, "/topics/a").await;
    let bad = [
        "limits.streams = 0\n".to_owned() + &rule("b", "anyone"),
        "strems.retry = \"1s\"\n".to_owned() + &rule("b", "anyone"),
        "[auth.jwt]\npublic_key = \"/nowhere/key.pem\"\n".to_owned() + &rule("b", "anyone"),
        rule("b", "token"),
        "][".to_owned(),
        // Rules for one broker are none for another, and those that nobody wrote are for loopback.
        "broker.url = \"nats://127.0.0.1:1\"\n".to_owned() + &rule("b", "anyone"),
    ];
    for toml in &bad {
        assert!(!gateway.reload_with(toml), "{toml}");
    }
    assert_eq!(reloads(&gateway, "refused").await, bad.len() as f64);
    gateway.publish("a", "on").await;
    assert_eq!(reader.message().await, "on");
    assert_eq!(gateway.get("/topics/b").await.status, 404);
    assert_eq!(client::request(gateway.admin, "GET", "/readyz", &[], b"").await.status, 200);
}

#[tokio::test]
async fn a_stream_of_the_console_survives_a_reload() {
    let gateway = Gateway::with(&format!("{}{}", rule("a", "anyone"), rule("b", "anyone"))).await;
    let mut reader = opened(&gateway, "/topics/a").await;
    let mut onlooker = Reader::open(gateway.admin, "/console/messages?topic=a", &[]).await;
    onlooker.expect("stream-open").await;
    assert!(gateway.reload_with(&rule("b", "anyone")));
    is_revoked(&mut reader).await;
    // Its messages are still held, and it continues once the topic is there again.
    assert!(gateway.reload_with(&rule("a", "anyone")));
    gateway.publish("a", "on").await;
    assert!(onlooker.message().await.contains("on"));
}

#[tokio::test]
async fn the_console_shows_the_settings_in_force() {
    let gateway = Gateway::with(&rule("a", "anyone")).await;
    let more = "limits = { connections = 99, streams = 98 }\n";
    assert!(gateway.reload_with(&format!("{more}{}", rule("a", "anyone"))));
    let settings = client::request(gateway.admin, "GET", "/config", &[], b"").await.json();
    let shown = |key: &str| {
        let setting = settings.as_array().unwrap().iter().find(|setting| setting["key"] == key).unwrap();
        (setting["value"].as_str().unwrap().to_owned(), setting["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(shown("limits.connections"), ("12000".into(), "default, until a restart".into()));
    assert_eq!(shown("limits.streams").0, "98");
}
