//! The response head of an event stream.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::protocol::gzip::Content;

/// Sets the headers of every stream.
pub(crate) fn stream_headers(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-store, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Sets the headers of a stream that may be compressed, whether or not this one is: its content coding, and that it
/// depends on the request.
pub(crate) fn coding_headers(headers: &mut HeaderMap, content: Content) {
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if content == Content::Gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
}
