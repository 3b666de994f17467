//! Redis clients of the library: for another address, and with RESP3.

use super::answers::words;
use redis::Client;
use redis::ConnectionAddr;
use redis::IntoConnectionInfo as _;
use redis::ProtocolVersion;
use redis::RedisConnectionInfo;
use redis::RedisError;

/// A client of a server at another address, with the TLS settings and the login of `like`.
pub(crate) fn client_at(
    like: &Client,
    host: &str,
    port: u16,
    login: &RedisConnectionInfo,
) -> Result<Client, String> {
    let host = host.to_owned();
    let there = match like.get_connection_info().addr().clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    let info = like.get_connection_info().clone().set_addr(there).set_redis_settings(login.clone());
    let info = info.into_connection_info().map_err(|why| words(&why))?;
    Client::open(info).map_err(|why| words(&why))
}

/// The same client with RESP3, in which the server may send pushes.
pub(crate) fn in_resp3(client: &Client) -> Result<Client, RedisError> {
    let info = client.get_connection_info();
    let login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Client::open(info.clone().set_redis_settings(login))
}
