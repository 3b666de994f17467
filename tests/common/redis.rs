//! A Redis server as a child process that can be killed, restarted and paused.

#![allow(dead_code, reason = "each test file that includes this uses its own part of it")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

use super::ports::Port;

/// How long the server may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A `redis-server`, from `REDIS_SERVER` or the path. Killed when dropped.
pub struct RedisServer {
    child: Option<Child>,
    port: Port,
    lines: Vec<String>,
    is_sentinel: bool,
    directory: tempfile::TempDir,
}

impl RedisServer {
    /// Starts a server.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with lines added to its configuration.
    pub fn start_with(lines: &[&str]) -> Self {
        let mut server = Self::absent(lines);
        server.restart();
        server
    }

    /// A server that is not running yet; [`RedisServer::restart`] starts it.
    pub fn absent(lines: &[&str]) -> Self {
        RedisServer {
            child: None,
            port: Port::reserve(),
            lines: lines.iter().map(ToString::to_string).collect(),
            is_sentinel: false,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// A node of a cluster that is not running yet. It knows its cluster by a file, which outlives its
    /// process.
    pub fn node(lines: &[&str]) -> Self {
        Self::absent(&[&["cluster-enabled yes"], lines].concat())
    }

    /// A sentinel that watches `master` as `mymaster`, and calls it down after a second.
    pub fn sentinel(master: &RedisServer) -> Self {
        let monitor = format!("sentinel monitor mymaster 127.0.0.1 {} 1", master.port.number);
        let settings = ["down-after-milliseconds mymaster 1000", "failover-timeout mymaster 3000"];
        let [down, limit] = settings.map(|setting| format!("sentinel {setting}"));
        let mut server = Self::absent(&[&monitor, &down, &limit]);
        server.is_sentinel = true;
        server.restart();
        server
    }

    /// A replica of `master`.
    pub fn replica_of(master: &RedisServer, lines: &[&str]) -> Self {
        let of = format!("replicaof 127.0.0.1 {}", master.port.number);
        Self::start_with(&[&[of.as_str()], lines].concat())
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Whether it was started and not stopped since.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Kills it without a word to anyone (SIGKILL).
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port, empty.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.launch(), "redis-server did not come back on port {}", self.port.number);
    }

    /// Stops the process where it stands (SIGSTOP): its connections stay open and silent.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        let settings = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
        client.get_multiplexed_async_connection_with_config(&settings).await.unwrap()
    }

    /// How many connections are subscribed to `channel`.
    pub async fn channel_subscribers(&self, channel: &str) -> i64 {
        let counts: Vec<(String, i64)> = redis::cmd("PUBSUB")
            .arg("NUMSUB")
            .arg(channel)
            .query_async(&mut self.connect().await)
            .await
            .unwrap();
        counts[0].1
    }

    /// How many channels anyone is subscribed to.
    pub async fn channels(&self) -> usize {
        let names: Vec<String> =
            redis::cmd("PUBSUB").arg("CHANNELS").query_async(&mut self.connect().await).await.unwrap();
        names.len()
    }

    /// How many different patterns anyone is subscribed to.
    pub async fn patterns(&self) -> i64 {
        redis::cmd("PUBSUB").arg("NUMPAT").query_async(&mut self.connect().await).await.unwrap()
    }

    /// How many pub/sub connections there are.
    pub async fn pubsub_clients(&self) -> usize {
        let mut list = redis::cmd("CLIENT");
        list.arg("LIST").arg("TYPE").arg("pubsub");
        let list: String = list.query_async(&mut self.connect().await).await.unwrap();
        list.lines().filter(|line| !line.is_empty()).count()
    }

    /// Starts the process and waits until it answers. `false` if it ended instead.
    fn launch(&mut self) -> bool {
        let mut config = format!("bind 127.0.0.1\nport {}\nsave \"\"\nappendonly no\n", self.port.number);
        for line in &self.lines {
            config.push_str(line);
            config.push('\n');
        }
        let file = self.directory.path().join("redis.conf");
        std::fs::write(&file, config).unwrap();
        let program = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let child = Command::new(program)
            .arg(&file)
            .args(self.is_sentinel.then_some("--sentinel"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is needed: install it, or name it in REDIS_SERVER");
        let child = self.child.insert(child);
        let started = Instant::now();
        while started.elapsed() < START_LIMIT {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if answers(self.port.number) {
                return child.try_wait().unwrap().is_none();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("redis-server did not answer within {START_LIMIT:?}");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("the server runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether a server answers PING there, be it with an error.
fn answers(port: u16) -> bool {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut line = String::new();
    socket.write_all(b"PING\r\n").is_ok()
        && BufReader::new(socket).read_line(&mut line).is_ok()
        && (line.starts_with('+') || line.starts_with('-'))
}

/// Runs a command whose words are separated by spaces.
pub async fn run<T: redis::FromRedisValue>(redis: &mut MultiplexedConnection, words: &str) -> T {
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command.query_async(redis).await.unwrap()
}
