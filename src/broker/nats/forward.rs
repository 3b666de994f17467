//! The way of one subscription's messages from async-nats to the event channel.

use std::collections::VecDeque;

use async_nats::Subscriber;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::headers::read_headers;
use crate::broker::{Event, Message};
use crate::topic::{Filter, Topic};

/// Messages of one subscription that wait while the event channel is full; beyond either bound the newest are dropped.
const QUEUE_MESSAGES: usize = 64 * 1024;

/// The same in bytes.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Hands the messages of one subscription on until the connection ends.
///
/// They are taken from async-nats as they come, whether or not the event channel has room: it would drop what it cannot
/// place and report so on a channel that drops as well, without the place and at the cost of the refusals that share
/// that channel. Here what does not fit leaves its mark exactly where it is missing.
pub(super) async fn forward(filter: Filter, mut subscriber: Subscriber, events: mpsc::Sender<Event>) {
    let mut queue = Queue::default();
    loop {
        // Chosen at random when both can go on: neither may starve the other.
        tokio::select! {
            message = subscriber.next() => {
                let Some(message) = message else { break };
                let Some(event) = read_message(&filter, message, &events) else { continue };
                if queue.events.is_empty() {
                    match events.try_send(Event::Message(event)) {
                        Ok(()) => {}
                        Err(mpsc::error::TrySendError::Full(Event::Message(event))) => queue.push(event),
                        Err(_) => return,
                    }
                } else {
                    queue.push(event);
                }
            }
            permit = events.reserve(), if !queue.events.is_empty() => {
                let (Ok(permit), Some(event)) = (permit, queue.pop()) else { return };
                permit.send(event);
            }
        }
    }
    while let Some(event) = queue.pop() {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// What one subscription holds while the event channel is full.
#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    bytes: usize,
}

impl Queue {
    /// Takes a message in, or drops it and sees that a loss stands last: after what came before the hole and before
    /// what will come behind it.
    fn push(&mut self, message: Message) {
        let bytes = weight(&message);
        if self.events.len() < QUEUE_MESSAGES && self.bytes + bytes <= QUEUE_BYTES {
            self.bytes += bytes;
            self.events.push_back(Event::Message(message));
        } else if !matches!(self.events.back(), Some(Event::Lost { .. })) {
            let why = "messages came in faster than they were taken".to_owned();
            self.events.push_back(Event::Lost { filters: Some(vec![message.filter]), why });
        }
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Message(message) = &event {
            self.bytes -= weight(message);
        }
        Some(event)
    }
}

/// Bytes that a message holds on to, roughly.
fn weight(message: &Message) -> usize {
    let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
    size_of::<Event>() + message.topic.as_str().len() + message.payload.len() + headers
}

/// A message as the contract has it; `None` if the filter or the grammar does not match its subject.
fn read_message(
    filter: &Filter,
    message: async_nats::Message,
    events: &mpsc::Sender<Event>,
) -> Option<Message> {
    let Some(topic) = Topic::from_subject(&message.subject, '.') else {
        // For a counter only: not worth waiting for.
        let _ = events.try_send(Event::Unnameable { filter: filter.clone() });
        return None;
    };
    if !filter.matches(&topic) {
        return None; // a reserved subject, which NATS' wildcards match and ours do not
    }
    let headers = message.headers.as_ref().map(|fields| read_headers(fields, &[])).unwrap_or_default();
    Some(Message { filter: filter.clone(), topic, payload: message.payload, headers, stored: None })
}
