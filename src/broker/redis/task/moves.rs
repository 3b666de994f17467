//! Shard channels that migrate between the shards of a cluster: they are released, adopted, and tried again until their
//! new shard has them.

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
    pub(super) fn release(
        &mut self,
        slots: Arc<Slots>,
        left: oneshot::Sender<Released<(String, Filter)>>,
        waiting: &[Waiting],
    ) {
        let is_awaited = |channel: &str| waiting.iter().any(|(_, name, _)| name.as_str() == channel);
        let shard = self.context.shard.as_ref();
        let has_lost = |channel: &str| shard.is_some_and(|shard| shard.has_lost(&slots, channel));
        let channels = &mut self.context.table.channels;
        let lost = channels.extract_if(|channel, _| has_lost(channel) && !is_awaited(channel));
        let held: Vec<_> = lost.map(|(channel, (filter, _))| (channel, filter)).collect();
        let remaining = channels.len();
        for (channel, filter) in &held {
            self.channels.remove(&Name::Channel(channel.clone()));
            self.context.sink.forget(filter);
        }
        let _ = left.send(Released { held, is_whole: false, remaining });
        self.slots = Some(slots);
    }

    /// Adopts channels from another shard.
    pub(super) fn adopt(&mut self, held: Vec<(String, Filter)>) {
        // Until the server has confirmed them.
        self.context.sink.interrupted(held.iter().map(|(_, filter)| filter.clone()).collect());
        for (channel, filter) in held {
            let name = Name::Channel(channel);
            self.context.sink.forget_dropped(&filter);
            self.context.table.insert(&name, filter);
            self.channels.adopt(name);
        }
    }

    /// Runs the releases and adoptions before the waiting commands, even while the server owes an answer: a server that
    /// hangs would delay them, and would meanwhile still forward some messages of channels that it no longer owns.
    pub(super) fn carry_over(&mut self, queue: &mut VecDeque<ShardCommand>, waiting: &[Waiting]) {
        let mut commands = Vec::with_capacity(queue.len());
        for order in queue.drain(..) {
            match order {
                ShardCommand::Command(command) => commands.push(command),
                ShardCommand::Release { slots, left } => {
                    commands = self.without_unsubscribed(commands);
                    self.release(slots, left, waiting);
                }
                ShardCommand::Adopt(adopted) => {
                    commands = self.without_unsubscribed(commands);
                    self.adopt(adopted.held);
                }
            }
        }
        queue.extend(commands.into_iter().map(ShardCommand::Command));
    }

    /// Handles the commands that end subscriptions, so that these are not handed over, and the subscriptions that only
    /// began. Returns the other commands.
    fn without_unsubscribed(&mut self, commands: Vec<Command>) -> Vec<Command> {
        let mut others = Vec::with_capacity(commands.len());
        for command in commands {
            let Command::Unsubscribe { filter: ended } = command else {
                others.push(command);
                continue;
            };
            let begins = |command: &mut Command| matches!(command, Command::Subscribe { filter, .. } if *filter == ended);
            for begun in others.extract_if(.., begins) {
                begun.fail(BrokerError::Away("it was unsubscribed from".into()));
            }
            self.unsubscribe(&ended);
        }
        others
    }

    /// Marks a channel as migrating: the server no longer has it, or does not have it yet.
    pub(super) fn go_astray(&mut self, channel: String) {
        if let Some((filter, _)) = self.context.table.channels.get(&channel) {
            self.context.sink.forget_dropped(filter);
            self.context.sink.interrupted(vec![filter.clone()]);
            self.channels.go_astray(Name::Channel(channel));
            self.context.refresh_topology();
        }
    }

    /// Handles the server's answer for the channels that were tried.
    pub(super) fn answer_tried(&mut self, faults: &HashMap<Name, BrokerError>) {
        let mut arrived = Vec::new();
        for name in self.channels.answered(faults) {
            arrived.extend(self.context.table.channels.get(name.as_str()).map(|(filter, _)| filter.clone()));
        }
        if !arrived.is_empty() {
            self.context.sink.lost(Some(arrived.clone()), "its slot has moved".into());
            self.context.sink.resumed(arrived);
        }
        for (name, fault) in faults {
            let (BrokerError::Refused(why) | BrokerError::Unfit(why) | BrokerError::TooLarge(why)) = fault
            else {
                continue;
            };
            // A channel with a pending subscription is no longer in the table.
            self.channels.remove(name);
            for filter in self.context.table.remove_name(name) {
                self.context.sink.refused(filter, why.clone());
            }
        }
    }
}
