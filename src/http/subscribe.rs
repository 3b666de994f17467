//! `GET /topics…`: parses the request and answers with a stream, or with one JSON document. The gateway opens the
//! stream; this file knows only HTTP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::accept::{Accepted, preferred_content};
use super::access::{self, Refusal};
use super::answer::{ReadParameters, answer_headers, answer_response};
use super::client;
use super::handoff::{Handoff, Stalls, StreamBody};
use super::problem::{NO_TOPIC, Problem, come_back, later};
use super::sse_head::{coding_headers, stream_headers};
use super::topics::Topics;
use crate::auth::{self, Action};
use crate::gateway::{Gateway, OpenError, Opening};
use crate::log::message::Format;
use crate::protocol::codes::{CloseCode, HttpVersion, RefusalCode};
use crate::protocol::event_id::MAX_EVENT_ID;
use crate::protocol::gzip::Content;
use crate::protocol::seek::Start;
use crate::protocol::topic::{Filter, TopicError};
use crate::protocol::view::{Interval, View, ViewError};
use crate::stream::outcome;

/// The query parameters that may carry a cursor: ours and Mercure's, and those of the polyfills.
const CURSOR_NAMES: [&str; 3] = ["last_event_id", "lastEventId", "lastEventID"];

/// A parsed request.
#[derive(Debug)]
struct StreamRequest {
    filters: Vec<Filter>,
    start: Start,
    format: Format,
    without_control: bool,
    read: ReadParameters,
    view: Option<Arc<View>>,
}

/// The handler of GET and HEAD.
pub(super) async fn subscribe(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let mut response = respond(gateway, request).await.into_response();
    // A temporary refusal is a stream or a status; one that lasts is the same to everyone.
    if matches!(response.status().as_u16(), 200 | 406 | 429 | 503) {
        response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    }
    response
}

async fn respond(gateway: Arc<Gateway>, request: Request) -> Result<Response, Problem> {
    // Before any other work: even parsing the topics is work.
    let address = client::address(request.extensions());
    if let Err(code) = gateway.admit(address) {
        return Ok(come_back(&gateway, request.headers(), names_no_control(request.uri()), code));
    }
    let is_read = match Accepted::of(request.headers()) {
        Accepted::Stream { .. } => false,
        Accepted::Json => true,
        Accepted::Nothing => {
            return Err(Problem::new(
                RefusalCode::NotAcceptable,
                "this is an event stream; send Accept: text/event-stream or no Accept header, or application/json for \
                 one answer",
            ));
        }
    };
    let mut parsed = StreamRequest::read(&gateway, request.uri(), request.headers())?;
    let (limit, mut wait) = if is_read { parsed.read.parse()? } else { Default::default() };
    if is_read && parsed.start == Start::Now {
        // The position alone: there is nothing to wait for.
        (parsed.start, wait) = (Start::End, Duration::ZERO);
    }
    let access = auth::AccessRequest {
        action: Action::Subscribe,
        filters: &parsed.filters,
        headers: request.headers(),
        query: request.uri().query(),
        client: address,
    };
    let caller = match access::authorize(&gateway, &access).await {
        Ok(caller) => caller,
        Err(refusal) => return not_allowed(&gateway, &request, refusal),
    };
    let may_compress = !is_read && !parsed.without_control && parsed.view.is_none();
    let compresses = may_compress && gateway.compresses(&parsed.filters, caller.as_ref());
    let content = if compresses { preferred_content(request.headers()) } else { Content::Identity };
    if request.method() == Method::HEAD {
        // Without a length, like the stream's: an empty body would announce a length of 0.
        let empty = Body::from_stream(futures_util::stream::empty::<Result<Bytes, Infallible>>());
        let mut response = Response::new(empty);
        let set_headers = if is_read { answer_headers } else { stream_headers };
        set_headers(response.headers_mut());
        if compresses {
            coding_headers(response.headers_mut(), content);
        }
        return Ok(response);
    }
    let version = http_version(&request);
    let opening = Opening {
        filters: &parsed.filters,
        start: &parsed.start,
        format: parsed.format,
        content,
        without_control: parsed.without_control,
        view: parsed.view.as_ref(),
        http: version,
        address: access.client,
        caller: caller.as_ref(),
    };
    let stream = match gateway.open(opening).await {
        Ok(stream) => stream,
        Err(OpenError::Expired) => {
            return not_allowed(&gateway, &request, Refusal::expired());
        }
        Err(OpenError::Impossible(why)) => return Err(bad_query(why)),
        Err(OpenError::ComeBack(code)) => {
            return Ok(come_back(&gateway, request.headers(), names_no_control(request.uri()), code));
        }
        Err(OpenError::Ended) => return Ok(ended()),
    };
    let (handoff, stalls) = (request.extensions().get::<Handoff>(), request.extensions().get::<Stalls>());
    if is_read {
        let _busy = stalls.map(Stalls::enter);
        return match stream.answer(limit, wait).await {
            Ok(answer) => Ok(answer_response(answer)),
            Err(CloseCode::Expired) => not_allowed(&gateway, &request, Refusal::expired()),
            // The metrics counted its stream when it ended.
            Err(code) => Ok(later(code, gateway.jittered_retry())),
        };
    }
    let body = StreamBody::new(stream, handoff.cloned(), stalls.cloned(), version);
    let mut response = stream_response(body, version);
    if compresses {
        coding_headers(response.headers_mut(), content);
    }
    Ok(response)
}

/// The answer to a client that has received everything of topics that have ended. It is the only status that tells an
/// EventSource to stop without an error.
fn ended() -> Response {
    (StatusCode::NO_CONTENT, [(header::CACHE_CONTROL, "no-store")]).into_response()
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
        // Otherwise hyper adds the keep-alive that the client parsed for to our `close`.
        *response.version_mut() = Version::HTTP_10;
    }
    response
}

fn not_allowed(gateway: &Gateway, request: &Request, refusal: Refusal) -> Result<Response, Problem> {
    match refusal {
        Refusal::No(problem) => Err(problem),
        Refusal::Later => {
            let without_control = names_no_control(request.uri());
            Ok(come_back(gateway, request.headers(), without_control, CloseCode::AuthUnavailable))
        }
    }
}

/// Whether the query has `control=none`, for an answer that is sent before the query is parsed completely.
fn names_no_control(uri: &Uri) -> bool {
    let mut query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    query.any(|(name, value)| name == "control" && value == "none")
}

impl StreamRequest {
    fn read(gateway: &Gateway, uri: &Uri, headers: &HeaderMap) -> Result<Self, Problem> {
        let current = gateway.current();
        let config = &current.config;
        let (separator, limit) = (config.broker.alias(), config.limits.topic_length);
        let mut topics = Topics::new(config.limits.topics_per_stream);
        if let Some(path) = uri.path().strip_prefix("/topics/").filter(|path| !path.is_empty()) {
            topics.add(Filter::read_path(path, separator, limit)?)?;
        }
        let mut cursor = None;
        let mut since = None;
        let mut last = None;
        let mut format = Format::Raw;
        let mut without_control = false;
        let mut read = ReadParameters::default();
        let mut view = View::default();
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
                "control" if value == "none" => without_control = true,
                "control" => {
                    return Err(bad_query(
                        "control must be none, which turns the gateway's own events into comments",
                    ));
                }
                "format" => {
                    format = match &*value {
                        "raw" => Format::Raw,
                        "cloudevents" => Format::CloudEvents,
                        _ => return Err(bad_query("format must be raw or cloudevents")),
                    };
                }
                "limit" => read.limit = Some(value.into_owned()),
                "wait" => read.wait = Some(value.into_owned()),
                "type" => view.add_types(&value)?,
                "every" => view.every = Some(Interval::read(&value)?),
                "event" => view.read_event(&value)?,
                name if CURSOR_NAMES.contains(&name) => cursor = Some(value.into_owned()),
                _ => {} // pages and proxies may add parameters
            }
        }
        if uri.path() == "/topics/" && topics.is_empty() {
            return Err(Problem::no_route(uri, NO_TOPIC));
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
        let view = if view.is_all() { None } else { Some(Arc::new(view)) };
        Ok(StreamRequest { filters, start, format, without_control, read, view })
    }
}

/// The topics that a query names, valid or not, shortened for a log line.
pub(super) fn topics(uri: &Uri) -> String {
    let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let topics: Vec<_> = query.filter(|(name, _)| name == "topic").map(|(_, topic)| topic).collect();
    outcome::quoted(&topics.join(" ")).to_owned()
}

impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        bad_query(error.to_string())
    }
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
    let count: Result<usize, _> = value.parse();
    count
        .map(|count| if count == 0 { Start::Now } else { Start::Last(count) })
        .map_err(|_| bad_query("last must be a number of messages, such as 10"))
}

/// The handler of OPTIONS, which a CORS preflight never reaches.
pub(super) async fn options(uri: Uri) -> Response {
    let one_topic =
        uri.path() == "*" || uri.path().strip_prefix("/topics/").is_some_and(|path| !path.is_empty());
    let allow = if one_topic { "GET, HEAD, POST, OPTIONS" } else { "GET, HEAD, OPTIONS" };
    (StatusCode::NO_CONTENT, [(header::ALLOW, allow)]).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

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
