//! A message as a stream stores it, and its translation to the broker contract.

use std::time::SystemTime;

use bytes::Bytes;

use super::info::read_time;
use super::names::Names;
use crate::broker::nats::headers::split_appended;
use crate::broker::nats::wire;
use crate::broker::{Change, Message, Stored};
use crate::protocol::headers::Headers;
use crate::protocol::seq::Seq;
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// Fields that the server adds to a message of a Direct Get, after the publisher's fields of the same name.
const ADDED: [&str; 6] = [
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Stream",
    "Nats-Last-Sequence",
];

/// A message whose subject has not been interpreted yet.
pub(crate) struct RawMessage {
    pub(crate) subject: String,
    pub(crate) number: Seq,
    pub(crate) time: SystemTime,
    pub(crate) payload: Bytes,
    pub(crate) headers: Headers,
}

/// The meaning of a message for a filter.
#[derive(Debug)]
pub(crate) enum Meaning {
    Message(Message),
    /// Its subject is not a valid topic.
    Unnameable,
    /// It has a reserved subject, which NATS' wildcards match and ours do not.
    Other,
}

impl RawMessage {
    /// From the answer to a Direct Get, in which the server's fields follow the publisher's; with the number of messages
    /// that follow it, if the server says it. `None` if it is not a message, as the server's fields show, whatever the
    /// publisher wrote.
    pub(crate) fn looked_up(answer: &wire::Delivered) -> Option<(Self, Option<u64>)> {
        let block = answer.headers.as_deref()?;
        let ([subject, number, time, pending, ..], headers) = split_appended(block, ADDED);
        let message = RawMessage {
            subject: subject?.into_owned(),
            number: Seq::new(number?.parse().ok()?),
            time: read_time(&time?),
            payload: answer.payload.clone(),
            headers,
        };
        Some((message, pending.and_then(|pending| pending.parse().ok())))
    }

    /// Its effect on its topic. Clients delete a key by a special message. When the last message of a subject expires
    /// or is removed, the server itself writes a marker, if the stream is configured for that.
    pub(crate) fn change(&self, source: &Source) -> Change {
        let is_kv = matches!(source, Source::Kv { .. });
        // In a plain stream, such a field has no meaning if the message has a payload.
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

    /// Its meaning for `filter`.
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

/// A subject as text. Servers check that subjects are UTF-8.
pub(super) fn text(subject: &[u8]) -> String {
    String::from_utf8_lossy(subject).into_owned()
}
