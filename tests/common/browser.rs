//! Independent SSE clients, in node: Chromium's EventSource, npm `eventsource`, undici's. See tests/clients/read.mjs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Chromium starts slowly on a busy machine.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

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
    /// Opens `path` with the client called `name`, and waits for its `stream-open`.
    pub async fn open(name: &'static str, address: SocketAddr, path: &str) -> Self {
        Self::with(name, address, path, &json!({"page": "same-origin"})).await
    }

    /// As [`Client::open`], with options of read.mjs.
    pub async fn with(name: &'static str, address: SocketAddr, path: &str, options: &Value) -> Self {
        let mut client = Client::begin(name, address, path, options);
        assert_eq!(client.event().await.kind, "stream-open", "{name}");
        client
    }

    /// Begins to open `path` with the client called `name`.
    pub fn start(name: &'static str, address: SocketAddr, path: &str) -> Self {
        Client::begin(name, address, path, &json!({"page": "same-origin"}))
    }

    fn begin(name: &'static str, address: SocketAddr, path: &str, options: &Value) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/read.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .args([name, &format!("http://{address}{path}"), &options.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is needed, and `npm ci` in tests/clients: run scripts/tools");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Client { child, lines, name }
    }

    /// The next line that the client reports.
    async fn line(&mut self) -> Value {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("{}: no event", self.name)).unwrap();
        serde_json::from_str(&line.unwrap_or_else(|| panic!("{} ended", self.name))).unwrap()
    }

    /// Waits until the client gives up for good. What it receives before that is thrown away.
    pub async fn gives_up(&mut self) {
        while self.line().await["readyState"] != 2 {}
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
