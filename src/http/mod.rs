//! HTTP: the routes and the accept loop. Requests go to the [`Gateway`]; nothing here knows brokers.
//!
//! axum routes the requests and hyper speaks HTTP. A stream on HTTP/1 leaves both once its head has been sent
//! (`handoff`).

mod access;
mod admin;
mod client;
mod connection;
mod handoff;
mod handshake;
mod origin;
mod page;
mod problem;
mod proxy_protocol;
mod publish;
mod sse_head;
mod subscribe;
mod topics;
mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{BrokerKind, Proxies};
use crate::gateway::Gateway;
use crate::gateway::runtime::Runtime;
use crate::metrics::Limit;
use crate::metrics::throttle::Throttle;
use crate::net::tls::Tls;
use crate::protocol::codes::RefusalCode;
use crate::stream::outcome::RequestRefused;

/// Connections of the admin listener. They are counted apart, so that a crowd on the public listener does not shut out
/// the probes.
pub(crate) const ADMIN_CONNECTIONS: usize = 64;

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
/// not wait behind all of them.
const ACCEPT_BATCH: usize = 16;

/// When a silent connection is probed, and how often before it counts as dead.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// The routes of the public listener, which listens at `address`.
pub(crate) fn public(gateway: Arc<Gateway>, address: Option<SocketAddr>) -> Router {
    let listener = origin::Listener::Public(gateway.clone(), is_loopback(address));
    let subscribe = get(subscribe::subscribe).head(subscribe::subscribe).options(subscribe::options);
    let mut router = Router::new()
        .route("/topics", subscribe.clone())
        .route("/topics/{*topic}", subscribe.post(publish::publish))
        .fallback(|uri: Uri| async move { problem::Problem::no_route(&uri, problem::NO_TOPIC) })
        .method_not_allowed_fallback(|| async {
            problem::Problem::new(
                RefusalCode::BadMethod,
                "use GET to read a topic, or POST to publish to the one topic of the path, as in POST \
                /topics/orders/eu, if a rule \
                 allows it",
            )
        });
    if gateway.current().config.broker.kind() == BrokerKind::Memory {
        router = router.route("/", get(page::page));
    }
    router = router
        .layer(middleware::map_response_with_state(gateway.clone(), keep_url_private))
        .layer(middleware::from_fn_with_state(listener, origin::guard))
        .layer(middleware::from_fn_with_state(gateway.clone(), tell_refusals));
    if gateway.traces().is_on() {
        router = router.layer(middleware::from_fn_with_state(gateway.clone(), trace::trace));
    }
    router.layer(middleware::from_fn_with_state(gateway.clone(), client::find)).with_state(gateway)
}

/// The routes of the admin listener, which listens at `address`. `closing` ends the streams that would never end by
/// themselves.
pub(crate) fn admin(
    gateway: Arc<Gateway>,
    address: Option<SocketAddr>,
    closing: CancellationToken,
) -> Router {
    let listener = origin::Listener::Admin(gateway.clone(), is_loopback(address));
    admin::router(gateway.clone(), closing)
        .layer(middleware::from_fn_with_state(listener, origin::guard))
        .layer(middleware::from_fn_with_state(gateway, tell_refusals))
}

fn is_loopback(address: Option<SocketAddr>) -> bool {
    address.is_some_and(|address| address.ip().is_loopback())
}

/// The middleware that counts refused requests and logs why. Streams that close at once are counted where they are
/// refused.
async fn tell_refusals(
    State(gateway): State<Arc<Gateway>>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let address = client::address(request.extensions());
    let response = next.run(request).await;
    if let Some(problem::RefusalNote { code, detail }) = response.extensions().get() {
        if response.status() != StatusCode::OK {
            gateway.metrics().refused_requests.inc(*code);
        }
        gateway.why().refused(*code, || RequestRefused {
            address,
            method: method.as_str(),
            path: uri.path(),
            topics: subscribe::topics(&uri),
            detail,
        });
    }
    if let Some(problem::Met(limit)) = response.extensions().get() {
        gateway.metrics().hit(*limit);
    }
    response
}

/// If tokens may be in the URL, tells browsers not to send that URL to other sites as the referrer.
async fn keep_url_private(State(gateway): State<Arc<Gateway>>, mut response: Response) -> Response {
    if gateway.current().config.auth.token.query {
        response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
    response
}

/// Accepts connections until `closing`; they use TLS if `tls` is given. At `max_connections` it stops accepting until a
/// connection ends, and counts that as `limit`: a client that waits in the system's queue is served late, while an
/// EventSource that is refused may give up for good. Proxies are trusted only if it is `public`.
pub(crate) fn serve(
    listener: TcpListener,
    router: Router,
    gateway: &Arc<Gateway>,
    tls: Option<Arc<Tls>>,
    public: bool,
    (limit, max_connections): (Limit, usize),
    closing: &CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let gateway = gateway.clone();
    let closing = closing.clone();
    let clock = gateway.table().clock();
    let settings_of = {
        let closing = closing.clone();
        let heads_too_large = gateway.metrics().limit_met.of(Limit::Head);
        move |current: &Runtime| {
            let limits = &current.config.limits;
            let forward = current.config.auth.forward.as_ref();
            // On the admin listener, no proxy is trusted.
            let proxies = if public { current.config.proxies.clone() } else { Proxies::default() };
            Arc::new(connection::ConnectionLimits {
                max_head: usize::try_from(limits.head).unwrap_or(usize::MAX),
                heads_too_large: heads_too_large.clone(),
                head_timeout: limits.head_timeout,
                write_timeout: current.config.streams.write_timeout,
                // The backend's queue, the backend's answer, then the broker.
                longest_answer: BROKER + forward.map_or(Duration::ZERO, |forward| 2 * forward.timeout),
                clock,
                proxies,
                closing: closing.clone(),
            })
        }
    };
    let handshake = tls.map(|tls| Arc::new(handshake::Handshake::new(tls, gateway.clone())));
    let permits = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    let accept = async move {
        let failures = Throttle::default();
        // Some descriptors are reserved for other uses, so that connections never take the last one.
        let is_short_of_files = public && max_connections < gateway.current().config.limits.connections;
        let mut accepted = 0;
        let mut current = gateway.current();
        let mut settings = settings_of(&current);
        loop {
            if permits.available_permits() == 0 {
                gateway.metrics().hit(limit);
                if is_short_of_files && failures.allows() {
                    tracing::warn!(max_connections, "{CANNOT_ACCEPT}");
                }
            }
            // The semaphore is never closed.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, peer)) => {
                    let now = gateway.current();
                    if !Arc::ptr_eq(&now, &current) {
                        settings = settings_of(&now);
                        current = now;
                    }
                    prepare(&socket, settings.write_timeout);
                    let open = Open::new(gateway.clone(), permit);
                    let (peer, router, settings) = (peer.ip(), router.clone(), settings.clone());
                    match handshake.clone() {
                        None => tokio::spawn(connection::serve_plain(socket, peer, router, settings, open)),
                        // A separate kind of task: the plain one must not have the size of a TLS session.
                        Some(handshake) => {
                            tokio::spawn(handshake.serve(socket, peer, router, settings, open))
                        }
                    };
                    accepted = (accepted + 1) % ACCEPT_BATCH;
                    if accepted == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => {
                    gateway.metrics().accept_errors.inc();
                    // Not at every failure, and not at the first failure after each success: at the limit, every client
                    // that leaves makes room for one more, and the next accept fails again.
                    if failures.allows() {
                        tracing::warn!(%error, "{CANNOT_ACCEPT}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    async move {
        closing.run_until_cancelled(accept).await;
    }
}

/// An open connection, for the limit and the metric.
struct Open {
    gateway: Arc<Gateway>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Open {
    fn new(gateway: Arc<Gateway>, permit: tokio::sync::OwnedSemaphorePermit) -> Self {
        gateway.metrics().connections.inc();
        Open { gateway, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gateway.metrics().connections.dec();
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
