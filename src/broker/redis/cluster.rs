//! The topology of a Redis Cluster: which node serves which slot. It is refreshed once per second, and whenever a
//! redirect shows that it is old.
//!
//! Any node reports it (`CLUSTER SLOTS`), but its view may be old. Each node also reports its epoch (`CLUSTER INFO`,
//! `cluster_current_epoch`), so a table is never replaced by an older one. Commands to the shards go through
//! `shards.rs`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, RedisError, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::CONNECT_LIMIT;
use super::answers::{is_answer, words};
use super::client::client_at;

/// The number of slots of a cluster.
const SLOTS: u16 = 16384;

/// How often a node is asked. This detects moves that no redirect shows, such as for a key that does not exist yet.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// The shortest time between two refreshes, however many redirects there are.
const REFRESH_AFTER: Duration = Duration::from_millis(50);

/// How long a node may take to connect and to answer.
const REFRESH_LIMIT: Duration = Duration::from_secs(2);

/// How long the node that answered last may take to answer again. After that, all nodes are asked at once,
const AGAIN_LIMIT: Duration = Duration::from_millis(500);

/// and for this long after the first good answer, another node may have a newer one.
const BETTER_LIMIT: Duration = Duration::from_millis(200);

/// How long a table is not replaced by an older one. If no node has a newer one by then, the cluster was created again.
const OLD_LIMIT: Duration = Duration::from_secs(10);

/// The slot of a key or channel: CRC-16/XMODEM of it, or of the text in its first braces (Redis Cluster specification,
/// "Hash tags").
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = hashed.bytes().fold(0_u16, |crc, byte| {
        (0..8)
            .fold(crc ^ u16::from(byte) << 8, |crc, _| crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    });
    crc % SLOTS
}

/// The address of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::broker) struct Address {
    host: Arc<str>,
    port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Which master has which slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    /// First and last slot, ascending, and the master that has them.
    ranges: Vec<(u16, u16, Address)>,
    /// The masters. Those without slots are not known here.
    masters: BTreeSet<Address>,
}

impl Slots {
    /// The master that serves a key; `None` if no master does.
    pub(super) fn master_of(&self, key: &str) -> Option<&Address> {
        let slot = slot_of(key);
        let next = self.ranges.partition_point(|(first, ..)| *first <= slot);
        let (_, last, master) = self.ranges.get(next.checked_sub(1)?)?;
        (slot <= *last).then_some(master)
    }

    pub(super) fn is_master(&self, address: &Address) -> bool {
        self.masters.contains(address)
    }

    /// Parses an answer to `CLUSTER SLOTS` from the node at `sender`.
    fn read(answer: Value, sender: &str) -> Option<Self> {
        let Value::Array(answer) = answer else { return None };
        let mut ranges = Vec::with_capacity(answer.len());
        for range in answer {
            let Value::Array(parts) = range else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else {
                return None;
            };
            let [host, Value::Int(port), ..] = &master[..] else { return None };
            let host = match host {
                Value::BulkString(host) if !host.is_empty() => std::str::from_utf8(host).ok()?,
                _ => sender, // a node that does not know its own address means the address of the connection
            };
            let address = Address { host: host.into(), port: u16::try_from(*port).ok()? };
            // `?` is a node without a known address (`cluster-preferred-endpoint-type hostname` without a hostname).
            if host != "?" {
                ranges.push((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, address));
            }
        }
        ranges.sort();
        let masters = ranges.iter().map(|(.., master)| master.clone()).collect();
        Some(Slots { ranges, masters })
    }
}

/// The current view of the cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// The newest table so far.
    pub(super) slots: Option<Arc<Slots>>,
    /// Why there is no newer table, or why it is unreliable, in one line.
    pub(super) trouble: Option<String>,
    /// The number of masters that have left the table since the start.
    pub(super) departed: u64,
}

impl View {
    /// Whether there is any result yet.
    pub(super) fn is_known(&self) -> bool {
        self.slots.is_some() || self.trouble.is_some()
    }
}

/// A handle to the view. The task that refreshes it ends with the last handle.
#[derive(Clone)]
pub(in crate::broker) struct Cluster {
    view: watch::Receiver<View>,
    elsewhere: Arc<Notify>,
    /// One of the configured addresses, whose login applies to every node.
    like: Client,
}

impl Cluster {
    /// Starts the task that refreshes the view, beginning with the configured nodes.
    pub(super) fn start(like: Client, seeds: Vec<Client>) -> Self {
        let (sender, view) = watch::channel(View::default());
        let elsewhere = Arc::new(Notify::new());
        let cluster = Cluster { view, elsewhere, like };
        tokio::spawn(Watcher::new(cluster.like.clone(), seeds, sender).run(cluster.elsewhere.clone()));
        cluster
    }

    pub(super) fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Requests a refresh, because of a redirect or a lost node.
    pub(super) fn refresh_topology(&self) {
        self.elsewhere.notify_one();
    }

    /// A client of a node.
    ///
    /// # Errors
    /// Why the client cannot be created, in one line.
    pub(super) fn client(&self, address: &Address) -> Result<Client, String> {
        client_at(&self.like, &address.host, address.port, self.like.get_connection_info().redis_settings())
    }

    /// A client of a random master, so that many gateways are spread over them.
    ///
    /// # Errors
    /// Why no master is known, in one line.
    pub(super) async fn any(&self) -> Result<Client, String> {
        let mut view = self.view();
        let view =
            view.wait_for(View::is_known).await.map_err(|_| "the task has stopped".to_owned())?.clone();
        let masters: Vec<_> = view.slots.iter().flat_map(|slots| &slots.masters).collect();
        match fastrand::choice(masters) {
            Some(master) => self.client(master),
            None => Err(view.trouble.unwrap_or_else(|| "the cluster serves no slots".into())),
        }
    }
}

/// The answer of one node.
struct NodeView {
    slots: Slots,
    epoch: u64,
    /// Whether it reports that the cluster works.
    is_well: bool,
}

struct Watcher {
    like: Client,
    seeds: Vec<Client>,
    view: watch::Sender<View>,
    /// The epoch of the newest table, and when it was last confirmed.
    epoch: u64,
    heard: Instant,
    /// The connection to the node that answered last.
    connected: Option<(Client, MultiplexedConnection)>,
}

impl Watcher {
    fn new(like: Client, seeds: Vec<Client>, view: watch::Sender<View>) -> Self {
        Watcher { like, seeds, view, epoch: 0, heard: Instant::now(), connected: None }
    }

    async fn run(mut self, elsewhere: Arc<Notify>) {
        loop {
            let begun = Instant::now();
            let view = self.node_view().await;
            self.publish(view);
            tokio::select! {
                () = sleep_until(begun + REFRESH_EVERY) => {}
                () = elsewhere.notified() => sleep_until(begun + REFRESH_AFTER).await,
                () = self.view.closed() => return,
            }
        }
    }

    /// Asks the node that answered last; if it does not answer or reports a failure, asks all others.
    async fn node_view(&mut self) -> Result<NodeView, String> {
        if let Some((client, connection)) = self.connected.take()
            && let Ok(Ok((view, connection))) = timeout(AGAIN_LIMIT, ask(&client, Some(connection))).await
            && view.is_well
            && view.epoch >= self.epoch
        {
            self.connected = Some((client, connection));
            return Ok(view);
        }
        let slots = self.view.borrow().slots.clone();
        let settings = self.like.get_connection_info().redis_settings();
        let known = slots.iter().flat_map(|slots| &slots.masters);
        let known = known.filter_map(|at| client_at(&self.like, &at.host, at.port, settings).ok());
        let clients: Vec<Client> = self.seeds.iter().cloned().chain(known).collect();
        let asking = clients.iter().map(async |client| (client, ask(client, None).await));
        let mut asking: FuturesUnordered<_> = asking.collect();
        let mut best: Option<(NodeView, Client, MultiplexedConnection)> = None;
        let (mut until, mut why) = (Instant::now() + REFRESH_LIMIT * 2, None);
        while let Ok(Some((client, answer))) = timeout_at(until, asking.next()).await {
            match answer {
                Ok((view, connection)) => {
                    if view.is_well {
                        until = until.min(Instant::now() + BETTER_LIMIT);
                    }
                    let rank = |view: &NodeView| (view.is_well, view.epoch);
                    if best.as_ref().is_none_or(|(best, ..)| rank(&view) > rank(best)) {
                        best = Some((view, client.clone(), connection));
                    }
                }
                Err(error) => why = Some(error),
            }
        }
        let Some((view, client, connection)) = best else {
            return Err(why.unwrap_or_else(|| "no node of the cluster is known".into()));
        };
        self.connected = Some((client, connection));
        Ok(view)
    }

    fn publish(&mut self, found: Result<NodeView, String>) {
        self.view.send_if_modified(|view| {
            let trouble = match &found {
                Ok(node) if node.is_well => None,
                Ok(_) => Some("the cluster is down: its nodes say cluster_state:fail".to_owned()),
                Err(why) => Some(why.clone()),
            };
            let mut is_new = view.trouble != trouble;
            view.trouble = trouble;
            if let Ok(NodeView { slots, epoch, .. }) = found
                && (epoch >= self.epoch || self.heard.elapsed() > OLD_LIMIT)
            {
                (self.epoch, self.heard) = (epoch, Instant::now());
                if view.slots.as_deref() != Some(&slots) {
                    let before = view.slots.iter().flat_map(|before| &before.masters);
                    view.departed += before.filter(|master| !slots.is_master(master)).count() as u64;
                    view.slots = Some(Arc::new(slots));
                    is_new = true;
                }
            }
            is_new
        });
    }
}

/// Asks one node, on the existing connection or a new one.
async fn ask(
    client: &Client,
    connection: Option<MultiplexedConnection>,
) -> Result<(NodeView, MultiplexedConnection), String> {
    let address = client.get_connection_info().addr();
    let asking = async {
        let mut connection = match connection {
            Some(connection) => connection,
            None => {
                let settings = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_LIMIT))
                    .set_response_timeout(Some(REFRESH_LIMIT));
                client.get_multiplexed_async_connection_with_config(&settings).await?
            }
        };
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
        let answers = pipeline.ignore_errors().query_async::<[Result<Value, RedisError>; 2]>(&mut connection);
        Ok::<_, RedisError>((answers.await?, connection))
    };
    let answer = timeout(REFRESH_LIMIT, asking).await;
    let answer =
        answer.map_err(|_| format!("cannot connect: {address}: no answer within {REFRESH_LIMIT:?}"))?;
    let ([info, slots], connection) =
        answer.map_err(|why| format!("cannot connect: {address}: {}", words(&why)))?;
    let slots = slots.map_err(|why| match why.detail() {
        Some(detail) if is_answer(&why) && detail.contains("cluster support disabled") => {
            format!("{address} is not a node of a Redis Cluster; remove broker.cluster")
        }
        _ => format!("{address}: {}", words(&why)),
    })?;
    let host = match address {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
        _ => "127.0.0.1", // the configuration accepts no other kind
    };
    let slots = Slots::read(slots, host).ok_or_else(|| format!("{address}: no answer to CLUSTER SLOTS"))?;
    // It works without this permission too, but without the epoch.
    let info = info.ok().and_then(|info| redis::from_redis_value::<String>(info).ok()).unwrap_or_default();
    let value =
        |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'));
    let epoch = value("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok((NodeView { slots, epoch, is_well: value("cluster_state") != Some("fail") }, connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_computed_as_the_specification_says() {
        assert_eq!(slot_of("123456789"), 0x31C3);
        assert_eq!(slot_of("{user1000}.following"), slot_of("{user1000}.followers"));
        assert_eq!(slot_of("foo{{bar}}zap"), slot_of("{bar"));
        assert_eq!(slot_of("foo{bar}{zap}"), slot_of("bar"));
        assert_ne!(slot_of("foo{}{bar}"), slot_of("bar"), "the first braces count, though they are empty");
    }

    #[test]
    fn a_slot_that_nobody_serves_has_no_master() {
        let node = |port| {
            Value::Array(vec![
                Value::BulkString(b"h".to_vec()),
                Value::Int(port),
                Value::BulkString(b"id".to_vec()),
            ])
        };
        let range = |first, last, port| Value::Array(vec![Value::Int(first), Value::Int(last), node(port)]);
        let here = i64::from(slot_of("a"));
        let slots =
            Slots::read(Value::Array(vec![range(here, here, 7), range(0, here - 1, 6)]), "x").unwrap();
        assert_eq!(slots.master_of("a").map(|master| master.port), Some(7));
        assert_eq!(slots.master_of("{b}").map(|master| master.port), Some(6), "{}", slot_of("b"));
        let slots = Slots::read(Value::Array(vec![range(here + 1, 16383, 7)]), "x").unwrap();
        assert_eq!(slots.master_of("a"), None);
        let unnamed = Value::Array(vec![
            Value::Int(0),
            Value::Int(16383),
            Value::Array(vec![Value::Nil, Value::Int(1)]),
        ]);
        let slots = Slots::read(Value::Array(vec![unnamed]), "h0").unwrap();
        assert_eq!(slots.master_of("a").unwrap().to_string(), "h0:1");
    }
}
