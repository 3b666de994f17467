//! Which server to connect to: the one of `broker.url`, the master that its sentinels name, or some node of a cluster.

use super::client::client_at;
use std::time::Duration;

use futures_util::future::{FutureExt, select_ok};
use redis::{AsyncConnectionConfig, Client, RedisConnectionInfo};
use tokio::sync::watch;
use tokio::time::timeout;

use super::answers::words;
use super::cluster::{Address, Cluster, View};

/// How long a sentinel may take, from connecting to its answer. All are asked at once.
const SENTINEL_LIMIT: Duration = Duration::from_secs(2);

/// See the module. Asked anew for every connection: after a failover the old one is lost, be it that its server died or
/// that the sentinels made it a replica and had it close its connections.
#[derive(Clone)]
pub(in crate::broker) enum Servers {
    One(Client),
    Sentinels {
        /// The name of what they watch.
        name: String,
        sentinels: Vec<Client>,
        /// Who we are on the servers that they name.
        login: RedisConnectionInfo,
    },
    /// Of a cluster, for what any node is good for. What only one has goes through `shards.rs`.
    Cluster(Cluster),
    /// This one of a cluster.
    Node(Cluster, Address),
}

impl Servers {
    /// The server to connect to now.
    ///
    /// # Errors
    /// Why none is known: one line, without secrets.
    pub(super) async fn find(&self) -> Result<Client, String> {
        match self {
            Servers::One(client) => Ok(client.clone()),
            Servers::Sentinels { name, sentinels, login } => {
                let asking = sentinels.iter().map(|sentinel| ask(sentinel, name, login).boxed());
                select_ok(asking).await.map(|(client, _)| client)
            }
            Servers::Cluster(cluster) => cluster.any().await,
            Servers::Node(cluster, address) => cluster.client(address),
        }
    }

    /// What is known of the cluster, if any node of it is the right one.
    pub(super) fn view(&self) -> Option<watch::Receiver<View>> {
        match self {
            Servers::Cluster(cluster) => Some(cluster.view()),
            Servers::One(_) | Servers::Sentinels { .. } | Servers::Node(..) => None,
        }
    }

    /// Whether a server must be a master to be the right one.
    pub(super) fn is_watched(&self) -> bool {
        matches!(self, Servers::Sentinels { .. } | Servers::Node(..))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Servers::Cluster(_) | Servers::Node(..))
    }
}

async fn ask(sentinel: &Client, name: &str, login: &RedisConnectionInfo) -> Result<Client, String> {
    let address = sentinel.get_connection_info().addr();
    let asking = async {
        let settings = AsyncConnectionConfig::new().set_connection_timeout(Some(SENTINEL_LIMIT));
        let mut connection = sentinel.get_multiplexed_async_connection_with_config(&settings).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(name);
        question.query_async::<Option<(String, u16)>>(&mut connection).await
    };
    let answer = timeout(SENTINEL_LIMIT, asking).await;
    let answer = answer.map_err(|_| format!("the sentinel {address} does not answer"))?;
    let master = answer.map_err(|why| format!("the sentinel {address}: {}", words(&why)))?;
    let (host, port) =
        master.ok_or_else(|| format!("the sentinel {address} watches no {name:?}; check broker.sentinel"))?;
    client_at(sentinel, &host, port, login)
}
