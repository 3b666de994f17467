//! A connection on a TLS listener, from its first byte to the end of the handshake. `connection` serves it from then
//! on.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use axum::{Router, middleware};
use tokio::net::TcpStream;

use super::connection::{self, ConnectionLimits, Version};
use super::open::Open;
use super::problem::Problem;
use crate::gateway::Gateway;
use crate::metrics::HandshakeResult;
use crate::net::tls::Tls;
use crate::net::tls_stream::TlsStream;
use crate::protocol::codes::RefusalCode;

/// The first byte of every handshake record (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// The TLS side of a listener.
pub(super) struct Handshake {
    tls: Arc<Tls>,
    /// The answers to clients that speak HTTP without TLS.
    plain: Router,
}

impl Handshake {
    pub(super) fn new(tls: Arc<Tls>, gateway: Arc<Gateway>) -> Self {
        let plain = Router::new()
            .fallback(|| async {
                let detail = "this address speaks TLS; use https:// instead of http://";
                Problem::new(RefusalCode::TlsRequired, detail)
            })
            .layer(middleware::from_fn_with_state(gateway, super::record_refusals));
        Handshake { tls, plain }
    }

    /// Serves one connection to its end. `open` is held until then.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut socket: TcpStream,
        peer: IpAddr,
        router: Router,
        settings: Arc<ConnectionLimits>,
        mut open: Open,
    ) {
        let Some(client) = connection::client(&mut socket, peer, &settings, &mut open).await else { return };
        let greet = std::pin::pin!(self.greet(socket));
        let greeting = tokio::time::timeout(settings.head_timeout, settings.budget.run(greet));
        let Some(greeting) = settings.closing.run_until_cancelled(greeting).await else { return };
        match greeting {
            Ok(Ok(Greeting::Tls(socket))) => {
                self.tls.metrics().tls_handshakes.inc(HandshakeResult::Done);
                let version = match socket.alpn() {
                    Some(b"h2") => Version::Http2,
                    Some(_) => Version::Http1,
                    None => Version::Unknown,
                };
                connection::serve(socket, version, client, router, settings, open).await;
            }
            Ok(Ok(Greeting::Plain(socket))) => {
                self.tls.metrics().tls_handshakes.inc(HandshakeResult::Plain);
                connection::serve(socket, Version::Unknown, client, self.plain.clone(), settings, open).await;
            }
            // A probe that only connects: it began no handshake.
            Ok(Ok(Greeting::Nothing)) => {}
            Ok(Err(error)) => {
                self.tls.metrics().tls_handshakes.inc(HandshakeResult::Failed);
                tracing::debug!(%error, "a TLS handshake failed");
            }
            Err(_) => self.tls.metrics().tls_handshakes.inc(HandshakeResult::Timeout),
        }
    }

    async fn greet(&self, socket: TcpStream) -> io::Result<Greeting> {
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Ok(Greeting::Nothing);
        }
        if first != [HANDSHAKE] {
            return Ok(Greeting::Plain(socket));
        }
        Ok(Greeting::Tls(Box::new(TlsStream::accept(socket, self.tls.current()).await?)))
    }
}

/// What the first bytes of a connection are.
enum Greeting {
    Tls(Box<TlsStream>),
    Plain(TcpStream),
    Nothing,
}
