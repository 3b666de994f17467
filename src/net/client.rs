//! HTTP to others: the backend of forward auth, whoever publishes the keys of tokens, the collector of traces.
//!
//! A pooled client for each. Every request has one deadline, from the lookup of the name to the last byte of the body,
//! and a bound on the answer's body. No redirect is followed, and no proxy of the environment is used: an answer may decide
//! who may read, so it comes from where the configuration says or not at all. What is asked, and what an answer means, is
//! known elsewhere (`auth`, `traces`).

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

/// How long a server may take to accept, over all its addresses. Shorter than the deadline, so that one address that
/// swallows packets leaves time for another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is kept: less than any server in common use keeps its side (gunicorn 2 s, node and
/// uvicorn 5 s). A question that crosses the server's goodbye is lost.
const IDLE: Duration = Duration::from_secs(1);

/// Idle connections that are kept. Of a crowd that comes back at once, the rest connect anew.
const MAX_IDLE: usize = 64;

/// Bytes of the head of an answer.
const MAX_HEAD: usize = 32 * 1024;

/// Why there is no answer, or no whole one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum AskError {
    /// It did not come in time.
    #[error("no whole answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    /// Its body is larger than this many bytes.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// No connection, or one that broke, or bytes that are not HTTP.
    #[error("{0}")]
    Failed(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    peer: Peer,
}

impl Client {
    /// A client of `peer` that trusts the authorities that the system trusts (`SSL_CERT_FILE` names others).
    ///
    /// # Errors
    /// None that the library used here has today; one line that says why TLS cannot be set up.
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

    /// Asks, and waits for the head of the answer and then for its body, `within` for both. An answer whose body did not
    /// arrive whole still has its head: a refusal is one, whatever becomes of its text.
    ///
    /// # Errors
    /// There is no head.
    pub(crate) async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
        max_body: usize,
    ) -> Result<Response<Result<Bytes, AskError>>, AskError> {
        let deadline = Instant::now() + within;
        // Host and port. What else is in a URL may be a secret.
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
