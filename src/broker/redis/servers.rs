//! Chooses the server to connect to: the one of `broker.url`, the master that its sentinels name, or a node of a
//! cluster.

use super::client::client_at;
use std::time::Duration;

use futures_util::future::{FutureExt, select_ok};
use redis::{AsyncConnectionConfig, Client, RedisConnectionInfo};
use tokio::sync::watch;
use tokio::time::timeout;

use super::answers::words;
use super::cluster::{Address, Cluster, View};

/// The timeout of a sentinel, connecting included. All are asked at once.
const SENTINEL_LIMIT: Duration = Duration::from_secs(2);

/// The configured servers. The choice is made again for every connection: a failover ends the old connection, because
/// the server died, or because the sentinels made it a replica and closed its connections.
#[derive(Clone)]
pub(in crate::broker) enum Servers {
    One(Client),
    Sentinels {
        /// The name of the master that they watch.
        name: String,
        sentinels: Vec<Client>,
        /// The login for the servers that they name.
        login: RedisConnectionInfo,
    },
    /// Any node of a cluster. Commands for a certain shard go through `shards.rs`.
    Cluster(Cluster),
    /// This node of a cluster.
    Node(Cluster, Address),
}

impl Servers {
    /// Finds the server to connect to.
    ///
    /// # Errors
    /// Why no server is known, in one line without secrets.
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

    /// The view of the cluster, if any node of it will do.
    pub(super) fn view(&self) -> Option<watch::Receiver<View>> {
        match self {
            Servers::Cluster(cluster) => Some(cluster.view()),
            Servers::One(_) | Servers::Sentinels { .. } | Servers::Node(..) => None,
        }
    }

    /// Whether the server must be a master.
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
    let (host, port) = master
        .ok_or_else(|| format!("the sentinel {address} does not watch {name:?}; check broker.sentinel"))?;
    client_at(sentinel, &host, port, login)
}
