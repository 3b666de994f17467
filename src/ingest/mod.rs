//! Ingest: takes the broker's events and writes them into the logs. It is the only writer.
//!
//! It assigns positions (through the registry), encodes each message once, and turns every loss into a gap in the logs
//! concerned. It sends nothing to the broker.

pub mod backfill;
pub mod encoder;
pub mod paced;
pub mod status;

use self::status::{Upstream, Upstreams};
use std::slice;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use self::encoder::Encoder;
use crate::broker::{self, Event, Link, Stored};
use crate::log::{Registry, StoredPosition};
use crate::metrics::throttle::Throttle;
use crate::metrics::{Limit, Metrics, Rejected};
use crate::protocol::codes::GapReason;
use crate::protocol::seq::Seq;
use crate::protocol::topic::{Filter, Topic};
use crate::traces::Traces;

/// The most events that are taken at once.
const BATCH: usize = 256;

/// The number of readers that are woken at once: half of what fits into the run queue of a worker, because tasks beyond
/// that wait in another queue until it is empty. They run before the next group is woken, and in between the broker's
/// connection delivers more. Readers that are woken later send all of it in one write.
const WAKES: usize = 128;

/// The ingest task.
#[derive(Debug)]
pub struct Ingest {
    /// The logs to write to.
    pub registry: Arc<Registry>,
    /// The metrics of the gateway.
    pub metrics: Arc<Metrics>,
    /// Encodes messages as entries.
    pub encoder: Encoder,
    /// Publishes every change of the broker's state.
    pub upstream: watch::Sender<Upstreams>,
    /// The traces of the gateway.
    pub traces: Traces,
    /// Limits the log lines of each kind.
    pub throttles: Throttles,
}

/// Limits the log lines that a broker or a publisher can cause for one topic after another.
#[derive(Debug, Default)]
pub struct Throttles {
    lost: Throttle,
    gone: Throttle,
    ended: Throttle,
    refused: Throttle,
}

impl Ingest {
    /// Runs until the broker's task has ended.
    pub async fn run(self, mut events: mpsc::Receiver<Event>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut waking = false;
        let waiting = self.metrics.limit_used.of(Limit::BrokerEvents);
        loop {
            if !waking {
                if self.wait(&mut events, &mut batch).await == 0 {
                    return;
                }
                // Several events at once are part of a larger read from the broker's connection, which arrives in
                // parts.
                if batch.len() > 1 {
                    yield_now().await;
                }
            }
            while batch.len() < BATCH
                && let Ok(event) = events.try_recv()
            {
                batch.push(event);
            }
            waiting.set(events.len() as i64);
            batch.drain(..).for_each(|event| self.take(event));
            waking = self.registry.wake(WAKES);
            if waking {
                yield_now().await;
            }
        }
    }

    /// Waits for events; 0 once the broker's task has ended. Meanwhile it marks outages that have lasted.
    async fn wait(&self, events: &mut mpsc::Receiver<Event>, batch: &mut Vec<Event>) -> usize {
        loop {
            let Some(due) = self.registry.outage_due() else { return events.recv_many(batch, BATCH).await };
            // Not at the timeout alone: other topics may be busy.
            if due <= Instant::now() {
                self.registry.mark_outages();
                while self.registry.wake(WAKES) {
                    yield_now().await;
                }
            } else if let Ok(taken) = timeout_at(due, events.recv_many(batch, BATCH)).await {
                return taken;
            }
        }
    }

    fn take(&self, event: Event) {
        match event {
            Event::Message(message) => self.append(message),
            Event::Lost { filters, why } => self.lost(filters.as_deref(), &why),
            Event::Unnameable { filter } => {
                self.metrics.rejected.inc(Rejected::Topic);
                tracing::debug!(
                    filter = filter.as_str(),
                    "a message was dropped, because its subject is not a valid topic"
                );
            }
            Event::Begun { filter, tag, head, time } => {
                tracing::debug!(topics = filter.as_str(), head = head.get(), "following a stored topic");
                self.registry.begin(&filter, tag, head, time);
            }
            Event::Gone { filter, through, why } => {
                let gaps = self.skip(&filter, None, through, GapReason::Broker);
                if let Some(others) = self.throttles.gone.turn() {
                    tracing::warn!(
                        topics = filter.as_str(),
                        gaps,
                        why,
                        others,
                        "messages were deleted before they could be read"
                    );
                }
            }
            Event::Ended { filter, why } => {
                if let Some(others) = self.throttles.ended.turn() {
                    tracing::warn!(
                        topics = filter.as_str(),
                        why,
                        others,
                        "a stored stream was deleted or replaced; its readers reconnect"
                    );
                }
                self.registry.end(&filter);
            }
            Event::Up(link) => {
                tracing::info!(?link, "broker connected");
                if link == Link::Pubsub {
                    self.registry.feeds_back(None);
                }
                self.set_link(link, Upstream::Up);
            }
            Event::Partly { link, why } => self.set_link(link, Upstream::Partly(why)),
            Event::Down { link, why } => {
                if link == Link::Pubsub {
                    self.registry.feeds_lost(None);
                }
                self.set_link(link, Upstream::Down(why));
            }
            Event::Interrupted { filters } => self.registry.feeds_lost(Some(filters)),
            Event::Resumed { filters } => self.registry.feeds_back(Some(&filters)),
            Event::Refused { filter, why } => {
                if let Some(others) = self.throttles.refused.turn() {
                    tracing::error!(
                        topic = filter.as_str(),
                        why,
                        others,
                        "the broker does not allow the gateway to read this topic"
                    );
                }
                self.registry.refuse(&filter);
            }
        }
    }

    /// Tells the readers of `filters` that messages may be missing; of every topic if there are none.
    fn lost(&self, filters: Option<&[Filter]>, why: &str) {
        let gaps = self.registry.append_gap(filters, None, GapReason::Broker);
        self.metrics.gaps(GapReason::Broker, gaps);
        let Some(filters) = filters else {
            // No more often than connections are made.
            tracing::warn!(topics = "all", gaps, why, "messages may be missing");
            return;
        };
        if let Some(others) = self.throttles.lost.turn() {
            let topics = match filters {
                [filter] => filter.to_string(),
                several => format!("{} topics", several.len()),
            };
            tracing::warn!(topics, gaps, why, others, "messages may be missing");
        }
    }

    fn set_link(&self, link: Link, state: Upstream) {
        let was_up = *self.upstream.borrow().all() == Upstream::Up;
        let mut is_new = false;
        self.upstream.send_modify(|all| {
            let one = match link {
                Link::Pubsub => &mut all.pubsub,
                Link::Stored => &mut all.stored,
                Link::Sharded => &mut all.sharded,
            };
            is_new = *one != state;
            *one = state.clone();
        });
        let is_up = *self.upstream.borrow().all() == Upstream::Up;
        self.metrics.upstream_up.set(is_up.into());
        if was_up && !is_up {
            self.metrics.upstream_losses.inc();
        }
        // Every failed attempt to reconnect is an event; one line for the first is enough.
        match state {
            Upstream::Down(why) if is_new => tracing::warn!(?link, why, "broker away"),
            Upstream::Partly(why) if is_new => tracing::warn!(?link, why, "part of the broker is away"),
            Upstream::Up | Upstream::Partly(_) | Upstream::Down(_) => {}
        }
    }

    fn append(&self, message: broker::Message) {
        let _span = self.traces.received(&message.topic, &message.headers, message.payload.len());
        self.metrics.messages_received.inc();
        self.metrics.received_bytes.inc_by(message.payload.len() as u64);
        let position = |stored: Stored| StoredPosition { number: stored.number, time: stored.time };
        let stored = message.stored.map(position);
        if let Some(stored) = stored {
            let lag = stored.time.elapsed().unwrap_or_default(); // the broker's clock and ours may differ
            self.metrics.upstream_lag_seconds.observe(lag.as_secs_f64());
        }
        match (self.encoder.is_too_large(&message), stored) {
            (false, _) => {
                self.registry.append(
                    &message.filter,
                    &message.topic,
                    stored,
                    |sequence, number, time, fields| {
                        let entry = self.encoder.encode(&message, sequence, number, time, fields);
                        if entry.ends() {
                            self.metrics.topics_ended.inc();
                        }
                        entry
                    },
                );
            }
            (true, Some(stored)) => {
                self.skip(&message.filter, Some(&message.topic), stored.number, GapReason::TooLarge);
            }
            (true, None) => {
                let (filters, topic) = (slice::from_ref(&message.filter), Some(&message.topic));
                let gaps = self.registry.append_gap(Some(filters), topic, GapReason::TooLarge);
                self.metrics.gaps(GapReason::TooLarge, gaps);
            }
        }
        // Not once per batch: a batch of large messages would exceed the bound of the buffers by far.
        if self.registry.keep_bound() {
            self.metrics.hit(Limit::Buffer);
        }
    }

    fn skip(&self, filter: &Filter, topic: Option<&Topic>, through: Seq, reason: GapReason) -> usize {
        let gaps = self.registry.skip(filter, topic, through, reason);
        self.metrics.gaps(reason, gaps);
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::log::message::FieldMapping;
    use crate::log::{Bounds, Lease};
    use crate::protocol::event_id::{Epoch, Sequence};
    use crate::protocol::headers::Headers;
    use crate::protocol::source::{Field, Source};
    use crate::protocol::topic::{Filter, Topic};

    const BOUND: usize = 256 * 1024;
    const MESSAGE: usize = 16 * 1024;

    fn ingest() -> Ingest {
        let metrics = Arc::new(Metrics::new());
        Ingest {
            registry: Registry::new(Sequence::new(Epoch::random()), 10, BOUND, mpsc::channel(1).0),
            metrics: metrics.clone(),
            encoder: Encoder::new(metrics, Arc::new(MESSAGE.into())),
            upstream: watch::channel(Upstreams::new()).0,
            traces: Traces::default(),
            throttles: Throttles::default(),
        }
    }

    /// A lease of a topic whose subscription is confirmed.
    fn lease(ingest: &Ingest, topic: &str, source: Source) -> Lease {
        let minute = Duration::from_secs(60);
        let bounds = Bounds {
            messages: 1000,
            bytes: 10 * BOUND,
            age: minute,
            linger: minute,
            rule: Default::default(),
        };
        let fields = Arc::new(FieldMapping {
            source,
            id: Field::Header("a".into()),
            kind: Field::Header("b".into()),
            data: None,
            end: Field::Nowhere,
        });
        let filter = Filter::parse(topic, 9).unwrap();
        let (lease, subscription) = ingest.registry.lease(&filter, &bounds, &fields, None).unwrap();
        subscription.unwrap().accepted();
        lease
    }

    #[test]
    fn the_bound_on_all_buffers_holds_within_a_batch_too() {
        let ingest = ingest();
        let topic = Topic::parse("a", 9).unwrap();
        let filter = Filter::from(topic.clone());
        let _lease = lease(&ingest, "a", Source::Pubsub);
        for _ in 0..BATCH {
            let payload = vec![b'x'; MESSAGE].into();
            let (filter, topic, headers) = (filter.clone(), topic.clone(), Headers::default());
            ingest.take(Event::Message(broker::Message { filter, topic, payload, headers, stored: None }));
            assert!(ingest.registry.bytes() <= BOUND);
        }
        assert!(ingest.registry.bytes() > BOUND / 2);
    }

    #[test]
    fn a_loss_concerns_the_filters_that_it_names_or_all_of_plain_publish_subscribe() {
        let ingest = ingest();
        let _leases = [
            lease(&ingest, "a", Source::Pubsub),
            lease(&ingest, "b", Source::Pubsub),
            lease(&ingest, "c", Source::Sharded),
            lease(&ingest, "d", Source::Sharded),
            lease(&ingest, "e", Source::RedisStream { payload: None }),
        ];
        let named = |names: &[&str]| names.iter().map(|name| Filter::parse(name, 9).unwrap()).collect();
        let mut sum = 0;
        for (filters, gaps) in [
            (None, 2),
            (Some(named(&["c", "d", "unheard"])), 2),
            (Some(named(&["b", "d", "e"])), 2),
            (Some(named(&["a"])), 1),
        ] {
            ingest.take(Event::Lost { filters, why: String::new() });
            sum += gaps;
            let broker = ingest.metrics.gaps.counts().find(|(reason, _)| *reason == "broker");
            assert_eq!(broker, Some(("broker", sum)));
        }
    }

    #[test]
    fn the_broker_is_down_while_any_of_its_connections_is_down_completely() {
        let ingest = ingest();
        let is_up = || *ingest.upstream.borrow().all() == Upstream::Up;
        assert!(!is_up(), "nothing is connected yet");
        ingest.take(Event::Up(Link::Pubsub));
        assert!(is_up(), "connections that are not needed yet do not count");
        for link in [Link::Pubsub, Link::Stored, Link::Sharded] {
            ingest.take(Event::Down { link, why: "why".into() });
            assert_eq!(*ingest.upstream.borrow().all(), Upstream::Down("why".into()));
            ingest.take(Event::Up(link));
            assert!(is_up());
        }
        ingest.take(Event::Partly { link: Link::Stored, why: "a shard".into() });
        assert_eq!(*ingest.upstream.borrow().all(), Upstream::Partly("a shard".into()));
        assert_eq!(ingest.metrics.upstream_up.get(), 0);
        ingest.take(Event::Down { link: Link::Sharded, why: "all".into() });
        assert_eq!(*ingest.upstream.borrow().all(), Upstream::Down("all".into()));
    }
}
