//! The sink of events for a task that must not wait for the event channel: events without room are kept here, in order.
//!
//! Two kinds of source behave differently when the channel is full ([`WhenFull`]). A task that has nothing else to do
//! meanwhile (the embedded broker, a follower of JetStream) does not use it: it sends on the channel itself and waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::{Event, Link, Message};
use crate::protocol::topic::Filter;

/// What happens to messages while the event channel is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// They wait here. The task reads nothing meanwhile, so that the rest stays on the server.
    Wait,
    /// They are dropped and counted, and [`Event::Lost`] is sent as soon as there is room: the server would end a connection
    /// that is not read. Bounded by one count per filter.
    Drop,
}

/// The sink of events. It also reports whether the connection is up, and each reason once.
pub(super) struct EventSink {
    events: mpsc::Sender<Event>,
    when_full: WhenFull,
    /// The connection whose state is reported. `None` for one of several connections, whose states are reported together.
    link: Option<Link>,
    /// Why the connection is down, as it was last reported.
    down: Option<String>,
    waiting: Backlog,
}

/// The events that wait for room.
#[derive(Default)]
struct Backlog {
    /// The waiting events, in order.
    queue: VecDeque<Waiting>,
    /// The number of dropped messages per filter. Their losses are sent after the queue.
    dropped: BTreeMap<Filter, u64>,
}

enum Waiting {
    Event(Event),
    /// An action to run once all events before it are sent.
    Action(Box<dyn FnOnce() + Send>),
}

impl EventSink {
    pub(super) fn new(events: mpsc::Sender<Event>, link: Option<Link>, when_full: WhenFull) -> Self {
        EventSink { events, when_full, link, down: None, waiting: Backlog::default() }
    }

    /// The number of waiting events and actions.
    pub(super) fn len(&self) -> usize {
        self.waiting.queue.len()
    }

    /// Whether nothing waits for room.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends an event, or keeps it until there is room.
    pub(super) fn push(&mut self, event: Event) {
        if !self.is_empty() {
            self.waiting.queue.push_back(Waiting::Event(event));
        } else if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            self.waiting.queue.push_back(Waiting::Event(event));
        }
    }

    /// Runs an action once all events before it are sent.
    pub(super) fn then(&mut self, action: impl FnOnce() + Send + 'static) {
        self.waiting.queue.push_back(Waiting::Action(Box::new(action)));
        self.waiting.act();
    }

    /// Sends a message that arrived by `filter`; it is created only if there is room.
    pub(super) fn message(&mut self, filter: &Filter, message: impl FnOnce() -> Message) {
        if self.when_full == WhenFull::Wait {
            return self.push(Event::Message(message()));
        }
        self.send_waiting();
        // Dropped messages of another filter delay nothing; a waiting event delays everything.
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

    /// Reports a subject that is no valid topic. It only counts for a metric, so it is not kept where messages are dropped.
    pub(super) fn unnameable(&mut self, filter: &Filter) {
        let event = Event::Unnameable { filter: filter.clone() };
        match self.when_full {
            WhenFull::Wait => self.push(event),
            WhenFull::Drop => drop(self.events.try_send(event)),
        }
    }

    /// Reports that messages of `filters` may be missing here; of all filters if it is `None`.
    pub(super) fn lost(&mut self, filters: Option<Vec<Filter>>, why: String) {
        if self.when_full == WhenFull::Drop {
            // If no message lies between two losses, one stands for both. So there are few, however long the channel is
            // full.
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

    /// Reports that these filters receive nothing from now on.
    pub(super) fn interrupted(&mut self, filters: Vec<Filter>) {
        if !filters.is_empty() {
            self.push(Event::Interrupted { filters });
        }
    }

    /// Reports that these filters receive messages again.
    pub(super) fn resumed(&mut self, filters: Vec<Filter>) {
        if !filters.is_empty() {
            self.push(Event::Resumed { filters });
        }
    }

    /// Reports that the connection is up.
    pub(super) fn up(&mut self) {
        self.down = None;
        if let Some(link) = self.link {
            self.push(Event::Up(link));
        }
    }

    /// Reports that the connection ended or failed.
    pub(super) fn down(&mut self, why: &str) {
        if self.when_full == WhenFull::Drop {
            // The loss of all filters after the next connection covers these. If they were sent now, they would come before
            // the subscriptions are complete.
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

    /// Forgets the count of dropped messages of a filter, because its loss is reported in another way.
    pub(super) fn forget_dropped(&mut self, filter: &Filter) {
        self.waiting.dropped.remove(filter);
    }

    /// Forgets the waiting events of a filter that is no longer subscribed, or is subscribed again.
    pub(super) fn forget(&mut self, filter: &Filter) {
        self.waiting.dropped.remove(filter);
        self.waiting.queue.retain(|waiting| match waiting {
            Waiting::Event(event) => of_one(event) != Some(filter),
            Waiting::Action(_) => true,
        });
        self.waiting.act();
    }

    /// Waits for room and sends events. Returns `false` once the event channel has closed; if nothing waits, it returns for
    /// no other reason. Cancel-safe.
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

    /// Sends the events for which there is room now.
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

    /// The next event. Once it is sent, [`Backlog::act`] must be called.
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

    /// Runs the actions before which no event waits.
    fn act(&mut self) {
        while matches!(self.queue.front(), Some(Waiting::Action(_)))
            && let Some(Waiting::Action(action)) = self.queue.pop_front()
        {
            action();
        }
    }
}

/// The filter of an event, if it concerns a single one.
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

    /// Receives events until nothing waits any more.
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
        assert!(!*done.lock(), "c is not sent yet");
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
