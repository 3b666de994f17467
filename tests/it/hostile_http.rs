//! Hostile requests: methods, Accept, hosts, and the information in a refusal. Origins are in cors.rs.

use crate::common::gateway::Gateway;
use crate::common::raw::{self, Raw, Reply, ask};
use futures_util::future::join_all;

const HIDDEN: &str = "[[topics]]\nmatch = \"open/**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                      [[topics]]\nmatch = \"hidden/**\"\nread = \"nobody\"\n";

async fn send(gateway: &Gateway, method: &str, target: &str, more: &str) -> Reply {
    raw::exchange(gateway.address, ask(method, target, more)).await
}

fn without_date(reply: &Reply) -> (String, String) {
    let head = reply.head.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n");
    (head, reply.text())
}

#[tokio::test]
async fn other_methods_are_refused_with_the_methods_that_work() {
    let gateway = Gateway::start().await;
    for method in ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get"] {
        for (target, allowed) in [
            ("/topics/a", &["GET", "HEAD", "OPTIONS", "POST"][..]),
            ("/topics?topic=a", &["GET", "HEAD", "OPTIONS"]),
        ] {
            let reply = send(&gateway, method, target, "X-Secret: echo-me\r\n").await;
            assert_eq!(reply.status, 405, "{method} {target}");
            let mut allow: Vec<_> = reply.header("allow").unwrap().split(',').map(str::trim).collect();
            allow.sort_unstable();
            assert_eq!(allow.join(" ").to_uppercase(), allowed.join(" "), "{method} {target}");
            assert_eq!(reply.header("content-type"), Some("application/problem+json"));
            assert!(!reply.text().contains("echo-me"));
        }
    }
    let reply = send(&gateway, "CONNECT", "attacker.example:443", "").await;
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    let reply = send(&gateway, "POST", "/topics?topic=a", "Content-Length: 0\r\n").await;
    assert_eq!(reply.status, 405);
    for target in ["/topics/a", "/topics?topic=a"] {
        let reply = send(&gateway, "OPTIONS", target, "").await;
        assert_eq!(reply.status, 204);
        assert_eq!(reply.header("allow").unwrap().contains("post"), target == "/topics/a", "{target}");
    }
    gateway.assert_alive_and_nothing_subscribed().await;
}

#[tokio::test]
async fn a_body_with_an_unknown_transfer_coding_is_refused() {
    let gateway = Gateway::start().await;
    for (coding, status) in
        [("chunked", 202), ("Chunked", 202), ("gzip, chunked", 400), ("gzip,CHUNKED", 400)]
    {
        let more = format!("Transfer-Encoding: {coding}\r\n\r\n1\r\nx\r\n0\r\n");
        let reply = send(&gateway, "POST", "/topics/open/a", &more).await;
        assert_eq!(reply.status, status, "{coding}: {}", reply.text());
        assert_eq!(reply.text().contains("\"bad_body\""), status == 400, "{coding}: {}", reply.text());
    }
}

#[tokio::test]
async fn head_answers_as_get_would_and_subscribes_to_nothing() {
    let gateway = Gateway::with(HIDDEN).await;
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(ask("HEAD", "/topics/open/a", "")).await.unwrap();
    let (status, head) = raw.head().await;
    assert_eq!(status, 200);
    assert!(head.contains("\r\ncontent-type: text/event-stream; charset=utf-8\r\n"), "{head}");
    assert!(head.contains("\r\nx-accel-buffering: no\r\n"), "{head}");
    // A GET would announce no length (RFC 9110, section 8.6), least of all this one.
    assert!(!head.contains("content-length"), "{head}");
    for (target, expected) in [("/topics/hidden/a", 404), ("/topics/%3E", 400), ("/topics", 400)] {
        raw.send(ask("HEAD", target, "")).await.unwrap();
        assert_eq!(raw.head().await.0, expected, "{target}");
    }
    assert_eq!(gateway.metric("topicgate_streams_opened_total{http=\"1.1\"}").await, 0.0);
    gateway.assert_alive_and_nothing_subscribed().await;
}

#[tokio::test]
async fn an_accept_that_excludes_event_streams_and_json_is_refused_and_any_other_is_served() {
    let gateway = Gateway::start().await;
    for no in
        ["text/html", "text/event-stream;q=0", "*/*;q=0", "text/event-streamer", "\"text/event-stream\""]
    {
        let reply = send(&gateway, "GET", "/topics/refused", &format!("Accept: {no}\r\n")).await;
        assert_eq!(reply.status, 406, "{no}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
    for yes in
        ["", "Accept: */*\r\n", "Accept: text/*\r\n", "accept: TEXT/Event-Stream; q=0.1\r\n", "Accept:\r\n"]
    {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(ask("GET", "/topics/open/alive", yes)).await.unwrap();
        assert_eq!(raw.head().await.0, 200, "{yes:?}");
    }
    gateway.assert_alive_and_nothing_subscribed().await;
}

#[tokio::test]
async fn an_unknown_topic_and_a_forbidden_one_are_answered_alike_to_the_byte() {
    let gateway = Gateway::with(HIDDEN).await;
    let unknown = without_date(&send(&gateway, "GET", "/topics/unknown/a", "").await);
    assert!(unknown.0.starts_with("http/1.1 404"), "{unknown:?}");
    for target in ["/topics/hidden/a", "/topics?topic=hidden/a", "/topics/$SYS/a", "/topics/**", "/elsewhere"]
    {
        assert_eq!(without_date(&send(&gateway, "GET", target, "").await), unknown, "{target}");
    }
    for topic in ["unknown/a", "hidden/a", "hidden/b"] {
        let more = "Content-Length: 6\r\n\r\nsecret";
        let reply = send(&gateway, "POST", &format!("/topics/{topic}"), more).await;
        assert_eq!(without_date(&reply), unknown, "{topic}");
    }
    for path in ["/metrics", "/livez", "/readyz", "/debug", "/topics/", "/%2e%2e/metrics"] {
        assert_eq!(send(&gateway, "GET", path, "").await.status, 404, "{path}");
    }
    gateway.assert_alive_and_nothing_subscribed().await;
}

#[tokio::test]
async fn on_loopback_a_host_that_is_not_loopback_is_refused() {
    let gateway = Gateway::start().await;
    for host in [
        "attacker.example",
        "attacker.example:8080",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example",
        "attacker.example#localhost",
        "0.0.0.0",
        "192.168.0.1",
        "[::ffff:8.8.8.8]",
        "",
    ] {
        for (method, more) in [("GET", ""), ("HEAD", ""), ("POST", "Content-Length: 1\r\n\r\nx")] {
            let request = format!("{method} /topics/a HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
            let mut raw = Raw::connect(gateway.address).await;
            raw.send(request).await.unwrap();
            let (status, head) = raw.head().await;
            assert_eq!(status, 421, "{method} {host:?}");
            assert!(!head.contains("attacker"), "{head}");
        }
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:8080", "127.1.2.3", "app.localhost"] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(format!("GET /topics/open/alive HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.unwrap();
        assert_eq!(raw.head().await.0, 200, "{host}");
    }
    gateway.assert_alive_and_nothing_subscribed().await;
}

#[tokio::test]
async fn no_page_can_ask_the_admin_listener_and_a_bare_probe_can() {
    let gateway = Gateway::start().await;
    for path in ["/metrics", "/livez", "/readyz"] {
        for (fields, status) in [
            ("Host: attacker.example\r\n", 421),
            ("Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
            ("", 400),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(raw::exchange(gateway.admin, request).await.status, status, "{path} {fields:?}");
        }
        let probe = raw::exchange(gateway.admin, format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert_eq!(probe.status, 200, "{path}");
    }
    let mut raw = Raw::connect(gateway.address).await;
    raw.send("GET /topics/open/alive HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(raw.head().await.0, 200);
}

#[tokio::test]
async fn a_request_without_one_host_is_refused_wherever_the_gateway_listens() {
    join_all(["", "hosts = [\"localhost\", \"127.0.0.1\"]\n"].map(|rules| async move {
        let gateway = Gateway::with(rules).await;
        for hosts in ["", "Host: localhost\r\nHost: localhost\r\n", "Host: attacker\r\nHost: localhost\r\n"] {
            let request = format!("GET /topics/a HTTP/1.1\r\n{hosts}\r\n");
            assert_eq!(raw::exchange(gateway.address, request).await.status, 400, "{hosts:?}");
        }
        // The form that proxies are sent. Its authority counts, and Host does not (RFC 9112, section 3.2.2).
        for (target, host, status) in [
            ("http://localhost/topics/open/alive", "attacker.example", 200),
            ("http://attacker.example/topics/a", "localhost", 421),
            ("http://localhost@attacker.example/topics/a", "localhost", 421),
            ("http://localhost:1@attacker.example/topics/a", "localhost", 421),
        ] {
            let mut raw = Raw::connect(gateway.address).await;
            raw.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.unwrap();
            assert_eq!(raw.head().await.0, status, "{target}");
        }
        gateway.assert_alive_and_nothing_subscribed().await;
    }))
    .await;
}

#[tokio::test]
async fn if_hosts_are_listed_all_others_are_refused() {
    let gateway = Gateway::with("hosts = [\"events.example.com\", \"10.1.2.3\"]\n").await;
    for (host, status) in [
        ("events.example.com", 200),
        ("EVENTS.example.com:8443", 200),
        ("10.1.2.3:80", 200),
        ("localhost", 421),
        ("127.0.0.1", 421),
        ("example.com", 421),
        ("sub.events.example.com", 421),
        ("events.example.com.", 421),
        ("events.example.com.attacker.example", 421),
        ("xevents.example.com", 421),
        ("events.example.com@attacker.example", 421),
        ("[events.example.com]", 421),
        ("10.1.2.30", 421),
        ("", 421),
    ] {
        let mut raw = Raw::connect(gateway.address).await;
        raw.send(format!("GET /topics/a HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.unwrap();
        assert_eq!(raw.head().await.0, status, "{host:?}");
    }
}

#[tokio::test]
async fn metrics_name_no_topic_and_do_not_grow_with_requests() {
    let gateway = Gateway::with(HIDDEN).await;
    let metrics = async || raw::exchange(gateway.admin, ask("GET", "/metrics", "")).await.text();
    let mut lines = vec![];
    for round in ["s3cret-a", "s3cret-b", "s3cret-c"] {
        let mut reader = gateway.open(&format!("/topics/open/{round}")).await;
        reader.expect("stream-open").await;
        gateway.publish(&format!("open/{round}"), round).await;
        assert_eq!(reader.message().await, round);
        for target in [format!("/topics/hidden/{round}"), format!("/topics/{round}%3E"), format!("/{round}")]
        {
            assert!(send(&gateway, "GET", &target, "").await.status >= 400, "{target}");
        }
        let text = metrics().await;
        assert!(text.contains("topicgate_streams") && !text.contains("s3cret"), "{text}");
        lines.push(text.lines().count());
    }
    assert_eq!(lines[0], lines[2], "{lines:?}");
}
