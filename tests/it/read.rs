//! A read that is not a stream: one JSON answer, and a cursor by which nothing after it is lost.

use std::time::{Duration, Instant};

use crate::common::client;
use crate::common::eventually;
use crate::common::gateway::{Gateway, JSON, ask, read};
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use crate::common::token::{JWT, seconds, token};
use crate::common::upstream::Upstream;
use serde_json::{Value, json};

fn cursor(answer: &Value) -> &str {
    answer["cursor"].as_str().unwrap()
}

fn data(answer: &Value) -> Vec<&str> {
    let messages = answer["messages"].as_array().unwrap();
    messages.iter().map(|message| message["data"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn without_a_start_it_answers_the_position_and_nothing_after_it_is_lost() {
    let gateway = Gateway::start().await;
    gateway.publish("a", "before").await;
    let response = ask(&gateway, "/topics/a?wait=20s").await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("content-type"), "application/json");
    assert_eq!(response.header("cache-control"), "no-store");
    assert!(response.header("vary").contains("accept"), "{:?}", response.headers);
    let answer = response.json();
    assert_eq!((&answer["messages"], &answer["gaps"]), (&json!([]), &json!([])));
    gateway.publish("a", "between").await;
    let mut stream = gateway.resume("/topics/a", cursor(&answer)).await;
    assert_eq!(stream.control("stream-open").await["resumed"], true);
    assert_eq!(stream.message().await, "between");
    let answer = read(&gateway, &format!("/topics/a?last_event_id={}", cursor(&answer))).await;
    assert_eq!(data(&answer), ["between"]);
    assert_eq!(cursor(&answer), stream.last_id);
}

#[tokio::test]
async fn a_message_has_the_fields_of_its_event_and_its_topic_and_time() {
    let gateway = Gateway::start().await;
    let mut stream = gateway.open("/topics/a/**").await;
    stream.expect("stream-open").await;
    gateway.post("/topics/a/b?id=o-17&type=price", "{\"eur\":3}").await;
    gateway.post("/topics/a/c", "two\r\nlines").await;
    gateway.post("/topics/a/d", [0xff, 0]).await;
    let answer = read(&gateway, "/topics/a/**?since=all").await;
    let messages = answer["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3, "{answer}");
    for message in messages {
        let event = stream.next().await.unwrap();
        assert_eq!(message["id"], event.id);
        let time = message["time"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.len() == "2026-11-22T18:51:13.936Z".len(), "{time}");
    }
    assert_eq!(cursor(&answer), stream.last_id);
    assert!(messages[0]["id"].as_str().unwrap().ends_with("-o-17"), "by which another replica finds it");
    let rest = |message: &Value| {
        let mut rest = message.as_object().unwrap().clone();
        ["id", "time"].iter().for_each(|name| drop(rest.remove(*name)));
        Value::from(rest)
    };
    assert_eq!(rest(&messages[0]), json!({"topic": "a/b", "type": "price", "data": "{\"eur\":3}"}));
    assert_eq!(rest(&messages[1]), json!({"topic": "a/c", "data": "two\r\nlines"}));
    assert_eq!(rest(&messages[2]), json!({"topic": "a/d", "data_base64": "/wA="}));
    let events = read(&gateway, "/topics/a/**?last=3&format=cloudevents").await;
    let envelopes = events["messages"].as_array().unwrap().iter().map(|message| {
        assert!(
            message["id"].as_str().unwrap().contains('-'),
            "the id is the event id, as without envelopes"
        );
        serde_json::from_str::<Value>(message["data"].as_str().unwrap()).unwrap()
    });
    let envelopes: Vec<_> = envelopes.collect();
    assert_eq!(envelopes[0]["data"], json!({"eur": 3}));
    assert_eq!(envelopes[2]["data_base64"], "/wA=");
    assert!(envelopes.iter().all(|envelope| envelope["specversion"] == "1.0"));
}

#[tokio::test]
async fn reads_with_a_limit_follow_each_other_without_loss_and_a_stream_follows_them() {
    let gateway = Gateway::start().await;
    let path = "/topics?topic=a&topic=b/*";
    let mut position = cursor(&read(&gateway, path).await).to_owned();
    for number in 0..25 {
        gateway.publish(["a", "b/x", "b/y"][number % 3], number.to_string()).await;
    }
    let mut all = Vec::new();
    loop {
        let answer = read(&gateway, &format!("{path}&limit=4&last_event_id={position}")).await;
        assert_eq!(answer["gaps"], json!([]));
        let some = data(&answer);
        assert!(some.len() <= 4);
        all.extend(some.iter().map(ToString::to_string));
        position = cursor(&answer).to_owned();
        if answer["more"] != true {
            break;
        }
        assert_eq!(some.len(), 4);
    }
    assert_eq!(all, (0..25).map(|number| number.to_string()).collect::<Vec<_>>());
    gateway.publish("a", "live").await;
    assert_eq!(gateway_message(&gateway, path, &position).await, "live");
}

async fn gateway_message(gateway: &Gateway, path: &str, position: &str) -> String {
    let mut stream = gateway.resume(path, position).await;
    assert_eq!(stream.control("stream-open").await["resumed"], true);
    stream.message().await
}

#[tokio::test]
async fn an_answer_is_bounded_in_bytes_and_says_that_there_is_more() {
    let gateway = Gateway::start().await;
    let mut position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    let text = "x".repeat(100_000);
    for number in 0..8 {
        gateway.publish("a", format!("{number}{text}")).await;
    }
    let mut numbers = String::new();
    for reads in 1.. {
        let answer = read(&gateway, &format!("/topics/a?last_event_id={position}")).await;
        data(&answer).iter().for_each(|data| numbers.push_str(&data[..1]));
        position = cursor(&answer).to_owned();
        if answer["more"] != true {
            assert!(reads > 1, "all at once");
            break;
        }
    }
    assert_eq!(numbers, "01234567");
}

#[tokio::test]
async fn a_gap_comes_before_the_messages_that_it_concerns() {
    let gateway = Gateway::with(
        "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { messages = 3 }\n\
         [limits]\nmessage = \"10KiB\"\n",
    )
    .await;
    let position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    for number in 0..5 {
        gateway.publish("a", number.to_string()).await;
    }
    let answer = read(&gateway, &format!("/topics/a?last_event_id={position}")).await;
    assert_eq!(answer["gaps"], json!([{"topic": "a", "reason": "evicted"}]));
    assert_eq!(data(&answer), ["2", "3", "4"]);
    let answer = read(&gateway, &format!("/topics/a?last_event_id={}", cursor(&answer))).await;
    assert_eq!((&answer["messages"], &answer["gaps"]), (&json!([]), &json!([])), "a gap is sent once");
    for id in ["zzzzzzzz-3", "whatever"] {
        let answer = read(&gateway, &format!("/topics/a?last_event_id={id}")).await;
        assert_eq!(answer["gaps"][0]["topic"], "a");
        assert_eq!(data(&answer), ["2", "3", "4"]);
    }
}

#[tokio::test]
async fn a_gap_between_messages_begins_the_next_answer() {
    let mut upstream = Upstream::nats().await;
    let gateway = Gateway::with(&upstream.toml()).await;
    let mut position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    upstream.publish("a", "before").await;
    eventually("it is there", async || gateway.metric("topicgate_messages_received_total").await == 1.0)
        .await;
    upstream.stop();
    eventually("the broker is away", async || gateway.ready().await.is_err()).await;
    upstream.restart().await;
    eventually("the broker is back", async || gateway.ready().await.is_ok()).await;
    upstream.publish("a", "after").await;
    let mut story = Vec::new();
    while story.last().is_none_or(|last| last != "after") {
        let answer = read(&gateway, &format!("/topics/a?wait=20s&last_event_id={position}")).await;
        for gap in answer["gaps"].as_array().unwrap() {
            story.push(gap["reason"].as_str().unwrap().to_owned());
        }
        story.extend(data(&answer).iter().map(ToString::to_string));
        position = cursor(&answer).to_owned();
    }
    assert_eq!(story, ["before", "broker", "after"]);
}

#[tokio::test]
async fn a_read_that_waits_is_answered_when_something_comes_or_the_time_is_over() {
    let gateway = Gateway::start().await;
    let position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    let path = format!("/topics/a?wait=20s&last_event_id={position}");
    let begin = Instant::now();
    let waiting = async { read(&gateway, &path).await };
    let publishing = async {
        let open = async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 1.0;
        eventually("it counts as a stream", open).await;
        gateway.publish("b", "other").await;
        gateway.publish("a", "come").await;
    };
    let (answer, ()) = tokio::join!(waiting, publishing);
    assert_eq!(data(&answer), ["come"]);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert_eq!(gateway.metric("topicgate_streams{http=\"1.1\"}").await, 0.0);
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"answered\"}").await, 2.0);

    let begin = Instant::now();
    let answer = read(&gateway, &format!("/topics/a?wait=1s&last_event_id={}", cursor(&answer))).await;
    assert_eq!(answer["messages"], json!([]));
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_waiting_read_counts_as_a_stream_and_is_refused_with_a_status() {
    let gateway = Gateway::with("limits.streams_per_address = 1\n").await;
    let position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    let path = format!("/topics/a?wait=20s&last_event_id={position}");
    let both = tokio::join!(read(&gateway, &path), async {
        let open = async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 1.0;
        eventually("it counts as a stream", open).await;
        let names_both = [("accept", "application/json, text/event-stream;q=0.5")];
        for headers in [&[JSON][..], &names_both] {
            let refused = gateway.request("GET", "/topics/b", headers).await;
            assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("too_many_streams")));
            assert_eq!(refused.header("content-type"), "application/problem+json");
            assert!(refused.header("retry-after").parse::<u64>().is_ok());
        }
        gateway.publish("a", "done").await;
    });
    assert_eq!(data(&both.0), ["done"]);
}

#[tokio::test]
async fn a_drain_answers_at_once() {
    let mut gateway = Gateway::start().await;
    let position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    let path = format!("/topics/a?wait=60s&last_event_id={position}");
    let address = gateway.address;
    let waiting = tokio::spawn(async move { client::request(address, "GET", &path, &[JSON], b"").await });
    let open = async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 1.0;
    eventually("it waits", open).await;
    gateway.begin_to_stop();
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(cursor(&answer.json()), position);
    gateway.ended().await;
}

const MEMBERS: &str =
    "leeway = \"0s\"\n[[topics]]\nmatch = \"members/**\"\nread = \"token\"\npublish = \"anyone\"\n";

#[tokio::test]
async fn the_end_of_a_permission_ends_a_wait_with_a_status() {
    let gateway = Gateway::with(&format!("{JWT}{MEMBERS}")).await;
    let bearer = |life| format!("Bearer {}", token(json!({"sub": "me", "exp": seconds(life)})));
    let (short, long) = (bearer(2.0), bearer(60.0));
    let position =
        gateway.request("GET", "/topics/members/a", &[JSON, ("authorization", &long)]).await.json();
    let path = format!("/topics/members/a?wait=20s&last_event_id={}", cursor(&position));
    assert_eq!(ask(&gateway, &path).await.status, 401, "without a token");
    let expired = gateway.request("GET", &path, &[JSON, ("authorization", &short)]).await;
    assert_eq!((expired.status, &expired.json()["code"]), (401, &json!("expired_token")));

    let headers = [JSON, ("authorization", long.as_str())];
    let (revoked, ()) = tokio::join!(gateway.request("GET", &path, &headers), async {
        let open = async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 1.0;
        eventually("it waits", open).await;
        assert!(gateway.reload_with(&format!("{JWT}{}", MEMBERS.replace("\"token\"", "\"nobody\""))));
    });
    assert_eq!((revoked.status, &revoked.json()["code"]), (503, &json!("revoked")));
}

#[tokio::test]
async fn a_read_of_some_types_waits_for_one_and_moves_past_the_others() {
    let gateway = Gateway::start().await;
    let position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    for number in 0..3 {
        gateway.post("/topics/a?type=other", number.to_string()).await;
    }
    let waiting = format!("/topics/a?type=price&wait=20s&last_event_id={position}");
    let (answer, ()) = tokio::join!(read(&gateway, &waiting), async {
        let open = async || gateway.metric("topicgate_streams{http=\"1.1\"}").await == 1.0;
        eventually("it waits", open).await;
        gateway.post("/topics/a?type=other", "3").await;
        gateway.post("/topics/a?type=price", "4").await;
    });
    assert_eq!(data(&answer), ["4"]);
    gateway.post("/topics/a?type=other", "5").await;
    let past = read(&gateway, &format!("/topics/a?type=price&last_event_id={}", cursor(&answer))).await;
    assert_eq!((&past["messages"], past.get("more")), (&json!([]), None));
    assert_ne!(cursor(&past), cursor(&answer), "the cursor is past what was left out");
    assert_eq!(data(&read(&gateway, &format!("/topics/a?last_event_id={}", cursor(&past))).await), [""; 0]);
}

#[tokio::test]
async fn the_end_of_a_topic_ends_the_reads_of_it() {
    let gateway = Gateway::start().await;
    let position = cursor(&read(&gateway, "/topics/a").await).to_owned();
    gateway.publish("a", "1").await;
    assert_eq!(gateway.post("/topics/a?end=true", "2").await.status, 202);
    let path = "/topics/a?wait=20s&last_event_id=";
    let answer = read(&gateway, &format!("{path}{position}&limit=1")).await;
    assert_eq!((data(&answer), &answer["ended"], &answer["more"]), (vec!["1"], &Value::Null, &json!(true)));
    let answer = read(&gateway, &format!("{path}{}", cursor(&answer))).await;
    assert_eq!((data(&answer), &answer["ended"]), (vec!["2"], &json!(true)));
    assert_eq!(answer["messages"][0]["ended"], true);
    assert_eq!(ask(&gateway, &format!("{path}{}", cursor(&answer))).await.status, 204);
}

#[tokio::test]
async fn a_full_answer_with_the_last_message_of_topics_that_have_ended_says_that_they_have() {
    let nats = NatsServer::jetstream();
    Admin::connect(&nats.url()).await.stream("JOBS", &["jobs.>"], json!({})).await;
    let stored = "match = \"jobs/**\"\nsource = \"jetstream\"\nstream = \"JOBS\"";
    for gateway in [Gateway::start().await, Gateway::with(&all_of(&nats.url(), &[stored])).await] {
        for (path, topics) in [
            ("/topics/jobs/1?", ["jobs/1", "jobs/1"]),
            ("/topics?topic=jobs/2&topic=jobs/3&", ["jobs/2", "jobs/3"]),
        ] {
            let position = cursor(&read(&gateway, path).await).to_owned();
            for topic in topics {
                assert_eq!(gateway.post(&format!("/topics/{topic}?end=true"), topic).await.status, 202);
            }
            // A message that is published may not have come yet.
            let path = format!("{path}wait=20s&last_event_id=");
            eventually("both are there", async || {
                data(&read(&gateway, &format!("{path}{position}")).await).len() == 2
            })
            .await;
            let answer = read(&gateway, &format!("{path}{position}&limit=2")).await;
            assert_eq!((data(&answer), answer.get("more")), (topics.to_vec(), None), "{path}");
            assert_eq!(answer["ended"], true, "{path}: {answer}");
            assert_eq!(ask(&gateway, &format!("{path}{}", cursor(&answer))).await.status, 204, "{path}");
        }
    }
}

#[tokio::test]
async fn a_parameter_that_is_not_valid_is_named_and_a_stream_ignores_it() {
    let gateway = Gateway::start().await;
    for (query, word) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("wait=20", "wait"),
        ("wait=2m", "wait"),
        ("since=yesterday", "since"),
    ] {
        let refused = ask(&gateway, &format!("/topics/a?{query}")).await;
        let problem = refused.json();
        assert_eq!((refused.status, &problem["code"]), (400, &json!("bad_query")), "{query}");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    let mut stream = gateway.open("/topics/a?limit=0&wait=x").await;
    stream.expect("stream-open").await;
}

#[tokio::test]
async fn a_head_has_the_same_checks_and_the_head_of_the_answer() {
    let gateway = Gateway::with("[[topics]]\nmatch = \"a\"\nread = \"anyone\"\n").await;
    for (path, accept, status, kind) in [
        ("/topics/a", "application/json", 200, "application/json"),
        ("/topics/a", "*/*", 200, "text/event-stream; charset=utf-8"),
        ("/topics/b", "application/json", 404, "application/problem+json"),
        ("/topics/a?limit=x", "application/json", 400, "application/problem+json"),
        ("/topics/a", "image/png", 406, "application/problem+json"),
    ] {
        let head = gateway.request("HEAD", path, &[("accept", accept)]).await;
        assert_eq!((head.status, head.header("content-type")), (status, kind), "{path} {accept}");
        assert_eq!(head.header("vary").contains("accept"), matches!(status, 200 | 406), "{path}");
    }
    assert_eq!(gateway.metric("topicgate_topics").await, 0.0);
}

/// The configuration of rules over every kind of source at once, or of those that Redis has.
fn all_of(url: &str, rules: &[&str]) -> String {
    let rule = |keys: &&str| {
        format!("[[topics]]\nread = \"anyone\"\npublish = \"anyone\"\n{keys}\nreplay = {{ messages = 5 }}\n")
    };
    format!("broker.url = \"{url}\"\n{}", rules.iter().map(rule).collect::<String>())
}

/// Reads everything after `position` by turns at these gateways, a few messages at a time.
async fn read_by_turns(
    gateways: &[Gateway; 2],
    path: &str,
    mut position: String,
    count: usize,
) -> Vec<String> {
    let mut all = Vec::new();
    for turn in 0.. {
        let path = format!("{path}&limit=3&wait=10s&last_event_id={position}");
        let answer = read(&gateways[turn % 2], &path).await;
        assert_eq!(answer["gaps"], json!([]), "{answer}");
        all.extend(data(&answer).iter().map(ToString::to_string));
        position = cursor(&answer).to_owned();
        assert!(turn < 100, "{all:?}");
        if all.len() >= count {
            break;
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_continues_from_the_messages_that_the_broker_stores() {
    let nats = NatsServer::jetstream();
    let admin = Admin::connect(&nats.url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    admin.stream("NEWS", &["news.>"], json!({})).await;
    admin.bucket("PRICES", json!({})).await;
    let text = all_of(
        &nats.url(),
        &[
            "match = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"",
            "match = \"news/**\"\nsource = \"jetstream\"\nstream = \"NEWS\"",
            "match = \"prices/**\"\nsource = \"kv\"\nbucket = \"PRICES\"",
        ],
    );
    let gateways = [Gateway::with(&text).await, Gateway::with(&text).await];
    let path = "/topics?topic=orders/**&topic=news/eu&topic=prices/eur";
    for gateway in &gateways {
        eventually("all are followed", async || ask(gateway, path).await.status == 200).await;
    }
    let position = cursor(&read(&gateways[0], path).await).to_owned();
    for number in 0..20 {
        let subject = if number % 2 == 0 { "orders.eu" } else { "news.eu" };
        admin.put(subject, number.to_string()).await;
    }
    admin.put("$KV.PRICES.eur", "20").await;
    let mut all = read_by_turns(&gateways, path, position.clone(), 21).await;
    all.sort_by_key(|number| number.parse::<u32>().unwrap());
    assert_eq!(all, (0..21).map(|number| number.to_string()).collect::<Vec<_>>());

    // Of a bucket, a read with a start has the values first, as a stream has; without one, the position alone.
    let values = read(&gateways[1], "/topics/prices/*?since=all").await;
    assert_eq!(data(&values), ["20"]);
    let position = read(&gateways[0], "/topics/prices/*").await;
    assert_eq!((&position["messages"], cursor(&position)), (&json!([]), cursor(&values)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_streams_are_read_from_any_replica() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let text =
        all_of(&server.url(), &["match = \"**\"\nsource = \"redis-stream\"\npayload = { field = \"n\" }"]);
    let gateways = [Gateway::with(&text).await, Gateway::with(&text).await];
    let path = "/topics?topic=a&topic=b";
    for key in ["a", "b"] {
        // Before the first entry, only a gateway that has followed the key knows that there was none.
        redis::cmd("XADD").arg(key).arg("*").arg("n").arg("first").exec_async(&mut redis).await.unwrap();
    }
    let position = cursor(&read(&gateways[0], path).await).to_owned();
    for number in 0..20 {
        let key = if number % 2 == 0 { "a" } else { "b" };
        let mut add = redis::cmd("XADD");
        let _: String = add.arg(key).arg("*").arg("n").arg(number).query_async(&mut redis).await.unwrap();
    }
    let mut all = read_by_turns(&gateways, path, position, 20).await;
    all.sort_by_key(|number| number.parse::<u32>().unwrap());
    assert_eq!(all, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
}
