//! The admin listener: probes, metrics, and for operators the console and its JSON. None of it is on the public
//! listener, because topics and traffic are not for clients to see.

mod console;
mod query;
mod state;
mod streams;
mod topics;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::origin::{self, Listener};
use super::problem::Problem;
use crate::gateway::{CONSOLE_STREAMS, Gateway};
use crate::metrics;
use crate::protocol::codes::RefusalCode;

/// The routes of the admin listener. `closing` is cancelled to end the streams that would never end by themselves.
pub(super) fn router(gateway: Arc<Gateway>, closing: CancellationToken) -> Router {
    let mut router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics));
    if gateway.current().config.admin.console {
        router = router.merge(people(gateway.clone(), closing).with_state(gateway.clone()));
    }
    let fallback = |uri: Uri| async move {
        let instead = "this is the admin listener: it serves /metrics, /livez, /readyz and, if admin.console is on, \
                       the console at /; topics are on the public listener (listen)";
        Problem::no_route(&uri, instead)
    };
    router.fallback(fallback).with_state(gateway)
}

/// The routes for operators. They show what clients and publishers wrote, and can end streams.
fn people(gateway: Arc<Gateway>, closing: CancellationToken) -> Router<Arc<Gateway>> {
    let permits = Arc::new(Semaphore::new(CONSOLE_STREAMS));
    let mut router = Router::new()
        .route("/topics", get(topics::topics))
        .route("/streams", get(streams::list).delete(streams::close))
        .route("/state", get(state::state))
        .route("/config", get(config))
        .route("/console/messages", get(console::messages))
        .route(
            "/console/events",
            get(move |State(gateway): State<Arc<Gateway>>, headers: HeaderMap| {
                console::events(gateway, headers, permits.clone(), closing.clone())
            }),
        )
        .method_not_allowed_fallback(|| async {
            Problem::new(RefusalCode::BadMethod, "use GET to read, or DELETE /streams to end streams")
        });
    for (path, content_type, text) in console::FILES {
        router = router.route(path, get(async move || console::file(content_type, text)));
    }
    // In addition to the guard of the whole listener: a page that points its own name at this address (DNS rebinding)
    // must not be answered.
    router
        .layer(middleware::map_response(console::private))
        .layer(middleware::from_fn_with_state(Listener::Console(gateway), origin::guard))
}

async fn readyz(State(gateway): State<Arc<Gateway>>) -> Response {
    match gateway.ready() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn show_metrics(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    let (content_type, text) = metrics::negotiate(gateway.metrics().encode(), &headers);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// `GET /config`: every setting in effect, and its origin.
async fn config(State(gateway): State<Arc<Gateway>>) -> Response {
    Json(&*gateway.current().config.origins.0).into_response()
}
