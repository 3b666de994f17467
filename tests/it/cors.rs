//! Pages of other origins: which ones are allowed, the CORS answers to their browsers, and the behaviour of Chromium.

use crate::common::backend::{Backend, Reply as Answer};
use crate::common::browser::{Client, fetch, show};
use crate::common::client;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::proxy::Proxy;
use crate::common::raw::{self, Raw, Reply, ask};
use crate::common::site::Site;
use crate::common::token::{JWT, token};
use futures_util::future::join_all;
use serde_json::json;

/// One origin by name, and one domain.
const CORS: &str =
    "[cors]\norigins = [\"https://app.example.com\", \"https://*.apps.example:8443\"]\ncredentials = true\n";

const RULES: &str = "[[topics]]\nmatch = \"open/**\"\nread = \"anyone\"\npublish = \"anyone\"\n";

const METHODS: [(&str, &str); 4] =
    [("GET", ""), ("HEAD", ""), ("POST", "Content-Length: 1\r\n\r\nx"), ("OPTIONS", "")];

async fn send(gateway: &Gateway, method: &str, target: &str, more: &str) -> Reply {
    raw::exchange(gateway.address, ask(method, target, more)).await
}

/// The head of an answer, which may be a stream's.
async fn head(gateway: &Gateway, method: &str, target: &str, more: &str) -> Reply {
    let mut raw = Raw::connect(gateway.address).await;
    raw.send(ask(method, target, more)).await.unwrap();
    let (status, head) = raw.head().await;
    Reply { status, head, body: vec![] }
}

/// Only an ordinary reader has subscribed and published, and it is still served.
async fn assert_alive_and_nothing_subscribed(gateway: &Gateway) {
    assert_eq!(gateway.metric("topicgate_messages_received_total").await, 0.0);
    gateway.assert_alive_and_nothing_subscribed().await;
}

/// The names of the header fields by which an answer lets a page in.
fn granted(reply: &Reply) -> Vec<&str> {
    let names = reply.head.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name).filter(|name| name.starts_with("access-control-")).collect()
}

/// An answer may vary by more than that.
fn varies_by_origin(reply: &Reply) -> bool {
    reply.header("vary").is_some_and(|vary| vary.split(", ").any(|name| name == "origin"))
}

#[tokio::test]
async fn without_credentials_a_page_of_another_origin_cannot_use_its_visitors_cookies() {
    let rules = "[[topics]]\nmatch = \"**\"\nread = \"token\"\npublish = \"token\"\n";
    let cookie = format!("Cookie: topicgate={}\r\n", token(json!({ "sub": "ann" })));
    let body = "Content-Length: 1\r\n\r\nx";
    for (cors, page, accepted) in [
        ("origins = [\"*\"]", "https://app.example.com", false),
        ("origins = [\"https://app.example.com\"]", "https://app.example.com", false),
        ("origins = [\"https://app.example.com\"]\ncredentials = true", "https://app.example.com", true),
        // Its own pages need no leave, also where they are listed, or all are.
        ("origins = [\"*\"]", "http://localhost", true),
    ] {
        let gateway = Gateway::with(&format!("[cors]\n{cors}\n{JWT}{rules}")).await;
        let from = format!("Origin: {page}\r\n");
        let answer = send(&gateway, "POST", "/topics/a", &format!("{from}{cookie}{body}")).await;
        assert_eq!(answer.status, if accepted { 202 } else { 401 }, "{cors} {page}");
        let answer = head(&gateway, "GET", "/topics/a", &format!("{from}{cookie}")).await;
        assert_eq!(answer.status, if accepted { 200 } else { 401 }, "{cors} {page}");
        // The credentials that the page itself sends count.
        let bearer = format!("Authorization: Bearer {}\r\n", token(json!({ "sub": "ann" })));
        assert_eq!(
            head(&gateway, "GET", "/topics/a", &format!("{from}{bearer}")).await.status,
            200,
            "{cors} {page}"
        );
    }
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_before_anything_is_subscribed_or_published() {
    join_all(["", CORS].map(|rules| async move {
        let gateway = Gateway::with(&format!("{rules}{RULES}")).await;
        for origin in [
            "https://evil.example",
            "null",
            // Origins that end, begin or look like a listed one.
            "https://app.example.com.evil.com",
            "https://evil.com/https://app.example.com",
            "https://appXexample.com",
            "https://xapp.example.com",
            "https://sub.app.example.com",
            "https://example.com",
            "https://a.appsXexample:8443",
            "https://aapps.example:8443",
            "https://a.apps.example:8443.evil.com",
            // The scheme, the port, and all that a browser would have written otherwise.
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com:443",
            "https://APP.example.com",
            "HTTPS://app.example.com",
            "https://app.example.com/",
            "https://app.example.com.",
            "https://user@app.example.com",
            "https://app.example.com@evil.com",
            "https://app.example.com#evil.com",
            "https://app.example.com, https://evil.example",
            "https://аpp.example.com", // the first letter is Cyrillic
            "https://xn--pp-6kc.example.com",
            "https://apps.example:8443",
            "https://.apps.example:8443",
            "https://a.apps.example",
            "https://a.apps.example:443",
            "http://a.apps.example:8443",
            "https://A.apps.example:8443",
            "https://a.apps.example.:8443",
            "https://user@a.apps.example:8443",
            "https://evil.com:1@a.apps.example:8443",
            "https://evil.com/.apps.example:8443",
            "https://*.apps.example:8443",
            // Origins that look like the gateway's own.
            "http://localhost:1",
            "http://localhost.evil.example",
            "localhost",
            "",
            "http://",
            "*",
        ] {
            for (method, body) in METHODS {
                let request = format!("Origin: {origin}\r\n{body}");
                let reply = head(&gateway, method, "/topics/open/a", &request).await;
                assert_eq!(reply.status, 403, "{method} {origin:?}");
                assert_eq!(granted(&reply), [""; 0], "{method} {origin:?}");
                assert!(varies_by_origin(&reply), "{method} {origin:?}");
            }
        }
        assert_alive_and_nothing_subscribed(&gateway).await;
    }))
    .await;
}

#[tokio::test]
async fn listed_pages_may_read_streams_and_refusals_with_their_cookies() {
    let gateway = Gateway::with(&format!("{CORS}{RULES}")).await;
    for origin in [
        "https://app.example.com",
        "https://a.apps.example:8443",
        "https://a.b.apps.example:8443",
        "https://xn--bcher-kva.apps.example:8443",
    ] {
        for (method, target, more, status) in [
            ("GET", "/topics/open/alive", "", 200),
            ("HEAD", "/topics/open/alive", "", 200),
            ("GET", "/topics/%3E", "", 400),
            ("GET", "/topics/hidden", "", 404),
            ("GET", "/elsewhere", "", 404),
            ("PUT", "/topics/open/a", "", 405),
            ("GET", "/topics/open/a", "Accept: text/html\r\n", 406),
            ("POST", "/topics/hidden", "Content-Length: 1\r\n\r\nx", 404),
            ("POST", "/topics/open/a", "Content-Length: 999999\r\n\r\n", 413),
            ("OPTIONS", "/topics/open/a", "", 204),
            // A request with the name of another host is refused with a reason.
            ("GET", "http://attacker.example/topics/open/a", "", 421),
        ] {
            let reply = head(&gateway, method, target, &format!("Origin: {origin}\r\n{more}")).await;
            assert_eq!(reply.status, status, "{method} {target}");
            assert_eq!(reply.header("access-control-allow-origin"), Some(origin), "{method} {target}");
            assert_eq!(reply.header("access-control-allow-credentials"), Some("true"), "{method} {target}");
            let exposed = reply.header("access-control-expose-headers");
            assert_eq!(exposed, Some("retry-after, www-authenticate"), "{method} {target}");
            assert_eq!(granted(&reply).len(), 3, "{}", reply.head);
            assert!(varies_by_origin(&reply), "{method} {target}");
        }
    }
    assert_alive_and_nothing_subscribed(&gateway).await;
}

#[tokio::test]
async fn every_answer_varies_by_origin_for_every_caller_and_configuration() {
    for rules in ["", CORS, "[cors]\norigins = [\"*\"]\n"] {
        let gateway = Gateway::with(&format!("{rules}{RULES}")).await;
        for origin in ["", "Origin: http://localhost\r\n"] {
            for (method, target, status) in [
                ("GET", "/topics/open/alive", 200),
                ("GET", "/", 200),
                ("GET", "/topics/hidden", 404),
                ("GET", "/topics/", 404),
                ("PUT", "/topics/a", 405),
                ("OPTIONS", "/topics/a", 204),
                ("GET", "http://attacker.example/topics/a", 421),
            ] {
                let reply = head(&gateway, method, target, origin).await;
                assert_eq!((reply.status, varies_by_origin(&reply)), (status, true), "{target}");
                if !rules.contains('*') {
                    assert_eq!(granted(&reply), [""; 0], "{target}");
                }
            }
        }
    }
}

#[tokio::test]
async fn if_all_origins_are_listed_any_page_can_read_but_not_with_cookies() {
    let gateway = Gateway::with(&format!("[cors]\norigins = [\"*\"]\n{RULES}")).await;
    for origin in ["https://evil.example", "null"] {
        let reply = head(&gateway, "GET", "/topics/open/alive", &format!("Origin: {origin}\r\n")).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("*")));
        assert_eq!(reply.header("access-control-allow-credentials"), None);
    }
}

#[tokio::test]
async fn the_sec_fetch_fields_of_a_request_are_checked_before_its_host() {
    let gateway = Gateway::with(RULES).await;
    for (fields, status) in [
        // The requests of <img src> and <script src>, and of a link that a person follows.
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n", 403),
        ("Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: no-cors\r\n", 403),
        ("Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\n", 200),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n", 200),
        ("Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n", 200),
        ("Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n", 200),
        ("Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n", 200),
        ("Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n", 200),
        // Requests without a click: frames and the like, and prefetches.
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n", 403),
        ("Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: frame\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: fencedframe\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: object\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: embed\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        (
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nSec-Purpose: prefetch\r\n",
            403,
        ),
        // A proxy may have changed Host.
        ("Origin: https://gate.example\r\nSec-Fetch-Site: same-origin\r\n", 200),
        // A browser that does not say, and one that does: the same name over another scheme is another origin.
        ("Origin: http://localhost\r\n", 200),
        ("Origin: http://LOCALHOST\r\n", 200),
        ("Origin: http://localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("Origin: http://localhost\r\nSec-Fetch-Site: same-site\r\n", 403),
        ("", 200),
    ] {
        assert_eq!(head(&gateway, "GET", "/topics/open/alive", fields).await.status, status, "{fields:?}");
    }
    assert_alive_and_nothing_subscribed(&gateway).await;
}

#[tokio::test]
async fn a_post_from_another_site_is_refused_whether_it_names_its_origin_or_not() {
    let gateway = Gateway::with(&format!("{CORS}{RULES}")).await;
    let body = "Content-Length: 1\r\n\r\nx";
    let navigation = "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for (fields, status) in [
        ("Sec-Fetch-Site: cross-site\r\n".to_owned() + navigation, 403),
        ("Sec-Fetch-Site: same-site\r\n".to_owned() + navigation, 403),
        ("Origin: null\r\nSec-Fetch-Site: cross-site\r\n".to_owned() + navigation, 403),
        ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: empty\r\n".into(), 403),
        ("Origin: https://app.example.com\r\nSec-Fetch-Site: cross-site\r\n".into(), 202),
        ("Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n".to_owned() + navigation, 202),
        ("Sec-Fetch-Site: same-origin\r\n".to_owned() + navigation, 202),
        (String::new(), 202),
    ] {
        let reply = send(&gateway, "POST", "/topics/open/a", &format!("{fields}{body}")).await;
        assert_eq!(reply.status, status, "{fields:?}");
    }
}

#[tokio::test]
async fn without_credentials_authorization_that_a_browser_adds_is_ignored_and_a_bearer_token_is_not() {
    let backend = Backend::start(|_| Answer::json(json!({ "subject": "ann" }))).await;
    let rules = "[[topics]]\nmatch = \"**\"\nread = \"token\"\n";
    let forward = format!("[auth.forward]\nurl = \"{}\"\ncache = \"0s\"\n", backend.url("/"));
    for (credentials, origin, passes) in [
        (false, "https://app.example.com", false),
        (true, "https://app.example.com", true),
        (false, "http://localhost", true),
    ] {
        let cors = format!("[cors]\norigins = [\"https://app.example.com\"]\ncredentials = {credentials}\n");
        let gateway = Gateway::with(&format!("{cors}{forward}{rules}")).await;
        for (sent, kept) in [
            ("Basic YTpi", passes),
            ("basic YTpi", passes),
            ("Digest username=\"ann\"", passes),
            ("Negotiate TlRM", passes),
            ("NTLM TlRM", passes),
            ("Bearer abc", true),
            ("bearer abc", true),
        ] {
            let headers =
                [("host", "localhost"), ("origin", origin), ("authorization", sent), ("cookie", "session=1")];
            let _reader = client::Reader::open(gateway.address, "/topics/a", &headers).await;
            let asked = backend.asked().pop().unwrap();
            assert_eq!(asked.header("authorization"), if kept { sent } else { "" }, "{credentials} {origin}");
            assert_eq!(
                asked.header("cookie"),
                if passes { "session=1" } else { "" },
                "{credentials} {origin}"
            );
        }
    }
}

#[tokio::test]
async fn a_preflight_allows_the_request_headers_that_the_configuration_adds() {
    let listed =
        "[cors]\norigins = [\"https://app.example.com\"]\nheaders = [\"baggage\", \"X-Requested-With\"]\n";
    let gateway = Gateway::with(&format!("{listed}{RULES}")).await;
    let asked =
        "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: baggage,traceparent\r\n";
    for (origin, allowed) in [
        (
            "https://app.example.com",
            Some(
                "last-event-id, authorization, cache-control, content-type, event-id, event-type, traceparent, \
                 tracestate, baggage, x-requested-with",
            ),
        ),
        ("https://evil.example", None),
    ] {
        let reply =
            send(&gateway, "OPTIONS", "/topics/open/a", &format!("Origin: {origin}\r\n{asked}")).await;
        assert_eq!(reply.header("access-control-allow-headers"), allowed, "{origin}");
    }
}

#[tokio::test]
async fn a_preflight_allows_the_methods_and_fields_that_pages_send_on_any_path_and_does_nothing_else() {
    let gateway = Gateway::with(&format!("{CORS}{RULES}")).await;
    let origin = "Origin: https://app.example.com\r\n";
    for target in
        ["/topics/open/a", "/topics/hidden", "/topics?topic=open/a", "/topics/%3E", "/elsewhere", "*"]
    {
        for asked in [
            "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: last-event-id\r\n",
            "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,event-id\r\n",
            // Neither is granted, since neither is in the answer; that is for the browser to see.
            "Access-Control-Request-Method: DELETE\r\n",
            "Access-Control-Request-Method: x\r\nAccess-Control-Request-Headers: x-evil\r\n",
            "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Private-Network: true\r\n",
            "Access-Control-Request-Method: GET\r\nAccept: text/html\r\nCookie: topicgate=broken\r\n",
        ] {
            let reply = send(&gateway, "OPTIONS", target, &format!("{origin}{asked}")).await;
            assert_eq!(reply.status, 204, "{target} {asked}");
            for (name, value) in [
                ("access-control-allow-origin", "https://app.example.com"),
                ("access-control-allow-credentials", "true"),
                ("access-control-allow-methods", "get, head, post"),
                (
                    "access-control-allow-headers",
                    "last-event-id, authorization, cache-control, content-type, event-id, event-type, traceparent, tracestate",
                ),
                ("access-control-max-age", "3600"),
                ("vary", "origin"),
            ] {
                assert_eq!(reply.header(name), Some(value), "{target} {asked}");
            }
            assert_eq!(granted(&reply).len(), 5, "{}", reply.head);
        }
    }
    assert_alive_and_nothing_subscribed(&gateway).await;
}

#[tokio::test]
async fn a_preflight_of_a_page_that_is_not_allowed_is_refused_and_reveals_nothing() {
    let asked = "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: last-event-id\r\n";
    for (rules, origin) in [(CORS, "https://evil.example"), (CORS, "null"), ("", "https://app.example.com")] {
        let gateway = Gateway::with(&format!("{rules}{RULES}")).await;
        let reply =
            send(&gateway, "OPTIONS", "/topics/open/a", &format!("Origin: {origin}\r\n{asked}")).await;
        assert_eq!((reply.status, granted(&reply)), (403, vec![]), "{origin}");
        assert!(
            reply.text().contains("\"bad_origin\"") && !reply.text().contains("example"),
            "{}",
            reply.text()
        );
    }
}

#[tokio::test]
async fn an_options_request_that_is_no_preflight_is_answered_with_the_methods() {
    let gateway = Gateway::with(&format!("{CORS}{RULES}")).await;
    for fields in [
        "",
        "Origin: https://app.example.com\r\n",
        "Access-Control-Request-Method: GET\r\n",
        "Origin: http://localhost\r\n",
    ] {
        for (target, allow) in [
            ("/topics/a", "get, head, post, options"),
            ("/topics", "get, head, options"),
            ("/topicgate.js", "get, head, options"),
            ("/", "get, head, options"),
            ("*", "get, head, post, options"),
        ] {
            let reply = send(&gateway, "OPTIONS", target, fields).await;
            assert_eq!((reply.status, reply.header("allow")), (204, Some(allow)), "{target} {fields:?}");
            assert_eq!(reply.header("access-control-allow-methods"), None, "{target} {fields:?}");
        }
        assert_eq!(send(&gateway, "OPTIONS", "/elsewhere", fields).await.status, 404);
    }
}

#[tokio::test]
async fn chromium_reads_across_origins_and_resumes_where_it_was_cut_off() {
    const MESSAGES: usize = 60;
    let site = Site::start().await;
    let page = site.origin("app.localhost");
    let settings = format!("streams.retry = \"500ms\"\ncors.origins = [\"{page}\"]\n{RULES}");
    let gateway = Gateway::with(&settings).await;
    // Behind the head, which ends where Chromium would take it for a whole one.
    let proxy = Proxy::start(gateway.address, 4, |connection| [700, 650, 900, 800][connection]).await;
    let url = format!("http://{}/topics/open/numbers", proxy.address);
    let mut client = Client::start("chromium", &url, &json!({ "page": page }));
    assert_eq!(client.event().await.kind, "stream-open");
    for number in 0..MESSAGES {
        gateway.publish("open/numbers", number.to_string()).await;
        assert_eq!(client.message().await.data, number.to_string());
    }
    assert_eq!(proxy.cuts(), 4);
    client.close().await;
}

#[tokio::test]
async fn chromium_gives_up_on_a_stream_that_its_page_may_not_read() {
    let site = Site::start().await;
    let (page, other) = (site.origin("app.localhost"), site.origin("other.localhost"));
    // The page that is listed, that which asks, and whether it sends cookies where they are not allowed.
    let cases = [(other.as_str(), page.as_str(), false), (&page, &page, true), ("*", &page, true)];
    join_all(cases.map(|(listed, asking, cookies)| async move {
        let gateway = Gateway::with(&format!("cors.origins = [\"{listed}\"]\n{RULES}")).await;
        let url = format!("http://{}/topics/open/a", gateway.address);
        let options = json!({ "page": asking, "withCredentials": cookies });
        let mut client = Client::start("chromium", &url, &options);
        assert!(client.gives_up().await.is_empty());
        client.close().await;
    }))
    .await;
}

/// How often a page was refused on `gateway`.
async fn refused_pages(gateway: &Gateway) -> f64 {
    gateway.metric("topicgate_refused_requests_total{code=\"bad_origin\"}").await
}

#[tokio::test]
async fn chromium_opens_no_stream_that_a_foreign_page_embeds_or_posts_to_but_follows_a_link() {
    let site = Site::start().await;
    let page = site.origin("evil.localhost");
    let gateway = Gateway::with(RULES).await;
    let url = format!("http://localhost:{}/topics/open/a", gateway.address.port());
    let admin = format!("http://localhost:{}/console/events", gateway.admin.port());
    let embedded = format!(
        "<iframe src={url}></iframe><object data={url}></object><embed src={url}><img src={url}>\
         <script src={url}></script><link rel=stylesheet href={url}><video src={url}></video>\
         <script>new EventSource('{url}'); fetch('{url}', {{ mode: 'no-cors' }}); navigator.sendBeacon('{url}', 'x')</script>\
         <iframe src={admin}></iframe><object data={admin}></object>"
    );
    let posted = format!(
        "<meta name=referrer content=no-referrer><form method=post action={url} enctype=text/plain>\
         <input name=a value=b></form><script>document.forms[0].submit()</script>"
    );
    // The browser may try one of them again.
    for (html, requests) in [(embedded, 12.0), (posted, 1.0)] {
        let before = refused_pages(&gateway).await;
        let _shown = show(&page, &html).await;
        eventually("each is refused", async || refused_pages(&gateway).await >= before + requests).await;
    }
    assert_eq!(gateway.metric("topicgate_streams_opened_total{http=\"1.1\"}").await, 0.0);
    assert_eq!(gateway.metric("topicgate_publishes_total{result=\"accepted\"}").await, 0.0);
    for html in [format!("<a id=click href={url}>follow</a>"), format!("<script>location = '{url}'</script>")]
    {
        let before = gateway.metric("topicgate_streams_opened_total{http=\"1.1\"}").await;
        let _shown = show(&page, &html).await;
        eventually(&html, async || {
            gateway.metric("topicgate_streams_opened_total{http=\"1.1\"}").await > before
        })
        .await;
    }
}

#[tokio::test]
async fn chromium_reads_across_origins_with_cookies_where_they_are_allowed() {
    let site = Site::start().await;
    let page = site.origin("app.localhost");
    let gateway =
        Gateway::with(&format!("cors = {{ origins = [\"{page}\"], credentials = true }}\n{RULES}")).await;
    let url = format!("http://{}/topics/open/a", gateway.address);
    let mut client = Client::start("chromium", &url, &json!({ "page": page, "withCredentials": true }));
    assert_eq!(client.event().await.kind, "stream-open");
    gateway.publish("open/a", "hello").await;
    assert_eq!(client.message().await.data, "hello");
    client.close().await;
}

#[tokio::test]
async fn a_page_reads_a_stream_with_fetch_and_a_token_and_publishes_across_origins() {
    let site = Site::start().await;
    let page = site.origin("app.localhost");
    let gateway = Gateway::with(&format!("cors.origins = [\"{page}\"]\n{RULES}")).await;
    let url = |path: &str| format!("http://{}{path}", gateway.address);

    // Authorization and Event-Id are sent only after a preflight that allows them.
    let fields =
        json!({ "Authorization": "Bearer t", "Event-Id": "o-17", "Content-Type": "application/json" });
    let post = json!({ "method": "POST", "headers": fields, "body": "{}" });
    let answer = fetch(&page, &url("/topics/open/a"), &post).await;
    assert_eq!(answer["status"], 202, "{answer}");
    let fields = json!({ "Authorization": "Bearer t", "Last-Event-ID": "x".repeat(200) });
    let get = json!({ "headers": fields, "until": "\"open/b\"" });
    let answer = fetch(&page, &url("/topics/open/b"), &get).await;
    assert_eq!(answer["headers"]["content-type"], "text/event-stream; charset=utf-8", "{answer}");
    assert!(answer["body"].as_str().unwrap().starts_with("event: stream-open\n"), "{answer}");

    // A refusal is read too, with its reason.
    let answer = fetch(&page, &url("/topics/hidden"), &json!({})).await;
    assert_eq!(answer["status"], 404, "{answer}");
    assert!(answer["body"].as_str().unwrap().contains("\"code\":\"not_found\""), "{answer}");

    // Forbidden requests never leave the browser, and a page that is not listed reads nothing.
    for (page, options) in [
        (&page, json!({ "method": "PUT" })),
        (&page, json!({ "headers": { "X-Evil": "1" } })),
        (&page, json!({ "credentials": "include" })),
        (&site.origin("other.localhost"), json!({})),
    ] {
        let answer = fetch(page, &url("/topics/open/c"), &options).await;
        assert!(answer["error"].as_str().is_some_and(|error| error.contains("fetch")), "{answer}");
    }
}
