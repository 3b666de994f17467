//! The encoder: makes an entry of a message, once, whoever reads it; for ingest and for what is recalled from a history.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use crate::broker::{self, Change};
use crate::log::message::{FieldMapping, Message};
use crate::log::{EntryKind, Gap};
use crate::metrics::throttle::Throttle;
use crate::metrics::{Limit, Metrics};
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::Sequence;

/// See the module.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// `limits.message`, in bytes, as it is now.
    pub max_message: Arc<AtomicUsize>,
    /// Of the lines about header fields that cannot be read: a publisher can write them into every message.
    damaged: Arc<Throttle>,
}

impl Encoder {
    /// One for the whole process.
    pub fn new(metrics: Arc<Metrics>, max_message: Arc<AtomicUsize>) -> Self {
        Encoder { metrics, max_message, damaged: Arc::default() }
    }

    /// Whether a message cannot be carried for its size, which is then counted and logged.
    pub fn is_too_large(&self, message: &broker::Message) -> bool {
        let limit = self.max_message.load(Ordering::Relaxed);
        let too_large = message.payload.len() > limit;
        if too_large {
            self.metrics.rejected("message");
            self.metrics.limits.hit(Limit::Message);
            tracing::warn!(
                topic = message.topic.as_str(),
                bytes = message.payload.len(),
                limit,
                "a message is larger than limits.message and was left out"
            );
        }
        too_large
    }

    /// The entry of a message at its place. Its size was looked at.
    pub fn encode(
        &self,
        message: &broker::Message,
        (sequence, number): (&Sequence, u64),
        time: SystemTime,
        fields: &FieldMapping,
    ) -> EntryKind {
        let topic = &message.topic;
        if message.headers.is_damaged() {
            self.count_damaged(message);
        }
        if let Some(operation) = deletion(message) {
            let event_id = sequence.event_id(number, None);
            return EntryKind::Message(Message::deletion(topic.clone(), time, event_id, operation));
        }
        let mut found = fields.find(&message.headers, &message.payload);
        for (bad, what) in [(found.bad_id, "id"), (found.bad_kind, "type")] {
            if bad {
                self.metrics.rejected(what);
                tracing::debug!(
                    topic = topic.as_str(),
                    what,
                    "this field cannot be carried and was left out"
                );
            }
        }
        // Where the broker gives numbers, these find a message everywhere, and the publisher's id is for envelopes alone.
        let separate_id = if sequence.is_stored() { found.publisher_id.take() } else { None };
        let event_id = sequence.event_id(number, found.publisher_id.as_deref());
        let message = Message::new(topic.clone(), time, event_id, found, &message.payload);
        EntryKind::Message(message.with_separate_id(separate_id))
    }

    /// As [`Encoder::encode`]; what is too large for it is a gap.
    pub fn encode_any(
        &self,
        message: &broker::Message,
        (sequence, number): (&Sequence, u64),
        time: SystemTime,
        fields: &FieldMapping,
    ) -> EntryKind {
        if !self.is_too_large(message) {
            return self.encode(message, (sequence, number), time, fields);
        }
        let id = sequence.event_id(number, None);
        EntryKind::Gap(Gap::new(&id, &message.filter, GapReason::TooLarge, Some(message.topic.clone())))
    }
}

impl Encoder {
    fn count_damaged(&self, message: &broker::Message) {
        self.metrics.rejected("header");
        if let Some(others) = self.damaged.turn() {
            tracing::warn!(
                topic = message.topic.as_str(),
                sequence = message.stored.map(|stored| stored.number),
                others,
                "a message has header fields that cannot be read; it was delivered without them"
            );
        }
    }
}

fn deletion(message: &broker::Message) -> Option<&'static str> {
    match message.stored?.change {
        Change::Put => None,
        Change::Delete => Some("delete"),
        Change::Purge => Some("purge"),
    }
}
