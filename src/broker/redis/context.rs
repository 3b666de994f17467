//! What every task of a server has: where it connects, what is subscribed, its two channels, and its part in a cluster.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::cluster::Slots;
use super::servers::Servers;
use super::shards::Shard;
use super::table::Table;
use crate::broker::sink::EventSink;

/// See the module.
pub(super) struct Context<C> {
    pub(super) servers: Servers,
    pub(super) table: Table,
    pub(super) commands: mpsc::Receiver<C>,
    pub(super) sink: EventSink,
    /// Which part of a cluster it serves, if it serves one. Then the state of its connection is told together with that of
    /// the others.
    pub(super) shard: Option<Arc<Shard>>,
    /// Whether there is no connection.
    pub(super) is_down: bool,
}

impl<C> Context<C> {
    pub(super) fn is_shard(&self) -> bool {
        self.shard.is_some()
    }

    /// Whether another shard has a key or channel.
    pub(super) fn has_lost(&self, slots: &Slots, name: &str) -> bool {
        self.shard.as_ref().is_some_and(|shard| shard.has_lost(slots, name))
    }

    /// Something could not be done here, and another node may be the right one.
    pub(super) fn refresh_topology(&self) {
        if let Some(shard) = &self.shard {
            shard.refresh_topology();
        }
    }

    /// The connection is whole.
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
