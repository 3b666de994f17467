//! Slot migration: releases shard channels that another shard has now, adopts those that come from another, and tries
//! migrating channels again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::Task;
use crate::broker::redis::ShardCommand;
use crate::broker::redis::cluster::Slots;
use crate::broker::redis::session::Waiting;
use crate::broker::redis::shards::{Released, Routed};
use crate::broker::redis::table::Name;
use crate::broker::{BrokerError, Command};
use crate::protocol::topic::Filter;

impl<C: Into<ShardCommand>> Task<C> {
    /// Releases the channels that another shard has now, except those with a pending subscription, which is answered
    /// first. The server unsubscribes the channels of a migrated slot by itself; an UNSUBSCRIBE would race with its
    /// push.
    pub(super) fn leave(
        &mut self,
        slots: Arc<Slots>,
        asked: oneshot::Sender<Released<(String, Filter)>>,
        waiting: &[Waiting],
    ) {
        let is_awaited = |channel: &str| waiting.iter().any(|(_, name, _)| name.as_str() == channel);
        let has_lost =
            |channel: &str| self.shard.as_ref().is_some_and(|shard| shard.has_lost(&slots, channel));
        let left = self.table.channels.extract_if(|channel, _| has_lost(channel) && !is_awaited(channel));
        let held: Vec<_> = left.map(|(channel, (filter, _))| (channel, filter)).collect();
        for (channel, filter) in &held {
            self.migrating.remove(channel);
            self.outbox.forget(filter);
        }
        let _ = asked.send(Released { held, is_whole: false, remaining: self.table.channels.len() });
        self.slots = Some(slots);
    }

    /// Runs the releases and adoptions of the queue, even while the server owes an answer: a server that hangs would
    /// delay them, and meanwhile deliver only some of the messages of channels that it no longer owns.
    pub(super) fn carry_over(&mut self, queue: &mut VecDeque<ShardCommand>, waiting: &[Waiting]) {
        while let Some(place) = queue.iter().position(|order| !matches!(order, ShardCommand::Command(_))) {
            let mut before: VecDeque<ShardCommand> = queue.drain(..place).collect();
            // Channels that were unsubscribed before are not handed over.
            while let Some(mut place) = before.iter().position(ShardCommand::ends_subscription)
                && let Some(ShardCommand::Command(Command::Unsubscribe { filter })) = before.remove(place)
            {
                let begins = |order: &ShardCommand| matches!(order, ShardCommand::Command(Command::Subscribe { filter: of, .. }) if *of == filter);
                while let Some(begin) = before.iter().take(place).position(begins)
                    && let Some(ShardCommand::Command(command)) = before.remove(begin)
                {
                    command.fail(BrokerError::Away("it was unsubscribed".into()));
                    place -= 1;
                }
                self.unsubscribe(&filter);
            }
            match queue.pop_front() {
                Some(ShardCommand::Release { slots, left }) => self.leave(slots, left, waiting),
                Some(ShardCommand::Adopt(entering)) => self.enter(entering.held),
                Some(ShardCommand::Command(_)) | None => {} // the index of a release or an adoption
            }
            before.append(queue);
            *queue = before;
        }
    }

    /// Adopts channels from another shard.
    pub(super) fn enter(&mut self, held: Vec<(String, Filter)>) {
        for (channel, filter) in held {
            let name = Name::Channel(channel);
            self.table.insert(&name, filter.clone());
            self.outbox.moving(filter);
            self.unwanted.retain(|unwanted| *unwanted != name);
            self.migrating.enter(name.into_string());
        }
    }

    /// Marks a channel as migrating: the server no longer has it, or does not have it yet.
    pub(super) fn go_astray(&mut self, channel: String) {
        if let Some((filter, _)) = self.table.channels.get(&channel) {
            self.outbox.moving(filter.clone());
            self.migrating.go_astray(channel);
            self.refresh_topology();
        }
    }

    pub(super) fn refresh_topology(&self) {
        self.shard.iter().for_each(|shard| shard.refresh_topology());
    }

    /// Handles the answers to migrating channels that were tried.
    pub(super) fn answer_strays(&mut self, channels: Vec<String>, faults: &HashMap<Name, BrokerError>) {
        let mut arrived = Vec::new();
        for channel in channels {
            let name = Name::Channel(channel);
            match faults.get(&name) {
                Some(BrokerError::Away(_)) => {}
                Some(BrokerError::Refused(why) | BrokerError::Unfit(why)) => {
                    self.migrating.remove(name.as_str());
                    for filter in self.table.remove_name(&name) {
                        self.outbox.forget(&filter);
                        self.outbox.refused(filter, why);
                    }
                }
                // It may have moved again since.
                None if self.migrating.has_arrived(name.as_str()) => {
                    arrived.extend(self.table.channels.get(name.as_str()).map(|(filter, _)| filter.clone()));
                }
                None => {}
            }
        }
        if !arrived.is_empty() {
            self.outbox.arrived(arrived, "its slot has moved");
        }
    }
}
