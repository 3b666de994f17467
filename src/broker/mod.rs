//! Brokers: the sources of messages. Each is a folder behind the contract below, and the types of client libraries stay
//! inside it.
//!
//! A broker is a task that takes [`Command`]s from one bounded channel and answers with [`Event`]s on another. It knows
//! no logs, streams or HTTP, and assigns no positions.
//!
//! What every broker guarantees (and `tests/it/brokers.rs` checks against each):
//!
//! - **Confirmed.** `Subscribe` is answered `Ok` only once the server has acted on it: what anyone publishes afterwards
//!   arrives as an [`Event::Message`]. In a NATS cluster, where other servers learn of it later, the answer waits for that.
//! - **Ordered.** Messages of one topic keep their order within a filter. Commands take effect in the order sent.
//! - **Once per filter.** A message arrives once for each subscribed filter that matches it, and names that filter. A
//!   message whose subject the filter does not match is dropped here; a message whose subject is not a valid topic
//!   becomes [`Event::Unnameable`].
//! - **No silent loss.** Wherever the client library or the server can drop messages (a full channel, a slow-consumer
//!   cut, a lost connection), [`Event::Lost`] follows on the same channel, after the last message from before the loss
//!   and before the first one after it, and after the subscription is whole again, so that a reader that fetches the
//!   state again when it sees the gap misses nothing.
//! - **Self-healing.** A lost connection is [`Event::Down`], then reconnected with back-off (capped at one second, so
//!   that delivery is back within two of the server's return), every filter subscribed again, then [`Event::Lost`] for
//!   all of them and [`Event::Up`]. A silently dead connection is detected within 15 s. While down, `Subscribe` and
//!   `Publish` are answered [`BrokerError::Away`] at once; `Unsubscribe` works. Before the first connection, commands
//!   wait until it has been tried. With Redis Streams they also wait up to a second for a reconnection. For sharded
//!   publish/subscribe, each node has its own connection with its own filters, and only those are lost with it.
//! - **Bounded.** Back-pressure on the event channel becomes [`Event::Lost`], never growing memory.
//! - It ends when the command channel closes.

mod backoff;
mod memory;
mod nats;
mod reconnect;
mod redis;
mod sink;
mod stored;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use self::stored::{
    Acknowledgement, Change, FETCH_BYTES, FETCH_MESSAGES, Fetched, Stored, StoredCommand,
};
use crate::config::{self, BrokerKind};
use crate::protocol::event_id::Tag;
use crate::protocol::headers::Headers;
pub use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::{Filter, Topic};

/// The most commands that wait for the broker's task. If the queue is full, senders wait.
const COMMAND_CAPACITY: usize = 1024;

/// Places in that queue that are reserved for commands with an answer, while many topics are unsubscribed at once.
const LEFT_FREE: usize = COMMAND_CAPACITY / 2;

/// The most events that wait for ingest. Memory is allocated only as the queue fills.
pub const EVENT_CAPACITY: usize = 16 * 1024;

/// One message as a broker delivered it.
#[derive(Debug, Clone)]
pub struct Message {
    /// The subscribed filter by which it arrived.
    pub filter: Filter,
    /// The topic on which it was published.
    pub topic: Topic,
    /// The payload: arbitrary bytes.
    pub payload: Bytes,
    /// Its header fields.
    pub headers: Headers,
    /// Its number in the broker, if the source is stored.
    pub stored: Option<Stored>,
}

/// The connections to a broker, which go up and down independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The connection of plain publish/subscribe.
    Pubsub,
    /// The connection of stored sources ([`StoredCommand`]), created when it is first needed.
    Stored,
    /// The connections of sharded publish/subscribe to the nodes of a Redis Cluster, created when they are first
    /// needed.
    Sharded,
}

/// An event of a broker.
#[derive(Debug)]
pub enum Event {
    /// A message of a subscribed filter.
    Message(Message),
    /// Messages of `filters` (of every filter of plain publish/subscribe if `None`) may be missing at this place.
    Lost {
        /// The filters concerned; `None` is every subscribed filter of plain publish/subscribe.
        filters: Option<Vec<Filter>>,
        /// The reason for the log, in one line.
        why: String,
    },
    /// A message arrived by `filter` on a subject that is not a valid topic. It cannot be passed on.
    Unnameable {
        /// The subscribed filter by which it arrived.
        filter: Filter,
    },
    /// A stored filter is followed from here on: later messages have higher numbers than `head`. Sent before
    /// `Subscribe` is answered.
    Begun {
        /// The subscribed filter.
        filter: Filter,
        /// The tag of the stored source, the same in every replica.
        tag: Tag,
        /// The last number that the broker had given when this began.
        head: Seq,
        /// When the broker stored the message with that number, by its own clock; later messages are not older. If there
        /// is none yet: in a Redis Stream the time at which that was so, if it is known, and otherwise 1970.
        time: SystemTime,
    },
    /// Stored messages of `filter` up to the number `through` were deleted before they could be read.
    Gone {
        /// The subscribed filter concerned.
        filter: Filter,
        /// Higher than every number before, lower than every number that follows.
        through: Seq,
        /// The reason for the log, in one line.
        why: String,
    },
    /// The stored source of a filter was deleted, or another one has its name. The filter is no longer subscribed;
    /// subscribing again starts over.
    Ended {
        /// The filter concerned.
        filter: Filter,
        /// The reason for the log, in one line.
        why: String,
    },
    /// The connection is up and every filter is subscribed.
    Up(Link),
    /// The connection is up except for some of its filters: a shard of a Redis Cluster is away. Sent again when the
    /// reason changes.
    Partly {
        /// Which connection.
        link: Link,
        /// The reason, as in [`Event::Down`].
        why: String,
    },
    /// The connection is down; the broker's task reconnects. Sent again when the reason changes.
    Down {
        /// Which connection.
        link: Link,
        /// The reason for the log and `/readyz`, in one line without secrets.
        why: String,
    },
    /// These filters receive nothing from now on, although the connection of others may be up: their shard of a cluster is
    /// away, or what reads them was interrupted. For plain publish/subscribe, [`Event::Down`] says the same of all
    /// filters.
    Interrupted {
        /// The filters concerned.
        filters: Vec<Filter>,
    },
    /// These filters receive messages again. What may be missing was reported before.
    Resumed {
        /// The filters concerned.
        filters: Vec<Filter>,
    },
    /// The server ended one subscription (a permission was withdrawn). The filter is no longer subscribed.
    Refused {
        /// The filter concerned.
        filter: Filter,
        /// The server's text.
        why: String,
    },
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BrokerError {
    /// The broker is unreachable, or did not confirm in time. It may be back soon.
    #[error("the broker is away: {0}")]
    Away(String),
    /// The broker refused. Trying again does not help.
    #[error("the broker refuses: {0}")]
    Refused(String),
    /// The message cannot be stored as it is. The publisher must change it; nothing was sent to the broker.
    #[error("{0}")]
    Unfit(String),
    /// The message is larger than the broker takes: how large it may be, and by which setting.
    #[error("{0}")]
    TooLarge(String),
}

/// A setting that can never work: its configuration key and what is wrong with it, in one line without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SettingError(pub String);

/// A command to a broker. The receiver of `done` may be gone; that is not an error.
#[derive(Debug)]
pub enum Command {
    /// Subscribe to `filter`. If it is subscribed already, this is confirmed and changes nothing.
    Subscribe {
        /// The filter to subscribe to.
        filter: Filter,
        /// Answered once the server has confirmed or refused.
        done: oneshot::Sender<Result<(), BrokerError>>,
    },
    /// End the subscription of `filter`, if there is one.
    Unsubscribe {
        /// The filter to unsubscribe from.
        filter: Filter,
    },
    /// Publish a message.
    Publish {
        /// The topic of the message.
        topic: Topic,
        /// The payload.
        payload: Bytes,
        /// The header fields. A broker without headers refuses a message that has any.
        headers: Headers,
        /// Answered `Ok` once the server has the message; never before.
        done: oneshot::Sender<Result<(), BrokerError>>,
    },
}

fn unlimited() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(usize::MAX))
}

/// A handle to the broker's task. Cheap to clone; the task ends with the last one.
#[derive(Debug, Clone)]
pub struct Broker {
    commands: mpsc::Sender<Command>,
    /// The task of stored sources; the embedded broker has none.
    stored: Option<mpsc::Sender<StoredCommand>>,
    /// The task of sharded publish/subscribe, which only a Redis Cluster has.
    sharded: Option<mpsc::Sender<Command>>,
    /// Bytes of the largest message that the server takes, as far as it says so.
    largest: Arc<AtomicUsize>,
}

impl Broker {
    /// Starts the broker that the configuration names. A broker that is away is not an error.
    ///
    /// # Errors
    /// Settings that can never work, with their configuration keys.
    pub fn start(config: &config::Broker, events: mpsc::Sender<Event>) -> Result<Self, SettingError> {
        match config.kind() {
            BrokerKind::Memory => Ok(Broker::memory(events)),
            BrokerKind::Nats => Broker::nats(config, events),
            BrokerKind::Redis => Broker::redis(config, events),
        }
    }

    /// Starts the embedded broker: messages go from `publish` to the subscribed filters of this process.
    pub fn memory(events: mpsc::Sender<Event>) -> Self {
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        tokio::spawn(memory::run(receiver, events));
        Broker { commands, stored: None, sharded: None, largest: unlimited() }
    }

    /// Starts the connections to a Redis server. If it is away, they are retried.
    ///
    /// # Errors
    /// Settings or files that can never work.
    pub fn redis(config: &config::Broker, events: mpsc::Sender<Event>) -> Result<Self, SettingError> {
        let servers = redis::servers(config)?;
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (stored, stored_receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (sharded, sharded_receiver) = mpsc::channel(COMMAND_CAPACITY);
        redis::start(servers, config.separator, receiver, sharded_receiver, stored_receiver, events);
        let sharded = config.cluster.then_some(sharded);
        Ok(Broker { commands, stored: Some(stored), sharded, largest: unlimited() })
    }

    /// Starts the connections to NATS. If the server is away, they are retried, and [`Event::Down`] is sent.
    ///
    /// # Errors
    /// Settings that can never work, with their keys: a malformed URL, credentials or certificates that cannot be read.
    pub fn nats(config: &config::Broker, events: mpsc::Sender<Event>) -> Result<Self, SettingError> {
        let settings = nats::Settings::read(config).map_err(SettingError)?;
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (stored, stored_receiver) = mpsc::channel(COMMAND_CAPACITY);
        tokio::spawn(nats::jetstream::run(settings.clone(), stored_receiver, events.clone()));
        let largest = unlimited();
        tokio::spawn(nats::run(settings, receiver, events, largest.clone()));
        Ok(Broker { commands, stored: Some(stored), sharded: None, largest })
    }

    /// Bytes of the largest message that the server takes; `usize::MAX` if it has not said.
    pub fn largest_message(&self) -> usize {
        self.largest.load(Ordering::Relaxed)
    }

    /// Subscribes; returns once the server has confirmed. A stored source is followed then, after [`Event::Begun`].
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`]; the filter is then not subscribed.
    pub async fn subscribe(&self, filter: Filter, source: Source) -> Result<(), BrokerError> {
        match self.task_of(&source)? {
            Task::Passing(task) => call(task, |done| Command::Subscribe { filter, done }).await,
            Task::Stored(task) => call(task, |done| StoredCommand::Subscribe { filter, source, done }).await,
        }
    }

    /// Ends a subscription without waiting. Returns whether the command was queued: `false` means that the queue is
    /// full and the caller should try again later. Ordered against every later `subscribe`.
    pub fn try_unsubscribe(&self, filter: Filter, source: &Source) -> bool {
        match self.task_of(source) {
            Ok(Task::Passing(task)) => is_taken(task, Command::Unsubscribe { filter }),
            Ok(Task::Stored(task)) => is_taken(task, StoredCommand::Unsubscribe { filter }),
            Err(_) => true, // it was never subscribed
        }
    }

    /// Publishes; returns once the server has the message, with its acknowledgement if the source is stored.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn publish(
        &self,
        topic: Topic,
        source: Source,
        payload: Bytes,
        headers: Headers,
    ) -> Result<Option<Acknowledgement>, BrokerError> {
        match self.task_of(&source)? {
            Task::Passing(task) => {
                let command = |done| Command::Publish { topic, payload, headers, done };
                call(task, command).await.map(|()| None)
            }
            Task::Stored(task) => {
                let command = |done| StoredCommand::Publish { topic, source, payload, headers, done };
                call(task, command).await.map(Some)
            }
        }
    }

    /// Reads a range of stored messages.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`].
    pub async fn fetch(
        &self,
        filter: Filter,
        source: Source,
        after: Seq,
        until: Seq,
    ) -> Result<Fetched, BrokerError> {
        let task = self.stored_task(&source)?;
        call(task, |done| StoredCommand::Fetch { filter, source, after, until, done }).await
    }

    /// Finds a position among stored messages.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`].
    pub async fn locate(
        &self,
        filter: Filter,
        source: Source,
        seek: Seek,
    ) -> Result<SeekResult, BrokerError> {
        let task = self.stored_task(&source)?;
        call(task, |done| StoredCommand::Locate { filter, source, seek, done }).await
    }

    /// The last message that is stored of one topic, if there is one.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`].
    pub async fn last(&self, topic: Filter, source: Source) -> Result<Option<Message>, BrokerError> {
        let task = self.stored_task(&source)?;
        call(task, |done| StoredCommand::Last { topic, source, done }).await
    }

    /// The task that serves a source.
    fn task_of(&self, source: &Source) -> Result<Task<'_>, BrokerError> {
        let refused = |why: &str| BrokerError::Refused(why.into());
        match source {
            Source::Pubsub => Ok(Task::Passing(&self.commands)),
            Source::Sharded => {
                let task = self.sharded.as_ref().map(Task::Passing);
                task.ok_or_else(|| refused("only a Redis Cluster has shard channels"))
            }
            Source::JetStream { .. } | Source::Kv { .. } | Source::RedisStream { .. } => {
                let task = self.stored.as_ref().map(Task::Stored);
                task.ok_or_else(|| refused("the embedded broker stores no messages"))
            }
        }
    }

    fn stored_task(&self, source: &Source) -> Result<&mpsc::Sender<StoredCommand>, BrokerError> {
        match self.task_of(source)? {
            Task::Stored(task) => Ok(task),
            Task::Passing(_) => Err(BrokerError::Refused("publish/subscribe stores no messages".into())),
        }
    }
}

/// The command channel of a task.
enum Task<'a> {
    /// It serves publish/subscribe.
    Passing(&'a mpsc::Sender<Command>),
    /// It serves stored messages.
    Stored(&'a mpsc::Sender<StoredCommand>),
}

fn is_taken<C>(commands: &mpsc::Sender<C>, command: C) -> bool {
    // A closed queue accepts everything: its task has ended, and its subscriptions with it.
    commands.is_closed()
        || commands.capacity() > LEFT_FREE
            && !matches!(commands.try_send(command), Err(mpsc::error::TrySendError::Full(_)))
}

async fn call<C, T>(
    commands: &mpsc::Sender<C>,
    command: impl FnOnce(oneshot::Sender<Result<T, BrokerError>>) -> C,
) -> Result<T, BrokerError> {
    let away = |why: &str| BrokerError::Away(why.into());
    let (done, answer) = oneshot::channel();
    commands.send(command(done)).await.map_err(|_| away("its task has stopped"))?;
    answer.await.map_err(|_| away("the connection ended before the answer"))?
}
