//! The first look: without a configuration the page at `/` shows five live uses, fed by a back end that publishes only
//! while there are readers.

use std::time::Duration;

use crate::common::client::{self, Reader};
use crate::common::eventually;
use crate::common::process::Process;
use tokio::process::Command;

const USES: [&str; 5] =
    ["demo/dashboard", "demo/notifications", "demo/news", "demo/document", "demo/sensors/*"];

/// Longer than the back end waits between two messages of a topic.
const QUIET: Duration = Duration::from_secs(5);

async fn published(process: &Process) -> f64 {
    process.metric("topicgate_publish_seconds_count").await
}

async fn page(process: &Process) -> String {
    client::request(process.address, "GET", "/", &[], b"").await.text()
}

#[tokio::test]
async fn the_five_uses_are_fed_while_somebody_reads_them_and_only_then() {
    let process = Process::start(&[]).await;
    assert!(page(&process).await.contains("id=\"look\""), "the page has no first look");
    let mut other = Reader::open(process.address, "/topics/demo/hello", &[]).await;
    other.expect("stream-open").await;
    tokio::time::sleep(QUIET).await; // what is measured is that nothing happens
    assert_eq!(published(&process).await, 0.0, "nobody reads them");

    for topic in USES {
        let mut reader = Reader::open(process.address, &format!("/topics/{topic}"), &[]).await;
        reader.expect("stream-open").await;
        for _ in 0..3 {
            let event = reader.next().await.unwrap();
            assert!(!event.event.starts_with("stream-"), "{topic}: {event:?}");
            serde_json::from_str::<serde_json::Value>(&event.data).unwrap();
        }
    }
    assert!(published(&process).await >= 15.0);
    eventually("the readers have left", async || {
        process.metric("topicgate_streams{http=\"1.1\"}").await == 1.0
    })
    .await;
    eventually("nothing is published any more", async || {
        let before = published(&process).await;
        tokio::time::sleep(QUIET).await; // what is measured is that nothing happens
        published(&process).await == before
    })
    .await;
    process.kill().await;
}

#[tokio::test]
async fn with_a_configuration_there_is_no_first_look_and_nothing_feeds_its_topics() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join("first_look.toml");
    std::fs::write(&file, "[streams]\nheartbeat = \"20s\"\n").unwrap();
    let everything = "[{ match = \"**\", read = \"anyone\", publish = \"anyone\" }]";
    let with_rules = vec![("TOPICGATE_TOPICS", everything)];
    let with_broker = vec![("TOPICGATE_BROKER__URL", "memory:")];
    for (flags, environment) in
        [(vec!["--config", file.to_str().unwrap()], vec![]), (vec![], with_rules), (vec![], with_broker)]
    {
        let process = Process::with(&flags, &environment).await;
        let text = page(&process).await;
        assert!(
            text.contains("id=\"publish\"") && !text.contains("firstLook = "),
            "{flags:?}{environment:?}"
        );
        let topics: Vec<_> = USES.iter().map(|topic| format!("topic={topic}")).collect();
        let path = format!("/topics?{}", topics.join("&"));
        let mut reader = Reader::open(process.address, &path, &[]).await;
        reader.expect("stream-open").await;
        tokio::time::sleep(QUIET).await; // what is measured is that nothing happens
        assert_eq!(published(&process).await, 0.0, "{flags:?}{environment:?}");
        process.kill().await;
    }
}

#[tokio::test]
async fn all_five_uses_are_alive_in_a_browser_and_two_tabs_share_one_connection() {
    let process = Process::start(&[]).await;
    let (url, admin) = (format!("http://{}/", process.address), format!("http://{}/", process.admin));
    look(&[&url, &admin]).await;
    process.kill().await;
}

#[tokio::test]
async fn a_dashboard_is_alive_within_five_seconds_of_the_start_of_the_binary() {
    look(&[env!("CARGO_BIN_EXE_topicgate"), "soon"]).await;
}

/// Runs tests/clients/look.mjs.
async fn look(arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/look.mjs");
    let output = Command::new("node").arg(script).args(arguments).output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{errors}", String::from_utf8_lossy(&output.stdout));
}
