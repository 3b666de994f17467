//! The server of the process: build (bind, or fail with a reason), run until stopped, drain under a deadline.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::descriptors;
use super::first_look;
use super::reload::Reloader;
use crate::auth::Auth;
use crate::broker::{Broker, EVENT_CAPACITY, Event};
use crate::config::Config;
use crate::gateway::runtime::Runtime;
use crate::gateway::{CONSOLE_STREAMS, Gateway};
use crate::http::{self, Acceptor};
use crate::ingest::backfill::{Backfill, Lookups};
use crate::ingest::encoder::Encoder;
use crate::ingest::status::Upstreams;
use crate::ingest::{Ingest, Throttles};
use crate::log::{BACKFILL_CAPACITY, Registry};
use crate::metrics::{Limit, Metrics};
use crate::net::tls::{CERTIFICATE_CHECK, Tls};
use crate::protocol::codes::CloseCode;
use crate::protocol::event_id::{Epoch, Sequence};
use crate::reader::clock::TICK;
use crate::traces::{Export, Traces};

/// The accept queue of a listener in the system. When thousands of clients reconnect at once and it is full, the others
/// retry after one second, then three, then seven. The system caps it (Linux: `net.core.somaxconn`).
const BACKLOG: u32 = 65_535;

/// How often old entries are removed and gauges are updated.
const SWEEP: Duration = Duration::from_secs(1);

/// While draining, streams are closed in steps of this length, and at least this many per step.
const DRAIN_STEP: Duration = Duration::from_millis(50);
const DRAIN_BATCH: usize = 32;

/// How often the drain checks whether the connections have ended, once no stream is left.
const CLOSING_STEP: Duration = Duration::from_millis(5);

/// How long the trace collector may take for the last spans. Nothing else waits by then.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// Why the gateway could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// An address could not be bound.
    #[error("{key} = \"{address}\": cannot listen there: {source}{}", instead(source.kind()))]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Settings that cannot work, or files that cannot be used: each with its key, one per line.
    #[error("{}", .0.join("\n"))]
    Settings(Vec<String>),
}

/// Everything that is built from a configuration before its listeners.
struct Prepared {
    config: Config,
    metrics: Arc<Metrics>,
    auth: Auth,
    tls: Option<Arc<Tls>>,
    traces: Traces,
    export: Option<Export>,
    broker: Broker,
    events: mpsc::Receiver<Event>,
}

impl Prepared {
    /// Reads every file that the configuration names. To be called within a runtime; connections begin when it runs.
    fn new(config: Config) -> Result<Self, BuildError> {
        let metrics = Arc::new(Metrics::new());
        let mut faults = vec![];
        let auth = Auth::new(&config, &metrics).map_err(|error| faults.push(error.to_string())).ok();
        let tls = config.tls.clone().map(|files| Tls::load(files, metrics.clone()));
        let tls = tls.transpose().map_err(|error| faults.push(error.to_string())).ok();
        let traces = match &config.traces {
            None => Some((Traces::default(), None)),
            Some(settings) => Traces::new(settings, &config.broker, &metrics)
                .map(|(traces, export)| (traces, Some(export)))
                .map_err(|problem| faults.push(problem))
                .ok(),
        };
        let (sender, events) = mpsc::channel(EVENT_CAPACITY);
        let broker =
            Broker::start(&config.broker, sender).map_err(|error| faults.push(error.to_string())).ok();
        let (Some(auth), Some(tls), Some((traces, export)), Some(broker)) = (auth, tls, traces, broker)
        else {
            return Err(BuildError::Settings(faults));
        };
        Ok(Prepared { config, metrics, auth, tls: tls.map(Arc::new), traces, export, broker, events })
    }
}

/// Checks whether a start with this configuration would get as far as its listeners, without connecting to anything.
/// For `topicgate check`; to be called within a runtime that never runs.
///
/// # Errors
/// [`BuildError::Settings`].
pub fn check(config: Config) -> Result<(), BuildError> {
    Prepared::new(config).map(drop)
}

/// What to do when an address cannot be bound.
fn instead(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => "; another process uses this port: stop it, or choose another port",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need a privilege (CAP_NET_BIND_SERVICE); choose a higher port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no interface of this machine has this address; use one that it has, or 0.0.0.0"
        }
        _ => "",
    }
}

/// A gateway whose listeners are bound, and which is not running yet. The [crate] documentation has an example.
#[derive(Debug)]
pub struct Server {
    gateway: Arc<Gateway>,
    public: TcpListener,
    admin: TcpListener,
    /// The most connections of the public listener.
    connections: usize,
    tls: Option<Arc<Tls>>,
    tasks: JoinSet<()>,
    export: Option<Export>,
}

impl Server {
    /// For tests: sets by how many readers a batch must be read before a topic is compressed.
    #[doc(hidden)]
    pub fn set_crowd(&self, readers: u32) {
        self.gateway.set_crowd(readers);
    }

    /// Binds the listeners and starts to connect to the broker. A broker that is away is not an error.
    /// Call it within a tokio runtime.
    ///
    /// # Errors
    /// An address cannot be bound, or a file that the configuration names cannot be used.
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let prepared = Prepared::new(config)?;
        let Prepared { config, metrics, auth, tls, traces, export, broker, events } = prepared;
        let public = bind("listen", config.listen)?;
        let admin = bind("admin.listen", config.admin.listen)?;
        metrics.set_bound(Limit::BrokerEvents, EVENT_CAPACITY as u64);
        metrics.set_bound(Limit::AdminConnections, http::ADMIN_CONNECTIONS as u64);
        metrics.set_bound(Limit::ConsoleStreams, CONSOLE_STREAMS as u64);
        let (asks, asks_receiver) = mpsc::channel(BACKFILL_CAPACITY);
        // The gateway sets the bounds of the logs.
        let registry = Registry::new(Sequence::new(Epoch::random()), 0, 0, asks);
        let max_message = Arc::new(AtomicUsize::new(0));
        let (upstream, upstream_receiver) = watch::channel(Upstreams::new());
        let encoder = Encoder::new(metrics.clone(), max_message.clone());
        let ingest = Ingest {
            registry: registry.clone(),
            metrics: metrics.clone(),
            encoder: encoder.clone(),
            upstream,
            traces: traces.clone(),
            throttles: Throttles::default(),
        };
        let (lookups, lookups_receiver) = Lookups::new();
        let connections = descriptors::connections(&config);
        let current = Runtime::new(config, auth, registry.clone(), metrics.clone());
        let gateway = Gateway::new(current, broker.clone(), lookups, upstream_receiver, traces, max_message);
        metrics.set_bound(Limit::Connections, connections as u64);
        let backfill = Backfill { registry, broker, encoder, clients: gateway.clients().clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(ingest.run(events));
        tasks.spawn(backfill.run(asks_receiver, lookups_receiver));
        tasks.spawn(gateway.clone().give_up_idle());
        tasks.spawn(every(TICK, gateway.clone(), |gateway| gateway.table().tick()));
        tasks.spawn({
            let gateway = gateway.clone();
            async move { gateway.table().ticks().run().await }
        });
        tasks.spawn(every(SWEEP, gateway.clone(), Gateway::sweep));
        if gateway.current().config.has_first_look {
            tasks.spawn(first_look::run(gateway.clone()));
        }
        if let Some(tls) = &tls {
            tasks.spawn(every(CERTIFICATE_CHECK, tls.clone(), Tls::reload_if_changed));
        }
        Ok(Server { gateway, public, admin, connections, tls, tasks, export })
    }

    /// The address for browsers, with the real port if the configured one is 0.
    ///
    /// # Errors
    /// The system's error.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// The address of probes and metrics.
    ///
    /// # Errors
    /// The system's error.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The handle that applies a new configuration while the server runs.
    pub fn reloader(&self) -> Reloader {
        Reloader::new(self.gateway.clone(), self.tls.clone())
    }

    /// Serves until `shutdown` completes, then drains. Ends within the drain window, however many streams are open.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let gateway = self.gateway.clone();
        let closing = CancellationToken::new();
        let public = Acceptor {
            router: http::public(gateway.clone(), self.public.local_addr().ok()),
            listener: self.public,
            gateway: gateway.clone(),
            tls: self.tls,
            public: true,
            max_connections: self.connections,
            limit: Limit::Connections,
            closing: closing.clone(),
        };
        let admin = Acceptor {
            router: http::admin(gateway.clone(), self.admin.local_addr().ok(), closing.clone()),
            listener: self.admin,
            gateway: gateway.clone(),
            tls: None,
            public: false,
            max_connections: http::ADMIN_CONNECTIONS,
            limit: Limit::AdminConnections,
            closing: closing.clone(),
        };
        self.tasks.spawn(public.run());
        self.tasks.spawn(admin.run());
        let stop_export = CancellationToken::new();
        let mut export = JoinSet::new();
        if let Some(task) = self.export {
            export.spawn(task.run(stop_export.clone()));
        }
        shutdown.await;
        drain(&gateway, &closing).await;
        self.tasks.shutdown().await;
        stop_export.cancel();
        let _ = tokio::time::timeout(LAST_SPANS, export.join_next()).await;
    }
}

fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, BuildError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // So that a restart can bind again at once, despite old connections in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| BuildError::Listen { key, address, source })
}

async fn every<T>(period: Duration, subject: Arc<T>, work: fn(&T)) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        work(&subject);
    }
}

/// Closes the streams in small batches over four fifths of the drain window, so that the clients do not all reconnect
/// to the other replicas at once. The last fifth is for pending writes. Until then both listeners answer: new clients
/// are refused for now, and probes learn that the gateway is not ready. Once no stream is left, the connections close:
/// open requests are answered, and HTTP/2 writes the ends of its streams.
async fn drain(gateway: &Gateway, closing: &CancellationToken) {
    gateway.start_draining();
    let (begin, window) = (Instant::now(), gateway.current().config.drain);
    let steps = (window.mul_f64(0.8).as_millis() / DRAIN_STEP.as_millis()).max(1) as usize;
    let batch = gateway.table().len().div_ceil(steps).max(DRAIN_BATCH);
    tracing::info!(streams = gateway.table().len(), ?window, "draining");
    while !gateway.table().is_empty() && begin.elapsed() < window {
        gateway.table().close(batch, CloseCode::Draining);
        tokio::time::sleep(DRAIN_STEP).await;
    }
    closing.cancel();
    while gateway.metrics().connections.get() > 0 && begin.elapsed() < window {
        tokio::time::sleep(CLOSING_STEP).await;
    }
    tracing::info!(left = gateway.table().len(), took = ?begin.elapsed(), "drained");
}
