//! Out of file descriptors: open streams stay open, no client is refused for good, and the log stays readable.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::eventually;
use crate::common::raw::{Raw, ask};

const OUT: &str = "cannot accept connections";

/// The binary with a limit on open files, and its log.
struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    _directory: tempfile::TempDir,
}

impl Process {
    fn start(files: usize) -> Self {
        let directory = tempfile::tempdir().unwrap(); // so that no topicgate.toml is found
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_topicgate"))
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"])
            .current_dir(directory.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(vec![]));
        let (lines, stderr) = (log.clone(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(stderr)).map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Process { child, log, _directory: directory }
    }

    async fn address(&self) -> SocketAddr {
        let listening = || {
            let log = self.log.lock().unwrap();
            let lines = log.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            lines.filter_map(|line| line["listen"].as_str()?.parse().ok()).next()
        };
        eventually("it listens", || async { listening().is_some() }).await;
        listening().unwrap()
    }

    /// Of the admin listener, once it is known that it listens.
    fn admin(&self) -> SocketAddr {
        let log = self.log.lock().unwrap();
        let lines = log.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| line["admin"].as_str()?.parse().ok()).next().unwrap()
    }

    fn logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for a stream, without waiting for the answer.
async fn stream(address: SocketAddr) -> Raw {
    let mut raw = Raw::connect(address).await;
    raw.send(ask("GET", "/topics/a", "")).await.unwrap();
    raw
}

#[tokio::test]
async fn out_of_file_descriptors_old_streams_go_on_and_new_ones_wait() {
    let mut process = Process::start(64);
    let address = process.address().await;
    let mut publisher = Raw::connect(address).await;
    let mut old = vec![];
    for _ in 0..3 {
        let mut raw = stream(address).await;
        raw.until("event: stream-open\n").await;
        old.push(raw);
    }
    let mut more = vec![];
    for _ in 0..80 {
        more.push(stream(address).await);
    }
    eventually("it is out of file descriptors", || async { process.logged(OUT) > 0 }).await;
    // Served in the order in which they asked, as far as it went.
    let mut served = 0;
    let patience = Duration::from_millis(250);
    while tokio::time::timeout(patience, more[served].until("event: stream-open\n")).await.is_ok() {
        served += 1;
    }
    assert!((20..64).contains(&served), "{served}");
    for n in 0..10 {
        let message = format!("message {n}");
        let post = format!(
            "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            message.len()
        );
        publisher.send(post + &message).await.unwrap();
        assert_eq!(publisher.reply().await.status, 202);
        for raw in &mut old {
            raw.until(&format!("data: {message}\n")).await;
        }
        // One leaves, the next of those that wait is served, and then there is none left again.
        drop(more.remove(0));
        more[served - 1].until("event: stream-open\n").await;
    }
    assert!(process.child.try_wait().unwrap().is_none(), "it died");
    // The last of the queue are served once there is room.
    let waiting = more.split_off(served);
    drop(more);
    for mut raw in waiting {
        raw.until("event: stream-open\n").await;
    }
    let mut new = stream(address).await;
    new.until("event: stream-open\n").await;
    let log = process.log.lock().unwrap().clone();
    assert!(log.len() < 50, "{} lines", log.len());
    assert_eq!(process.logged(OUT), 1, "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
}

#[tokio::test]
async fn with_more_readers_than_file_descriptors_the_probes_and_metrics_are_answered() {
    let process = Process::start(64);
    let address = process.address().await;
    let admin = process.admin();
    let mut readers = vec![];
    for _ in 0..80 {
        readers.push(stream(address).await);
    }
    eventually("no more are accepted", || async { process.logged(OUT) > 0 }).await;
    // Each on a connection of its own, and several at once.
    let mut probes = vec![];
    for _ in 0..8 {
        for path in ["/livez", "/readyz", "/metrics"] {
            let mut probe = Raw::connect(admin).await;
            probe.send(ask("GET", path, "")).await.unwrap();
            assert_eq!(probe.reply().await.status, 200, "{path}");
            if probes.len() < 8 {
                probes.push(probe);
            }
        }
    }
    assert_eq!(
        process.logged("is more than the system's limit on open files allows"),
        1,
        "said at the start"
    );
}
