//! The console: a web page for operators, and the event streams that it reads. It shows data that clients and
//! publishers wrote, so the page inserts it as text only, and its Content-Security-Policy runs nothing but the page's
//! own script.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::query::{Query, bad_query};
use super::state::Standing;
use crate::gateway::Gateway;
use crate::http::handoff::{Handoff, Stalls, StreamBody};
use crate::http::problem::{Problem, come_back};
use crate::http::{client, subscribe};
use crate::metrics::Limit;
use crate::protocol::codes::{CloseCode, RefusalCode};

/// How often the page receives the current state.
const TICK: Duration = Duration::from_secs(1);

/// Past messages of a topic that the page shows.
const LAST: usize = 50;

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files of the page: path, content type, text.
pub(super) const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("console/page.html")),
    ("/console.css", "text/css; charset=utf-8", include_str!("console/page.css")),
    ("/console.js", "text/javascript; charset=utf-8", include_str!("console/page.js")),
];

/// One of [`FILES`].
pub(super) fn file(content_type: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}

/// `GET /console/events`: the last minutes, then the current state every second, until the process ends. At most as many at
/// once as there are `permits`.
pub(super) async fn events(
    gateway: Arc<Gateway>,
    headers: HeaderMap,
    permits: Arc<Semaphore>,
    closing: CancellationToken,
) -> Response {
    let Ok(permit) = permits.try_acquire_owned() else {
        gateway.metrics().hit(Limit::ConsoleStreams);
        return come_back(&gateway, &headers, false, CloseCode::Overloaded);
    };
    let past = event("history", &gateway.history().samples());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let states =
        stream::unfold((ticks, gateway, closing, permit), async |(mut ticks, gateway, closing, permit)| {
            closing.run_until_cancelled(ticks.tick()).await?;
            Some((event("state", &Standing::of(&gateway)), (ticks, gateway, closing, permit)))
        });
    let events = stream::once(async { past }).chain(states).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(events));
    crate::http::sse_head::stream_headers(response.headers_mut());
    response
}

/// `GET /console/messages?topic=…`: the last messages of a topic or pattern that is held, as CloudEvents, and then the
/// new ones. It is a stream like any other and counts as one.
pub(super) async fn messages(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let mut query = Query::of(request.uri());
    let topic = query.topic(gateway.current().config.limits.topic_length)?;
    query.end()?;
    let topic = topic.ok_or_else(|| bad_query("topic is missing; name a topic that /topics lists"))?;
    let version = subscribe::http_version(&request);
    let address = client::address(request.extensions());
    let stream = match gateway.watch(&topic, LAST, address, version) {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            let detail = format!("{topic} is not held: it has had no reader for a while");
            return Err(Problem::new(RefusalCode::NotFound, detail));
        }
        Err(code) => return Ok(come_back(&gateway, request.headers(), false, code)),
    };
    let (handoff, stalls) = (request.extensions().get::<Handoff>(), request.extensions().get::<Stalls>());
    let body = StreamBody::new(stream, handoff.cloned(), stalls.cloned(), version);
    Ok(subscribe::stream_response(body, version))
}

fn event(name: &str, data: &impl Serialize) -> Bytes {
    // Numbers and strings always serialize.
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// Headers of every answer for operators: no other page may embed it, and no cache may keep it.
pub(super) async fn private(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::FILES;

    #[test]
    fn the_page_is_small_and_asks_for_nothing_but_its_own_files() {
        let bytes: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!(bytes < 100_000, "{bytes}");
        for (path, _, text) in FILES {
            for foreign in
                ["http:", "https:", "//cdn", "innerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                let named = text.replace("http://www.w3.org/2000/svg", "");
                assert!(!named.contains(foreign), "{path} has {foreign}");
            }
        }
    }
}
