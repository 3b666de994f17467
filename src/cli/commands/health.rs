//! `topicgate health`: asks the gateway that runs with this configuration whether it is alive.
//!
//! For the health check of a container, whose image has nothing else to ask with. Whoever acts on one replaces what is
//! not healthy; that would cut off every reader and throw the replay away, and cures nothing while the broker is away or
//! streams are being drained. So a gateway that answers is healthy, and why it is not ready is only said.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time for the whole of question and answer. Container engines give a check 30 seconds unless they are told otherwise.
const PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of an answer that are looked at; ours has a few hundred.
const MAX_ANSWER: u64 = 8 * 1024;

/// Why the gateway does not count as alive.
#[derive(Debug, Error)]
pub enum HealthError {
    /// There is no connection, or it broke.
    #[error("admin.listen = \"{0}\": no gateway answers there: {1}")]
    Unreachable(SocketAddr, io::Error),
    /// Something accepts, and does not answer in time.
    #[error("admin.listen = \"{0}\": no answer within {limit}", limit = humantime::format_duration(PATIENCE))]
    Late(SocketAddr),
    /// What answers is no gateway's admin listener.
    #[error("admin.listen = \"{0}\": what answers there is no topicgate")]
    Stranger(SocketAddr),
}

/// Asks at `admin_listen` and returns one line about a gateway that is alive.
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

/// `/readyz`. HTTP/1.0 because then the answer comes in one piece and ends with the connection.
async fn get(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = vec![];
    socket.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A listener on every address of this machine is asked on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
