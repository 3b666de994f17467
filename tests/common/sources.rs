//! A gateway on each kind of source, for tests that must pass on all of them.

use serde_json::{Value, json};

use super::gateway::Gateway;
use super::jetstream::Admin;
use super::nats::NatsServer;
use super::redis::RedisServer;

/// Held for its end: the broker goes with the test.
#[allow(dead_code, clippy::large_enum_variant)] // one a test
enum Server {
    Embedded,
    Nats(NatsServer),
    Redis(RedisServer),
}

/// A gateway on one source. The type of a message is the member `type` of its payload.
pub struct OnSource {
    pub gateway: Gateway,
    _server: Server,
}

impl OnSource {
    /// Live sources. `replay` is the value of that key of the rule.
    pub async fn embedded(replay: &str) -> Self {
        Self::with(Server::Embedded, "", "", replay).await
    }

    pub async fn nats(replay: &str) -> Self {
        let server = NatsServer::start();
        let url = server.url();
        Self::with(Server::Nats(server), &url, "", replay).await
    }

    pub async fn redis(replay: &str) -> Self {
        let server = RedisServer::start();
        let url = server.url();
        Self::with(Server::Redis(server), &url, "", replay).await
    }

    /// Stored sources.
    pub async fn jetstream(replay: &str) -> Self {
        let server = NatsServer::jetstream();
        let url = server.url();
        Admin::connect(&url).await.stream("ALL", &["s.>"], json!({})).await;
        Self::with(Server::Nats(server), &url, "source = \"jetstream\"\nstream = \"ALL\"", replay).await
    }

    pub async fn redis_stream(replay: &str) -> Self {
        let server = RedisServer::start();
        let url = server.url();
        let source = "source = \"redis-stream\"\npayload = { field = \"data\" }";
        Self::with(Server::Redis(server), &url, source, replay).await
    }

    async fn with(server: Server, url: &str, source: &str, replay: &str) -> Self {
        let url = if url.is_empty() { String::new() } else { format!("broker.url = \"{url}\"\n") };
        let rule =
            "match = \"s/**\"\nread = \"anyone\"\npublish = \"anyone\"\ntype = { pointer = \"/type\" }";
        let toml = format!(
            "{url}[streams]\nheartbeat = \"1s\"\nretry = \"500ms\"\n[[topics]]\n{rule}\n{source}\n\
             replay = {{ {replay} }}\n"
        );
        OnSource { gateway: Gateway::with(&toml).await, _server: server }
    }

    /// Publishes `{"type":<kind>,"n":<n>}` to `topic`. Returns once the broker has it.
    pub async fn publish(&self, topic: &str, kind: &str, n: usize) {
        let payload = if kind.is_empty() { json!({ "n": n }) } else { json!({ "type": kind, "n": n }) };
        self.gateway.publish(topic, payload.to_string()).await;
    }
}

/// The number of a message that [`OnSource::publish`] has sent.
pub fn number(data: &str) -> usize {
    let value: Value = serde_json::from_str(data).unwrap_or_else(|_| panic!("{data}"));
    let value = value.get("data").unwrap_or(&value);
    value["n"].as_u64().unwrap_or_else(|| panic!("{data}")) as usize
}

/// A module with one test per name, for each source.
#[macro_export]
macro_rules! on_each_source {
    ($($name:ident),* $(,)?) => {
        $crate::on_sources!(embedded, nats, redis, jetstream, redis_stream: $($name),*);
    };
}

#[macro_export]
macro_rules! on_sources {
    ($source:ident $(, $more:ident)*: $($name:ident),*) => {
        mod $source { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::common::sources::OnSource::$source(super::REPLAY).await).await
            }
        )* }
        $crate::on_sources!($($more),*: $($name),*);
    };
    (: $($name:ident),*) => {};
}
