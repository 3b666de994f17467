//! A reader of a Redis Stream that has no entry yet: the key may come and go while the reader is away, and nothing that is
//! left of it tells.

use crate::common::client::Reader;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::redis::{RedisServer, run};
use redis::aio::MultiplexedConnection;

/// A gateway that lets go of a topic as soon as nobody reads it.
fn toml(server: &RedisServer, linger: &str) -> String {
    format!(
        "broker.url = \"{}\"\n[[topics]]\nmatch = \"**\"\nsource = \"redis-stream\"\npayload = {{ field = \"n\" }}\n\
         read = \"anyone\"\nreplay = {{ messages = 10, linger = \"{linger}\" }}\n",
        server.url()
    )
}

async fn add(redis: &mut MultiplexedConnection, key: &str, number: usize) {
    run::<String>(redis, &format!("XADD {key} * n {number}")).await;
}

/// The id of a stream of `path` that is opened now and cut.
async fn opened(gateway: &Gateway, path: &str) -> String {
    let mut reader = gateway.open(path).await;
    reader.expect("stream-open").await;
    reader.last_id.clone()
}

async fn until_nothing_is_held(gateway: &Gateway) {
    eventually("nothing is held", async || {
        let held = gateway.ask_admin("GET", "/topics", &[]).await.json();
        held["topics"].as_array().unwrap().is_empty()
    })
    .await;
}

/// Lets `key` have five entries and disappear.
async fn live_and_die(redis: &mut MultiplexedConnection, key: &str, expires: bool) {
    for number in 0..5 {
        add(redis, key, number).await;
    }
    if expires {
        run::<i64>(redis, &format!("PEXPIRE {key} 1")).await;
        eventually("it has expired", async || {
            run::<i64>(&mut redis.clone(), &format!("EXISTS {key}")).await == 0
        })
        .await;
    } else {
        run::<i64>(redis, &format!("DEL {key}")).await;
    }
}

/// Whether the reader is told at once that something may be missing.
async fn is_told(reader: &mut Reader) -> bool {
    let resumed = reader.control("stream-open").await["resumed"] == true;
    if !resumed {
        reader.expect("stream-gap").await;
    }
    !resumed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_came_and_went_while_its_reader_was_away_is_a_gap() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let first = Gateway::with(&toml(&server, "0s")).await;
    let second = Gateway::with(&toml(&server, "1min")).await;
    for (number, expires) in [false, true].into_iter().enumerate() {
        for comes_again in [false, true] {
            for is_same in [true, false] {
                let label =
                    format!("expires: {expires}, comes again: {comes_again}, same gateway: {is_same}");
                let key = format!("job{number}{comes_again}{is_same}");
                let (alone, several) = (format!("/topics/{key}"), format!("/topics?topic={key}&topic=other"));
                let ids = [opened(&first, &alone).await, opened(&first, &several).await];
                until_nothing_is_held(&first).await;
                live_and_die(&mut redis, &key, expires).await;
                // Somebody else reads it by now.
                let gateway = if is_same { &first } else { &second };
                let mut other = gateway.open(&alone).await;
                other.expect("stream-open").await;
                if comes_again {
                    add(&mut redis, &key, 5).await;
                    assert_eq!(other.message().await, "5", "{label}");
                }
                for (path, id) in [&alone, &several].into_iter().zip(&ids) {
                    let mut reader = gateway.resume(path, id).await;
                    assert!(is_told(&mut reader).await, "{label}: {id} of {path}");
                    if path == &several && reader.last_id.is_empty() {
                        reader.expect("stream-gap").await; // the other topic's
                    }
                    // Once.
                    let mut again = gateway.resume(path, &reader.last_id.clone()).await;
                    assert!(!is_told(&mut again).await, "{label}: {} of {path} after {id}", reader.last_id);
                    if comes_again {
                        assert_eq!([reader.message().await, again.message().await], ["5", "5"], "{label}");
                    }
                }
                drop(other);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_has_followed_the_key_since_resumes_without_a_gap() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateways = [Gateway::with(&toml(&server, "1min")).await, Gateway::with(&toml(&server, "1min")).await];
    // The second has followed the key for longer than the first.
    opened(&gateways[1], "/topics/job").await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await; // the ids are of another millisecond
    let id = opened(&gateways[0], "/topics/job").await;
    for gateway in &gateways {
        assert!(!is_told(&mut gateway.resume("/topics/job", &id).await).await, "there is no key yet");
    }
    // More than a gateway holds in memory.
    for number in 0..30 {
        add(&mut redis, "job", number).await;
    }
    for gateway in &gateways {
        let mut reader = gateway.resume("/topics/job", &id).await;
        assert!(!is_told(&mut reader).await);
        for number in 0..30 {
            assert_eq!(reader.message().await, number.to_string());
        }
    }
    // Another one cannot know whether this is the first key of that name.
    let late = Gateway::with(&toml(&server, "1min")).await;
    let mut reader = late.resume("/topics/job", &id).await;
    assert!(is_told(&mut reader).await);
    assert_eq!(reader.message().await, "0", "everything that is held follows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_before_the_first_entry_is_resumed_with_ids_that_an_application_chose() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&toml(&server, "1min")).await;
    let mut reader = gateway.open("/topics/job").await;
    reader.expect("stream-open").await;
    let id = reader.last_id.clone();
    for number in 1..=3 {
        run::<String>(&mut redis, &format!("XADD job {number}-1 n {number}")).await;
        assert_eq!(reader.message().await, number.to_string());
    }
    assert_eq!(reader.last_id, "3-1");
    let mut reader = gateway.resume("/topics/job", &id).await;
    is_told(&mut reader).await;
    assert_eq!(reader.messages(3).await, ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_redis_stream_that_is_read_from_a_time_is_resumed_before_its_first_message() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    for number in 0..3 {
        add(&mut redis, "job", number).await;
    }
    let gateway = Gateway::with(&toml(&server, "0s")).await;
    let id = opened(&gateway, "/topics/job?since=1h").await;
    until_nothing_is_held(&gateway).await;
    let mut reader = gateway.resume("/topics/job", &id).await;
    assert!(!is_told(&mut reader).await);
    assert_eq!(reader.messages(3).await, ["0", "1", "2"]);
    drop(reader);
    until_nothing_is_held(&gateway).await;
    live_and_die(&mut redis, "job", false).await;
    add(&mut redis, "job", 3).await;
    let mut reader = gateway.resume("/topics/job", &id).await;
    assert!(is_told(&mut reader).await, "it is another key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_permission_for_the_servers_time_every_resume_before_the_first_entry_is_a_gap() {
    let server = RedisServer::start_with(&["user gate on >secret ~* +@all -info"]);
    let mut redis = server.connect().await;
    let toml = toml(&server, "1min").replace("redis://", "redis://gate:secret@");
    let gateway = Gateway::with(&toml).await;
    let id = opened(&gateway, "/topics/job").await;
    assert_eq!(id, "0-0");
    let mut reader = gateway.resume("/topics/job", &id).await;
    assert!(is_told(&mut reader).await);
    add(&mut redis, "job", 0).await;
    assert_eq!(reader.message().await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_before_the_first_entry_is_not_taken_for_one_of_another_empty_key() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateways = [Gateway::with(&toml(&server, "1min")).await, Gateway::with(&toml(&server, "1min")).await];
    // The second gateway has followed another key for longer, and the reader adds that one to its stream there.
    opened(&gateways[1], "/topics/other").await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let id = opened(&gateways[0], "/topics/job").await;
    add(&mut redis, "job", 0).await;
    let mut reader = gateways[1].resume("/topics?topic=job&topic=other", &id).await;
    assert!(is_told(&mut reader).await, "the second gateway has not followed the key since");
    assert_eq!(reader.message().await, "0");
}
