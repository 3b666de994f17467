//! The life of a stream: its first event, its messages, where it starts and resumes.

use std::time::Duration;

use crate::common::gateway::Gateway;
use serde_json::json;

#[tokio::test]
async fn a_message_published_after_the_head_has_arrived_is_delivered() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/demo/hello").await;
    gateway.publish("demo/hello", "hi").await;
    let open = reader.expect("stream-open").await;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&open.data).unwrap(),
        json!({"topics":["demo/hello"],"resumed":false})
    );
    assert!(open.retry.unwrap() >= Duration::from_millis(500));
    assert_eq!(reader.message().await, "hi");
}

#[tokio::test]
async fn a_message_from_before_the_first_reader_is_not_delivered_and_an_empty_message_is() {
    let gateway = Gateway::start().await;
    gateway.publish("a", "too early").await;
    let mut reader = gateway.open("/topics/a").await;
    gateway.publish("a", "").await;
    reader.expect("stream-open").await;
    assert_eq!(reader.message().await, "");
}

#[tokio::test]
async fn a_reader_that_reconnects_gets_the_messages_that_it_missed_and_none_twice() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    gateway.publish("a", "1").await;
    gateway.publish("a", "2").await;
    assert_eq!(reader.messages(2).await, ["1", "2"]);
    let id = reader.last_id.clone();
    drop(reader);
    gateway.publish("a", "3").await;
    for header in [true, false] {
        let mut reader = match header {
            true => gateway.resume("/topics/a", &id).await,
            false => gateway.open(&format!("/topics/a?lastEventId={id}")).await,
        };
        assert_eq!(reader.control("stream-open").await["resumed"], true);
        assert_eq!(reader.message().await, "3");
    }
}

#[tokio::test]
async fn the_cursor_of_stream_open_is_enough_to_lose_nothing() {
    let gateway = Gateway::start().await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let id = reader.last_id.clone();
    drop(reader);
    gateway.publish("a", "1").await;
    assert_eq!(
        {
            let mut reader = gateway.resume("/topics/a", &id).await;
            reader.expect("stream-open").await;
            reader.message().await
        },
        "1"
    );
}
