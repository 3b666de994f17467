//! The common state of the tasks of a server: the address, the subscriptions, the two channels, and the shard of a
//! cluster.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::cluster::Slots;
use super::servers::Servers;
use super::shards::Shard;
use super::table::Table;
use crate::broker::sink::EventSink;

/// The common state of a task.
pub(super) struct Context<C> {
    pub(super) servers: Servers,
    pub(super) table: Table,
    pub(super) commands: mpsc::Receiver<C>,
    pub(super) sink: EventSink,
    /// The shard of a cluster that it serves, if any. The state of its connection is then reported together with the state
    /// of the others.
    pub(super) shard: Option<Arc<Shard>>,
    /// Whether there is no connection.
    pub(super) is_down: bool,
}

impl<C> Context<C> {
    pub(super) fn is_shard(&self) -> bool {
        self.shard.is_some()
    }

    /// Whether another shard has this key or channel now.
    pub(super) fn has_lost(&self, slots: &Slots, name: &str) -> bool {
        self.shard.as_ref().is_some_and(|shard| shard.has_lost(slots, name))
    }

    /// Called when a command failed here because another node may be the right one.
    pub(super) fn refresh_topology(&self) {
        if let Some(shard) = &self.shard {
            shard.refresh_topology();
        }
    }

    /// Called when the connection is up and everything is subscribed.
    pub(super) fn up(&mut self) {
        self.is_down = false;
        self.sink.up();
        if let Some(shard) = &self.shard {
            shard.up();
        }
    }

    /// Reports that the connection ended or failed.
    pub(super) fn down(&mut self, why: &str) {
        self.is_down = true;
        self.sink.down(why);
        if let Some(shard) = &self.shard {
            shard.down(why);
        }
    }
}
