//! The outbox of publish/subscribe: it forwards messages to the event channel without waiting, and marks what it must
//! drop, so that no message is lost silently.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::shards::Shard;
use crate::broker::{Event, Link, Message};
use crate::protocol::topic::Filter;

/// If the event channel is full, a message is dropped and its filter is marked, and the mark is sent first when there
/// is room again. Bounded by one mark per filter and a few for the connection.
pub(super) struct Outbox {
    events: mpsc::Sender<Event>,
    down: Option<String>,
    refused: BTreeMap<Filter, String>,
    /// Messages of these filters, or of all if `None`, may be missing; the reason.
    lost_many: Option<(Option<Vec<Filter>>, String)>,
    up: bool,
    /// The number of dropped messages by filter.
    lost: BTreeMap<Filter, u64>,
    /// The last reason that was sent while down: each reason is sent once, not at every attempt.
    told: Option<String>,
    /// The shard that receives the state of the connection; without it, the event channel does.
    shard: Option<Arc<Shard>>,
    /// Filters that are moving between shards. Their messages are dropped until they have arrived, because
    /// [`Outbox::arrived`] sends a loss then.
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

    /// Reports that the connection ended or failed.
    pub(super) fn down(&mut self, why: &str) {
        // The Lost for all filters after the next connection covers the marks. If they were sent now, they would come
        // before the subscriptions are whole.
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

    /// Reports that the connection is up and everything is subscribed, except `moving`; `lost` says which messages may
    /// be missing, and why.
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

    /// Marks a filter as moving between shards.
    pub(super) fn moving(&mut self, filter: Filter) {
        self.lost.remove(&filter);
        self.moving.insert(filter);
    }

    /// Reports that these filters are subscribed again.
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

    /// Reports that the server no longer allows a filter.
    pub(super) fn refused(&mut self, filter: Filter, why: &str) {
        self.lost.remove(&filter);
        self.refused.insert(filter, why.into());
    }

    /// Forgets the marks of a filter that is unsubscribed or subscribed again.
    pub(super) fn forget(&mut self, filter: &Filter) {
        self.lost.remove(filter);
        self.refused.remove(filter);
        self.moving.remove(filter);
    }

    /// Forwards a message, or drops it and marks the filter.
    pub(super) fn forward(&mut self, filter: &Filter, message: impl FnOnce() -> Message) {
        if self.is_pending() {
            self.flush();
        }
        if self.moving.contains(filter) {
            return;
        }
        // A mark of another filter blocks nothing; a mark of the connection blocks everything.
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

    /// Reports a channel that is not a valid topic. It is only counted, so it needs no mark.
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

    /// Sends as many marks as there is room for.
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
                let why = format!(
                    "{count} messages were dropped, because they arrived faster than the gateway could \
                process them"
                );
                Event::Lost { filters: Some(vec![filter]), why }
            } else {
                return;
            };
            permit.send(event);
        }
    }

    /// Whether the event channel is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Waits for room. `false` if the event channel is closed.
    pub(super) async fn room(&self) -> bool {
        self.events.reserve().await.is_ok()
    }
}
