//! The way to the event channel.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::key::Key;
use crate::broker::redis::shards::{Released, Shard};
use crate::broker::{BrokerError, Event, Link};
use crate::protocol::topic::Filter;

/// Who waits for a subscription.
pub(super) type Done = oneshot::Sender<Result<(), BrokerError>>;

/// Keys that this shard has given up.
pub(super) type LeftKeys = Released<(Arc<str>, Key)>;

enum Waiting {
    /// With who is answered once the event is told.
    Event(Event, Option<Done>),
    /// Answered once what was read of the keys before is told: the next shard must not overtake it.
    Released(oneshot::Sender<LeftKeys>, LeftKeys),
}

/// What is on its way to the event channel, in order. Nothing is dropped: while something waits here, nothing is read.
pub(super) struct EventQueue {
    events: mpsc::Sender<Event>,
    queue: VecDeque<Waiting>,
    /// Why it is down, as told last.
    down: Option<String>,
    /// Who is told whether it is down; without it, the event channel.
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

    /// Tells how a subscription begins, and then who waits for it.
    pub(super) fn begun(&mut self, event: Event, done: Done) {
        self.queue.push_back(Waiting::Event(event, Some(done)));
    }

    /// Answers who wants to know what was given up, in its turn.
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

    /// Tells why it is down; a reason once, and in place of one that waits to be told.
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

    /// Forgets what was to be told of a filter that is followed no longer. Who waits for it is answered all the same.
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

    /// Waits for room and tells what there is room for; for ever, if there is nothing to tell. `false` if nobody takes
    /// events any more. Safe to drop and call again.
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
