//! A gateway inside the test's process, behind real sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use topicgate::Config;
use topicgate::Reloader;
use topicgate::Server;

use super::client::{self, Reader, Response};

/// A running gateway. Dropped, it is gone without draining.
pub struct Gateway {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    reloader: Arc<Reloader>,
    toml: String,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Gateway {
    /// On the embedded broker, with everything exposed.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// With this much of a configuration file; listeners are chosen here, and must not stand in it. Waits until it is
    /// ready.
    pub async fn with(toml: &str) -> Self {
        let gateway = Self::unready(toml).await;
        super::eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
        gateway
    }

    /// On the embedded broker, with these settings of the admin listener on a port of that address.
    pub async fn with_admin(address: &str, settings: &str) -> Self {
        let text = format!("listen = \"127.0.0.1:0\"\n[admin]\nlisten = \"{address}:0\"\n{settings}\n");
        Self::run(&text).await
    }

    /// As [`Gateway::with`], whether or not its broker is there.
    pub async fn unready(toml: &str) -> Self {
        let mut gateway = Self::run(&Self::file(toml)).await;
        gateway.toml = toml.into();
        gateway
    }

    /// As [`Gateway::with`], with streams that are compressed for each number of readers, however small.
    pub async fn compressing(toml: &str) -> Self {
        let gateway = Self::run_as(&Self::file(&compress(toml)), true).await;
        super::eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
        gateway
    }

    async fn run(text: &str) -> Self {
        Self::run_as(text, super::are_all_compressed()).await
    }

    async fn run_as(text: &str, compressing: bool) -> Self {
        let config = Config::from_toml(text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
        let server = Server::build(config).await.unwrap();
        if compressing {
            server.set_crowd(1);
        }
        let (address, admin) = (server.address().unwrap(), server.admin_address().unwrap());
        let reloader = Arc::new(server.reloader());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Gateway { address, admin, reloader, toml: String::new(), stop: Some(stop), running }
    }

    fn file(toml: &str) -> String {
        let toml = if super::are_all_compressed() { compress(toml) } else { toml.into() };
        format!("listen = \"127.0.0.1:0\"\n{toml}\n[admin]\nlisten = \"127.0.0.1:0\"\n")
    }

    /// As SIGHUP does, with the file as it was at the start. Returns whether it was taken.
    pub fn reload(&self) -> bool {
        self.reload_with(&self.toml)
    }

    /// As SIGHUP does, with the file changed to this.
    pub fn reload_with(&self, toml: &str) -> bool {
        self.reloader.reload(Config::from_toml(&Self::file(toml)))
    }

    /// As SIGTERM does. Returns at once; [`Gateway::ended`] waits.
    pub fn begin_to_stop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits for the drain to end.
    pub async fn ended(mut self) {
        self.begin_to_stop();
        (&mut self.running).await.unwrap();
    }

    /// A stream on `path`, such as `/topics/a?last=3`.
    pub async fn open(&self, path: &str) -> Reader {
        Reader::open(self.address, path, &[]).await
    }

    /// A stream that resumes after the event `id`.
    pub async fn resume(&self, path: &str, id: &str) -> Reader {
        Reader::open(self.address, path, &[("last-event-id", id)]).await
    }

    /// Publishes through the gateway and insists that it was accepted.
    pub async fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) {
        let response = self.post(&format!("/topics/{topic}"), payload).await;
        assert_eq!(response.status, 202, "{}", response.text());
    }

    pub async fn post(&self, path: &str, payload: impl AsRef<[u8]>) -> Response {
        client::request(self.address, "POST", path, &[], payload.as_ref()).await
    }

    pub async fn get(&self, path: &str) -> Response {
        client::request(self.address, "GET", path, &[], b"").await
    }

    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        client::request(self.address, method, path, headers, b"").await
    }

    /// A request to the admin listener.
    pub async fn ask_admin(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        client::request(self.admin, method, path, headers, b"").await
    }

    /// Insists that nothing is subscribed but the topic of an ordinary stream, which still works.
    pub async fn assert_alive_and_nothing_subscribed(&self) {
        let mut reader = self.open("/topics/open/alive").await;
        self.publish("open/alive", "yes").await;
        reader.expect("stream-open").await;
        assert_eq!(reader.message().await, "yes");
        let held = || async { self.metric("topicgate_topics").await == 1.0 };
        super::eventually("one topic is held, and only one", held).await;
    }

    /// `/readyz`: `Ok` if ready, else the reason.
    pub async fn ready(&self) -> Result<(), String> {
        let response = client::request(self.admin, "GET", "/readyz", &[], b"").await;
        if response.status == 200 { Ok(()) } else { Err(response.text()) }
    }

    /// One sample of `/metrics`, by its whole name with labels: `topicgate_gaps_total{reason="slow"}`.
    pub async fn metric(&self, sample: &str) -> f64 {
        let text = client::request(self.admin, "GET", "/metrics", &[], b"").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).trim().parse().unwrap()
    }
}

/// The same configuration, with `streams.compress`.
fn compress(toml: &str) -> String {
    for (table, more) in [("[streams]\n", "compress = true\n"), ("streams = {", " compress = true,")] {
        if let Some((before, after)) = toml.split_once(table) {
            return format!("{before}{table}{more}{after}");
        }
    }
    format!("streams.compress = true\n{toml}")
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// The header field of a read: one JSON answer instead of a stream.
pub const JSON: (&str, &str) = ("accept", "application/json");

/// The answer to a read.
pub async fn ask(gateway: &Gateway, path: &str) -> Response {
    gateway.request("GET", path, &[JSON]).await
}

/// The answer to a read, which must succeed.
pub async fn read(gateway: &Gateway, path: &str) -> serde_json::Value {
    let response = ask(gateway, path).await;
    assert_eq!(response.status, 200, "{path}: {}", response.text());
    response.json()
}
