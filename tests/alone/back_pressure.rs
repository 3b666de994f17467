//! Back-pressure on resume: readers of a history that far exceeds the gateway's memory. For any number of readers, memory
//! stays flat, new messages come to them in their place and to everyone else at once, and the broker is asked for each
//! part about once.
#![cfg(target_os = "linux")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::client::Reader;
use crate::common::jetstream::Admin;
use crate::common::nats::NatsServer;
use crate::common::process::Process;
use crate::common::{LIMIT, eventually, within};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// One test at a time: each loads the machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Messages of one fetch: what `broker::FETCH_MESSAGES` says, told apart from it so that a change is noticed here.
const FETCHED: u64 = 1000;

/// The bound on all logs and fetched ranges.
const BUFFER: usize = 32 * 1024 * 1024;

/// A stream with `count` numbered messages of 200 bytes, and a gateway that holds none of them.
struct Scene {
    _nats: NatsServer,
    admin: Admin,
    gateway: Process,
    /// Numbers that were given out.
    stored: AtomicU64,
    _config: tempfile::NamedTempFile,
}

impl Scene {
    async fn with(messages: u64) -> Arc<Self> {
        let nats = NatsServer::jetstream();
        let admin = Admin::connect(&nats.url()).await;
        admin.stream("ORDERS", &["orders.>"], json!({})).await;
        let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        let text = format!(
            "broker.url = \"{}\"\n\
             limits = {{ buffer = {BUFFER}, streams_per_address = 10000, opens_per_second = 10000, resume_bytes = \"1TiB\" }}\n\
             [[topics]]\nmatch = \"orders/*\"\nsource = \"jetstream\"\nread = \"anyone\"\nreplay = {{ messages = 100 }}\n\
             [[topics]]\nmatch = \"news/*\"\nread = \"anyone\"\n",
            nats.url()
        );
        std::fs::write(config.path(), text).unwrap();
        let gateway = Process::with(&["--config", config.path().to_str().unwrap()], &[]).await;
        eventually("it is ready", async || gateway.readyz().await.status == 200).await;
        let scene = Scene { _nats: nats, admin, gateway, stored: AtomicU64::new(0), _config: config };
        for _ in 1..messages {
            let payload = scene.next_payload();
            scene.admin.client.publish("orders.eu", payload.into()).await.unwrap();
        }
        scene.store().await;
        Arc::new(scene)
    }

    fn next_payload(&self) -> String {
        payload(self.stored.fetch_add(1, Ordering::Relaxed))
    }

    /// Stores the next message, for certain.
    async fn store(&self) {
        self.admin.put("orders.eu", self.next_payload()).await;
    }

    async fn fetched(&self) -> f64 {
        self.gateway.metric("topicgate_recalls_total{result=\"fetched\"}").await
    }

    /// A cursor with which to read on from the message `number`. A stream of nothing else numbers from one.
    async fn cursor(&self, number: u64) -> String {
        let mut reader = Reader::open(self.gateway.address, "/topics/orders/eu", &[]).await;
        reader.expect("stream-open").await;
        let (tag, _) = reader.last_id.split_once('-').unwrap();
        format!("{tag}-{number}")
    }
}

fn payload(number: u64) -> String {
    format!("#{number:08}{:.<191}", "")
}

/// A subscriber that checks that every message comes, once and in order, and is cheap enough to be there hundreds of times.
struct Checker {
    socket: TcpStream,
    text: String,
    /// The number that must come next; seen by others.
    next: Arc<AtomicU64>,
    bytes: usize,
}

impl Checker {
    /// Of the topic, from the message `number` on.
    async fn open(address: SocketAddr, cursor: &str, number: u64) -> Self {
        Self::over(TcpSocket::new_v4().unwrap(), address, cursor, number).await
    }

    async fn over(socket: TcpSocket, address: SocketAddr, cursor: &str, number: u64) -> Self {
        let mut socket = socket.connect(address).await.unwrap();
        // 1.0 knows no chunks: events and nothing else.
        let request = format!(
            "GET /topics/orders/eu HTTP/1.0\r\nHost: {address}\r\nLast-Event-ID: {cursor}\r\n\
             Accept: text/event-stream\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        Checker { socket, text: String::new(), next: Arc::new(AtomicU64::new(number)), bytes: 0 }
    }

    /// Reads some more.
    async fn read(&mut self) {
        let mut bytes = [0; 64 * 1024];
        let read = within("more", LIMIT, self.socket.read(&mut bytes)).await.unwrap();
        assert!(read > 0, "the stream ended");
        self.bytes += read;
        self.text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        let Some(end) = self.text.rfind("\n\n") else { return };
        for line in self.text[..end].lines() {
            assert!(!line.starts_with("event: stream-gap"), "{}", &self.text[..end]);
            let Some(data) = line.strip_prefix("data: #") else { continue };
            assert_eq!(data.len(), 199);
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            assert_eq!(data[..8].parse(), Ok(next));
        }
        self.text.drain(..end);
    }

    async fn read_until(&mut self, number: u64) {
        while self.next.load(Ordering::Relaxed) < number {
            self.read().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_replay_takes_no_memory_and_messages_published_meanwhile_come_in_their_place() {
    const MESSAGES: u64 = 100_000;
    let _alone = ALONE.lock().await;
    let scene = Scene::with(MESSAGES).await;
    let cursor = scene.cursor(0).await;
    let before = scene.gateway.resident();
    let begin = Instant::now();
    let mut reader = Checker::open(scene.gateway.address, &cursor, 0).await;
    let next = reader.next.clone();
    let reading = tokio::spawn(async move {
        reader.read_until(MESSAGES + 1).await;
        reader
    });
    // Publishes until the reader receives live messages.
    let mut most = 0;
    while !reading.is_finished() {
        scene.store().await;
        most = most.max(scene.gateway.resident());
    }
    let mut reader = reading.await.unwrap();
    reader.read_until(scene.stored.load(Ordering::Relaxed)).await;
    let (grown, fetched) = (most.saturating_sub(before), scene.fetched().await);
    println!(
        "{} messages, {} KiB, in {:?}: at most {} KiB more memory, {fetched} fetches",
        next.load(Ordering::Relaxed),
        reader.bytes / 1024,
        begin.elapsed(),
        grown / 1024
    );
    assert!(next.load(Ordering::Relaxed) > MESSAGES + 10, "nothing was published while it replayed");
    // Fetched ranges may take an eighth of the buffer; the rest is in flight.
    assert!(grown < BUFFER / 8 + 16 * 1024 * 1024, "{grown}");
    assert!(fetched < 2.0 * (MESSAGES / FETCHED) as f64, "{fetched}");
}

/// Everything that was stored is read by many at once, while messages are published to their topic and another one.
async fn a_crowd_replays(messages: u64, places: &[u64], fetches: f64) {
    // On a machine of two cores without optimization, where the crowd itself takes one of them.
    const PROMPT: Duration = Duration::from_secs(5);
    let scene = Scene::with(messages).await;
    let before = scene.gateway.resident();
    let address = scene.gateway.address;
    // The readers that are up to date: each message, and its delay.
    let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let mut watchers = Vec::new();
    for path in ["/topics/orders/us", "/topics/news/a"] {
        let mut reader = Reader::open(address, path, &[]).await;
        reader.expect("stream-open").await;
        let sent = sent.clone();
        watchers.push(tokio::spawn(async move {
            let mut late = Duration::ZERO;
            for index in 0.. {
                let data = reader.message().await;
                if data == "end" {
                    return (index, late);
                }
                late = late.max(sent.lock()[index].elapsed());
            }
            unreachable!()
        }));
    }
    let mut cursors = Vec::new();
    for place in places {
        cursors.push((*place, scene.cursor(*place).await));
    }
    let mut readers = Vec::new();
    for (place, cursor) in &cursors {
        readers.push(Checker::open(address, cursor, *place).await);
    }
    let progress: Vec<_> =
        readers.iter().map(|reader| (reader.next.clone(), reader.next.load(Ordering::Relaxed))).collect();
    let over = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let reading: Vec<_> = readers
        .into_iter()
        .map(|mut reader| {
            let (over, scene) = (over.clone(), scene.clone());
            tokio::spawn(async move {
                reader.read_until(messages).await;
                while !over.load(Ordering::Relaxed)
                    || reader.next.load(Ordering::Relaxed) < scene.stored.load(Ordering::Relaxed)
                {
                    reader.read().await;
                }
            })
        })
        .collect();
    let (mut most, mut shares) = (0, None);
    loop {
        sent.lock().push(Instant::now());
        scene.admin.client.publish("orders.us", "x".into()).await.unwrap();
        scene.admin.client.publish("news.a", "x".into()).await.unwrap();
        scene.store().await;
        most = most.max(scene.gateway.resident());
        let mut read: Vec<_> =
            progress.iter().map(|(next, first)| next.load(Ordering::Relaxed) - first).collect();
        read.sort_unstable();
        let left = progress.iter().filter(|(next, _)| next.load(Ordering::Relaxed) < messages).count();
        if shares.is_none() && left <= progress.len() * 9 / 10 {
            shares = Some((read[0], read[read.len() / 2]));
        }
        if left == 0 {
            break;
        }
        assert!(begin.elapsed() < LIMIT * 3, "{left} are not through, the last has {} messages", read[0]);
        tokio::time::sleep(Duration::from_millis(10)).await; // a rate, not a wait
    }
    let took = begin.elapsed();
    scene.admin.client.publish("news.a", "end".into()).await.unwrap();
    scene.admin.put("orders.us", "end").await;
    over.store(true, Ordering::Relaxed);
    scene.store().await;
    join_all(reading).await.into_iter().for_each(|reader| reader.unwrap());
    let (grown, fetched) = (most.saturating_sub(before), scene.fetched().await);
    let (least, median) = shares.unwrap();
    println!(
        "{} readers through {messages} messages in {took:?}: at most {} KiB more memory, {fetched} fetches; when the first tenth was through, the last had {least} and the middle one {median}",
        places.len(),
        grown / 1024
    );
    for watcher in watchers {
        let (count, late) = within("the end", LIMIT, watcher).await.unwrap();
        println!("  {count} live messages, at most {late:?} late");
        assert_eq!(count, sent.lock().len());
        assert!(late < PROMPT, "{late:?}");
    }
    assert!(least * 4 >= median, "{least} {median}");
    assert!(fetched < fetches, "{fetched}");
    assert!(grown < BUFFER / 8 + places.len() * 128 * 1024 + 8 * 1024 * 1024, "{grown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_reconnect_at_once_share_the_messages_that_are_fetched() {
    let _alone = ALONE.lock().await;
    a_crowd_replays(20_000, &[0; 200], 240.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_reconnect_at_different_positions_get_fair_shares() {
    let _alone = ALONE.lock().await;
    let places: Vec<u64> = (0..60).map(|reader| reader * 97).collect();
    a_crowd_replays(12_000, &places, 500.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_in_the_middle_of_a_replay_cost_no_more_than_a_batch_each() {
    const READERS: usize = 200;
    let _alone = ALONE.lock().await;
    let scene = Scene::with(20_000).await;
    let cursor = scene.cursor(0).await;
    let address = scene.gateway.address;
    // Once before it is measured, so that buffers have their size and the allocator its stock.
    Checker::open(address, &cursor, 0).await.read_until(20_000).await;
    let before = scene.gateway.resident();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut reader = Checker::over(socket, address, &cursor, 0).await;
        reader.read_until(10).await;
        readers.push(reader);
    }
    let stuck = async || {
        let before = scene.gateway.metric("topicgate_events_sent_total").await;
        tokio::time::sleep(Duration::from_millis(1100)).await; // longer than a sweep
        scene.gateway.metric("topicgate_events_sent_total").await == before
    };
    eventually("all are stuck", stuck).await;
    let grown = scene.gateway.resident().saturating_sub(before);
    println!("{READERS} readers that stopped: {} KiB more memory", grown / 1024);
    // A fetched range is dropped by the second sweep that finds it unread.
    let given_up = async || scene.gateway.metric("topicgate_buffer_bytes").await < 200_000.0;
    eventually("what was fetched is given up", given_up).await;
    let fetched = scene.fetched().await;
    let mut reader = readers.swap_remove(READERS / 2);
    reader.read_until(20_000).await;
    assert!(scene.fetched().await - fetched < 40.0);
    assert!(grown < READERS * 96 * 1024, "{grown}");
}
