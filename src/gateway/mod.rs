//! The gateway as HTTP sees it: opens a stream, publishes a message, reports its readiness.
//!
//! Here the parts meet: it applies rules and limits, takes leases from the registry, and subscribes to the broker. It
//! knows neither requests nor sockets.

mod apply;
mod inspect;
mod refusals;
pub mod runtime;
pub mod samples;
mod warm;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::sync::watch;

pub use self::inspect::{StreamState, Wanted};
use self::refusals::Refusals;
use self::runtime::Runtime;
use self::samples::History;
use self::warm::Warm;
use crate::auth::access::Verdict;
use crate::auth::{Action, Caller};
use crate::broker::{Broker, BrokerError};
use crate::config::Rule;
use crate::ingest::backfill::Lookups;
use crate::ingest::status::{Upstream, Upstreams};
use crate::log::message::{FieldMapping, Format};
use crate::log::{self, Bounds, Idle, Lease, LeaseError, Registry, Subscription};
use crate::metrics::throttle::Throttle;
use crate::metrics::{Limit, Metrics};
use crate::protocol::codes::{CloseCode, HttpVersion};
use crate::protocol::event_id::{MAX_SEQUENCES, entry_event_id};
use crate::protocol::headers::Headers;
use crate::protocol::seek::{SeekResult, Start};
use crate::protocol::source::{Field, Source};
use crate::protocol::topic::{Filter, Topic};
use crate::reader::quota::{Clients, Publishing};
use crate::reader::{Principal, Reader};
use crate::stream::outcome::OutcomeLog;
use crate::stream::table::Table;
use crate::stream::{Stream, StreamOptions};
use crate::traces::{self, Traces};

/// How long the broker may take to confirm before the client is refused and reconnects later.
const BROKER_TIMEOUT: Duration = Duration::from_secs(8);

/// How often the gateway looks for topics without readers.
const IDLE_STEP: Duration = Duration::from_secs(1);

/// Topics that are released while the lock is held once.
const GIVEN_UP_AT_ONCE: usize = 128;

/// How long to wait when the broker's command queue is full.
const BROKER_FULL_STEP: Duration = Duration::from_millis(5);

/// A stream to open.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// Topics and patterns, which do not overlap.
    pub filters: &'a [Filter],
    /// Where the stream begins.
    pub start: &'a Start,
    /// The format of its messages.
    pub format: Format,
    /// The HTTP version by which it is sent.
    pub http: HttpVersion,
    /// The client's address.
    pub address: IpAddr,
    /// The caller, if a rule needed to identify it.
    pub caller: Option<&'a Caller>,
}

/// Why a stream was not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// The caller's permission expired meanwhile.
    Expired,
    /// The request can never succeed as it is: the reason, and what would be right.
    Impossible(String),
    /// Not now: the client should reconnect later.
    ComeBack(CloseCode),
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// No rule allows this caller to publish to this topic.
    #[error("no rule allows you to publish to this topic")]
    NotExposed,
    /// The caller's permission expired meanwhile.
    #[error("your permission has expired")]
    Expired,
    /// The message can never be stored as it is: the reason, and what would be right.
    #[error("{0}")]
    Unfit(String),
    /// The broker did not confirm it.
    #[error(transparent)]
    Broker(BrokerError),
}

/// One gateway: the parts of the process, and what is in force for them.
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
    upstream: watch::Receiver<Upstreams>,
    traces: Traces,
    draining: AtomicBool,
    /// Limits the log lines about topics that the broker refuses: every request for such a topic would write one.
    refusals: Arc<Throttle>,
    /// Topics that the broker does not allow the gateway to read.
    denied: Arc<Refusals>,
    /// Limits the log lines about addresses that have reached a limit.
    crowded: Throttle,
    history: History,
}

impl Gateway {
    /// Puts the parts together. Warm topics are subscribed in the background, with retries until the broker confirms.
    pub fn new(
        current: Arc<Runtime>,
        (broker, lookups): (Broker, Lookups),
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
            upstream,
            traces,
            draining: AtomicBool::new(false),
            refusals: Arc::default(),
            denied: Arc::default(),
            crowded: Throttle::default(),
            history: History::default(),
        });
        gateway.put_limits(&current.config);
        gateway.keep_warm(&current.config.topics);
        gateway
    }

    /// The current configuration, and what is made of it.
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

    /// What each client uses of its limits.
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
            self.tell_of_crowd(address, *code);
        })
    }

    /// Counts a request to publish against its address. To be called first; the value is to be kept until the request
    /// is done.
    ///
    /// # Errors
    /// The code of the temporary refusal.
    pub fn knock_to_publish(&self, address: IpAddr) -> Result<Publishing, CloseCode> {
        self.clients.publish(address).inspect_err(|code| self.tell_of_crowd(address, *code))
    }

    /// Counts the topics that are not held yet: each costs the broker a subscription.
    fn ask_for_new_topics(&self, address: IpAddr, filters: &[Filter]) -> Result<(), OpenError> {
        let new = self.registry.not_held(filters);
        self.clients.ask_for_new_topics(address, new).map_err(|code| {
            let limit = if code == CloseCode::TooFast { Limit::NewTopicsPerSecond } else { Limit::Addresses };
            self.metrics().hit(limit);
            self.tell_of_crowd(address, code);
            OpenError::ComeBack(code)
        })
    }

    /// Opens a stream. Returns once the broker has confirmed every subscription: every message published after that
    /// reaches the stream. All limits are checked before the broker is asked.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&self, opening: Opening<'_>) -> Result<Stream, OpenError> {
        let Opening { filters, start, format, http, address, caller } = opening;
        traces::note_topics(filters.iter());
        if self.is_draining() {
            return Err(OpenError::ComeBack(CloseCode::Draining));
        }
        let begin = Instant::now();
        let current = self.current();
        let overloaded = |limit| {
            self.metrics().hit(limit);
            OpenError::ComeBack(CloseCode::Overloaded)
        };
        let principal = caller
            .map_or(Principal::Anyone, |caller| Principal::Caller(Arc::new(caller.as_reader_of(filters))));
        let ticket = self
            .table
            .enter(Reader { address, principal, http })
            .ok_or_else(|| overloaded(Limit::Streams))?;
        let handle = ticket.handle().clone();
        let seat = self.clients.enter(handle.clone(), filters.len()).map_err(|code| {
            self.metrics().hit_by_client(code);
            self.tell_of_crowd(address, code);
            OpenError::ComeBack(code)
        })?;
        let mut rules = Vec::with_capacity(filters.len());
        for filter in filters {
            // The caller was allowed a moment ago: the configuration has changed since.
            match current.decide(Action::Subscribe, filter, caller) {
                Verdict::Allowed(rule) => rules.push(rule),
                _ => return Err(OpenError::ComeBack(CloseCode::Revoked)),
            }
        }
        is_possible(filters, &rules)?;
        self.ask_for_new_topics(address, filters)?;
        let mut leases = Vec::with_capacity(filters.len());
        for (filter, rule) in filters.iter().zip(&rules) {
            let (bounds, fields) = log_settings(rule, self.metrics());
            let warm = is_warm(rule).then_some(&rule.filter);
            let leased = self.registry.lease(filter, &bounds, &fields, warm);
            let (lease, subscription) = leased.map_err(|error| match error {
                LeaseError::Full => overloaded(Limit::Topics),
                LeaseError::NotFed => OpenError::ComeBack(CloseCode::Unavailable),
            })?;
            if let Some(subscription) = subscription {
                let (broker, source) = (self.broker.clone(), rule.source.clone());
                // A task of its own: other streams may wait for the same subscription, even if this request ends.
                let denied = (self.refusals.clone(), self.denied.clone());
                tokio::spawn(subscribe(broker, source, subscription, denied));
            }
            lease.asked_by(address);
            leases.push(lease);
        }
        let located = async {
            for lease in &leases {
                lease.ready().await?;
            }
            self.locate(address, &leases, &rules, start).await
        };
        let located = tokio::time::timeout(BROKER_TIMEOUT, located)
            .await
            .unwrap_or(Err(CloseCode::Unavailable))
            .map_err(OpenError::ComeBack)?;
        if caller.is_some_and(Caller::is_expired) {
            return Err(OpenError::Expired);
        }
        self.metrics().open_seconds.observe(begin.elapsed().as_secs_f64());
        let terms = StreamOptions { format, expires: caller.and_then(|caller| caller.expires) };
        let stream = Stream::open(current.streams.clone(), ticket, seat, leases, (start, &located), terms);
        // A reload checks the streams that already read; this one may have been opened too late for that.
        let now = self.current();
        if !filters.iter().all(|filter| now.still_lets_read(filter, &handle.reader.principal)) {
            handle.revoke();
        }
        if !Arc::ptr_eq(&now, &current) {
            self.renew_logs(&now, filters);
        }
        Ok(stream)
    }

    /// Asks the broker where the stream begins in its stored messages, for the logs that do not know it themselves.
    async fn locate(
        &self,
        address: IpAddr,
        leases: &[Lease],
        rules: &[&Rule],
        start: &Start,
    ) -> Result<Vec<Option<SeekResult>>, CloseCode> {
        let seeks_needed = log::seeks_needed(leases, start);
        let asked = leases.iter().zip(rules).zip(seeks_needed).map(async |((lease, rule), seek)| {
            let Some(seek) = seek else { return Ok(None) };
            let (filter, source) = (lease.filter().clone(), rule.source.clone());
            let located = self.lookups.find(address, filter, source, seek).await;
            located.map(Some).map_err(|error| match error {
                BrokerError::Refused(why) | BrokerError::Unfit(why) => {
                    note_denied(lease.filter(), &why, &self.refusals, &self.denied);
                    CloseCode::Refused
                }
                BrokerError::Away(why) => {
                    tracing::debug!(
                        topic = lease.filter().as_str(),
                        why,
                        "the start of a stream was not found"
                    );
                    CloseCode::Unavailable
                }
            })
        });
        futures_util::future::try_join_all(asked).await
    }

    /// Warns of a limit per address: a proxy that `proxies.trusted` does not name makes all its clients appear as one.
    fn tell_of_crowd(&self, address: IpAddr, code: CloseCode) {
        let of_address =
            matches!(code, CloseCode::TooManyStreams | CloseCode::TooManyTopics | CloseCode::TooFast);
        if !of_address || !self.crowded.allows() {
            return;
        }
        let code = code.as_str();
        if !self.current().config.proxies.trusted.is_empty() {
            tracing::warn!(%address, code, "a client was refused for now: its address has reached a limit of [limits]");
        } else {
            tracing::warn!(
                %address,
                code,
                "a client was refused for now: its address has reached a limit of [limits]. If this is the address of \
                a \
                 proxy, all its clients count as one: add its network to proxies.trusted"
            );
        }
    }

    /// Publishes a message. Returns once the broker has it.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish(
        &self,
        topic: &Topic,
        caller: Option<&Caller>,
        payload: Bytes,
        id: Option<String>,
        kind: Option<String>,
    ) -> Result<Option<String>, PublishError> {
        let filter = topic.clone().into();
        traces::note_topics([&filter].into_iter());
        let current = self.current();
        let Verdict::Allowed(rule) = current.decide(Action::Publish, &filter, caller) else {
            return Err(PublishError::NotExposed);
        };
        if caller.is_some_and(Caller::is_expired) {
            return Err(PublishError::Expired);
        }
        let given = id.clone();
        let has_headers = current.config.broker.has_headers();
        let mut headers = carried(rule, has_headers, id, kind).map_err(PublishError::Unfit)?;
        self.traces.inject(&mut headers);
        let begin = Instant::now();
        let published = async {
            match &rule.source {
                Source::Pubsub => self.broker.publish(topic.clone(), payload, headers).await.map(|()| given),
                Source::Sharded => {
                    self.broker.publish_sharded(topic.clone(), payload, headers).await.map(|()| given)
                }
                // The id is the entry's own, whether or not anyone reads it.
                source @ Source::RedisStream { .. } => {
                    let number = self.broker.store(topic.clone(), source.clone(), payload, headers).await?;
                    Ok(Some(entry_event_id(number)))
                }
                source @ (Source::JetStream { .. } | Source::Kv { .. }) => {
                    let number = self.broker.store(topic.clone(), source.clone(), payload, headers).await?;
                    Ok(self.registry.event_id(&subscribed_filter(rule, topic), number).or(given))
                }
            }
        };
        let away = || Err(BrokerError::Away("it did not confirm in time".into()));
        tokio::time::timeout(BROKER_TIMEOUT, published)
            .await
            .unwrap_or_else(|_| away())
            .inspect(|_| self.metrics().publish_seconds.observe(begin.elapsed().as_secs_f64()))
            .inspect_err(|error| {
                if let BrokerError::Refused(why) = error
                    && self.refusals.allows()
                {
                    tracing::warn!(topic = topic.as_str(), why, "the broker refused a published message");
                }
            })
            .map_err(|error| match error {
                BrokerError::Unfit(why) => PublishError::Unfit(why),
                error => PublishError::Broker(error),
            })
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
                let done =
                    self.registry.give_up_idle(slice, |filter, source| self.try_unsubscribe(filter, source));
                left = &left[done..];
                if done < slice.len() {
                    tokio::time::sleep(BROKER_FULL_STEP).await;
                } else {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// `false` if the queue is full: the caller tries again later.
    fn try_unsubscribe(&self, filter: &Filter, source: &Source) -> bool {
        match source {
            Source::Pubsub => self.broker.try_unsubscribe(filter.clone()),
            Source::Sharded => self.broker.try_unsubscribe_sharded(filter.clone()),
            Source::JetStream { .. } | Source::Kv { .. } | Source::RedisStream { .. } => {
                self.broker.try_unfollow(filter.clone())
            }
        }
    }

    /// Removes old entries from the logs and updates the gauges. To be called every second.
    pub fn sweep(&self) {
        let gave_way = self.registry.age();
        if gave_way {
            self.metrics().hit(Limit::Buffer);
        }
        let (topics, bytes) = (self.registry.topics(), self.registry.bytes());
        let usage = self.clients.sweep();
        let metrics = self.metrics();
        metrics.topics.set(topics as i64);
        metrics.buffer_bytes.set(bytes as i64);
        metrics.addresses.set(usage.addresses as i64);
        metrics.subjects.set(usage.subjects as i64);
        metrics.sources_refused.set(self.denied.list().len() as i64);
        metrics.ready.set(i64::from(self.ready().is_ok()));
        for (limit, used) in [
            (Limit::Streams, self.table.len()),
            (Limit::StreamsPerAddress, usage.most_of_address),
            (Limit::StreamsPerSubject, usage.most_of_subject),
            (Limit::Connections, usize::try_from(metrics.connections.get()).unwrap_or_default()),
            (Limit::Topics, topics),
            (Limit::TopicsPerAddress, usage.most_topics_of_address),
            (Limit::Bodies, usage.bodies),
            (Limit::Buffer, bytes),
            (Limit::Addresses, usage.addresses),
        ] {
            metrics.set_used(limit, used);
        }
        self.history.push(self.sample());
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
    let fields = FieldMapping { source: rule.source.clone(), id: rule.id.clone(), kind: rule.kind.clone() };
    (bounds, Arc::new(fields))
}

/// The header fields that carry a publisher's id and type; for a Redis Stream, fields of the entry.
///
/// # Errors
/// One of them has no place in a message of this rule: the reason, and what would be right.
fn carried(
    rule: &Rule,
    has_headers: bool,
    id: Option<String>,
    kind: Option<String>,
) -> Result<Headers, String> {
    let mut headers = Headers::default();
    for (what, field, value) in [("id", &rule.id, id), ("type", &rule.kind, kind)] {
        let Some(value) = value else { continue };
        match field {
            Field::Header(name) if has_headers || rule.source.is_stored() => headers.insert(name, value),
            Field::Pointer(pointer) => {
                return Err(format!(
                    "messages of this topic carry their {what} in the payload, at the JSON pointer {pointer}"
                ));
            }
            Field::Nowhere if rule.source.is_stored() => {
                return Err(format!(
                    "the topic's rule has no place for the {what}; name a field of an entry in it, as in \
                     {what} = {{ header = \"{what}\" }}, or a JSON pointer, and put the {what} into the payload"
                ));
            }
            Field::Header(_) | Field::Nowhere => {
                return Err(format!(
                    "this broker's messages have no header fields; name a JSON pointer for the {what} in the topic's \
                    rule, and \
                     put it into the payload"
                ));
            }
        }
    }
    Ok(headers)
}

/// Whether a rule is subscribed as a whole from the start. Sources with one subscription per rule always are: a
/// subscription per topic would cost the broker one consumer each.
fn is_warm(rule: &Rule) -> bool {
    rule.replay.warm || rule.source.is_shared()
}

/// The filter of the subscription that delivers a rule's messages of `topic`.
fn subscribed_filter(rule: &Rule, topic: &Topic) -> Filter {
    if is_warm(rule) { rule.filter.clone() } else { topic.clone().into() }
}

/// Whether one stream can have these topics, apart from what the broker says.
fn is_possible(filters: &[Filter], rules: &[&Rule]) -> Result<(), OpenError> {
    let keys = rules.iter().filter(|rule| matches!(rule.source, Source::RedisStream { .. })).count();
    let mut shared: Vec<&Filter> =
        rules.iter().filter(|rule| rule.source.is_shared()).map(|rule| &rule.filter).collect();
    shared.sort_unstable_by_key(|filter| filter.as_str());
    shared.dedup();
    // Messages of live sources are numbered by the process, in one sequence.
    let passing = usize::from(rules.iter().any(|rule| !rule.source.is_stored()));
    let sequences = keys + shared.len() + passing;
    if sequences > MAX_SEQUENCES {
        return Err(OpenError::Impossible(format!(
            "these topics come from {sequences} stored streams, and the event id of one stream has room for positions \
            in \
             {MAX_SEQUENCES}; use several streams"
        )));
    }
    let mut patterns = filters.iter().zip(rules).filter(|(filter, _)| filter.is_pattern());
    match patterns.find_map(|(filter, rule)| Some((filter, rule.source.only_one_by_one()?))) {
        Some((filter, what)) => Err(OpenError::Impossible(format!(
            "{filter} is a pattern, but {what} can only be read one by one; name each topic as topic="
        ))),
        None => Ok(()),
    }
}

/// Subscribes to `filter` by the commands of its source.
async fn follow(broker: &Broker, source: &Source, filter: Filter) -> Result<(), BrokerError> {
    match source {
        Source::Pubsub => broker.subscribe(filter).await,
        Source::Sharded => broker.subscribe_sharded(filter).await,
        Source::JetStream { .. } | Source::Kv { .. } | Source::RedisStream { .. } => {
            broker.follow(filter, source.clone()).await
        }
    }
}

async fn subscribe(
    broker: Broker,
    source: Source,
    subscription: Subscription,
    (refusals, denied): (Arc<Throttle>, Arc<Refusals>),
) {
    match follow(&broker, &source, subscription.filter().clone()).await {
        Ok(()) => {
            denied.clear(subscription.filter());
            subscription.confirm();
        }
        Err(BrokerError::Away(why)) => {
            tracing::debug!(topic = subscription.filter().as_str(), why, "a subscription failed");
            subscription.fail(CloseCode::Unavailable);
        }
        Err(BrokerError::Refused(why) | BrokerError::Unfit(why)) => {
            note_denied(subscription.filter(), &why, &refusals, &denied);
            subscription.fail(CloseCode::Refused);
        }
    }
}

/// Records that the broker does not allow the gateway to read a topic, for the log and the console.
fn note_denied(filter: &Filter, why: &str, refusals: &Throttle, denied: &Refusals) {
    denied.note(filter, why);
    if refusals.allows() {
        tracing::error!(
            topic = filter.as_str(),
            why,
            "the broker does not allow the gateway to read this topic; check the gateway's permissions or the rule"
        );
    }
}
