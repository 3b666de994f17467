//! Stored sources: the second half of the contract, for JetStream, KV buckets and Redis Streams.
//!
//! Here the broker numbers every message, and any replica finds a message by its number. A separate task, with its own
//! connection, takes [`StoredCommand`]s and answers with [`super::Event`]s. In addition to the guarantees of every
//! broker (confirmed, ordered, self-healing, bounded), it guarantees:
//!
//! - **Numbered.** The numbers of a subscribed filter rise strictly: they begin after the one in
//!   [`super::Event::Begun`], and each [`super::Message`] and [`super::Event::Gone`] has a higher number than the ones
//!   before. A message has the same number in every replica.
//! - **Continued.** A lost connection, a killed server or a moved leader loses nothing: reading continues after the
//!   last number. Only what the broker itself has deleted by then becomes `Gone`.
//! - **Distinguished.** A source that was deleted and created again has another tag; its subscriptions end
//!   ([`super::Event::Ended`]).
//! - **Few.** One consumer for each subscribed filter of JetStream and KV, few connections for all keys of Redis.
//!
//! `Fetch`, `Locate` and `Last` only read stored messages. They may run concurrently with each other and with
//! subscriptions, up to a bound.

use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{BrokerError, Message};
use crate::protocol::event_id::EventId;
use crate::protocol::headers::Headers;
use crate::protocol::seek::{Seek, SeekResult};
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::{Filter, Topic};

/// The number and time of a stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its number: the sequence in a JetStream stream, or the packed entry id of a Redis Stream
    /// ([`crate::protocol::event_id::pack_entry_id`]).
    pub number: Seq,
    /// When the broker stored it.
    pub time: SystemTime,
    /// Its effect on its topic.
    pub change: Change,
}

/// The broker's answer to the publisher of a stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The message's number in the history.
    pub number: Seq,
    /// The event id of the message, the same in every replica.
    pub event_id: EventId,
}

/// The effect of a stored message on its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A message, or the new value of a key.
    Put,
    /// The key was deleted (KV). The payload is ignored.
    Delete,
    /// The key was deleted with its history (KV).
    Purge,
}

/// A range of stored messages.
#[derive(Debug)]
pub struct Fetched {
    /// The range is complete up to this number: at most the requested `until`, and more than `after`.
    pub through: Seq,
    /// Requested messages up to this number are gone, if any are.
    pub gone: Option<Seq>,
    /// `gone` stands for single messages that were removed out of the middle, and not for the oldest.
    pub is_hole: bool,
    /// Single messages after `gone` are gone too, and `gone` stands for them: a reader that sees that gap fetches the
    /// state, which includes them. So this range is only for readers that start at `after`.
    pub torn: bool,
    /// The stored messages between `gone` (or `after`) and `through`, by number. Their `filter` is the requested one.
    pub messages: Vec<Message>,
}

/// A command to the task of stored sources. The receiver of `done` may be gone; that is not an error.
#[derive(Debug)]
pub enum StoredCommand {
    /// Follow `filter` from now on. If it is subscribed already, this is confirmed and changes nothing.
    Subscribe {
        /// The filter to follow: for JetStream and KV the whole filter of a rule, for Redis Streams one topic.
        filter: Filter,
        /// The source. Always a stored one ([`Source::is_stored`]).
        source: Source,
        /// Answered once it is followed, after [`super::Event::Begun`] was sent.
        done: oneshot::Sender<Result<(), BrokerError>>,
    },
    /// Stop following `filter`.
    Unsubscribe {
        /// The filter that was followed.
        filter: Filter,
    },
    /// Store a message.
    Publish {
        /// The topic of the message.
        topic: Topic,
        /// The source to store it in.
        source: Source,
        /// The payload.
        payload: Bytes,
        /// The header fields; for Redis Streams, fields of the entry.
        headers: Headers,
        /// Answered once the broker has stored it.
        done: oneshot::Sender<Result<Acknowledgement, BrokerError>>,
    },
    /// Read a range of stored messages, of about [`FETCH_BYTES`] and at most [`FETCH_MESSAGES`].
    Fetch {
        /// The topics to read: any topics of the source, subscribed or not.
        filter: Filter,
        /// The source.
        source: Source,
        /// Read messages with a higher number than this,
        after: Seq,
        /// and no higher number than this. For a KV bucket, each key's value as of this number, without deleted keys;
        /// but of a single key, and not from the start, also its deletion.
        until: Seq,
        /// Receives the answer.
        done: oneshot::Sender<Result<Fetched, BrokerError>>,
    },
    /// Find a position among the stored messages.
    Locate {
        /// The topics to search.
        filter: Filter,
        /// The source.
        source: Source,
        /// The position to find.
        seek: Seek,
        /// Receives the answer.
        done: oneshot::Sender<Result<SeekResult, BrokerError>>,
    },
    /// Read the last message of one topic.
    Last {
        /// The topic, which is not a pattern.
        topic: Filter,
        /// The source.
        source: Source,
        /// Receives the answer; `None`: no message of the topic is stored.
        done: oneshot::Sender<Result<Option<Message>, BrokerError>>,
    },
}

/// The approximate payload bytes of one fetch.
pub const FETCH_BYTES: usize = 256 * 1024;

/// The most messages of one fetch.
pub const FETCH_MESSAGES: usize = 1000;
