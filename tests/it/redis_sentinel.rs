//! Redis Sentinel: the master is asked for by name, and after a failover the gateway is on the new one.

use std::collections::HashMap;
use std::time::Duration;

use crate::common::gateway::Gateway;
use crate::common::redis::RedisServer;
use crate::common::{LIMIT, broker_config, eventually, within};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use topicgate::internals::broker::{Broker, EVENT_CAPACITY, Event, Link};
use topicgate::internals::config;
use topicgate::internals::protocol::headers::Headers;
use topicgate::internals::protocol::source::Source;
use topicgate::internals::protocol::topic::{Filter, Topic};

/// A failover takes the sentinels some seconds.
const FAILOVER: Duration = Duration::from_secs(20);

struct Cluster {
    master: RedisServer,
    replica: RedisServer,
    sentinel: RedisServer,
}

/// A master, a replica in step with it, and a sentinel that knows both.
async fn cluster() -> Cluster {
    let master = RedisServer::start_with(&["repl-diskless-sync-delay 0"]);
    let replica = RedisServer::replica_of(&master, &[]);
    eventually("the replica is in step", async || {
        let role: redis::Value = redis::cmd("ROLE").query_async(&mut replica.connect().await).await.unwrap();
        format!("{role:?}").contains("connected")
    })
    .await;
    let sentinel = RedisServer::sentinel(&master);
    eventually("the sentinel knows that the replica is good", async || {
        let mut known = redis::cmd("SENTINEL");
        known.arg("replicas").arg("mymaster");
        let known: Vec<HashMap<String, String>> =
            known.query_async(&mut sentinel.connect().await).await.unwrap();
        known.iter().any(|replica| replica["master-link-status"] == "ok")
    })
    .await;
    Cluster { master, replica, sentinel }
}

#[tokio::test]
async fn the_channel_of_the_sentinels_is_neither_shown_nor_written_to_by_a_rule_of_everything() {
    let cluster = cluster().await;
    let rule = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n";
    for separator in [':', '/'] {
        let gateway = Gateway::with(&format!(
            "[broker]\nurl = {:?}\nsentinel = \"mymaster\"\nseparator = \"{separator}\"\n{rule}",
            cluster.sentinel.url()
        ))
        .await;
        for topic in
            ["__sentinel__:hello", "__sentinel__/hello", "%5f%5fsentinel__%3Ahello", "__redis__:invalidate"]
        {
            assert_eq!(gateway.get(&format!("/topics/{topic}")).await.status, 404, "{topic}");
            assert_eq!(gateway.get(&format!("/topics?topic=a&topic={topic}")).await.status, 404, "{topic}");
            assert_eq!(gateway.post(&format!("/topics/{topic}"), "x").await.status, 404, "{topic}");
        }
        let mut everything = gateway.open("/topics/**").await;
        everything.expect("stream-open").await;
        let mut said = redis::Client::open(cluster.master.url()).unwrap().get_async_pubsub().await.unwrap();
        said.subscribe("__sentinel__:hello").await.unwrap();
        within("the sentinel says hello", LIMIT, said.on_message().next()).await.unwrap();
        gateway.publish("marker", "x").await;
        assert_eq!(everything.message().await, "x");
    }
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, 200).unwrap()
}

fn topic(text: &str) -> Topic {
    Topic::parse(text, 200).unwrap()
}

fn stream() -> Source {
    Source::RedisStream { payload: Some("body".into()) }
}

/// A broker that asks `sentinel`, beside an address where nothing is, with one topic of each kind; and what it tells.
async fn start(sentinel: &RedisServer) -> (Broker, mpsc::Receiver<Event>) {
    let (sender, mut events) = mpsc::channel(EVENT_CAPACITY);
    let url = format!("redis://127.0.0.1:1,{}", sentinel.url());
    let config = config::Broker { sentinel: Some("mymaster".into()), ..broker_config(&url) };
    let broker = Broker::redis(&config, sender).unwrap();
    until(&mut events, |event| matches!(event, Event::Up(Link::Pubsub))).await;
    broker.subscribe(filter("news"), Source::Pubsub).await.unwrap();
    broker.subscribe(filter("orders"), stream()).await.unwrap();
    until(&mut events, |event| matches!(event, Event::Begun { .. })).await;
    (broker, events)
}

/// The events up to the one that is waited for, that one among them.
async fn until(events: &mut mpsc::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut told = Vec::new();
    let waiting = async {
        loop {
            told.push(events.recv().await.unwrap());
            if told.last().is_some_and(&wanted) {
                break;
            }
        }
    };
    within("the event that is waited for", FAILOVER, waiting).await;
    told
}

/// Publishes and stores until both are confirmed, and checks that they arrive, after a gap in each topic.
async fn assert_moved(broker: &Broker, events: &mut mpsc::Receiver<Event>, last: u64) {
    let (mut lost, mut gone, mut told) = (false, false, last);
    let confirmed = async {
        let publish = || {
            broker.publish(topic("news"), Source::Pubsub, Bytes::from_static(b"after"), Headers::default())
        };
        let store =
            || broker.publish(topic("orders"), stream(), Bytes::from_static(b"after"), Headers::default());
        while publish().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        loop {
            match store().await {
                Ok(stored) => return stored.expect("stored").number.get(),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let reading = async {
        let (mut news, mut orders) = (false, false);
        while !(news && orders) {
            match events.recv().await.unwrap() {
                Event::Lost { filters: None, .. } => lost = true,
                Event::Gone { through, .. } => {
                    assert!(through.get() > told);
                    (gone, told) = (true, through.get());
                }
                Event::Message(message) if message.stored.is_none() => {
                    assert!(lost, "a message without the gap before it");
                    news = true;
                }
                Event::Message(message) => {
                    let number = message.stored.unwrap().number.get();
                    assert!(gone && number > told, "{number} after {told}");
                    told = number;
                    orders = message.payload == "after";
                }
                Event::Up(_) | Event::Down { .. } | Event::Interrupted { .. } | Event::Resumed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        told
    };
    let (number, told) =
        within("delivery from the new master", FAILOVER, async { tokio::join!(confirmed, reading) }).await;
    assert_eq!(told, number);
}

/// Stores one and waits for it, and for the replica to have it; its number.
async fn deliver(cluster: &Cluster, broker: &Broker, events: &mut mpsc::Receiver<Event>) -> u64 {
    let number = broker
        .publish(topic("orders"), stream(), Bytes::from_static(b"before"), Headers::default())
        .await
        .unwrap()
        .expect("stored")
        .number
        .get();
    until(
        events,
        |event| matches!(event, Event::Message(message) if message.stored.unwrap().number.get() == number),
    )
    .await;
    eventually("the replica has it", async || {
        let mut length = redis::cmd("XLEN");
        length.arg("orders").query_async::<i64>(&mut cluster.replica.connect().await).await.unwrap() == 1
    })
    .await;
    number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_is_replaced_with_a_gap_and_nothing_else() {
    let mut cluster = cluster().await;
    let (broker, mut events) = start(&cluster.sentinel).await;
    let last = deliver(&cluster, &broker, &mut events).await;
    cluster.master.stop();
    assert_moved(&broker, &mut events, last).await;
    assert!(cluster.replica.channel_subscribers("news").await > 0, "on the new master");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_made_a_replica_is_left() {
    let cluster = cluster().await;
    let (broker, mut events) = start(&cluster.sentinel).await;
    let last = deliver(&cluster, &broker, &mut events).await;
    let mut failover = redis::cmd("SENTINEL");
    failover.arg("failover").arg("mymaster");
    failover.exec_async(&mut cluster.sentinel.connect().await).await.unwrap();
    until(&mut events, |event| matches!(event, Event::Down { link: Link::Stored, .. })).await;
    eventually("on the new master", async || cluster.replica.channel_subscribers("news").await > 0).await;
    assert_eq!(deliver_after_gap(&broker, &mut events, last).await, 1);
    assert_eq!(cluster.master.channel_subscribers("news").await, 0);
}

/// Stores until it is confirmed, and waits for it; the gaps before it.
async fn deliver_after_gap(broker: &Broker, events: &mut mpsc::Receiver<Event>, last: u64) -> usize {
    let number = loop {
        let stored =
            broker.publish(topic("orders"), stream(), Bytes::from_static(b"after"), Headers::default()).await;
        match stored {
            Ok(stored) => break stored.expect("stored").number.get(),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(number > last);
    let is_it = |event: &Event| matches!(event, Event::Message(message) if message.stored.is_some_and(|stored| stored.number.get() == number));
    let told = until(events, is_it).await;
    told.iter().filter(|event| matches!(event, Event::Gone { .. })).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_name_that_no_sentinel_knows_is_the_reported_reason() {
    let cluster = cluster().await;
    let (sender, mut events) = mpsc::channel(EVENT_CAPACITY);
    let config = config::Broker { sentinel: Some("other".into()), ..broker_config(&cluster.sentinel.url()) };
    let _broker = Broker::redis(&config, sender).unwrap();
    let told = until(&mut events, |event| matches!(event, Event::Down { .. })).await;
    assert!(
        matches!(told.last(), Some(Event::Down { why, .. }) if why.contains("broker.sentinel")),
        "{told:?}"
    );
}
