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
mod channel_states;
mod client;
mod cluster;
mod context;
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

use self::context::Context;
use self::servers::Servers;
pub(super) use self::settings::servers;
use self::shards::{Routed, Shard, route};
use self::table::Table;
use self::task::Task;
use super::reconnect::stay_connected;
use super::sink::{EventSink, WhenFull};
use super::{BrokerError, Command, Event, Link, StoredCommand};
use crate::protocol::topic::Filter;

/// How long a connection may take, TLS and AUTH included.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long the server may be silent while it owes an answer. Messages count as activity: an answer can only come after
/// the messages that the server had queued before it.
const SILENCE_LIMIT: Duration = Duration::from_secs(4);

/// How long an answer may take while messages keep arriving.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// A PING is sent this long after the last answer: the server may close a connection that is idle for longer (`timeout`,
/// in whole seconds). With [`SILENCE_LIMIT`], a dead connection is detected within 5 s.
const PING_AFTER: Duration = Duration::from_secs(1);

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
        let sender = events.clone();
        let serve = move |node, shard, orders| {
            tokio::spawn(streams::run(node, Some(shard), separator, orders, sender.clone()));
        };
        let (cluster, sender) = (cluster.clone(), events.clone());
        tokio::spawn(route(cluster.clone(), Link::Stored, separator, stored, sender.clone(), serve));
        let serve = move |node, shard, orders| {
            tokio::spawn(run(node, Some(shard), separator, orders, sender.clone()));
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
    let link = shard.is_none().then_some(Link::Pubsub);
    let context = Context {
        servers,
        table: Table::new(separator),
        commands,
        sink: EventSink::new(events, link, WhenFull::Drop),
        shard: shard.map(Arc::new),
        is_down: false,
    };
    let _ = stay_connected(&mut Task::new(context)).await;
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
