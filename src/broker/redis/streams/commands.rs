//! The commands of a task: follows keys, starts lookups, and hands keys over to the other shards of a cluster.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::key::Key;
use super::lookup::{KeyOf, Lookup, What};
use super::read::samples_and_time;
use super::server::Session;
use super::{ShardCommand, Task};
use crate::broker::redis::answers::lost;
use crate::broker::redis::cluster::Slots;
use crate::broker::redis::shards::{Adopted, Released, Routed};
use crate::broker::redis::table::Name;
use crate::broker::{BrokerError, StoredCommand};
use crate::protocol::source::Source;
use crate::protocol::topic::Filter;

/// The answer to a subscription.
type Done = oneshot::Sender<Result<(), BrokerError>>;

/// Keys that a shard releases.
type ReleasedKeys = Released<(Arc<str>, Key)>;

impl<C: Into<ShardCommand>> Task<C> {
    /// Answers a command while there is no connection.
    pub(super) fn answer_order_away(&mut self, order: ShardCommand, why: &str) {
        match order {
            ShardCommand::Command(StoredCommand::Unsubscribe { filter }) => self.unfollow(&filter),
            ShardCommand::Command(command) => command.fail(BrokerError::Away(why.into())),
            ShardCommand::Release { slots, left } => self.release(&slots, left, false),
            ShardCommand::Adopt(adopted) => self.adopt(adopted),
        }
    }

    /// Releases the keys that another shard has now.
    fn release(&mut self, slots: &Slots, left: oneshot::Sender<ReleasedKeys>, is_whole: bool) {
        let held = self.following.leave(|name| self.context.has_lost(slots, name));
        let released = Released { held, is_whole, remaining: self.following.len() };
        // After the events of entries that were already read have been sent: the next shard must not overtake them.
        self.context.sink.then(move || drop(left.send(released)));
    }

    /// Adopts keys that another shard has followed, at the same position.
    fn adopt(&mut self, Adopted { held, lost }: Adopted<(Arc<str>, Key)>) {
        let filters = held.iter().map(|(_, key)| key.filter().clone()).collect();
        let events = self.following.enter(held, lost.as_deref());
        self.emit(events);
        if self.context.is_down {
            self.context.sink.interrupted(filters);
        } else {
            self.context.sink.resumed(filters);
        }
    }

    /// Runs the commands of the queue, up to one that asks the server if it must not be asked now. Returns whether a new
    /// key is followed.
    ///
    /// # Errors
    /// Why the connection is no longer usable.
    pub(super) async fn carry_out(&mut self, session: &Session, may_ask: bool) -> Result<bool, String> {
        let mut is_new = false;
        while let Some(order) = self.queue.pop_front() {
            let command = match order {
                ShardCommand::Command(command) => command,
                ShardCommand::Release { slots, left } => {
                    self.release(&slots, left, true);
                    continue;
                }
                ShardCommand::Adopt(adopted) => {
                    self.adopt(adopted);
                    continue;
                }
            };
            match command {
                StoredCommand::Subscribe { .. } => {
                    self.queue.push_front(command.into());
                    if !may_ask {
                        break;
                    }
                    is_new |= self.follow(session).await?;
                }
                StoredCommand::Unsubscribe { filter } => self.unfollow(&filter),
                StoredCommand::Publish { topic, source, payload, headers, done } => {
                    self.look_up(&Filter::from(topic), source, What::Publish { payload, headers, done });
                }
                StoredCommand::Fetch { filter, source, after, until, done } => {
                    self.look_up(&filter, source, What::Fetch { after, until, done });
                }
                StoredCommand::Locate { filter, source, seek, done } => {
                    self.look_up(&filter, source, What::Locate { seek, done });
                }
                StoredCommand::Last { topic, source, done } => {
                    self.look_up(&topic, source, What::Last { done });
                }
            }
        }
        Ok(is_new)
    }

    /// Follows the keys of the subscriptions at the head of the queue, with one round trip to the server.
    async fn follow(&mut self, session: &Session) -> Result<bool, String> {
        let mut begins: Vec<(KeyOf, Filter, Source, Done)> = Vec::new();
        while let Some(order) = self.queue.pop_front() {
            let ShardCommand::Command(StoredCommand::Subscribe { filter, source, done }) = order else {
                self.queue.push_front(order);
                break;
            };
            match self.key_of(&filter, &source) {
                Err(why) => drop(done.send(Err(why))),
                Ok(key) if self.following.contains(&key.name) => drop(done.send(Ok(()))),
                // Handled again once the first is followed.
                Ok(key) if begins.iter().any(|(other, ..)| other.name == key.name) => {
                    self.queue.push_front(StoredCommand::Subscribe { filter, source, done }.into());
                    break;
                }
                Ok(key) => begins.push((key, filter, source, done)),
            }
        }
        let mut connection = session.commands.clone();
        let names: Vec<&str> = begins.iter().map(|(key, ..)| &*key.name).collect();
        let (samples, time) = match samples_and_time(&mut connection, &names).await {
            Ok(sampled) => sampled,
            Err(error) => {
                let why = lost(&error);
                // A subscription only reads, so it is made again in the next session, once.
                let is_repeated = std::mem::replace(&mut self.has_failed_to_follow, true);
                for (_, filter, source, done) in begins.into_iter().rev() {
                    if is_repeated {
                        let _ = done.send(Err(BrokerError::Away(why.clone())));
                    } else {
                        self.queue.push_front(StoredCommand::Subscribe { filter, source, done }.into());
                    }
                }
                return Err(why);
            }
        };
        self.has_failed_to_follow = false;
        let mut is_new = false;
        for ((KeyOf { name, topic, payload }, filter, _, done), sample) in begins.into_iter().zip(samples) {
            match sample.and_then(|sample| Key::begin(filter, topic, payload, &sample)) {
                Ok((key, head)) => {
                    self.context.sink.push(key.begun(&name, head, time));
                    self.context.sink.then(move || drop(done.send(Ok(()))));
                    self.following.follow(&name, key);
                    is_new = true;
                }
                Err(why) => {
                    self.look_elsewhere(&why);
                    let _ = done.send(Err(why));
                }
            }
        }
        Ok(is_new)
    }

    fn unfollow(&mut self, filter: &Filter) {
        if let Ok(Name::Channel(name)) = self.context.table.name(filter) {
            self.following.unfollow(&name);
            self.context.sink.forget(filter);
        }
    }

    fn look_up(&mut self, filter: &Filter, source: Source, what: What) {
        match self.key_of(filter, &source) {
            Ok(key) => self.lookups.push_back(Lookup { key, what, is_repeated: false }),
            Err(why) => what.fail(why),
        }
    }

    /// The key of a topic.
    fn key_of(&self, filter: &Filter, source: &Source) -> Result<KeyOf, BrokerError> {
        let refused = |why: &str| Err(BrokerError::Refused(why.into()));
        let Source::RedisStream { payload } = source else {
            return refused("Redis stores only Redis Streams");
        };
        match (self.context.table.name(filter)?, filter.topic()) {
            (Name::Channel(name), Some(topic)) => Ok(KeyOf { name, topic, payload: payload.clone() }),
            _ => refused(StoredCommand::NO_PATTERNS),
        }
    }
}
