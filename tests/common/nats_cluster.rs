//! Three `nats-server`s that are one cluster, on loopback, with JetStream.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::jetstream::Admin;
use super::nats::NatsServer;
use super::ports::Port;
use super::slow::Slow;
use super::{LIMIT, found};

/// The nodes are named n0, n1 and n2.
pub struct NatsCluster {
    pub nodes: Vec<NatsServer>,
    /// Where they listen for each other.
    _ports: Vec<Port>,
}

impl NatsCluster {
    /// Waits until the nodes have agreed on a leader.
    pub async fn start() -> Self {
        let ports: Vec<_> = (0..3).map(|_| Port::reserve()).collect();
        let route = |port: &Port| format!("\"nats://127.0.0.1:{}\"", port.number);
        let routes: Vec<_> = ports.iter().map(route).collect();
        let routes = routes.join(", ");
        let start = |(index, port): (usize, &Port)| {
            let port = port.number;
            let directory = tempfile::tempdir().expect("a temporary directory");
            let store = directory.path().join("jetstream");
            let config = format!(
                "server_name: n{index}\njetstream {{ store_dir: {store:?} }}\n\
                 cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
            );
            NatsServer::inside(directory, &config)
        };
        let cluster = NatsCluster { nodes: ports.iter().enumerate().map(start).collect(), _ports: ports };
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

    /// A client that stays connected to any node that runs.
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

/// `nats-server`s that are one cluster without JetStream, whose routes are slow.
pub struct SlowCluster {
    pub nodes: Vec<NatsServer>,
    /// Through which the others reach each node.
    pub routes: Vec<Slow>,
    /// Where they listen for each other.
    _ports: Vec<Port>,
}

impl SlowCluster {
    /// Waits until each node knows each other one.
    pub async fn start(count: usize, delay: Duration) -> Self {
        Self::start_with(count, delay, "").await
    }

    /// With more lines of configuration for each node.
    pub async fn start_with(count: usize, delay: Duration, extra: &str) -> Self {
        let ports: Vec<_> = (0..count).map(|_| Port::reserve()).collect();
        let mut routes = Vec::new();
        for port in &ports {
            routes.push(Slow::start(([127, 0, 0, 1], port.number).into(), delay).await);
        }
        let nodes = ports.iter().enumerate().map(|(index, port)| {
            let port = port.number;
            let others = routes.iter().enumerate().filter(|(other, _)| *other != index);
            let others: Vec<_> = others.map(|(_, slow)| format!("\"nats://{}\"", slow.address)).collect();
            // Other servers also connect through the proxy.
            NatsServer::with(&format!(
                "server_name: n{index}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", \
                 advertise: \"{}\", routes: [{}] }}\n{extra}",
                routes[index].address,
                others.join(", ")
            ))
        });
        let cluster = SlowCluster { nodes: nodes.collect(), routes, _ports: ports };
        cluster.whole().await;
        cluster
    }

    /// Waits until each node that runs has a route to each other one that does.
    pub async fn whole(&self) {
        found("the routes are there", LIMIT * 2, async || {
            let running: Vec<_> = self.nodes.iter().filter(|node| node.is_running()).collect();
            running.iter().all(|node| known(node) == running.len() - 1).then_some(())
        })
        .await;
    }

    /// Cuts the routes from and to a node, and waits until it is alone.
    pub async fn cut(&self, node: usize) {
        // Each route is made by either side, so all others go with it.
        self.routes.iter().for_each(Slow::cut);
        found("the node is alone", LIMIT, async || (known(&self.nodes[node]) == 0).then_some(())).await;
    }

    pub fn heal(&self) {
        self.routes.iter().for_each(Slow::heal);
    }

    /// The node that topicgate is connected to.
    pub fn of_topicgate(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.is_running() && !node.subscriptions().is_empty())
    }
}

/// How many other nodes a node has a route to.
fn known(node: &NatsServer) -> usize {
    let routes = node.monitor("/routez")["routes"].clone();
    let names = routes.as_array().into_iter().flatten().map(|route| route["remote_name"].to_string());
    names.collect::<BTreeSet<_>>().len()
}
