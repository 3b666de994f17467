//! `GET /topics…`: parses the request and answers with a stream. The gateway opens it; this file knows only HTTP.

use super::sse_head::stream_headers;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::access::{self, Refusal};
use super::client;
use super::handoff::{Handoff, Stalls, StreamBody};
use super::problem::{Problem, come_back};
use super::topics::Topics;
use crate::auth::{self, Action};
use crate::gateway::{Gateway, OpenError, Opening};
use crate::log::message::Format;
use crate::protocol::codes::{CloseCode, HttpVersion, RefusalCode};
use crate::protocol::event_id::MAX_EVENT_ID;
use crate::protocol::seek::Start;
use crate::protocol::topic::{Filter, TopicError};
use crate::stream::outcome;

/// The query parameters that may carry a cursor: ours and Mercure's, and those of the polyfills.
const CURSOR_NAMES: [&str; 3] = ["last_event_id", "lastEventId", "lastEventID"];

/// A parsed request.
#[derive(Debug)]
struct StreamRequest {
    filters: Vec<Filter>,
    start: Start,
    format: Format,
}

/// The handler of GET and HEAD.
pub(super) async fn subscribe(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    // Before any other work: even parsing the topics is work.
    let address = client::address(request.extensions());
    if let Err(code) = gateway.admit(address) {
        return Ok(come_back(&gateway, request.headers(), code));
    }
    if !accepts_event_stream(request.headers()) {
        return Err(Problem::new(
            RefusalCode::NotAcceptable,
            "this is an event stream; send Accept: text/event-stream, or no Accept header",
        ));
    }
    let asked = StreamRequest::read(&gateway, request.uri(), request.headers())?;
    let access = auth::AccessRequest {
        action: Action::Subscribe,
        filters: &asked.filters,
        headers: request.headers(),
        query: request.uri().query(),
        client: address,
    };
    let caller = match access::authorize(&gateway, &access).await {
        Ok(caller) => caller,
        Err(refusal) => return not_allowed(&gateway, request.headers(), refusal),
    };
    if request.method() == Method::HEAD {
        // Without a length, like the stream's: an empty body would announce a length of 0.
        let empty = Body::from_stream(futures_util::stream::empty::<Result<Bytes, Infallible>>());
        let mut response = Response::new(empty);
        stream_headers(response.headers_mut());
        return Ok(response);
    }
    let version = http_version(&request);
    let opening = Opening {
        filters: &asked.filters,
        start: &asked.start,
        format: asked.format,
        http: version,
        address: access.client,
        caller: caller.as_ref(),
    };
    let stream = match gateway.open(opening).await {
        Ok(stream) => stream,
        Err(OpenError::Expired) => {
            return not_allowed(&gateway, request.headers(), Refusal::expired());
        }
        Err(OpenError::Impossible(why)) => return Err(bad_query(why)),
        Err(OpenError::ComeBack(code)) => return Ok(come_back(&gateway, request.headers(), code)),
    };
    let (handoff, stalls) = (request.extensions().get::<Handoff>(), request.extensions().get::<Stalls>());
    let body = StreamBody::new(stream, handoff.cloned(), stalls.cloned(), version);
    Ok(stream_response(body, version))
}

/// The HTTP version by which the stream of a request is sent.
pub(super) fn http_version(request: &Request) -> HttpVersion {
    match request.version() {
        Version::HTTP_2 => HttpVersion::Http2,
        Version::HTTP_11 => HttpVersion::Http11,
        _ => HttpVersion::Http10,
    }
}

/// The response whose body is a stream.
pub(super) fn stream_response(body: StreamBody, version: HttpVersion) -> Response {
    let mut response = Response::new(Body::new(body));
    stream_headers(response.headers_mut());
    if version != HttpVersion::Http2 {
        // No other response will follow on this connection, whoever ends the stream. HTTP/2 forbids the field.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if version == HttpVersion::Http10 {
        // Otherwise hyper adds the keep-alive that the client asked for to our `close`.
        *response.version_mut() = Version::HTTP_10;
    }
    response
}

fn not_allowed(gateway: &Gateway, headers: &HeaderMap, refusal: Refusal) -> Result<Response, Problem> {
    match refusal {
        Refusal::No(problem) => Err(problem),
        Refusal::Later => Ok(come_back(gateway, headers, CloseCode::AuthUnavailable)),
    }
}

impl StreamRequest {
    fn read(gateway: &Gateway, uri: &Uri, headers: &HeaderMap) -> Result<Self, Problem> {
        let current = gateway.current();
        let config = &current.config;
        let (separator, limit) = (config.broker.alias(), config.limits.topic_length);
        let mut topics = Topics::new(config.limits.topics_per_stream);
        if let Some(path) = uri.path().strip_prefix("/topics/") {
            topics.add(Filter::read_path(path, separator, limit)?)?;
        }
        let mut cursor = None;
        let mut since = None;
        let mut last = None;
        let mut format = Format::Raw;
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "topic" => {
                    // The decoder writes U+FFFD for bytes that are not UTF-8.
                    if value.contains(char::REPLACEMENT_CHARACTER) {
                        return Err(TopicError::NotUtf8.into());
                    }
                    topics.add(Filter::read(&value, separator, limit)?)?;
                }
                "since" => since = Some(read_since(&value)?),
                "last" => last = Some(read_last(&value)?),
                "format" => {
                    format = match &*value {
                        "raw" => Format::Raw,
                        "cloudevents" => Format::CloudEvents,
                        _ => return Err(bad_query("format must be raw or cloudevents")),
                    };
                }
                name if CURSOR_NAMES.contains(&name) => cursor = Some(value.into_owned()),
                _ => {} // pages and proxies may add parameters
            }
        }
        let filters = topics.settle()?;
        // The header wins: a page's URL keeps its old query at every reconnect. An empty cursor is none.
        let cursor = match headers.get("last-event-id").map(HeaderValue::as_bytes) {
            Some([]) | None => {
                cursor.filter(|id| !id.is_empty()).map(|id| Some(id).filter(|id| id.len() <= MAX_EVENT_ID))
            }
            Some(bytes) => {
                Some(std::str::from_utf8(bytes).ok().filter(|id| id.len() <= MAX_EVENT_ID).map(str::to_owned))
            }
        };
        let start = match (cursor, since, last) {
            (Some(cursor), ..) => Start::After(cursor),
            (None, Some(since), _) => since,
            (None, None, Some(last)) => last,
            (None, None, None) => Start::Now,
        };
        Ok(StreamRequest { filters, start, format })
    }
}

/// The topics that a query names, valid or not, shortened for a log line.
pub(super) fn topics(uri: &Uri) -> String {
    let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let topics: Vec<_> = query.filter(|(name, _)| name == "topic").map(|(_, topic)| topic).collect();
    outcome::quoted(&topics.join(" ")).to_owned()
}

fn bad_query(detail: impl Into<String>) -> Problem {
    Problem::new(RefusalCode::BadQuery, detail)
}

/// A duration back from now (`10m`), an RFC 3339 time, a unix time in seconds, or `all`.
fn read_since(value: &str) -> Result<Start, Problem> {
    if value == "all" {
        return Ok(Start::All);
    }
    if let Ok(seconds) = value.parse::<u64>() {
        return since_unix(seconds).map(Start::Since);
    }
    let ago = || {
        let duration = humantime::parse_duration(value).ok()?;
        // A duration beyond the beginning of time means the beginning.
        Some(SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH))
    };
    humantime::parse_rfc3339(value).ok().or_else(ago).map(Start::Since).ok_or_else(|| {
        bad_query(
            "since must be a duration such as 10m, a time in UTC such as 2026-11-22T18:00:00Z, unix seconds, or all",
        )
    })
}

/// Digits alone are unix seconds. If that gives an implausible time, the error suggests what was probably meant.
fn since_unix(seconds: u64) -> Result<SystemTime, Problem> {
    const YEAR_2001: u64 = 978_307_200;
    const YEAR_10000: u64 = 253_402_300_800;
    if seconds < YEAR_2001 {
        let last = if seconds == 0 { 10 } else { seconds };
        return Err(bad_query(format!(
            "since={seconds} means unix seconds, a time in the last century; write {last}s or {last}m for the last \
             seconds or minutes, or all"
        )));
    }
    if seconds >= YEAR_10000 {
        let meant = seconds / 1000;
        return Err(bad_query(format!(
            "since={seconds} means unix seconds, a time beyond the year 9999; if you meant milliseconds, write {meant}"
        )));
    }
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn read_last(value: &str) -> Result<Start, Problem> {
    value.parse().map(Start::Last).map_err(|_| bad_query("last must be a number of messages, such as 10"))
}

/// Whether the client accepts an event stream (RFC 9110, section 12.5.1, simplified): the most specific range that
/// matches decides.
fn accepts_event_stream(headers: &HeaderMap) -> bool {
    let mut best: Option<(u8, bool)> = None;
    let mut any = false;
    for value in headers.get_all(header::ACCEPT) {
        // An empty list excludes nothing, and neither does a list that is not text.
        for range in value.to_str().unwrap_or_default().split(',').filter(|range| !range.trim().is_empty()) {
            any = true;
            let mut parts = range.split(';').map(str::trim);
            let specificity = match parts.next().map(str::to_ascii_lowercase).as_deref() {
                Some("text/event-stream") => 3,
                Some("text/*") => 2,
                Some("*/*") => 1,
                _ => continue,
            };
            let refused = parts.any(|part| {
                part.strip_prefix("q=").is_some_and(|q| q.trim().parse::<f32>().is_ok_and(|q| q <= 0.0))
            });
            if best.is_none_or(|(other, _)| specificity > other) {
                best = Some((specificity, !refused));
            }
        }
    }
    !any || best.is_some_and(|(_, accepted)| accepted)
}

/// The handler of OPTIONS, which a CORS preflight never reaches.
pub(super) async fn options(uri: Uri) -> Response {
    let one_topic = uri.path().starts_with("/topics/");
    let allow = if one_topic { "GET, HEAD, POST, OPTIONS" } else { "GET, HEAD, OPTIONS" };
    (StatusCode::NO_CONTENT, [(header::ALLOW, allow)]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::sse_head::names_event_stream;

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_an_accept_that_excludes_event_streams_is_refused() {
        for yes in ["text/event-stream", "*/*", "text/*", "text/html, */*;q=0.1", "TEXT/EVENT-STREAM;q=0.5"] {
            assert!(accepts_event_stream(&accept(yes)), "{yes}");
        }
        for no in ["application/json", "text/html", "text/event-stream;q=0, */*", "*/*;q=0"] {
            assert!(!accepts_event_stream(&accept(no)), "{no}");
        }
        assert!(accepts_event_stream(&HeaderMap::new()));
    }

    #[test]
    fn only_an_accept_that_says_so_names_an_event_stream() {
        for yes in ["text/event-stream", "text/html, TEXT/Event-Stream ; q=0.5", "*/*,text/event-stream"] {
            assert!(names_event_stream(&accept(yes)), "{yes}");
        }
        for no in ["*/*", "text/*", "text/event-streams", "application/json;x=text/event-stream", ""] {
            assert!(!names_event_stream(&accept(no)), "{no}");
        }
        assert!(!names_event_stream(&HeaderMap::new()));
    }

    #[test]
    fn since_reads_durations_times_and_all() {
        assert_eq!(read_since("all").unwrap(), Start::All);
        assert_eq!(
            read_since("1700000000").unwrap(),
            Start::Since(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        );
        assert_eq!(read_since("2023-11-14T22:13:20Z").unwrap(), read_since("1700000000").unwrap());
        let Start::Since(time) = read_since("10m").unwrap() else { panic!() };
        let ago = SystemTime::now().duration_since(time).unwrap();
        assert!((599..=601).contains(&ago.as_secs()), "{ago:?}");
        assert_eq!(read_since("99999999999years").is_ok(), read_since("9999999years").is_ok());
        for bad in
            ["", "yesterday", "-5", "10", "18446744073709551616"].into_iter().filter(|text| *text != "10")
        {
            assert!(read_since(bad).is_err(), "{bad:?}");
        }
    }
}
