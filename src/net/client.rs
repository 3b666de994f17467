//! The HTTP client for other servers: the backend of forward auth, the key set, the trace collector.
//!
//! Each server has its own connection pool. Every request has one deadline, from the name lookup to the last byte of
//! the body, and a bound on the body. Redirects are not followed, and proxy variables of the environment are ignored:
//! an answer may decide about access, so it must come from the configured server. `auth` and `traces` build the
//! requests and interpret the answers.
//!
//! A server may close an idle connection just when a request is sent on it. Then the request is sent once more, on a new
//! connection. The server may have received it before: a question changes nothing there, and a collector may store the
//! same spans twice.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::http::Extensions;
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt;
use tower::util::MapResponse;

use super::progress::{Progress, Watched};
use super::reason::{self, Peer};
use super::roots;

/// How long connecting may take, over all addresses of the server. It is shorter than the deadline, so that an address
/// that drops packets leaves time for another one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is kept: less than common servers keep it (gunicorn 2 s, node and uvicorn 5 s). A
/// request that crosses the server's close would need a second attempt.
const IDLE: Duration = Duration::from_secs(1);

/// The most idle connections that are kept. If more requests come at once, they open new connections.
const MAX_IDLE: usize = 64;

/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 32 * 1024;

/// Why there is no answer, or no complete one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum AskError {
    /// The answer did not arrive in time.
    #[error("no complete answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// The body is larger than this many bytes.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// No connection, a connection that broke, or bytes that are not HTTP.
    #[error("{0}")]
    Failed(String),
}

type Socket = MaybeHttpsStream<TokioIo<TcpStream>>;
type Connection = TokioIo<Watched<TokioIo<Socket>>>;
type Http = legacy::Client<MapResponse<HttpsConnector<HttpConnector>, fn(Socket) -> Connection>, Full<Bytes>>;

/// The client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    http: Http,
    /// Without a pool: each request has a new connection.
    fresh: Http,
    peer: Peer,
}

impl Client {
    /// A client of `peer` that trusts the system's certificate authorities (`SSL_CERT_FILE` names others).
    ///
    /// # Errors
    /// Why TLS cannot be set up, in one line. The current library never fails here.
    pub(crate) fn new(peer: Peer) -> Result<Self, String> {
        let tls = roots::client_config(None)?;
        let mut sockets = HttpConnector::new();
        sockets.enforce_http(false);
        sockets.set_nodelay(true);
        sockets.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(sockets);
        let watched: fn(Socket) -> Connection = |socket| TokioIo::new(Watched::new(TokioIo::new(socket)));
        let connector = ServiceExt::<Uri>::map_response(connector, watched);
        let with_idle = |most: usize| {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(most)
                .http1_max_buf_size(MAX_HEAD)
                .build(connector.clone())
        };
        Ok(Client { http: with_idle(MAX_IDLE), fresh: with_idle(0), peer })
    }

    /// Sends a request, and waits for the head and the body of the answer, `within` for both. If the body does not
    /// arrive completely, the answer still has its head: a refusal is a refusal even if its body is lost.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
        max_body: usize,
    ) -> Result<Response<Result<Bytes, AskError>>, AskError> {
        let deadline = Instant::now() + within;
        // Host and port only. The rest of a URL may be secret.
        let address = request.uri().authority().map(|authority| {
            authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, address)| address).to_owned()
        });
        let answered = timeout_at(deadline, self.send(request)).await;
        let failed = |error: legacy::Error| {
            let why = reason::sentence(&reason::chain(&error), self.peer);
            AskError::Failed(address.map_or_else(|| why.clone(), |address| format!("{address}: {why}")))
        };
        let (head, body) = answered.map_err(|_| AskError::Late(within))?.map_err(failed)?.into_parts();
        let body = match timeout_at(deadline, Limited::new(body, max_body).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(AskError::TooLarge(max_body)),
            Ok(Err(error)) => Err(AskError::Failed(format!("the answer broke off: {error}"))),
            Err(_) => Err(AskError::Late(within)),
        };
        Ok(Response::from_parts(head, body))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, legacy::Error> {
        match self.http.request(request.clone()).await {
            // The server has closed an idle connection. Others in the pool may be closed as well.
            Err(error) if is_of_used_connection(&error) => self.fresh.request(request).await,
            answered => answered,
        }
    }
}

/// Whether a connection broke that was used before, and before an answer began.
fn is_of_used_connection(error: &legacy::Error) -> bool {
    let mut known = Extensions::new();
    if let Some(connected) = error.connect_info() {
        connected.get_extras(&mut known);
    }
    known.get::<Progress>().is_some_and(Progress::is_reused_and_silent)
}
