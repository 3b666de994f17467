//! Replay: how much is held, for how long, where a stream can start, and the gaps if messages are missing.

use std::time::{Duration, SystemTime};

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use serde_json::json;

/// Everything for everyone, held so.
async fn gateway(replay: &str) -> Gateway {
    gateway_with("", replay).await
}

async fn gateway_with(toml: &str, replay: &str) -> Gateway {
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n";
    Gateway::with(&format!("{toml}\n{rule}replay = {{ {replay} }}\n")).await
}

/// Publishes these and returns their ids, and a reader that has read them.
async fn publish(gateway: &Gateway, topic: &str, payloads: &[&str]) -> (Vec<String>, Reader) {
    let mut reader = gateway.open(&format!("/topics/{topic}")).await;
    reader.expect("stream-open").await;
    let mut ids = Vec::new();
    for payload in payloads {
        gateway.publish(topic, payload).await;
        assert_eq!(reader.message().await, *payload);
        ids.push(reader.last_id.clone());
    }
    (ids, reader)
}

/// What a new stream on `path` gets up to a message `end` to `topic`, which is published just before: of messages their
/// data, of gaps their reason.
async fn story(gateway: &Gateway, topic: &str, path: &str, cursor: Option<&str>) -> Vec<String> {
    gateway.publish(topic, "end").await;
    let mut reader = match cursor {
        Some(id) => gateway.resume(path, id).await,
        None => gateway.open(path).await,
    };
    reader.expect("stream-open").await;
    let mut story = Vec::new();
    loop {
        let event = reader.next().await.unwrap();
        match event.event.as_str() {
            "message" if event.data == "end" => return story,
            "message" => story.push(event.data),
            _ => {
                let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                story.push(format!("{} {}", event.event, data["reason"].as_str().unwrap()));
            }
        }
    }
}

#[tokio::test]
async fn the_edges_of_the_evicted_messages_are_exact() {
    let fresh = async || {
        let gateway = gateway("messages = 3").await;
        let (ids, reader) = publish(&gateway, "a", &["1", "2", "3", "4", "5"]).await;
        (gateway, ids, reader)
    };
    let resumed = async |which: usize| {
        let (gateway, ids, _reader) = fresh().await;
        let mut reader = gateway.resume("/topics/a", &ids[which]).await;
        let resumed = reader.control("stream-open").await["resumed"] == true;
        let mut story = Vec::new();
        while story.last().is_none_or(|last| last != "5") && which < 4 {
            let event = reader.next().await.unwrap();
            story.push(if event.event == "message" { event.data } else { event.event });
        }
        gateway.publish("a", "6").await;
        assert_eq!(reader.message().await, "6");
        (resumed, story.join(" "))
    };
    assert_eq!(resumed(0).await, (false, "stream-gap 3 4 5".into()), "before the last evicted");
    assert_eq!(resumed(1).await, (true, "3 4 5".into()), "the last evicted");
    assert_eq!(resumed(2).await, (true, "4 5".into()), "the oldest held");
    assert_eq!(resumed(3).await, (true, "5".into()), "one before the head");
    assert_eq!(resumed(4).await, (true, String::new()), "the head");

    let (gateway, ids, _reader) = fresh().await;
    let (epoch, head) = ids[4].split_once('-').unwrap();
    let beyond = format!("{epoch}-{}", head.parse::<u64>().unwrap() + 1);
    let mut reader = gateway.resume("/topics/a", &beyond).await;
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    assert_eq!(reader.control("stream-gap").await, json!({"topic":"a","reason":"unknown_id"}));
    assert_eq!(reader.messages(3).await, ["3", "4", "5"]);
    let mut reader = gateway.resume("/topics/a", &format!("zzzzzzzz-{head}")).await;
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    assert_eq!(reader.control("stream-gap").await, json!({"topic":"a","reason":"restarted"}));
    assert_eq!(reader.messages(3).await, ["3", "4", "5"]);

    // The gap's own id is a cursor too, and an exact one.
    let (gateway, ids, _reader) = fresh().await;
    let mut reader = gateway.resume("/topics/a", &ids[0]).await;
    reader.expect("stream-open").await;
    reader.expect("stream-gap").await;
    let id = reader.last_id.clone();
    assert_eq!(id, ids[1], "it stands for the last that is missing");
}

#[tokio::test]
async fn a_buffer_is_bounded_by_messages_bytes_and_age() {
    let held = async |gateway: &Gateway| story(gateway, "a", "/topics/a?since=all", None).await.len();
    let by_messages = gateway("messages = 10").await;
    let text = "x".repeat(1000);
    publish(&by_messages, "a", &[text.as_str(); 30]).await;
    assert_eq!(held(&by_messages).await, 9, "with the one that ends the story");

    let by_bytes = gateway_with("[limits]\nmessage = \"8KiB\"", "bytes = \"16KiB\"").await;
    publish(&by_bytes, "a", &[text.as_str(); 30]).await;
    assert!((10..16).contains(&held(&by_bytes).await));

    let by_age = gateway("age = \"1s\"").await;
    let (ids, _reader) = publish(&by_age, "a", &[text.as_str(); 30]).await;
    // The gauge is taken once a second.
    eventually("they are held", async || by_age.metric("topicgate_buffer_bytes").await > 0.0).await;
    eventually("they are too old", async || by_age.metric("topicgate_buffer_bytes").await == 0.0).await;
    assert_eq!(story(&by_age, "a", "/topics/a?since=all", None).await, [""; 0]);
    assert_eq!(story(&by_age, "a", "/topics/a", Some(&ids[3])).await, ["stream-gap evicted"]);
    assert_eq!(
        story(&by_age, "a", "/topics/a", Some(&ids[29])).await,
        [""; 0],
        "nothing is missing after the last of them"
    );
}

#[tokio::test]
async fn the_largest_message_is_delivered_even_if_it_takes_more_memory_than_the_buffer() {
    let gateway = gateway_with("[limits]\nmessage = \"64KiB\"", "bytes = \"64KiB\"").await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    // In memory each of these is more than its payload; of line ends alone, eight times as much.
    for payload in ["x".repeat(64 * 1024), "\n".repeat(64 * 1024)] {
        gateway.publish("a", &payload).await;
        assert!(reader.message().await == payload);
    }
}

#[tokio::test]
async fn a_reader_that_returns_within_the_linger_time_resumes_and_later_gets_a_gap() {
    let gateway = gateway("linger = \"1s\"").await;
    let (ids, reader) = publish(&gateway, "a", &["1"]).await;
    drop(reader);
    gateway.publish("a", "2").await;
    let mut reader = gateway.resume("/topics/a", &ids[0]).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
    assert_eq!(reader.message().await, "2");
    let id = reader.last_id.clone();
    // The gauge is taken once a second.
    eventually("it is held", async || gateway.metric("topicgate_topics").await == 1.0).await;
    drop(reader);
    eventually("it is given up", async || gateway.metric("topicgate_topics").await == 0.0).await;
    gateway.publish("a", "nobody is here").await;
    let mut reader = gateway.resume("/topics/a", &id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], false);
    assert_eq!(reader.control("stream-gap").await, json!({"topic":"a","reason":"evicted"}));
    gateway.publish("a", "3").await;
    assert_eq!(reader.message().await, "3");
}

#[tokio::test]
async fn a_warm_rule_holds_the_messages_from_before_the_first_reader() {
    let gateway = gateway("warm = true").await;
    eventually("ready", async || gateway.ready().await.is_ok()).await;
    // The embedded broker takes what nobody has subscribed to, so it is asked until the rule's own subscription is there.
    let mut first = gateway.open("/topics/probe").await;
    first.expect("stream-open").await;
    for n in 1..=5 {
        gateway.publish("orders/1", n.to_string()).await;
        gateway.publish("orders/2", format!("other {n}")).await;
    }
    assert_eq!(
        story(&gateway, "orders/1", "/topics/orders/1?since=all", None).await,
        ["1", "2", "3", "4", "5"]
    );
    assert_eq!(story(&gateway, "orders/2", "/topics/orders/2?last=3", None).await, ["other 4", "other 5"]);
    let mut pattern = gateway.open("/topics/orders/*?last=3").await;
    pattern.expect("stream-open").await;
    assert_eq!(pattern.messages(3).await, ["other 5", "end", "end"]);
}

#[tokio::test]
async fn since_is_a_time_for_all_topics_of_a_stream_and_last_counts_for_each() {
    let gateway = gateway("").await;
    let mut reader = gateway.open("/topics?topic=a&topic=b").await;
    reader.expect("stream-open").await;
    for n in 0..6 {
        gateway.publish(["a", "b"][n % 2], n.to_string()).await;
        reader.message().await;
    }
    let both =
        async |query: &str| story(&gateway, "a", &format!("/topics?topic=a&topic=b&{query}"), None).await;
    let mut nothing = gateway.open("/topics?topic=a&topic=b&last=0").await;
    nothing.expect("stream-open").await;
    assert_eq!(both("since=all").await, ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(nothing.message().await, "end");
    // Of one topic with the end of the story.
    let mut reader = gateway.open("/topics?topic=a&topic=b&last=2").await;
    reader.expect("stream-open").await;
    assert_eq!(reader.messages(4).await, ["3", "4", "5", "end"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    for future in [format!("since={}", now + 3600), "since=2099-01-01T00:00:00Z".into()] {
        let mut reader = gateway.open(&format!("/topics/b?{future}")).await;
        reader.expect("stream-open").await;
        reader.quiet(Duration::from_millis(50)).await;
    }
    // What was before the topic was first asked for is not held, which a time asks for.
    for past in ["since=10m", "since=2020-01-01T00:00:00Z", "since=1700000000"] {
        let mut reader = gateway.open(&format!("/topics/b?{past}")).await;
        reader.expect("stream-open").await;
        assert_eq!(reader.control("stream-gap").await, json!({"topic":"b","reason":"evicted"}));
        assert_eq!(reader.messages(3).await, ["1", "3", "5"]);
    }
}
