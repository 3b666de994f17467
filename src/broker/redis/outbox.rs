//! The way to the event channel, which never waits and never loses in silence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::shards::Shard;
use crate::broker::{Event, Link, Message};
use crate::protocol::topic::Filter;

/// The way to the event channel, which never waits: what finds no room is dropped and marked, and the mark goes first
/// as soon as there is room again. Bounded by one mark a filter and a few for the connection.
pub(super) struct Outbox {
    events: mpsc::Sender<Event>,
    down: Option<String>,
    refused: BTreeMap<Filter, String>,
    /// Why messages of many filters may be missing, of all if they are not named.
    lost_many: Option<(Option<Vec<Filter>>, String)>,
    up: bool,
    /// Dropped messages of each filter that has any.
    lost: BTreeMap<Filter, u64>,
    /// What was told last, while down: a reason is told once, not at every attempt.
    told: Option<String>,
    /// Who is told whether the connection is up; without it, the event channel.
    shard: Option<Arc<Shard>>,
    /// Filters that are on their way from one shard to another. What comes of them before they are there is left out, since
    /// [`Outbox::arrived`] tells a loss then.
    moving: BTreeSet<Filter>,
}

impl Outbox {
    pub(super) fn new(events: mpsc::Sender<Event>, shard: Option<Arc<Shard>>) -> Self {
        Outbox {
            events,
            down: None,
            refused: BTreeMap::new(),
            lost_many: None,
            up: false,
            lost: BTreeMap::new(),
            told: None,
            shard,
            moving: BTreeSet::new(),
        }
    }

    /// The connection ended, or could not be made.
    pub(super) fn down(&mut self, why: &str) {
        // What was marked is told by the Lost for all that follows the next connection: told now it would come before
        // the subscriptions are whole.
        self.up = false;
        self.lost_many = None;
        self.lost.clear();
        if let Some(shard) = &self.shard {
            shard.down(why);
        } else if self.told.as_deref() != Some(why) {
            self.told = Some(why.into());
            self.down = Some(why.into());
        }
        self.flush();
    }

    /// The connection is whole, but for `moving`; `lost` is what may be missing and why, if anything.
    pub(super) fn up(&mut self, lost: Option<(Option<Vec<Filter>>, String)>, moving: BTreeSet<Filter>) {
        self.told = None;
        self.lost_many = lost;
        self.moving = moving;
        match &self.shard {
            Some(shard) => shard.up(),
            None => self.up = true,
        }
        self.flush();
    }

    /// The subscription of a filter is not where it should be.
    pub(super) fn moving(&mut self, filter: Filter) {
        self.lost.remove(&filter);
        self.moving.insert(filter);
    }

    /// The subscriptions of these are whole again.
    pub(super) fn arrived(&mut self, filters: Vec<Filter>, why: &str) {
        for filter in &filters {
            self.moving.remove(filter);
        }
        let all = |(before, _): (Option<Vec<Filter>>, String)| before.unwrap_or_default();
        let before = self.lost_many.take().map(all).unwrap_or_default();
        let all: BTreeSet<Filter> = before.into_iter().chain(filters).collect();
        self.lost_many = Some((Some(all.into_iter().collect()), why.into()));
        self.flush();
    }

    /// The server no longer allows a filter.
    pub(super) fn refused(&mut self, filter: Filter, why: &str) {
        self.lost.remove(&filter);
        self.refused.insert(filter, why.into());
    }

    /// Forgets what was marked of a filter that is subscribed no longer, or anew.
    pub(super) fn forget(&mut self, filter: &Filter) {
        self.lost.remove(filter);
        self.refused.remove(filter);
        self.moving.remove(filter);
    }

    /// Hands a message on, or drops and marks it.
    pub(super) fn forward(&mut self, filter: &Filter, message: impl FnOnce() -> Message) {
        if self.is_pending() {
            self.flush();
        }
        if self.moving.contains(filter) {
            return;
        }
        // A mark of another filter holds nothing up; one of the connection holds everything.
        if !self.is_connection_pending() && !self.lost.contains_key(filter) {
            match self.events.try_reserve() {
                Ok(permit) => return permit.send(Event::Message(message())),
                Err(mpsc::error::TrySendError::Closed(())) => return,
                Err(mpsc::error::TrySendError::Full(())) => {}
            }
        }
        match self.lost.get_mut(filter) {
            Some(count) => *count += 1,
            None => {
                self.lost.insert(filter.clone(), 1);
            }
        }
    }

    /// A channel has no name in the topic grammar. For a counter only: not worth a mark.
    pub(super) fn unnameable(&self, filter: &Filter) {
        let _ = self.events.try_send(Event::Unnameable { filter: filter.clone() });
    }

    fn is_connection_pending(&self) -> bool {
        self.down.is_some() || !self.refused.is_empty() || self.lost_many.is_some() || self.up
    }

    /// Whether a mark waits for room.
    pub(super) fn is_pending(&self) -> bool {
        self.is_connection_pending() || !self.lost.is_empty()
    }

    /// Sends the marks for which there is room.
    pub(super) fn flush(&mut self) {
        while self.is_pending() {
            let Ok(permit) = self.events.try_reserve() else { return };
            let event = if let Some(why) = self.down.take() {
                Event::Down { link: Link::Pubsub, why }
            } else if let Some((filter, why)) = self.refused.pop_first() {
                Event::Refused { filter, why }
            } else if let Some((filters, why)) = self.lost_many.take() {
                Event::Lost { filters, why }
            } else if std::mem::take(&mut self.up) {
                Event::Up(Link::Pubsub)
            } else if let Some((filter, count)) = self.lost.pop_first() {
                let why = format!("{count} messages were dropped: they came faster than they were taken");
                Event::Lost { filters: Some(vec![filter]), why }
            } else {
                return;
            };
            permit.send(event);
        }
    }

    /// Whether nobody takes events any more.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Waits for room. `false` if nobody takes events any more.
    pub(super) async fn room(&self) -> bool {
        self.events.reserve().await.is_ok()
    }
}
