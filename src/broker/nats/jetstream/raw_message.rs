//! A message as a stream holds it, and as the contract has it.

use std::time::SystemTime;

use bytes::Bytes;

use super::info::read_time;
use super::names::Names;
use crate::broker::nats::headers::{last_field, parse_headers};
use crate::broker::nats::wire;
use crate::broker::{Change, Message, Stored};
use crate::protocol::headers::Headers;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// Fields that the server adds to a message that is got from a stream directly, behind those of the same name that its
/// publisher gave it.
const ADDED: [&str; 6] = [
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
];

/// A message, before anyone asks what its subject means.
pub(crate) struct RawMessage {
    pub(crate) subject: String,
    pub(crate) number: u64,
    pub(crate) time: SystemTime,
    pub(crate) payload: Bytes,
    pub(crate) headers: Headers,
}

/// What a message is to a filter.
#[derive(Debug)]
pub(crate) enum Meaning {
    Message(Message),
    /// The topic grammar has no name for its subject.
    Unnameable,
    /// Of a reserved subject, which NATS' wildcards match and ours do not.
    Other,
}

impl RawMessage {
    /// One that a replica looked up, behind whose own fields stand the server's. `None` if it is no message: whatever its
    /// publisher wrote, what the server added tells.
    pub(crate) fn looked_up(message: wire::Delivered) -> Option<Self> {
        let block = message.headers.as_deref()?;
        let number = last_field(block, "Nats-Sequence")?.parse().ok()?;
        let subject = last_field(block, "Nats-Subject")?.to_owned();
        let time = read_time(last_field(block, "Nats-Time-Stamp")?);
        let mut headers = parse_headers(block).headers;
        for name in ADDED {
            headers.remove_last(name);
        }
        Some(RawMessage { subject, number, time, payload: message.payload, headers })
    }

    /// What it does to its topic. Keys are deleted by messages of their own, which a client puts there. Once the last message
    /// of a subject has expired or was removed, the server itself puts a marker there if the stream asks for that.
    pub(crate) fn change(&self, source: &Source) -> Change {
        let is_kv = matches!(source, Source::Kv { .. });
        // In a stream such a field means nothing to others, so that a message with a payload is one.
        if !is_kv && !self.payload.is_empty() {
            return Change::Put;
        }
        let operation = self.headers.get("KV-Operation").filter(|_| is_kv);
        match (operation, self.headers.get("Nats-Marker-Reason")) {
            (Some("DEL"), _) | (_, Some("MaxAge" | "Remove")) => Change::Delete,
            (Some("PURGE"), _) | (_, Some("Purge")) => Change::Purge,
            _ => Change::Put,
        }
    }

    /// What it is to `filter`.
    pub(crate) fn read(self, filter: &Filter, names: &Names, source: &Source) -> Meaning {
        let Some(topic) = names.topic(&self.subject) else { return Meaning::Unnameable };
        if !filter.matches(&topic) {
            return Meaning::Other;
        }
        let stored = Stored { number: self.number, time: self.time, change: self.change(source) };
        Meaning::Message(Message {
            filter: filter.clone(),
            topic,
            payload: self.payload,
            headers: self.headers,
            stored: Some(stored),
        })
    }
}

/// A subject, as a server that checks them has it.
pub(super) fn text(subject: &[u8]) -> String {
    String::from_utf8_lossy(subject).into_owned()
}
