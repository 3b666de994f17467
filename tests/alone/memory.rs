//! The memory and file descriptors of the process, measured from outside. In a binary of its own, because a process is
//! measured as a whole.
#![cfg(target_os = "linux")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::client::Reader;
use crate::common::gateway::Gateway;
use crate::common::nats::NatsServer;
use crate::common::process::Process;
use crate::common::redis::RedisServer;
use crate::common::tls::{self, Files};
use crate::common::wire::{Wire, publish_all};
use crate::common::{LIMIT, eventually, resident, within};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// One test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// One address does it all, and faster than one may.
const RULES: &str = "limits = { opens_per_second = 1000000 }\n\
     [[topics]]\nmatch = \"**\"\nread = \"anyone\"\npublish = \"anyone\"\nreplay = { linger = \"0s\" }\n";

async fn total_streams(gateway: &Gateway) -> f64 {
    gateway.metric("topicgate_streams{http=\"1.1\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_hold_no_more_than_a_batch_each() {
    const READERS: usize = 200;
    let _alone = ALONE.lock().await;
    let gateway = Gateway::start().await;
    let mut stalled = Vec::new();
    let text = "x".repeat(8 * 1024);
    let mut pacer = gateway.open("/topics/a").await;
    pacer.expect("stream-open").await;
    // Once before it is measured, so that buffers have their size and the allocator its stock.
    for _ in 0..40 {
        publish_all(gateway.address, "a", std::iter::repeat_n(&text, 20)).await;
        pacer.messages(20).await;
    }
    let before = resident();
    // They come one after the other, so that each is stuck in a piece of its own.
    for begin in 0..READERS {
        stalled.push(Wire::narrow(gateway.address, "/topics/a").await);
        publish_all(gateway.address, "a", (0..20).map(|n| format!("{} {text}", begin * 20 + n))).await;
        pacer.messages(20).await;
    }
    let grown = resident().saturating_sub(before);
    println!("{READERS} stalled readers and 31 MiB of messages: {} KiB more memory", grown / 1024);
    // The buffer's 1 MiB and a piece of 64 KiB each, as the allocator has room for them.
    assert!(grown < 3 * (1024 * 1024 + READERS * 64 * 1024), "{grown}");
    let before = resident();
    for _ in 0..60 {
        publish_all(gateway.address, "a", std::iter::repeat_n(&text, 20)).await;
        pacer.messages(20).await;
    }
    let grown = resident().saturating_sub(before);
    println!("9 MiB of messages after that: {} KiB more memory", grown / 1024);
    assert!(grown < 2 * 1024 * 1024, "{grown}");
    assert_eq!(total_streams(&gateway).await, (READERS + 1) as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_joins_and_leaves_leave_nothing_behind() {
    let _alone = ALONE.lock().await;
    let gateway = Gateway::with(RULES).await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    gateway.metric("topicgate_topics").await;
    let before = descriptors();
    let address = gateway.address;
    let visitors = (0..50).map(|_| {
        tokio::spawn(async move {
            for n in 0..200 {
                let mut reader = Reader::open(address, "/topics/a", &[]).await;
                if n % 2 == 0 {
                    reader.expect("stream-open").await;
                }
            }
        })
    });
    for visitor in join_all(visitors).await {
        visitor.unwrap();
    }
    eventually("no stream", async || total_streams(&gateway).await == 0.0).await;
    eventually("no topic", async || gateway.metric("topicgate_topics").await == 0.0).await;
    eventually("no address", async || gateway.metric("topicgate_addresses").await == 0.0).await;
    eventually("no connection but the question's", async || {
        gateway.metric("topicgate_connections").await == 1.0
    })
    .await;
    // Some belong to the runtime of the other test, which waits.
    eventually("file descriptors are given back", async || descriptors() < before + 20).await;
    assert_eq!(gateway.metric("topicgate_streams_opened_total{http=\"1.1\"}").await, 10_000.0);
    assert_eq!(gateway.metric("topicgate_streams_closed_total{code=\"gone\"}").await, 10_000.0);
}

/// Opens a stream on each of `paths`, a few at a time, and waits until all are open.
async fn open_all(
    address: SocketAddr,
    at_once: usize,
    paths: impl Iterator<Item = String>,
) -> Vec<TcpStream> {
    let open = async |path: String| open_over(TcpStream::connect(address).await.unwrap(), &path).await;
    stream::iter(paths).map(open).buffer_unordered(at_once).collect().await
}

/// Opens a stream on a connection, which is all that stays of it.
async fn open_over<S: AsyncRead + AsyncWrite + Unpin>(mut socket: S, path: &str) -> S {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket.flush().await.unwrap(); // TLS may have kept some of it
    let mut read = Vec::new();
    while !read.windows(18).any(|bytes| bytes == b"event: stream-open") {
        let length = within("more of a head", LIMIT, socket.read_buf(&mut read)).await.unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&read));
    }
    socket
}

/// A gateway in a process of its own, with room for a crowd from one address.
async fn roomy(more: &str) -> (Process, tempfile::NamedTempFile) {
    let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    let text = format!(
        "{more}limits = {{ opens_per_second = 1000000, streams = 20000, connections = 20000, \
         streams_per_address = 20000, topics = 200000, topics_per_address = 200000, \
         new_topics_per_second = 1000000 }}\n\
         [[topics]]\nmatch = \"**\"\nread = \"anyone\"\nreplay = {{ linger = \"0s\" }}\n"
    );
    std::fs::write(config.path(), text).unwrap();
    let gateway = Process::with(&["--config", config.path().to_str().unwrap()], &[]).await;
    eventually("it is ready", async || gateway.readyz().await.status == 200).await;
    (gateway, config)
}

/// Bytes for each of `count` streams that `open` opens. It is called twice: the first call gives the allocator and the runtime
/// their stock. What it returns keeps the streams open.
async fn bytes_per_stream<T>(gateway: &Process, count: usize, open: impl AsyncFn() -> T) -> usize {
    let _stock = open().await;
    let before = gateway.resident();
    let _streams = open().await;
    gateway.resident().saturating_sub(before) / count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_over_tls_costs_little() {
    const READERS: usize = 1_000;
    let _alone = ALONE.lock().await;
    let files = Files::new();
    for version in [&TLS13, &TLS12] {
        let (gateway, _config) = roomy(&files.toml()).await;
        let open = async |_| {
            let socket = TcpStream::connect(gateway.address).await.unwrap();
            open_over(tls::with_version(socket, &files.pair, version).await, "/topics/a").await
        };
        let all = async || stream::iter(0..READERS).map(open).buffer_unordered(20).collect::<Vec<_>>().await;
        let bytes = bytes_per_stream(&gateway, READERS, all).await;
        println!("{:?}: {bytes} bytes for an idle reader", version.version);
        assert!(bytes < 5 * 1024, "{version:?}: {bytes}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_http_2_costs_less_the_more_of_them_share_a_connection() {
    const STREAMS: usize = 2_000;
    let _alone = ALONE.lock().await;
    for (per_connection, most) in [(1, 28), (10, 5), (100, 3)] {
        let (gateway, _config) = roomy("").await;
        let open = async |_| {
            let socket = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
            tokio::spawn(connection);
            let mut streams = Vec::new();
            for _ in 0..per_connection {
                let request = Request::get("http://localhost/topics/a").body(Empty::<Bytes>::new()).unwrap();
                let mut stream = sender.send_request(request).await.unwrap().into_body();
                let first = within("stream-open", LIMIT, stream.frame()).await.unwrap().unwrap();
                assert!(first.into_data().unwrap().windows(11).any(|bytes| bytes == b"stream-open"));
                streams.push(stream);
            }
            streams
        };
        let connections = STREAMS / per_connection;
        let all =
            async || stream::iter(0..connections).map(open).buffer_unordered(20).collect::<Vec<_>>().await;
        let bytes = bytes_per_stream(&gateway, STREAMS, all).await;
        println!("{per_connection} streams per connection: {bytes} bytes for an idle stream");
        assert!(bytes < most * 1024, "{per_connection}: {bytes}");
    }
}

/// The resident memory, in bytes, once the allocator has returned what was freed while streams were opened. It does that
/// a second after it was last used.
async fn settled(gateway: &Process) -> usize {
    let (begin, mut least) = (Instant::now(), gateway.resident());
    while begin.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        least = least.min(gateway.resident());
    }
    least
}

/// Opens and leaves 10,000 streams with a topic each; `subscribed` counts the broker's subscriptions.
async fn a_topic_costs_little_and_gives_it_back(url: &str, subscribed: impl AsyncFn() -> usize) {
    const TOPICS: usize = 10_000;
    const STREAMS: usize = 2_000;
    let _alone = ALONE.lock().await;
    let (gateway, _config) = roomy(&format!("broker.url = {url:?}\n")).await;
    let address = gateway.address;
    // Some are there before it is measured, so that the allocator and the runtime have their stock.
    let _first = open_all(address, 200, (0..STREAMS).map(|_| "/topics/a".into())).await;
    let before = settled(&gateway).await;
    let _streams = open_all(address, 200, (0..STREAMS).map(|_| "/topics/a".into())).await;
    let with_streams = settled(&gateway).await;
    let stream = with_streams.saturating_sub(before) / STREAMS;
    let begin = Instant::now();
    let topics =
        open_all(address, 200, (0..TOPICS).map(|number| format!("/topics/users/{number}/inbox"))).await;
    let took = begin.elapsed();
    let both = settled(&gateway).await.saturating_sub(with_streams) / TOPICS;
    println!(
        "{TOPICS} topics in {took:?}: {both} bytes for a topic and its stream, of which {stream} are the stream's"
    );
    assert!(both.saturating_sub(stream) < 2 * 1024 + 512, "{both} {stream}");
    assert_eq!(subscribed().await, TOPICS + 1);
    #[cfg(feature = "jemalloc")]
    let held = gateway.resident();
    drop(topics);
    eventually("they are unsubscribed", async || subscribed().await == 1).await;
    // With the next sweep the allocator has returned its free memory. glibc's returns nothing here.
    #[cfg(feature = "jemalloc")]
    eventually("memory is given back", async || held.saturating_sub(gateway.resident()) / TOPICS > both / 2)
        .await;
}

/// The same with 100,000 topics, a hundred to a stream: a machine has too few ports and descriptors for a stream each.
async fn a_hundred_thousand_topics_are_subscribed_in_seconds(url: &str, subscribed: impl AsyncFn() -> usize) {
    const STREAMS: usize = 1_000;
    const TOPICS: usize = 100;
    let _alone = ALONE.lock().await;
    let (gateway, _config) = roomy(&format!("broker.url = {url:?}\n")).await;
    let before = gateway.resident();
    let path = |stream: usize| {
        let topics = (0..TOPICS).map(|number| format!("topic=users/{}/inbox", stream * TOPICS + number));
        format!("/topics?{}", topics.collect::<Vec<_>>().join("&"))
    };
    let begin = Instant::now();
    let streams = open_all(gateway.address, 10, (0..STREAMS).map(path)).await;
    let took = begin.elapsed();
    let held = gateway.resident().saturating_sub(before) / (STREAMS * TOPICS);
    println!("{} topics in {took:?}: {held} bytes each, with a hundredth of a stream", STREAMS * TOPICS);
    assert_eq!(subscribed().await, STREAMS * TOPICS);
    drop(streams);
    let begin = Instant::now();
    eventually("they are unsubscribed", async || subscribed().await == 0).await;
    println!("unsubscribed after {:?}", begin.elapsed());
    let left = || gateway.resident().saturating_sub(before) / (STREAMS * TOPICS);
    eventually("memory is given back", async || left() < held / 2).await;
    println!("{} bytes of each are left", left());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(held < 2 * 1024, "{held}");
}

fn subscriptions(nats: &NatsServer) -> usize {
    nats.subscriptions().iter().sum::<u64>() as usize
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_nats_costs_little_and_gives_it_back() {
    let nats = NatsServer::start();
    a_topic_costs_little_and_gives_it_back(&nats.url(), async || subscriptions(&nats)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_redis_costs_little_and_gives_it_back() {
    let redis = RedisServer::start();
    a_topic_costs_little_and_gives_it_back(&redis.url(), async || redis.channels().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: run it by hand, optimized, on an idle machine"]
async fn a_hundred_thousand_topics_of_nats_are_subscribed_in_seconds() {
    let nats = NatsServer::start();
    a_hundred_thousand_topics_are_subscribed_in_seconds(&nats.url(), async || subscriptions(&nats)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: run it by hand, optimized, on an idle machine"]
async fn a_hundred_thousand_topics_of_redis_are_subscribed_in_seconds() {
    let redis = RedisServer::start();
    a_hundred_thousand_topics_are_subscribed_in_seconds(&redis.url(), async || redis.channels().await).await;
}
