//! Interprets the backend's answer. Only an answer that is understood completely allows anything.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Deserializer};

use super::question::Question;
use crate::auth::{Action, Caller, Grammar};
use crate::net::client::AskError;
use crate::protocol::topic::Filter;

/// The last second of the year 9999. A later time was probably written in milliseconds and would never expire.
const LATEST: u64 = 253_402_300_799;

/// What the backend decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// The request is allowed, for this caller with these permissions.
    Allowed(Caller),
    /// The request is refused with 401 or 403 and the backend's `WWW-Authenticate`.
    Refused { status: StatusCode, challenge: Option<HeaderValue> },
}

/// The members of a JSON body. Others are ignored.
#[derive(Debug, Deserialize)]
struct Body {
    subject: Option<String>,
    #[serde(default, deserialize_with = "list")]
    subscribe: Option<Vec<String>>,
    #[serde(default, deserialize_with = "list")]
    publish: Option<Vec<String>>,
    expires: Option<f64>,
}

/// Some languages write an empty list as `null`. It must not be read as "no list", which would grant everything
/// requested.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Vec::deserialize(deserializer).map(Some)
}

impl Decision {
    /// Whether its permission has expired.
    pub(super) fn has_expired(&self) -> bool {
        matches!(self, Decision::Allowed(caller) if caller.is_expired())
    }

    /// Reads an answer to `question`.
    ///
    /// # Errors
    /// Why this is not an answer, in one line. The client should reconnect later.
    pub(super) fn read(
        answer: Response<Result<Bytes, AskError>>,
        question: &Question,
        grammar: Grammar,
    ) -> Result<Self, String> {
        let (head, body) = answer.into_parts();
        match head.status {
            // The status decides; the body of an error page is not read.
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Ok(Decision::Refused { status, challenge: challenge(&head.headers) })
            }
            status if status.is_success() => {
                let body = body.map_err(|error| error.to_string())?;
                if !is_json(&head.headers) || status == StatusCode::NO_CONTENT {
                    return Ok(Decision::Allowed(granted(question, None, question.topics.clone())));
                }
                allowed(&body, question, grammar)
            }
            status => Err(format!("it answered {}", status.as_u16())),
        }
    }
}

/// Several fields form one list (RFC 9110, section 5.3).
fn challenge(headers: &HeaderMap) -> Option<HeaderValue> {
    let all: Vec<&[u8]> = headers.get_all(WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes).collect();
    if all.is_empty() { None } else { HeaderValue::from_bytes(&all.join(&b", "[..])).ok() }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn allowed(body: &[u8], question: &Question, grammar: Grammar) -> Result<Decision, String> {
    // serde_json's messages name members and positions, and may repeat a value of a wrong type. That cannot be a
    // credential, because the body has none.
    let body: Body = serde_json::from_slice(body).map_err(|error| format!("its JSON body: {error}"))?;
    if body.subject.as_deref() == Some("") {
        return Err("its JSON body: subject is empty".into());
    }
    let read = |name: &str, list: Option<Vec<String>>| {
        let read = |text: &String| {
            Filter::read(text, grammar.separator, grammar.limit)
                .map_err(|error| format!("its JSON body: {name}: {error}"))
        };
        list.map(|list| list.iter().map(read).collect::<Result<Vec<_>, _>>()).transpose()
    };
    let subscribe = read("subscribe", body.subscribe)?;
    let publish = read("publish", body.publish)?;
    let expires = match body.expires {
        None => None,
        Some(seconds) => Some(
            Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|since| since.as_secs() <= LATEST)
                .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
                .ok_or("its JSON body: expires is not a plausible time; write unix seconds")?,
        ),
    };
    let named = match question.action {
        Action::Subscribe => subscribe,
        Action::Publish => publish,
    };
    let subject = body.subject.map(Arc::from);
    let mut caller = granted(question, subject, named.unwrap_or_else(|| question.topics.clone()));
    caller.expires = expires;
    Ok(Decision::Allowed(caller))
}

/// A caller with permission for the requested action on these topics, and nothing else.
fn granted(question: &Question, subject: Option<Arc<str>>, topics: Vec<Filter>) -> Caller {
    let caller = Caller { subject, ..Caller::default() };
    match question.action {
        Action::Subscribe => Caller { subscribe: topics, ..caller },
        Action::Publish => Caller { publish: topics, ..caller },
    }
}
