//! Refusals, as problem details (RFC 9457): what is wrong, and what would be right. They are for requests that will
//! never succeed as they are. Temporary refusals go through [`come_back`], because a browser's EventSource gives up for
//! good on any status but 200.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use super::accept::Accepted;
use crate::auth::Action;
use crate::gateway::Gateway;
use crate::metrics::Limit;
use crate::protocol::codes::{CloseCode, Code, RefusalCode};
use crate::protocol::comments;
use crate::protocol::frame::{self, Coding};
use crate::protocol::topic::{self, Filter, TopicError};
use crate::stream::outcome;

/// Characters that a scope must percent-encode (RFC 6749, section 3.3).
const NOT_IN_SCOPE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'\\');

/// The detail for a topic that no rule exposes and for a path that does not exist: the two must not differ.
pub(super) const NO_TOPIC: &str = "nothing here is open to anyone: a topic is at /topics/<path>, and a [[topics]] rule must cover it (a \
                                   pattern: all of it) and allow the request; publish is \"nobody\" by default. Metrics, probes \
                                   and the console are on the admin listener";

/// The answer to a request that is refused.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: Code,
    detail: String,
    /// The text for the log instead of `detail`. It may repeat text from the client.
    note: Option<String>,
    challenge: Option<Challenge>,
    limit: Option<Limit>,
}

/// The content of `WWW-Authenticate` (RFC 6750, section 3).
#[derive(Debug)]
pub(super) enum Challenge {
    /// Credentials are required and the request has none. It carries no error code, as the RFC asks.
    Credentials,
    /// The token is not valid; the problem's detail says why.
    InvalidToken,
    /// The token is valid, but does not allow this.
    NotEnough,
    /// The same, because the grant (`subscribe` or `publish`) for this topic or pattern is missing.
    MissingGrant(&'static str, String),
    /// The value that the backend of forward auth sent.
    Given(HeaderValue),
}

/// The reason of a refusal, for the metrics and the log. It is in the response's extensions.
#[derive(Debug, Clone)]
pub(super) struct RefusalNote {
    pub(super) code: Code,
    /// The detail that the client receives.
    pub(super) detail: String,
}

/// The limit that a request hit, likewise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Met(pub(super) Limit);

impl Problem {
    /// `code` is for machines and stays the same; `detail` is for the person who sent the request.
    pub(super) fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        let (status, code) = (code.status(), code.into());
        Problem { status, code, detail: detail.into(), note: None, challenge: None, limit: None }
    }

    /// A temporary refusal as a status, for a client that is not an EventSource.
    pub(super) fn passing(code: CloseCode) -> Self {
        let (status, detail) = passing(code);
        Problem { status, code: code.into(), detail: detail.into(), note: None, challenge: None, limit: None }
    }

    /// With another detail.
    pub(super) fn because(self, detail: &str) -> Self {
        Problem { detail: detail.into(), ..self }
    }

    /// With another text for the log.
    pub(super) fn note(self, note: String) -> Self {
        Problem { note: Some(note), ..self }
    }

    /// With a status other than its code's.
    pub(super) fn status(self, status: StatusCode) -> Self {
        Problem { status, ..self }
    }

    /// With a `WWW-Authenticate`.
    pub(super) fn challenge(self, challenge: Challenge) -> Self {
        Problem { challenge: Some(challenge), ..self }
    }

    /// With the limit that the request hit.
    pub(super) fn limit(self, limit: Limit) -> Self {
        Problem { limit: Some(limit), ..self }
    }

    /// The same answer whether the topic does not exist, is hidden or must not be read, so that it does not reveal what
    /// exists. It names the topic only if the request names several, because a client could find out which one is meant
    /// by requesting each alone. Reserved names of brokers are not repeated.
    pub(super) fn not_exposed(action: Action, filter: &Filter, is_one_of_several: bool) -> Self {
        let act = match action {
            Action::Subscribe => "read",
            Action::Publish => "publish to",
        };
        let note = format!("no [[topics]] rule allows anyone to {act} {filter}");
        let is_reserved = filter.as_str().split('/').next().is_some_and(topic::is_reserved);
        let detail = if is_one_of_several && !is_reserved {
            format!(
                "{note}; check the topic's spelling, or add a rule. A pattern needs one rule that covers all of it"
            )
        } else {
            NO_TOPIC.to_owned()
        };
        Problem::new(RefusalCode::NotFound, detail).note(note)
    }

    /// A path that the listener does not serve. `instead` says what it serves.
    pub(super) fn no_route(uri: &Uri, instead: &str) -> Self {
        let note = format!("there is nothing at {}; {instead}", outcome::quoted(uri.path()));
        Problem::new(RefusalCode::NotFound, instead).note(note)
    }
}

impl Challenge {
    /// `detail` is the problem's detail. For an invalid token it is one of our own texts, in ASCII and without quotes.
    fn value(self, detail: &str) -> HeaderValue {
        const BARE: &str = "Bearer realm=\"topicgate\"";
        let value = match self {
            Challenge::Given(value) => return value,
            Challenge::Credentials => BARE.to_owned(),
            Challenge::InvalidToken => {
                format!("{BARE}, error=\"invalid_token\", error_description=\"{detail}\"")
            }
            Challenge::NotEnough => format!("{BARE}, error=\"insufficient_scope\""),
            Challenge::MissingGrant(grant, topic) => {
                let topic = utf8_percent_encode(&topic, NOT_IN_SCOPE);
                format!("{BARE}, error=\"insufficient_scope\", scope=\"{grant}:{topic}\"")
            }
        };
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(BARE))
    }
}

impl From<TopicError> for Problem {
    fn from(error: TopicError) -> Self {
        let problem = Problem::new(RefusalCode::BadTopic, error.to_string());
        match error {
            TopicError::TooLong { .. } => problem.limit(Limit::TopicLength),
            _ => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            title: &'a str,
            status: u16,
            code: &'a str,
            detail: &'a str,
            /// The missing grant, in the form of the claim.
            #[serde(skip_serializing_if = "Option::is_none")]
            missing: Option<BTreeMap<&'a str, [&'a str; 1]>>,
        }
        let missing = match &self.challenge {
            Some(Challenge::MissingGrant(grant, topic)) => Some(BTreeMap::from([(*grant, [topic.as_str()])])),
            _ => None,
        };
        let body = Body {
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            code: self.code.as_str(),
            detail: &self.detail,
            missing,
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge.value(&self.detail));
        }
        if let Some(limit) = self.limit {
            response.extensions_mut().insert(Met(limit));
        }
        response
            .extensions_mut()
            .insert(RefusalNote { code: self.code, detail: self.note.unwrap_or(self.detail) });
        response
    }
}

/// The answer for a temporary fault or a limit: a stream that closes at once and asks the client to reconnect. A client
/// that does not ask for `text/event-stream` is not an EventSource and receives a status instead. `without_control`: the
/// event is a comment.
pub(super) fn come_back(
    gateway: &Gateway,
    headers: &HeaderMap,
    without_control: bool,
    code: CloseCode,
) -> Response {
    gateway.metrics().streams_closed.inc(code);
    let retry = gateway.jittered_retry();
    if !Accepted::of(headers).is_event_source() {
        return later(code, retry);
    }
    let goodbye = frame::stream_close(retry, code);
    let goodbye = goodbye.bytes(Coding::Plain);
    let quiet = if without_control { comments::without_control(&goodbye, Coding::Plain) } else { None };
    let mut response = quiet.unwrap_or(goodbye).into_response();
    super::sse_head::stream_headers(response.headers_mut());
    response.extensions_mut().insert(RefusalNote { code: code.into(), detail: passing(code).1.into() });
    response
}

/// The same as a status. `retry` is in milliseconds.
pub(super) fn later(code: CloseCode, retry: u64) -> Response {
    let mut response = Problem::passing(code).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, retry.div_ceil(1000).into());
    response
}

/// 429 if the client itself exceeds a limit, otherwise 503.
fn passing(code: CloseCode) -> (StatusCode, &'static str) {
    const THEIRS: StatusCode = StatusCode::TOO_MANY_REQUESTS;
    const OURS: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match code {
        CloseCode::TooManyStreams => {
            (THEIRS, "your address has too many open streams (limits.streams_per_address); close one")
        }
        CloseCode::TooManyTopics => (
            THEIRS,
            "the streams of your address have too many topics (limits.topics_per_address); close one, or \
             use a pattern",
        ),
        CloseCode::TooManySubjectStreams => {
            (THEIRS, "your token's subject has too many open streams (limits.streams_per_subject); close one")
        }
        CloseCode::TooFast => (
            THEIRS,
            "your address opens streams or requests new topics too fast (limits.opens_per_second, \
                 limits.new_topics_per_second); slow down",
        ),
        CloseCode::Draining => (OURS, "this gateway is shutting down; reconnect to reach another one"),
        CloseCode::Overloaded => (
            OURS,
            "this gateway has reached its limit of streams or topics (limits.streams, \
        limits.topics); try again",
        ),
        CloseCode::Unavailable => (
            OURS,
            "the broker is unavailable or did not confirm in time; the gateway's log and /readyz give the reason",
        ),
        CloseCode::Refused => (
            OURS,
            "the broker does not allow this gateway to read this topic; the gateway's log has the reason",
        ),
        CloseCode::AuthUnavailable => (OURS, "authorization is temporarily unavailable; try again"),
        CloseCode::Revoked => (OURS, "the access rules have just changed; try again"),
        CloseCode::MaxAge
        | CloseCode::Slow
        | CloseCode::Gone
        | CloseCode::Expired
        | CloseCode::Restarted
        | CloseCode::Answered
        | CloseCode::Closed
        | CloseCode::Ended => (OURS, "the stream has ended; open it again"),
    }
}
