//! Brokers: where messages come from. Each is one file behind the contract below; client-library types stop there.
//!
//! A broker is a task that takes [`Command`]s from one bounded channel and answers with [`Event`]s on another. It knows
//! nothing of logs, streams or HTTP, and assigns no positions.
//!
//! What every broker guarantees (and `tests/brokers.rs` checks against each):
//!
//! - **Confirmed.** `Subscribe` is answered `Ok` only once the server has acted on it: what anyone publishes afterwards
//!   arrives as an [`Event::Message`].
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
//!   `Subscribe` and `Publish` are answered [`BrokerError::Away`] at once; `Unsubscribe` works.
//! - **Bounded.** Back-pressure on the event channel ends as [`Event::Lost`], never as growing memory.
//! - It ends when the command channel closes.

mod memory;
mod nats;
mod redis;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::config::{self, BrokerKind};
use crate::topic::{Filter, Topic};

/// Commands that wait for the broker's task. Beyond it senders wait.
const COMMAND_CAPACITY: usize = 1024;

/// Events that wait for ingest. Filled lazily, so the capacity itself costs nothing.
pub const EVENT_CAPACITY: usize = 16 * 1024;

/// Header fields of a message. Values of one name keep their order. Names compare without case. Redis has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Adds a field.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// The first value of the field called `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every field.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

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
}

/// What a broker tells.
#[derive(Debug)]
pub enum Event {
    /// A message of a subscribed filter.
    Message(Message),
    /// Messages of `filter` (of every filter if `None`) may be missing at this place.
    Lost {
        /// The filter concerned; `None` is all that were subscribed.
        filter: Option<Filter>,
        /// Why, for the log: one line.
        why: String,
    },
    /// A message came by `filter` on a subject that the topic grammar has no name for. It cannot be passed on.
    Unnameable {
        /// The subscribed filter it came by.
        filter: Filter,
    },
    /// The connection is up and every filter is subscribed.
    Up,
    /// The connection is down; the broker is trying to come back. Told again when the reason changes.
    Down {
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
        Broker { commands }
    }

    /// Starts the connection to a Redis server. One that is away is waited for.
    ///
    /// # Errors
    /// Settings or files that can never work.
    pub fn redis(config: &config::Broker, events: mpsc::Sender<Event>) -> Result<Self, SettingError> {
        let client = redis::client(config)?;
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        tokio::spawn(redis::run(client, config.separator, receiver, events));
        Ok(Broker { commands })
    }

    /// Starts a NATS connection. A server that is merely away is no error: it is retried, and told by [`Event::Down`].
    ///
    /// # Errors
    /// What can never work, with the name of the key: a malformed URL, credentials or certificates that cannot be read.
    pub fn nats(config: &config::Broker, events: mpsc::Sender<Event>) -> Result<Self, SettingError> {
        let settings = nats::Settings::read(config).map_err(SettingError)?;
        let (commands, receiver) = mpsc::channel(COMMAND_CAPACITY);
        tokio::spawn(nats::run(settings, receiver, events));
        Ok(Broker { commands })
    }

    /// Subscribes; returns once the server has confirmed.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`]; the filter is then not subscribed.
    pub async fn subscribe(&self, filter: Filter) -> Result<(), BrokerError> {
        self.call(|done| Command::Subscribe { filter, done }).await
    }

    /// Ends a subscription without waiting. Returns whether the command was taken: `false` means that the channel is
    /// full and the caller should try again later. Ordered against every later `subscribe`.
    pub fn try_unsubscribe(&self, filter: Filter) -> bool {
        !matches!(
            self.commands.try_send(Command::Unsubscribe { filter }),
            Err(mpsc::error::TrySendError::Full(_))
        )
    }

    /// Publishes; returns once the server has the message.
    ///
    /// # Errors
    /// [`BrokerError::Away`] or [`BrokerError::Refused`].
    pub async fn publish(&self, topic: Topic, payload: Bytes, headers: Headers) -> Result<(), BrokerError> {
        self.call(|done| Command::Publish { topic, payload, headers, done }).await
    }

    async fn call(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), BrokerError>>) -> Command,
    ) -> Result<(), BrokerError> {
        let stopped = || BrokerError::Away("its task has stopped".into());
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}
