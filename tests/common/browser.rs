//! Independent SSE clients, in node: Chromium's EventSource, npm `eventsource`, undici's. See tests/clients/read.mjs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
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
        let mut client = Client::start(name, address, path);
        assert_eq!(client.event().await.kind, "stream-open", "{name}");
        client
    }

    /// Begins to open `path` with the client called `name`.
    pub fn start(name: &'static str, address: SocketAddr, path: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/read.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .args([name, &format!("http://{address}{path}"), r#"{"page":"same-origin"}"#])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is needed, and `npm ci` in tests/clients: run scripts/tools");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Client { child, lines, name }
    }

    /// The next event. Reconnects pass unseen, as they do for a page that does not ask.
    pub async fn event(&mut self) -> PageEvent {
        loop {
            let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("{}: no event", self.name)).unwrap();
            let line: Value =
                serde_json::from_str(&line.unwrap_or_else(|| panic!("{} ended", self.name))).unwrap();
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
