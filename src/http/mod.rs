//! HTTP: the routes, the accept loop, and nothing of brokers: what is asked for goes to the [`Gateway`].
//!
//! axum routes and hyper speaks HTTP; a stream on HTTP/1 leaves both once its head is sent (`handoff`).

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

/// Connections of the admin listener: its own few, so that a crowd on the public one does not shut out the probes.
pub(crate) const ADMIN_CONNECTIONS: usize = 64;

/// What the log says where there are too few file descriptors.
const CANNOT_ACCEPT: &str = "connections cannot be accepted; is the limit on open files too low?";

/// After an accept that failed, how long to wait: the usual reason is that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes that may wait in the system for a reader that does not take them. Left to itself it takes in 4 MiB and more for
/// each, memory that no bound of ours knows of; what waits longer waits in the log, once for all. Two pieces: one to send
/// while the next is asked for.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 * 1024;

/// How long the broker, or the keys of tokens, may take for an answer, and a little more.
const BROKER: Duration = Duration::from_secs(20);

/// Connections accepted before the others get their turn: when thousands come back at once, those who are here already
/// are not to wait behind all of them.
const ACCEPT_BATCH: usize = 16;

/// When a silent connection is probed, and how often, before it is given up.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// The routes of the public listener. `address` is where it listens.
pub(crate) fn public(gateway: Arc<Gateway>, address: Option<SocketAddr>) -> Router {
    let listener = origin::Listener::Public(gateway.clone(), is_loopback(address));
    let subscribe = get(subscribe::subscribe).head(subscribe::subscribe).options(subscribe::options);
    let mut router = Router::new()
        .route("/topics", subscribe.clone())
        .route("/topics/{*topic}", subscribe.post(publish::publish))
        .fallback(|uri: Uri| async move {
            problem::Problem::no_route(
                &uri,
                "a topic is at /topics/ and its name, as in /topics/orders/eu; metrics, probes and the console are on \
                 the admin listener (admin.listen)",
            )
        })
        .method_not_allowed_fallback(|| async {
            problem::Problem::new(
                RefusalCode::BadMethod,
                "GET reads a topic; POST publishes to the one topic of the path, as in POST /topics/orders/eu, where a rule \
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

/// The routes of the admin listener. `address` is where it listens; `closing` ends what has no other end there.
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

/// Counts what is refused, and says why in the log. Those who are told to come back in a stream are counted there.
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
            gateway.metrics().refused_request(*code);
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
        gateway.metrics().limits.hit(*limit);
    }
    response
}

/// The URL may hold a token, and a page of ours would show it to whom it links to.
async fn keep_url_private(State(gateway): State<Arc<Gateway>>, mut response: Response) -> Response {
    if gateway.current().config.auth.token.query {
        response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
    response
}

/// Accepts connections until `closing`; they speak TLS if `tls` is given. At `max_connections` it stops accepting until one
/// ends, and counts that as `limit`: who waits in the system's queue is served late, who is turned away by a browser's
/// EventSource may be lost for good. Proxies may be in front of it if it is `public`.
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
        let heads_too_large = gateway.metrics().limits.counter(Limit::Head);
        move |current: &Runtime| {
            let limits = &current.config.limits;
            let forward = current.config.auth.forward.as_ref();
            // Nobody is to speak for others on the admin listener.
            let proxies = if public { current.config.proxies.clone() } else { Proxies::default() };
            Arc::new(connection::ConnectionLimits {
                max_head: usize::try_from(limits.head).unwrap_or(usize::MAX),
                heads_too_large: heads_too_large.clone(),
                head_timeout: limits.head_timeout,
                write_timeout: current.config.streams.write_timeout,
                // The turn and the answer of the backend, then the broker.
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
        // Some descriptors are kept for others, so that the last is never taken here.
        let is_short_of_files = public && max_connections < gateway.current().config.limits.connections;
        let mut accepted = 0;
        let mut current = gateway.current();
        let mut settings = settings_of(&current);
        loop {
            if permits.available_permits() == 0 {
                gateway.metrics().limits.hit(limit);
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
                        // A task of its own kind: the plain one is not to have the size of a TLS session.
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
                    // Not at every failure, nor at each that follows a success: at the limit every client that leaves
                    // makes room for one, and then there is none again.
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

/// A connection that is open, for the limit and the metric.
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

/// No delay for small events; and a peer that vanished without a word is found, whether there is something to send
/// (user timeout) or not (keep-alive); and a bound on what waits in the system. Best effort: a connection without them still works.
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
