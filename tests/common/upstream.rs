//! A real broker behind the gateway, and a publisher that does not go through the gateway.

use async_nats::Client;
use redis::aio::MultiplexedConnection;

use super::nats::NatsServer;
use super::redis::RedisServer;

/// A broker as a child process, with a client of its own.
pub enum Upstream {
    Nats { server: NatsServer, client: Client },
    Redis { server: RedisServer, connection: MultiplexedConnection },
}

impl Upstream {
    pub async fn nats() -> Self {
        let server = NatsServer::start();
        let client = async_nats::connect(server.url()).await.unwrap();
        Upstream::Nats { server, client }
    }

    pub async fn redis() -> Self {
        let server = RedisServer::start();
        let connection = server.connect().await;
        Upstream::Redis { server, connection }
    }

    /// Configuration for a gateway on this broker, with everything exposed.
    pub fn toml(&self) -> String {
        let rules = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"";
        format!("broker.url = \"{}\"\n{rules}\n", self.url())
    }

    pub fn url(&self) -> String {
        match self {
            Upstream::Nats { server, .. } => server.url(),
            Upstream::Redis { server, .. } => server.url(),
        }
    }

    /// Publishes on `topic` (with `/` between segments). Returns once the broker has it.
    pub async fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) {
        self.publish_all(topic, [payload]).await;
    }

    /// Publishes several in a row. Returns once the broker has them.
    pub async fn publish_all<P: AsRef<[u8]>>(&self, topic: &str, payloads: impl IntoIterator<Item = P>) {
        match self {
            Upstream::Nats { client, .. } => {
                for payload in payloads {
                    let payload = bytes::Bytes::copy_from_slice(payload.as_ref());
                    client.publish(topic.replace('/', "."), payload).await.unwrap();
                }
                client.flush().await.unwrap();
            }
            Upstream::Redis { connection, .. } => {
                for payload in payloads {
                    let mut publish = redis::cmd("PUBLISH");
                    publish.arg(topic.replace('/', ":")).arg(payload.as_ref());
                    publish.exec_async(&mut connection.clone()).await.unwrap();
                }
            }
        }
    }

    /// All subscriptions that the server counts.
    pub async fn subscriptions(&self) -> u64 {
        match self {
            Upstream::Nats { server, .. } => server.subscriptions().iter().sum(),
            Upstream::Redis { server, .. } => server.channels().await as u64 + server.patterns().await as u64,
        }
    }

    /// SIGKILL.
    pub fn stop(&mut self) {
        match self {
            Upstream::Nats { server, .. } => server.stop(),
            Upstream::Redis { server, .. } => server.stop(),
        }
    }

    /// On the same port; returns once it answers, with a publisher connected to it.
    pub async fn restart(&mut self) {
        match self {
            Upstream::Nats { server, client } => {
                server.restart();
                *client = async_nats::connect(server.url()).await.unwrap();
            }
            Upstream::Redis { server, connection } => {
                server.restart();
                *connection = server.connect().await;
            }
        }
    }

    /// SIGSTOP: its sockets stay open and say nothing.
    pub fn pause(&self) {
        match self {
            Upstream::Nats { server, .. } => server.pause(),
            Upstream::Redis { server, .. } => server.pause(),
        }
    }

    /// SIGCONT.
    pub fn resume(&self) {
        match self {
            Upstream::Nats { server, .. } => server.resume(),
            Upstream::Redis { server, .. } => server.resume(),
        }
    }
}
