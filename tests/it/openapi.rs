//! The OpenAPI descriptions of both listeners, held to the answers of a real gateway.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::common::client;
use crate::common::deploy::path;
use crate::common::gateway::Gateway;
use crate::common::token::{JWT, token};
use crate::common::wire::{Wire, dechunk};
use serde_json::{Value, json};

/// Answers, in the form that tests/schemas/openapi.py reads.
struct Answers(Vec<Value>);

impl Answers {
    /// Sends a request, and keeps its answer.
    async fn ask(
        &mut self,
        address: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) {
        let answer = client::request(address, method, path, headers, body.as_bytes()).await;
        let fields: serde_json::Map<String, Value> = answer
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
            .collect();
        let (status, text) = (answer.status, answer.text());
        self.0
            .push(json!({"method": method, "path": path, "status": status, "headers": fields, "body": text}));
    }

    /// Holds them to a description.
    fn hold_to(&self, description: &str) {
        let mut checker = Command::new("python3")
            .env("PYTHONPATH", path(".tools/python"))
            .arg(path("tests/schemas/openapi.py"))
            .arg(path(description))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 is needed: run scripts/tools");
        let lines: String = self.0.iter().map(|answer| format!("{answer}\n")).collect();
        checker.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let ended = checker.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        assert!(ended.status.success(), "{said}");
    }
}

#[tokio::test]
async fn the_answers_of_the_public_listener_are_described() {
    let rules = "limits.message = \"1KiB\"\nlimits.streams = 3\n\
                 [[topics]]\nmatch = \"open/**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                 [[topics]]\nmatch = \"granted/**\"\nread = \"granted\"\npublish = \"granted\"\n";
    let gateway = Gateway::with(&format!("{rules}{JWT}")).await;
    let (address, mut answers) = (gateway.address, Answers(vec![]));
    let stranger = format!("Bearer {}", token(json!({"sub": "me"})));
    let (json_wanted, stream_wanted) = (("accept", "application/json"), ("accept", "text/event-stream"));

    // A stream with events of several kinds, as it is on the wire.
    let mut stream = Wire::open(address, "/topics?topic=open/a&topic=open/b&last_event_id=unknown").await;
    stream.until(b"stream-gap").await;
    answers.ask(address, "POST", "/topics/open/a?id=o-1&type=price", &[], "{\"eur\":3}").await;
    answers.ask(address, "POST", "/topics/open/b", &[("event-id", "o-2")], "two\nlines").await;
    stream.until(b"lines").await;
    gateway.ask_admin("DELETE", "/streams?topic=open/**", &[]).await;
    stream.until_end().await;
    let body = String::from_utf8(dechunk(&stream.body)).unwrap();
    let headers = json!({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"});
    let path = "/topics?topic=open/a&topic=open/b";
    answers.0.push(json!({"method": "GET", "path": path, "status": 200, "headers": headers, "body": body}));

    for path in ["/topics/open/a", "/topics/open/a?last=5", "/topics/open/**?since=all&format=cloudevents"] {
        answers.ask(address, "GET", path, &[json_wanted], "").await;
    }
    answers.ask(address, "GET", "/topics?topic=open/a&topic=open/b&last=1", &[json_wanted], "").await;
    for path in
        ["/topics/open/a", "/topics?topic=open/a", "/topics/hidden", "/topics/a//b", "/topics/granted/a"]
    {
        answers.ask(address, "HEAD", path, &[], "").await;
        answers.ask(address, "OPTIONS", path, &[], "").await;
    }
    // Refusals.
    for (path, headers) in [
        ("/topics/open//a", &[][..]),
        ("/topics/open/a?last=x", &[]),
        ("/topics/granted/a", &[]),
        ("/topics/granted/a", &[("authorization", "Bearer x")]),
        ("/topics/granted/a", &[("authorization", stranger.as_str())]),
        ("/topics/hidden", &[]),
        ("/topics/open/a", &[("accept", "image/png")]),
        ("/topics/open/a", &[("host", "elsewhere.example")]),
        ("/topics/open/a", &[("origin", "https://elsewhere.example")]),
    ] {
        answers.ask(address, "GET", path, headers, "").await;
        answers.ask(address, "POST", path, headers, "x").await;
    }
    answers.ask(address, "POST", "/topics/open/a", &[], &"x".repeat(2000)).await;
    // Later: the gateway is full.
    let mut others = vec![];
    for _ in 0..3 {
        let mut other = gateway.open("/topics/open/c").await;
        other.expect("stream-open").await;
        others.push(other);
    }
    answers.ask(address, "GET", "/topics/open/c", &[stream_wanted], "").await;
    answers.ask(address, "GET", "/topics/open/c", &[json_wanted], "").await;
    assert!(answers.0.iter().any(|answer| answer["status"] == 503), "{:?}", answers.0.last());
    answers.hold_to("docs/openapi.yaml");
}

#[tokio::test]
async fn the_answers_of_the_admin_listener_are_described() {
    let gateway = Gateway::start().await;
    let (admin, mut answers) = (gateway.admin, Answers(vec![]));
    let mut reader = gateway.open("/topics/a/**").await;
    reader.expect("stream-open").await;
    gateway.publish("a/b", "x").await;
    for path in [
        "/livez",
        "/readyz",
        "/metrics",
        "/",
        "/topics",
        "/topics?prefix=a&limit=1",
        "/topics?limit=0",
        "/streams",
        "/streams?topic=a/b",
        "/streams?id=x",
        "/state",
        "/config",
    ] {
        answers.ask(admin, "GET", path, &[], "").await;
        answers.ask(admin, "GET", path, &[("host", "elsewhere.example")], "").await;
    }
    answers.ask(admin, "DELETE", "/streams", &[], "").await;
    answers.ask(admin, "DELETE", "/streams?topic=a/**", &[], "").await;
    answers.hold_to("docs/openapi-admin.yaml");
}
