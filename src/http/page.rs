//! The try page at `/`, which is served only with the embedded broker (`memory:`), so that a newcomer sees topicgate
//! work at once.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::gateway::Gateway;

const PAGE: &str = include_str!("page.html");

/// The Content-Security-Policy of the page: its own style and script, named by their hashes, and requests to its own
/// origin.
const POLICY: &str = "default-src 'none'; style-src 'sha256-ZTqowbZMbPtZ4QyYqxvsX7n7uKMfa/AWf456lTZ3HAE='; script-src 'sha256-bJTK0b5XwlniLgjgHA4r00kUYxporOl3UAYLDw8VaXY='; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the page says that it is the demo.
const PLACE: &str = "<!-- demo -->";

/// What it says then.
const DEMO: &str = "<section class=\"wide\"><strong>This is the demo.</strong> Everyone who reaches this address can read and \
                    publish every topic, and nothing is kept. A broker or a rule in the configuration ends it.</section>";

/// The handler of `GET /`.
pub(super) async fn page(State(gateway): State<Arc<Gateway>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let demo = if gateway.current().config.is_demo { DEMO } else { "" };
    (headers, PAGE.replace(PLACE, demo)).into_response()
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn the_policy_names_the_style_and_the_script_that_the_page_has() {
        for (element, directive) in [("style", "style-src"), ("script", "script-src")] {
            let inner = PAGE.split_once(&format!("<{element}>")).unwrap().1;
            let inner = inner.split_once(&format!("</{element}>")).unwrap().0;
            let hash = STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, inner.as_bytes()));
            let expected = format!("{directive} 'sha256-{hash}'");
            assert!(POLICY.contains(&expected), "the page has changed; the policy must say {expected}");
        }
    }
}
