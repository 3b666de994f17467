//! SIGHUP, and the log lines about it. The real binary with a real file.
#![cfg(unix)]

use std::path::PathBuf;
use std::process::Command;

use crate::common::client::{self, Reader};
use crate::common::eventually;
use crate::common::process::Process;
use crate::common::tls::{self, Files, Pair};
use serde_json::Value;

const OPEN: &str = "[[topics]]\nmatch = \"a\"\nread = \"anyone\"\npublish = \"anyone\"\n";
const MORE: &str = "[[topics]]\nmatch = \"b\"\nread = \"anyone\"\npublish = \"anyone\"\n";

/// A configuration file that changes.
struct File(tempfile::TempDir);

impl File {
    fn new(text: &str) -> Self {
        let file = File(tempfile::tempdir().unwrap());
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("topicgate.toml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    async fn start(&self, environment: &[(&str, &str)]) -> Process {
        Process::with(&["--config", self.path().to_str().unwrap()], environment).await
    }
}

async fn reloads(process: &Process, result: &str) -> u64 {
    let text = client::request(process.admin, "GET", "/metrics", &[], b"").await.text();
    let sample = format!("topicgate_config_reloads_total{{result=\"{result}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
}

/// Sends the signal and waits until it has had its result one time more.
async fn hang_up(process: &Process, result: &str) {
    let before = reloads(process, result).await;
    process.signal("HUP");
    eventually("it was read again", async || reloads(process, result).await > before).await;
}

/// The log lines with this message, as JSON, once there are `count` of them.
async fn told(process: &Process, message: &str, count: usize) -> Vec<Value> {
    eventually(message, async || lines(process, message).len() >= count).await;
    lines(process, message)
}

/// Those that there are now.
fn lines(process: &Process, message: &str) -> Vec<Value> {
    let log = process.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["message"].as_str().unwrap().contains(message)).collect()
}

async fn status(process: &Process, path: &str) -> u16 {
    client::request(process.address, "HEAD", path, &[], b"").await.status
}

#[tokio::test]
async fn errors_in_a_file_are_logged_in_the_words_of_check_and_nothing_changes() {
    let file = File::new(OPEN);
    let process = file.start(&[]).await;
    let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
    reader.expect("stream-open").await;
    file.write("limits.streams = 0\nstrems.retry = \"1s\"\n[[topics]]\nmatch = \"b\"\nread = \"everyone\"\n");
    hang_up(&process, "refused").await;
    let check = Command::new(env!("CARGO_BIN_EXE_topicgate"))
        .args(["check", "--config", file.path().to_str().unwrap()])
        .output()
        .unwrap();
    let check = String::from_utf8(check.stderr).unwrap();
    let logged = told(&process, "the configuration cannot be used; nothing has changed", 3).await;
    let logged: Vec<&str> = logged.iter().map(|line| line["error"].as_str().unwrap()).collect();
    assert_eq!(logged, check.lines().skip(1).collect::<Vec<_>>());
    assert_eq!(logged.len(), 3);
    assert_eq!((status(&process, "/topics/a").await, status(&process, "/topics/b").await), (200, 404));
    process.publish("a", "on").await;
    assert_eq!(reader.message().await, "on");
    // A file that is gone is no empty one, which would open or close everything.
    std::fs::remove_file(file.path()).unwrap();
    hang_up(&process, "refused").await;
    assert_eq!(status(&process, "/topics/a").await, 200);
    file.write(&format!("{OPEN}{MORE}"));
    hang_up(&process, "done").await;
    assert_eq!((status(&process, "/topics/a").await, status(&process, "/topics/b").await), (200, 200));
}

#[tokio::test]
async fn keys_that_need_a_restart_keep_their_values_and_are_named() {
    let file = File::new(OPEN);
    let process = file.start(&[]).await;
    hang_up(&process, "done").await;
    assert!(lines(&process, "need a restart").is_empty());
    let (cert, key) = ("cert = \"/nowhere/cert.pem\"", "key = \"/nowhere/key.pem\"");
    file.write(&format!("limits.connections = 99\n{OPEN}{MORE}[tls]\n{cert}\n{key}\n"));
    hang_up(&process, "done").await;
    let told = told(&process, "need a restart", 1).await;
    assert_eq!(told[0]["keys"], "limits.connections, tls");
    assert_eq!(status(&process, "/topics/b").await, 200, "the rest holds");
}

#[tokio::test]
async fn the_environment_and_flags_still_win() {
    let file = File::new(&format!("limits.streams = 7\n{OPEN}"));
    let process = file.start(&[("TOPICGATE_LIMITS__STREAMS", "2")]).await;
    file.write(&format!("listen = \"0.0.0.0:1\"\nlimits = {{ streams = 9, topics = 5 }}\n{OPEN}{MORE}"));
    hang_up(&process, "done").await;
    let metrics = client::request(process.admin, "GET", "/metrics", &[], b"").await.text();
    for sample in ["topicgate_limit{limit=\"streams\"} 2", "topicgate_limit{limit=\"topics\"} 5"] {
        assert!(metrics.contains(sample), "{sample}");
    }
    told(&process, "is in force", 1).await;
    assert!(lines(&process, "need a restart").is_empty(), "a flag says where to listen");
}

#[tokio::test]
async fn after_many_signals_at_once_the_last_version_of_the_file_is_in_force() {
    let file = File::new(OPEN);
    let process = file.start(&[]).await;
    let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
    reader.expect("stream-open").await;
    for round in 0..20 {
        file.write(&format!("limits.streams = {}\n{OPEN}", 100 + round));
        process.signal("HUP");
        process.signal("HUP");
    }
    let last = async || {
        let metrics = client::request(process.admin, "GET", "/metrics", &[], b"").await.text();
        metrics.contains("topicgate_limit{limit=\"streams\"} 119\n")
    };
    eventually("the last one holds", last).await;
    process.publish("a", "on").await;
    assert_eq!(reader.message().await, "on");
    // What was caught half written was read again, by the signal that followed.
    assert!(reloads(&process, "done").await + reloads(&process, "refused").await <= 40);
}

#[tokio::test]
async fn the_level_of_the_log_changes() {
    let file = File::new(OPEN);
    let process = file.start(&[]).await;
    file.write(&format!("log.level = \"off\"\n{OPEN}"));
    hang_up(&process, "done").await;
    file.write(&format!("log.level = \"warn\"\n{OPEN}"));
    hang_up(&process, "done").await;
    file.write(&format!("limits.connections = 99\n{OPEN}"));
    hang_up(&process, "done").await;
    told(&process, "need a restart", 1).await;
    assert_eq!(lines(&process, "is in force").len(), 1, "of the last one");
}

#[tokio::test]
async fn another_certificate_is_shown_and_one_that_cannot_be_used_holds_the_rest_back() {
    let (one, two) = (Files::new(), Files::new());
    let toml = |files: &Files| format!("tls = {{ cert = {:?}, key = {:?} }}\n", files.cert(), files.key());
    let file = File::new(&format!("{}{OPEN}", toml(&one)));
    let process = file.start(&[]).await;
    let mut reader = tls::open(process.address, &one.pair, "/topics/a").await;
    reader.expect("stream-open").await;
    file.write(&format!("{}{OPEN}", toml(&two)));
    hang_up(&process, "done").await;
    assert!(tls::try_connect(process.address, &two.pair, tls::H1).await.is_ok());
    // It is the other files that are looked at from now on.
    let new = Pair::new();
    two.write(&new);
    let shown = async || tls::try_connect(process.address, &new, tls::H1).await.is_ok();
    eventually("the change is seen", shown).await;
    std::fs::write(one.cert(), "nothing of use").unwrap();
    file.write(&format!("limits.streams = 5\n{}{OPEN}", toml(&one)));
    hang_up(&process, "refused").await;
    let told = told(&process, "the configuration cannot be used; nothing has changed", 1).await;
    assert!(told[0]["error"].as_str().unwrap().contains("has no certificate"), "{told:?}");
    assert!(shown().await);
    let metrics = client::request(process.admin, "GET", "/metrics", &[], b"").await.text();
    assert!(metrics.contains("topicgate_limit{limit=\"streams\"} 10000\n"));
    tls::publish(process.address, &new, "a", "on").await;
    assert_eq!(reader.message().await, "on");
}
