//! Where a request comes from.

use std::net::IpAddr;

/// The address of the client, as far as it can be believed. In the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientAddress(pub(super) IpAddr);
