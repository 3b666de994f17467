//! Brokers: where messages come from. Each is one file behind the contract below; client-library types stop there.
//!
//! A broker is a task that takes [`Command`]s from one bounded channel and answers with [`Event`]s on another. It knows
//! nothing of logs, streams or HTTP, and assigns no positions.
//!
//! What every broker guarantees (and `tests/it/brokers.rs` checks against each):
//!
//! - **Confirmed.** `Subscribe` is answered `Ok` only once the server has acted on it: what anyone publishes afterwards
//!   arrives as an [`Event::Message`]. In a NATS cluster, where other servers learn of it later, the answer waits for that.
//! - **Ordered.** Messages of one topic keep their order within a filter. Commands take effect in the order sent.
//! - **Once a filter.** A message arrives once for each subscribed filter that matches it, and names that filter. A
//!   message whose subject the filter does not match is dropped here; one that the topic grammar has no name for is told
//!   as [`Event::Unnameable`].
//! - **No silent loss.** Wherever the client library or the server can drop messages (a full channel, a slow-consumer
//!   cut, a lost connection), [`Event::Lost`] follows on the same channel, after the last message from before the loss
//!   and before the first one after it, and after the subscription is whole again, so that a reader who fetches state
//!   anew on seeing it misses nothing.
//! - **Self-healing.** A lost connection is [`Event::Down`], then reconnected with back-off (capped at one second, so
//!   that delivery is back within two of the server's return), every filter subscribed anew, then [`Event::Lost`] for
//!   all of them and [`Event::Up`]. A connection that went dead without a word is noticed within 15 s. While down,
//!   `Subscribe` and `Publish` are answered [`BrokerError::Away`] at once; `Unsubscribe` works. Of sharded publish/subscribe
//!   each node's connection comes and goes with its own filters: those alone are lost.
//! - **Bounded.** Back-pressure on the event channel ends as [`Event::Lost`], never as growing memory.
//! - It ends when the command channel closes.

use crate::protocol::headers::Headers;
mod memory;
mod nats;
mod redis;
mod stored;

use std::time::SystemTime;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use self::stored::{Change, FETCH_BYTES, FETCH_MESSAGES, Fetched, Stored, StoredCommand};
use crate::config::{self, BrokerKind};
use crate::protocol::event_id::Tag;
pub use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::source::Source;
use crate::protocol::topic::{Filter, Topic};

/// Commands that wait for the broker's task. Beyond it senders wait.
const COMMAND_CAPACITY: usize = 1024;

/// Places among them that are left to those who wait for an answer, when many topics are given up at once.
const LEFT_FREE: usize = COMMAND_CAPACITY / 2;

/// Events that wait for ingest. Filled lazily, so the capacity itself costs nothing.
pub const EVENT_CAPACITY: usize = 16 * 1024;

/// One message as a broker delivered it.
#[derive(Debug, Clone)]
pub struct Message {
    /// The subscribed filter it came by.
    pub filter: Filter,
    /// The topic it was published on.
    pub topic: Topic,
    /// The payload, any bytes.
    pub payload: Bytes,
    /// Its header fields.
    pub headers: Headers,
    /// Where the broker keeps it, if it does.
    pub stored: Option<Stored>,
}

/// The connections to a broker: each comes and goes on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// That of plain publish/subscribe.
    Pubsub,
    /// That of what the broker keeps ([`StoredCommand`]). Made when it is first needed.
    Stored,
    /// Those of sharded publish/subscribe, to the nodes of a Redis Cluster. Made when they are first needed.
    Sharded,
}

/// What a broker tells.
#[derive(Debug)]
pub enum Event {
    /// A message of a subscribed filter.
    Message(Message),
    /// Messages of `filters` (of every filter of plain publish/subscribe if `None`) may be missing at this place.
    Lost {
        /// The filters concerned; `None` is all that were subscribed, but for those of sharded publish/subscribe.
        filters: Option<Vec<Filter>>,
        /// Why, for the log: one line.
        why: String,
    },
    /// A message came by `filter` on a subject that the topic grammar has no name for. It cannot be passed on.
    Unnameable {
        /// The subscribed filter it came by.
        filter: Filter,
    },
    /// A stored filter is followed from here on: what comes next has a higher number than `head`. Told before
    /// `Subscribe` is answered.
    Begun {
        /// The subscribed filter.
        filter: Filter,
        /// Names the history it is read from, the same in every replica.
        tag: Tag,
        /// The last number that was given when it began.
        head: u64,
        /// When the broker took what has that number, by its own clock; what comes next is no older. 1970, if it has taken
        /// nothing yet.
        time: SystemTime,
    },
    /// Stored messages of `filter` up to the number `through` were gone before they could be read.
    Gone {
        /// The subscribed filter concerned.
        filter: Filter,
        /// Higher than every number told before, lower than every one that follows.
        through: u64,
        /// Why, for the log: one line.
        why: String,
    },
    /// The history that a stored filter was read from is no more, or another one has its name. The filter is no longer
    /// subscribed; to subscribe again begins anew.
    Ended {
        /// The filter concerned.
        filter: Filter,
        /// Why, for the log: one line.
        why: String,
    },
    /// The connection is up and every filter is subscribed.
    Up(Link),
    /// The connection is up but for some of its filters: a shard of a Redis Cluster is away. Told again when the reason changes.
    Partly {
        /// Which.
        link: Link,
        /// Why, as in [`Event::Down`].
        why: String,
    },
    /// The connection is down; the broker is trying to come back. Told again when the reason changes.
    Down {
        /// Which.
        link: Link,
        /// Why, for the log and for `/readyz`: one line, without secrets.
        why: String,
    },
    /// The server ended one subscription on its own (permissions withdrawn). The filter is no longer subscribed.
    Refused {
        /// The filter concerned.
        filter: Filter,
        /// The server's words.
        why: String,
    },
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BrokerError {
    /// The broker cannot be reached now, or did not confirm in time. It may be back soon.
    #[error("the broker is away: {0}")]
    Away(String),
    /// The broker was reached and said no. Trying again will not help.
    #[error("the broker refuses: {0}")]
    Refused(String),
    /// The message cannot become what the broker keeps. The publisher is to change it; nothing was asked of the broker.
    #[error("{0}")]
    Unfit(String),
}

/// A setting that can never work: its key in the configuration and what is wrong with it, one line, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SettingError(pub String);

/// What a broker is asked to do. `done` receivers may be gone; that is not an error.
#[derive(Debug)]
pub enum Command {
    /// Subscribe to `filter`. Subscribing to one that is subscribed already is confirmed and changes nothing.
    Subscribe {
        /// What to subscribe to.
        filter: Filter,
        /// Answered once the server has confirmed or refused.
        done: oneshot::Sender<Result<(), BrokerError>>,
    },
    /// End the subscription of `filter`, if there is one.
    Unsubscribe {
        /// What to unsubscribe from.
        filter: Filter,
    },
    /// Publish a message.
    Publish {
        /// On which topic.
        topic: Topic,
        /// The payload.
        payload: Bytes,
        /// Header fields. A broker without headers refuses a message that has any.
        headers: Headers,
        /// Answered `Ok` once the server has the message; never before.
        done: oneshot::Sender<Result<(), BrokerError>>,
    },
}

/// A handle to the broker's task. Cheap to clone; the task ends with the last one.
#[derive(Debug, Clone)]
pub struct Broker {
    commands: mpsc::Sender<Command>,
    /// Of the task for what the broker keeps; the embedded one keeps nothing.
    stored: Option<mpsc::Sender<StoredCommand>>,
    /// Of the task for sharded publish/subscribe, which only a Redis Cluster has.
    sharded: Option<mpsc::Sender<Command>>,
}

impl Broker {
    /// Starts the broker that the configuration names. One that is merely away is no error.
    ///
    /// # Errors
    /// What can never work, with the configuration key.
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
        Broker { commands, stored: None, sharded: None }
    }

    /// Starts the connections to a Redis server. One that is away is waited for.
    ///
    /// # Errors
    /// Settings or files that can never work.
    pub fn redis(config: &config::Broker, events: mpsc::Sender<Event>) -> Result<Self, SettingError> {
        let servers = redis::servers(config)?;
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (stored, stored_receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (sharded, sharded_receiver) = mpsc::channel(COMMAND_CAPACITY);
        redis::start(servers, config.separator, receiver, sharded_receiver, stored_receiver, events);
        Ok(Broker { commands, stored: Some(stored), sharded: config.cluster.then_some(sharded) })
    }

    /// Starts the connections to NATS. A server that is merely away is no error: it is retried, and told by [`Event::Down`].
    ///
    /// # Errors
    /// What can never work, with the name of the key: a malformed URL, credentials or certificates that cannot be read.
    pub fn nats(config: &config::Broker, events: mpsc::Sender<Event>) -> Result<Self, SettingError> {
        let settings = nats::Settings::read(config).map_err(SettingError)?;
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        let (stored, stored_receiver) = mpsc::channel(COMMAND_CAPACITY);
        tokio::spawn(nats::jetstream::run(settings.clone(), stored_receiver, events.clone()));
        tokio::spawn(nats::run(settings, receiver, events));
        Ok(Broker { commands, stored: Some(stored), sharded: None })
    }

    /// Subscribes; returns once the server has confirmed.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`]; the filter is then not subscribed.
    pub async fn subscribe(&self, filter: Filter) -> Result<(), BrokerError> {
        call(&self.commands, |done| Command::Subscribe { filter, done }).await
    }

    /// Ends a subscription without waiting. Returns whether the command was taken: `false` means that the channel is
    /// full and the caller should try again later. Ordered against every later `subscribe`.
    pub fn try_unsubscribe(&self, filter: Filter) -> bool {
        is_taken(&self.commands, Command::Unsubscribe { filter })
    }

    /// Publishes; returns once the server has the message.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`].
    pub async fn publish(&self, topic: Topic, payload: Bytes, headers: Headers) -> Result<(), BrokerError> {
        call(&self.commands, |done| Command::Publish { topic, payload, headers, done }).await
    }

    /// Subscribes to a shard channel, as [`Broker::subscribe`].
    ///
    /// # Errors
    /// As [`Broker::subscribe`].
    pub async fn subscribe_sharded(&self, filter: Filter) -> Result<(), BrokerError> {
        self.ask_sharded(|done| Command::Subscribe { filter, done }).await
    }

    /// Ends what [`Broker::subscribe_sharded`] began, as [`Broker::try_unsubscribe`].
    pub fn try_unsubscribe_sharded(&self, filter: Filter) -> bool {
        let command = Command::Unsubscribe { filter };
        self.sharded.as_ref().is_none_or(|sharded| is_taken(sharded, command))
    }

    /// Publishes on a shard channel, as [`Broker::publish`].
    ///
    /// # Errors
    /// As [`Broker::publish`].
    pub async fn publish_sharded(
        &self,
        topic: Topic,
        payload: Bytes,
        headers: Headers,
    ) -> Result<(), BrokerError> {
        self.ask_sharded(|done| Command::Publish { topic, payload, headers, done }).await
    }

    /// Subscribes to what the broker keeps; returns once it is followed, after [`Event::Begun`] was told.
    ///
    /// # Errors
    /// As [`Broker::subscribe`].
    pub async fn follow(&self, filter: Filter, source: Source) -> Result<(), BrokerError> {
        self.ask(|done| StoredCommand::Subscribe { filter, source, done }).await
    }

    /// Ends what [`Broker::follow`] began, as [`Broker::try_unsubscribe`].
    pub fn try_unfollow(&self, filter: Filter) -> bool {
        let command = StoredCommand::Unsubscribe { filter };
        self.stored.as_ref().is_none_or(|stored| is_taken(stored, command))
    }

    /// Stores a message; returns its number.
    ///
    /// # Errors
    /// As [`Broker::publish`].
    pub async fn store(
        &self,
        topic: Topic,
        source: Source,
        payload: Bytes,
        headers: Headers,
    ) -> Result<u64, BrokerError> {
        self.ask(|done| StoredCommand::Publish { topic, source, payload, headers, done }).await
    }

    /// Reads a part of what the broker keeps.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`].
    pub async fn fetch(
        &self,
        filter: Filter,
        source: Source,
        after: u64,
        until: u64,
    ) -> Result<Fetched, BrokerError> {
        self.ask(|done| StoredCommand::Fetch { filter, source, after, until, done }).await
    }

    /// Finds a place in what the broker keeps.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`].
    pub async fn locate(
        &self,
        filter: Filter,
        source: Source,
        place: Seek,
    ) -> Result<SeekResult, BrokerError> {
        self.ask(|done| StoredCommand::Locate { filter, source, place, done }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, BrokerError>>) -> StoredCommand,
    ) -> Result<T, BrokerError> {
        match &self.stored {
            Some(stored) => call(stored, command).await,
            None => Err(BrokerError::Refused("the embedded broker keeps nothing".into())),
        }
    }

    async fn ask_sharded(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), BrokerError>>) -> Command,
    ) -> Result<(), BrokerError> {
        match &self.sharded {
            Some(sharded) => call(sharded, command).await,
            None => Err(BrokerError::Refused("only a Redis Cluster has shard channels".into())),
        }
    }
}

fn is_taken<C>(commands: &mpsc::Sender<C>, command: C) -> bool {
    // One that is closed takes everything: its task has ended, and its subscriptions with it.
    commands.is_closed()
        || commands.capacity() > LEFT_FREE
            && !matches!(commands.try_send(command), Err(mpsc::error::TrySendError::Full(_)))
}

async fn call<C, T>(
    commands: &mpsc::Sender<C>,
    command: impl FnOnce(oneshot::Sender<Result<T, BrokerError>>) -> C,
) -> Result<T, BrokerError> {
    let stopped = || BrokerError::Away("its task has stopped".into());
    let (done, answer) = oneshot::channel();
    commands.send(command(done)).await.map_err(|_| stopped())?;
    answer.await.map_err(|_| stopped())?
}
