//! The response head of an event stream, and whether a request asks for one by name.

use axum::http::{HeaderMap, HeaderValue, header};

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

/// Whether the `Accept` of a request names `text/event-stream`, as every EventSource does (HTML standard, section
/// 9.2.2).
pub(crate) fn names_event_stream(headers: &HeaderMap) -> bool {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut essences = ranges.flat_map(|list| list.split(',')).map(|range| range.split(';').next());
    essences.any(|essence| {
        essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}
