//! Open connections: each holds a permit of its listener, and counts against the address of its client.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::config::Proxies;
use crate::gateway::Gateway;
use crate::reader::connections::CountedAddress;

/// The connections of one listener.
pub(super) struct Connections {
    pub(super) gateway: Arc<Gateway>,
    /// A permit for each that may still be accepted.
    pub(super) free: Semaphore,
    /// They count for the addresses of their clients.
    pub(super) is_public: bool,
}

/// A connection that is open, for the limits and the metric. Small: every reader keeps one.
pub(super) struct Open {
    listener: Arc<Connections>,
    /// The address that it counts for.
    client: Option<CountedAddress>,
}

impl Open {
    /// Counts it in the metric. It gives its permit back when it is dropped.
    pub(super) fn new(listener: Arc<Connections>) -> Self {
        listener.gateway.metrics().connections.inc();
        Open { listener, client: None }
    }

    /// Counts it for its client, once that is known. `false`: the client has reached its limit, and this connection must be
    /// closed. Connections of a trusted proxy, which are those of all its clients, have no limit.
    pub(super) fn is_of(&mut self, client: IpAddr, proxies: &Proxies) -> bool {
        if !self.listener.is_public || proxies.trusts(client) {
            return true;
        }
        self.client = self.listener.gateway.connect(client);
        self.client.is_some()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Connections { gateway, free, .. } = &*self.listener;
        gateway.metrics().connections.dec();
        if let Some(client) = self.client {
            gateway.disconnect(client);
        }
        free.add_permits(1);
    }
}
