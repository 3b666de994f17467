//! `GET /streams` and `DELETE /streams`: operators list the open streams, and end some of them.
//!
//! A page of another origin can do neither: `origin::guard` refuses its requests, and the preflight that its browser
//! sends before a DELETE.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;

use super::query::{LONGEST_PAGE, Query, bad_query};
use crate::gateway::{Gateway, StreamState, Wanted};
use crate::http::problem::Problem;
use crate::protocol::view::Interval;
use crate::stream::outcome;

/// Topics that the list names for one stream.
const NAMED_TOPICS: usize = 10;

/// One page of the list.
#[derive(Serialize)]
pub(super) struct Streams {
    streams: Vec<StreamView>,
    /// The value of `after` for the next page, if there is one.
    next: Option<u64>,
}

#[derive(Serialize)]
struct StreamView {
    id: u64,
    address: String,
    subject: Option<String>,
    topics: Vec<String>,
    /// The total number; `topics` has the first ones.
    topic_count: usize,
    /// The types that it wants; empty: all.
    types: Vec<String>,
    /// Whether it wants no `event:` lines.
    without_types: bool,
    /// The shortest time between two messages of one topic and type.
    every_ms: Option<u64>,
    http: &'static str,
    age_ms: u64,
    sent_bytes: u64,
    lag_messages: Option<usize>,
    lag_ms: Option<u64>,
    closing: Option<&'static str>,
}

impl From<StreamState> for StreamView {
    fn from(stream: StreamState) -> Self {
        let topics = &stream.reading.topics;
        let view = stream.reader.view.as_deref().cloned().unwrap_or_default();
        StreamView {
            id: stream.id,
            address: stream.reader.address.to_string(),
            subject: stream.reader.subject().map(|subject| subject.to_string()),
            topics: topics.iter().take(NAMED_TOPICS).map(ToString::to_string).collect(),
            topic_count: topics.len(),
            types: view.types().iter().map(ToString::to_string).collect(),
            without_types: view.without_types,
            every_ms: view.every.map(Interval::as_millis),
            http: stream.reader.http.as_str(),
            age_ms: stream.age.as_millis() as u64,
            sent_bytes: stream.sent,
            lag_messages: stream.reading.lag.map(|lag| lag.messages),
            lag_ms: stream.reading.lag.map(|lag| lag.time.as_millis() as u64),
            closing: stream.closing.map(|code| code.as_str()),
        }
    }
}

/// The handler of GET.
pub(super) async fn list(State(gateway): State<Arc<Gateway>>, uri: Uri) -> Result<Json<Streams>, Problem> {
    let mut query = Query::of(&uri);
    let wanted = query.wanted(gateway.current().config.limits.topic_length)?;
    let (after, limit) = (query.number("after")?.unwrap_or(0), query.limit()?);
    query.end()?;
    let (streams, more) = gateway.streams(&wanted, after, limit);
    let next = streams.last().filter(|_| more).map(|stream| stream.id);
    Ok(Json(Streams { streams: streams.into_iter().map(StreamView::from).collect(), next }))
}

/// The answer to a DELETE.
#[derive(Serialize)]
pub(super) struct Closed {
    closed: usize,
    /// More streams match; send the request again.
    more: bool,
}

/// The handler of DELETE.
pub(super) async fn close(State(gateway): State<Arc<Gateway>>, uri: Uri) -> Result<Json<Closed>, Problem> {
    let mut query = Query::of(&uri);
    let wanted = query.wanted(gateway.current().config.limits.topic_length)?;
    query.end()?;
    if wanted == Wanted::default() {
        return Err(bad_query(
            "name the streams to end by id, topic, address or subject; topic=** matches nearly all",
        ));
    }
    let (closed, more) = gateway.end(&wanted, LONGEST_PAGE);
    let query = outcome::quoted(uri.query().unwrap_or_default());
    tracing::info!(closed, query, "streams were ended through the admin listener");
    Ok(Json(Closed { closed, more }))
}
