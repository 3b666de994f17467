//! Two gateways behind one nginx are replaced one after the other under load, as docs/operations.md says: stored messages
//! come once and in order, and live topics have a gap wherever something is missing.
#![cfg(unix)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::eventually;
use crate::common::front::{Front, Kind};
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::ports::free_port;
use crate::common::process::Process;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Half of them on what is stored.
const READERS: usize = 300;

/// How long all of it may take after the second replacement.
const WHOLE: Duration = Duration::from_secs(60);

struct Scene {
    front: Front,
    /// The number that ends a reader, once it is known.
    last: AtomicU64,
    reconnects: AtomicU64,
    gaps: AtomicU64,
}

impl Scene {
    /// One reader through all of it.
    async fn read(self: Arc<Self>, topic: &'static str) {
        let is_stored = topic == "orders/eu";
        // The first number may be any: the reader comes while it is published.
        let (mut last_id, mut next, mut told, mut rewound) = (String::new(), None, false, false);
        loop {
            let headers = [("last-event-id", last_id.as_str())];
            let headers = if last_id.is_empty() { &[][..] } else { &headers };
            let path = format!("/topics/{topic}");
            let mut reader = self.front.open_from(Ipv4Addr::LOCALHOST, &path, headers).await;
            while let Ok(Some(event)) = reader.try_next().await {
                match event.event.as_str() {
                    "stream-open" | "stream-close" => {}
                    "stream-gap" => {
                        assert!(!is_stored, "a gap though nothing was lost: {event:?} after {next:?}");
                        self.gaps.fetch_add(1, Ordering::Relaxed);
                        told = true;
                        rewound |= event.data.contains("restarted") || event.data.contains("unknown_id");
                    }
                    _ => {
                        let number: u64 = event.data.parse().unwrap();
                        let expected = next.unwrap_or(number);
                        assert!(
                            number <= expected || told,
                            "LOST IN SILENCE: {number} instead of {expected}"
                        );
                        assert!(number >= expected || rewound, "TWICE: {number} instead of {expected}");
                        (next, told, rewound) = (Some(number + 1), false, false);
                    }
                }
                if next > Some(self.last.load(Ordering::Relaxed)) {
                    return;
                }
            }
            // A stream that was refused for now has no id; the browser keeps the one that it has.
            if !reader.last_id.is_empty() {
                last_id = reader.last_id;
            }
            self.reconnects.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(fastrand::u64(20..200))).await;
        }
    }
}

async fn gateway(config: &Path, port: u16) -> Process {
    let listen = format!("127.0.0.1:{port}");
    let process = Process::with(&["--config", config.to_str().unwrap(), "--listen", &listen], &[]).await;
    eventually("it is ready", async || process.readyz().await.status == 200).await;
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_behind_a_proxy_are_replaced_under_load_and_every_loss_is_reported() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("gateway.toml");
    let toml = format!(
        "{}drain = \"2s\"\nbroker.url = \"{}\"\nlimits.opens_per_second = 10000\n\
         [[topics]]\nmatch = \"orders/**\"\nsource = \"jetstream\"\nread = \"anyone\"\n\
         [[topics]]\nmatch = \"prices/**\"\nread = \"anyone\"\n\
         [[topics]]\nmatch = \"up\"\nread = \"anyone\"\n",
        Kind::Nginx.gateway_toml(),
        server.url()
    );
    std::fs::write(&config, toml).unwrap();
    let ports = [free_port(), free_port()];
    let mut gateways = [gateway(&config, ports[0]).await, gateway(&config, ports[1]).await];
    let addresses: Vec<SocketAddr> = gateways.iter().map(|process| process.address).collect();
    let scene = Arc::new(Scene {
        front: Front::before(Kind::Nginx, &addresses).await,
        last: AtomicU64::new(u64::MAX - 1),
        reconnects: AtomicU64::new(0),
        gaps: AtomicU64::new(0),
    });
    let published = Arc::new(AtomicU64::new(0));
    let publishing = tokio::spawn({
        let (published, client) = (published.clone(), admin.client.clone());
        async move {
            loop {
                let number = published.fetch_add(1, Ordering::Relaxed).to_string();
                for subject in ["orders.eu", "prices.eu"] {
                    client.publish(subject, number.clone().into()).await.unwrap();
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let mut readers = JoinSet::new();
    for index in 0..READERS {
        readers.spawn(scene.clone().read(["orders/eu", "prices/eu"][index % 2]));
    }
    let streams = async |process: &Process| process.metric("topicgate_streams{http=\"1.1\"}").await;
    eventually("all are open", async || {
        streams(&gateways[0]).await + streams(&gateways[1]).await >= READERS as f64
    })
    .await;

    for index in [0, 1] {
        let port = ports[index];
        let old = &gateways[index];
        old.signal("TERM");
        eventually("it ends", async || !old.runs()).await;
        gateways[index] = gateway(&config, port).await;
        // The other one has all of them now; the new one gets those of the next drain.
        sleep(Duration::from_millis(300)).await;
    }
    scene.last.store(published.load(Ordering::Relaxed), Ordering::Relaxed);
    let all = async {
        while let Some(reader) = readers.join_next().await {
            let said = || format!("{}\n{}", gateways[0].log(), gateways[1].log());
            reader.unwrap_or_else(|error| panic!("{error}; the gateways said\n{}", said()));
        }
    };
    timeout(WHOLE, all).await.expect("every reader has the last number");
    publishing.abort();
    // Each was on one of the two, and both were replaced.
    assert!(scene.reconnects.load(Ordering::Relaxed) >= READERS as u64);
    assert!(scene.gaps.load(Ordering::Relaxed) > 0, "what is not stored has gaps");
}
