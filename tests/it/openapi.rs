//! The OpenAPI descriptions of both listeners, compared with the answers of a real gateway.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::common::client;
use crate::common::deploy::{at, list, path, read, text, yaml};
use crate::common::gateway::Gateway;
use crate::common::token::{JWT, token};
use crate::common::wire::{Wire, dechunk};
use serde_json::{Value, json};
use strum::VariantArray as _;
use topicgate::internals::protocol::codes::{CloseCode, Code, GapReason};

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

    for path in ["/", "/topicgate.js"] {
        answers.ask(address, "GET", path, &[], "").await;
        answers.ask(address, "GET", path, &[("host", "elsewhere.example")], "").await;
        answers.ask(address, "GET", path, &[("origin", "https://elsewhere.example")], "").await;
    }
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
    for (path, until) in [("/console/events", "event: state"), ("/console/messages?topic=a/**", "\"x\"")] {
        let mut stream = Wire::open(admin, path).await;
        stream.until(until.as_bytes()).await;
        let headers = json!({"content-type": "text/event-stream"});
        answers
            .0
            .push(json!({"method": "GET", "path": path, "status": 200, "headers": headers, "body": "-"}));
        answers.ask(admin, "GET", path, &[("host", "elsewhere.example")], "").await;
    }
    answers.ask(admin, "GET", "/console/messages", &[], "").await;
    answers.ask(admin, "GET", "/console/messages?topic=other", &[], "").await;
    answers.ask(admin, "DELETE", "/streams", &[], "").await;
    answers.ask(admin, "DELETE", "/streams?topic=a/**&limit=5", &[], "").await;
    answers.ask(admin, "DELETE", "/streams?topic=a/**", &[], "").await;
    answers.hold_to("docs/openapi-admin.yaml");
}

/// The names of the parameters of an operation that are in `place`.
fn parameters(description: &Value, operation: &str, place: &str) -> BTreeSet<String> {
    let found = list(description, operation).iter().map(|parameter| match parameter.get("$ref") {
        Some(reference) => at(description, reference.as_str().unwrap().trim_start_matches('#')),
        None => parameter,
    });
    found.filter(|one| one["in"] == place).map(|one| text(one, "/name").to_owned()).collect()
}

/// The words between backticks in the first `columns` columns of the first table after `heading`.
fn table(document: &str, heading: &str, columns: usize) -> BTreeSet<String> {
    let rest = document.split_once(heading).unwrap().1;
    let rows =
        rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = rows.flat_map(|row| row.split('|').skip(1).take(columns));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The parameters that `src/http/subscribe.rs` knows: the arms of its `match`, and the names of a cursor.
fn known() -> BTreeSet<String> {
    let source = read("src/http/subscribe.rs");
    let quoted = |text: &str| text.split('"').nth(1).unwrap().to_owned();
    let arms = source.split_once("match &*name {\n").unwrap().1.split_once("_ => {}").unwrap().0;
    let indent = &arms[..arms.find('"').unwrap()];
    let is_arm = |line: &&str| line.strip_prefix(indent).is_some_and(|arm| arm.starts_with('"'));
    let names = source.split_once("const CURSOR_NAMES").unwrap().1.split_once(" = [").unwrap().1;
    let names = names.split_once(']').unwrap().0.split(',');
    arms.lines().filter(is_arm).map(quoted).chain(names.map(quoted)).collect()
}

#[test]
fn the_description_has_every_parameter_that_the_gateway_reads() {
    let description = yaml(&read("docs/openapi.yaml")).remove(0);
    let protocol = read("docs/protocol.md");
    for operation in ["/paths/~1topics/get/parameters", "/paths/~1topics~1{topic}/get/parameters"] {
        let described = parameters(&description, operation, "query");
        assert_eq!(described, known(), "{operation}");
        assert_eq!(described, table(&protocol, "### Query parameters", 1), "{operation}");
        let headers = parameters(&description, operation, "header");
        assert_eq!(headers, BTreeSet::from(["Last-Event-ID".to_owned()]));
    }
    let publish = "/paths/~1topics~1{topic}/post/parameters";
    let both = parameters(&description, publish, "query").into_iter();
    let both: BTreeSet<_> = both.chain(parameters(&description, publish, "header")).collect();
    assert_eq!(both, table(&protocol, "## 8. Publishing", 2));
}

#[test]
fn the_description_has_every_code() {
    let description = yaml(&read("docs/openapi.yaml")).remove(0);
    let codes = |of: &str| -> BTreeSet<String> {
        let all = list(&description, &format!("/components/schemas/{of}/enum")).iter();
        all.map(|code| code.as_str().unwrap().to_owned()).collect()
    };
    let refusals: BTreeSet<String> = Code::refusals().map(|code| code.as_str().to_owned()).collect();
    let problems = codes("Problem/properties/code");
    assert!(problems.is_superset(&refusals), "{problems:?}");
    // No client receives these: it has left, cannot be reached, or has its answer.
    let silent = [CloseCode::Gone, CloseCode::Slow, CloseCode::Answered];
    let closes: BTreeSet<String> = CloseCode::VARIANTS
        .iter()
        .filter(|code| !silent.contains(code))
        .map(|code| code.as_str().to_owned())
        .collect();
    assert_eq!(codes("StreamClose/properties/code"), closes);
    let later: BTreeSet<String> = problems.difference(&refusals).cloned().collect();
    assert!(later.is_subset(&closes), "{later:?}");
    let reasons = GapReason::VARIANTS.iter().map(|reason| reason.as_str().to_owned()).collect();
    assert_eq!(codes("Gap/properties/reason"), reasons);
}
