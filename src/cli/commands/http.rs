//! The HTTP client of `sub`, `pub` and `doctor`, which connect to a gateway through any proxies in front of it.
//!
//! It follows no redirects and ignores the proxy variables of the environment, so that the token goes only to the given
//! URL, and `doctor` measures only that.

use std::env;
use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::time::timeout;
use url::Url;

use super::Failure;
use crate::cli::Target;
use crate::config::{CLIENT_TOKEN, Secret};
use crate::net::reason::{self, Peer};
use crate::net::roots;

/// How long connecting may take, over all addresses of the host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After this much silence, the system probes the connection: otherwise a stream would wait for ever for a server that
/// is gone.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long the body of a refusal may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REFUSAL: usize = 64 * 1024;

/// The most bytes of a token file that are read: more than any request head can hold.
const MAX_TOKEN: u64 = 1024 * 1024;

/// The HTTP versions to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Versions {
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 if TLS negotiates it, as browsers do.
    Any,
}

/// A client for one target, with its token.
#[derive(Debug)]
pub(crate) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    authorization: Option<HeaderValue>,
}

impl Client {
    pub(crate) fn new(target: &Target, versions: Versions) -> Result<Self, Failure> {
        let authorization = authorization(target)?;
        let tls = roots::client_config(target.ca.as_deref()).map_err(|why| match target.ca {
            Some(_) => Failure::Usage(format!("--ca: {why}")),
            None => Failure::Failed(why),
        })?;
        let mut sockets = HttpConnector::new();
        sockets.enforce_http(false);
        sockets.set_nodelay(true);
        sockets.set_connect_timeout(Some(CONNECT_TIMEOUT));
        sockets.set_keepalive(Some(KEEPALIVE));
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = match versions {
            Versions::Http1 => connector.enable_http1().wrap_connector(sockets),
            Versions::Any => connector.enable_all_versions().wrap_connector(sockets),
        };
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            // Each request uses a new connection, so that each is routed on its own.
            .pool_max_idle_per_host(0)
            .build(connector);
        Ok(Client { http, authorization })
    }

    /// A request for `url`, with the token if there is one.
    pub(crate) fn request(&self, method: Method, url: &Url) -> request::Builder {
        let agent = concat!("topicgate/", env!("CARGO_PKG_VERSION"));
        let builder = Request::builder().method(method).uri(url.as_str()).header(USER_AGENT, agent);
        match &self.authorization {
            Some(value) => builder.header(AUTHORIZATION, value),
            None => builder,
        }
    }

    /// A request for a stream, as an EventSource makes it.
    pub(crate) fn stream(&self, url: &Url, last_event_id: &str) -> request::Builder {
        let builder = self.request(Method::GET, url).header(ACCEPT, "text/event-stream");
        let builder = builder.header("cache-control", "no-cache");
        // As bytes: an id may have characters beyond ASCII, which are sent as they are.
        if last_event_id.is_empty() {
            builder
        } else {
            builder.header("last-event-id", last_event_id.as_bytes())
        }
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// Why there is no answer, in one line.
    pub(crate) async fn send(
        &self,
        request: request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, String> {
        let request = request.body(Full::new(body)).map_err(|error| format!("cannot be sent: {error}"))?;
        let address = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let answer = self.http.request(request).await;
        answer
            .map_err(|error| format!("{address}: {}", reason::sentence(&reason::chain(&error), Peer::Typed)))
    }
}

/// The `Authorization` value, from the flag, the file or the environment. An empty variable counts as not set. An empty
/// flag or file is an error: it usually comes from a `$(command)` that failed.
fn authorization(target: &Target) -> Result<Option<HeaderValue>, Failure> {
    let (place, token) = if let Some(Secret(token)) = &target.token {
        ("--token".to_owned(), token.clone())
    } else if let Some(file) = &target.token_file {
        let place = format!("--token-file {}", file.display());
        let mut token = String::new();
        let read = File::open(file).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut token));
        read.map_err(|error| Failure::Usage(format!("{place} cannot be read: {error}")))?;
        (place, token)
    } else {
        let token = env::var_os(CLIENT_TOKEN).unwrap_or_default().to_string_lossy().into_owned();
        if token.trim().is_empty() {
            return Ok(None);
        }
        (CLIENT_TOKEN.to_owned(), token)
    };
    let token = token.trim();
    if token.is_empty() {
        return Err(Failure::Usage(format!("{place} is empty; give a token, or omit it")));
    }
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    value.map(Some).map_err(|_| Failure::Usage(format!("{place} has characters that a token cannot have")))
}

/// Sets a parameter of the query, and replaces an old value.
pub(crate) fn set_parameter(url: &mut Url, name: &str, value: &str) {
    let others: Vec<_> = url.query_pairs().into_owned().filter(|(other, _)| other != name).collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair(name, value);
}

/// Removes parameters of the query. Returns the names of those that it had.
pub(crate) fn remove_parameters(url: &mut Url, names: &[&str]) -> Vec<String> {
    let (removed, others): (Vec<_>, Vec<_>) =
        url.query_pairs().into_owned().partition(|(name, _)| names.contains(&name.as_str()));
    if !removed.is_empty() {
        url.query_pairs_mut().clear().extend_pairs(&others);
        if others.is_empty() {
            url.set_query(None);
        }
    }
    let mut names: Vec<_> = removed.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    names
}

/// Describes an answer that is not the expected one: the problem details (RFC 9457) of a gateway, otherwise the status.
pub(crate) async fn refusal(response: Response<Incoming>) -> String {
    let status = response.status();
    let location =
        response.headers().get("location").map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
    let body = timeout(REFUSAL_TIMEOUT, Limited::new(response.into_body(), MAX_REFUSAL).collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let what = match (problem["code"].as_str(), problem["detail"].as_str()) {
        (Some(code), Some(detail)) => format!(" {}: {}", printable(code), printable(detail)),
        _ => status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default(),
    };
    match location {
        Some(to) if status.is_redirection() => {
            format!("{}{what} redirects to {}; use that URL", status.as_u16(), printable(&to))
        }
        _ => format!("{}{what}", status.as_u16()),
    }
}

/// Whether the same request may succeed later.
pub(crate) fn passes(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// Escapes characters in text from elsewhere that would control the terminal.
pub(crate) fn printable(text: &str) -> String {
    let show = |c: char| {
        if controls_a_terminal(c) && c != '\t' { c.escape_default().to_string() } else { c.to_string() }
    };
    text.chars().map(show).collect()
}

/// Whether a character does something to a terminal other than to appear on it: control characters, separators of lines
/// and paragraphs, and characters that change the direction of the text after them.
pub(crate) fn controls_a_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
