//! `GET /topics`: operators list the topics and patterns that are held.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;

use super::query::Query;
use crate::gateway::Gateway;
use crate::http::problem::Problem;
use crate::log::LogState;

/// One page of the list.
#[derive(Serialize)]
pub(super) struct Topics {
    topics: Vec<Topic>,
    /// The value of `after` for the next page, if there is one.
    next: Option<String>,
}

#[derive(Serialize)]
struct Topic {
    topic: String,
    readers: usize,
    messages: usize,
    bytes: usize,
    rate: f64,
    oldest_ms: Option<u64>,
    idle_ms: Option<u64>,
    upstream: &'static str,
    ended: bool,
}

impl From<LogState> for Topic {
    fn from(log: LogState) -> Self {
        Topic {
            topic: log.filter.as_str().to_owned(),
            readers: log.readers,
            messages: log.messages,
            bytes: log.bytes,
            rate: (log.rate * 100.0).round() / 100.0,
            oldest_ms: log.oldest.map(|oldest| oldest.as_millis() as u64),
            idle_ms: log.idle.map(|idle| idle.as_millis() as u64),
            upstream: log.upstream.as_str(),
            ended: log.ended,
        }
    }
}

/// The handler of `GET /topics`.
pub(super) async fn topics(State(gateway): State<Arc<Gateway>>, uri: Uri) -> Result<Json<Topics>, Problem> {
    let mut query = Query::of(&uri);
    let (prefix, after) = (query.text("prefix").unwrap_or_default(), query.text("after").unwrap_or_default());
    let limit = query.limit()?;
    query.end()?;
    let mut topics: Vec<Topic> =
        gateway.topics(&prefix, &after, limit + 1).into_iter().map(Topic::from).collect();
    let more = topics.len() > limit;
    topics.truncate(limit);
    let next = topics.last().filter(|_| more).map(|topic| topic.topic.clone());
    Ok(Json(Topics { topics, next }))
}
