//! Which addresses count as one client, for quotas and turns.

use std::net::{IpAddr, Ipv6Addr};

/// The address under which a client is counted. A client with one IPv6 address has its whole /64.
pub fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}
