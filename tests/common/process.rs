//! The real binary as a child process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{self, Response};
use super::{LIMIT, eventually};

/// A child process, and its standard error so far. Dropping it kills it.
pub struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// How a child ended.
pub struct Ended {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub log: String,
}

impl Process {
    /// Runs the gateway on ports of its own, with these environment variables, and waits until it listens.
    pub async fn start(environment: &[(&str, &str)]) -> Self {
        Self::with(&[], environment).await
    }

    /// As [`Process::start`], with flags beside.
    pub async fn with(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut process = Self::spawn(flags, environment);
        let log = process.log.clone();
        let listening = || {
            log.lock()
                .unwrap()
                .lines()
                .find(|line| line.contains("topicgate is listening"))
                .map(str::to_owned)
        };
        eventually("the child listens", async || listening().is_some()).await;
        let line: serde_json::Value = serde_json::from_str(&listening().unwrap()).unwrap();
        process.address = line["listen"].as_str().unwrap().parse().unwrap();
        process.admin = line["admin"].as_str().unwrap().parse().unwrap();
        process
    }

    /// Runs the gateway and waits for nothing.
    pub fn spawn(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_topicgate"));
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(["--admin-listen", "127.0.0.1:0", "--log-format", "json"]).args(flags);
        let inherited = std::env::vars().filter(|(name, _)| name.starts_with("TOPICGATE_"));
        for (name, _) in inherited {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied()).current_dir(env!("CARGO_TARGET_TMPDIR"));
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, into) = (child.stderr.take().unwrap(), log.clone());
        let reading = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = into.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Process { child, log, reading: Some(reading), address: nowhere, admin: nowhere }
    }

    /// Sends a signal, by the name that `kill` has for it.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end of the process, which must come within `limit`.
    pub async fn ended_within(mut self, limit: Duration) -> Ended {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < limit, "still running after {limit:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.reading.take().unwrap().join().unwrap();
        Ended { code: status.code(), log: self.log() }
    }

    /// Waits for the end of the process.
    pub async fn ended(self) -> Ended {
        self.ended_within(LIMIT).await
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().unwrap();
        self.ended().await;
    }

    /// Whether it runs, by its hold on standard error.
    pub fn runs(&self) -> bool {
        self.reading.as_ref().is_some_and(|reading| !reading.is_finished())
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub async fn readyz(&self) -> Response {
        client::request(self.admin, "GET", "/readyz", &[], b"").await
    }

    /// Open connections, including the one of this request.
    pub async fn connections(&self) -> f64 {
        self.metric("topicgate_connections").await
    }

    /// One sample of `/metrics`, by its whole name with labels.
    pub async fn metric(&self, sample: &str) -> f64 {
        let text = client::request(self.admin, "GET", "/metrics", &[], b"").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).trim().parse().unwrap()
    }

    /// Its memory, in bytes.
    #[cfg(target_os = "linux")]
    pub fn resident(&self) -> usize {
        super::resident_of(self.child.id())
    }

    /// Its open file descriptors.
    #[cfg(target_os = "linux")]
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub async fn publish(&self, topic: &str, payload: &str) {
        let path = format!("/topics/{topic}");
        let response = client::request(self.address, "POST", &path, &[], payload.as_bytes()).await;
        assert_eq!(response.status, 202, "{}", response.text());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
