//! Hostile topics: smuggled wildcards and protocol lines, encodings that hide them, names that are reserved, too long or
//! too many. Each is refused before anything is subscribed or published, and the gateway keeps running.

use crate::common::gateway::Gateway;
use crate::common::raw::{self, Reply};
use crate::common::upstream::Upstream;
use crate::common::{eventually, raw::ask};
use futures_util::future::join_all;

/// Never a valid topic: refused with all rules, in a path and, if possible, in a query.
const MALFORMED: [&str; 36] = [
    "%3E",
    "orders.%3E",
    "orders/%3E",
    "orders.*",
    "orders*",
    "orders%2A",
    "**/a",
    "a/**/b",
    "***",
    "news%5Ba-z%5D",
    "news%3F",
    "a%0d%0aPUB%20x%201%0d%0ay",
    "a%0d%0a",
    "a%20b",
    "a%09b",
    "a%00b",
    "a%7Fb",
    "a%C2%85b",
    "a%C2%A0b",
    "a%E2%80%A8b",
    "%EF%BB%BFa",
    "%ff%fe",
    "%c0%ae",
    "%ed%a0%80",
    "%252e%252e",
    "%253E",
    "%zz",
    "a%5cb",
    "a//b",
    "a/",
    "/a",
    "..",
    "a/../b",
    "%2e%2e/a",
    "a/%2e",
    "..%2f..%2fetc%2fpasswd",
];

/// Reserved on some broker: never exposed by a wildcard.
const RESERVED: [&str; 22] = [
    "%24SYS.ACCOUNT.X",
    "$SYS/ACCOUNT/X",
    "$JS.API.STREAM.LIST",
    "$JS/API/*",
    "$KV/**",
    "_INBOX.abc",
    "_INBOX/**",
    "__keyspace@0__%3Ask",
    "__keyspace@0__/*",
    "__keyevent@0__%3Aset",
    "__sentinel__%3Ahello",
    "__sentinel__/hello",
    "%5F_sentinel_%5F/hello",
    "__sentinel__/*",
    "__redis__:invalidate",
    "__subkeyspace@0__:k",
    "_R_.abc.1",
    "_GR_/C1/abc",
    "_GR_/**",
    "_STAN/discover",
    "$MQTT/sub/1",
    "__x",
];

const RULES: &str = "[[topics]]\nmatch = \"orders/**\"\nread = \"anyone\"\npublish = \"anyone\"\n";

async fn get(gateway: &Gateway, target: &str) -> Reply {
    raw::exchange(gateway.address, ask("GET", target, "Accept: text/event-stream\r\n")).await
}

async fn post(gateway: &Gateway, target: &str) -> Reply {
    raw::exchange(gateway.address, ask("POST", target, "Content-Length: 1\r\n\r\nx")).await
}

/// Checks that the refusal gives the reason without repeating the request.
fn assert_refused(reply: &Reply, status: u16, sent: &str) {
    assert_eq!(reply.status, status, "{sent}: {}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{sent}");
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{sent}");
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{sent}");
    let problem: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["code"], if status == 404 { "not_found" } else { "bad_topic" }, "{sent}");
    for piece in ["PUB", "passwd", "a-z", "SYS", "ACCOUNT", "%"] {
        let allowed = piece == "%" && problem["detail"].as_str().unwrap().contains("character '%'");
        assert!(allowed || !reply.text().contains(piece), "{sent}: {}", reply.text());
    }
}

/// An ordinary stream still works, and its topic is the only one that was ever subscribed: topics linger for a minute.
async fn assert_alive_and_only_subscribed(gateway: &Gateway, topic: &str) {
    let mut reader = gateway.open(&format!("/topics/{topic}")).await;
    gateway.publish(topic, "still here").await;
    reader.expect("stream-open").await;
    assert_eq!(reader.message().await, "still here");
    assert_eq!(gateway.metric("topicgate_messages_received_total").await, 1.0);
    eventually("one topic is held, and only one", || async {
        gateway.metric("topicgate_topics").await == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_malformed_topic_is_refused_in_every_spelling_and_nothing_is_subscribed() {
    join_all(["", RULES].map(|rules| async move {
        let gateway = Gateway::with(rules).await;
        for topic in MALFORMED {
            assert_refused(&get(&gateway, &format!("/topics/{topic}")).await, 400, topic);
            assert_refused(&post(&gateway, &format!("/topics/{topic}")).await, 400, topic);
            // In a query %2F is a separator like any other.
            assert_refused(&get(&gateway, &format!("/topics?topic={topic}")).await, 400, topic);
            assert_refused(&get(&gateway, &format!("/topics?topic=orders&topic={topic}")).await, 400, topic);
        }
        assert_refused(&get(&gateway, "/topics/a%2Fb").await, 400, "encoded slash");
        assert_refused(&get(&gateway, "/topics?topic=a+b").await, 400, "a space");
        assert_refused(&get(&gateway, "/topics?topic=").await, 400, "empty");
        assert_refused(&get(&gateway, "/topics").await, 400, "none");
        assert_alive_and_only_subscribed(&gateway, "orders/1").await;
    }))
    .await;
}

#[tokio::test]
async fn bytes_that_are_no_uri_are_refused_and_nothing_is_subscribed() {
    let gateway = Gateway::start().await;
    for target in
        [&b"/topics/\xff\xfe"[..], b"/topics/a\0b", b"/topics/a\x01b", b"/topics/a b", b"topics/a", b""]
    {
        let reply = raw::exchange(gateway.address, ask("GET", target, "")).await;
        assert_eq!(reply.status, 400, "{target:?}");
    }
    // A tab or a line end would end the request line; a broker must not see what follows it either.
    for target in [&b"/topics/a\tb"[..], b"/topics/a\rPUB x 1\r", b"/topics/a\nPUB x 1\n"] {
        let reply = raw::exchange(gateway.address, ask("GET", target, "")).await;
        assert_eq!(reply.status, 400, "{target:?}");
    }
    assert_alive_and_only_subscribed(&gateway, "a").await;
}

#[tokio::test]
async fn a_reserved_topic_does_not_exist_unless_a_rule_spells_it_out() {
    join_all(["", RULES, "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n"].map(
        |rules| async move {
            let gateway = Gateway::with(rules).await;
            // On this broker `.` separates nothing, so the rules with orders/** are asked for what is not theirs either.
            for topic in RESERVED {
                assert_refused(&get(&gateway, &format!("/topics/{topic}")).await, 404, topic);
                assert_refused(
                    &get(&gateway, &format!("/topics?topic=orders/1&topic={topic}")).await,
                    404,
                    topic,
                );
                if !topic.contains('*') {
                    assert_refused(&post(&gateway, &format!("/topics/{topic}")).await, 404, topic);
                }
            }
            assert_alive_and_only_subscribed(&gateway, "orders/1").await;
        },
    ))
    .await;
}

#[tokio::test]
async fn a_wildcard_delivers_nothing_of_a_reserved_topic_that_a_rule_does_spell_out() {
    let gateway = Gateway::with(
        "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
         [[topics]]\nmatch = \"$SYS/**\"\nread = \"anyone\"\npublish = \"anyone\"\n",
    )
    .await;
    let mut named = gateway.open("/topics/$SYS/load").await;
    let mut rest = gateway.open("/topics/**").await;
    let mut one = gateway.open("/topics/*/load").await;
    gateway.publish("$SYS/load", "secret").await;
    gateway.publish("disk/load", "open").await;
    for (reader, expected) in [(&mut named, "secret"), (&mut rest, "open"), (&mut one, "open")] {
        reader.expect("stream-open").await;
        assert_eq!(reader.message().await, expected);
    }
}

#[tokio::test]
async fn a_pattern_that_reaches_beyond_its_rule_does_not_exist() {
    let gateway = Gateway::with(RULES).await;
    for topic in ["*", "**", "*/1", "*/**", "orders", "orders/../secret", "secret", "order*"] {
        let status = if topic.contains("..") || topic == "order*" { 400 } else { 404 };
        assert_refused(&get(&gateway, &format!("/topics/{topic}")).await, status, topic);
    }
    assert_refused(&get(&gateway, "/topics?topic=orders/1&topic=secret").await, 404, "one of two");
    assert_refused(&post(&gateway, "/topics/orders/*").await, 400, "a pattern");
    assert_alive_and_only_subscribed(&gateway, "orders/1").await;
}

#[tokio::test]
async fn a_topic_that_is_too_long_is_refused_with_its_limit_or_by_the_head_s() {
    let gateway = Gateway::start().await;
    for length in [201, 4096] {
        let topic = "a".repeat(length);
        for target in [format!("/topics/{topic}"), format!("/topics?topic={topic}")] {
            let reply = get(&gateway, &target).await;
            assert_refused(&reply, 400, "long");
            assert!(reply.text().contains(&format!("{length} bytes")) && reply.text().contains("200"));
        }
        // Three bytes in a URL for one of the topic: it is the topic's that count.
        let reply = get(&gateway, &format!("/topics/{}", "%61".repeat(length))).await;
        assert_refused(&reply, 400, "encoded");
    }
    let reply = get(&gateway, &format!("/topics/{}", "a".repeat(65536))).await;
    assert!([414, 431].contains(&reply.status), "{}", reply.status);
    let longest = "é".repeat(100);
    assert_alive_and_only_subscribed(&gateway, &longest.replace('é', "%C3%A9")).await;
}

#[tokio::test]
async fn too_many_topics_are_refused_duplicates_collapse_and_half_overlaps_are_refused() {
    let gateway = Gateway::start().await;
    let query = |count: usize| (0..count).map(|n| format!("topic=t{n}&")).collect::<String>();
    for target in [
        format!("/topics?{}", query(101)),
        format!("/topics?{}", query(1000)),
        format!("/topics/x?{}", query(100)),
        "/topics?topic=a/*&topic=*/b".to_owned(),
        "/topics/a/*?topic=*/b".to_owned(),
    ] {
        let reply = get(&gateway, &target).await;
        assert_eq!(reply.status, 400, "{target:.40}");
        let problem: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["code"], "bad_query");
    }
    let mut reader = gateway.open(&format!("/topics/a?{}", "topic=a&".repeat(1500))).await;
    assert_eq!(reader.control("stream-open").await["topics"], serde_json::json!(["a"]));
    drop(reader);
    let mut reader = gateway.open(&format!("/topics?{}topic=**", query(50))).await;
    assert_eq!(reader.control("stream-open").await["topics"], serde_json::json!(["**"]));
    gateway.publish("t1", "once").await;
    gateway.publish("t2", "and on").await;
    assert_eq!(reader.messages(2).await, ["once", "and on"]);
    eventually("a and ** are held", || async { gateway.metric("topicgate_topics").await == 2.0 }).await;
}

/// Topics that a real broker would interpret are refused before the broker is asked.
async fn nothing_hostile_reaches(upstream: Upstream, targets: &[(&str, u16)]) {
    let gateway = Gateway::with(&upstream.toml()).await;
    let before = upstream.subscriptions().await;
    for (target, status) in targets {
        let reply = raw::exchange(gateway.address, ask("GET", target, "Connection: close\r\n")).await;
        assert_eq!(reply.status, *status, "{target}: {}", reply.text());
    }
    assert_eq!(upstream.subscriptions().await, before);
    assert_eq!(gateway.metric("topicgate_topics").await, 0.0);
    // The separator of the broker is one here too, and an ordinary stream still works.
    let separator = if matches!(upstream, Upstream::Nats { .. }) { '.' } else { ':' };
    let mut reader = gateway.open(&format!("/topics/orders{separator}eu")).await;
    assert_eq!(reader.control("stream-open").await["topics"][0], "orders/eu");
    upstream.publish("orders/eu", "x").await;
    assert_eq!(reader.message().await, "x");
}

#[tokio::test]
async fn nothing_hostile_reaches_nats() {
    let targets = [
        ("/topics/%3E", 400),
        ("/topics/orders.%3E", 400),
        ("/topics/orders.*x", 400),
        ("/topics/a..b", 400),
        ("/topics/.a", 400),
        ("/topics/a.", 400),
        ("/topics/a%0d%0aPUB%20x%201%0d%0ay", 400),
        ("/topics/a%20b", 400),
        ("/topics/%24SYS.ACCOUNT.X", 404),
        ("/topics/$JS.API.STREAM.LIST", 404),
        ("/topics/_INBOX.abc", 404),
    ];
    nothing_hostile_reaches(Upstream::nats().await, &targets).await;
}

#[tokio::test]
async fn nothing_hostile_reaches_redis() {
    let targets = [
        ("/topics/news%5Ba-z%5D", 400),
        ("/topics/news%3F", 400),
        ("/topics/news:*x", 400),
        ("/topics/a::b", 400),
        ("/topics/__keyspace@0__:k", 404),
        ("/topics/__keyevent@0__%3Adel", 404),
        ("/topics/a%0d%0ab", 400),
    ];
    nothing_hostile_reaches(Upstream::redis().await, &targets).await;
}
