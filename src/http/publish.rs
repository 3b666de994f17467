//! `POST /topics/<path>`: publishes the body as a message. The answer is 202 once the broker has confirmed the message,
//! never before.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde::Serialize;

use super::access::{self, Refusal};
use super::client;
use super::problem::{Problem, RefusalNote};
use crate::auth::{AccessRequest, Action};
use crate::broker::BrokerError;
use crate::gateway::{Gateway, MessageAttributes, PublishError};
use crate::metrics::{Limit, PublishResult};
use crate::protocol::codes::{CloseCode, Code, RefusalCode};
use crate::protocol::publisher::{self, EventType, PublisherId};
use crate::protocol::topic::{Filter, Topic, TopicError};
use crate::reader::quota::Publishing;

/// `Retry-After` when the broker is away, in seconds: about as long as reconnecting takes.
const RETRY_AFTER: &str = "2";

/// The approximate size of a request without its head and its body, in bytes.
const REQUEST: usize = 1024;

const TOO_FAST: &str = "your address publishes too fast (limits.publishes_per_second); slow down";
const TOO_MUCH_OF_ADDRESS: &str = "your address is publishing too much at once (an eighth of limits.bodies); wait for \
the answers to your requests";
const TOO_MUCH: &str = "too much is being published at once (limits.bodies); try again";

/// The handler of POST.
pub(super) async fn publish(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let result = publish_message(&gateway, &head, body).await;
    let note = result.as_ref().err().and_then(|response| response.extensions().get());
    gateway.metrics().publishes.inc(match (&result, note.map(|note: &RefusalNote| note.code)) {
        (Ok(_), _) => PublishResult::Accepted,
        (_, Some(Code::Refused(RefusalCode::BrokerAway))) => PublishResult::BrokerAway,
        (_, Some(Code::Refused(RefusalCode::BrokerRefused))) => PublishResult::BrokerRefused,
        _ => PublishResult::Refused,
    });
    result.unwrap_or_else(|refusal| refusal)
}

async fn publish_message(gateway: &Gateway, head: &Parts, body: Body) -> Result<Response, Response> {
    let bad = |detail: &str| Problem::new(RefusalCode::BadRequest, detail).into_response();
    let (uri, headers) = (&head.uri, &head.headers);
    // Before any other work. The request's memory counts for its address until it is answered.
    let address = client::address(&head.extensions);
    let mut publishing = gateway.knock_to_publish(address).map_err(|code| match code {
        CloseCode::TooFast => {
            later(Problem::passing(code).because(TOO_FAST).limit(Limit::PublishesPerSecond))
        }
        code => later(Problem::passing(code)),
    })?;
    publishing.grow(weight(uri, headers)).map_err(|code| later(no_room(code)))?;
    let topic = topic(gateway, uri).map_err(|error| Problem::from(error).into_response())?;
    let access = AccessRequest {
        action: Action::Publish,
        filters: &[Filter::from(topic.clone())],
        headers,
        query: uri.query(),
        client: address,
    };
    // Before the body: a request that will be refused needs no memory and no `100 Continue`.
    let not_allowed = |refusal| match refusal {
        Refusal::No(problem) => problem.into_response(),
        Refusal::Later => later(Problem::passing(CloseCode::AuthUnavailable)),
    };
    let caller = access::authorize(gateway, &access).await.map_err(not_allowed)?;
    let attributes = attributes(uri, headers).map_err(bad)?;
    if has_unknown_coding(headers) {
        return Err(Problem::new(
            RefusalCode::BadBody,
            "the body has a transfer coding other than chunked; send it without",
        )
        .into_response());
    }
    let payload = payload(gateway, body, &mut publishing).await?;
    match gateway.publish(&topic, caller.as_ref(), payload, attributes).await {
        Ok(id) => {
            #[derive(Serialize)]
            struct Accepted<'a> {
                topic: &'a str,
                #[serde(skip_serializing_if = "Option::is_none")]
                id: Option<String>,
            }
            Ok((StatusCode::ACCEPTED, Json(Accepted { topic: topic.as_str(), id })).into_response())
        }
        Err(PublishError::NotExposed) => {
            Err(Problem::not_exposed(Action::Publish, &topic.into(), false).into_response())
        }
        Err(PublishError::Expired) => Err(not_allowed(Refusal::expired())),
        Err(PublishError::Unfit(why) | PublishError::Broker(BrokerError::Unfit(why))) => Err(bad(&why)),
        Err(PublishError::Broker(BrokerError::TooLarge(why))) => {
            Err(Problem::new(RefusalCode::TooLarge, why).into_response())
        }
        Err(PublishError::Broker(BrokerError::Refused(_))) => {
            let detail = "the broker refused the message; the gateway's log has the reason";
            Err(Problem::new(RefusalCode::BrokerRefused, detail).into_response())
        }
        Err(PublishError::Broker(BrokerError::Away(_))) => {
            let detail = "the broker is unavailable and did not confirm the message; try again";
            Err(later(Problem::new(RefusalCode::BrokerAway, detail)))
        }
    }
}

/// The attributes of the message, from the query or from header fields.
///
/// # Errors
/// An attribute is not valid.
fn attributes(uri: &Uri, headers: &HeaderMap) -> Result<MessageAttributes, &'static str> {
    let query = |name| {
        let mut pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let header = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let bad_id = "the id must be 1 to 128 visible ASCII characters, without spaces";
    let id = query("id").or_else(|| header("event-id"));
    let id = id.map(|id| PublisherId::new(id).ok_or(bad_id)).transpose()?;
    let bad_kind =
        "the type must be 1 to 128 bytes of UTF-8 without line ends or NUL, and not begin with stream-";
    // Both decoders above write U+FFFD for bytes that are not UTF-8.
    let is_utf8 = |kind: &EventType| !kind.contains(char::REPLACEMENT_CHARACTER);
    let kind = query("type").or_else(|| header("event-type"));
    let kind = kind.map(|kind| EventType::new(kind).filter(is_utf8).ok_or(bad_kind)).transpose()?;
    let end = query("end").or_else(|| header("topicgate-end"));
    Ok(MessageAttributes { id, kind, ends: end.is_some_and(|end| publisher::is_true(&end)) })
}

/// Whether the body was encoded for its transfer (`gzip, chunked`): the HTTP library decodes `chunked` only.
fn has_unknown_coding(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut codings = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b','));
    codings.any(|coding| !coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// A temporary refusal. A publisher is not an EventSource and understands 503.
fn later(problem: Problem) -> Response {
    let mut response = problem.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    response
}

fn topic(gateway: &Gateway, uri: &Uri) -> Result<Topic, TopicError> {
    let current = gateway.current();
    let config = &current.config;
    let path = uri.path().strip_prefix("/topics/").unwrap_or_default();
    let filter = Filter::read_path(path, config.broker.alias(), config.limits.topic_length)?;
    filter.topic().ok_or(TopicError::Pattern)
}

/// The memory of a request without its body, in bytes.
fn weight(uri: &Uri, headers: &HeaderMap) -> usize {
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    REQUEST + fields + uri.path_and_query().map_or(0, |path| path.as_str().len())
}

/// The refusal if the address, or all addresses together, publish too much at once.
fn no_room(code: CloseCode) -> Problem {
    let why = if code == CloseCode::TooFast { TOO_MUCH_OF_ADDRESS } else { TOO_MUCH };
    Problem::passing(code).because(why).limit(Limit::Bodies)
}

async fn payload(gateway: &Gateway, body: Body, publishing: &mut Publishing) -> Result<Bytes, Response> {
    let current = gateway.current();
    let limits = &current.config.limits;
    let limit = usize::try_from(limits.message).unwrap_or(usize::MAX);
    // By the announced length, before a byte of the body is sent.
    if body.size_hint().lower() > limits.message {
        return Err(too_large(limit).into_response());
    }
    match tokio::time::timeout(limits.head_timeout, collect(body, limit, publishing)).await {
        Ok(collected) => collected.map(Bytes::from),
        Err(_) => {
            let late = "the body did not arrive in time (limits.head_timeout)";
            Err(Problem::new(RefusalCode::Timeout, late).limit(Limit::HeadTimeout).into_response())
        }
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::new(RefusalCode::TooLarge, format!("a message may have at most {limit} bytes (limits.message)"))
        .limit(Limit::Message)
}

/// Reads the whole body. Memory is counted as it arrives, so an announced body that does not arrive takes none from
/// others.
async fn collect(mut body: Body, limit: usize, publishing: &mut Publishing) -> Result<Vec<u8>, Response> {
    let mut collected = Vec::new();
    while let Some(frame) = body.frame().await {
        let broke_off = |_| Problem::new(RefusalCode::BadBody, "the body broke off").into_response();
        let Ok(data) = frame.map_err(broke_off)?.into_data() else { continue };
        let length = collected.len() + data.len();
        if length > limit {
            return Err(too_large(limit).into_response());
        }
        if length > collected.capacity() {
            let room = collected.capacity();
            // Reserves memory for the rest as well, if there is enough; otherwise each chunk would be copied again.
            let doubled = length.max(room.saturating_mul(2)).min(limit);
            let grown = publishing.grow(doubled - room).map(|()| doubled);
            let grown = grown.or_else(|_| publishing.grow(length - room).map(|()| length));
            collected.reserve_exact(grown.map_err(|code| later(no_room(code)))? - collected.len());
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected)
}
