//! The PROXY protocol, version 2: a trusted proxy says for whom it connects before anything else is sent on the
//! connection. Nobody else is asked: what an untrusted peer sends in its form is a bad request. Version 1, a line of
//! text, is not spoken.

use std::io;
use std::net::IpAddr;

use ppp::v2::{Addresses, Command, Header, PROTOCOL_PREFIX};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::client::ClientAddress;
use crate::config::{AddressSource, Proxies};

/// Up to and with the length of what follows.
const FIXED: usize = 16;

/// What a proxy may add to the addresses (TLVs, such as the name in a client's certificate).
const MAX_REST: usize = 2048;

/// The client at the other end of a connection from `peer`. Reads the header where there must be one, and not a byte
/// more. It waits for as long as it takes.
///
/// # Errors
/// The peer's header is missing, is none, or did not arrive whole.
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
    // Before it is read: to a request that is none of this protocol's the length says nothing.
    if !header.starts_with(PROTOCOL_PREFIX) || rest > MAX_REST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    header.resize(FIXED + rest, 0);
    socket.read_exact(&mut header[FIXED..]).await?;
    let header = Header::try_from(header.as_slice()).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(match (header.command, header.addresses) {
        (Command::Proxy, Addresses::IPv4(addresses)) => ClientAddress::of(addresses.source_address.into()),
        (Command::Proxy, Addresses::IPv6(addresses)) => ClientAddress::of(addresses.source_address.into()),
        // The proxy speaks for itself, as for a health check, or for someone who has no address.
        (Command::Local, _) | (Command::Proxy, Addresses::Unspecified | Addresses::Unix(_)) => peer,
    })
}
