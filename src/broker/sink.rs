//! The way to the event channel for a task that must not wait for it: events that find no room are kept here, in order.
//!
//! What happens when the channel is full is different for two kinds of source ([`WhenFull`]). What it does not do: a task that
//! has nothing else to do meanwhile (the embedded broker, a follower of JetStream) sends on the channel itself and waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::{Event, Link, Message};
use crate::protocol::topic::Filter;

/// What happens to messages while the event channel is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// They wait here. The task reads nothing while something waits, so that the rest stays on the server.
    Wait,
    /// They are dropped and counted, and [`Event::Lost`] is told as soon as there is room: the server ends a connection
    /// that is not read. Bounded by one count a filter.
    Drop,
}

/// The way to the event channel. Also tells whether the connection is up, each reason once.
pub(super) struct EventSink {
    events: mpsc::Sender<Event>,
    when_full: WhenFull,
    /// Whose state is told. `None` for one of several connections, whose state is told together with that of the others.
    link: Option<Link>,
    /// Why the connection is down, as told last.
    down: Option<String>,
    waiting: Backlog,
}

/// What waits for room.
#[derive(Default)]
struct Backlog {
    /// In this order.
    queue: VecDeque<Waiting>,
    /// Messages that were dropped since the last one that was not. Told after the queue.
    dropped: BTreeMap<Filter, u64>,
}

enum Waiting {
    Event(Event),
    /// To be done once all events before it are told.
    Action(Box<dyn FnOnce() + Send>),
}

impl EventSink {
    pub(super) fn new(events: mpsc::Sender<Event>, link: Option<Link>, when_full: WhenFull) -> Self {
        EventSink { events, when_full, link, down: None, waiting: Backlog::default() }
    }

    /// How much waits for room.
    pub(super) fn len(&self) -> usize {
        self.waiting.queue.len()
    }

    /// Whether nothing waits for room.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tells an event, or keeps it until there is room.
    pub(super) fn push(&mut self, event: Event) {
        if !self.is_empty() {
            self.waiting.queue.push_back(Waiting::Event(event));
        } else if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            self.waiting.queue.push_back(Waiting::Event(event));
        }
    }

    /// Does something once all events before it are told.
    pub(super) fn then(&mut self, action: impl FnOnce() + Send + 'static) {
        self.waiting.queue.push_back(Waiting::Action(Box::new(action)));
        self.waiting.act();
    }

    /// Hands on a message that came by `filter`, which is made only if there is room.
    pub(super) fn message(&mut self, filter: &Filter, message: impl FnOnce() -> Message) {
        if self.when_full == WhenFull::Wait {
            return self.push(Event::Message(message()));
        }
        self.send_waiting();
        // Dropped messages of another filter hold nothing up; an event that waits holds everything up.
        if self.waiting.queue.is_empty() && !self.waiting.dropped.contains_key(filter) {
            match self.events.try_reserve() {
                Ok(permit) => return permit.send(Event::Message(message())),
                Err(TrySendError::Closed(())) => return,
                Err(TrySendError::Full(())) => {}
            }
        }
        match self.waiting.dropped.get_mut(filter) {
            Some(count) => *count += 1,
            None => drop(self.waiting.dropped.insert(filter.clone(), 1)),
        }
    }

    /// A subject has no name in the topic grammar. It counts for a metric alone, so it is not kept where messages are not.
    pub(super) fn unnameable(&mut self, filter: &Filter) {
        let event = Event::Unnameable { filter: filter.clone() };
        match self.when_full {
            WhenFull::Wait => self.push(event),
            WhenFull::Drop => drop(self.events.try_send(event)),
        }
    }

    /// Messages of `filters` may be missing here; of all if they are not named.
    pub(super) fn lost(&mut self, filters: Option<Vec<Filter>>, why: String) {
        if self.when_full == WhenFull::Drop {
            // No message lies between two of them, and one stands for both: so there are few, however long nobody takes them.
            for waiting in &mut self.waiting.queue {
                let Waiting::Event(Event::Lost { filters: before, why: reason }) = waiting else { continue };
                *before = before.take().zip(filters).map(|(before, filters)| {
                    before.into_iter().chain(filters).collect::<BTreeSet<_>>().into_iter().collect()
                });
                *reason = why;
                return;
            }
        }
        self.push(Event::Lost { filters, why });
    }

    /// Reports that the server no longer allows a filter.
    pub(super) fn refused(&mut self, filter: Filter, why: String) {
        self.forget(&filter);
        self.push(Event::Refused { filter, why });
    }

    /// These filters receive nothing from now on.
    pub(super) fn interrupted(&mut self, filters: Vec<Filter>) {
        if !filters.is_empty() {
            self.push(Event::Interrupted { filters });
        }
    }

    /// These filters receive messages again.
    pub(super) fn resumed(&mut self, filters: Vec<Filter>) {
        if !filters.is_empty() {
            self.push(Event::Resumed { filters });
        }
    }

    /// The connection is up.
    pub(super) fn up(&mut self) {
        self.down = None;
        if let Some(link) = self.link {
            self.push(Event::Up(link));
        }
    }

    /// Reports that the connection ended or failed.
    pub(super) fn down(&mut self, why: &str) {
        if self.when_full == WhenFull::Drop {
            // The loss of all that follows the next connection covers these. Told now, they would come before the
            // subscriptions are whole.
            self.waiting.dropped.clear();
            self.waiting
                .queue
                .retain(|waiting| !matches!(waiting, Waiting::Event(Event::Lost { .. } | Event::Up(_))));
        }
        let Some(link) = self.link.filter(|_| self.down.as_deref() != Some(why)) else { return };
        self.down = Some(why.into());
        if matches!(self.waiting.queue.back(), Some(Waiting::Event(Event::Down { .. }))) {
            self.waiting.queue.pop_back();
        }
        self.push(Event::Down { link, why: why.into() });
    }

    /// Forgets the count of dropped messages of a filter: its loss is told otherwise.
    pub(super) fn forget_dropped(&mut self, filter: &Filter) {
        self.waiting.dropped.remove(filter);
    }

    /// Forgets what was to be told of a filter that is subscribed no longer, or is subscribed again.
    pub(super) fn forget(&mut self, filter: &Filter) {
        self.waiting.dropped.remove(filter);
        self.waiting.queue.retain(|waiting| match waiting {
            Waiting::Event(event) => of_one(event) != Some(filter),
            Waiting::Action(_) => true,
        });
        self.waiting.act();
    }

    /// Waits for room and tells the events for which there is room. `false` once nobody takes events any more; it returns for
    /// no other reason if nothing waits. Safe to drop and call again.
    pub(super) async fn flush(&mut self) -> bool {
        if self.is_empty() {
            self.events.closed().await;
            return false;
        }
        let Ok(permit) = self.events.reserve().await else { return false };
        match self.waiting.next() {
            Some(event) => permit.send(event),
            None => drop(permit),
        }
        self.waiting.act();
        self.send_waiting();
        true
    }

    /// Tells the events for which there is room now.
    fn send_waiting(&mut self) {
        while !self.is_empty()
            && let Ok(permit) = self.events.try_reserve()
            && let Some(event) = self.waiting.next()
        {
            permit.send(event);
            self.waiting.act();
        }
    }
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.dropped.is_empty()
    }

    /// The next event. Once it is told, [`Backlog::act`] is due.
    fn next(&mut self) -> Option<Event> {
        self.act();
        if let Some(Waiting::Event(event)) = self.queue.pop_front() {
            return Some(event);
        }
        let (filter, count) = self.dropped.pop_first()?;
        let why = format!(
            "{count} messages were dropped, because they arrived faster than the gateway could process them"
        );
        Some(Event::Lost { filters: Some(vec![filter]), why })
    }

    /// Does the actions before which no event waits.
    fn act(&mut self) {
        while matches!(self.queue.front(), Some(Waiting::Action(_)))
            && let Some(Waiting::Action(action)) = self.queue.pop_front()
        {
            action();
        }
    }
}

/// The filter that an event is about, if it is about one alone.
fn of_one(event: &Event) -> Option<&Filter> {
    match event {
        Event::Message(Message { filter, .. })
        | Event::Begun { filter, .. }
        | Event::Gone { filter, .. }
        | Event::Ended { filter, .. }
        | Event::Refused { filter, .. } => Some(filter),
        Event::Lost { .. }
        | Event::Unnameable { .. }
        | Event::Up(_)
        | Event::Partly { .. }
        | Event::Interrupted { .. }
        | Event::Resumed { .. }
        | Event::Down { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use parking_lot::Mutex;
    use std::sync::Arc;

    use super::*;
    use crate::protocol::headers::Headers;
    use crate::protocol::topic::Topic;

    fn filter(text: &str) -> Filter {
        Filter::parse(text, 100).unwrap()
    }

    fn message(text: &str) -> Message {
        let topic = Topic::parse(text, 100).unwrap();
        let (payload, headers) = (Bytes::new(), Headers::default());
        Message { filter: filter(text), topic, payload, headers, stored: None }
    }

    fn sink(when_full: WhenFull) -> (EventSink, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel(1);
        (EventSink::new(sender, Some(Link::Pubsub), when_full), events)
    }

    /// Takes the events that come until nothing waits any more.
    async fn take(sink: &mut EventSink, events: &mut mpsc::Receiver<Event>) -> Vec<String> {
        let mut taken = Vec::new();
        loop {
            while let Ok(event) = events.try_recv() {
                taken.push(match event {
                    Event::Message(message) => message.topic.to_string(),
                    Event::Lost { filters: Some(filters), .. } => format!("lost {}", filters[0].as_str()),
                    other => format!("{other:?}"),
                });
            }
            if sink.is_empty() {
                return taken;
            }
            assert!(sink.flush().await);
        }
    }

    #[tokio::test]
    async fn events_that_wait_are_sent_in_order_and_actions_follow_them() {
        let (mut sink, mut events) = sink(WhenFull::Wait);
        let done = Arc::new(Mutex::new(false));
        for text in ["a", "b", "c"] {
            sink.message(&filter(text), || message(text));
        }
        let is_done = done.clone();
        sink.then(move || *is_done.lock() = true);
        sink.message(&filter("d"), || message("d"));
        sink.forget(&filter("b"));
        assert!(!*done.lock(), "c is not told yet");
        assert_eq!(take(&mut sink, &mut events).await, ["a", "c", "d"]);
        assert!(*done.lock());
        sink.then(move || *done.lock() = false); // nothing is before it
    }

    #[tokio::test]
    async fn dropped_messages_are_a_loss_before_the_next_message() {
        let (mut sink, mut events) = sink(WhenFull::Drop);
        for text in ["a", "b", "b", "c"] {
            sink.message(&filter(text), || message(text));
        }
        assert_eq!(take(&mut sink, &mut events).await, ["a", "lost b", "lost c"]);
        sink.message(&filter("b"), || message("b"));
        assert_eq!(take(&mut sink, &mut events).await, ["b"]);
    }

    #[tokio::test]
    async fn a_connection_that_ends_leaves_no_mark_and_reports_each_reason_once() {
        let (mut sink, mut events) = sink(WhenFull::Drop);
        for text in ["a", "b"] {
            sink.message(&filter(text), || message(text));
        }
        sink.lost(Some(vec![filter("b")]), "its slot has moved".into());
        sink.up();
        for why in ["one", "other", "other"] {
            sink.down(why);
        }
        let down = r#"Down { link: Pubsub, why: "other" }"#;
        assert_eq!(take(&mut sink, &mut events).await, ["a", down]);
        sink.down("other");
        assert!(sink.is_empty() && events.try_recv().is_err());
    }
}
