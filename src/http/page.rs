//! The page at `/`, on which people read and publish. It is served only with the embedded broker (`memory:`), so that a
//! newcomer sees topicgate work at once. Without a configuration it also has the first look: five live uses.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::gateway::Gateway;

const PAGE: &str = include_str!("page/page.html");

/// The first look: its cards, its style and its script.
const CARDS: &str = include_str!("page/look.html");
const STYLE: &str = include_str!("page/look.css");
const SCRIPT: &str = include_str!("page/look.js");

/// The placeholders for the note that it is the demo, and for the first look.
const DEMO_PLACE: &str = "<!-- demo -->\n";
const STYLE_PLACE: &str = "<!-- style of the first look -->\n";
const CARDS_PLACE: &str = "<!-- first look -->\n";

/// The note that it is the demo.
const DEMO: &str = "<section class=\"wide\"><strong>This is the demo.</strong> Everyone who reaches this address can read and \
                    publish every topic, and nothing is kept. A broker or a rule in the configuration ends it.</section>\n";

static PLAIN: LazyLock<Page> = LazyLock::new(|| Page::new("", "", ""));
static WITH_DEMO: LazyLock<Page> = LazyLock::new(|| Page::new(DEMO, "", ""));
static WITH_FIRST_LOOK: LazyLock<Page> = LazyLock::new(|| {
    let style = format!("<style>\n{STYLE}</style>\n");
    Page::new(DEMO, &style, &format!("{CARDS}<script type=\"module\">\n{SCRIPT}</script>\n"))
});

/// One version of the page.
#[derive(Debug)]
struct Page {
    html: String,
    /// Its Content-Security-Policy: its own styles and scripts, named by their hashes, the browser module, and requests
    /// to its own origin.
    policy: String,
}

impl Page {
    fn new(demo: &str, style: &str, cards: &str) -> Self {
        let html = PAGE.replace(DEMO_PLACE, demo).replace(STYLE_PLACE, style).replace(CARDS_PLACE, cards);
        let (styles, scripts) = (hashes(&html, "style"), hashes(&html, "script"));
        let policy = format!(
            "default-src 'none'; style-src{styles}; script-src 'self'{scripts}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Page { html, policy }
    }
}

/// The hashes of the contents of the elements with this name, in the form of a policy.
fn hashes(html: &str, element: &str) -> String {
    let (begin, end) = (format!("\n<{element}"), format!("</{element}>"));
    let inner = html.split(&begin).skip(1).filter_map(|rest| {
        let (_, rest) = rest.split_once('>')?;
        rest.split_once(&end).map(|(inner, _)| inner)
    });
    let hash = |inner: &str| STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, inner.as_bytes()));
    inner.map(|inner| format!(" 'sha256-{}'", hash(inner))).collect()
}

/// The answer to `GET /`. `has_first_look`: whether the process started with its back end.
pub(super) fn page(State(gateway): State<Arc<Gateway>>, has_first_look: bool) -> Response {
    let current = gateway.current();
    let page = match current.config.is_demo {
        true if has_first_look && current.config.has_first_look => &WITH_FIRST_LOOK,
        true => &WITH_DEMO,
        false => &PLAIN,
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, page.policy.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, page.html.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_and_every_style_and_script_has_a_hash() {
        for (page, blocks) in [(&PLAIN, 2), (&WITH_DEMO, 2), (&WITH_FIRST_LOOK, 4)] {
            assert_eq!(page.policy.matches("'sha256-").count(), blocks);
            let elements = page.html.matches("<style").count() + page.html.matches("<script").count();
            // The elements in the displayed code are text.
            assert_eq!(elements, blocks);
            assert!(![DEMO_PLACE, STYLE_PLACE, CARDS_PLACE].iter().any(|place| page.html.contains(place)));
            assert!(!page.html.contains(" style=\""), "the policy allows no style in an attribute");
        }
    }
}
