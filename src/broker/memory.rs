//! The embedded broker: delivers published messages to the subscriptions of this process. It is for trying things out
//! and for tests. It stores nothing and connects to nothing.

use std::collections::HashSet;

use tokio::sync::mpsc;

use super::{Command, Event, Link, Message};
use crate::protocol::topic::Filter;

/// Runs until the command channel or the event channel closes. A full event channel delays publishers; no message is
/// lost.
pub(super) async fn run(mut commands: mpsc::Receiver<Command>, events: mpsc::Sender<Event>) {
    let mut topics: HashSet<Filter> = HashSet::new();
    let mut patterns: HashSet<Filter> = HashSet::new();
    if events.send(Event::Up(Link::Pubsub)).await.is_err() {
        return;
    }
    while let Some(command) = commands.recv().await {
        match command {
            Command::Subscribe { filter, done } => {
                if filter.is_pattern() {
                    patterns.insert(filter)
                } else {
                    topics.insert(filter)
                };
                let _ = done.send(Ok(()));
            }
            Command::Unsubscribe { filter } => {
                topics.remove(&filter);
                patterns.remove(&filter);
            }
            Command::Publish { topic, payload, headers, done } => {
                let exact = topics.get(&Filter::from(topic.clone()));
                for filter in exact.into_iter().chain(patterns.iter().filter(|filter| filter.matches(&topic)))
                {
                    let message = Message {
                        filter: filter.clone(),
                        topic: topic.clone(),
                        payload: payload.clone(),
                        headers: headers.clone(),
                        stored: None,
                    };
                    if events.send(Event::Message(message)).await.is_err() {
                        return;
                    }
                }
                let _ = done.send(Ok(()));
            }
        }
    }
}
