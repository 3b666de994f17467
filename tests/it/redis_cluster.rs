//! Redis Cluster: every topic is read and written where its slot is. While slots move and masters join and leave, stored
//! topics continue without a gap as long as no master died, and live topics have a gap where messages may be missing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::redis::RedisServer;
use crate::common::redis_cluster::{ANSWER, RedisCluster, Writer, key_of};
use crate::common::{LIMIT, broker_config, eventually, within};
use eventsource_stream::Event as Told;
use futures_util::future::join_all;
use redis::{AsyncConnectionConfig, Client, PushInfo, PushKind, Value};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use topicgate::internals::broker::{Broker, EVENT_CAPACITY, Event};
use topicgate::internals::config;

/// Configuration for a gateway on these nodes: what is below `kept` is streams, below `live` sharded
/// publish/subscribe, below `plain` the classic kind. `more` is laid over it.
fn toml_with(url: &str, more: &str) -> String {
    let rule = |name: &str, source: &str| {
        format!("[[topics]]\nmatch = \"{name}/**\"\nread = \"anyone\"\npublish = \"anyone\"\n{source}\n")
    };
    format!(
        "broker.url = {url:?}\nbroker.cluster = true\n{more}\n{}{}{}",
        rule("kept", "source = \"redis-stream\"\npayload = { field = \"n\" }"),
        rule("live", "source = \"sharded-pubsub\""),
        rule("plain", "")
    )
}

fn toml(cluster: &RedisCluster) -> String {
    toml_with(&cluster.url(), "")
}

/// The path of a stream of these topics.
fn path(topics: &[String]) -> String {
    let mut query = form_urlencoded::Serializer::for_suffix("/topics?".to_owned(), "/topics?".len());
    query.append_pair("format", "cloudevents");
    topics.iter().for_each(|topic| _ = query.append_pair("topic", topic));
    query.finish()
}

/// A stream of these topics that is open.
async fn open(gateway: &Gateway, topics: &[String]) -> Reader {
    let mut reader = gateway.open(&path(topics)).await;
    reader.expect("stream-open").await;
    reader
}

/// The topic and the payload of an event, which must be a message.
fn message(event: &Told) -> (String, String) {
    assert_eq!(event.event, "message", "{event:?}");
    let envelope: serde_json::Value = serde_json::from_str(&event.data).unwrap();
    let data = match &envelope["data"] {
        serde_json::Value::String(text) => text.clone(),
        json => json.to_string(),
    };
    (envelope["subject"].as_str().unwrap().to_owned(), data)
}

async fn next_message(reader: &mut Reader) -> (String, String) {
    message(&reader.next().await.expect("a message"))
}

/// Waits for the gap of a topic that the broker is the reason of.
async fn expect_gap(reader: &mut Reader, topic: &str) {
    let gap = reader.control("stream-gap").await;
    assert_eq!((&gap["topic"], &gap["reason"]), (&topic.into(), &"broker".into()));
}

/// Skips gaps.
async fn message_after_gaps(reader: &mut Reader) -> (String, String) {
    loop {
        let event = reader.next().await.expect("a message");
        if event.event != "stream-gap" {
            return message(&event);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_every_master_are_read_live_and_resume_exactly_at_another_gateway() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateways = [Gateway::with(&toml(&cluster)).await, Gateway::with(&toml(&cluster)).await];
    let topics = cluster.topic_each("kept/").await;
    let mut together = open(&gateways[0], &topics).await;
    let mut alone = open(&gateways[0], &topics[..1]).await;
    let (mut id, mut id_alone) = (together.last_id.clone(), alone.last_id.clone());
    let publishing = tokio::spawn({
        let (topics, mut writer) = (topics.clone(), cluster.writer());
        async move {
            for number in 0..300 {
                for topic in &topics {
                    writer.xadd(topic, number).await;
                }
                sleep(Duration::from_millis(2)).await; // they come while readers come and go
            }
        }
    });
    let mut next: HashMap<String, u64> = HashMap::new();
    for turn in 0.. {
        for _ in 0..fastrand::usize(1..60) {
            if next.values().sum::<u64>() == 900 {
                break;
            }
            let (topic, data) = next_message(&mut together).await;
            let next = next.entry(topic).or_default();
            assert_eq!(data, next.to_string());
            *next += 1;
        }
        id.clone_from(&together.last_id);
        if next.values().sum::<u64>() == 900 {
            break;
        }
        together = gateways[turn % 2].resume(&path(&topics), &id).await;
        assert_eq!(together.control("stream-open").await["resumed"], true);
    }
    for number in 0..300 {
        if number % 50 == 0 {
            alone = gateways[number / 50 % 2].resume(&path(&topics[..1]), &id_alone).await;
            alone.expect("stream-open").await;
        }
        assert_eq!(next_message(&mut alone).await, (topics[0].clone(), number.to_string()));
        id_alone.clone_from(&alone.last_id);
    }
    publishing.await.unwrap();
    let mut late = gateways[1].open(&format!("{}&since=all", path(&topics))).await;
    late.expect("stream-open").await;
    for _ in 0..900 {
        next_message(&mut late).await;
    }
    let answer = gateways[0].post(&format!("/topics/{}", topics[2]), "x").await.json();
    assert_eq!(next_message(&mut late).await, (topics[2].clone(), "x".into()));
    let mut only = gateways[1].open(&format!("{}&last=1", path(&topics[2..]))).await;
    only.expect("stream-open").await;
    next_message(&mut only).await;
    assert_eq!(answer["id"], only.last_id, "{answer}");
}

/// The messages that another client receives on a channel, as long as its connection lives.
async fn listen(
    cluster: &RedisCluster,
    node: usize,
    topic: &str,
) -> (redis::aio::MultiplexedConnection, mpsc::UnboundedReceiver<PushInfo>) {
    let (sender, told) = mpsc::unbounded_channel();
    let client = Client::open(format!("{}?protocol=resp3", cluster.nodes[node].url())).unwrap();
    let settings = AsyncConnectionConfig::new().set_push_sender(sender);
    let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await.unwrap();
    redis::cmd("SSUBSCRIBE").arg(key_of(topic)).exec_async(&mut connection).await.unwrap();
    (connection, told)
}

async fn next_push(told: &mut mpsc::UnboundedReceiver<PushInfo>) -> String {
    let message = async {
        loop {
            let push = told.recv().await.unwrap();
            if push.kind == PushKind::SMessage {
                break push.data;
            }
        }
    };
    match &within("a message of the shard", LIMIT, message).await[..] {
        [_, Value::BulkString(payload)] => String::from_utf8(payload.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_published_within_a_shard_arrive_and_no_others() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let topics = cluster.topic_each("live/").await;
    let mut together = open(&gateway, &topics).await;
    let mut writer = cluster.writer();
    for (node, topic) in topics.iter().enumerate() {
        let mut alone = open(&gateway, std::slice::from_ref(topic)).await;
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(key_of(topic)).arg("classic");
        publish.exec_async(&mut cluster.connect(node).await).await.unwrap();
        writer.spublish(topic, "sharded").await;
        let (_connection, mut told) = listen(&cluster, node, topic).await;
        gateway.publish(topic, "posted").await;
        assert_eq!(next_push(&mut told).await, "posted");
        for reader in [&mut together, &mut alone] {
            assert_eq!(next_message(reader).await, (topic.clone(), "sharded".into()));
            assert_eq!(next_message(reader).await, (topic.clone(), "posted".into()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_published_classically_at_any_node_arrive() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let mut topic = open(&gateway, &["plain/news/eu".into()]).await;
    let mut pattern = open(&gateway, &["plain/*/eu".into()]).await;
    let expected = ("plain/news/eu".to_owned(), "hello".to_owned());
    for node in 0..3 {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg("plain:news:eu").arg("hello");
        publish.exec_async(&mut cluster.connect(node).await).await.unwrap();
        assert_eq!(next_message(&mut topic).await, expected);
        assert_eq!(next_message(&mut pattern).await, expected);
    }
    gateway.publish("plain/news/eu", "hello").await;
    assert_eq!(next_message(&mut topic).await, expected);
    assert_eq!(next_message(&mut pattern).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_is_a_gap_in_its_topics_and_the_others_are_delivered_meanwhile() {
    let mut cluster = RedisCluster::start(3, 1).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let (kept, live) = (cluster.topic_each("kept/").await, cluster.topic_each("live/").await);
    let mut writer = cluster.writer();
    let mut readers = Vec::new();
    for topic in [&kept, &live].into_iter().flatten() {
        readers.push(open(&gateway, std::slice::from_ref(topic)).await);
    }
    for master in 0..3 {
        deliver(&mut writer, &kept[master], &mut readers[master], "before").await;
        deliver(&mut writer, &live[master], &mut readers[3 + master], "before").await;
    }
    let replica = cluster.replica_of(0).await;
    cluster.in_step(0, replica).await;
    cluster.nodes[replica].pause(); // it takes over when the test says so
    cluster.nodes[0].stop();
    // Topics of the other masters are served. Classic publish/subscribe may have to find another node first.
    eventually("the broker is down", async || gateway.metric("topicgate_upstream_up").await == 0.0).await;
    eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
    for master in 1..3 {
        deliver(&mut writer, &kept[master], &mut readers[master], "meanwhile").await;
        deliver(&mut writer, &live[master], &mut readers[3 + master], "meanwhile").await;
    }
    assert_eq!(gateway.metric("topicgate_upstream_up").await, 0.0, "the master is still away");
    cluster.nodes[replica].resume();
    cluster.promoted(replica).await;
    // Once there is the gap, the topic is read where it is now.
    for (topic, reader) in [(&kept[0], 0), (&live[0], 3)] {
        expect_gap(&mut readers[reader], topic).await;
        deliver(&mut writer, topic, &mut readers[reader], "after").await;
    }
    eventually("the broker is up", async || gateway.metric("topicgate_upstream_up").await == 1.0).await;
    for master in 1..3 {
        deliver(&mut writer, &kept[master], &mut readers[master], "after").await;
        deliver(&mut writer, &live[master], &mut readers[3 + master], "after").await;
    }
    let answer = gateway.post(&format!("/topics/{}", kept[0]), "posted").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(next_message(&mut readers[0]).await.1, "posted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_hangs_is_replaced_and_does_no_harm_when_it_wakes() {
    let cluster = RedisCluster::start(3, 1).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let topics = [cluster.topics("kept/", 0, 1).await, cluster.topics("live/", 0, 1).await].concat();
    let asked = [cluster.topics("kept/x", 0, 1).await, cluster.topics("live/x", 0, 1).await].concat();
    let others = [cluster.topics("kept/", 1, 1).await, cluster.topics("live/", 1, 1).await].concat();
    let mut writer = cluster.writer();
    let mut readers = Vec::new();
    for topic in &topics {
        let mut reader = open(&gateway, std::slice::from_ref(topic)).await;
        deliver(&mut writer, topic, &mut reader, "before").await;
        readers.push(reader);
    }
    let replica = cluster.replica_of(0).await;
    cluster.in_step(0, replica).await;
    cluster.shun(Some(0));
    cluster.nodes[0].pause();
    // Readers of other topics wait for its answer while it is replaced.
    let opening: Vec<_> = asked
        .iter()
        .map(|topic| {
            let (address, path) = (gateway.address, path(std::slice::from_ref(topic)));
            tokio::spawn(async move { Reader::open(address, &path, &[]).await })
        })
        .collect();
    cluster.promoted(replica).await;
    for topic in &others {
        let mut reader = open(&gateway, std::slice::from_ref(topic)).await;
        deliver(&mut writer, topic, &mut reader, "elsewhere").await;
    }
    for (topic, reader) in topics.iter().zip(&mut readers) {
        expect_gap(reader, topic).await;
        deliver(&mut writer, topic, reader, "replaced").await;
    }
    for opening in opening {
        within("an answer", LIMIT, opening).await.unwrap();
    }
    cluster.nodes[0].resume();
    cluster.whole().await;
    cluster.shun(None);
    eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
    for (topic, reader) in topics.iter().zip(&mut readers) {
        deliver(&mut writer, topic, reader, "woken").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_the_configuration_does_not_name_are_found_and_the_named_one_is_not_needed() {
    let mut cluster = RedisCluster::start(3, 1).await;
    let gateway = Gateway::with(&toml_with(&cluster.nodes[0].url(), "")).await;
    let (kept, live) = (cluster.topic_each("kept/").await, cluster.topic_each("live/").await);
    let mut writer = cluster.writer();
    for topic in kept.iter().chain(&live) {
        let mut reader = open(&gateway, std::slice::from_ref(topic)).await;
        deliver(&mut writer, topic, &mut reader, "before").await;
    }
    let replica = cluster.replica_of(0).await;
    cluster.in_step(0, replica).await;
    cluster.nodes[0].stop();
    cluster.promoted(replica).await;
    eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
    for topic in kept.iter().chain(&live) {
        let mut reader = open(&gateway, std::slice::from_ref(topic)).await;
        send(&mut writer, topic, "after").await;
        assert_eq!(message_after_gaps(&mut reader).await.1, "after");
    }
}

/// Adds or publishes one, whichever the topic is for, and insists that its reader receives it next.
async fn deliver(writer: &mut Writer, topic: &str, reader: &mut Reader, payload: &str) {
    send(writer, topic, payload).await;
    assert_eq!(next_message(reader).await, (topic.to_owned(), payload.to_owned()));
}

async fn send(writer: &mut Writer, topic: &str, payload: &str) {
    if topic.starts_with("kept/") {
        writer.xadd(topic, payload).await;
    } else {
        writer.spublish(topic, payload).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classic_publish_subscribe_goes_on_at_another_node() {
    let mut cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let mut reader = open(&gateway, &["plain/news".into()]).await;
    for node in 0..3 {
        if cluster.nodes[node].channel_subscribers("plain:news").await == 0 {
            continue;
        }
        cluster.nodes[node].stop();
        expect_gap(&mut reader, "plain/news").await;
        gateway.publish("plain/news", "after").await;
        assert_eq!(next_message(&mut reader).await.1, "after");
        return;
    }
    panic!("no node has the subscription");
}

/// A node that is taken out goes on running and answering, and hears nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classic_publish_subscribe_leaves_a_node_that_is_taken_out_of_the_cluster() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let mut reader = open(&gateway, &["plain/news".into()]).await;
    let mut out = 0;
    while cluster.nodes[out].channel_subscribers("plain:news").await == 0 {
        out += 1;
    }
    let others = [(out + 1) % 3, (out + 2) % 3];
    cluster.take_out(out, others).await;
    expect_gap(&mut reader, "plain/news").await;
    let mut publish = redis::cmd("PUBLISH");
    publish.arg("plain:news").arg("after");
    publish.exec_async(&mut cluster.connect(others[1]).await).await.unwrap();
    assert_eq!(next_message(&mut reader).await.1, "after");
    assert_eq!(cluster.nodes[out].channel_subscribers("plain:news").await, 0);
}

/// One number after the other, for as long as it lives.
struct Numbers {
    next: Arc<AtomicU64>,
    writing: JoinHandle<()>,
}

impl Numbers {
    fn write(mut writer: Writer, topic: &str) -> Self {
        let (next, topic) = (Arc::new(AtomicU64::new(0)), topic.to_owned());
        let counter = next.clone();
        let writing = tokio::spawn(async move {
            loop {
                send(&mut writer, &topic, &counter.load(Ordering::Relaxed).to_string()).await;
                counter.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(2)).await; // a state of the cluster sees some, and not thousands
            }
        });
        Numbers { next, writing }
    }

    fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Waits until some more are written.
    async fn go_on(&self) {
        let goal = self.next() + 20;
        eventually("more numbers", async || self.next() >= goal).await;
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

/// Reads numbers from 0 until `last`, which is known later. Each must follow the one before, or a gap stands
/// between them. Returns how many gaps there were.
fn read_numbers(mut reader: Reader, last: Arc<AtomicU64>) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let (mut next, mut gap, mut gaps) = (0, false, 0);
        while next <= last.load(Ordering::Relaxed) {
            let event = reader.next().await.unwrap();
            if event.event == "stream-gap" {
                (gap, gaps) = (true, gaps + 1);
                continue;
            }
            let (topic, data) = message(&event);
            let number: u64 = data.parse().unwrap();
            assert!(
                number == next || gap && number > next,
                "{topic}: {number} instead of {next}, gap: {gap}"
            );
            (next, gap) = (number + 1, false);
        }
        gaps
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_moved_is_a_gap_only_in_live_topics() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    // The text in braces determines the slot. The last two topics stay, one on the same master and one elsewhere.
    let moved = ["kept/{a}/1", "kept/{a}/2", "live/{a}/1", "live/{a}/2"].map(str::to_owned);
    let home = cluster.owner("{a}").await;
    let mut stay = cluster.topics("live/x", home, 1).await;
    stay.extend(cluster.topics("live/x", (home + 1) % 3, 1).await);
    stay.extend(cluster.topics("kept/x", home, 1).await);
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let mut all = Vec::new();
    for topic in moved.iter().chain(&stay) {
        let reader = open(&gateway, std::slice::from_ref(topic)).await;
        all.push((topic, Numbers::write(cluster.writer(), topic), read_numbers(reader, last.clone())));
    }
    for round in 1..=4 {
        for (_, numbers, _) in &all {
            numbers.go_on().await;
        }
        let moving = cluster.begin_move("{a}", (home + round) % 3).await;
        all[0].1.go_on().await;
        cluster.carry_keys(&moving).await;
        all[0].1.go_on().await;
        cluster.finish_move(moving).await;
    }
    for (_, numbers, _) in &all {
        numbers.go_on().await;
    }
    last.store(all.iter().map(|(_, numbers, _)| numbers.next()).max().unwrap(), Ordering::Relaxed);
    for (topic, _numbers, reading) in all {
        let gaps = within("the last number", LIMIT, reading).await.unwrap();
        let expected = match topic.as_str() {
            _ if topic.starts_with("live/{a}") => 1..=8,
            // The server's word that a channel has moved may be taken for an answer: then the connection is created
            // again.
            _ if topic.starts_with("live/") => 0..=4,
            _ => 0..=0,
        };
        assert!(expected.contains(&gaps), "{topic}: {gaps} gaps");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_are_trimmed_while_their_slot_is_migrating_are_a_gap_in_their_place() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let topic = cluster.topics("kept/", 0, 1).await.remove(0);
    let mut reader = open(&gateway, std::slice::from_ref(&topic)).await;
    let mut writer = cluster.writer();
    for number in 0..5 {
        deliver(&mut writer, &topic, &mut reader, &number.to_string()).await;
    }
    let key = key_of(&topic);
    let moving = cluster.begin_move(&key, 1).await;
    cluster.carry_keys(&moving).await;
    for number in 5..100 {
        let mut command = redis::cmd("XADD");
        command.arg(&key).arg("MAXLEN").arg(10).arg("*").arg("n").arg(number);
        writer.send::<String>(&key, &command).await;
    }
    cluster.finish_move(moving).await;
    expect_gap(&mut reader, &topic).await;
    for number in 90..100 {
        assert_eq!(next_message(&mut reader).await.1, number.to_string());
    }
    deliver(&mut writer, &topic, &mut reader, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_down_completely_has_no_gap_in_topics_that_it_keeps_in_files() {
    let mut cluster = RedisCluster::start_with(3, 0, &["appendonly yes", "appendfsync always"]).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let topics = [cluster.topic_each("kept/").await, cluster.topic_each("live/").await].concat();
    let mut writer = cluster.writer();
    let mut readers = Vec::new();
    for topic in &topics {
        let mut reader = open(&gateway, std::slice::from_ref(topic)).await;
        deliver(&mut writer, topic, &mut reader, "before").await;
        readers.push(reader);
    }
    cluster.nodes.iter_mut().for_each(RedisServer::stop);
    eventually("the gateway is not ready", async || gateway.ready().await.is_err()).await;
    cluster.nodes.iter_mut().for_each(RedisServer::restart);
    cluster.whole().await;
    eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
    for (topic, reader) in topics.iter().zip(&mut readers) {
        if topic.starts_with("live/") {
            expect_gap(reader, topic).await;
        }
        deliver(&mut writer, topic, reader, "after").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_there_yet_is_read_wherever_it_appears() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    let mut writer = cluster.writer();
    for topic in cluster.topics("kept/", 0, 3).await {
        let mut reader = open(&gateway, std::slice::from_ref(&topic)).await;
        cluster.move_slot(&key_of(&topic), 1).await;
        deliver(&mut writer, &topic, &mut reader, "1").await;
        cluster.move_slot(&key_of(&topic), 2).await;
        deliver(&mut writer, &topic, &mut reader, "2").await;
    }
    // As long as the slot is not handed over, the old master sends the writer to the new one.
    for topic in cluster.topics("kept/late", 0, 3).await {
        let mut reader = open(&gateway, std::slice::from_ref(&topic)).await;
        let moving = cluster.begin_move(&key_of(&topic), 1).await;
        writer.xadd(&topic, "1").await;
        cluster.finish_move(moving).await;
        assert_eq!(next_message(&mut reader).await, (topic.clone(), "1".into()));
        deliver(&mut writer, &topic, &mut reader, "2").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_not_there_yet_is_waited_for() {
    let mut cluster = RedisCluster::absent(3, 0, &[]);
    let gateway = Gateway::unready(&toml(&cluster)).await;
    let why = async || gateway.ready().await.unwrap_err();
    eventually("it has tried", async || why().await.contains("cannot connect")).await;
    cluster.launch().await;
    eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
    let mut writer = cluster.writer();
    for topic in [cluster.topic_each("kept/").await, cluster.topic_each("live/").await].concat() {
        let mut reader = open(&gateway, std::slice::from_ref(&topic)).await;
        deliver(&mut writer, &topic, &mut reader, "1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_no_cluster_is_the_reported_reason() {
    let server = RedisServer::start();
    let (sender, mut events) = mpsc::channel(EVENT_CAPACITY);
    let config = config::Broker { cluster: true, ..broker_config(&server.url()) };
    let _broker = Broker::redis(&config, sender).unwrap();
    let told = async {
        loop {
            match events.recv().await.unwrap() {
                Event::Down { why, .. } if why.contains("broker.cluster") => break,
                Event::Down { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    within("the reason", LIMIT, told).await;
    let gateway = Gateway::unready(&toml_with(&server.url(), "")).await;
    let why = async || gateway.ready().await.unwrap_err();
    eventually("it is why the gateway is not ready", async || why().await.contains("broker.cluster")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_of_sharded_topics_are_refused_with_the_reason() {
    let cluster = RedisCluster::start(3, 0).await;
    let gateway = Gateway::with(&toml(&cluster)).await;
    for (pattern, accept) in [("live/*", "text/event-stream"), ("live/eu/**", "*/*"), ("kept/*", "*/*")] {
        let answer = gateway.request("GET", &format!("/topics/{pattern}"), &[("accept", accept)]).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(pattern) && detail.contains("pattern"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_need_few_connections() {
    let cluster = RedisCluster::start(3, 0).await;
    let before = join_all((0..3).map(|node| cluster.clients(node))).await;
    let limits = "limits.opens_per_second = 10000\nlimits.streams_per_address = 2000";
    let gateway = Gateway::with(&toml_with(&cluster.url(), limits)).await;
    let (mut kept, mut live) = (Vec::new(), Vec::new());
    for node in 0..3 {
        kept.extend(cluster.topics("kept/", node, 334).await);
        live.extend(cluster.topics("live/", node, 100).await);
    }
    let mut readers = Vec::new();
    for some in kept.chunks(50) {
        let opening = some.iter().map(|topic| open(&gateway, std::slice::from_ref(topic)));
        readers.extend(join_all(opening).await);
    }
    for some in live.chunks(100) {
        readers.push(open(&gateway, some).await);
    }
    let after = join_all((0..3).map(|node| cluster.clients(node))).await;
    for (before, after) in before.into_iter().zip(after) {
        assert!(
            after <= before + 8,
            "{after} connections to a node, of which {before} are not the gateway's"
        );
    }
    let mut writer = cluster.writer();
    for topic in kept.iter().chain(&live) {
        send(&mut writer, topic, topic).await;
    }
    for (topic, reader) in kept.iter().zip(&mut readers) {
        assert_eq!(next_message(reader).await, (topic.clone(), topic.clone()));
    }
    for (some, reader) in live.chunks(100).zip(&mut readers[kept.len()..]) {
        let mut told = Vec::new();
        for _ in some {
            let (topic, data) = next_message(reader).await;
            assert_eq!(topic, data);
            told.push(topic);
        }
        told.sort();
        let mut some = some.to_vec();
        some.sort();
        assert_eq!(told, some);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_client_tracking_gets_everything() {
    let user = "user gate on >secret ~* &* +@all -client|tracking";
    let cluster = RedisCluster::start_with(3, 0, &[user]).await;
    let login = "broker.user = \"gate\"\nbroker.password = \"secret\"";
    let gateway = Gateway::with(&toml_with(&cluster.url(), login)).await;
    everything_is_delivered(&cluster, &gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_a_password_is_read_and_written() {
    let cluster = RedisCluster::start_with(3, 1, &["requirepass hush", "masterauth hush"]).await;
    let gateway = Gateway::with(&toml_with(&cluster.url(), "broker.password = \"hush\"")).await;
    everything_is_delivered(&cluster, &gateway).await;
    cluster.fail_over(cluster.replica_of(0).await).await;
    eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
    let mut reader = open(&gateway, &["plain/news".into()]).await;
    gateway.publish("plain/news", "1").await;
    assert_eq!(message_after_gaps(&mut reader).await.1, "1");
}

/// Of each kind and each master, also once its slot was moved.
async fn everything_is_delivered(cluster: &RedisCluster, gateway: &Gateway) {
    let mut writer = cluster.writer();
    for topic in [cluster.topic_each("kept/").await, cluster.topic_each("live/").await].concat() {
        let mut reader = open(gateway, std::slice::from_ref(&topic)).await;
        for number in 0..10 {
            deliver(&mut writer, &topic, &mut reader, &number.to_string()).await;
        }
        let to = (cluster.owner(&key_of(&topic)).await + 1) % 3;
        cluster.move_slot(&key_of(&topic), to).await;
        if topic.starts_with("live/") {
            expect_gap(&mut reader, &topic).await;
        }
        deliver(&mut writer, &topic, &mut reader, "moved").await;
        gateway.publish(&topic, "posted").await;
        assert_eq!(next_message(&mut reader).await, (topic, "posted".into()));
    }
}

/// Numbers that were published, or were not, or will be; or that went over the bus of the cluster.
type Doubtful = Arc<Mutex<HashSet<(String, u64)>>>;

/// Writes numbers until the end, each until it is there or may be there.
async fn write_until_end(mut writer: Writer, topic: String, next: Arc<AtomicU64>, doubtful: Doubtful) {
    let key = key_of(&topic);
    loop {
        let (number, mut is_doubtful) = (next.load(Ordering::Relaxed), false);
        if topic.starts_with("kept/") {
            // The number is its id too: one whose answer was lost is not added twice. A gap fits between two.
            let mut command = redis::cmd("XADD");
            command.arg(&key).arg(format!("{}-0", 1_700_000_000_000 + number)).arg("n").arg(number);
            match writer.try_send::<String>(&key, &command).await {
                Err(why) if !why.to_string().contains("equal or smaller") => {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                }
                _ => {}
            }
        } else {
            match writer.try_spublish(&topic, number).await {
                Ok(true) => {}
                // Sent again, it might come twice.
                Err(why) if why.is_io_error() => is_doubtful = true,
                Ok(false) => is_doubtful = true,
                Err(_) => {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                }
            }
            if is_doubtful {
                doubtful.lock().unwrap().insert((topic.clone(), number));
            }
        }
        next.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(3)).await;
    }
}

/// The state of a reader for one topic.
#[derive(Debug, Clone, Copy)]
struct Seek {
    next: u64,
    /// There was a gap since the last number.
    told: bool,
    /// After that gap, held messages are sent again.
    rewound: bool,
    /// The next number when the last gap came.
    gap_at: u64,
}

/// For this many numbers after a gap, some earlier ones may come: an old master hands to the new one what it was given,
/// and the bus between them takes its time.
const LATE: u64 = 100;

/// One reader of several topics through all of it, which checks each event. It ends when it has seen the last
/// number of each, which is known later. A restless one is cut now and then and comes back at any of the
/// gateways.
async fn read_all(
    gateways: [std::net::SocketAddr; 2],
    topics: Vec<String>,
    is_restless: bool,
    last: Arc<AtomicU64>,
    doubtful: Doubtful,
    begin: Instant,
) {
    let path = path(&topics);
    let somewhere = Seek { next: 0, told: true, rewound: true, gap_at: 0 };
    let mut places: HashMap<String, Seek> = topics.into_iter().map(|topic| (topic, somewhere)).collect();
    let (mut last_id, mut recent) = (String::new(), VecDeque::new());
    loop {
        let gateway = gateways[if is_restless { fastrand::usize(..2) } else { 0 }];
        let headers: &[(&str, &str)] = &[("last-event-id", &last_id)];
        let headers = if last_id.is_empty() { &[] } else { headers };
        let mut reader = Reader::open(gateway, &path, headers).await;
        let patience = match is_restless {
            true => Duration::from_millis(fastrand::u64(50..1500)),
            false => LIMIT * 2,
        };
        let opened = Instant::now();
        while let Some(left) = patience.checked_sub(opened.elapsed()) {
            let Ok(event) = timeout(left, reader.next()).await else { break };
            let Some(event) = event else { break };
            recent.truncate(19);
            recent.push_front(format!("{:?} {} {}", begin.elapsed(), event.event, event.data));
            match event.event.as_str() {
                "stream-open" => {}
                "stream-close" => {
                    sleep(Duration::from_millis(50)).await;
                    break;
                }
                "stream-gap" => {
                    let gap: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                    let place = places.get_mut(gap["topic"].as_str().unwrap()).unwrap();
                    (place.told, place.gap_at) = (true, place.next);
                    place.rewound |= gap["reason"] == "restarted" || gap["reason"] == "unknown_id";
                }
                _ => {
                    let (topic, data) = message(&event);
                    let number: u64 = data.parse().unwrap();
                    let place = places.get_mut(&topic).unwrap();
                    let is_doubtful = |number| doubtful.lock().unwrap().contains(&(topic.clone(), number));
                    let may_be_late = is_doubtful(number) || place.next < place.gap_at + LATE;
                    if topic.starts_with("live/") && number < place.next && !place.rewound && may_be_late {
                        continue;
                    }
                    let is_next = (place.next..number).all(is_doubtful);
                    let what = || format!("{topic}: {number}, {place:?}, after {last_id}; {recent:#?}");
                    assert!(is_next || place.told, "LOST IN SILENCE: {}", what());
                    assert!(number >= place.next || place.rewound, "TWICE: {}", what());
                    // A message from the bus does not show which messages the master received after it.
                    place.told &= is_doubtful(number);
                    (place.next, place.rewound) = (number + 1, false);
                }
            }
            if !event.id.is_empty() {
                last_id = event.id;
            }
            if places.values().all(|place| place.next > last.load(Ordering::Relaxed)) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_failures_of_the_cluster_lose_no_message_silently() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(fastrand::u64(..));
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = RedisCluster::start(3, 1).await;
    let gateways = [Gateway::with(&toml(&cluster)).await, Gateway::with(&toml(&cluster)).await];
    let addresses = [gateways[0].address, gateways[1].address];
    let topics = [cluster.topic_each("kept/").await, cluster.topic_each("live/").await].concat();
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let doubtful = Doubtful::default();
    let begin = Instant::now();
    let read =
        |is_restless| read_all(addresses, topics.clone(), is_restless, last.clone(), doubtful.clone(), begin);
    let reading = [false, true, true].map(|is_restless| tokio::spawn(read(is_restless)));
    let mut writing = Vec::new();
    for topic in &topics {
        let next = Arc::new(AtomicU64::new(0));
        let write = write_until_end(cluster.writer(), topic.clone(), next.clone(), doubtful.clone());
        writing.push((tokio::spawn(write), next));
    }
    let (kill_at, hang_at) = (random.usize(1..4), random.usize(4..7));
    for round in 0..8 {
        let masters = cluster.masters().await;
        if round == kill_at {
            let victim = *random.choice(&masters).unwrap();
            let replica = cluster.replica_of(victim).await;
            eprintln!("{:?} node {victim} is killed, {replica} takes over", begin.elapsed());
            cluster.nodes[victim].stop();
            cluster.promoted(replica).await;
            cluster.nodes[victim].restart();
            cluster.whole().await;
        } else if round == hang_at {
            let victim = *random.choice(&masters).unwrap();
            let replica = cluster.replica_of(victim).await;
            eprintln!("{:?} node {victim} hangs, {replica} takes over", begin.elapsed());
            cluster.shun(Some(victim));
            cluster.nodes[victim].pause();
            cluster.promoted(replica).await;
            sleep(ANSWER).await; // nobody waits any more for what it did not answer
            cluster.nodes[victim].resume();
            cluster.whole().await;
            cluster.shun(None);
        } else if random.u8(..3) == 0 {
            let replica = cluster.replica_of(*random.choice(&masters).unwrap()).await;
            eprintln!("{:?} {replica} becomes a master", begin.elapsed());
            cluster.fail_over(replica).await;
            cluster.whole().await;
        } else {
            let key = key_of(random.choice(&topics).unwrap());
            let from = cluster.owner(&key).await;
            let others: Vec<_> = masters.into_iter().filter(|master| *master != from).collect();
            let to = *random.choice(&others).unwrap();
            eprintln!("{:?} {key} moves from {from} to {to}", begin.elapsed());
            let moving = cluster.begin_move(&key, to).await;
            sleep(Duration::from_millis(random.u64(..200))).await;
            cluster.carry_keys(&moving).await;
            sleep(Duration::from_millis(random.u64(..200))).await;
            cluster.finish_move(moving).await;
        }
        sleep(Duration::from_millis(random.u64(..500))).await;
    }
    let all = writing.iter().map(|(_, next)| next.load(Ordering::Relaxed));
    last.store(all.max().unwrap(), Ordering::Relaxed);
    for reading in reading {
        within("every reader has the last number", LIMIT, reading).await.unwrap();
    }
    writing.into_iter().for_each(|(writing, _)| writing.abort());
}
