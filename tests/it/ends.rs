//! The end of a topic: readers receive the message that ends it, then their streams end for good, from every source, on
//! every gateway, and also for readers that reconnect. A message after the end opens the topic again.

use crate::common::client::{Reader, Response};
use crate::common::command::run;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use crate::common::slow::Slow;
use crate::common::upstream::Upstream;
use crate::common::{LIMIT, eventually, within};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

const OPEN: &str = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n";

/// A stream whose first event was read.
async fn open(gateway: &Gateway, path: &str) -> Reader {
    let mut reader = gateway.open(path).await;
    reader.expect("stream-open").await;
    reader
}

/// A stream, or the answer instead of it.
async fn resume(gateway: &Gateway, path: &str, id: &str) -> Result<Reader, Response> {
    let headers = [("accept", "text/event-stream"), ("last-event-id", id)];
    Reader::ask(gateway.address, path, &headers).await
}

/// A client that reconnects with this cursor gets 204: nothing more comes.
async fn assert_over(gateway: &Gateway, path: &str, id: &str) {
    match resume(gateway, path, id).await {
        Ok(mut reader) => panic!("{path} after {id}: {:?}", reader.next().await),
        Err(answer) => {
            assert_eq!((answer.status, answer.text()), (204, String::new()), "{path} after {id}");
            assert_eq!(answer.header("cache-control"), "no-store");
        }
    }
}

/// The stream ends now, for good.
async fn assert_ends(reader: &mut Reader) {
    assert_eq!(reader.control("stream-close").await, json!({"code":"ended","reconnect":false}));
    assert_eq!(reader.next().await, None);
}

/// A topic whose messages are published with `publish`, of which the flag says that it ends the topic: what readers of
/// `first` see, and those of `second`, which reads the same source if that is stored.
async fn assert_ends_and_opens_again(
    first: &Gateway,
    second: Option<&Gateway>,
    publish: impl AsyncFn(&str, bool),
) {
    let mut live = open(first, "/topics/jobs/7").await;
    publish("begun", false).await;
    let begun = live.expect("message").await;
    publish("done", true).await;
    let done = live.expect("message").await;
    assert_eq!(done.data, "done");
    assert_ends(&mut live).await;
    for gateway in [Some(first), second].into_iter().flatten() {
        // At the end, and before it.
        assert_over(gateway, "/topics/jobs/7", &done.id).await;
        let mut reader = resume(gateway, "/topics/jobs/7", &begun.id).await.unwrap();
        assert_eq!(reader.control("stream-open").await["resumed"], true);
        assert_eq!(reader.message().await, "done");
        assert_ends(&mut reader).await;
        // Without a cursor: the messages that are held, and the end.
        let mut reader = open(gateway, "/topics/jobs/7?last=1").await;
        assert_eq!(reader.message().await, "done");
        assert_ends(&mut reader).await;
        let mut reader = open(gateway, "/topics/jobs/7?since=all").await;
        assert_eq!(reader.messages(2).await, ["begun", "done"]);
        assert_ends(&mut reader).await;
        let mut reader = open(gateway, "/topics/jobs/7?last=1&every=1s").await;
        assert_eq!(reader.message().await, "done");
        assert_ends(&mut reader).await;
    }
    // A live start waits for new messages.
    let mut waiting = open(first, "/topics/jobs/7").await;
    publish("again", false).await;
    assert_eq!(waiting.message().await, "again");
    for gateway in [Some(first), second].into_iter().flatten() {
        let mut reader = resume(gateway, "/topics/jobs/7", &done.id).await.unwrap();
        reader.expect("stream-open").await;
        assert_eq!(reader.message().await, "again");
    }
    publish("done again", true).await;
    let done = waiting.expect("message").await;
    assert_eq!(done.data, "done again");
    assert_ends(&mut waiting).await;
    for gateway in [Some(first), second].into_iter().flatten() {
        let mut reader = resume(gateway, "/topics/jobs/7", &begun.id).await.unwrap();
        reader.expect("stream-open").await;
        assert_eq!(reader.messages(3).await, ["done", "again", "done again"]);
        assert_ends(&mut reader).await;
        assert_over(gateway, "/topics/jobs/7", &done.id).await;
    }
    assert!(first.metric("topicgate_topics_ended_total").await >= 2.0);
    assert!(first.metric("topicgate_streams_closed_total{code=\"ended\"}").await >= 4.0);
    assert!(first.metric("topicgate_resumes_total{outcome=\"ended\"}").await >= 2.0);
}

#[tokio::test]
async fn a_topic_of_the_embedded_broker_ends_and_opens_again() {
    let gateway = Gateway::with(OPEN).await;
    assert_ends_and_opens_again(&gateway, None, async |payload, ends| {
        let answer = gateway.post(&format!("/topics/jobs/7?end={ends}"), payload).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    })
    .await;
}

#[tokio::test]
async fn a_topic_of_nats_ends_by_the_header_of_a_message() {
    let upstream = Upstream::nats().await;
    let Upstream::Nats { client, .. } = &upstream else { unreachable!() };
    let gateway = Gateway::with(&upstream.toml()).await;
    assert_ends_and_opens_again(&gateway, None, async |payload: &str, ends| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Topicgate-End", if ends { "1" } else { "no" });
        client.publish_with_headers("jobs.7", headers, payload.to_owned().into()).await.unwrap();
        client.flush().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_topic_is_not_reported_as_ended_while_the_broker_is_away() {
    let mut upstream = Upstream::nats().await;
    let gateway = Gateway::with(&upstream.toml()).await;
    let path = "/topics/jobs/7";
    let mut reader = open(&gateway, path).await;
    let end = [("topicgate-end", "true")];
    assert_eq!(
        crate::common::client::request(gateway.address, "POST", path, &end, b"last").await.status,
        202
    );
    let id = reader.next().await.unwrap().id;
    assert_ends(&mut reader).await;
    assert_over(&gateway, path, &id).await;
    // The gateway may miss a message that opens the topic again, and a client that got 204 would never reconnect.
    upstream.stop();
    eventually("the stream opens", async || resume(&gateway, path, &id).await.is_ok()).await;
}

#[tokio::test]
async fn a_topic_of_nats_ends_by_a_post_that_carries_the_header() {
    let upstream = Upstream::nats().await;
    let gateway = Gateway::with(&upstream.toml()).await;
    assert_ends_and_opens_again(&gateway, None, async |payload, ends| {
        let headers = if ends { vec![("topicgate-end", "true")] } else { vec![] };
        let path = "/topics/jobs/7";
        let address = gateway.address;
        let answer =
            crate::common::client::request(address, "POST", path, &headers, payload.as_bytes()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    })
    .await;
}

#[tokio::test]
async fn a_channel_of_redis_ends_by_a_field_of_its_envelope() {
    let upstream = Upstream::redis().await;
    let toml = format!(
        "{}data = {{ pointer = \"/text\" }}\nend = {{ pointer = \"/finish_reason\" }}\n",
        upstream.toml()
    );
    let gateway = Gateway::with(&toml).await;
    assert_ends_and_opens_again(&gateway, None, async |payload, ends| {
        let reason = if ends { json!("stop") } else { json!(null) };
        upstream.publish("jobs/7", json!({"text":payload,"finish_reason":reason}).to_string()).await;
    })
    .await;
}

#[tokio::test]
async fn a_topic_of_jetstream_has_ended_on_every_gateway() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.stream("JOBS", &["jobs.>"], json!({})).await;
    let toml = format!(
        "broker.url = \"{}\"\n{}source = \"jetstream\"\n",
        server.url(),
        OPEN.replace("**", "jobs/**")
    );
    let (first, second) = (Gateway::with(&toml).await, Gateway::with(&toml).await);
    assert_ends_and_opens_again(&first, Some(&second), async |payload: &str, ends| {
        let fields = [("Topicgate-End", "true")];
        let fields: &[_] = if ends { &fields } else { &[] };
        admin.put_with("jobs.7", fields, payload.to_owned()).await;
        // The end of a topic is found behind messages of others.
        admin.put("jobs.other", "other").await;
    })
    .await;
    // A gateway that has just started must learn everything from the broker.
    let third = Gateway::with(&toml).await;
    let last = admin.put_with("jobs.8", &[("Topicgate-End", "true")], "done").await;
    let mut reader = open(&third, "/topics/jobs/8?last=1").await;
    let done = reader.expect("message").await;
    assert!(done.id.ends_with(&format!("-{last}")), "{}", done.id);
    assert_ends(&mut reader).await;
    let fourth = Gateway::with(&toml).await;
    assert_over(&fourth, "/topics/jobs/8", &done.id).await;
}

#[tokio::test]
async fn a_redis_stream_has_ended_on_every_gateway() {
    let server = RedisServer::start();
    let toml = format!(
        "broker.url = \"{}\"\n{OPEN}source = \"redis-stream\"\npayload = {{ field = \"text\" }}\n",
        server.url()
    );
    let (first, second) = (Gateway::with(&toml).await, Gateway::with(&toml).await);
    let connection = server.connect().await;
    assert_ends_and_opens_again(&first, Some(&second), async |payload, ends| {
        let mut add = redis::cmd("XADD");
        add.arg("jobs:7").arg("*").arg("text").arg(payload);
        if ends {
            add.arg("Topicgate-End").arg("true");
        }
        add.exec_async(&mut connection.clone()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_redis_stream_ends_by_a_post_and_after_a_restart_of_the_gateway() {
    let server = RedisServer::start();
    let toml = format!("broker.url = \"{}\"\n{OPEN}source = \"redis-stream\"\n", server.url());
    let gateway = Gateway::with(&toml).await;
    let answer = gateway.post("/topics/jobs/7?end=1", r#"{"n":1}"#).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    gateway.ended().await;
    let gateway = Gateway::with(&toml).await;
    assert_over(&gateway, "/topics/jobs/7", &id).await;
    let mut reader = open(&gateway, "/topics/jobs/7?since=all").await;
    assert_eq!(reader.message().await, r#"{"n":"1","Topicgate-End":"true"}"#);
    assert_ends(&mut reader).await;
}

#[tokio::test]
async fn a_key_of_a_bucket_ends_by_its_value_and_opens_by_the_next() {
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.bucket("JOBS", json!({})).await;
    let toml = format!(
        "broker.url = \"{}\"\n{}source = \"kv\"\nbucket = \"JOBS\"\nend = {{ pointer = \"/done\" }}\n",
        server.url(),
        OPEN.replace("**", "jobs/**")
    );
    let gateway = Gateway::with(&toml).await;
    let put = async |value: &str| admin.put("$KV.JOBS.7", value.to_owned()).await;
    put(r#"{"n":1}"#).await;
    let mut reader = open(&gateway, "/topics/jobs/7").await;
    assert_eq!(reader.message().await, r#"{"n":1}"#);
    put(r#"{"n":2,"done":true}"#).await;
    let done = reader.expect("message").await;
    assert_ends(&mut reader).await;
    let other = Gateway::with(&toml).await;
    for gateway in [&gateway, &other] {
        assert_over(gateway, "/topics/jobs/7", &done.id).await;
        let mut reader = open(gateway, "/topics/jobs/7").await;
        assert_eq!(reader.message().await, done.data, "a bucket begins with its values");
        assert_ends(&mut reader).await;
    }
    put(r#"{"n":3}"#).await;
    for gateway in [&gateway, &other] {
        let mut reader = resume(gateway, "/topics/jobs/7", &done.id).await.unwrap();
        reader.expect("stream-open").await;
        assert_eq!(reader.message().await, r#"{"n":3}"#);
    }
}

/// A message that the broker has, and that is still on its way to the gateway when a reader comes back to the end.
async fn assert_opens_for_a_message_on_its_way(gateway: &Gateway, publish: impl AsyncFn(&str, bool)) {
    for round in 0..3 {
        let done = format!("done {round}");
        publish(&done, true).await;
        let mut reader = open(gateway, "/topics/jobs/7?last=1").await;
        let id = loop {
            let message = reader.expect("message").await;
            if message.data == done {
                break message.id;
            }
        };
        eventually("204", async || resume(gateway, "/topics/jobs/7", &id).await.is_err()).await;
        let after = format!("after {round}");
        publish(&after, false).await;
        let mut reader = resume(gateway, "/topics/jobs/7", &id).await.expect("a stream");
        reader.expect("stream-open").await;
        assert_eq!(reader.message().await, after);
    }
}

#[tokio::test]
async fn a_stored_topic_has_not_ended_for_a_reader_if_a_newer_message_is_on_its_way() {
    let delay = Duration::from_millis(300);
    let rule = |slow: &Slow, scheme: &str, source: &str| {
        format!("broker.url = \"{scheme}://{}\"\n{}{source}\n", slow.address, OPEN.replace("**", "jobs/*"))
    };
    let server = RedisServer::start();
    let slow = Slow::start(([127, 0, 0, 1], server.port()).into(), delay).await;
    let toml = rule(&slow, "redis", "source = \"redis-stream\"\npayload = { field = \"text\" }");
    let connection = server.connect().await;
    let redis = async |payload: &str, ends: bool| {
        let mut add = redis::cmd("XADD");
        add.arg("jobs:7").arg("*").arg("text").arg(payload);
        if ends {
            add.arg("Topicgate-End").arg("true");
        }
        add.exec_async(&mut connection.clone()).await.unwrap();
    };
    assert_opens_for_a_message_on_its_way(&Gateway::with(&toml).await, redis).await;
    let server = NatsServer::jetstream();
    let admin = Admin::connect(&server.url()).await;
    admin.bucket("JOBS", json!({})).await;
    let slow = Slow::start(([127, 0, 0, 1], server.port()).into(), delay).await;
    let toml = rule(&slow, "nats", "source = \"kv\"\nbucket = \"JOBS\"");
    let nats = async |payload: &str, ends: bool| {
        let fields = [("Topicgate-End", "true")];
        admin.put_with("$KV.JOBS.7", if ends { &fields } else { &[] }, payload.to_owned()).await;
    };
    assert_opens_for_a_message_on_its_way(&Gateway::with(&toml).await, nats).await;
}

#[tokio::test]
async fn a_stream_of_several_topics_ends_when_all_have() {
    for source in ["embedded", "mixed"] {
        let server = RedisServer::start();
        let toml = match source {
            "embedded" => OPEN.to_owned(),
            _ => format!(
                "broker.url = \"{}\"\n{}source = \"redis-stream\"\npayload = {{ field = \"p\" }}\n",
                server.url(),
                OPEN
            ),
        };
        let gateway = Gateway::with(&toml).await;
        let post = async |topic: &str, end: bool| {
            let answer = gateway.post(&format!("/topics/{topic}?end={end}"), topic).await;
            assert_eq!(answer.status, 202, "{}", answer.text());
        };
        let path = "/topics?topic=a&topic=b";
        let mut reader = open(&gateway, path).await;
        post("a", true).await;
        let end_of_a = reader.expect("message").await;
        assert_eq!(reader.control("stream-end").await, json!({"topic":"a"}));
        post("b", false).await;
        assert_eq!(reader.message().await, "b");
        let mut resumed = resume(&gateway, path, &end_of_a.id).await.unwrap();
        resumed.expect("stream-open").await;
        assert_eq!(resumed.message().await, "b");
        post("b", true).await;
        let mut last = None;
        for reader in [&mut reader, &mut resumed] {
            last = Some(reader.expect("message").await);
            assert_eq!(reader.control("stream-end").await, json!({"topic":"b"}));
            assert_ends(reader).await;
        }
        let last = last.unwrap();
        assert_over(&gateway, path, &last.id).await;
        post("a", false).await;
        let mut reader = resume(&gateway, path, &last.id).await.unwrap();
        reader.expect("stream-open").await;
        assert_eq!(reader.message().await, "a");
        post("a", true).await;
        assert_eq!(reader.message().await, "a");
        assert_eq!(reader.control("stream-end").await, json!({"topic":"a"}));
        assert_ends(&mut reader).await;
        // From the start: each end in its place, whatever came after it.
        let mut reader = open(&gateway, &format!("{path}&since=all")).await;
        for (topic, ends) in [("a", true), ("b", false), ("b", true), ("a", false), ("a", true)] {
            if source == "mixed" {
                break; // the order between two Redis Streams is not given
            }
            assert_eq!(reader.message().await, topic);
            if ends {
                assert_eq!(reader.control("stream-end").await, json!({ "topic": topic }));
            }
        }
        if source == "embedded" {
            assert_ends(&mut reader).await;
        }
    }
}

#[tokio::test]
async fn a_stream_of_a_pattern_receives_each_end_and_goes_on() {
    for warm in [false, true] {
        let gateway = Gateway::with(&format!("{OPEN}replay = {{ warm = {warm} }}\n")).await;
        let mut raw = open(&gateway, "/topics/jobs/*").await;
        let mut events = open(&gateway, "/topics/jobs/*?format=cloudevents").await;
        let mut one = open(&gateway, "/topics/jobs/7").await;
        for (topic, end) in [("jobs/7", true), ("jobs/8", true), ("jobs/7", false)] {
            gateway.post(&format!("/topics/{topic}?end={end}"), topic).await;
            for reader in [&mut raw, &mut events] {
                assert!(reader.message().await.contains(topic));
                if end {
                    assert_eq!(reader.control("stream-end").await, json!({ "topic": topic }));
                }
            }
        }
        assert_eq!(one.message().await, "jobs/7");
        if one.next().await.unwrap().event == "message" {
            // It had not read the end before the topic was open again.
            gateway.post("/topics/jobs/7?end=true", "last").await;
            assert_eq!(one.message().await, "last");
            assert_ends(&mut one).await;
        }
        let mut again = open(&gateway, "/topics/jobs/*?last=9").await;
        assert_eq!(again.message().await, "jobs/7");
        assert_eq!(again.control("stream-end").await, json!({"topic":"jobs/7"}));
        assert_eq!(again.message().await, "jobs/8");
    }
}

#[tokio::test]
async fn the_first_reader_of_a_warm_topic_that_has_ended_receives_the_end() {
    let gateway = Gateway::with(&format!("{OPEN}replay = {{ warm = true }}\n")).await;
    gateway.post("/topics/jobs/7", "begun").await;
    gateway.post("/topics/jobs/7?end=true", "done").await;
    let mut reader = open(&gateway, "/topics/jobs/7?since=all").await;
    assert_eq!(reader.message().await, "begun");
    let done = reader.expect("message").await;
    assert_ends(&mut reader).await;
    assert_over(&gateway, "/topics/jobs/7", &done.id).await;
}

#[tokio::test]
async fn an_end_that_the_broker_cannot_carry_is_refused() {
    let upstream = Upstream::redis().await;
    for (rule, why) in [
        ("", "this broker's messages have no header fields; name a JSON pointer for the end"),
        (
            "end = { pointer = \"/done\" }\n",
            "carry their end in the payload, at the JSON pointer \\\"/done\\\"",
        ),
        ("end = { header = \"X-End\" }\n", "have no header fields"),
    ] {
        let gateway = Gateway::with(&format!("{}{rule}", upstream.toml())).await;
        let answer = gateway.post("/topics/a?end=true", "x").await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("bad_request")));
        assert!(answer.text().contains(why), "{}", answer.text());
        assert_eq!(gateway.post("/topics/a?end=false", "x").await.status, 202);
    }
}

#[tokio::test]
async fn late_readers_and_many_readers_all_receive_the_end() {
    let gateway = Gateway::with(OPEN).await;
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push(open(&gateway, "/topics/a").await);
    }
    for number in 0..200 {
        gateway.publish("a", number.to_string()).await;
    }
    gateway.post("/topics/a?end=true", "last").await;
    for reader in &mut readers {
        let all = reader.messages(201).await;
        assert_eq!(all.last().unwrap(), "last");
        assert_ends(reader).await;
    }
    eventually("all are gone", async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 0.0).await;
}

#[tokio::test]
async fn the_console_shows_that_a_topic_has_ended_and_goes_on_showing_it() {
    let gateway = Gateway::with_admin("127.0.0.1", OPEN).await;
    let mut reader = open(&gateway, "/topics/a").await;
    let ended = async || gateway.ask_admin("GET", "/topics", &[]).await.json()["topics"][0]["ended"].clone();
    assert_eq!(ended().await, false);
    gateway.post("/topics/a?end=true", "done").await;
    assert_eq!(reader.message().await, "done");
    assert_ends(&mut reader).await;
    assert_eq!(ended().await, true);
    gateway.publish("a", "again").await;
    eventually("it is open", async || ended().await == false).await;
}

#[tokio::test]
async fn the_commands_publish_an_end_and_end_with_it() {
    let gateway = Gateway::with(OPEN).await;
    let url = format!("http://{}/topics/jobs/7", gateway.address);
    for message in [&["begun"][..], &["done", "--end", "--id", "last"]] {
        let ended = run(&[&["pub", &url], message].concat(), &[]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let mut held = open(&gateway, "/topics/jobs/*").await;
    let publish = run(&["pub", &url, "done", "--end"], &[]).await;
    assert_eq!(publish.code, 0, "{publish:?}");
    held.expect("message").await;
    held.expect("stream-end").await;
    let several = format!("http://{}/topics?topic=jobs/7&topic=jobs/8", gateway.address);
    let arguments = ["sub", &several, "--last", "9"];
    let (read, ()) = tokio::join!(run(&arguments, &[]), async {
        let readers = async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 2.0;
        eventually("it reads", readers).await;
        for topic in ["jobs/7", "jobs/8"] {
            gateway.post(&format!("/topics/{topic}?end=true"), topic).await;
        }
    });
    assert_eq!(read.code, 0, "{read:?}");
    for words in ["jobs/7 has ended", "jobs/8 has ended", "closed by the gateway (ended)"] {
        assert!(read.err.contains(words), "{read:?}");
    }
    let id = read.out.lines().last().unwrap().split(' ').next().unwrap();
    let after = run(&["sub", &several, "--last-event-id", id], &[]).await;
    assert_eq!((after.code, &*after.out), (0, ""), "{after:?}");
    assert!(after.err.contains("the topic has ended"), "{after:?}");
}

/// The lines of a stream, until it ends or has this line.
async fn lines(gateway: &Gateway, path: &str, until: &str) -> Vec<String> {
    let mut socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n", gateway.address);
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut lines = tokio::io::BufReader::new(socket).lines();
    let mut found = Vec::new();
    within("the stream", LIMIT, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let is_last = line == until;
            found.push(line);
            if is_last {
                break;
            }
        }
    })
    .await;
    let head = found.iter().position(String::is_empty).unwrap();
    found.split_off(head + 1)
}

#[tokio::test]
async fn without_control_events_their_words_are_comments_and_ids_remain() {
    let gateway = Gateway::with(&format!("{OPEN}replay = {{ messages = 2, warm = true }}\n")).await;
    for number in 0..4 {
        gateway.publish("jobs/7", number.to_string()).await;
    }
    gateway.post("/topics/jobs/7?end=true&type=last", "done").await;
    for (path, ends) in [
        ("/topics/jobs/7?control=none&since=2020-01-01T00:00:00Z", "stream-close"),
        ("/topics?topic=jobs/7&topic=jobs/8&control=none&since=2020-01-01T00:00:00Z", "stream-end"),
        ("/topics/jobs/*?control=none&since=2020-01-01T00:00:00Z&format=cloudevents", "stream-end"),
    ] {
        let last =
            format!(": stream-{}", if ends == "stream-end" { "end {\"topic\":\"jobs/7\"}" } else { "" });
        let all = lines(&gateway, path, &last).await;
        let has = |start: &str| all.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(has("event: stream-"), 0, "{path}: {all:?}");
        assert_eq!((has(": stream-open {"), has(&format!(": {ends} {{"))), (1, 1), "{path}: {all:?}");
        assert!(has(": stream-gap {\"topic\":\"jobs/") >= 1, "{path}: {all:?}");
        assert_eq!(has("data: "), 2, "{path}: {all:?}");
        // An id that is not of a message makes no event, and counts.
        let gap = all.iter().rposition(|line| line.starts_with(": stream-gap")).unwrap();
        assert!(all[gap - 1].starts_with("id: ") && all[gap + 1].is_empty(), "{path}: {all:?}");
        if ends == "stream-close" {
            assert_eq!(all.last().unwrap(), ": stream-close {\"code\":\"ended\",\"reconnect\":false}");
        }
    }
    let limited = Gateway::with(&format!("{OPEN}[limits]\nstreams = 1\n")).await;
    let _one = open(&limited, "/topics/a").await;
    let all = lines(&limited, "/topics/b?control=none", "to its end").await;
    assert_eq!(all.last().unwrap(), ": stream-close {\"code\":\"overloaded\",\"reconnect\":true}", "{all:?}");
    let wrong = gateway.get("/topics/a?control=all").await;
    assert_eq!((wrong.status, &wrong.json()["code"]), (400, &json!("bad_query")));
}

#[tokio::test]
async fn the_whole_message_may_say_that_it_ends_its_topic() {
    let upstream = Upstream::redis().await;
    let gateway = Gateway::with(&format!("{}end = {{ pointer = \"\" }}\n", upstream.toml())).await;
    let mut reader = open(&gateway, "/topics/a").await;
    for payload in ["false", "text", "true"] {
        gateway.publish("a", payload).await;
        assert_eq!(reader.message().await, payload);
    }
    assert_ends(&mut reader).await;
    let answer = gateway.post("/topics/a?end=true", "x").await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("the JSON pointer \\\"\\\""), "{}", answer.text());
}
