//! The encoder: turns a broker's message into an entry, once for all readers. Ingest and backfill use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use crate::broker::{self, Change};
use crate::log::message::{FieldMapping, Message};
use crate::log::{EntryKind, Gap};
use crate::metrics::throttle::Throttle;
use crate::metrics::{Limit, Metrics, Rejected};
use crate::protocol::codes::GapReason;
use crate::protocol::event_id::{Position, Sequence};

/// Encodes messages, and counts and logs what cannot be carried.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// The metrics of the gateway.
    pub metrics: Arc<Metrics>,
    /// The current `limits.message`, in bytes.
    pub max_message: Arc<AtomicUsize>,
    /// Limits the log lines about unreadable header fields: a publisher can put them into every message.
    damaged: Arc<Throttle>,
    /// Likewise, log lines about messages that are too large.
    too_large: Arc<Throttle>,
}

impl Encoder {
    /// Creates the encoder of the process.
    pub fn new(metrics: Arc<Metrics>, max_message: Arc<AtomicUsize>) -> Self {
        Encoder { metrics, max_message, damaged: Arc::default(), too_large: Arc::default() }
    }

    /// Whether a message is too large to be carried. If so, this counts and logs it.
    pub fn is_too_large(&self, message: &broker::Message) -> bool {
        let limit = self.max_message.load(Ordering::Relaxed);
        let too_large = message.payload.len() > limit;
        if too_large {
            self.metrics.rejected.inc(Rejected::Message);
            self.metrics.hit(Limit::Message);
            if let Some(others) = self.too_large.turn() {
                tracing::warn!(
                    topic = message.topic.as_str(),
                    bytes = message.payload.len(),
                    limit,
                    others,
                    "a message was dropped, because it is larger than limits.message"
                );
            }
        }
        too_large
    }

    /// Encodes a message at its position. Its size has been checked.
    pub fn encode(
        &self,
        message: &broker::Message,
        sequence: &Sequence,
        position: impl Into<Position>,
        time: SystemTime,
        fields: &FieldMapping,
    ) -> EntryKind {
        let (topic, position) = (&message.topic, position.into());
        if message.headers.is_damaged() {
            self.count_damaged(message);
        }
        if let Some(operation) = deletion(message) {
            return EntryKind::Message(Message::deletion(topic.clone(), time, sequence, position, operation));
        }
        let mut found = fields.find(&message.headers, &message.payload);
        let bad = [
            (found.bad_id, Rejected::Id),
            (found.bad_kind, Rejected::Type),
            (found.bad_data, Rejected::Data),
        ];
        for (_, what) in bad.into_iter().filter(|(is_bad, _)| *is_bad) {
            self.metrics.rejected.inc(what);
            tracing::debug!(
                topic = topic.as_str(),
                what = <&str>::from(what),
                "a message was delivered without a field, because the field cannot be carried or is not where the rule \
                 says"
            );
        }
        let payload = found.data.take();
        let payload = payload.as_deref().map_or(&*message.payload, str::as_bytes);
        EntryKind::Message(Message::new(topic.clone(), time, sequence, position, found, payload))
    }

    /// As [`Encoder::encode`], but a message that is too large becomes a gap.
    pub fn encode_any(
        &self,
        message: &broker::Message,
        sequence: &Sequence,
        position: impl Into<Position>,
        time: SystemTime,
        fields: &FieldMapping,
    ) -> EntryKind {
        let position = position.into();
        if !self.is_too_large(message) {
            return self.encode(message, sequence, position, time, fields);
        }
        let id = sequence.event_id(position, None);
        EntryKind::Gap(Gap::new(&id, &message.filter, GapReason::TooLarge, Some(message.topic.clone())))
    }
}

impl Encoder {
    fn count_damaged(&self, message: &broker::Message) {
        self.metrics.rejected.inc(Rejected::Header);
        if let Some(others) = self.damaged.turn() {
            tracing::warn!(
                topic = message.topic.as_str(),
                sequence = message.stored.map(|stored| stored.number.get()),
                others,
                "a message has unreadable header fields; it was delivered without them"
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
