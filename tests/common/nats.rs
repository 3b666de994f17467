//! A `nats-server` as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ports::Port;

/// A server on ports of its own. It ends with the value.
pub struct NatsServer {
    child: Option<Child>,
    directory: tempfile::TempDir,
    /// Where clients connect.
    port: Port,
    /// Where monitoring answers, over plain HTTP.
    monitoring: Port,
}

/// `NATS_SERVER`, what the tools script installed, or what is on the path.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return path.into();
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin/nats-server");
    if installed.exists() { installed } else { "nats-server".into() }
}

impl NatsServer {
    /// A server that lets everyone in.
    pub fn start() -> Self {
        Self::with("")
    }

    /// A server with more lines of configuration.
    pub fn with(extra: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::inside(directory, extra)
    }

    /// A server with JetStream, whose streams survive a restart.
    pub fn jetstream() -> Self {
        Self::jetstream_with("")
    }

    /// As [`NatsServer::jetstream`], with more lines of configuration.
    pub fn jetstream_with(extra: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = directory.path().join("jetstream");
        Self::inside(directory, &format!("jetstream {{ store_dir: {store:?} }}\n{extra}"))
    }

    /// In a directory that is there already.
    pub fn inside(directory: tempfile::TempDir, extra: &str) -> Self {
        let mut server =
            NatsServer { child: None, directory, port: Port::reserve(), monitoring: Port::reserve() };
        server.configure(extra);
        server.restart();
        server
    }

    /// Replaces the extra lines; they count from the next `restart` or `reload`.
    pub fn configure(&self, extra: &str) {
        std::fs::write(self.directory.path().join("server.conf"), extra)
            .expect("the configuration is written");
    }

    /// A directory that lives as long as the server, for certificates and the like.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts it, on the same ports as before.
    pub fn restart(&mut self) {
        self.stop();
        let ports = self.directory.path().join("ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir(&ports).expect("a directory for the ports file");
        let [port, monitoring] = [&self.port, &self.monitoring].map(|port| port.number.to_string());
        let log = std::fs::File::create(self.directory.path().join("log")).expect("a log file");
        let child = Command::new(binary())
            .args(["-a", "127.0.0.1", "-p", &port, "-m", &monitoring])
            .arg("--ports_file_dir")
            .arg(&ports)
            .arg("-c")
            .arg(self.directory.path().join("server.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server starts; set NATS_SERVER to its path");
        let child = self.child.insert(child);
        let start = Instant::now();
        // It writes the file when it listens.
        while std::fs::read_dir(&ports).is_ok_and(|mut files| files.next().is_none()) {
            // A node of a cluster reads its streams first, which takes its time on a busy disk.
            let is_waiting =
                start.elapsed() < Duration::from_secs(30) && child.try_wait().is_ok_and(|end| end.is_none());
            assert!(is_waiting, "nats-server came up: {}", log_in(&self.directory));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its log since the start.
    pub fn log(&self) -> String {
        log_in(&self.directory)
    }

    /// Whether it was started and not stopped.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Kills it at once.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it in its tracks: its connections stay open and nothing answers on them.
    pub fn pause(&self) {
        self.signal("STOP");
        // The signal is sent, which is not to say that every thread has stopped. Only Linux tells of each.
        if !cfg!(target_os = "linux") {
            return std::thread::sleep(Duration::from_millis(200));
        }
        let id = self.child.as_ref().expect("it runs").id();
        let stopped = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("stat")));
            stat.is_ok_and(|stat| {
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
            })
        };
        let start = Instant::now();
        while !std::fs::read_dir(format!("/proc/{id}/task")).expect("it runs").all(stopped) {
            assert!(start.elapsed() < Duration::from_secs(5), "it stopped");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Has it read its configuration again.
    pub fn reload(&self) {
        self.signal("HUP");
    }

    fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Where clients connect.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The plain URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.number)
    }

    /// The answer of a monitoring path such as `/connz?subs=1`.
    pub fn monitor(&self, path: &str) -> Value {
        let mut socket =
            TcpStream::connect(("127.0.0.1", self.monitoring.number)).expect("monitoring answers");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit is set");
        write!(socket, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("the request is sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        serde_json::from_str(body).expect("JSON")
    }

    /// Subscriptions of each connection that topicgate has open.
    pub fn subscriptions(&self) -> Vec<u64> {
        let connections = self.monitor("/connz");
        let ours = |connection: &&Value| connection["name"] == "topicgate";
        let count = |connection: &Value| connection["subscriptions"].as_u64().unwrap_or(0);
        connections["connections"].as_array().expect("connections").iter().filter(ours).map(count).collect()
    }
}

/// A publisher that writes header blocks of any bytes, which no library would.
pub struct RawPublisher(BufReader<TcpStream>);

impl RawPublisher {
    pub fn connect(port: u16) -> std::io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut publisher = RawPublisher(BufReader::new(socket));
        publisher.0.get_mut().write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n")?;
        publisher.flush()?;
        Ok(publisher)
    }

    /// With this block of header fields; none if it is empty.
    pub fn publish(&mut self, subject: &str, block: &[u8], payload: &[u8]) -> std::io::Result<()> {
        let total = block.len() + payload.len();
        let line = match block.len() {
            0 => format!("PUB {subject} {total}\r\n"),
            length => format!("HPUB {subject} {length} {total}\r\n"),
        };
        self.0.get_mut().write_all(&[line.as_bytes(), block, payload, b"\r\n"].concat())
    }

    /// Waits until the server has everything.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.0.get_mut().write_all(b"PING\r\n")?;
        let mut line = String::new();
        while !line.starts_with("PONG") {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            assert!(!line.starts_with("-ERR"), "{line}");
        }
        Ok(())
    }
}

/// Blocks of header fields that a server passes on and that have nothing, or not everything, to be read.
pub const UNREADABLE: [&[u8]; 9] = [
    b"NATS/1.0\r\nX: caf\xe9\r\n\r\n",
    b"NATS/1.0\r\nX: a\rb\r\n\r\n",
    b"NATS/1.0\r\nX y: a\r\n\r\n",
    b"NATS/1.0\r\nX\xc3\xa9: a\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\n: a\r\n\r\n",
    b"NATS/2.0\r\nX: a\r\n\r\n",
    b"\xff\x00\r\n\r\n",
    b"x",
];

fn log_in(directory: &tempfile::TempDir) -> String {
    std::fs::read_to_string(directory.path().join("log")).unwrap_or_default()
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.stop();
    }
}
