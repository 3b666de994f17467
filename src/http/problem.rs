//! Refusals, as problem details (RFC 9457): what is wrong, and what would be right. For requests that will never work
//! as they are. What passes is [`come_back`], since a browser's EventSource gives up for good on any status but 200.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::auth::Action;
use crate::gateway::Gateway;
use crate::metrics::Limit;
use crate::protocol::codes::{CloseCode, Code, RefusalCode};
use crate::protocol::frame::{self, Coding};
use crate::protocol::topic::{Filter, TopicError};
use crate::stream::outcome;

/// What a scope may not hold as it is (RFC 6749, section 3.3).
const NOT_IN_SCOPE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'\\');

/// A refusal.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: Code,
    detail: String,
    challenge: Option<Challenge>,
    limit: Option<Limit>,
}

/// What `WWW-Authenticate` says (RFC 6750, section 3).
#[derive(Debug)]
pub(super) enum Challenge {
    /// Credentials are needed, and none came. Without an error: the client may not have known.
    Credentials,
    /// The token does not hold; why not is the detail of the problem.
    InvalidToken,
    /// It holds and is not enough.
    NotEnough,
    /// The same, because this grant is missing (`subscribe` or `publish`) for this topic or pattern.
    MissingGrant(&'static str, String),
    /// What the backend of forward auth says.
    Given(HeaderValue),
}

/// Why, for the metrics and the log. Travels in the response's extensions.
#[derive(Debug, Clone)]
pub(super) struct RefusalNote {
    pub(super) code: Code,
    /// Our own words to the one who asked.
    pub(super) detail: String,
}

/// The limit that a request met, likewise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Met(pub(super) Limit);

impl Problem {
    /// `code` is for machines and stays the same; `detail` is for the person who sent the request.
    pub(super) fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        let (status, code) = (code.status(), code.into());
        Problem { status, code, detail: detail.into(), challenge: None, limit: None }
    }

    /// For a client that is no EventSource: with the status that says so, what passes.
    pub(super) fn passing(code: CloseCode) -> Self {
        let (status, detail) = passing(code);
        Problem { status, code: code.into(), detail: detail.into(), challenge: None, limit: None }
    }

    /// With other words for the person who sent the request.
    pub(super) fn because(self, detail: &str) -> Self {
        Problem { detail: detail.into(), ..self }
    }

    /// With another status than that of its code.
    pub(super) fn status(self, status: StatusCode) -> Self {
        Problem { status, ..self }
    }

    /// With a `WWW-Authenticate`.
    pub(super) fn challenge(self, challenge: Challenge) -> Self {
        Problem { challenge: Some(challenge), ..self }
    }

    /// Because this was met.
    pub(super) fn limit(self, limit: Limit) -> Self {
        Problem { limit: Some(limit), ..self }
    }

    /// The same whether the topic does not exist, is hidden or may not be read: what exists is nobody's business. It repeats
    /// what was asked for, which of several topics it is about could be found out by asking for each.
    pub(super) fn not_exposed(action: Action, filter: &Filter) -> Self {
        let detail = match (action, filter.is_pattern()) {
            (Action::Subscribe, false) => {
                format!(
                    "no [[topics]] rule lets anyone read {filter}; check how the topic is written, or add a rule"
                )
            }
            (Action::Subscribe, true) => format!(
                "no [[topics]] rule lets anyone read all of {filter}; ask for a part that one rule covers, or add a rule"
            ),
            (Action::Publish, _) => format!(
                "no [[topics]] rule lets anyone publish to {filter}; check how the topic is written, or set publish in \
                 its rule, which is \"nobody\" by default"
            ),
        };
        Problem::new(RefusalCode::NotFound, detail)
    }

    /// Of a path that is none of the listener's. `instead` says where the things are.
    pub(super) fn no_route(uri: &Uri, instead: &str) -> Self {
        let path = outcome::quoted(uri.path());
        Problem::new(RefusalCode::NotFound, format!("there is nothing at {path}; {instead}"))
    }
}

impl Challenge {
    /// `detail` is that of an invalid token: our own words, in ASCII and without quotes.
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
            /// In the form of the claim that would do.
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
        response.extensions_mut().insert(RefusalNote { code: self.code, detail: self.detail });
        response
    }
}

/// For a fault or a limit that passes: a stream that ends at once and asks to be opened again, or the status that says
/// so to a client that does not ask for an event stream by its name, and so is no EventSource.
pub(super) fn come_back(gateway: &Gateway, headers: &HeaderMap, code: CloseCode) -> Response {
    gateway.metrics().not_opened(code);
    let retry = gateway.jittered_retry();
    if !super::sse_head::names_event_stream(headers) {
        let mut response = Problem::passing(code).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, retry.div_ceil(1000).into());
        return response;
    }
    let goodbye = frame::stream_close(retry, code.as_str());
    let mut response = goodbye.bytes(Coding::Plain).into_response();
    super::sse_head::stream_headers(response.headers_mut());
    response.extensions_mut().insert(RefusalNote { code: code.into(), detail: passing(code).1.into() });
    response
}

/// 429 where the client itself has too much, 503 where it has no part in it.
fn passing(code: CloseCode) -> (StatusCode, &'static str) {
    const THEIRS: StatusCode = StatusCode::TOO_MANY_REQUESTS;
    const OURS: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match code {
        CloseCode::TooManyStreams => (
            THEIRS,
            "your address has as many open streams as one may (limits.streams_per_address); close one",
        ),
        CloseCode::TooManyTopics => (
            THEIRS,
            "the streams of your address have as many topics as they may (limits.topics_per_address); close one, or \
             use a pattern",
        ),
        CloseCode::TooManySubjectStreams => (
            THEIRS,
            "your token's subject has as many open streams as one may (limits.streams_per_subject); close one",
        ),
        CloseCode::TooFast => (
            THEIRS,
            "your address opens streams, or asks for new topics, faster than one may (limits.opens_per_second, \
                 limits.new_topics_per_second); slow down",
        ),
        CloseCode::Draining => (OURS, "this gateway is ending; another one may answer already"),
        CloseCode::Overloaded => (OURS, "this gateway serves as many streams, or topics, as it may"),
        CloseCode::Unavailable => (
            OURS,
            "the broker is away, or did not confirm in time; the gateway's log and its /readyz say why",
        ),
        CloseCode::Refused => {
            (OURS, "the broker does not let this gateway read this topic; its reason is in the gateway's log")
        }
        CloseCode::AuthUnavailable => (OURS, "whether you may cannot be found out now; try again"),
        CloseCode::Revoked => (OURS, "what may be read has just changed; ask again"),
        CloseCode::MaxAge
        | CloseCode::Slow
        | CloseCode::Gone
        | CloseCode::Expired
        | CloseCode::Restarted
        | CloseCode::Closed => (OURS, "the stream has ended; open it again"),
    }
}
