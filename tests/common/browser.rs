//! Independent SSE clients, in node: Chromium's EventSource, npm `eventsource`, undici's. See tests/clients/read.mjs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Chromium starts slowly on a busy machine.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

const NEEDED: &str = "node is needed, and `npm ci` in tests/clients: run scripts/tools";

fn script(name: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)).kill_on_drop(true);
    command
}

/// Sends one request with fetch() from a page of Chromium at `page`, and returns what the page may see of the answer. The
/// options and the result are those of tests/clients/fetch.mjs.
pub async fn fetch(page: &str, url: &str, options: &Value) -> Value {
    let output = script("fetch.mjs").args([page, url, &options.to_string()]).output();
    let output = tokio::time::timeout(LIMIT, output).await.expect("no answer").expect(NEEDED);
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{url}: {errors}"))
}

/// A page that is shown in Chromium until this is dropped.
pub struct Shown {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Shown {
    /// The text that the page shows now.
    pub async fn text(&mut self) -> String {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await.expect("no answer").unwrap();
        serde_json::from_str(&line.expect("the browser runs")).unwrap()
    }
}

/// Shows `html` at the origin of `page`, and clicks on the element with the id `click` where there is one.
pub async fn show(page: &str, html: &str) -> Shown {
    let click = html.contains("id=click").then_some("click");
    let mut child = script("show.mjs")
        .args([page, html])
        .args(click)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect(NEEDED);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.expect("the page is not shown").unwrap();
    assert_eq!(line.as_deref(), Some("shown"), "{html}");
    Shown { child, lines }
}

/// A client that reads one stream.
pub struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    name: &'static str,
}

/// One event as a page sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct PageEvent {
    pub kind: String,
    pub data: String,
    pub id: String,
}

impl Client {
    /// Opens `path` with the client called `name`, in Chromium from a page of the gateway's own origin, and waits for its
    /// `stream-open`.
    pub async fn open(name: &'static str, address: SocketAddr, path: &str) -> Self {
        Self::with(name, address, path, &json!({ "page": "same-origin" })).await
    }

    /// As [`Client::open`], with options of tests/clients/read.mjs.
    pub async fn with(name: &'static str, address: SocketAddr, path: &str, options: &Value) -> Self {
        let url = format!("http://{address}{path}");
        let mut client = Client::start(name, &url, options);
        assert_eq!(client.event().await.kind, "stream-open", "{name}");
        client
    }

    /// Starts the client called `name` on `url` with options of tests/clients/read.mjs. Does not wait for anything.
    pub fn start(name: &'static str, url: &str, options: &Value) -> Self {
        let mut child = script("read.mjs")
            .args([name, url, &options.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect(NEEDED);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Client { child, lines, name }
    }

    /// The next report of the client.
    async fn line(&mut self) -> Value {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("{}: no event", self.name)).unwrap();
        serde_json::from_str(&line.unwrap_or_else(|| panic!("{} ended", self.name))).unwrap()
    }

    /// Waits until the client gives up for good, and returns what it reported before that.
    pub async fn gives_up(&mut self) -> Vec<Value> {
        let mut before = Vec::new();
        loop {
            let line = self.line().await;
            if line["kind"] == "error" && line["readyState"] == 2 {
                return before;
            }
            before.push(line);
        }
    }

    /// The next event. Reconnects pass unseen, as they do for a page that does not ask.
    pub async fn event(&mut self) -> PageEvent {
        loop {
            let line = self.line().await;
            assert_ne!(line["readyState"], 2, "{} gave up for good", self.name);
            if line["kind"] == "event" {
                let text = |key: &str| line[key].as_str().unwrap().to_owned();
                return PageEvent { kind: text("type"), data: text("data"), id: text("lastEventId") };
            }
        }
    }

    /// The next message, past the `stream-open` of a reconnect. A gap is a failure.
    pub async fn message(&mut self) -> PageEvent {
        loop {
            let event = self.event().await;
            match event.kind.as_str() {
                "stream-open" => {}
                "message" => return event,
                _ => panic!("{}: {event:?}", self.name),
            }
        }
    }

    /// Ends the client; leaves nothing behind.
    pub async fn close(mut self) {
        drop(self.child.stdin.take());
        let _ = tokio::time::timeout(LIMIT, self.child.wait()).await;
    }
}

/// A page of docs/recipes.md in Chromium, at the origin of a gateway. See tests/clients/recipe.mjs.
pub struct Page {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _file: tempfile::NamedTempFile,
}

impl Page {
    /// Opens the page `html` as `/page` of the gateway.
    pub async fn open(address: SocketAddr, html: &str) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), html).unwrap();
        let mut child = script("recipe.mjs")
            .arg(format!("http://{address}/page"))
            .arg(file.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect(NEEDED);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut page = Page { child, lines, _file: file };
        page.answer().await;
        page
    }

    /// Waits until an element has exactly this text.
    pub async fn shows(&mut self, selector: &str, text: &str) {
        self.act(json!({ "shows": selector, "text": text })).await;
    }

    pub async fn reload(&mut self) {
        self.act(json!({ "reload": true })).await;
    }

    /// The value of an expression in the page.
    pub async fn run(&mut self, expression: &str) -> Value {
        self.act(json!({ "run": expression })).await
    }

    async fn act(&mut self, what: Value) -> Value {
        let line = format!("{what}\n");
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Value {
        let line =
            tokio::time::timeout(LIMIT, self.lines.next_line()).await.expect("the page does not answer");
        let answer: Value = serde_json::from_str(&line.unwrap().expect("the browser has ended")).unwrap();
        assert_eq!(answer["error"], Value::Null, "{answer}");
        answer["value"].clone()
    }
}
