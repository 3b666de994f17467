//! Open connections: each has a permit of its listener, and counts against the limit of its client's address.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::config::Proxies;
use crate::gateway::Gateway;
use crate::reader::connections::CountedAddress;

/// The connections of one listener.
pub(super) struct Connections {
    pub(super) gateway: Arc<Gateway>,
    /// A permit for each connection that may still be accepted.
    pub(super) free: Semaphore,
    /// Counts connections by the addresses of their clients.
    pub(super) is_public: bool,
}

/// An open connection, for the limits and the metric. It is small, because every reader has one.
pub(super) struct Open {
    listener: Arc<Connections>,
    /// The address against which it counts.
    client: Option<CountedAddress>,
}

impl Open {
    /// Counts it in the metric. Dropping it returns the permit.
    pub(super) fn new(listener: Arc<Connections>) -> Self {
        listener.gateway.metrics().connections.inc();
        Open { listener, client: None }
    }

    /// Counts it for its client, once the client is known. `false`: the client has reached its limit, and this
    /// connection must be closed. Connections of a trusted proxy have no limit, because all its clients share them.
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
