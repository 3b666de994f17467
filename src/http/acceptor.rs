//! Accepts the connections of a listener, up to its limit. Each is served by a task of its own.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::connection::{self, ConnectionLimits};
use super::handshake::Handshake;
use super::open::{Connections, Open};
use crate::config::Proxies;
use crate::gateway::Gateway;
use crate::gateway::runtime::Runtime;
use crate::metrics::Limit;
use crate::metrics::throttle::Throttle;
use crate::net::tls::Tls;

/// Streams of one HTTP/2 connection, event streams and plain requests together. There are fewer on the admin listener, where
/// each may hold a page of a thousand lines for a client that does not take it.
const HTTP2_STREAMS: u32 = 256;
const ADMIN_HTTP2_STREAMS: u32 = 16;

/// The log line if an accept fails.
const CANNOT_ACCEPT: &str = "cannot accept connections; is the limit on open files too low?";

/// How long to wait after a failed accept. The usual cause is that the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The size of a socket's send buffer in the system. By default the system would buffer 4 MiB and more for each slow
/// reader, which no bound of ours counts. The rest waits in the log, shared by all readers. It is twice the size of a
/// batch: one to send while the next is read.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// The longest wait for the broker or for the keys of tokens, with a margin.
const BROKER: Duration = Duration::from_secs(20);

/// Connections accepted in a row. When thousands of clients reconnect at once, readers that are already connected must
/// not wait behind all of them; [`Budget`] says the same of their requests.
const ACCEPT_BATCH: usize = 4;

/// When a silent connection is probed, and how often before it counts as dead.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// A listener, and how its connections are served.
pub(crate) struct Acceptor {
    /// Where clients connect.
    pub(crate) listener: TcpListener,
    /// Answers their requests.
    pub(crate) router: Router,
    pub(crate) gateway: Arc<Gateway>,
    /// If there is one, connections use TLS.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Proxies in front of it are trusted.
    pub(crate) public: bool,
    /// Connections that are open at once, at most.
    pub(crate) max_connections: usize,
    /// The limit that counts connections beyond that.
    pub(crate) limit: Limit,
    /// Cancelled when no further request is accepted.
    pub(crate) closing: CancellationToken,
}

impl Acceptor {
    /// Accepts connections until `closing`. At `max_connections` it stops accepting until a connection ends: a client that
    /// waits in the system's queue is served late, while an EventSource that is refused may give up for good.
    pub(crate) async fn run(self) {
        self.closing.clone().run_until_cancelled(self.accept()).await;
    }

    async fn accept(self) {
        let handshake = self.tls.clone().map(|tls| Arc::new(Handshake::new(tls, self.gateway.clone())));
        let free = Semaphore::new(self.max_connections.min(Semaphore::MAX_PERMITS));
        let connections =
            Arc::new(Connections { gateway: self.gateway.clone(), free, is_public: self.public });
        let (budget, failures) = (Budget::new(), Throttle::default());
        // Some descriptors are reserved for other uses, so that connections never take the last one.
        let is_short_of_files =
            self.public && self.max_connections < self.gateway.current().config.limits.connections;
        let mut accepted = 0;
        let mut current = self.gateway.current();
        let mut limits = self.connection_limits(&current, &budget);
        loop {
            if connections.free.available_permits() == 0 {
                self.gateway.metrics().hit(self.limit);
                if is_short_of_files && failures.allows() {
                    tracing::warn!(max_connections = self.max_connections, "{CANNOT_ACCEPT}");
                }
            }
            // The semaphore is never closed.
            let Ok(permit) = connections.free.acquire().await else { return };
            match self.listener.accept().await {
                Ok((socket, peer)) => {
                    let now = self.gateway.current();
                    if !Arc::ptr_eq(&now, &current) {
                        limits = self.connection_limits(&now, &budget);
                        current = now;
                    }
                    prepare(&socket, limits.write_timeout);
                    permit.forget(); // it is given back by the end of what is opened here
                    let open = Open::new(connections.clone());
                    let (peer, router, limits) = (peer.ip(), self.router.clone(), limits.clone());
                    match handshake.clone() {
                        None => tokio::spawn(connection::serve_plain(socket, peer, router, limits, open)),
                        // A separate kind of task: the plain one must not have the size of a TLS session.
                        Some(handshake) => tokio::spawn(handshake.serve(socket, peer, router, limits, open)),
                    };
                    accepted = (accepted + 1) % ACCEPT_BATCH;
                    if accepted == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => {
                    self.gateway.metrics().accept_errors.inc();
                    // Not at every failure, and not at the first failure after each success: at the limit, every client
                    // that leaves makes room for one more, and the next accept fails again.
                    if failures.allows() {
                        tracing::warn!(%error, "{CANNOT_ACCEPT}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection_limits(&self, current: &Runtime, budget: &Budget) -> Arc<ConnectionLimits> {
        let limits = &current.config.limits;
        let forward = current.config.auth.forward.as_ref();
        Arc::new(ConnectionLimits {
            max_head: usize::try_from(limits.head).unwrap_or(usize::MAX),
            http2_streams: if self.public { HTTP2_STREAMS } else { ADMIN_HTTP2_STREAMS },
            heads_too_large: self.gateway.metrics().limit_met.of(Limit::Head),
            head_timeout: limits.head_timeout,
            write_timeout: current.config.streams.write_timeout,
            // The backend's queue, the backend's answer, then the broker.
            longest_answer: BROKER + forward.map_or(Duration::ZERO, |forward| 2 * forward.timeout),
            clock: self.gateway.table().clock(),
            budget: budget.clone(),
            // On the admin listener, no proxy is trusted.
            proxies: if self.public { current.config.proxies.clone() } else { Proxies::default() },
            closing: self.closing.clone(),
        })
    }
}

/// Sets the socket options: no delay for small events, a user timeout and keep-alive that detect a peer that vanished,
/// and a bound on the send buffer. Best effort: a connection works without them.
fn prepare(socket: &TcpStream, write_timeout: Duration) {
    let _ = socket.set_nodelay(true);
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_keepalive(&KEEPALIVE);
    #[cfg(target_os = "linux")]
    {
        let _ = socket.set_tcp_user_timeout(Some(write_timeout));
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = write_timeout;
}
