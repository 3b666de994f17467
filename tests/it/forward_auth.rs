//! Forward auth: the gateway asks a backend for permission, and only a clear yes admits a caller.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::backend::{Backend, Question, Reply, closing_with, raw};
use crate::common::browser::Client;
use crate::common::client::{self, Reader};
use crate::common::eventually;
use crate::common::gateway::Gateway;
use futures_util::future::join_all;
use serde_json::json;
use tokio::net::TcpListener;

/// A gateway that asks at `url`, with these further lines of `[auth.forward]`.
async fn gateway(url: &str, settings: &str) -> Gateway {
    Gateway::with(&configuration(url, settings)).await
}

fn configuration(url: &str, settings: &str) -> String {
    format!(
        "[limits]\nopens_per_second = 10000\n[auth.forward]\nurl = \"{url}\"\n{settings}\n\
         [[topics]]\nmatch = \"open/**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
         [[topics]]\nmatch = \"users/{{sub}}/**\"\nread = \"token\"\n\
         [[topics]]\nmatch = \"any/**\"\nread = \"token\"\npublish = \"token\"\n\
         [[topics]]\nmatch = \"t/**\"\nread = \"granted\"\npublish = \"granted\"\n\
         [[topics]]\nmatch = \"shut/**\"\n"
    )
}

/// The outcome of a request for a stream: `open`, the code of a `stream-close`, or status and code of a refusal.
async fn outcome(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> String {
    match Reader::ask(address, path, headers).await {
        Ok(mut reader) => match reader.next().await.unwrap() {
            event if event.event == "stream-open" => "open".into(),
            event => serde_json::from_str::<serde_json::Value>(&event.data).unwrap()["code"]
                .as_str()
                .unwrap()
                .into(),
        },
        Err(refusal) => format!("{} {}", refusal.status, refusal.json()["code"].as_str().unwrap()),
    }
}

/// As [`outcome`], with a cookie that is the whole difference between two readers.
async fn with_cookie(gateway: &Gateway, path: &str, cookie: &str) -> String {
    outcome(gateway.address, path, &[("cookie", cookie)]).await
}

fn unix(ahead: i64) -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + ahead
}

const LATER: &str = "auth_unavailable";

#[tokio::test]
async fn every_answer_has_its_outcome_and_only_a_clear_yes_opens() {
    let granted = |list: serde_json::Value| Reply::json(json!({"subscribe": list}));
    let allowed = || Reply::status(200);
    let rows = [
        // Any success without a JSON body allows the request.
        (allowed(), "open"),
        (Reply::status(204), "open"),
        (Reply::status(202), "open"),
        (allowed().body("no"), "open"),
        (allowed().header("content-type", "text/html").body("{\"subscribe\":[]}"), "open"),
        (Reply::json(""), LATER), // it may have broken off
        // A JSON body narrows.
        (Reply::json("{}"), "open"),
        (Reply::json(json!({"user": 1, "roles": ["x"]})), "open"),
        (Reply::json(json!({"publish": []})), "open"),
        (granted(json!(["t/a"])), "open"),
        (granted(json!(["x", "t/**"])), "open"),
        (granted(json!([])), "403 missing_grant"),
        (granted(json!(["t/b"])), "403 missing_grant"),
        (granted(json!(["t/a/**"])), "403 missing_grant"),
        (granted(json!(["t/*"])).header("content-type", "application/json; charset=utf-8"), "open"),
        (Reply::json(json!({"subject": null, "expires": null})), "open"),
        (Reply::json(json!({"expires": unix(3600)})), "open"),
        (Reply::json(json!({"expires": unix(3600) as f64 + 0.5})), "open"),
        (Reply::json(json!({"expires": unix(-1)})), "401 backend_refused"),
        (Reply::json(json!({"expires": 0})), "401 backend_refused"),
        // One that is not understood to the last member is none.
        (Reply::json("{"), LATER),
        (Reply::json("yes"), LATER),
        (Reply::json("true"), LATER),
        (Reply::json("null"), LATER),
        (Reply::json("[\"t/a\"]"), LATER),
        (Reply::json("{\"subject\":\"a\",\"subject\":\"b\"}"), LATER),
        (granted(json!(null)), LATER),
        (granted(json!("t/a")), LATER),
        (granted(json!({"t/a": true})), LATER),
        (granted(json!(["t/a", 1])), LATER),
        (granted(json!(["t/a", "t/**/x"])), LATER),
        (granted(json!(["t/a", ""])), LATER),
        (Reply::json(json!({"publish": [">"]})), LATER),
        (Reply::json(json!({"subject": 42})), LATER),
        (Reply::json(json!({"subject": ""})), LATER),
        (Reply::json(json!({"expires": "tomorrow"})), LATER),
        (Reply::json(json!({"expires": -1})), LATER),
        (Reply::json("{\"expires\":1e400}"), LATER),
        (Reply::json(json!({"expires": unix(3600) * 1000})), LATER),
        (Reply::json(json!({"subscribe": ["t/a"], "x": "x".repeat(17 * 1024)})), LATER),
        (allowed().body("x".repeat(17 * 1024)), LATER),
        // A refusal is one by its head.
        (Reply::status(401), "401 backend_refused"),
        (Reply::status(403), "403 backend_refused"),
        (Reply::status(403).body("x".repeat(1024 * 1024)), "403 backend_refused"),
        (Reply::status(401).header("content-type", "application/json").body("{"), "401 backend_refused"),
        // Everything else passes.
        (Reply::status(300), LATER),
        (Reply::status(301).header("location", "/allowed"), LATER),
        (Reply::status(302).header("location", "/allowed"), LATER),
        (Reply::status(307).header("location", "/allowed"), LATER),
        (Reply::status(304), LATER),
        (Reply::status(400), LATER),
        (Reply::status(402), LATER),
        (Reply::status(404), LATER),
        (Reply::status(407), LATER),
        (Reply::status(429), LATER),
        (Reply::status(500), LATER),
        (Reply::status(503), LATER),
        (Reply::status(599), LATER),
        (Reply::status(999), LATER),
    ];
    let backend = Backend::start(|_| Reply::status(500)).await;
    let gateway = gateway(&backend.url("/auth"), "cache = \"0s\"").await;
    let mut faults = vec![];
    for (reply, expected) in &rows {
        let answer = reply.clone();
        backend.answer(
            move |question| {
                if question.uri == "/allowed" { Reply::status(200) } else { answer.clone() }
            },
        );
        let got = outcome(gateway.address, "/topics/t/a", &[]).await;
        if got != *expected {
            faults.push(format!("{got} and not {expected}: {reply:?}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert_eq!(backend.count(), rows.len(), "each was asked about once, and no redirect was followed");
    backend.answer(|_| Reply::status(200));
    assert_eq!(outcome(gateway.address, "/topics/t/a", &[]).await, "open");
}

#[tokio::test]
async fn an_answer_that_is_not_valid_http_admits_nobody() {
    for bytes in [
        &b""[..],
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{\"subscribe\":[\"t/a\"]",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"\x16\x03\x01",
    ] {
        let url = format!("http://{}/", raw(bytes).await);
        let gateway = gateway(&url, "timeout = \"1s\"").await;
        let got = outcome(gateway.address, "/topics/t/a", &[]).await;
        assert_eq!(got, LATER, "{}", String::from_utf8_lossy(bytes));
    }
}

#[tokio::test]
async fn a_backend_that_is_down_admits_nobody_until_it_is_back() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let gateway = gateway(&format!("http://{address}/"), "").await;
    assert_eq!(outcome(gateway.address, "/topics/t/a", &[]).await, LATER);
    let posted = gateway.post("/topics/t/a", "x").await;
    assert_eq!((posted.status, posted.header("retry-after").is_empty()), (503, false), "{}", posted.text());
    assert_eq!(
        outcome(gateway.address, "/topics/open/a", &[]).await,
        "open",
        "what is open to anyone stays so"
    );
    let backend = Backend::at(address, |_| Reply::status(200)).await;
    assert_eq!(outcome(gateway.address, "/topics/t/a", &[]).await, "open");
    drop(backend);
    assert_eq!(outcome(gateway.address, "/topics/t/b", &[]).await, LATER);
    assert_eq!(gateway.metric("topicgate_forward_questions_total{outcome=\"failed\"}").await, 3.0);
}

#[tokio::test]
async fn a_question_that_crosses_the_close_of_a_used_connection_is_asked_again_once() {
    let (address, count) = closing_with(b"").await;
    let one = gateway(&format!("http://{address}/"), "cache = \"0s\"").await;
    for _ in 0..10 {
        assert_eq!(outcome(one.address, "/topics/t/a", &[]).await, "open");
    }
    // The other connections in the pool may be closed as well.
    for _ in 0..3 {
        let outcomes = join_all((0..4).map(|_| outcome(one.address, "/topics/t/a", &[]))).await;
        assert_eq!(outcomes, ["open"; 4]);
    }
    assert!(count.load(std::sync::atomic::Ordering::Relaxed) > 22, "no connection was used twice");

    // An answer that breaks off is a fault.
    let (address, count) = closing_with(b"HTTP/1.1 2").await;
    let gateway = gateway(&format!("http://{address}/"), "cache = \"0s\"").await;
    let mut outcomes = vec![];
    for _ in 0..2 {
        outcomes.push(outcome(gateway.address, "/topics/t/a", &[]).await);
    }
    assert_eq!(outcomes, ["open", LATER]);
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_backend_that_hangs_admits_nobody_and_the_gateway_recovers() {
    let backend = Backend::start(|_| Reply::status(200).held()).await;
    let gateway = gateway(&backend.url("/"), "timeout = \"300ms\"").await;
    let readers: Vec<_> = (0..20).map(|n| format!("session={n}")).collect();
    let outcomes = join_all(readers.iter().map(|cookie| with_cookie(&gateway, "/topics/t/a", cookie))).await;
    assert_eq!(outcomes, [LATER; 20]);
    assert_eq!(gateway.metric("topicgate_forward_questions_total{outcome=\"late\"}").await, 20.0);
    assert_eq!(gateway.metric("topicgate_forward_asking").await, 0.0);
    backend.answer(|_| Reply::status(200));
    assert_eq!(with_cookie(&gateway, "/topics/t/a", "session=1").await, "open");
}

/// All fields of a question, except those that HTTP itself needs.
fn carried(question: &Question) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let mut all: Vec<_> = question
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
        .filter(|(name, _)| name != "host")
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn the_backend_receives_the_caller_and_the_topics_and_nothing_else() {
    let backend = Backend::start(|_| Reply::status(200)).await;
    let gateway = gateway(&backend.url("/auth?app=1"), "").await;
    let origin = format!("http://{}", gateway.address);
    let reader = Reader::open(
        gateway.address,
        "/topics/t/a?topic=open/b&topic=t/caf%C3%A9,%22&topic=t/x/**&access_token=s3cret&last=3",
        &[
            ("cookie", "session=1; theme=dark"),
            ("authorization", "Basic YTpi"),
            ("origin", &origin),
            ("last-event-id", "x"),
            ("user-agent", "page"),
            ("accept-language", "en"),
            ("x-forwarded-for", "203.0.113.7"),
            ("forwarded", "for=203.0.113.7"),
            ("x-real-ip", "203.0.113.7"),
            ("x-topicgate-action", "publish"),
            ("x-topicgate-topics", "t/z"),
            ("x-topicgate-subject", "root"),
            ("referer", "http://x/?access_token=s3cret"),
        ],
    )
    .await;
    drop(reader);
    let [question] = &backend.asked()[..] else { panic!("asked once") };
    assert_eq!((question.method.as_str(), question.uri.as_str()), ("GET", "/auth?app=1"));
    assert_eq!(question.header("host"), backend.address.to_string());
    let expected = [
        ("accept", "application/json"),
        ("authorization", "Basic YTpi"),
        ("cookie", "session=1; theme=dark"),
        ("origin", &origin),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-topicgate-action", "subscribe"),
        ("x-topicgate-topics", "t/a,t/caf%C3%A9%2C%22,t/x/**"),
    ];
    assert_eq!(carried(question), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

    gateway.publish("t/a", "x").await;
    let expected = [
        ("accept", "application/json"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-topicgate-action", "publish"),
        ("x-topicgate-topics", "t/a"),
    ];
    let question = backend.asked().pop().unwrap();
    assert_eq!(carried(&question), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn cookies_that_come_in_several_fields_reach_the_backend_in_one() {
    let backend = Backend::start(|_| Reply::status(200)).await;
    let gateway = gateway(&backend.url("/"), "").await;
    let response =
        gateway.request("HEAD", "/topics/t/a", &[("cookie", "a=1"), ("cookie", "session=2")]).await;
    assert_eq!(response.status, 200);
    assert_eq!(backend.asked()[0].header("cookie"), "a=1; session=2");
    assert_eq!(backend.asked()[0].headers.get_all("cookie").iter().count(), 1);
}

#[tokio::test]
async fn the_backend_is_not_asked_about_topics_that_are_open_to_anyone_or_to_nobody() {
    let backend = Backend::start(|_| Reply::status(403)).await;
    let gateway = gateway(&backend.url("/"), "").await;
    for (path, expected) in [
        ("/topics/open/a", "open"),
        ("/topics/shut/a", "404 not_found"),
        ("/topics/none", "404 not_found"),
        ("/topics?topic=t/a&topic=shut/a", "404 not_found"),
        ("/topics/t/a*", "400 bad_topic"),
    ] {
        assert_eq!(with_cookie(&gateway, path, "session=1").await, expected, "{path}");
    }
    gateway.publish("open/a", "x").await;
    assert_eq!(gateway.request("OPTIONS", "/topics/t/a", &[]).await.status, 204);
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn more_topics_than_fit_into_one_question_are_refused() {
    let backend = Backend::start(|_| Reply::status(200)).await;
    let gateway = gateway(&backend.url("/"), "").await;
    let topics = |count: usize| {
        let topics = (0..count).map(|n| format!("topic=t/{}{n}", "x".repeat(180)));
        format!("/topics?{}", topics.collect::<Vec<_>>().join("&"))
    };
    assert_eq!(outcome(gateway.address, &topics(40), &[]).await, "open");
    assert_eq!(outcome(gateway.address, &topics(46), &[]).await, "400 bad_query");
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_refusal_carries_the_challenge_of_the_backend_and_no_other_word_of_it() {
    let backend = Backend::start(|_| Reply::status(401)).await;
    let gateway = gateway(&backend.url("/"), "cache = \"0s\"").await;
    let challenge = async || {
        let response = gateway.get("/topics/t/a").await;
        assert_eq!(response.header("content-type"), "application/problem+json");
        assert_eq!(response.header("set-cookie"), "");
        (response.status, response.header("www-authenticate").to_owned())
    };
    assert_eq!(challenge().await, (401, "Bearer realm=\"topicgate\"".into()), "RFC 9110 asks for one");
    let basic = "Basic realm=\"shop\"";
    backend.answer(move |_| {
        Reply::status(401)
            .header("www-authenticate", basic)
            .header("www-authenticate", "Negotiate")
            .header("set-cookie", "a=b")
            .header("content-type", "text/html")
            .body("log in")
    });
    assert_eq!(challenge().await, (401, format!("{basic}, Negotiate")));
    backend.answer(move |_| Reply::status(403).header("www-authenticate", basic));
    assert_eq!(challenge().await, (403, basic.into()));
    backend.answer(|_| Reply::status(403));
    assert_eq!(challenge().await, (403, String::new()));
}

#[tokio::test]
async fn the_subject_that_the_backend_names_is_the_only_one_whose_topics_open() {
    let backend = Backend::start(|question| match question.header("cookie") {
        "session=ann" => Reply::json(json!({"subject": "ann"})),
        "session=star" => Reply::json(json!({"subject": "*"})),
        _ => Reply::status(200),
    })
    .await;
    let gateway = gateway(&backend.url("/"), "").await;
    for (cookie, topic, expected) in [
        ("session=ann", "users/ann/mail", "open"),
        ("session=ann", "users/ann/**", "open"),
        ("session=ann", "users/bob/mail", "403 wrong_subject"),
        ("session=ann", "users/*/mail", "403 wrong_subject"),
        ("session=star", "users/*/mail", "403 wrong_subject"),
        ("session=none", "users/ann/mail", "403 wrong_subject"),
    ] {
        let got = with_cookie(&gateway, &format!("/topics/{topic}"), cookie).await;
        assert_eq!(got, expected, "{cookie} {topic}");
    }
}

#[tokio::test]
async fn an_answer_that_grants_other_topics_does_not_allow_the_requested_ones() {
    let backend = Backend::start(|_| Reply::json(json!({"subscribe": ["any/a"], "publish": []}))).await;
    let gateway = gateway(&backend.url("/"), "").await;
    assert_eq!(outcome(gateway.address, "/topics/any/a", &[]).await, "open");
    assert_eq!(outcome(gateway.address, "/topics/any/b", &[]).await, "403 missing_grant");
    assert_eq!(outcome(gateway.address, "/topics?topic=any/a&topic=any/b", &[]).await, "403 missing_grant");
    let refused = gateway.get("/topics/any/b").await;
    assert_eq!(refused.json()["missing"], json!({"subscribe": ["any/b"]}));
    let refused = gateway.post("/topics/any/a", "x").await;
    assert_eq!((refused.status, refused.json()["missing"].clone()), (403, json!({"publish": ["any/a"]})));
}

#[tokio::test]
async fn a_post_asks_the_backend_for_permission_to_publish_and_is_published_only_if_it_agrees() {
    let backend = Backend::start(|question| match question.header("x-topicgate-action") {
        "publish" => Reply::status(403),
        _ => Reply::status(200),
    })
    .await;
    let gateway = gateway(&backend.url("/"), "cache = \"0s\"").await;
    let mut reader = gateway.open("/topics/t/a").await;
    reader.expect("stream-open").await;
    assert_eq!(gateway.post("/topics/t/a", "1").await.status, 403);
    backend.answer(|_| Reply::status(500));
    assert_eq!(gateway.post("/topics/t/a", "2").await.status, 503);
    backend.answer(|_| Reply::status(200));
    gateway.publish("t/a", "3").await;
    assert_eq!(reader.message().await, "3");
}

#[tokio::test]
async fn a_grant_of_the_backend_ends_when_it_expires() {
    let expires = unix(3);
    let backend = Backend::start(move |question| match question.header("cookie") {
        "publisher" => Reply::status(200),
        _ => Reply::json(json!({"expires": expires})),
    })
    .await;
    let gateway = gateway(&backend.url("/"), "cache = \"1m\"").await;
    let mut reader = gateway.open("/topics/t/a").await;
    reader.expect("stream-open").await;
    let publish = async |payload: &str| {
        client::request(
            gateway.address,
            "POST",
            "/topics/t/a",
            &[("cookie", "publisher")],
            payload.as_bytes(),
        )
        .await
    };
    assert_eq!(publish("1").await.status, 202);
    assert_eq!(reader.message().await, "1");
    let id = reader.last_id.clone();
    assert_eq!(reader.control("stream-close").await, json!({"code": "expired", "reconnect": true}));
    assert!(reader.next().await.is_none());
    assert!(unix(0) >= expires);
    assert_eq!(publish("2").await.status, 202);
    // The answer was to be kept for a minute, and is not kept beyond what it says: the backend is asked again.
    let resumed = gateway.request("GET", "/topics/t/a", &[("last-event-id", &id)]).await;
    assert_eq!(resumed.status, 401, "{}", resumed.text());
    let asked = backend.asked().iter().filter(|question| question.header("cookie").is_empty()).count();
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn an_answer_is_cached_for_the_same_question_and_for_no_other() {
    let backend = Backend::start(|_| Reply::status(200)).await;
    let gateway = gateway(&backend.url("/"), "cache = \"1m\"").await;
    let origin = format!("http://{}", gateway.address);
    let questions = [
        ("HEAD", "/topics/t/a", &[][..]),
        ("HEAD", "/topics/t/b", &[]),
        ("HEAD", "/topics?topic=t/a&topic=t/b", &[]),
        ("POST", "/topics/t/a", &[]),
        ("HEAD", "/topics/t/a", &[("cookie", "")]),
        ("HEAD", "/topics/t/a", &[("cookie", "session=1")]),
        ("HEAD", "/topics/t/a", &[("authorization", "session=1")]),
        ("HEAD", "/topics/t/a", &[("cookie", "session=2")]),
        ("HEAD", "/topics/t/a", &[("cookie", "session=1"), ("origin", &origin)]),
    ];
    for round in 1..=3 {
        for (method, path, headers) in questions {
            let response = gateway.request(method, path, headers).await;
            assert!(response.status < 300, "{method} {path} {headers:?}: {}", response.status);
        }
        assert_eq!(backend.count(), questions.len(), "round {round}");
    }
    assert_eq!(gateway.metric("topicgate_forward_cached_total").await, 18.0);
    assert_eq!(gateway.metric("topicgate_forward_questions_total{outcome=\"allowed\"}").await, 9.0);
    // Fields that the backend does not receive make no difference to the cache.
    let response =
        gateway.request("HEAD", "/topics/t/a?last=1", &[("user-agent", "x"), ("x-forwarded-for", "::1")]);
    assert_eq!(response.await.status, 200);
    assert_eq!(backend.count(), questions.len());
}

#[tokio::test]
async fn refusals_are_cached_and_faults_are_not() {
    let backend = Backend::start(|question| match question.header("cookie") {
        "refused" => Reply::status(403),
        _ => Reply::status(500),
    })
    .await;
    let gateway = gateway(&backend.url("/"), "cache = \"1m\"").await;
    for _ in 0..3 {
        assert_eq!(with_cookie(&gateway, "/topics/t/a", "refused").await, "403 backend_refused");
    }
    assert_eq!(backend.count(), 1);
    for _ in 0..3 {
        assert_eq!(with_cookie(&gateway, "/topics/t/a", "fault").await, LATER);
    }
    assert_eq!(backend.count(), 4);
}

#[tokio::test]
async fn an_answer_is_cached_as_long_as_the_configuration_says() {
    let backend = Backend::start(|_| Reply::status(200)).await;
    let kept = gateway(&backend.url("/"), "cache = \"1s\"").await;
    assert_eq!(outcome(kept.address, "/topics/t/a", &[]).await, "open");
    assert_eq!(outcome(kept.address, "/topics/t/a", &[]).await, "open");
    assert_eq!(backend.count(), 1);
    backend.answer(|_| Reply::status(403));
    eventually("the backend is asked again", async || {
        outcome(kept.address, "/topics/t/a", &[]).await == "403 backend_refused"
    })
    .await;
    assert_eq!(backend.count(), 2);
    let not_kept = gateway(&backend.url("/"), "cache = \"0s\"").await;
    for count in 3..6 {
        assert_eq!(outcome(not_kept.address, "/topics/t/a", &[]).await, "403 backend_refused");
        assert_eq!(backend.count(), count);
    }
}

#[tokio::test]
async fn the_cache_has_a_bound_and_drops_the_oldest_answer() {
    let backend = Backend::start(|_| Reply::status(200)).await;
    let gateway = gateway(&backend.url("/"), "cache = \"1m\"\nconcurrency = 8").await;
    let mut connection = client::Connection::open(gateway.address).await;
    let mut ask = async |n: usize| {
        let cookie = format!("session={n}");
        assert_eq!(connection.request("HEAD", "/topics/t/a", &[("cookie", &cookie)]).await, 200);
        backend.count()
    };
    for n in 0..4096 {
        assert_eq!(ask(n).await, n + 1);
    }
    assert_eq!(ask(0).await, 4096, "as many as the bound are kept");
    assert_eq!(ask(4096).await, 4097);
    assert_eq!(ask(0).await, 4097, "the one that was used");
    assert_eq!(ask(1).await, 4098, "and not the one that was not");
}

#[tokio::test]
async fn equal_questions_at_the_same_time_are_asked_once() {
    let backend = Backend::start(|_| Reply::status(200).held()).await;
    let gateway = gateway(&backend.url("/"), "").await;
    let readers = join_all((0..50).map(|_| with_cookie(&gateway, "/topics/t/a", "session=1")));
    let release = async {
        eventually("the others wait for the first", async || {
            gateway.metric("topicgate_forward_cached_total").await == 49.0
        })
        .await;
        assert_eq!(backend.count(), 1);
        backend.release(1);
    };
    let (outcomes, ()) = tokio::join!(readers, release);
    assert_eq!(outcomes, ["open"; 50]);
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_question_is_cancelled_when_its_reader_leaves_unless_another_waits_for_it() {
    let backend = Backend::start(|_| Reply::status(200).held()).await;
    let gateway = gateway(&backend.url("/"), "concurrency = 1\ntimeout = \"20s\"").await;
    let address = gateway.address;
    let reader = |cookie: &'static str| {
        tokio::spawn(async move { outcome(address, "/topics/t/a", &[("cookie", cookie)]).await })
    };
    let first = reader("session=1");
    eventually("it is being asked", async || backend.count() == 1).await;
    let second = reader("session=1");
    let cached = async || gateway.metric("topicgate_forward_cached_total").await;
    eventually("the second waits for the question of the first", async || cached().await == 1.0).await;
    first.abort();
    backend.release(1);
    assert_eq!(second.await.unwrap(), "open");
    assert_eq!(backend.count(), 1);

    let alone = reader("session=2");
    eventually("it is being asked", async || backend.count() == 2).await;
    alone.abort();
    let asking = async || gateway.metric("topicgate_forward_asking").await;
    eventually("nobody waits any more, so nothing is asked", async || asking().await == 0.0).await;
    backend.answer(|_| Reply::status(200));
    assert_eq!(reader("session=3").await.unwrap(), "open", "the one turn is free");
}

#[tokio::test]
async fn the_questions_to_a_backend_are_limited_and_a_long_wait_is_a_temporary_refusal() {
    let backend = Backend::start(|_| Reply::status(200).held()).await;
    let gateway = gateway(&backend.url("/"), "concurrency = 2\ntimeout = \"2s\"").await;
    // Two are asked, thirty-two wait for their turn, six find no place to wait.
    let cookies: Vec<_> = (0..40).map(|n| format!("session={n}")).collect();
    let readers = join_all(cookies.iter().map(|cookie| with_cookie(&gateway, "/topics/t/a", cookie)));
    let release = async {
        let busy = async || gateway.metric("topicgate_forward_questions_total{outcome=\"busy\"}").await;
        eventually("six are refused at once", async || busy().await == 6.0).await;
        assert_eq!(gateway.metric("topicgate_forward_asking").await, 2.0);
        backend.release(10);
    };
    let (outcomes, ()) = tokio::join!(readers, release);
    let opened = outcomes.iter().filter(|outcome| *outcome == "open").count();
    let later = outcomes.iter().filter(|outcome| *outcome == LATER).count();
    assert_eq!((opened, later), (10, 30), "{outcomes:?}");
    assert_eq!(backend.most_at_once(), 2);
    assert_eq!(gateway.metric("topicgate_forward_asking").await, 0.0);
    backend.answer(|_| Reply::status(200));
    assert_eq!(with_cookie(&gateway, "/topics/t/a", "session=after").await, "open");
}

#[tokio::test]
async fn chromium_shows_its_session_cookie_at_every_reconnect_until_the_session_is_over() {
    const MESSAGES: usize = 40;
    let backend = Backend::start(|question| match (question.uri.as_str(), question.header("cookie")) {
        ("/login", _) => Reply::status(200)
            .header("content-type", "text/html")
            .header("set-cookie", "session=1; Path=/; HttpOnly; SameSite=Strict")
            .body("<!doctype html><link rel=\"icon\" href=\"data:,\">"),
        ("/auth", "session=1" | "publisher") => Reply::status(204),
        _ => Reply::status(401),
    })
    .await;
    let page = backend.url("");
    let streams = format!(
        "[streams]\nmax_age = \"1s\"\nretry = \"500ms\"\n[cors]\norigins = [\"{page}\"]\ncredentials = true\n"
    );
    let gateway = Gateway::with(&(streams + &configuration(&backend.url("/auth"), "cache = \"0s\""))).await;
    let options = json!({"page": backend.url("/login"), "withCredentials": true});
    let mut chromium = Client::with("chromium", gateway.address, "/topics/t/a", &options).await;
    let publish = async {
        for number in 0..MESSAGES {
            let headers = [("cookie", "publisher")];
            let payload = number.to_string();
            let response =
                client::request(gateway.address, "POST", "/topics/t/a", &headers, payload.as_bytes()).await;
            assert_eq!(response.status, 202);
            tokio::time::sleep(Duration::from_millis(100)).await; // so that the reconnects fall among them
        }
    };
    let read = async {
        let mut received = 0;
        while received < MESSAGES {
            let event = chromium.event().await;
            match event.kind.as_str() {
                "message" => assert_eq!(event.data, received.to_string()),
                kind => {
                    assert!(["stream-open", "stream-close"].contains(&kind), "{event:?}");
                    continue;
                }
            }
            received += 1;
        }
    };
    tokio::join!(publish, read);
    let shown = backend.asked().into_iter().filter(|question| question.header("cookie") == "session=1");
    let origins: Vec<_> = shown.map(|question| question.header("origin").to_owned()).collect();
    assert!(origins.len() >= 3, "asked {} times", origins.len());
    assert!(origins.iter().all(|origin| *origin == page), "{origins:?}");
    backend.answer(|_| Reply::status(401));
    chromium.gives_up().await;
    chromium.close().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_backend_and_keys_over_tls_are_asked_only_where_the_system_trusts_them() {
    use crate::common::process::Process;
    use crate::common::signer::Signer;
    let signer = Signer::new("1", "EdDSA");
    let set = json!({"keys": [signer.jwk()]});
    let (backend, certificate) = Backend::tls(move |question| match question.uri.as_str() {
        "/jwks.json" => Reply::json(&set),
        _ => Reply::status(200),
    })
    .await;
    let url = format!("https://localhost:{}", backend.address.port());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, certificate).unwrap();
    let token = format!("Bearer {}", signer.token(&json!({"exp": unix(60)})));
    for (trusted, expected) in [(true, "open"), (false, LATER)] {
        let environment = [
            ("TOPICGATE_AUTH__FORWARD__URL", url.as_str()),
            ("TOPICGATE_AUTH__JWT__JWKS_URL", &format!("{url}/jwks.json")),
            ("TOPICGATE_TOPICS", "[{ match = \"a\", read = \"token\" }]"),
            ("SSL_CERT_FILE", path.to_str().unwrap()),
        ];
        let process = Process::start(&environment[..if trusted { 4 } else { 3 }]).await;
        assert_eq!(outcome(process.address, "/topics/a", &[]).await, expected, "{}", process.log());
        let bearer = [("authorization", token.as_str())];
        assert_eq!(outcome(process.address, "/topics/a", &bearer).await, expected, "{}", process.log());
        assert_eq!(process.log().contains("UnknownIssuer"), !trusted, "{}", process.log());
        process.kill().await;
    }
}

#[tokio::test]
async fn a_session_opens_streams_from_log_in_to_log_out() {
    // A small backend with sessions.
    let sessions = std::sync::Arc::new(parking_lot::Mutex::new(vec![]));
    let known = sessions.clone();
    let backend = Backend::start(move |question| {
        let session = question.header("cookie").split("; ").find_map(|pair| pair.strip_prefix("session="));
        match session.filter(|session| known.lock().iter().any(|known| known == session)) {
            Some(_) => Reply::json(json!({"subject": "ann", "subscribe": ["users/ann/**"]})),
            None => Reply::status(401),
        }
    })
    .await;
    let gateway = gateway(&backend.url("/"), "cache = \"1s\"").await;
    let cookie = [("cookie", "theme=dark; session=s3cret")];
    let path = "/topics/users/ann/mail";
    assert_eq!(outcome(gateway.address, path, &cookie).await, "401 backend_refused");
    sessions.lock().push("s3cret".to_owned());
    eventually("the refusal is forgotten", async || outcome(gateway.address, path, &cookie).await == "open")
        .await;
    assert_eq!(outcome(gateway.address, "/topics/users/bob/mail", &cookie).await, "403 missing_grant");
    sessions.lock().clear();
    eventually("the session is over", async || {
        outcome(gateway.address, path, &cookie).await == "401 backend_refused"
    })
    .await;
    assert_eq!(outcome(gateway.address, path, &cookie).await, "401 backend_refused");
}

#[tokio::test]
async fn a_refusal_says_that_the_backend_named_no_subject_if_a_rule_needs_one() {
    let backend = Backend::start(|_| Reply::json(json!({}))).await;
    let gateway = gateway(&backend.url("/may"), "").await;
    let refused = gateway.get("/topics/users/42/inbox").await;
    let problem = refused.json();
    assert_eq!((refused.status, &problem["code"]), (403, &"wrong_subject".into()), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("the backend of auth.forward named none") && detail.contains("\"subject\""),
        "{detail}"
    );
    backend.answer(|_| Reply::json(json!({"subject": "43"})));
    let detail =
        gateway.request("GET", "/topics/users/42/inbox", &[("cookie", "other")]).await.json()["detail"]
            .clone();
    assert!(detail.as_str().unwrap().contains("other subjects"), "{detail}");
}
