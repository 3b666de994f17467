//! The answer to a read: one JSON document instead of an event stream.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde::Serialize;

use super::problem::Problem;
use crate::protocol::codes::RefusalCode;
use crate::protocol::topic::Filter;
use crate::stream::{Answer, LONGEST_WAIT, MOST_MESSAGES};

/// Sets the headers of every answer.
pub(super) fn answer_headers(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The response of a read.
pub(super) fn answer_response(answer: Answer) -> Response {
    #[derive(Serialize)]
    struct Gap<'a> {
        topic: &'a str,
        reason: &'static str,
    }
    #[derive(Serialize)]
    struct Rest<'a> {
        gaps: Vec<Gap<'a>>,
        cursor: &'a str,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        more: bool,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        stale: Vec<&'a str>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        ended: bool,
    }
    let Answer { mut messages, gaps, cursor, more, stale, ended } = answer;
    let gaps = gaps.iter().map(|(filter, reason)| Gap { topic: filter.as_str(), reason: reason.as_str() });
    let stale = stale.iter().map(Filter::as_str).collect();
    let rest = Rest { gaps: gaps.collect(), cursor: &cursor, more, stale, ended };
    // Strings and booleans always serialize.
    let rest = serde_json::to_string(&rest).unwrap_or_default();
    messages.splice(..0, *br#"{"messages":["#);
    messages.extend_from_slice(b"],");
    messages.extend_from_slice(rest.trim_start_matches('{').as_bytes());
    let mut response = Response::new(Body::from(messages));
    answer_headers(response.headers_mut());
    response
}

/// The parameters of a read, which a stream ignores.
#[derive(Debug, Default)]
pub(super) struct ReadParameters {
    pub(super) limit: Option<String>,
    pub(super) wait: Option<String>,
}

impl ReadParameters {
    /// The most messages, and how long to wait for one.
    ///
    /// # Errors
    /// One of them is not valid.
    pub(super) fn parse(&self) -> Result<(usize, Duration), Problem> {
        let limit = self.limit.as_deref().map_or(Some(MOST_MESSAGES), |text| {
            text.parse().ok().filter(|limit| (1..=MOST_MESSAGES).contains(limit))
        });
        let limit =
            limit.ok_or_else(|| bad_query(format!("limit must be a number from 1 to {MOST_MESSAGES}")))?;
        let wait = self.wait.as_deref().map_or(Some(Duration::ZERO), |text| {
            humantime::parse_duration(text).ok().filter(|wait| *wait <= LONGEST_WAIT)
        });
        let wait = wait.ok_or_else(|| {
            let most = LONGEST_WAIT.as_secs();
            bad_query(format!("wait must be a duration with its unit, such as 20s, and at most {most}s"))
        })?;
        Ok((limit, wait))
    }
}

fn bad_query(detail: String) -> Problem {
    Problem::new(RefusalCode::BadQuery, detail)
}
