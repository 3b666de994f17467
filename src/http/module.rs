//! The browser module at `/topicgate.js`, so that a page needs no npm and no build. It is built from `clients/js` and
//! committed, because a build of the gateway must not need Node; a test there builds it again and compares.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

const MODULE: &str = include_str!("topicgate.js");

/// The entity tag: part of a digest of the module.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let digest = ring::digest::digest(&ring::digest::SHA256, MODULE.as_bytes());
    let start: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{start}\"")
});

/// The handler of `GET /topicgate.js`. A page asks each time whether it has changed, so that it never runs with the
/// module of another version than the gateway's for long.
pub(super) async fn module(headers: HeaderMap) -> Response {
    let tag = TAG.as_str();
    let is_known = |known: &HeaderValue| {
        let listed = known.to_str().unwrap_or_default().split(',');
        listed.map(str::trim).any(|each| each == "*" || each.trim_start_matches("W/") == tag)
    };
    let caching = [(header::ETAG, tag), (header::CACHE_CONTROL, "no-cache")];
    if headers.get_all(header::IF_NONE_MATCH).iter().any(is_known) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let kind = [
        (header::CONTENT_TYPE, "text/javascript; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (kind, caching, MODULE).into_response()
}
