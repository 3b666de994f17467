//! Where a request comes from.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::Extensions;

/// The address of the client, as far as it can be believed. In the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientAddress(pub(super) IpAddr);

/// The address in a request's extensions.
pub(super) fn address(extensions: &Extensions) -> IpAddr {
    // Every connection puts it there; an address that nobody has stands for none.
    extensions.get::<ClientAddress>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |client| client.0)
}
