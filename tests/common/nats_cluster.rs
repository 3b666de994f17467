//! Three `nats-server`s that are one cluster, on loopback, with JetStream.

use std::net::TcpListener;

use serde_json::Value;

use super::jetstream::Admin;
use super::nats::NatsServer;
use super::{LIMIT, found};

/// The nodes are named n0, n1 and n2.
pub struct NatsCluster {
    pub nodes: Vec<NatsServer>,
}

impl NatsCluster {
    /// Waits until the nodes have agreed on a leader.
    pub async fn start() -> Self {
        // Held until all are known, so that no two are the same.
        let held: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|held| held.local_addr().unwrap().port()).collect();
        drop(held);
        let routes: Vec<_> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let routes = routes.join(", ");
        let start = |(index, port): (usize, &u16)| {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let store = directory.path().join("jetstream");
            let config = format!(
                "server_name: n{index}\njetstream {{ store_dir: {store:?} }}\n\
                 cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
            );
            NatsServer::inside(directory, &config)
        };
        let cluster = NatsCluster { nodes: ports.iter().enumerate().map(start).collect() };
        found("the cluster has a leader", LIMIT * 2, async || {
            let agrees = |node: &NatsServer| {
                let meta = node.monitor("/jsz")["meta_cluster"].clone();
                meta["leader"].as_str().is_some_and(|leader| !leader.is_empty()) && meta["cluster_size"] == 3
            };
            cluster.nodes.iter().all(agrees).then_some(())
        })
        .await;
        cluster
    }

    /// All nodes, as `broker.url` names them.
    pub fn url(&self) -> String {
        self.nodes.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// Somebody who stays connected to whichever node is there.
    pub async fn admin(&self) -> Admin {
        let servers: Vec<_> = self.nodes.iter().map(NatsServer::url).collect();
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        Admin { client: options.connect(servers).await.unwrap() }
    }

    /// The node that leads a stream.
    pub async fn leader(&self, admin: &Admin, stream: &str) -> usize {
        found("the stream has a leader", LIMIT * 2, async || {
            let asked = admin.client.request(format!("$JS.API.STREAM.INFO.{stream}"), "{}".into());
            let answer = tokio::time::timeout(std::time::Duration::from_secs(2), asked).await.ok()?.ok()?;
            let info: Value = serde_json::from_slice(&answer.payload).ok()?;
            info["cluster"]["leader"].as_str()?.strip_prefix('n')?.parse().ok()
        })
        .await
    }

    /// A node that topicgate is connected to.
    pub fn of_topicgate(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.is_running() && !node.subscriptions().is_empty())
    }
}
