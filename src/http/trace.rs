//! The span of a request, which lasts from its head to the head of the answer. `traces` exports it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::KeyValue;
use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{Status, TraceContextExt as _};

use super::problem::RefusalNote;
use crate::gateway::Gateway;

/// The middleware: creates a span for opening a stream and for publishing. The span has no URL, because the query may
/// hold a token.
pub(super) async fn trace(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let one_topic = request.uri().path().starts_with("/topics/");
    let (name, route) = match (request.method(), one_topic) {
        (&Method::GET, true) => ("GET /topics/{topic}", "/topics/{topic}"),
        (&Method::GET, false) if request.uri().path() == "/topics" => ("GET /topics", "/topics"),
        (&Method::POST, true) => ("POST /topics/{topic}", "/topics/{topic}"),
        _ => return next.run(request).await,
    };
    let method = request.method().to_string();
    let Some(context) = gateway.traces().request(name, request.headers()) else {
        return next.run(request).await;
    };
    let response = next.run(request).with_context(context.clone()).await;
    let span = context.span();
    let status = response.status();
    span.set_attribute(KeyValue::new("http.request.method", method));
    span.set_attribute(KeyValue::new("http.route", route));
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if let Some(RefusalNote { code, .. }) = response.extensions().get() {
        span.set_attribute(KeyValue::new("topicgate.code", code.as_str()));
    }
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    span.end();
    response
}
