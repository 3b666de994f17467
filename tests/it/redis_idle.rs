//! A Redis server that closes idle clients (`timeout`): no request fails because a connection of the gateway was idle.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::client::{Reader, request};
use crate::common::gateway::Gateway;
use crate::common::process::Process;
use crate::common::redis::{RedisServer, run};
use crate::common::redis_cluster::RedisCluster;
use tokio::time::sleep;

/// The server closes a client that was silent for more than two seconds. It counts in whole seconds, so that takes up to
/// three, and it looks at its clients once per second.
const TIMEOUT: &str = "timeout 2";
const SILENCE: Duration = Duration::from_secs(5);

fn toml(broker: &str) -> String {
    let rule = "read = \"anyone\"\npublish = \"anyone\"";
    format!(
        "{broker}\n[[topics]]\nmatch = \"stored/**\"\nsource = \"redis-stream\"\npayload = {{ field = \"data\" }}\n{rule}\n\
         [[topics]]\nmatch = \"live/**\"\n{rule}\n"
    )
}

/// Publishes to the topic and reads it, which must both succeed.
async fn use_stored(gateway: &Gateway, topic: &str, payload: &str) {
    let path = format!("/topics/stored/{topic}");
    let answer = gateway.post(&path, payload).await;
    assert_eq!(answer.status, 202, "{payload}: {}", answer.text());
    let json = [("accept", "application/json")];
    let answer = gateway.request("GET", &format!("{path}?last=1"), &json).await;
    assert_eq!(answer.status, 200, "{payload}: {}", answer.text());
}

/// The ids of the gateway's connections.
async fn connections(server: &RedisServer) -> BTreeSet<String> {
    let mut redis = server.connect().await;
    let own = run::<i64>(&mut redis, "CLIENT ID").await.to_string();
    let list: String = run(&mut redis, "CLIENT LIST").await;
    let ids = list.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next());
    ids.filter(|id| *id != own).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_idle_clients_fails_no_request() {
    let server = RedisServer::start_with(&[TIMEOUT]);
    let gateway = Gateway::with(&toml(&format!("broker.url = {:?}", server.url()))).await;
    use_stored(&gateway, "a", "first").await;
    let before = connections(&server).await;
    for payload in ["second", "third"] {
        sleep(SILENCE).await;
        use_stored(&gateway, "a", payload).await;
        let answer = gateway.post("/topics/live/a", payload).await;
        assert_eq!(answer.status, 202, "{payload}: {}", answer.text());
    }
    // Kept open, not opened again: each lost connection would be in the log, and would make the topics stale.
    let after = connections(&server).await;
    assert!(before.is_subset(&after), "{before:?} {after:?}");

    let mut reader = gateway.open("/topics/stored/a").await;
    reader.expect("stream-open").await;
    sleep(SILENCE).await;
    use_stored(&gateway, "a", "fourth").await;
    assert_eq!(reader.message().await, "fourth");
    assert!(before.is_subset(&connections(&server).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_closes_idle_clients_fails_no_request() {
    let cluster = RedisCluster::start_with(3, 0, &[TIMEOUT]).await;
    let gateway = Gateway::with(&toml(&format!("[broker]\nurl = {:?}\ncluster = true", cluster.url()))).await;
    for payload in ["first", "second"] {
        // The masters have different topics.
        for topic in ["a", "b", "c", "d", "e", "f"] {
            use_stored(&gateway, topic, payload).await;
        }
        sleep(SILENCE).await;
    }
    use_stored(&gateway, "a", "third").await;
}

/// Its connections are closed before it can keep them open, as when the machine stops the process for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_request_after_a_gateway_was_suspended_is_made_on_a_new_connection() {
    let server = RedisServer::start_with(&[TIMEOUT]);
    let rule = "[{ match = \"**\", source = \"redis-stream\", payload = { field = \"data\" }, read = \"anyone\", \
                publish = \"anyone\" }]";
    let process =
        Process::start(&[("TOPICGATE_BROKER__URL", &server.url()), ("TOPICGATE_TOPICS", rule)]).await;
    process.publish("a", "1").await;
    let suspended = async || {
        process.signal("STOP");
        sleep(SILENCE).await;
        process.signal("CONT");
    };
    suspended().await;
    process.publish("a", "2").await;
    suspended().await;
    let json = [("accept", "application/json")];
    let answer = request(process.address, "GET", "/topics/a?last=1", &json, b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    let mut reader = Reader::open(process.address, "/topics/a", &[]).await;
    reader.expect("stream-open").await;
    suspended().await;
    process.publish("a", "3").await;
    assert_eq!(reader.message().await, "3");
}

/// A read is made again on a new connection, whenever the old one ended. An XADD may have been carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_whose_connection_is_lost_is_made_again() {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let gateway = Gateway::with(&toml(&format!("broker.url = {:?}", server.url()))).await;
    for payload in ["first", "second", "third"] {
        use_stored(&gateway, "old", payload).await;
        let killed: i64 = run(&mut redis, "CLIENT KILL TYPE normal SKIPME yes").await;
        assert!(killed >= 2, "{killed}");
        let topics = ["old".to_owned(), format!("{payload}/1"), format!("{payload}/2")];
        let reads = topics.iter().map(async |topic| {
            let path = format!("/topics/stored/{topic}?last=1");
            let answer = gateway.request("GET", &path, &[("accept", "application/json")]).await;
            assert_eq!(answer.status, 200, "{topic}: {}", answer.text());
        });
        futures_util::future::join_all(reads).await;
    }
}
