//! Messages that a stored source has removed out of the middle: no gap for readers that ask for what is there, and a gap for
//! readers that resume.

use crate::common::client::Reader;
use crate::common::gateway::{Gateway, read};
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use serde_json::json;

/// With little memory, so that most is read from the stream.
fn rule(url: &str, source: &str) -> String {
    format!(
        "broker.url = \"{url}\"\n[[topics]]\nmatch = \"s/**\"\n{source}\nread = \"anyone\"\n\
         replay = {{ messages = 3 }}\n"
    )
}

fn jetstream(server: &NatsServer) -> String {
    rule(&server.url(), "source = \"jetstream\"\nstream = \"ALL\"")
}

/// What a stream receives until `last`: the messages, and `gap` for each gap.
async fn received(reader: &mut Reader, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    reader.expect("stream-open").await;
    while all.last().is_none_or(|data| data != last) {
        let event = reader.next().await.unwrap();
        all.push(if event.event == "stream-gap" { "gap".into() } else { event.data });
    }
    all
}

/// The data of the messages of a read, which has no gap.
async fn read_whole(gateway: &Gateway, path: &str) -> Vec<String> {
    let answer = read(gateway, path).await;
    assert_eq!(answer["gaps"], json!([]), "{path}: {answer}");
    let messages = answer["messages"].as_array().unwrap();
    messages.iter().map(|message| message["data"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_message_of_each_subject_is_read_without_a_gap() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ALL", &["s.>"], json!({"max_msgs_per_subject": 1})).await;
    admin.put("s.keep", "kept").await;
    for number in 0..10 {
        admin.put("s.b", format!("b{number}")).await;
        admin.put("s.c", format!("c{number}")).await;
    }
    admin.put("s.a", "a").await;
    let gateway = Gateway::with(&jetstream(&server)).await;
    let all = ["kept", "b9", "c9", "a"];
    for start in ["since=all", "last=20", "last=1000"] {
        assert_eq!(read_whole(&gateway, &format!("/topics/s/**?{start}")).await, all, "{start}");
        assert_eq!(
            received(&mut gateway.open(&format!("/topics/s/**?{start}")).await, "a").await,
            all,
            "{start}"
        );
        let paced = format!("/topics/s/**?{start}&every=100ms");
        let paced = received(&mut gateway.open(&paced).await, "a").await;
        assert!(!paced.contains(&"gap".to_owned()), "{start}: {paced:?}");
        let both = format!("/topics?topic=s/b&topic=s/a&{start}");
        assert_eq!(received(&mut gateway.open(&both).await, "a").await, ["b9", "a"], "{start}");
        assert_eq!(read_whole(&gateway, &format!("/topics/s/b?{start}")).await, ["b9"], "{start}");
        assert_eq!(read_whole(&gateway, &format!("/topics/s/none?{start}")).await, [""; 0], "{start}");
    }
    assert_eq!(read_whole(&gateway, "/topics/s/b?last=1").await, ["b9"]);
    assert_eq!(read_whole(&gateway, "/topics/s/**?last=2").await, ["c9", "a"]);
    assert_eq!(received(&mut gateway.open("/topics/s/b?last=1").await, "b9").await, ["b9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_messages_are_a_gap_for_readers_that_resume_and_not_for_those_that_ask_for_what_is_there() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ALL", &["s.>"], json!({})).await;
    for number in 0..6 {
        admin.put("s.a", format!("a{number}")).await;
        admin.put("s.b", format!("b{number}")).await;
    }
    admin.tell("STREAM.MSG.DELETE.ALL", json!({"seq": 5})).await; // a2
    let gateway = Gateway::with(&jetstream(&server)).await;
    let b = ["b0", "b1", "b2", "b3", "b4", "b5"];
    for start in ["since=all", "last=6", "last=100"] {
        assert_eq!(read_whole(&gateway, &format!("/topics/s/b?{start}")).await, b, "{start}");
        assert_eq!(
            received(&mut gateway.open(&format!("/topics/s/b?{start}")).await, "b5").await,
            b,
            "{start}"
        );
    }
    assert_eq!(
        read_whole(&gateway, "/topics/s/*?last=9").await,
        ["a1", "b1", "b2", "a3", "b3", "a4", "b4", "a5", "b5"]
    );
    // In parts: the second is a resume.
    let first = read(&gateway, "/topics/s/*?since=all&limit=3").await;
    let id = first["cursor"].as_str().unwrap();
    let all = received(&mut gateway.resume("/topics/s/*", id).await, "b5").await;
    assert_eq!(all, ["b1", "gap", "b2", "a3", "b3", "a4", "b4", "a5", "b5"]);
    let since = received(&mut gateway.open("/topics/s/*?since=1h").await, "b5").await;
    assert_eq!(since.iter().filter(|data| *data == "gap").count(), 1, "{since:?}");
    // The messages of one topic that were deleted by number are meant to be gone: nothing tells them from another topic's.
    let id = id.replace("-3", "-1");
    let all = received(&mut gateway.resume("/topics/s/a", &id).await, "a5").await;
    assert_eq!(all, ["a1", "a3", "a4", "a5"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stream_drops_while_it_is_read_from_the_oldest_is_a_gap() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("ALL", &["s.>"], json!({})).await;
    let large = "x".repeat(100_000);
    for number in 0..60 {
        admin.put("s.a", format!("{number} {large}")).await;
    }
    let gateway = Gateway::with(&jetstream(&server)).await;
    let mut reader = gateway.open("/topics/s/a?since=all").await;
    reader.expect("stream-open").await;
    assert!(reader.message().await.starts_with("0 "));
    admin.tell("STREAM.PURGE.ALL", json!({"keep": 5})).await;
    let (mut expected, mut gaps) = (1, 0);
    loop {
        let event = reader.next().await.unwrap();
        if event.event == "stream-gap" {
            gaps += 1;
            expected = 0;
            continue;
        }
        let number: u64 = event.data.split(' ').next().unwrap().parse().unwrap();
        assert!(expected == 0 || number == expected, "{number} instead of {expected}");
        if number == 59 {
            break;
        }
        expected = number + 1;
    }
    assert_eq!(gaps, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_entries_of_a_redis_stream_are_a_gap_for_readers_that_resume_only() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let mut ids: Vec<String> = Vec::new();
    for number in 0..9 {
        let mut add = redis::cmd("XADD");
        ids.push(add.arg("s:a").arg("*").arg("n").arg(number).query_async(&mut redis).await.unwrap());
    }
    let mut delete = redis::cmd("XDEL");
    assert_eq!(delete.arg("s:a").arg(&ids[2]).query_async::<i64>(&mut redis).await.unwrap(), 1);
    let rule = rule(&server.url(), "source = \"redis-stream\"\npayload = { field = \"n\" }");
    let gateway = Gateway::with(&rule).await;
    let all = ["0", "1", "3", "4", "5", "6", "7", "8"];
    for start in ["since=all", "last=8", "last=100"] {
        assert_eq!(read_whole(&gateway, &format!("/topics/s/a?{start}")).await, all, "{start}");
        assert_eq!(
            received(&mut gateway.open(&format!("/topics/s/a?{start}")).await, "8").await,
            all,
            "{start}"
        );
    }
    let resumed = received(&mut gateway.resume("/topics/s/a", &ids[0]).await, "8").await;
    assert_eq!(resumed, ["1", "gap", "3", "4", "5", "6", "7", "8"]);
}
