//! `topicgate health`: checks whether the gateway with this configuration is alive. It is the health check of the
//! container image, which has no other client.
//!
//! An orchestrator replaces a container that is not healthy. That would disconnect every reader and lose the replay,
//! and it would not help while the broker is away or the gateway drains. So a gateway that answers is healthy; if it is
//! not ready, the reason is only printed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The timeout of the whole check. Container engines allow 30 seconds by default.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most bytes of an answer that are read; ours has a few hundred.
const MAX_ANSWER: u64 = 8 * 1024;

/// Why the gateway does not count as alive.
#[derive(Debug, Error)]
pub enum HealthError {
    /// The connection failed or broke.
    #[error("admin.listen = \"{0}\": no gateway answers at this address: {1}")]
    Unreachable(SocketAddr, io::Error),
    /// Something accepts the connection but does not answer in time.
    #[error("admin.listen = \"{0}\": no answer within {limit}", limit = humantime::format_duration(PATIENCE))]
    Late(SocketAddr),
    /// What answers is not the admin listener of a gateway.
    #[error("admin.listen = \"{0}\": something else than topicgate answers at this address")]
    Stranger(SocketAddr),
}

/// Sends the check to `admin_listen`. Returns one line about a gateway that is alive.
///
/// # Errors
/// [`HealthError`], with the reason in one line.
pub async fn ask(admin_listen: SocketAddr) -> Result<String, HealthError> {
    let answer = timeout(PATIENCE, get(reachable(admin_listen)))
        .await
        .map_err(|_| HealthError::Late(admin_listen))?
        .map_err(|error| HealthError::Unreachable(admin_listen, error))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    match head.split(' ').nth(1) {
        Some("200") if body == "ok\n" => Ok("alive, and ready".into()),
        Some("503") => Ok(format!("alive, and not ready: {}", body.trim_end())),
        _ => Err(HealthError::Stranger(admin_listen)),
    }
}

/// `/readyz`. HTTP/1.0, so that the answer is not chunked and ends with the connection.
async fn get(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = vec![];
    socket.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// If the listener is on every address of this machine, the check uses loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
