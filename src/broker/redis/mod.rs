//! Redis publish/subscribe: `SUBSCRIBE` for a topic, `PSUBSCRIBE` for a pattern, `PUBLISH` on a separate connection.
//!
//! The client library does not reconnect a pub/sub connection, detect a dead one, or bound the messages that it
//! buffers. All three are done here: a session loop with back-off, a PING after a while without other commands, and a
//! loop that always takes messages, and drops and marks those that do not fit.
//!
//! It uses one server at a time, which sentinels may name (`servers.rs`). In a cluster, this is any node, because the
//! cluster's bus brings every message to all nodes; for sharded publish/subscribe there is one such task per master
//! (`shards.rs`). Redis Streams are in `streams`, with their own connections.

mod answers;
mod client;
mod cluster;
mod migrating;
mod outbox;
mod publisher;
mod push;
mod servers;
mod session;
mod settings;
mod shard_channels;
mod shards;
mod streams;
mod table;
mod task;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use self::servers::Servers;
use self::session::establish;
pub(super) use self::settings::servers;
use self::shards::{Routed, Shard, route};
use self::task::Task;
use super::{BrokerError, Command, Event, Link, StoredCommand};
use crate::protocol::topic::Filter;

/// How long a connection may take, TLS and AUTH included.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long the server may be silent while it owes an answer. Messages count as activity: an answer can only come after
/// the messages that the server had queued before it.
const SILENCE_LIMIT: Duration = Duration::from_secs(4);

/// How long an answer may take while messages keep arriving.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// A PING is sent this long after the last answer. With [`SILENCE_LIMIT`], a dead connection is detected within 8 s.
const PING_AFTER: Duration = Duration::from_secs(4);

/// The first pause before reconnecting, doubled up to the cap.
const BACKOFF_START: Duration = Duration::from_millis(50);
const BACKOFF_CAP: Duration = Duration::from_secs(1);

/// The most commands, channels of one command, and messages that are handled at once.
const BATCH: usize = 256;

type ShardCommand = shards::ShardCommand<Command>;

impl Routed for Command {
    /// A shard channel and its filter.
    type Assignment = (String, Filter);
    const NO_PATTERNS: &'static str = "Redis has no patterns for sharded publish/subscribe; name each topic";

    fn filter(&self) -> Filter {
        match self {
            Command::Subscribe { filter, .. } | Command::Unsubscribe { filter } => filter.clone(),
            Command::Publish { topic, .. } => Filter::from(topic.clone()),
        }
    }

    fn unsubscribe_again(&self) -> Option<Self> {
        let Command::Unsubscribe { filter } = self else { return None };
        Some(Command::Unsubscribe { filter: filter.clone() })
    }

    fn fail(self, why: BrokerError) {
        match self {
            Command::Subscribe { done, .. } | Command::Publish { done, .. } => drop(done.send(Err(why))),
            Command::Unsubscribe { .. } => {}
        }
    }

    fn name_of((channel, _): &Self::Assignment) -> &str {
        channel
    }
}

/// Starts the tasks of the broker. `sharded` is served only in a cluster.
pub(super) fn start(
    servers: Servers,
    separator: char,
    commands: mpsc::Receiver<Command>,
    sharded: mpsc::Receiver<Command>,
    stored: mpsc::Receiver<StoredCommand>,
    events: mpsc::Sender<Event>,
) {
    if let Servers::Cluster(cluster) = &servers {
        let told = events.clone();
        let serve = move |node, shard, orders| {
            tokio::spawn(streams::run(node, Some(shard), separator, orders, told.clone()));
        };
        let (cluster, told) = (cluster.clone(), events.clone());
        tokio::spawn(route(cluster.clone(), Link::Stored, separator, stored, told.clone(), serve));
        let serve = move |node, shard, orders| {
            tokio::spawn(run(node, Some(shard), separator, orders, told.clone()));
        };
        tokio::spawn(route(cluster, Link::Sharded, separator, sharded, events.clone(), serve));
    } else {
        tokio::spawn(streams::run(servers.clone(), None, separator, stored, events.clone()));
    }
    tokio::spawn(run(servers, None, separator, commands, events));
}

/// Runs until the command channel or the event channel closes. With `shard`, it serves that shard of a cluster, and the
/// channels are shard channels.
async fn run<C: Into<ShardCommand>>(
    servers: Servers,
    shard: Option<Shard>,
    separator: char,
    commands: mpsc::Receiver<C>,
    events: mpsc::Sender<Event>,
) {
    let (is_shard, shard) = (shard.is_some(), shard.map(Arc::new));
    let mut task = Task::new(shard, servers.view(), separator, commands, events);
    let mut backoff = BACKOFF_START;
    // How the previous session ended, if there was one: the reason of a possible loss.
    let mut before: Option<String> = None;
    let mut why = "connecting".to_string();
    let mut is_first = true;
    loop {
        let (channels, globs) = task.begin();
        let establishing = async {
            let client = servers.find().await.map_err(SessionEnd::Unreachable)?;
            let session = establish(&client, is_shard, channels, globs).await?;
            Ok((client, session))
        };
        // The first session of a shard begins with its first command, which waits for it.
        let established = if is_first && is_shard {
            Some(establishing.await)
        } else {
            task.while_down(establishing, &why).await
        };
        is_first = false;
        let Some(established) = established else {
            return;
        };
        let end = match established {
            Err(end) => end,
            Ok((client, session)) => {
                let started = Instant::now();
                let end = task.serve(&client, session, before.as_deref()).await;
                before = Some(end.to_string());
                if started.elapsed() >= BACKOFF_CAP {
                    backoff = BACKOFF_START;
                }
                end
            }
        };
        if matches!(end, SessionEnd::Stopped) {
            return;
        }
        why = end.to_string();
        task.down(&why);
        // With jitter, so that many gateways that lost their server at once do not reconnect in step.
        let wait = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
        backoff = (backoff * 2).min(BACKOFF_CAP);
        if task.while_down(sleep(wait), &why).await.is_none() {
            return;
        }
    }
}

/// Why a session ended.
#[derive(Debug, Error)]
enum SessionEnd {
    /// The connection failed, timed out or was refused.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The server or the network closed the connection. The library does not say why.
    #[error("the connection was closed")]
    Closed,
    /// Neither an answer nor anything else arrived.
    #[error("the server does not answer")]
    Silent,
    /// Messages that it received may not have come over the bus. It may also be the node that we are connected to,
    /// which then still answers but receives nothing any more.
    #[error("a master has left the cluster")]
    Departed,
    /// The gateway is shutting down.
    #[error("stopped")]
    Stopped,
}
