//! A NATS cluster of three nodes: one is killed, the leader of a stream moves. Streams of JetStream continue without a gap;
//! plain publish/subscribe has a gap where messages may be missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::gateway::Gateway;
use crate::common::jetstream::{Admin, Kept, filter, seq, stream};
use crate::common::nats_cluster::NatsCluster;
use crate::common::{LIMIT, found, within};
use serde_json::json;
use topicgate::internals::broker::BrokerError;
use topicgate::internals::protocol::seek::{Seek, SeekResult};

/// Stores numbers until it is stopped, each until the stream has confirmed it; under its own id, so that one that is
/// sent again is not stored again.
fn numbers(admin: Admin, going: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let mut number = 0;
        loop {
            number += 1;
            let stored = admin.put_once("orders.eu", &number.to_string()).await;
            if !going.load(Ordering::Relaxed) {
                return stored;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_continues_without_a_gap_whichever_node_is_killed_or_leads() {
    let mut cluster = NatsCluster::start().await;
    let admin = cluster.admin().await;
    admin.stream("ORDERS", &["orders.>"], json!({"num_replicas": 3})).await;
    let mut kept = Kept::connect(&cluster.url());
    let (_, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    let going = Arc::new(AtomicBool::new(true));
    let writer = numbers(admin.clone(), going.clone());
    let reader = tokio::spawn(async move {
        let mut told = Vec::new();
        loop {
            let message = kept.message().await;
            told.push((
                message.stored.unwrap().number.get(),
                String::from_utf8(message.payload.to_vec()).unwrap(),
            ));
            if message.payload == "end" {
                return (kept, told);
            }
        }
    });
    for round in 0..4 {
        let leader = cluster.leader(&admin, "ORDERS").await;
        if round % 2 == 0 {
            admin.ask("STREAM.LEADER.STEPDOWN.ORDERS", json!({})).await;
            tokio::time::sleep(Duration::from_millis(500)).await; // numbers are stored in every state of the cluster
        } else {
            let victim = if round == 1 { leader } else { cluster.of_topicgate().unwrap() };
            cluster.nodes[victim].stop();
            cluster.leader(&admin, "ORDERS").await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.nodes[victim].restart();
        }
    }
    going.store(false, Ordering::Relaxed);
    writer.await.unwrap();
    let last = admin.put_until_stored("orders.end", "end").await;
    let (kept, told) = within("the end", LIMIT * 2, reader).await.unwrap();
    // Every number of the stream, once and in order, none as a gap; and every number of the writer.
    let all: Vec<u64> = told.iter().map(|(number, _)| *number).collect();
    assert_eq!(all, (head + 1..=last).collect::<Vec<_>>());
    let payloads: Vec<&str> = told.iter().map(|(_, payload)| payload.as_str()).collect();
    let written: Vec<String> = (1..payloads.len()).map(|number| number.to_string()).collect();
    assert_eq!(payloads[..payloads.len() - 1], written);
    // The past is the same, whichever replica tells it.
    for _ in 0..10 {
        let past = kept.fetch_all("orders/**", &stream("ORDERS"), 0, last).await;
        assert_eq!(past.numbers(), all);
        assert_eq!(past.gone, []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_configuration_does_not_name_takes_over() {
    let mut cluster = NatsCluster::start().await;
    let admin = Admin::connect(&cluster.nodes[1].url()).await;
    admin.stream("ORDERS", &["orders.>"], json!({"num_replicas": 3})).await;
    let mut kept = Kept::connect(&cluster.nodes[0].url());
    let (_, head) = kept.follow("orders/**", &stream("ORDERS")).await;
    cluster.nodes[0].stop();
    let last = admin.put_until_stored("orders.eu", "x").await;
    assert_eq!(kept.read_until(head, last).await.gone, []);
    found("the past can be read", LIMIT, async || {
        kept.broker.fetch(filter("orders/**"), stream("ORDERS"), seq(head), seq(last)).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_a_replica_does_not_have_yet_are_not_missing() {
    let cluster = NatsCluster::start().await;
    let admin = cluster.admin().await;
    admin.stream("ORDERS", &["orders.>"], json!({"num_replicas": 3})).await;
    let leader = cluster.leader(&admin, "ORDERS").await;
    let admin = Admin::connect(&cluster.nodes[leader].url()).await;
    // Connected to a node that has a replica, which answers itself.
    let lagging = &cluster.nodes[(leader + 1) % 3];
    let kept = Kept::connect(&lagging.url());
    kept.locate("orders/**", &stream("ORDERS"), Seek::Oldest).await;
    let mut last = 0;
    for _ in 0..3 {
        lagging.pause();
        last = admin.put_many("orders.eu", last..last + 20_000, "").await;
        // They are there when it wakes, before it has caught up.
        let looks: Vec<_> = (0..12)
            .map(|_| {
                let broker = kept.broker.clone();
                let after = last - 100;
                tokio::spawn(async move {
                    broker.fetch(filter("orders/**"), stream("ORDERS"), seq(after), seq(last)).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await; // they are under way, unanswered
        lagging.resume();
        for look in looks {
            match within("an answer", LIMIT, look).await.unwrap() {
                Ok(part) => {
                    assert_eq!(part.gone, None);
                    let numbers: Vec<_> =
                        part.messages.iter().map(|message| message.stored.unwrap().number.get()).collect();
                    assert_eq!(numbers, (last - 99..=part.through.get()).collect::<Vec<_>>());
                }
                Err(BrokerError::Away(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let located = kept.locate("orders/**", &stream("ORDERS"), Seek::After(seq(last))).await;
        assert_eq!(located, SeekResult::At(seq(last)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_subscribe_has_a_gap_where_a_node_was_killed() {
    let mut cluster = NatsCluster::start().await;
    // The writer's node stays, so that the writer itself loses nothing.
    let (writers, url) = (cluster.nodes[0].url(), [cluster.nodes[1].url(), cluster.nodes[2].url()].join(","));
    let rules = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\n";
    let gateway = Gateway::with(&format!("broker.url = {url:?}\n{rules}")).await;
    let mut reader = gateway.open("/topics/numbers").await;
    reader.expect("stream-open").await;
    let going = Arc::new(AtomicBool::new(true));
    let writer = tokio::spawn({
        let (client, going) = (Admin::connect(&writers).await.client, going.clone());
        async move {
            let mut number = 0u64;
            while going.load(Ordering::Relaxed) {
                number += 1;
                client.publish("numbers", number.to_string().into()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let (mut last, mut gap, mut gaps): (Option<u64>, bool, usize) = (None, false, 0);
    let mut kills = 0;
    while kills < 4 || gaps < 1 || last.is_none() || gap {
        let event = reader.next().await.unwrap();
        match event.event.as_str() {
            "message" => {
                let number: u64 = event.data.parse().unwrap();
                let expected = last.map_or(number, |last| last + 1);
                assert!(
                    number == expected || gap && number > expected,
                    "{number} after {last:?}, gap: {gap}"
                );
                (last, gap) = (Some(number), false);
                if number.is_multiple_of(500) && kills < 4 {
                    let victim = cluster.of_topicgate().unwrap();
                    cluster.nodes[victim].stop();
                    cluster.nodes[victim].restart();
                    kills += 1;
                }
            }
            "stream-gap" => {
                gap = true;
                gaps += 1;
            }
            other => panic!("{other}"),
        }
    }
    going.store(false, Ordering::Relaxed);
    writer.await.unwrap();
}
