//! What a broker keeps: the second half of the contract, for JetStream, KV buckets and Redis Streams.
//!
//! Here the broker gives every message a number of its own, by which any replica finds it again. A task of its own, on a
//! connection of its own, takes [`StoredCommand`]s and answers with the events of [`super::Event`]. Beside what every broker
//! guarantees (confirmed, ordered, self-healing, bounded) it keeps to this:
//!
//! - **Numbered.** The numbers of one subscribed filter rise strictly: [`super::Event::Begun`] names where they begin, each
//!   [`super::Message`] and each [`super::Event::Gone`] has a higher one than what came before. The same message has the
//!   same number in every replica.
//! - **Continued.** A lost connection, a killed server or a moved leader loses nothing: it is read on from the last
//!   number. Only what the broker itself no longer holds by then is told, as `Gone`.
//! - **Told apart.** A history that was deleted and made again has another tag; its subscriptions end
//!   ([`super::Event::Ended`]).
//! - **Few.** One consumer for each subscribed filter of JetStream and KV, few connections for all keys of Redis.
//!
//! `Fetch` and `Locate` look into the history and change nothing. They may run beside each other and beside what is
//! followed; how many at once is bounded.

use crate::protocol::seek::{Seek, SeekResult};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{BrokerError, Message};
use crate::protocol::headers::Headers;
use crate::protocol::source::Source;
use crate::protocol::topic::{Filter, Topic};

/// Where the broker keeps a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its number in the history: the sequence of a JetStream stream, the packed entry id of a Redis Stream
    /// ([`crate::protocol::event_id::pack_entry_id`]).
    pub number: u64,
    /// When the broker took it.
    pub time: SystemTime,
    /// What it says of its topic.
    pub change: Change,
}

/// What a stored message does to its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is a message, or the new value of a key.
    Put,
    /// The key was deleted (KV). The payload means nothing.
    Delete,
    /// The key was deleted with its past (KV).
    Purge,
}

/// A part of a history.
#[derive(Debug)]
pub struct Fetched {
    /// Up to where it is everything: at most the `until` that was asked for, and more than the `after`.
    pub through: u64,
    /// What was asked for up to this number is gone (0: nothing is).
    pub gone: u64,
    /// Single messages behind `gone` are gone too, and `gone` stands for them: it is told before them, and whoever fetches the
    /// state then has what they said. So this part is for readers who come from `after` alone.
    pub torn: bool,
    /// What is held between `gone` (or `after`) and `through`, in the order of the numbers. `filter` is the one that was
    /// asked for.
    pub messages: Vec<Message>,
}

/// What is asked of the task that reads what the broker keeps. `done` receivers may be gone; that is not an error.
#[derive(Debug)]
pub enum StoredCommand {
    /// Follow `filter` from now on. Subscribing to one that is subscribed already is confirmed and changes nothing.
    Subscribe {
        /// What to follow: of JetStream and KV the whole filter of a rule, of Redis Streams one topic.
        filter: Filter,
        /// What it is read from. Never one of those of which nothing is kept ([`Source::is_stored`]).
        source: Source,
        /// Answered once it is followed, after [`super::Event::Begun`] was told.
        done: oneshot::Sender<Result<(), BrokerError>>,
    },
    /// Follow `filter` no longer.
    Unsubscribe {
        /// What was followed.
        filter: Filter,
    },
    /// Store a message.
    Publish {
        /// On which topic.
        topic: Topic,
        /// Where to.
        source: Source,
        /// The payload.
        payload: Bytes,
        /// Header fields; of Redis Streams, fields of the entry.
        headers: Headers,
        /// The number it was given, once the broker has stored it.
        done: oneshot::Sender<Result<u64, BrokerError>>,
    },
    /// Read a part of the history, of about [`FETCH_BYTES`] and at most [`FETCH_MESSAGES`].
    Fetch {
        /// Of which topics: inside of what the source holds, and not only what is subscribed.
        filter: Filter,
        /// What it is read from.
        source: Source,
        /// Read what has a higher number than this,
        after: u64,
        /// and none higher than this. Of a KV bucket, each key's value as of this number, without keys that are deleted.
        until: u64,
        /// The answer.
        done: oneshot::Sender<Result<Fetched, BrokerError>>,
    },
    /// Find a place in the history.
    Locate {
        /// Of which topics.
        filter: Filter,
        /// What it is read from.
        source: Source,
        /// What is looked for.
        place: Seek,
        /// The answer.
        done: oneshot::Sender<Result<SeekResult, BrokerError>>,
    },
}

/// Payload bytes of one fetch, nearly.
pub const FETCH_BYTES: usize = 256 * 1024;

/// Messages of one fetch.
pub const FETCH_MESSAGES: usize = 1000;
