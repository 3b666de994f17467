//! `/topicgate.js`: how the gateway serves the browser module. The module itself is tested in `clients/js`.

use crate::common::gateway::Gateway;
use crate::common::raw::{self, Raw, Reply, ask};

async fn get(gateway: &Gateway, method: &str, more: &str) -> Reply {
    raw::exchange(gateway.address, ask(method, "/topicgate.js", more)).await
}

/// The head of an answer that has no body, whatever its fields say.
async fn head(gateway: &Gateway, method: &str, more: &str) -> Reply {
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(ask(method, "/topicgate.js", more)).await.unwrap();
    let (status, head) = raw.head().await;
    Reply { status, head, body: vec![] }
}

#[tokio::test]
async fn the_browser_module_is_served_and_asked_for_again_only_if_it_has_changed() {
    let gateway = Gateway::start().await;
    let whole = get(&gateway, "GET", "").await;
    assert_eq!(whole.status, 200);
    assert_eq!(whole.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(whole.header("cache-control"), Some("no-cache"));
    assert!(whole.body == include_bytes!("../../src/http/topicgate.js"), "another file is served");
    let tag = whole.header("etag").unwrap();
    for known in [tag.to_owned(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".into()] {
        let again = head(&gateway, "GET", &format!("If-None-Match: {known}\r\n")).await;
        assert_eq!(again.status, 304, "{known}");
        assert_eq!(again.header("etag"), Some(tag));
    }
    assert_eq!(get(&gateway, "GET", "If-None-Match: \"other\"\r\n").await.status, 200);
    assert_eq!(head(&gateway, "HEAD", "").await.status, 200);
    assert_eq!(get(&gateway, "POST", "Content-Length: 0\r\n").await.status, 405);
}

#[tokio::test]
async fn pages_of_listed_origins_may_import_the_browser_module() {
    let gateway = Gateway::with("[cors]\norigins = [\"https://app.example.com\"]\n").await;
    let listed = get(&gateway, "GET", "Origin: https://app.example.com\r\n").await;
    assert_eq!(listed.status, 200);
    assert_eq!(listed.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(get(&gateway, "GET", "Origin: https://evil.example\r\n").await.status, 403);
    assert_eq!(get(&gateway, "GET", "Sec-Fetch-Site: cross-site\r\n").await.status, 403);
}
