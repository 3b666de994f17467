//! Redis publish/subscribe: `SUBSCRIBE` for a topic, `PSUBSCRIBE` for a pattern, `PUBLISH` on a connection of its own.
//!
//! The client library neither reconnects a pub/sub connection, nor notices one that went dead, nor bounds the messages
//! it holds for us. All three are done here: a session loop with back-off, a PING whenever nothing else was asked for
//! a while, and a loop that takes messages whether or not anyone wants them, dropping and marking what does not fit.
//!
//! It knows one server at a time, which sentinels may name (`servers.rs`). In a cluster that is any node, to which the
//! cluster's bus brings every message, and for sharded publish/subscribe there is a task of this kind for each master
//! (`shards.rs`). Redis Streams are read beside it, on connections of their own (`streams.rs`).

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

/// How long the server may say nothing while an answer is awaited. A message counts as a word too: an answer can only
/// come after the messages that the server had queued before it.
const SILENCE_LIMIT: Duration = Duration::from_secs(4);

/// How long an answer may take though messages go on arriving.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// A PING follows the last answer by this. With [`SILENCE_LIMIT`], a dead connection is noticed within 8 s.
const PING_AFTER: Duration = Duration::from_secs(4);

/// The first wait before connecting again, doubled up to the cap.
const BACKOFF_START: Duration = Duration::from_millis(50);
const BACKOFF_CAP: Duration = Duration::from_secs(1);

/// Commands, channels of one command, and messages that are taken at once.
const BATCH: usize = 256;

type ShardCommand = shards::ShardCommand<Command>;

impl Routed for Command {
    /// The channel, and the filter that is subscribed to it.
    type Assignment = (String, Filter);
    const NO_PATTERNS: &'static str =
        "Redis has no patterns of sharded publish/subscribe; name each topic, whose channel is subscribed";

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

/// Starts the tasks that the broker consists of. `sharded` is served in a cluster only.
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

/// Runs until the command channel or the event channel closes. `shard` is which part of a cluster it is for: then the channels
/// are those of sharded publish/subscribe.
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
    // Of the session before this one, none before the first: its end is the reason of what may be lost.
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
        // That of a shard is begun for its first command, which waits for it.
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
        // Jittered: a fleet that lost its server together must not come back in step.
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
    /// No connection, or not in time, or not for us.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The stream of messages ended: the server or the network closed the connection. The library does not say why.
    #[error("the connection was closed")]
    Closed,
    /// An answer did not come, nor anything else.
    #[error("the server does not answer")]
    Silent,
    /// What was given to it may not have come over the bus; and it may be the node that we are connected to, which then
    /// answers and hears of nothing any more.
    #[error("a master has left the cluster")]
    Departed,
    /// Nobody is left to serve.
    #[error("stopped")]
    Stopped,
}
