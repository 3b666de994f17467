//! Redis Streams as readers see them: any replica resumes, and removed entries are a gap in their place.

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::redis::{RedisServer, run};
use redis::aio::MultiplexedConnection;

/// Configuration for a gateway that exposes every key of `server`, with little memory of its own.
fn toml(server: &RedisServer) -> String {
    format!(
        "broker.url = \"{}\"\n[[topics]]\nmatch = \"**\"\nsource = \"redis-stream\"\npayload = {{ field = \"n\" }}\n\
         type = {{ header = \"kind\" }}\nread = \"anyone\"\npublish = \"anyone\"\nreplay = {{ messages = 10 }}\n",
        server.url()
    )
}

async fn add(redis: &mut MultiplexedConnection, key: &str, numbers: std::ops::Range<usize>) {
    let mut pipeline = redis::pipe();
    for number in numbers {
        pipeline.cmd("XADD").arg(key).arg("*").arg("n").arg(number);
    }
    pipeline.exec_async(redis).await.unwrap();
}

/// Reads numbers until `last`. Each must follow the one before, or a gap stands between them.
async fn read_until(reader: &mut Reader, mut expected: Option<usize>, last: usize) -> usize {
    let mut gaps = 0;
    loop {
        let event = reader.next().await.unwrap();
        match event.event.as_str() {
            "stream-open" => {}
            "stream-gap" => {
                gaps += 1;
                expected = None;
            }
            "message" => {
                let number: usize = event.data.parse().unwrap();
                assert!(expected.is_none_or(|expected| expected == number), "{number} after {expected:?}");
                if number == last {
                    return gaps;
                }
                expected = Some(number + 1);
            }
            _ => panic!("{event:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entry_fields_become_payload_and_type_and_a_published_message_has_its_id() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&toml(&server)).await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    run::<String>(&mut redis, "XADD orders:eu * kind price n 7").await;
    assert_eq!(reader.expect("price").await.data, "7");
    let answer = gateway.post("/topics/orders/eu?type=price", "8").await.json();
    let event = reader.expect("price").await;
    assert_eq!((event.data.as_str(), &answer["id"]), ("8", &event.id.clone().into()));
    assert_eq!(gateway.request("GET", "/topics/orders/*", &[("accept", "*/*")]).await.status / 100, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_moved_between_gateways_misses_nothing() {
    let server = RedisServer::start();
    let gateways = [Gateway::with(&toml(&server)).await, Gateway::with(&toml(&server)).await];
    let mut redis = server.connect().await;
    for key in ["a", "b"] {
        // Before the first entry, only a gateway that has followed the key knows that there was none.
        run::<String>(&mut redis, &format!("XADD {key} * n before")).await;
    }
    let mut first = gateways[0].open("/topics?topic=a&topic=b").await;
    first.expect("stream-open").await;
    let mut id = first.last_id.clone();
    let publishing = tokio::spawn(async move {
        for round in 0..200 {
            add(&mut redis, "a", round * 5..round * 5 + 5).await;
            add(&mut redis, "b", round * 5..round * 5 + 5).await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    let mut seen = [0, 0];
    for turn in 0.. {
        let path = "/topics?topic=a&topic=b&format=cloudevents";
        let mut reader = gateways[turn % 2].resume(path, &id).await;
        for _ in 0..fastrand::usize(1..60) {
            if seen == [1000, 1000] {
                break;
            }
            let event = reader.next().await.unwrap();
            if event.event == "stream-open" {
                continue;
            }
            assert_eq!(event.event, "message", "{event:?}");
            let envelope: serde_json::Value = serde_json::from_str(&event.data).unwrap();
            let next = &mut seen[usize::from(envelope["subject"] == "b")];
            assert_eq!(envelope["data"].as_u64().unwrap(), *next, "{}", envelope["subject"]);
            *next += 1;
        }
        id.clone_from(&reader.last_id);
        if seen == [1000, 1000] {
            break;
        }
    }
    publishing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_restarted_resumes_from_the_entries_in_redis() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&toml(&server)).await;
    let mut reader = gateway.open("/topics/a").await;
    add(&mut redis, "a", 0..3000).await;
    read_until(&mut reader, Some(0), 4).await;
    let id = reader.last_id.clone();
    drop((reader, gateway));
    let gateway = Gateway::with(&toml(&server)).await;
    let mut reader = gateway.resume("/topics/a", &id).await;
    assert_eq!(reader.control("stream-open").await["resumed"], true);
    assert_eq!(read_until(&mut reader, Some(5), 2999).await, 0);
    let mut late = gateway.open("/topics/a?since=all").await;
    assert_eq!(read_until(&mut late, Some(0), 2999).await, 0);
    let mut last = gateway.open("/topics/a?last=50").await;
    assert_eq!(read_until(&mut last, Some(2950), 2999).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_are_trimmed_while_a_reader_is_away_are_a_gap_before_the_remaining_ones() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&toml(&server)).await;
    let mut reader = gateway.open("/topics/a").await;
    add(&mut redis, "a", 0..100).await;
    read_until(&mut reader, Some(0), 49).await;
    let id = reader.last_id.clone();
    drop(reader);
    add(&mut redis, "a", 100..2000).await;
    run::<i64>(&mut redis, "XTRIM a MAXLEN 500").await;
    let mut reader = gateway.resume("/topics/a", &id).await;
    reader.expect("stream-open").await;
    assert_eq!(reader.control("stream-gap").await["reason"], "evicted");
    assert_eq!(read_until(&mut reader, Some(1500), 1999).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_deleted_and_created_again_is_a_gap_for_live_readers_which_then_read_on() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&toml(&server)).await;
    let mut reader = gateway.open("/topics/a").await;
    add(&mut redis, "a", 0..10).await;
    read_until(&mut reader, Some(0), 9).await;
    run::<i64>(&mut redis, "DEL a").await;
    add(&mut redis, "a", 10..15).await;
    // What was added to the first key last might have gone with it: a gap says so, or the stream ends and its reader is
    // told when it comes back. Whichever it is, the reader comes to what is added then.
    let mut gaps = 0;
    for number in 15.. {
        add(&mut redis, "a", number..number + 1).await;
        loop {
            match reader.next().await {
                Some(event) if event.event == "stream-gap" => gaps += 1,
                Some(event) if event.event == "message" && event.data == number.to_string() => break,
                Some(_) => {}
                None => reader = gateway.resume("/topics/a", &reader.last_id.clone()).await,
            }
        }
        if gaps > 0 {
            break;
        }
        assert!(number < 200, "there was no gap");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A rule without `payload`, so that fields are the members of a JSON object; `more` lines of it besides.
fn objects(server: &RedisServer, more: &str) -> String {
    format!(
        "broker.url = \"{}\"\n[[topics]]\nmatch = \"**\"\nsource = \"redis-stream\"\nread = \"anyone\"\n\
         publish = \"anyone\"\n{more}",
        server.url()
    )
}

/// The only entry of `key`: its id, and names and values one after the other.
async fn entry(redis: &mut MultiplexedConnection, key: &str) -> (String, Vec<String>) {
    let entries: Vec<(String, Vec<String>)> = run(redis, &format!("XRANGE {key} - +")).await;
    <[_; 1]>::try_from(entries).unwrap().into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_message_has_its_event_id_without_any_reader() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    for toml in [toml(&server), objects(&server, "")] {
        let gateway = Gateway::with(&toml).await;
        let answer = gateway.post("/topics/quiet", "{\"n\":1}").await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        let (id, _) = entry(&mut redis, "quiet").await;
        assert_eq!(answer.json()["id"], *id);
        let mut reader = gateway.open("/topics/quiet?since=all").await;
        reader.expect("stream-open").await;
        assert_eq!(reader.expect("message").await.id, id);
        run::<i64>(&mut redis, "DEL quiet").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_becomes_fields_and_comes_back_as_the_protocol_says() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&objects(&server, "")).await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let object = r#"{"s":"x","n":1.50,"big":12345678901234567890123,"deep":{"b":[1, 2]},"no":null,"a":true}"#;
    assert_eq!(gateway.post("/topics/a", object).await.status, 202);
    let fields =
        ["s", "x", "n", "1.50", "big", "12345678901234567890123", "deep", "{\"b\":[1, 2]}", "no", "null"];
    assert_eq!(entry(&mut redis, "a").await.1, [&fields[..], &["a", "true"]].concat());
    assert_eq!(
        reader.expect("message").await.data,
        r#"{"s":"x","n":"1.50","big":"12345678901234567890123","deep":"{\"b\":[1, 2]}","no":"null","a":"true"}"#
    );
    // With a field for the whole of it, it comes back as it was.
    let gateway = Gateway::with(&toml(&server)).await;
    let mut reader = gateway.open("/topics/b").await;
    reader.expect("stream-open").await;
    assert_eq!(gateway.post("/topics/b", object).await.status, 202);
    assert_eq!(reader.expect("message").await.data, object);
    assert_eq!(entry(&mut redis, "b").await.1, ["n", object]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_headers_become_no_field_and_a_post_that_cannot_be_mapped_is_a_bad_request() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&objects(&server, "")).await;
    let trace = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    let answer =
        crate::common::client::request(gateway.address, "POST", "/topics/a", &trace, b"{\"n\":1}").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(entry(&mut redis, "a").await.1, ["n", "1"]);
    run::<i64>(&mut redis, "DEL a").await;
    for (path, body, told) in [
        ("/topics/a?type=price", "{\"n\":1}", "type = { header = \"type\" }"),
        ("/topics/a?id=o-17", "{\"n\":1}", "id = { header = \"id\" }"),
        ("/topics/a", "hello", "not a JSON object"),
        ("/topics/a", "[1]", "not a JSON object"),
        ("/topics/a", "{\"n\":1", "not a JSON object"),
        ("/topics/a", "{}", "empty JSON object"),
    ] {
        let answer = gateway.post(path, body).await;
        let problem = answer.json();
        assert_eq!(
            (answer.status, &problem["code"]),
            (400, &"bad_request".into()),
            "{path} {body}: {problem}"
        );
        assert!(problem["detail"].as_str().unwrap().contains(told), "{path} {body}: {problem}");
    }
    // Where the rule names a field, it is stored, and read again.
    let named = Gateway::with(&objects(&server, "type = { header = \"kind\" }\n")).await;
    let mut reader = named.open("/topics/a").await;
    reader.expect("stream-open").await;
    assert_eq!(named.post("/topics/a?type=price", "{\"kind\":1}").await.status, 400, "it is there twice");
    assert_eq!(run::<i64>(&mut redis, "XLEN a").await, 0);
    assert_eq!(named.post("/topics/a?type=price", "{\"n\":1}").await.status, 202);
    assert_eq!(entry(&mut redis, "a").await.1, ["n", "1", "kind", "price"]);
    assert_eq!(reader.expect("price").await.data, "{\"n\":\"1\",\"kind\":\"price\"}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_no_stream_or_not_allowed_is_refused_at_once_with_the_reason() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let _: () = run(&mut redis, "SET text x").await;
    let _: () = run(&mut redis, "ACL SETUSER default resetkeys ~text ~open").await;
    let gateway = Gateway::with(&toml(&server)).await;
    for (topic, words) in [("text", "WRONGTYPE"), ("closed", "NOPERM")] {
        for query in ["", "?last=3", "?since=1h"] {
            let begin = std::time::Instant::now();
            let mut reader = gateway.open(&format!("/topics/{topic}{query}")).await;
            assert_eq!(reader.control("stream-close").await["code"], "refused", "{topic}{query}");
            assert!(begin.elapsed().as_secs() < 5);
        }
        let state = gateway.ask_admin("GET", "/state", &[]).await.json();
        let refused = state["broker"]["refused"].to_string();
        assert!(refused.contains(words) && refused.contains(topic), "{refused}");
    }
    let _: () = run(&mut redis, "DEL text").await;
    gateway.open("/topics/text").await.expect("stream-open").await;
}
