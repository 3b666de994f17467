//! JetStream in another domain: a hub, and a leaf node to which the gateway is connected. And a JetStream of another
//! account.

use crate::common::client::Reader;
use crate::common::document::blocks;
use crate::common::eventually;
use crate::common::gateway::Gateway;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::ports::free_port;
use serde_json::{Value, json};

const RULES: &str = "[[topics]]\nmatch = \"orders/**\"\nsource = \"jetstream\"\nstream = \"ORDERS\"\nread = \"anyone\"\n\
                     publish = \"anyone\"\n\
                     [[topics]]\nmatch = \"slow/**\"\nsource = \"jetstream\"\nread = \"anyone\"\n\
                     [[topics]]\nmatch = \"prices/**\"\nsource = \"kv\"\nbucket = \"PRICES\"\nread = \"anyone\"\n\
                     publish = \"anyone\"\n";

/// A server with JetStream in a domain of its name.
fn server(name: &str, more: &str) -> NatsServer {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("jetstream");
    let jetstream = format!("jetstream {{ domain: {name}, store_dir: {store:?} }}");
    NatsServer::inside(directory, &format!("server_name: {name}\n{jetstream}\n{more}\n"))
}

/// A hub and a leaf node, connected, and their administrators.
async fn hub_and_leaf() -> (NatsServer, NatsServer, Admin, Admin) {
    let port = free_port();
    let hub = server("hub", &format!("leafnodes {{ listen: \"127.0.0.1:{port}\" }}"));
    let remotes = format!("{{ url: \"nats-leaf://127.0.0.1:{port}\" }}");
    let leaf = server("leaf", &format!("leafnodes {{ reconnect: 1, remotes: [{remotes}] }}"));
    connected(&hub).await;
    let (at_hub, at_leaf) = (Admin::connect(&hub.url()).await, Admin::connect(&leaf.url()).await);
    (hub, leaf, at_hub, at_leaf)
}

async fn connected(hub: &NatsServer) {
    eventually("the leaf node is connected", async || hub.monitor("/leafz")["leafnodes"] == 1).await;
}

async fn gateway(server: &NatsServer, settings: &str) -> Gateway {
    Gateway::with(&format!("broker.url = {:?}\n{settings}\n{RULES}", server.url())).await
}

/// The payloads of the next messages, which must come without a gap.
async fn payloads(reader: &mut Reader, count: usize) -> Vec<String> {
    let mut found = vec![];
    while found.len() < count {
        found.push(reader.message().await);
    }
    found
}

async fn last_number(admin: &Admin, stream: &str) -> Value {
    admin.tell(&format!("STREAM.INFO.{stream}"), json!({})).await["state"]["last_seq"].clone()
}

#[tokio::test]
async fn streams_and_buckets_of_the_hub_are_read_through_a_leaf_node() {
    let (mut hub, mut leaf, at_hub, at_leaf) = hub_and_leaf().await;
    at_hub.stream("ORDERS", &["orders.>"], json!({})).await;
    at_hub.stream("SLOW", &["slow.>"], json!({"allow_direct": false})).await;
    at_hub.bucket("PRICES", json!({})).await;
    // The leaf node has a bucket of the same name, which is another one.
    at_leaf.bucket("PRICES", json!({})).await;
    for (subject, payload) in [("orders.eu", "1"), ("orders.us", "2"), ("slow.a", "1"), ("slow.b", "2")] {
        at_hub.put(subject, payload).await;
    }
    let near = gateway(&hub, "").await;
    let far = gateway(&leaf, "broker.jetstream.domain = \"hub\"").await;

    let mut orders = far.open("/topics/orders/**?since=all").await;
    orders.expect("stream-open").await;
    assert_eq!(payloads(&mut orders, 2).await, ["1", "2"]);
    let mut slow = far.open("/topics/slow/**?last=5").await;
    slow.expect("stream-open").await;
    assert_eq!(payloads(&mut slow, 2).await, ["1", "2"]);

    // Published at either end: the confirmation is the hub's, and so is the id.
    let stored = far.post("/topics/orders/eu", "3").await;
    assert_eq!(stored.status, 202, "{}", stored.text());
    let event = orders.expect("message").await;
    assert_eq!((event.data.as_str(), stored.json()["id"].as_str()), ("3", Some(event.id.as_str())));
    near.publish("orders/eu", "4").await;
    let mut resumed = near.resume("/topics/orders/**", &event.id).await;
    assert_eq!(resumed.control("stream-open").await["resumed"], true);
    assert_eq!((resumed.message().await, orders.message().await), ("4".to_owned(), "4".to_owned()));

    let mut prices = far.open("/topics/prices/**").await;
    prices.expect("stream-open").await;
    let stored = far.post("/topics/prices/eur", "1.1").await;
    assert_eq!(stored.status, 202, "{}", stored.text());
    assert_eq!(prices.message().await, "1.1");
    assert_eq!(
        (last_number(&at_hub, "KV_PRICES").await, last_number(&at_leaf, "KV_PRICES").await),
        (json!(1), json!(0))
    );
    let mut values = near.open("/topics/prices/*").await;
    values.expect("stream-open").await;
    assert_eq!(values.message().await, "1.1");

    // Without the domain it is the leaf node's own.
    let own = gateway(&leaf, "").await;
    own.publish("prices/usd", "own").await;
    assert_eq!(last_number(&at_leaf, "KV_PRICES").await, json!(1));
    let mut missing = own.open("/topics/orders/eu").await;
    assert_eq!(missing.control("stream-close").await["code"], "refused");

    // Nothing is lost when the way to the hub breaks: at the leaf node, or at the hub.
    leaf.stop();
    at_hub.put("orders.eu", "5").await;
    leaf.restart();
    assert_eq!(orders.message().await, "5");
    hub.restart();
    connected(&hub).await;
    at_hub.put_once("orders.eu", "6").await;
    assert_eq!(orders.message().await, "6");
}

#[tokio::test]
async fn an_api_prefix_works_like_a_domain_and_a_wrong_domain_is_unavailable() {
    let (_hub, leaf, at_hub, _) = hub_and_leaf().await;
    at_hub.stream("ORDERS", &["orders.>"], json!({})).await;
    at_hub.put("orders.eu", "1").await;
    let far = gateway(&leaf, "broker.jetstream.prefix = \"$JS.hub.API\"").await;
    let mut orders = far.open("/topics/orders/eu?last=1").await;
    orders.expect("stream-open").await;
    assert_eq!(orders.message().await, "1");
    let lost = gateway(&leaf, "broker.jetstream.domain = \"moon\"").await;
    let mut orders = lost.open("/topics/orders/eu?last=1").await;
    assert_eq!(orders.control("stream-close").await["code"], "unavailable");
}

#[tokio::test]
async fn a_mirror_at_the_leaf_node_is_read_there_and_written_at_the_hub() {
    let (_hub, leaf, at_hub, at_leaf) = hub_and_leaf().await;
    at_hub.bucket("PRICES", json!({})).await;
    at_hub.put("$KV.PRICES.eur", "1").await;
    let mirror = json!({"name": "KV_PRICES", "external": {"api": "$JS.hub.API", "deliver": ""}});
    let config =
        json!({"max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": true, "mirror": mirror});
    at_leaf.stream("KV_PRICES", &[], config).await;
    let gateway = gateway(&leaf, "").await;
    let mut prices = gateway.open("/topics/prices/**").await;
    prices.expect("stream-open").await;
    assert_eq!(prices.message().await, "1");
    let stored = gateway.post("/topics/prices/usd", "2").await;
    assert_eq!(stored.status, 202, "{}", stored.text());
    let event = prices.expect("message").await;
    assert_eq!((event.data.as_str(), stored.json()["id"].as_str()), ("2", Some(event.id.as_str())));
    assert_eq!(last_number(&at_hub, "KV_PRICES").await, json!(2));
}

#[tokio::test]
async fn a_jetstream_of_another_account_is_read_by_the_prefix_of_its_import() {
    let accounts = "accounts {\n\
        ORDERS { jetstream: enabled, users: [{user: orders, password: pw}],\n\
          exports: [{service: \"$JS.API.>\", response_type: stream}] }\n\
        WEB { users: [{user: web, password: pw}],\n\
          imports: [{service: {account: ORDERS, subject: \"$JS.API.>\"}, to: \"from.orders.API.>\"}] }\n}";
    let server = NatsServer::jetstream_with(accounts);
    let url = |user: &str| server.url().replace("//", &format!("//{user}:pw@"));
    let options = async_nats::ConnectOptions::with_user_and_password("orders".into(), "pw".into());
    let admin = Admin { client: options.connect(server.url()).await.unwrap() };
    admin.stream("ORDERS", &["orders.>"], json!({})).await;
    admin.put("orders.eu", "1").await;
    let settings = format!("broker.url = {:?}\nbroker.jetstream.prefix = \"from.orders.API\"", url("web"));
    let gateway = Gateway::with(&format!("{settings}\n{RULES}")).await;
    let mut orders = gateway.open("/topics/orders/**?since=all").await;
    orders.expect("stream-open").await;
    assert_eq!(orders.message().await, "1");
    admin.put("orders.eu", "2").await;
    let live = orders.expect("message").await;
    assert_eq!(live.data, "2");
    admin.put("orders.eu", "3").await;
    let mut resumed = gateway.resume("/topics/orders/eu", &live.id).await;
    assert_eq!(resumed.control("stream-open").await["resumed"], true);
    assert_eq!(resumed.message().await, "3");
}

#[test]
fn the_file_of_the_document_names_the_domain() {
    let file = blocks(include_str!("../../docs/brokers.md"), "NATS with leaf nodes", "toml").remove(0);
    let config = topicgate::Config::from_toml(&file).unwrap();
    assert!(config.explain().contains("JetStream domain hub"), "{}", config.explain());
}
