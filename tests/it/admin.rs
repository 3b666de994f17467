//! The admin listener: the data that operators see, ending streams, and the requests that are refused.

use crate::common::client::{self, Reader};
use crate::common::gateway::Gateway;
use crate::common::token::{JWT, SECRET, token};
use crate::common::wire::Wire;
use crate::common::{LIMIT, eventually, within};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

async fn get(gateway: &Gateway, path: &str) -> Value {
    let answer = gateway.ask_admin("GET", path, &[]).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.json()
}

fn texts(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_streams_of_the_console_are_limited_across_its_connections() {
    let gateway = Gateway::start().await;
    gateway.open("/topics/a").await.expect("stream-open").await; // it lingers
    for path in ["/console/events", "/console/messages?topic=a"] {
        let mut held = vec![];
        let mut statuses = vec![];
        for _ in 0..5 {
            let socket = TokioIo::new(TcpStream::connect(gateway.admin).await.unwrap());
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
            tokio::spawn(connection);
            for _ in 0..13 {
                let request = Request::get(format!("http://{}{path}", gateway.admin));
                let request = request.body(Empty::<Bytes>::new()).unwrap();
                let response = within("an answer", LIMIT, sender.send_request(request)).await.unwrap();
                statuses.push(response.status().as_u16());
                held.push((sender.clone(), response));
            }
        }
        let (last, others) = statuses.split_last().unwrap();
        assert!(others.iter().all(|status| *status == 200), "{path}: {statuses:?}");
        assert_eq!(*last, 503, "{path}");
        drop(held);
    }
    assert_eq!(gateway.metric("topicgate_limit_met_total{limit=\"console_streams\"}").await, 2.0);
    assert_eq!(gateway.ask_admin("GET", "/livez", &[]).await.status, 200);
}

#[tokio::test]
async fn topics_are_listed_with_their_message_counts_in_pages_by_name_and_by_prefix() {
    let gateway = Gateway::start().await;
    let mut readers = Vec::new();
    for topic in ["b", "a/2", "a/1", "a/3", "a/1"] {
        let mut reader = gateway.open(&format!("/topics/{topic}")).await;
        reader.expect("stream-open").await;
        readers.push(reader);
    }
    for _ in 0..3 {
        gateway.publish("a/1", "x").await;
    }
    readers[2].messages(3).await;
    let all = get(&gateway, "/topics").await;
    assert_eq!(texts(&all["topics"], "topic"), ["a/1", "a/2", "a/3", "b"]);
    assert_eq!(all["next"], Value::Null);
    let first = &all["topics"][0];
    assert_eq!(
        (&first["readers"], &first["messages"], &first["upstream"]),
        (&json!(2), &json!(3), &json!("subscribed"))
    );
    assert!(first["rate"].as_f64().unwrap() > 0.0 && first["bytes"].as_u64().unwrap() > 3, "{first}");
    assert_eq!((&all["topics"][1]["rate"], &all["topics"][1]["oldest_ms"]), (&json!(0.0), &Value::Null));

    let page = get(&gateway, "/topics?prefix=a/&limit=2").await;
    assert_eq!(
        (texts(&page["topics"], "topic"), &page["next"]),
        (vec!["a/1".into(), "a/2".into()], &json!("a/2"))
    );
    let page = get(&gateway, "/topics?prefix=a/&limit=2&after=a/2").await;
    assert_eq!((texts(&page["topics"], "topic"), &page["next"]), (vec!["a/3".to_owned()], &Value::Null));
    for bad in ["limit=0", "limit=1001", "limit=x", "prefx=a", "limit=1&limit=2"] {
        let answer = gateway.ask_admin("GET", &format!("/topics?{bad}"), &[]).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("bad_query")), "{bad}");
    }
}

/// Rules with tokens, so that streams have subjects.
fn with_tokens() -> String {
    format!("[[topics]]\nmatch = \"**\"\nread = \"token\"\npublish = \"anyone\"\n{JWT}")
}

async fn open_as(gateway: &Gateway, subject: &str, path: &str) -> Reader {
    let token = format!("Bearer {}", token(json!({ "sub": subject })));
    let mut reader = Reader::open(gateway.address, path, &[("authorization", &token)]).await;
    reader.expect("stream-open").await;
    reader
}

#[tokio::test]
async fn streams_are_listed_and_ended_by_topic_address_subject_and_id_and_the_others_stay() {
    let gateway = Gateway::with(&with_tokens()).await;
    let mut ann = open_as(&gateway, "ann", "/topics/orders/eu").await;
    let mut bob = open_as(&gateway, "bob", "/topics/orders/*").await;
    let mut cat = open_as(&gateway, "cat", "/topics?topic=stock&topic=chat/1").await;
    gateway.publish("orders/eu", "x").await;
    ann.message().await;
    bob.message().await;

    let all = get(&gateway, "/streams").await;
    assert_eq!(texts(&all["streams"], "subject"), ["ann", "bob", "cat"]);
    let first = &all["streams"][0];
    assert_eq!(
        (&first["address"], &first["topics"], &first["http"]),
        (&json!("127.0.0.1"), &json!(["orders/eu"]), &json!("1.1"))
    );
    assert_eq!((&first["lag_messages"], &first["closing"]), (&json!(0), &Value::Null));
    let view = (&first["types"], &first["without_types"], &first["every_ms"]);
    assert_eq!(view, (&json!([]), &json!(false), &Value::Null));
    assert!(first["sent_bytes"].as_u64().unwrap() > 50, "{first}");
    assert_eq!(all["streams"][2]["topic_count"], 2);
    let subjects =
        async |query: &str| texts(&get(&gateway, &format!("/streams?{query}")).await["streams"], "subject");
    for (query, expected) in [
        ("topic=orders/eu", vec!["ann", "bob"]),
        ("topic=orders/us", vec!["bob"]),
        ("topic=chat/*", vec!["cat"]),
        ("topic=nothing", vec![]),
        ("subject=bob", vec!["bob"]),
        ("address=127.0.0.0/8&topic=orders/**", vec!["ann", "bob"]),
        ("address=10.0.0.1", vec![]),
        ("limit=1", vec!["ann"]),
    ] {
        assert_eq!(subjects(query).await, expected, "{query}");
    }
    let next = get(&gateway, "/streams?limit=2").await["next"].as_u64().unwrap();
    assert_eq!(subjects(&format!("limit=2&after={next}")).await, ["cat"]);

    for nothing in
        ["", "?", "?topic=", "?adress=10.0.0.1", "?subject=ann&limit=1", "?address=nowhere", "?topic=a//b"]
    {
        let answer = gateway.ask_admin("DELETE", &format!("/streams{nothing}"), &[]).await;
        assert_eq!(answer.status, 400, "{nothing}: {}", answer.text());
    }
    assert_eq!(subjects("").await.len(), 3, "nothing was ended by that");

    let answer = gateway.ask_admin("DELETE", "/streams?topic=orders/eu&subject=bob", &[]).await;
    assert_eq!(answer.json(), json!({"closed": 1, "more": false}));
    assert_eq!(bob.control("stream-close").await, json!({"code": "closed", "reconnect": true}));
    assert!(bob.next().await.is_none());
    let id = all["streams"][2]["id"].as_u64().unwrap();
    assert_eq!(gateway.ask_admin("DELETE", &format!("/streams?id={id}"), &[]).await.json()["closed"], 1);
    cat.expect("stream-close").await;
    gateway.publish("orders/eu", "y").await;
    assert_eq!(ann.message().await, "y");
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"closed\"}").await, 2.0);
}

#[tokio::test]
async fn a_reader_that_reads_nothing_is_shown_to_fall_behind() {
    let gateway = Gateway::start().await;
    let _stuck = Wire::narrow(gateway.address, "/topics/a").await;
    let text = "x".repeat(100 * 1024);
    let lag = async || get(&gateway, "/streams").await["streams"][0]["lag_messages"].as_u64();
    eventually("it is behind", async || {
        gateway.publish("a", &text).await;
        lag().await > Some(2)
    })
    .await;
}

#[tokio::test]
async fn the_console_shows_any_topic_that_is_held_and_subscribes_to_nothing_for_it() {
    let gateway = Gateway::with(&with_tokens()).await;
    let path = "/console/messages?topic=orders/eu";
    assert_eq!(gateway.ask_admin("GET", path, &[]).await.status, 404, "it is not held");
    let mut ann = open_as(&gateway, "ann", "/topics/orders/eu").await;
    gateway.publish("orders/eu", "before").await;
    ann.message().await;
    let mut console = Reader::open(gateway.admin, path, &[]).await;
    console.expect("stream-open").await;
    let before: Value = serde_json::from_str(&console.message().await).unwrap();
    assert_eq!((&before["subject"], &before["data"]), (&json!("orders/eu"), &json!("before")));
    gateway.publish("orders/eu", "after").await;
    assert!(console.message().await.contains("\"data\":\"after\""));
    eventually("one topic is held", async || gateway.metric("topicgate_topics").await == 1.0).await;
    assert_eq!(
        get(&gateway, "/streams").await["streams"].as_array().unwrap().len(),
        2,
        "it is a stream as others"
    );
}

#[tokio::test]
async fn settings_are_listed_with_their_origin_and_without_secrets() {
    let gateway = Gateway::with(&with_tokens()).await;
    let settings = get(&gateway, "/config").await;
    let of = |key: &str| {
        settings.as_array().unwrap().iter().find(|setting| setting["key"] == key).unwrap().clone()
    };
    assert_eq!(of("limits.streams"), json!({"key": "limits.streams", "value": "10000", "origin": "default"}));
    assert_eq!(of("auth.jwt.secret")["origin"], "topicgate.toml");
    assert!(!settings.to_string().contains(SECRET), "{settings}");
}

/// Everything there is for people.
const PATHS: [(&str, &str); 9] = [
    ("GET", "/"),
    ("GET", "/console.js"),
    ("GET", "/console/events"),
    ("GET", "/console/messages?topic=a"),
    ("GET", "/topics"),
    ("GET", "/streams"),
    ("DELETE", "/streams?topic=**"),
    ("GET", "/config"),
    ("GET", "/state"),
];

#[tokio::test]
async fn pages_of_other_origins_can_neither_read_nor_end_anything() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    for (method, path) in PATHS {
        let named = [("host", "attacker.example:9090")];
        assert_eq!(gateway.ask_admin(method, path, &named).await.status, 421, "{method} {path}");
        let foreign = [("origin", "https://attacker.example"), ("sec-fetch-site", "cross-site")];
        let answer = gateway.ask_admin(method, path, &foreign).await;
        assert_eq!(answer.status, 403, "{method} {path}");
        assert_eq!(answer.header("access-control-allow-origin"), "");
        let embedded = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
        assert_eq!(gateway.ask_admin(method, path, &embedded).await.status, 403, "{method} {path}");
        for frame in ["iframe", "frame", "object", "embed"] {
            let framed =
                [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", frame)];
            let answer = gateway.ask_admin(method, path, &framed).await;
            assert_eq!(answer.status, 403, "{method} {path} {frame}");
            assert_eq!(
                answer.header("connection"),
                "close",
                "{method} {path}: it must not hold a connection"
            );
        }
        let preflight = [("origin", "https://attacker.example"), ("access-control-request-method", method)];
        let answer = gateway.ask_admin("OPTIONS", path, &preflight).await;
        assert_eq!(
            (answer.status, answer.header("access-control-allow-methods")),
            (403, ""),
            "{method} {path}"
        );
        // A request that a form can send without a preflight.
        let form = gateway.ask_admin("POST", path, &[("content-type", "text/plain")]).await;
        assert_eq!(form.status, 405, "{path}");
        // None of it is on the public listener.
        let public = client::request(gateway.address, method, path, &[], b"").await;
        assert!(path == "/" || public.status >= 400, "{method} {path}: {}", public.status);
    }
    gateway.publish("a", "still here").await;
    assert_eq!(reader.message().await, "still here");
}

#[tokio::test]
async fn a_refusal_names_the_setting_of_the_admin_listener() {
    let gateway = Gateway::start().await;
    for path in ["/metrics", "/streams"] {
        let answer = gateway.ask_admin("GET", path, &[("host", "attacker.example")]).await;
        assert!(answer.text().contains("admin.hosts"), "{path}: {}", answer.text());
        for fields in [
            &[("origin", "https://attacker.example")][..],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
        ] {
            let answer = gateway.ask_admin("GET", path, fields).await;
            assert_eq!(answer.status, 403, "{path}");
            assert!(answer.text().contains("admin listener"), "{path}: {}", answer.text());
            assert!(!answer.text().contains("cors.origins"), "{path}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn on_a_public_address_the_console_is_served_only_if_it_is_configured() {
    let gateway = Gateway::with_admin("0.0.0.0", "").await;
    for (method, path) in PATHS {
        assert_eq!(gateway.ask_admin(method, path, &[]).await.status, 404, "{method} {path}");
    }
    for (path, host, status) in [
        ("/livez", "gateway.example", 200),
        ("/readyz", "gateway.example", 200),
        ("/metrics", "10.0.0.5:9090", 200),
        ("/metrics", "topicgate:9090", 200),
        ("/metrics", "attacker.example:9090", 421),
        ("/metrics", "attacker.example:80#.localhost", 421),
    ] {
        assert_eq!(gateway.ask_admin("GET", path, &[("host", host)]).await.status, status, "{path} {host}");
    }
    let listed = Gateway::with_admin("0.0.0.0", "hosts = [\"metrics.example\"]").await;
    assert_eq!(listed.ask_admin("GET", "/metrics", &[("host", "metrics.example:9090")]).await.status, 200);
    assert_eq!(listed.ask_admin("GET", "/metrics", &[("host", "attacker.example")]).await.status, 421);
    let gateway = Gateway::with_admin("0.0.0.0", "console = true").await;
    for (host, status) in
        [("10.0.0.5:9090", 200), ("localhost", 200), ("[::1]", 200), ("attacker.example", 421)]
    {
        assert_eq!(gateway.ask_admin("GET", "/state", &[("host", host)]).await.status, status, "{host}");
    }
    assert_eq!(
        Gateway::with_admin("127.0.0.1", "console = false").await.ask_admin("GET", "/", &[]).await.status,
        404
    );
}
