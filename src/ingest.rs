//! Ingest: takes what the broker tells and writes it into the logs. The only writer.
//!
//! It assigns positions (through the registry), has each message encoded once, and turns every loss into a gap in the
//! logs concerned. It does not talk back to the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;

use crate::broker::{self, Event};
use crate::log::{EntryKind, Registry};
use crate::message::Message;
use crate::metrics::Metrics;
use crate::sse::frame::GapReason;

/// Events taken at once.
const BATCH: usize = 256;

/// Readers woken at once: as many as fit into the run queue of one worker. They run before the next are woken, and
/// meanwhile the broker's connection has its turn too: those woken later find what it brought, and write it in one go.
const WAKES: usize = 256;

/// Whether the broker can be relied on now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// Connected, and everything is subscribed.
    Up,
    /// Not connected, and why.
    Down(String),
}

/// See the module.
#[derive(Debug)]
pub struct Ingest {
    /// Where entries go.
    pub registry: Arc<Registry>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// `limits.message`, in bytes, as it is now.
    pub max_message: Arc<AtomicUsize>,
    /// Told of every change of the broker's state.
    pub upstream: watch::Sender<Upstream>,
}

impl Ingest {
    /// Runs until the broker's task has ended.
    pub async fn run(self, mut events: mpsc::Receiver<Event>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut waking = false;
        loop {
            if !waking {
                if events.recv_many(&mut batch, BATCH).await == 0 {
                    return;
                }
                // Several at once are a part of more: one read of the broker's connection, handed on piece by piece.
                if batch.len() > 1 {
                    yield_now().await;
                }
            }
            while batch.len() < BATCH
                && let Ok(event) = events.try_recv()
            {
                batch.push(event);
            }
            batch.drain(..).for_each(|event| self.take(event));
            waking = self.registry.wake(WAKES);
            if waking {
                yield_now().await;
            }
        }
    }

    fn take(&self, event: Event) {
        match event {
            Event::Message(message) => self.append(message),
            Event::Lost { filter, why } => {
                let gaps = self.registry.append_gap(filter.as_ref(), None, GapReason::Broker);
                self.metrics.gaps(GapReason::Broker, gaps);
                let topics = filter.as_ref().map_or("all", |filter| filter.as_str());
                tracing::warn!(topics, gaps, why, "messages may be missing");
            }
            Event::Unnameable { filter } => {
                self.metrics.rejected("topic");
                tracing::debug!(filter = filter.as_str(), "a message's subject is no topic; it was left out");
            }
            Event::Up => {
                tracing::info!("broker connected");
                self.metrics.upstream_up.set(1);
                self.upstream.send_replace(Upstream::Up);
            }
            Event::Down { why } => {
                self.metrics.upstream_up.set(0);
                let was_up = *self.upstream.borrow() == Upstream::Up;
                if was_up {
                    self.metrics.upstream_losses.inc();
                }
                // Every failed attempt to come back is told; one line for the first is enough.
                if self.upstream.send_replace(Upstream::Down(why.clone())) != Upstream::Down(why.clone()) {
                    tracing::warn!(why, "broker away");
                }
            }
            Event::Refused { filter, why } => {
                tracing::error!(
                    topic = filter.as_str(),
                    why,
                    "the broker does not let the gateway read this topic"
                );
                self.registry.refuse(&filter);
            }
        }
    }

    fn append(&self, message: broker::Message) {
        let broker::Message { filter, topic, payload, headers } = message;
        self.metrics.messages_received.inc();
        self.metrics.bytes_received.inc_by(payload.len() as u64);
        let limit = self.max_message.load(Ordering::Relaxed);
        if payload.len() > limit {
            self.metrics.rejected("message");
            let gaps = self.registry.append_gap(Some(&filter), Some(&topic), GapReason::TooLarge);
            self.metrics.gaps(GapReason::TooLarge, gaps);
            tracing::warn!(
                topic = topic.as_str(),
                bytes = payload.len(),
                limit,
                "a message is larger than limits.message and was left out"
            );
            return;
        }
        self.registry.append(&filter, &topic, |sequence, time, fields| {
            let found = fields.find(&headers, &payload);
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
            let event_id = self.registry.sequence().event_id(sequence, found.publisher_id.as_deref());
            EntryKind::Message(Message::new(topic.clone(), time, event_id, found, &payload))
        });
        // Not once a batch: one of large messages would take the buffers far beyond their bound.
        self.registry.keep_bound();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::Headers;
    use crate::config::Field;
    use crate::log::Bounds;
    use crate::message::Fields;
    use crate::position::{Epoch, Sequence};
    use crate::topic::{Filter, Topic};

    const BOUND: usize = 256 * 1024;
    const MESSAGE: usize = 16 * 1024;

    fn ingest() -> Ingest {
        Ingest {
            registry: Registry::new(Sequence::new(Epoch::random()), 10, BOUND),
            metrics: Arc::new(Metrics::new()),
            max_message: Arc::new(AtomicUsize::new(MESSAGE)),
            upstream: watch::channel(Upstream::Up).0,
        }
    }

    #[test]
    fn the_bound_on_all_buffers_holds_within_a_batch_too() {
        let ingest = ingest();
        let topic = Topic::parse("a", 9).unwrap();
        let filter = Filter::from(topic.clone());
        let minute = Duration::from_secs(60);
        let bounds = Bounds { messages: 1000, bytes: 10 * BOUND, age: minute, linger: minute };
        let fields = Arc::new(Fields { id: Field::Header("a".into()), kind: Field::Header("b".into()) });
        let (_lease, subscription) = ingest.registry.lease(&filter, &bounds, &fields, None).unwrap();
        subscription.unwrap().confirm();
        for _ in 0..BATCH {
            let payload = vec![b'x'; MESSAGE].into();
            let (filter, topic, headers) = (filter.clone(), topic.clone(), Headers::default());
            ingest.take(Event::Message(broker::Message { filter, topic, payload, headers }));
            assert!(ingest.registry.bytes() <= BOUND);
        }
        assert!(ingest.registry.bytes() > BOUND / 2);
    }
}
