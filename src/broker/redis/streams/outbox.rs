//! The queue of events of Redis Streams on their way to the event channel. Nothing is dropped: reading stops while it
//! is not empty.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::key::Key;
use crate::broker::redis::shards::{Released, Shard};
use crate::broker::{BrokerError, Event, Link};
use crate::protocol::topic::Filter;

/// The answer to a subscription.
pub(super) type Done = oneshot::Sender<Result<(), BrokerError>>;

/// Keys that this shard has released.
pub(super) type LeftKeys = Released<(Arc<str>, Key)>;

enum Waiting {
    /// An event, and the answer to send after it.
    Event(Event, Option<Done>),
    /// Released keys, answered once the events that were read before are sent: the next shard must not overtake them.
    Released(oneshot::Sender<LeftKeys>, LeftKeys),
}

/// The queued events, in order.
pub(super) struct EventQueue {
    events: mpsc::Sender<Event>,
    queue: VecDeque<Waiting>,
    /// The reason of being down that was sent last.
    down: Option<String>,
    /// The shard that receives the state of the connection; without it, the event channel does.
    shard: Option<Arc<Shard>>,
}

impl EventQueue {
    pub(super) fn new(events: mpsc::Sender<Event>, shard: Option<Arc<Shard>>) -> Self {
        EventQueue { events, queue: VecDeque::new(), down: None, shard }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn extend(&mut self, events: Vec<Event>) {
        self.queue.extend(events.into_iter().map(|event| Waiting::Event(event, None)));
    }

    /// Queues the beginning of a subscription, and then its answer.
    pub(super) fn begun(&mut self, event: Event, done: Done) {
        self.queue.push_back(Waiting::Event(event, Some(done)));
    }

    /// Queues the answer to a release.
    pub(super) fn left(&mut self, asked: oneshot::Sender<LeftKeys>, left: LeftKeys) {
        self.queue.push_back(Waiting::Released(asked, left));
    }

    pub(super) fn up(&mut self) {
        self.down = None;
        match &self.shard {
            Some(shard) => shard.up(),
            None => self.queue.push_back(Waiting::Event(Event::Up(Link::Stored), None)),
        }
    }

    /// Queues the reason of being down: each reason once, replacing one that still waits.
    pub(super) fn down(&mut self, why: &str) {
        if self.down.as_deref() == Some(why) {
            return;
        }
        self.down = Some(why.into());
        if let Some(shard) = &self.shard {
            return shard.down(why);
        }
        if matches!(self.queue.back(), Some(Waiting::Event(Event::Down { .. }, _))) {
            self.queue.pop_back();
        }
        self.queue.push_back(Waiting::Event(Event::Down { link: Link::Stored, why: why.into() }, None));
    }

    /// Drops the queued events of a filter that is no longer followed. Its pending answers are still sent.
    pub(super) fn forget(&mut self, filter: &Filter) {
        let is_other = |event: &Event| match event {
            Event::Message(message) => message.filter != *filter,
            Event::Begun { filter: of, .. }
            | Event::Gone { filter: of, .. }
            | Event::Ended { filter: of, .. }
            | Event::Refused { filter: of, .. } => of != filter,
            Event::Lost { .. }
            | Event::Unnameable { .. }
            | Event::Up(_)
            | Event::Partly { .. }
            | Event::Down { .. } => true,
        };
        self.queue.retain_mut(|waiting| {
            let Waiting::Event(event, done) = waiting else { return true };
            let stays = is_other(event);
            if let Some(done) = done.take_if(|_| !stays) {
                let _ = done.send(Ok(()));
            }
            stays
        });
    }

    /// Waits for room, and sends what fits; waits for ever if the queue is empty. `false` if the event channel is
    /// closed. Cancel-safe.
    pub(super) async fn flush(&mut self) -> bool {
        if self.queue.is_empty() {
            return pending().await;
        }
        let mut permit = self.events.reserve().await.ok();
        while let Some(room) = permit {
            match self.queue.pop_front() {
                None => return true,
                Some(Waiting::Released(asked, left)) => {
                    let _ = asked.send(left);
                    permit = Some(room);
                    continue;
                }
                Some(Waiting::Event(event, done)) => {
                    room.send(event);
                    if let Some(done) = done {
                        let _ = done.send(Ok(()));
                    }
                }
            }
            permit = self.events.try_reserve().ok();
        }
        !self.events.is_closed()
    }
}
