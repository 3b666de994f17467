//! The PROXY protocol, version 2: a trusted proxy names the client before anything else is sent on the connection. From
//! any other peer, the same bytes are a bad request. Version 1, a line of text, is not supported.

use std::io;
use std::net::IpAddr;

use ppp::v2::{Addresses, Command, Header, PROTOCOL_PREFIX};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::client::ClientAddress;
use crate::config::{AddressSource, Proxies};

/// The fixed part of the header, up to and including the length of the rest.
const FIXED: usize = 16;

/// Bytes of the addresses and of what a proxy adds to them (TLVs, such as the name in a client's certificate).
const MAX_REST: usize = 2048;

/// Finds the client of a connection from `peer`. Reads the header if there must be one, and not a byte more. It has no
/// timeout of its own.
///
/// # Errors
/// The header is missing, malformed or incomplete.
pub(super) async fn client(
    socket: &mut (impl AsyncRead + Unpin),
    peer: IpAddr,
    proxies: &Proxies,
) -> io::Result<ClientAddress> {
    let peer = ClientAddress::of(peer);
    if proxies.address != AddressSource::ProxyProtocol || !proxies.trusts(peer.0) {
        return Ok(peer);
    }
    let mut header = vec![0; FIXED];
    socket.read_exact(&mut header).await?;
    let rest = usize::from(u16::from_be_bytes([header[FIXED - 2], header[FIXED - 1]]));
    // Before the length is read: in bytes that are not of this protocol, it means nothing.
    if !header.starts_with(PROTOCOL_PREFIX) || rest > MAX_REST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    header.resize(FIXED + rest, 0);
    socket.read_exact(&mut header[FIXED..]).await?;
    let header = Header::try_from(header.as_slice()).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(match (header.command, header.addresses) {
        (Command::Proxy, Addresses::IPv4(addresses)) => ClientAddress::of(addresses.source_address.into()),
        (Command::Proxy, Addresses::IPv6(addresses)) => ClientAddress::of(addresses.source_address.into()),
        // The proxy connects for itself, as for a health check, or for a client without an address.
        (Command::Local, _) | (Command::Proxy, Addresses::Unspecified | Addresses::Unix(_)) => peer,
    })
}
