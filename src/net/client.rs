//! The HTTP client for other servers: the backend of forward auth, the key set, the trace collector.
//!
//! Each server has its own connection pool. Every request has one deadline, from the name lookup to the last byte of
//! the body, and a bound on the body. Redirects are not followed, and proxy variables of the environment are ignored:
//! an answer may decide about access, so it must come from the configured server. `auth` and `traces` build the
//! requests and interpret the answers.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::reason::{self, Peer};
use super::roots;

/// How long connecting may take, over all addresses of the server. It is shorter than the deadline, so that an address
/// that drops packets leaves time for another one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is kept: less than common servers keep it (gunicorn 2 s, node and uvicorn 5 s). A
/// request that crosses the server's close would be lost.
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

/// The client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
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
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEAD)
            .build(connector);
        Ok(Client { http, peer })
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
        let answered = timeout_at(deadline, self.http.request(request)).await;
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
}
