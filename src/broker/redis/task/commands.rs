//! The commands of a task: sends the requests that they need to the server, and answers them.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Service, Task};
use crate::broker::redis::publisher::Publish;
use crate::broker::redis::session::{Answer, Change, Done, Request};
use crate::broker::redis::shards::Routed;
use crate::broker::redis::table::Name;
use crate::broker::redis::{SessionEnd, ShardCommand};
use crate::broker::{BrokerError, Command};
use crate::protocol::headers::Headers;
use crate::protocol::topic::{Filter, Topic};

impl<C: Into<ShardCommand>> Task<C> {
    /// Answers a command while there is no connection.
    pub(super) fn answer_order_away(&mut self, order: ShardCommand, why: &str) {
        match order {
            ShardCommand::Command(Command::Unsubscribe { filter }) => self.unsubscribe(&filter),
            ShardCommand::Command(command) => command.fail(BrokerError::Away(why.into())),
            ShardCommand::Release { slots, left } => self.release(slots, left, &[]),
            ShardCommand::Adopt(adopted) => self.adopt(adopted.held),
        }
    }

    /// Removes a filter from the table; the next change unsubscribes its name.
    pub(super) fn unsubscribe(&mut self, filter: &Filter) {
        self.context.sink.forget(filter);
        if let Ok(name) = self.context.table.name(filter)
            && self.context.table.remove(&name, filter)
        {
            self.channels.unwanted(name);
        }
    }

    /// Handles commands of the queue until one needs the server, or a PUBLISH has no room.
    pub(super) fn advance(&mut self, service: &mut Service) -> Option<Request> {
        let mut change = Change { unsubscribe: self.channels.take_unwanted(), ..Change::default() };
        while let Some(order) = service.queue.pop_front() {
            let later = match order {
                ShardCommand::Command(Command::Subscribe { filter, done }) => {
                    self.take_subscribe(filter, done, &mut change)
                }
                ShardCommand::Command(Command::Unsubscribe { filter }) => {
                    self.take_unsubscribe(filter, &mut change)
                }
                // After the subscriptions that were sent before it, which would otherwise miss it.
                ShardCommand::Command(publish @ Command::Publish { .. }) if !change.is_empty() => {
                    Some(publish)
                }
                ShardCommand::Command(Command::Publish { topic, payload, headers, done }) => {
                    self.take_publish(topic, payload, headers, done, &service.publisher)
                }
                ShardCommand::Release { .. } | ShardCommand::Adopt(_) => None, // carried out when they came
            };
            if let Some(command) = later {
                service.queue.push_front(command.into());
                break;
            }
        }
        let channels = &self.context.table.channels;
        change.subscribe.extend(self.channels.due(|channel| channels.contains_key(channel)));
        (!change.is_empty()).then(|| self.request(&service.sink, change))
    }

    /// Adds a subscription to a change. Returns the command if it has to wait for the change.
    fn take_subscribe(&mut self, filter: Filter, done: Done, change: &mut Change) -> Option<Command> {
        let table = &mut self.context.table;
        let name = match table.name(&filter) {
            Ok(name) => name,
            Err(refused) => {
                let _ = done.send(Err(refused));
                return None;
            }
        };
        if change.unsubscribe.contains(&name) {
            return Some(Command::Subscribe { filter, done });
        }
        // In the table before it is requested: its first messages can overtake the confirmation here.
        let known = table.contains(&name);
        if table.insert(&name, filter.clone()) {
            self.context.sink.forget(&filter);
        }
        if known && !change.subscribe.contains(&name) {
            let _ = done.send(Ok(()));
        } else {
            change.subscribe.insert(name.clone());
            change.waiting.push((filter, name, done));
        }
        None
    }

    /// Adds the end of a subscription to a change. Returns the command if it has to wait for the change.
    fn take_unsubscribe(&mut self, filter: Filter, change: &mut Change) -> Option<Command> {
        let name = self.context.table.name(&filter).ok()?;
        if change.subscribe.contains(&name) {
            return Some(Command::Unsubscribe { filter });
        }
        self.context.sink.forget(&filter);
        if self.context.table.remove(&name, &filter) {
            self.channels.remove(&name);
            change.unsubscribe.insert(name);
        }
        None
    }

    /// Publishes. Returns the command if there is no room for it.
    fn take_publish(
        &self,
        topic: Topic,
        payload: Bytes,
        headers: Headers,
        done: Done,
        publisher: &mpsc::Sender<Publish>,
    ) -> Option<Command> {
        if let Err(refused) = self.publishable(&topic, &headers) {
            let _ = done.send(Err(refused));
            return None;
        }
        match publisher.try_reserve() {
            Ok(permit) => {
                permit.send(Publish {
                    channel: topic.to_subject(self.context.table.separator),
                    payload,
                    done,
                });
                None
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                Some(Command::Publish { topic, payload, headers, done })
            }
            Err(mpsc::error::TrySendError::Closed(())) => {
                let _ = done.send(Err(BrokerError::Away("the publisher has stopped".into())));
                None
            }
        }
    }

    fn publishable(&self, topic: &Topic, headers: &Headers) -> Result<(), BrokerError> {
        if !headers.is_empty() {
            let why = "Redis messages have no header fields; put their values into the payload";
            return Err(BrokerError::Refused(why.into()));
        }
        self.context.table.name(&Filter::from(topic.clone())).map(drop)
    }

    /// Answers the subscriptions of a change. `false` if the connection failed.
    pub(super) fn answer(&mut self, change: Change, answer: Answer) -> bool {
        let closed = answer.is_err();
        let faults: HashMap<Name, BrokerError> = answer.unwrap_or_default().into_iter().collect();
        if faults.values().any(|fault| matches!(fault, BrokerError::Away(_))) {
            self.context.refresh_topology();
        }
        for (filter, name, done) in change.waiting {
            let mut result = if closed {
                Err(BrokerError::Away(SessionEnd::Closed.to_string()))
            } else {
                faults.get(&name).cloned().map_or(Ok(()), Err)
            };
            if result.is_err() {
                self.context.table.remove(&name, &filter);
                self.channels.remove(&name);
                self.context.sink.forget(&filter);
            } else if self.slots.as_ref().is_some_and(|slots| self.context.has_lost(slots, name.as_str())) {
                self.unsubscribe(&filter);
                result = Err(BrokerError::Away("its slot has moved".into()));
            }
            let _ = done.send(result);
        }
        if !closed && self.context.is_shard() {
            self.answer_tried(&faults);
        }
        !closed
    }
}
