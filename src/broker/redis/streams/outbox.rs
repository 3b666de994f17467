//! The way to the event channel.

use std::collections::VecDeque;
use std::future::pending;

use tokio::sync::{mpsc, oneshot};

use crate::broker::{BrokerError, Event, Link};
use crate::topic::Filter;

/// Who waits for a subscription.
pub(super) type Done = oneshot::Sender<Result<(), BrokerError>>;

/// What is on its way to the event channel, in order. Nothing is dropped: while something waits here, nothing is read.
pub(super) struct Outbox {
    events: mpsc::Sender<Event>,
    /// With who is answered once the event is told.
    queue: VecDeque<(Event, Option<Done>)>,
    /// Why it is down, as told last.
    down: Option<String>,
}

impl Outbox {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Outbox { events, queue: VecDeque::new(), down: None }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn extend(&mut self, events: Vec<Event>) {
        self.queue.extend(events.into_iter().map(|event| (event, None)));
    }

    /// Tells how a subscription begins, and then who waits for it.
    pub(super) fn begun(&mut self, event: Event, done: Done) {
        self.queue.push_back((event, Some(done)));
    }

    pub(super) fn up(&mut self) {
        self.down = None;
        self.queue.push_back((Event::Up(Link::Stored), None));
    }

    /// Tells why it is down; a reason once, and in place of one that waits to be told.
    pub(super) fn down(&mut self, why: &str) {
        if self.down.as_deref() == Some(why) {
            return;
        }
        self.down = Some(why.into());
        if matches!(self.queue.back(), Some((Event::Down { .. }, _))) {
            self.queue.pop_back();
        }
        self.queue.push_back((Event::Down { link: Link::Stored, why: why.into() }, None));
    }

    /// Forgets what was to be told of a filter that is followed no longer. Who waits for it is answered all the same.
    pub(super) fn forget(&mut self, filter: &Filter) {
        let is_other = |event: &Event| match event {
            Event::Message(message) => message.filter != *filter,
            Event::Begun { filter: of, .. }
            | Event::Gone { filter: of, .. }
            | Event::Ended { filter: of, .. }
            | Event::Refused { filter: of, .. } => of != filter,
            Event::Lost { .. } | Event::Unnameable { .. } | Event::Up(_) | Event::Down { .. } => true,
        };
        self.queue.retain_mut(|(event, done)| {
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
            let Some((event, done)) = self.queue.pop_front() else { return true };
            room.send(event);
            if let Some(done) = done {
                let _ = done.send(Ok(()));
            }
            permit = self.events.try_reserve().ok();
        }
        !self.events.is_closed()
    }
}
