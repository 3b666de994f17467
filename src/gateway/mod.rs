//! The gateway as HTTP sees it: opens a stream, publishes a message, reports its readiness.
//!
//! Here the parts meet: it applies rules and limits, takes leases from the registry, and subscribes to the broker. It
//! knows neither requests nor sockets.

mod apply;
mod inspect;
mod open;
mod publish;
mod refusals;
pub mod runtime;
pub mod samples;
mod warm;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

pub use self::inspect::{CONSOLE_STREAMS, StreamState, Wanted};
pub use self::open::{OpenError, Opening};
pub use self::publish::{MessageAttributes, PublishError};
use self::refusals::Refusals;
use self::runtime::Runtime;
use self::samples::History;
use self::warm::Warm;
use crate::broker::Broker;
use crate::config::Rule;
use crate::ingest::backfill::Lookups;
use crate::ingest::status::{Upstream, Upstreams};
use crate::log::message::FieldMapping;
use crate::log::{Bounds, Idle, Registry};
use crate::metrics::throttle::Throttle;
use crate::metrics::{Limit, Metrics};
use crate::protocol::codes::CloseCode;
use crate::protocol::topic::Filter;
use crate::reader::connections::{Connections, CountedAddress};
use crate::reader::quota::{Clients, Publishing};
use crate::stream::outcome::OutcomeLog;
use crate::stream::table::Table;
use crate::traces::Traces;

/// How long the broker may take to confirm before the client is refused and reconnects later.
const BROKER_TIMEOUT: Duration = Duration::from_secs(8);

/// How often the gateway looks for topics without readers.
const IDLE_STEP: Duration = Duration::from_secs(1);

/// Topics that are released while the lock is held once.
const GIVEN_UP_AT_ONCE: usize = 128;

/// How long to wait when the broker's command queue is full.
const BROKER_FULL_STEP: Duration = Duration::from_millis(5);

/// One gateway: the parts of the process, and the runtime in force.
#[derive(Debug)]
pub struct Gateway {
    current: RwLock<Arc<Runtime>>,
    broker: Broker,
    lookups: Lookups,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    why: Arc<OutcomeLog>,
    /// The largest message that ingest accepts.
    max_message: Arc<AtomicUsize>,
    /// The rules that are kept warm.
    warm: Mutex<HashMap<Filter, Warm>>,
    table: Arc<Table>,
    clients: Arc<Clients>,
    connections: Connections,
    upstream: watch::Receiver<Upstreams>,
    traces: Traces,
    draining: AtomicBool,
    /// Topics that the broker does not allow the gateway to read.
    denied: Arc<Refusals>,
    /// Limits the log lines about messages that the broker did not confirm.
    unconfirmed: Throttle,
    /// Limits the log lines about addresses that have reached a limit.
    crowded: Throttle,
    /// Likewise about connections of such an address that were closed.
    disconnected: Throttle,
    /// The broker's limit on messages for which the log line about a too large `limits.message` was written.
    reported_largest: AtomicUsize,
    /// [`crate::auth::Auth::withdrawals`] when the open streams were last checked.
    withdrawals: AtomicU64,
    history: History,
}

impl Gateway {
    /// Puts the parts together. Warm topics are subscribed in the background, with retries until the broker confirms.
    pub fn new(
        current: Arc<Runtime>,
        broker: Broker,
        lookups: Lookups,
        upstream: watch::Receiver<Upstreams>,
        traces: Traces,
        max_message: Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let table = Table::new(current.config.limits.streams);
        let clients = Clients::new(&current.config.limits, table.clock());
        let gateway = Arc::new(Gateway {
            current: RwLock::new(current.clone()),
            broker,
            lookups,
            registry: current.streams.registry.clone(),
            metrics: current.streams.metrics.clone(),
            why: current.streams.why.clone(),
            max_message,
            warm: Mutex::default(),
            table,
            clients,
            connections: Connections::default(),
            upstream,
            traces,
            draining: AtomicBool::new(false),
            denied: Arc::default(),
            unconfirmed: Throttle::default(),
            crowded: Throttle::default(),
            disconnected: Throttle::default(),
            reported_largest: AtomicUsize::new(usize::MAX),
            withdrawals: AtomicU64::default(),
            history: History::default(),
        });
        gateway.put_limits(&current.config);
        gateway.keep_warm(&current.config.topics);
        gateway
    }

    /// The current configuration, and everything that is built from it.
    pub fn current(&self) -> Arc<Runtime> {
        self.current.read().clone()
    }

    /// The metrics of this gateway.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Writes the log lines about refusals and ended streams.
    pub fn why(&self) -> &OutcomeLog {
        &self.why
    }

    /// The open streams.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The quotas of the clients.
    pub fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    /// A random reconnection delay for a client, in milliseconds.
    pub fn jittered_retry(&self) -> u64 {
        self.current().streams.jittered_retry()
    }

    /// The topics that the broker does not allow the gateway to read now, with the reasons.
    pub fn denied(&self) -> Vec<(Filter, String)> {
        self.denied.list()
    }

    /// The traces of this gateway.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Counts a connection against its address, until [`Gateway::disconnect`]. `None`: the address has reached its
    /// limit, and the connection must be closed.
    pub fn connect(&self, address: IpAddr) -> Option<CountedAddress> {
        let counted = self.connections.enter(address);
        if counted.is_none() {
            self.metrics().hit(Limit::ConnectionsPerAddress);
            if let Some(others) = self.disconnected.turn() {
                let hint = self.proxy_hint();
                tracing::warn!(
                    %address,
                    others,
                    "a connection was closed at once: its address has reached limits.connections_per_address{hint}"
                );
            }
        }
        counted
    }

    /// Called when a counted connection has ended.
    pub fn disconnect(&self, address: CountedAddress) {
        self.connections.leave(address);
    }

    /// Counts a request to open a stream against its address. To be called first, before a signature is checked or a
    /// backend is asked.
    ///
    /// # Errors
    /// The code of the temporary refusal.
    pub fn admit(&self, address: IpAddr) -> Result<(), CloseCode> {
        if self.is_draining() {
            return Err(CloseCode::Draining);
        }
        self.clients.admit(address).inspect_err(|code| {
            self.metrics().hit_by_client(*code);
            self.warn_of_limit(address, *code);
        })
    }

    /// Counts a request to publish against its address. To be called first; the value is to be kept until the request
    /// is done.
    ///
    /// # Errors
    /// The code of the temporary refusal.
    pub fn knock_to_publish(&self, address: IpAddr) -> Result<Publishing, CloseCode> {
        self.clients.publish(address).inspect_err(|code| self.warn_of_limit(address, *code))
    }

    /// Warns of a limit per address: a proxy that `proxies.trusted` does not name makes all its clients appear as one.
    fn warn_of_limit(&self, address: IpAddr, code: CloseCode) {
        let of_address =
            matches!(code, CloseCode::TooManyStreams | CloseCode::TooManyTopics | CloseCode::TooFast);
        if !of_address || !self.crowded.allows() {
            return;
        }
        let (code, hint) = (code.as_str(), self.proxy_hint());
        tracing::warn!(
            %address,
            code,
            "a client was refused for now: its address has reached a limit of [limits]{hint}"
        );
    }

    /// The end of a log line about an address that has reached a limit.
    fn proxy_hint(&self) -> &'static str {
        if self.current().config.proxies.trusted.is_empty() {
            ". If this is the address of a proxy, all its clients count as one: add its network to proxies.trusted"
        } else {
            ""
        }
    }

    /// Whether the gateway accepts new streams.
    ///
    /// # Errors
    /// The reason why it does not, in one line for `/readyz`.
    pub fn ready(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("draining".into());
        }
        match self.upstream.borrow().all() {
            // Every replica misses the same part, so all of them would be taken out of service.
            Upstream::Up | Upstream::Partly(_) => Ok(()),
            Upstream::Down(why) => Err(format!("broker away: {why}")),
        }
    }

    /// See [`Registry::set_crowd`].
    pub fn set_crowd(&self, readers: u32) {
        self.registry.set_crowd(readers);
    }

    /// From now on, no stream is opened.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Releases topics without readers once they have lingered long enough, for as long as the process runs: a few at a
    /// time, and no faster than the broker takes the commands.
    pub async fn give_up_idle(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE_STEP).await;
            let Idle { due, lingering } = self.registry.idle(|address| self.clients.may_linger(address));
            self.metrics().topics_lingering.set(lingering as i64);
            let mut left = &due[..];
            let begin = Instant::now();
            // The rest is looked up again next time: readers may have come.
            while !left.is_empty() && begin.elapsed() < IDLE_STEP {
                let slice = &left[..left.len().min(GIVEN_UP_AT_ONCE)];
                let done = self.registry.give_up_idle(slice, |filter, source| {
                    self.broker.try_unsubscribe(filter.clone(), source)
                });
                left = &left[done..];
                if done < slice.len() {
                    tokio::time::sleep(BROKER_FULL_STEP).await;
                } else {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Removes old entries from the logs, ends the streams of keys that were withdrawn, and updates the gauges. To be
    /// called every second.
    pub fn sweep(&self) {
        let gave_way = self.registry.age();
        if gave_way {
            self.metrics().hit(Limit::Buffer);
        }
        let (topics, bytes) = (self.registry.topics(), self.registry.bytes());
        let usage = self.clients.sweep();
        let metrics = self.metrics();
        metrics.sweep_rules();
        metrics.topics.set(topics as i64);
        metrics.buffer_bytes.set(bytes as i64);
        metrics.compressors.set(self.registry.compressors() as i64);
        metrics.addresses.set(usage.addresses as i64);
        metrics.subjects.set(usage.subjects as i64);
        metrics.topics_stale.set(self.registry.stale_topics() as i64);
        metrics.sources_refused.set(self.denied.list().len() as i64);
        metrics.ready.set(i64::from(self.ready().is_ok()));
        for (limit, used) in [
            (Limit::Streams, self.table.len()),
            (Limit::StreamsPerAddress, usage.most_of_address),
            (Limit::StreamsPerSubject, usage.most_of_subject),
            (Limit::Connections, usize::try_from(metrics.connections.get()).unwrap_or_default()),
            (Limit::ConnectionsPerAddress, self.connections.most()),
            (Limit::Topics, topics),
            (Limit::TopicsPerAddress, usage.most_topics_of_address),
            (Limit::Bodies, usage.bodies),
            (Limit::Buffer, bytes),
            (Limit::Addresses, usage.addresses),
        ] {
            metrics.set_used(limit, used);
        }
        self.warn_of_small_broker();
        self.revoke_withdrawn();
        self.history.push(self.sample());
    }

    /// Logs once that publishers may send larger messages than the broker accepts.
    fn warn_of_small_broker(&self) {
        let (largest, message) = (self.broker.largest_message(), self.current().config.limits.message);
        let is_less = (largest as u64) < message;
        let now = if is_less { largest } else { usize::MAX };
        if self.reported_largest.swap(now, Ordering::Relaxed) != now && is_less {
            tracing::warn!(
                largest,
                message,
                "the broker takes messages of at most {largest} bytes with their header fields (max_payload of NATS), less than \
                 limits.message; publishers of larger ones get 413. Lower limits.message, or raise the broker's limit"
            );
        }
    }
}

fn log_settings(rule: &Rule, metrics: &Metrics) -> (Bounds, Arc<FieldMapping>) {
    let replay = &rule.replay;
    let bounds = Bounds {
        messages: replay.messages,
        bytes: usize::try_from(replay.bytes).unwrap_or(usize::MAX),
        age: replay.age,
        linger: replay.linger,
        rule: metrics.rule(&rule.pattern()),
    };
    let fields = FieldMapping {
        source: rule.source.clone(),
        id: rule.id.clone(),
        kind: rule.kind.clone(),
        data: rule.data.clone(),
        end: rule.end.clone(),
    };
    (bounds, Arc::new(fields))
}

/// Whether a rule is subscribed as a whole from the start. Sources with one subscription per rule always are: a
/// subscription per topic would cost the broker one consumer each.
fn is_warm(rule: &Rule) -> bool {
    rule.replay.warm || rule.source.is_shared()
}
