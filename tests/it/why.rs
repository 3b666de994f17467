//! Codes: every refusal and every end has one code, which is the same on the wire, in the metrics and in the log, and the
//! document lists all of them.
#![cfg(unix)]

use std::collections::BTreeSet;

use crate::common::client::{self, Reader};
use crate::common::eventually;
use crate::common::nats::NatsServer;
use crate::common::process::Process;
use serde_json::Value;
use strum::VariantArray as _;
use topicgate::internals::protocol::codes::{Code, RefusalCode};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

#[test]
fn the_document_lists_every_code_once_and_no_other() {
    let section = DOCUMENT.split_once("\n## 14. Every code\n").unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let listed: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let codes: BTreeSet<&str> = Code::all().map(Code::as_str).collect();
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), codes);
    assert_eq!(listed.len(), codes.len(), "one is listed twice");
    for code in RefusalCode::VARIANTS {
        let row = rows.iter().find(|row| row[0].trim_matches('`') == code.as_str()).unwrap();
        assert!(row[1].contains(code.status().as_str()), "{row:?} should say {}", code.status());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_messages_that_cannot_be_carried_is_a_line_in_the_log_and_a_gap_each() {
    let server = NatsServer::start();
    let url = server.url();
    let rules = "[{ match = \"**\", read = \"anyone\" }]";
    let environment = [
        ("TOPICGATE_BROKER__URL", &*url),
        ("TOPICGATE_TOPICS", rules),
        ("TOPICGATE_LIMITS__MESSAGE", "1KiB"),
    ];
    let process = Process::start(&environment).await;
    eventually("the broker is there", async || process.readyz().await.status == 200).await;
    let mut reader = Reader::open(process.address, "/topics/flood/**", &[]).await;
    reader.expect("stream-open").await;
    let client = async_nats::connect(&url).await.unwrap();
    for number in 0..30 {
        client.publish(format!("flood.{number}"), vec![b'x'; 2000].into()).await.unwrap();
    }
    client.publish("flood.end", "end".into()).await.unwrap();
    client.flush().await.unwrap();
    let mut gaps = 0;
    loop {
        let event = reader.next().await.unwrap();
        match event.event.as_str() {
            "stream-gap" => gaps += 1,
            _ => break assert_eq!(event.data, "end"),
        }
    }
    assert_eq!(gaps, 30);
    let message = "a message was dropped, because it is larger than limits.message";
    assert_eq!(lines(&process.log(), message).len(), 1);
}

fn lines(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

const ENDED: &str = "a stream has ended";
const REFUSED: &str = "a request was refused";

#[tokio::test]
async fn the_log_names_the_code_of_a_refused_or_ended_stream_and_its_caller() {
    let process = Process::start(&[]).await;
    let refused =
        client::request(process.address, "GET", "/topics/a//b?topic=c/d&access_token=s3cret", &[], b"").await;
    let code = refused.json()["code"].as_str().unwrap().to_owned();
    eventually("the refusal is in the log", async || !lines(&process.log(), REFUSED).is_empty()).await;
    let line = lines(&process.log(), REFUSED).remove(0);
    assert_eq!((line["code"].as_str().unwrap(), &line["level"]), (code.as_str(), &"INFO".into()));
    assert_eq!(
        (&line["path"], &line["topics"], &line["address"]),
        (&"/topics/a//b".into(), &"c/d".into(), &"127.0.0.1".into())
    );
    assert!(!process.log().contains("s3cret"));

    let mut reader = Reader::open(process.address, "/topics?topic=a&topic=b/*", &[]).await;
    reader.expect("stream-open").await;
    let listed = client::request(process.admin, "GET", "/streams", &[], b"").await.json();
    let id = listed["streams"][0]["id"].clone();
    client::request(process.admin, "DELETE", &format!("/streams?id={id}"), &[], b"").await;
    assert_eq!(reader.control("stream-close").await["code"], "closed");
    eventually("the end is in the log", async || !lines(&process.log(), ENDED).is_empty()).await;
    let line = lines(&process.log(), ENDED).remove(0);
    assert_eq!((&line["code"], &line["stream"], &line["level"]), (&"closed".into(), &id, &"INFO".into()));
    assert_eq!((&line["topics"], &line["address"]), (&"a b/*".into(), &"127.0.0.1".into()));
    for number in ["age_ms", "sent_bytes", "lag_messages", "lag_ms", "others"] {
        assert!(line[number].is_u64(), "{number} in {line}");
    }
    assert!(line["sent_bytes"].as_u64().unwrap() > 50, "{line}");
}

#[tokio::test]
async fn the_end_of_many_streams_is_logged_in_one_line_and_at_debug_in_one_line_each() {
    const STREAMS: usize = 200;
    for (level, expected) in [("info", 1), ("debug", STREAMS)] {
        let process = Process::with(&["--log-level", level], &[("TOPICGATE_DRAIN", "1s")]).await;
        let mut readers = Vec::new();
        for _ in 0..STREAMS {
            let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
            reader.expect("stream-open").await;
            readers.push(reader);
        }
        process.signal("TERM");
        let ended = process.ended().await;
        let lines = lines(&ended.log, ENDED);
        assert_eq!(lines.len(), expected, "at {level}");
        assert!(lines.iter().all(|line| line["code"] == "draining"));
        assert_eq!(lines.iter().filter(|line| line["level"] == "INFO").count(), 1);
    }
}

#[tokio::test]
async fn a_refusal_names_the_topic_or_the_origin_that_it_is_about() {
    let process = Process::start(&[(
        "TOPICGATE_TOPICS",
        "[{ match = \"orders/**\", read = \"anyone\" }, { match = \"hidden/**\" }]",
    )])
    .await;
    let page = [("origin", "https://app.example.com")];
    for (method, path, headers, told) in [
        ("GET", "/topics?topic=orders/eu&topic=stock/*", &[][..], "read stock/*"),
        ("GET", "/topics?topic=orders/eu&topic=hidden/x&topic=orders/us", &[], "read hidden/x"),
        ("GET", "/topics/ordres/eu", &[], "a [[topics]] rule must"),
        ("POST", "/topics/orders/eu", &[], "publish is \"nobody\" by default"),
        ("GET", "/topics/orders/eu", &page, "key cors.origins"),
        ("GET", "/orders/eu", &[], "a topic is at /topics/<path>"),
    ] {
        let answer = client::request(process.address, method, path, headers, b"x").await.json();
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(told), "{method} {path}: {detail}");
        let repeats = ["ordres", "app.example.com"].iter().any(|sent| detail.contains(sent));
        assert!(!repeats, "what one topic or a page sent is not repeated: {detail}");
        if path == "/topics/ordres/eu" || !path.starts_with("/topics?") && answer["code"] == "not_found" {
            continue; // the log has one line of a code in ten seconds
        }
        let is_told =
            async || lines(&process.log(), REFUSED).iter().any(|line| line["code"] == answer["code"]);
        eventually("it is in the log", is_told).await;
    }
    let log = lines(&process.log(), REFUSED);
    let of = |code: &str| {
        log.iter().find(|line| line["code"] == code).unwrap()["detail"].as_str().unwrap().to_owned()
    };
    assert!(of("not_found").contains("stock/*"), "{log:?}");
    assert!(of("bad_origin").contains("https://app.example.com"), "{log:?}");
    let hidden = client::request(process.address, "GET", "/topics/hidden/x", &[], b"").await.text();
    let absent = client::request(process.address, "GET", "/topics/absent/x", &[], b"").await.text();
    assert_eq!(hidden, absent, "what exists is nobody's business");
}

#[tokio::test]
async fn the_suggestion_in_a_refusal_works() {
    let process = Process::start(&[]).await;
    for (asked, meant) in [("orders.%3E", "orders/**"), ("orders.*", "orders/*"), ("orders:*", "orders/*")] {
        let answer = client::request(process.address, "GET", &format!("/topics/{asked}"), &[], b"").await;
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && detail.ends_with(&format!("write {meant}")), "{asked}: {detail}");
        let mut reader = Reader::open(process.address, &format!("/topics/{meant}"), &[]).await;
        reader.expect("stream-open").await;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    for (asked, meant) in
        [("10", "10s"), ("600", "10m"), ("0", "all"), (&now.to_string(), &(now / 1000).to_string())]
    {
        let answer =
            client::request(process.address, "GET", &format!("/topics/a?since={asked}"), &[], b"").await;
        let problem = answer.json();
        assert_eq!((answer.status, &problem["code"]), (400, &"bad_query".into()), "{asked}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(asked == "600" || detail.contains(meant), "{asked}: {detail}");
        let mut reader = Reader::open(process.address, &format!("/topics/a?since={meant}"), &[]).await;
        reader.expect("stream-open").await;
    }
}
