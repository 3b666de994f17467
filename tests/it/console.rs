//! The console in Chromium: its views, its keyboard, and that published text never runs there.

use std::time::Duration;

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use tokio::process::Command;

const TOPIC: &str = "orders/eu";

/// As hostile as the grammar of topics allows.
const HOSTILE: &str = "<b/onmouseover=boom()/x='";

const PAYLOAD: &str = "</td><script>boom()</script><img src=x onerror=boom()>";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_shows_topics_and_streams_ends_streams_and_runs_no_published_script() {
    let gateway = Gateway::start().await;
    let hostile = HOSTILE.replace('<', "%3C").replace('\'', "%27");
    let mut reader = gateway.open(&format!("/topics/{TOPIC}")).await;
    let _other = gateway.open(&format!("/topics/{hostile}")).await;
    let posted = gateway.post(&format!("/topics/{hostile}?type=%3Cimg%3E"), PAYLOAD).await;
    assert_eq!(posted.status, 202, "{}", posted.text());
    let address = gateway.address;
    let publisher = tokio::spawn(async move {
        for number in 0.. {
            let path = format!("/topics/{TOPIC}?type=price");
            let body = format!("live {number}");
            crate::common::client::request(address, "POST", &path, &[], body.as_bytes()).await;
            tokio::time::sleep(Duration::from_millis(100)).await; // as often as a page is to show something new
        }
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/console.mjs");
    let url = format!("http://{}/", gateway.admin);
    let output = Command::new("node").args([script, &url, TOPIC, HOSTILE]).output().await.unwrap();
    publisher.abort();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let last = ended(&mut reader).await;
    assert_eq!((&last["code"], &last["reconnect"]), (&"closed".into(), &true.into()));
    assert!(gateway.metric("topicgate_streams_closed_total{code=\"closed\"}").await >= 1.0);
}

/// The data of the stream's `stream-close`.
async fn ended(reader: &mut Reader) -> serde_json::Value {
    loop {
        let event = reader.next().await.unwrap();
        if event.event == "stream-close" {
            return serde_json::from_str(&event.data).unwrap();
        }
    }
}

#[tokio::test]
async fn the_events_of_the_console_end_with_the_process_and_not_after_it() {
    let mut gateway = Gateway::start().await;
    let mut events = Reader::open(gateway.admin, "/console/events", &[]).await;
    events.expect("history").await;
    let state = events.control("state").await;
    assert_eq!(state["broker"]["away"], serde_json::Value::Null);
    assert_eq!(state["streams"]["limit"], 10_000);
    gateway.begin_to_stop();
    while events.next().await.is_some() {}
    gateway.ended().await;
}
