//! The number of connections of each client address, so that no address takes all of them. They are counted separately
//! from the other usage of an address (`quota.rs`), because a connection counts from its beginning until it ends, and not
//! only while it has a stream.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// The address under which connections are counted: an IPv4 address, or the /64 of an IPv6 address. It is small, because
/// every connection has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CountedAddress {
    /// An IPv4 address.
    V4([u8; 4]),
    /// The /64 of an IPv6 address.
    V6([u8; 8]),
}

impl From<IpAddr> for CountedAddress {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => CountedAddress::V4(address.octets()),
            IpAddr::V6(address) => CountedAddress::V6(((address.to_bits() >> 64) as u64).to_be_bytes()),
        }
    }
}

/// The number of connections of each address.
#[derive(Debug, Default)]
pub struct Connections {
    per_address: AtomicUsize,
    /// Uses the standard library's seeded hash. Every address here has a connection, so `limits.connections` bounds the
    /// table.
    counts: Mutex<HashMap<CountedAddress, usize>>,
}

impl Connections {
    /// Changes the limit of each address. Existing connections beyond a lower limit stay open.
    pub fn set_limit(&self, per_address: usize) {
        self.per_address.store(per_address, Ordering::Relaxed);
    }

    /// Counts a connection, until [`Connections::leave`]. `None`: the address has reached its limit, and the connection
    /// was not counted.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<CountedAddress> {
        let address = CountedAddress::from(address);
        let most = self.per_address.load(Ordering::Relaxed).max(1);
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_default();
        let has_room = *count < most;
        *count += usize::from(has_room);
        has_room.then_some(address)
    }

    /// Called when a connection of the address has ended.
    pub fn leave(&self, address: CountedAddress) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
        if counts.capacity() > 1024 && counts.len() * 4 < counts.capacity() {
            counts.shrink_to_fit();
        }
    }

    /// The number of connections of the address with the most.
    pub fn most(&self) -> usize {
        self.counts.lock().values().copied().max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_at_its_limit_gets_no_more_connections_until_one_ends_and_is_forgotten_with_the_last() {
        let connections = Connections::default();
        connections.set_limit(2);
        let enter = |address: &str| connections.enter(address.parse().unwrap()).is_some();
        let leave = |address: &str| connections.leave(address.parse::<IpAddr>().unwrap().into());
        assert!(enter("2001:db8:0:1::1") && enter("2001:db8:0:1::2"));
        assert!(!enter("2001:db8:0:1::3"), "the /64 counts");
        assert!(enter("2001:db8:0:2::1") && enter("10.0.0.1"));
        assert_eq!(connections.most(), 2);
        leave("2001:db8:0:1::2");
        assert!(enter("2001:db8:0:1::3"));
        for address in ["2001:db8:0:1::1", "2001:db8:0:1::3", "2001:db8:0:2::1", "10.0.0.1"] {
            leave(address);
        }
        assert!(connections.counts.lock().is_empty());
    }
}
