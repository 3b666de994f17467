//! Brokers that grant the gateway exactly the permissions in docs/security.md, word for word.

use std::collections::{BTreeSet, HashMap};

use crate::common::document::blocks;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::redis::RedisServer;
use crate::common::redis_cluster::RedisCluster;

const DOCUMENT: &str = include_str!("../../docs/security.md");

/// More than the broker allows, so that it is the broker that refuses.
const RULES: &str = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n\
                     [[topics]]\nmatch = \"$SYS/**\"\nread = \"anyone\"\n";

/// The configurations under `heading` of the document, for the broker and for the gateway.
fn snippets(heading: &str) -> (String, String) {
    let one = |language| {
        let mut blocks = blocks(DOCUMENT, heading, language);
        assert_eq!(blocks.len(), 1, "{language} under {heading}");
        blocks.remove(0)
    };
    (one("conf"), one("toml"))
}

/// A gateway as the document configures it, but for where the broker is.
async fn gateway(toml: &str, documented: &str, url: &str) -> Gateway {
    assert!(toml.contains(documented), "{toml}");
    Gateway::with(&format!("{}{RULES}", toml.replace(documented, url))).await
}

/// Reads a topic and a pattern, publishes, resumes, and goes on after the broker was away. `publish` is the application's.
async fn all_that_is_needed_is_allowed(
    gateway: &Gateway,
    mut publish: impl AsyncFnMut(&str, &str),
    restart: impl AsyncFnOnce(),
) {
    let mut one = gateway.open("/topics/orders/eu").await;
    let mut all = gateway.open("/topics/orders/**").await;
    one.expect("stream-open").await;
    all.expect("stream-open").await;
    publish("orders/eu", "1").await;
    assert_eq!((one.message().await, all.message().await), ("1".into(), "1".into()));
    gateway.publish("orders/in/eu", "2").await;
    assert_eq!(all.message().await, "2");

    let id = one.last_id.clone();
    drop(one);
    publish("orders/eu", "3").await;
    assert_eq!(all.message().await, "3");
    let mut one = gateway.resume("/topics/orders/eu", &id).await;
    assert_eq!(one.control("stream-open").await["resumed"], true);
    assert_eq!(one.message().await, "3");

    restart().await;
    eventually("the gateway is back", async || gateway.ready().await.is_ok()).await;
    assert_eq!(one.control("stream-gap").await["reason"], "broker");
    assert_eq!(all.control("stream-gap").await["reason"], "broker");
    publish("orders/eu", "4").await;
    assert_eq!((one.message().await, all.message().await), ("4".into(), "4".into()));
    gateway.publish("orders/in/eu", "5").await;
    assert_eq!(all.message().await, "5");
}

/// Everything else is refused by the broker, and each refusal affects nothing else.
async fn all_else_is_refused(gateway: &Gateway, topics: &[&str]) {
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    for topic in topics {
        let mut refused = gateway.open(&format!("/topics/{topic}")).await;
        assert_eq!(refused.control("stream-close").await["code"], "refused", "{topic}");
        assert!(refused.next().await.is_none());
    }
    for topic in ["orders/eu", "internal/plans"] {
        let answer = gateway.post(&format!("/topics/{topic}"), "x").await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (502, Some("broker_refused")), "{topic}");
        assert!(!answer.text().contains("ermission"), "{}", answer.text());
    }
    reader.quiet(std::time::Duration::from_millis(200)).await;
}

/// Publishing is refused, reading is not.
async fn reading_alone_is_allowed(gateway: &Gateway, mut publish: impl AsyncFnMut(&str, &str)) {
    let mut reader = gateway.open("/topics/orders/**").await;
    reader.expect("stream-open").await;
    let answer = gateway.post("/topics/orders/in/eu", "x").await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (502, Some("broker_refused")));
    publish("orders/in/eu", "1").await;
    assert_eq!(reader.message().await, "1");
}

/// Publishes as the application does.
async fn publish_to_nats(server: &str, topic: &str, payload: &str) {
    let login = async_nats::ConnectOptions::with_user_and_password("app".into(), "app-password".into());
    let client = login.connect(server).await.unwrap();
    client.publish(topic.replace('/', "."), payload.to_owned().into()).await.unwrap();
    client.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_nats_permissions_are_enough_and_the_rest_is_refused() {
    let (conf, toml) = snippets("NATS");
    let mut server = NatsServer::with(&conf);
    let url = server.url();
    let gateway = gateway(&toml, "nats://nats.internal:4222", &url).await;
    let publish = async |topic: &str, payload: &str| publish_to_nats(&url, topic, payload).await;
    all_that_is_needed_is_allowed(&gateway, publish, async || {
        assert!(!server.log().contains("Violation"), "{}", server.log());
        server.restart();
    })
    .await;
    assert!(!server.log().contains("Violation"), "{}", server.log());
    all_else_is_refused(&gateway, &["internal/plans", "**", "*/eu", "$SYS/ACCOUNT/connections"]).await;
    for subject in ["internal.plans", ">", "*.eu", "$SYS.ACCOUNT.connections", "orders.eu"] {
        let violation = format!("Violation - Subject \"{subject}\"");
        assert!(server.log().contains(&violation), "{violation} is not in\n{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_read_from_nats_without_permission_to_publish() {
    let (conf, toml) = snippets("NATS");
    let publishing = "publish: [\"orders.in.>\"]";
    assert!(conf.contains(publishing));
    let server = NatsServer::with(&conf.replace(publishing, "publish: { deny: \">\" }"));
    let gateway = gateway(&toml, "nats://nats.internal:4222", &server.url()).await;
    reading_alone_is_allowed(&gateway, async |topic, payload| {
        publish_to_nats(&server.url(), topic, payload).await;
    })
    .await;
}

/// A connection as the application has it.
async fn application(server: &str) -> redis::aio::MultiplexedConnection {
    let url = server.replace("//", "//app:app-password@");
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn publish_to_redis(server: &str, topic: &str, payload: &str) {
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(topic.replace('/', ":")).arg(payload);
    publish.exec_async(&mut application(server).await).await.unwrap();
}

/// The channels and commands that the server has denied to anyone, as it wrote them down.
async fn denied(connection: &mut redis::aio::MultiplexedConnection) -> BTreeSet<String> {
    let mut log = redis::cmd("ACL");
    log.arg("LOG");
    let entries: Vec<HashMap<String, redis::Value>> = log.query_async(connection).await.unwrap();
    entries.iter().map(|entry| redis::from_redis_value_ref(&entry["object"]).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_redis_permissions_are_enough_and_the_rest_is_refused() {
    let (conf, toml) = snippets("Redis");
    let mut server = RedisServer::start_with(&[&conf]);
    let url = server.url();
    let gateway = gateway(&toml, "redis://redis.internal:6379", &url).await;
    let publish = async |topic: &str, payload: &str| publish_to_redis(&url, topic, payload).await;
    all_that_is_needed_is_allowed(&gateway, publish, async || {
        assert_eq!(denied(&mut application(&url).await).await, BTreeSet::new());
        server.restart();
    })
    .await;
    assert_eq!(denied(&mut application(&url).await).await, BTreeSet::new());
    // A user that may read orders:* may not subscribe to a pattern inside of it: Redis compares patterns as text.
    all_else_is_refused(&gateway, &["internal/plans", "**", "orders/eu/*"]).await;
    let expected = ["internal:plans", "*", "orders:eu:*", "orders:eu"];
    assert_eq!(denied(&mut application(&url).await).await, expected.map(String::from).into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_read_from_redis_without_permission_to_publish() {
    let (conf, toml) = snippets("Redis");
    let publishing = " (+publish &orders:in:*)";
    assert!(conf.contains(publishing));
    let server = RedisServer::start_with(&[&conf.replace(publishing, "")]);
    let gateway = gateway(&toml, "redis://redis.internal:6379", &server.url()).await;
    reading_alone_is_allowed(&gateway, async |topic, payload| {
        publish_to_redis(&server.url(), topic, payload).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_redis_cluster_permissions_are_enough() {
    let users = blocks(DOCUMENT, "Redis Cluster", "conf");
    let sources = ["sharded-pubsub", "redis-stream"];
    assert_eq!(users.len(), sources.len());
    for (user, source) in users.iter().zip(sources) {
        let cluster = RedisCluster::start_with(2, 0, &[user]).await;
        let url = cluster.url().replace("//", "//topicgate:gateway-password@");
        let payload = if source == "redis-stream" { "payload = { field = \"n\" }" } else { "" };
        let toml = format!(
            "[broker]\nurl = \"{url}\"\ncluster = true\n[[topics]]\nmatch = \"orders/**\"\nsource = \"{source}\"\n{payload}\n\
             read = \"anyone\"\npublish = \"anyone\"\n"
        );
        let gateway = Gateway::with(&toml).await;
        let mut writer = cluster.writer();
        for topic in ["orders/eu", "orders/in/eu"] {
            let mut reader = gateway.open(&format!("/topics/{topic}")).await;
            reader.expect("stream-open").await;
            match source {
                "redis-stream" => drop(writer.xadd(topic, "1").await),
                _ => writer.spublish(topic, "1").await,
            }
            assert_eq!(reader.message().await, "1");
            if topic == "orders/in/eu" {
                gateway.publish(topic, "2").await;
                assert_eq!(reader.message().await, "2");
            }
        }
        for node in 0..2 {
            // The connection of plain publish/subscribe is there whether a rule needs it or not, and asks whether it is
            // alive.
            let mut denied = denied(&mut cluster.connect(node).await).await;
            denied.remove("ping");
            assert_eq!(denied, BTreeSet::new(), "{source}");
        }
        let answer = gateway.post("/topics/orders/eu", "x").await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (502, Some("broker_refused")),
            "{source}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_topics_come_back_when_the_permission_for_answers_is_given_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("jetstream");
    let config = |answers: &str| {
        format!(
            "jetstream {{ store_dir: {store:?} }}\nauthorization {{ users = [{{ user: app, password: app }}, {{ user: gw, \
             password: gw, permissions: {{ publish: [\"$JS.API.>\"], subscribe: [\"orders.>\"{answers}] }} }}] }}\n"
        )
    };
    let granted = config(", \"_INBOX.topicgate.>\"");
    let server = NatsServer::inside(directory, &granted);
    let login = async_nats::ConnectOptions::with_user_and_password("app".into(), "app".into());
    let admin = Admin { client: login.connect(server.url()).await.unwrap() };
    admin.stream("ORDERS", &["orders.>"], serde_json::json!({})).await;
    let gateway = Gateway::with(&format!(
        "broker.url = \"{}\"\nbroker.user = \"gw\"\nbroker.password = \"gw\"\n[[topics]]\nmatch = \"orders/**\"\nread = \
         \"anyone\"\nsource = \"jetstream\"\n",
        server.url()
    ))
    .await;
    let mut reader = gateway.open("/topics/orders/eu").await;
    reader.expect("stream-open").await;
    admin.put("orders.eu", "1").await;
    assert_eq!(reader.message().await, "1");

    reader.feeds = true;
    server.configure(&config(""));
    server.reload();
    reader.expect("stream-stale").await;
    reader.feeds = false;
    admin.put("orders.eu", "2").await;
    assert_eq!(gateway.metric("topicgate_upstream_up").await, 0.0);
    server.configure(&granted);
    server.reload();
    assert_eq!(reader.messages(1).await, ["2"]);
    admin.put("orders.eu", "3").await;
    assert_eq!(reader.message().await, "3");
}
