//! Plain publish/subscribe in a NATS cluster whose servers are far from each other, join and leave: a client that acts on
//! `stream-open` or `stream-gap` misses nothing that is published afterwards, or receives another gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::nats::{NatsServer, RawPublisher, UNREADABLE};
use crate::common::nats_cluster::SlowCluster;
use crate::common::{LIMIT, eventually, within};
use async_nats::Client;
use futures_util::future::join_all;
use tokio::task::JoinHandle;

const RULES: &str = "[[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\n";

async fn gateway(urls: &[String]) -> Gateway {
    // Four times the default: a machine that is busy with other tests is slower than its network.
    Gateway::with(&format!("broker.url = {:?}\nbroker.settle = \"1s\"\n{RULES}", urls.join(","))).await
}

async fn publish(client: &Client, subject: &str, payload: impl ToString) {
    client.publish(subject.to_owned(), payload.to_string().into()).await.unwrap();
    client.flush().await.unwrap();
}

/// A publisher of numbers on the subject `numbers`.
struct Numbers {
    /// The next one.
    next: Arc<AtomicU64>,
    going: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Numbers {
    /// Through one server, with header fields that cannot be read.
    fn start(server: &NatsServer) -> Self {
        let mut publisher = RawPublisher::connect(server.port()).unwrap();
        let (next, going) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let task = tokio::task::spawn_blocking({
            let (next, going) = (next.clone(), going.clone());
            move || {
                while going.load(Ordering::Relaxed) {
                    // Counted before it is published: what has a higher number is published later.
                    let number = next.fetch_add(1, Ordering::SeqCst).to_string();
                    let block = fastrand::choice(UNREADABLE).unwrap();
                    publisher.publish("numbers", block, number.as_bytes()).unwrap();
                    publisher.flush().unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Numbers { next, going, task }
    }

    async fn stop(self) {
        self.going.store(false, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// A reader of the numbers: checks that there was a gap for each missing one, and that it was published before the gap.
struct Checker {
    reader: Reader,
    /// The number that must come next; `None` before the first.
    expected: Option<u64>,
    /// The next number to be published when a gap was read that nothing has followed yet.
    told: Option<u64>,
    gaps: usize,
    published: Arc<AtomicU64>,
}

impl Checker {
    async fn open(gateway: &Gateway, numbers: &Numbers) -> Self {
        let mut reader = gateway.open("/topics/numbers").await;
        reader.expect("stream-open").await;
        let published = numbers.next.clone();
        let told = Some(published.load(Ordering::SeqCst));
        Checker { reader, expected: None, told, gaps: 0, published }
    }

    async fn step(&mut self) {
        let event = within("an event", LIMIT, self.reader.next()).await.unwrap();
        match event.event.as_str() {
            "message" => {
                let number: u64 = event.data.parse().unwrap();
                let told = self.told.take();
                let (expected, most) =
                    (self.expected.unwrap_or(0), told.unwrap_or(0).max(self.expected.unwrap_or(0)));
                assert!(
                    expected <= number && number <= most,
                    "LOST IN SILENCE: {number} instead of {:?}; the gap was read when {told:?} was to come",
                    self.expected
                );
                self.expected = Some(number + 1);
            }
            "stream-gap" => {
                self.told = Some(self.published.load(Ordering::SeqCst));
                self.gaps += 1;
            }
            other => panic!("{other}"),
        }
    }

    /// Reads until a number has come that is published from now on.
    async fn catch_up(&mut self) {
        let now = self.published.load(Ordering::SeqCst);
        while self.expected.is_none_or(|expected| expected <= now) {
            self.step().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_published_at_any_server_after_the_stream_has_opened_arrive() {
    for (count, delay) in [(2, 1), (2, 20), (2, 50), (3, 50)] {
        let cluster = SlowCluster::start(count, Duration::from_millis(delay)).await;
        let gateway = gateway(&[cluster.nodes[0].url()]).await;
        let mut others = Vec::new();
        for node in &cluster.nodes[1..] {
            others.push(async_nats::connect(node.url()).await.unwrap());
        }
        let (gateway, others) = (&gateway, &others);
        join_all((0..20).map(|number| async move {
            let mut reader = gateway.open(&format!("/topics/t/{number}")).await;
            reader.expect("stream-open").await;
            let subject = format!("t.{number}");
            join_all(others.iter().map(|other| publish(other, &subject, "x"))).await;
            for _ in others {
                assert_eq!(reader.message().await, "x", "{count} nodes, {delay} ms");
            }
        }))
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_that_waits_for_the_cluster_delays_nothing_else() {
    let cluster = SlowCluster::start(2, Duration::ZERO).await;
    let url = cluster.nodes[0].url();
    let gateway = Gateway::with(&format!("broker = {{ url = {url:?}, settle = \"5s\" }}\n{RULES}")).await;
    let mut reader = gateway.open("/topics/a").await;
    reader.expect("stream-open").await;
    let waiting = gateway.open("/topics/b");
    let meanwhile = async {
        for number in 0..50 {
            gateway.publish("a", number.to_string()).await;
            assert_eq!(reader.message().await, number.to_string());
        }
        // A topic that is read already is open at once.
        gateway.open("/topics/a").await.expect("stream-open").await;
    };
    tokio::select! {
        biased;
        () = meanwhile => {}
        _ = async { waiting.await.expect("stream-open").await } => panic!("it did not wait"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_after_a_node_died_comes_when_the_whole_cluster_is_subscribed_again() {
    for delay in [1, 50] {
        let mut cluster = SlowCluster::start(3, Duration::from_millis(delay)).await;
        let urls = [cluster.nodes[0].url(), cluster.nodes[1].url()];
        let gateway = gateway(&urls).await;
        let numbers = Numbers::start(&cluster.nodes[2]);
        let mut checker = Checker::open(&gateway, &numbers).await;
        checker.catch_up().await;
        // There may be one already: a server may tell of one that has just joined after it has a route to it.
        let before = checker.gaps;
        let victim = cluster.of_topicgate().unwrap();
        cluster.nodes[victim].stop();
        while checker.gaps == before {
            checker.step().await;
        }
        checker.catch_up().await;
        numbers.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_published_while_a_server_is_cut_off_from_the_others_are_a_gap() {
    let cluster = SlowCluster::start(2, Duration::from_millis(5)).await;
    let gateway = gateway(&[cluster.nodes[0].url()]).await;
    let numbers = Numbers::start(&cluster.nodes[1]);
    let mut checker = Checker::open(&gateway, &numbers).await;
    checker.catch_up().await;
    cluster.cut(1).await;
    cluster.heal();
    cluster.whole().await;
    checker.catch_up().await;
    assert!(checker.gaps > 0);
    assert!(gateway.ready().await.is_ok());
    assert_eq!(gateway.metric("topicgate_upstream_losses_total").await, 0.0, "its own connection stays");
    numbers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_only_server_of_the_configuration_dies_the_others_of_its_cluster_take_over() {
    let mut cluster = SlowCluster::start(3, Duration::ZERO).await;
    let gateway = gateway(&[cluster.nodes[0].url()]).await;
    let numbers = Numbers::start(&cluster.nodes[2]);
    let mut checker = Checker::open(&gateway, &numbers).await;
    checker.catch_up().await;
    cluster.nodes[0].stop();
    checker.catch_up().await;
    assert!(checker.gaps > 0);
    eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
    // One that joined later is known too.
    cluster.nodes[0].restart();
    cluster.whole().await;
    let second = cluster.of_topicgate().unwrap();
    if second != 2 {
        cluster.nodes[second].stop();
    }
    checker.catch_up().await;
    gateway.publish("other", "x").await;
    numbers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_the_cluster_names_by_ip_address_are_checked_against_the_host_name_of_the_first_server()
{
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}\n");
    let mut cluster = SlowCluster::start_with(2, Duration::ZERO, &tls).await;
    let url = format!("tls://localhost:{}", cluster.nodes[0].port());
    let gateway = Gateway::with(&format!(
        "broker = {{ url = {url:?}, settle = \"1s\", tls = {{ ca = {cert:?} }} }}\n{RULES}"
    ))
    .await;
    cluster.nodes[0].stop();
    let mut reader = gateway.open("/topics/a").await;
    while reader.next().await.unwrap().event != "stream-open" {
        reader = gateway.open("/topics/a").await;
    }
    gateway.publish("a", "x").await;
    assert_eq!(reader.message().await, "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_failures_of_servers_and_routes_lose_no_message_silently() {
    let delay = fastrand::u64(0..50);
    println!("{delay} ms between servers");
    let mut cluster = SlowCluster::start(3, Duration::from_millis(delay)).await;
    // The publisher's server stays, so that the publisher itself loses nothing.
    let gateway = gateway(&[cluster.nodes[0].url()]).await;
    let numbers = Numbers::start(&cluster.nodes[2]);
    let mut checkers = vec![Checker::open(&gateway, &numbers).await];
    for round in 0..8 {
        let what = fastrand::usize(..3);
        let pause = Duration::from_millis(fastrand::u64(..400));
        println!("round {round}: {what}, {pause:?}");
        match what {
            0 | 1 if cluster.nodes[what].is_running() => {
                cluster.nodes[what].stop();
                tokio::time::sleep(pause).await; // one of many times, not a wait
                cluster.nodes[what].restart();
            }
            _ => {
                cluster.cut(2).await;
                tokio::time::sleep(pause).await;
                cluster.heal();
            }
        }
        if checkers.len() < 4 {
            eventually("the gateway is ready", async || gateway.ready().await.is_ok()).await;
            checkers.push(Checker::open(&gateway, &numbers).await);
        }
        if round % 2 == 1 {
            cluster.whole().await;
            join_all(checkers.iter_mut().map(Checker::catch_up)).await;
        }
    }
    numbers.stop().await;
}
