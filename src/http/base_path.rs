//! `base_path`: the path below which browsers reach the gateway behind a proxy that does not remove it. It is removed here,
//! before the routes. A path without it is served too, for proxies that do remove it. Nothing else knows it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::gateway::Gateway;

/// The middleware. It must wrap the router, because routes are chosen by the rest of the path.
pub(super) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Response {
    let current = gateway.current();
    let base = current.config.base_path.as_str();
    match below(request.uri().path(), base) {
        // The page's addresses are relative to its own, which must end with a slash.
        Some("") => {
            if let Ok(location) = HeaderValue::try_from(format!("{base}/")) {
                // As every answer, although this one depends on no origin: a cache must not have to know that.
                let vary = HeaderValue::from_static("origin");
                let headers = [(header::LOCATION, location), (header::VARY, vary)];
                return (StatusCode::PERMANENT_REDIRECT, headers).into_response();
            }
        }
        Some(path) => {
            if let Some(uri) = with_path(request.uri(), path) {
                *request.uri_mut() = uri;
            }
        }
        None => {}
    }
    next.run(request).await
}

/// The part of a path after the base, which may be empty. `None`: the path does not begin with the base, or there is no
/// base.
fn below<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(base).filter(|_| !base.is_empty())?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!("{path}{query}")).ok()?);
    Uri::from_parts(parts).ok()
}

/// A hint for a path without a route: what was probably meant.
pub(super) fn hint(path: &str) -> Option<String> {
    if path.starts_with("//") {
        return Some(format!(
            "the path begins with {} slashes; write one: an address that ends with / was joined with one that begins with it",
            path.len() - path.trim_start_matches('/').len()
        ));
    }
    let (prefix, _) =
        path.split_once("/topics").filter(|(_, rest)| rest.is_empty() || rest.starts_with('/'))?;
    (!prefix.is_empty()).then(|| {
        "topics are at /topics/<path>; if a proxy in front adds a path before it, let the proxy remove it, or set \
         base_path to it"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_are_removed() {
        assert_eq!(below("/events/topics/a", "/events"), Some("/topics/a"));
        assert_eq!(below("/events/", "/events"), Some("/"));
        assert_eq!(below("/events", "/events"), Some(""));
        assert_eq!(below("/eventsource", "/events"), None);
        assert_eq!(below("/topics/a", "/events"), None);
        assert_eq!(below("/topics/a", ""), None);
        let uri = with_path(&"http://h/events/topics/a?last=1".parse().unwrap(), "/topics/a");
        assert_eq!(uri.unwrap(), "http://h/topics/a?last=1");
    }

    #[test]
    fn unusual_paths_get_a_hint() {
        assert!(hint("//topics/a").unwrap().contains("2 slashes"));
        assert!(hint("/events/topics/a").unwrap().contains("base_path"));
        assert!(
            hint("/elsewhere").is_none() && hint("/topicsort").is_none() && hint("/a/topicsort").is_none()
        );
    }
}
