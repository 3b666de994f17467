//! How many connections each client address has, so that none has all of them. Apart from the other counts of an address
//! (`quota.rs`): a connection counts before anything is known of who it is for, and until it ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// An address as its connections are counted: whoever has one address of IPv6 has all of its /64. Every connection keeps one, so
/// it has no more bytes than that takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CountedAddress {
    /// One of IPv4.
    V4([u8; 4]),
    /// The network of one of IPv6.
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

/// See the module.
#[derive(Debug, Default)]
pub struct Connections {
    per_address: AtomicUsize,
    /// Keyed with the standard library's seeded hash. No address is here without a connection, so that `limits.connections`
    /// bounds it.
    counts: Mutex<HashMap<CountedAddress, usize>>,
}

impl Connections {
    /// From now on an address may have as many. Whoever has more keeps them.
    pub fn set_limit(&self, per_address: usize) {
        self.per_address.store(per_address, Ordering::Relaxed);
    }

    /// Counts one more, to be given back by [`Connections::leave`]. `None`: the address has as many as it may, and this one was
    /// not counted.
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

    /// One of the address has ended.
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

    /// Connections of the address that has most.
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
