//! The tutorials, followed exactly as printed: their files, their page in a browser, their commands. Only the ports differ.
#![cfg(unix)]

use std::path::Path;
use std::process::Command;

use crate::common::browser::{Shown, show};
use crate::common::client::Reader;
use crate::common::document::blocks;
use crate::common::found;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::ports::free_port;
use crate::common::process::Process;
use crate::common::redis::RedisServer;
use crate::common::site::Site;
use serde_json::json;
use std::time::Duration;

/// Chromium reconnects in seconds.
const LIMIT: Duration = Duration::from_secs(60);

enum Broker {
    /// Its port, and a client: the command `nats` is not there, so its lines are read and done.
    Nats(NatsServer, Admin),
    Redis(RedisServer),
}

impl Broker {
    fn url(&self) -> (&'static str, String) {
        match self {
            Broker::Nats(server, _) => ("nats://127.0.0.1:4222", server.url()),
            Broker::Redis(server) => ("redis://127.0.0.1:6379", server.url()),
        }
    }

    async fn run(&self, line: &str) {
        match self {
            Broker::Redis(server) => {
                let line = line.replace("redis-cli", &format!("redis-cli -p {}", server.port()));
                let output = Command::new("sh").args(["-c", &line]).output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success() && !said.starts_with("ERR"), "{line}: {said}");
            }
            Broker::Nats(_, admin) => {
                let words: Vec<String> = line.split(' ').map(|word| word.replace('\'', "")).collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                match words[..] {
                    ["nats", "pub", subject, payload] => {
                        admin.client.publish(subject.to_owned(), payload.to_owned().into()).await.unwrap();
                        admin.client.flush().await.unwrap();
                    }
                    ["nats", "stream", "add", name, "--subjects", subjects, ..] => {
                        admin.stream(name, &[subjects], json!({})).await;
                    }
                    _ => panic!("what does {line} do?"),
                }
            }
        }
    }
}

struct Tutorial {
    document: &'static str,
    broker: Broker,
    directory: tempfile::TempDir,
    port: u16,
    site: Site,
}

impl Tutorial {
    /// A text of the document with the test's addresses in it.
    fn own(&self, text: &str) -> String {
        let (theirs, ours) = self.broker.url();
        text.replace(theirs, &ours)
            .replace("http://127.0.0.1:8000", &self.site.origin("127.0.0.1"))
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{}", self.port))
    }

    /// The only block of a language under a heading.
    fn block(&self, heading: &str, language: &str) -> String {
        self.own(&blocks(self.document, heading, language)[0])
    }

    fn config(&self) -> std::path::PathBuf {
        self.directory.path().join("topicgate.toml")
    }

    async fn start(&self, toml: &str) -> Process {
        std::fs::write(self.config(), toml).unwrap();
        let listen = format!("127.0.0.1:{}", self.port);
        Process::with(&["--config", self.config().to_str().unwrap(), "--listen", &listen], &[]).await
    }

    async fn commands(&self, heading: &str, index: usize) {
        for line in blocks(self.document, heading, "sh")[index].lines() {
            self.broker.run(line).await;
        }
    }
}

async fn stopped(process: Process) {
    process.signal("TERM");
    assert_eq!(process.ended_within(Duration::from_secs(20)).await.code, Some(0));
}

/// Waits until the page shows a text that fits; the lines of it.
async fn shows(page: &mut Shown, what: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let text = found(what, LIMIT, async || {
        let text = page.text().await;
        fits(&text).then_some(text)
    })
    .await;
    text.lines().map(str::to_owned).collect()
}

async fn is_followed(document: &'static str, broker: Broker) {
    let directory = tempfile::tempdir().unwrap();
    let tutorial = Tutorial { document, broker, directory, port: free_port(), site: Site::start().await };
    let live = |text: &str| text.lines().any(|line| line == "live");
    let first = tutorial.block("1. A gateway", "toml");
    let gateway = tutorial.start(&first).await;
    let mut page = show(&tutorial.site.origin("127.0.0.1"), &tutorial.block("2. A page", "html")).await;
    shows(&mut page, "live", live).await;
    tutorial.commands("3. A message", 0).await;
    shows(&mut page, "both orders", |text| {
        text.contains(r#"{"order":1}"#) && text.contains(r#"{"order":2}"#)
    })
    .await;
    stopped(gateway).await;
    let gateway = tutorial.start(&first).await;
    shows(&mut page, "a gap", |text| text.contains("some orders are missing") && live(text)).await;

    let heading = "4. Nothing missing";
    tutorial.commands(heading, 0).await;
    stopped(gateway).await;
    let stored = tutorial.block(heading, "toml");
    let gaps = |text: &str| text.matches("some orders are missing").count();
    let before = gaps(&page.text().await);
    let gateway = tutorial.start(&stored).await;
    shows(&mut page, "the gap of the other source", |text| gaps(text) > before && live(text)).await;
    tutorial.commands(heading, 1).await;
    shows(&mut page, "the third order", |text| text.contains(r#"{"order":3}"#)).await;
    stopped(gateway).await;
    tutorial.commands(heading, 2).await;
    let gateway = tutorial.start(&stored).await;
    let lines = shows(&mut page, "the fourth order", |text| text.contains(r#"{"order":4}"#)).await;
    // The newest is on top: nothing between the two, and nothing twice.
    let at = lines.iter().position(|line| line.contains(r#"{"order":4}"#)).unwrap();
    assert!(lines[at + 1].contains(r#"{"order":3}"#), "{lines:?}");
    assert_eq!(
        lines.iter().filter(|line| line.contains("order\":3") || line.contains("order\":4")).count(),
        2
    );

    let heading = "5. Access control";
    std::fs::write(tutorial.config(), tutorial.block(heading, "toml")).unwrap();
    gateway.signal("HUP");
    // Its stream ends, and its reconnect is refused for good.
    shows(&mut page, "cut off", |text| text.lines().any(|line| line == "refused")).await;
    let commands = blocks(document, heading, "");
    let mint = commands[0].lines().next().unwrap();
    let mint = mint.replacen("topicgate", env!("CARGO_BIN_EXE_topicgate"), 1);
    let done =
        Command::new("sh").args(["-c", &mint]).current_dir(tutorial.directory.path()).status().unwrap();
    assert!(done.success(), "{mint}");
    let token = std::fs::read_to_string(tutorial.directory.path().join("token")).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    assert!(Reader::ask(gateway.address, "/topics/orders/eu", &[]).await.is_err_and(|no| no.status == 401));
    let headers = [("authorization", bearer.as_str())];
    Reader::open(gateway.address, "/topics/orders/eu", &headers).await.expect("stream-open").await;
}

#[tokio::test]
async fn the_tutorial_for_nats_works_as_it_is_written() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    is_followed(include_str!("../../docs/tutorial-nats.md"), Broker::Nats(server, admin)).await;
}

#[tokio::test]
async fn the_tutorial_for_redis_works_as_it_is_written() {
    is_followed(include_str!("../../docs/tutorial-redis.md"), Broker::Redis(RedisServer::start())).await;
}

#[test]
fn the_page_of_the_tutorial_is_that_of_the_compose_files() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose/page.html");
    let page = std::fs::read_to_string(file).unwrap();
    assert_eq!(blocks(include_str!("../../docs/tutorial-nats.md"), "2. A page", "html"), [page]);
}
