//! What the process holds, measured from outside: memory and file descriptors. In a file of its own, because a process
//! is measured as a whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(target_os = "linux")]

mod common;

use common::client::Reader;
use common::gateway::Gateway;
use common::wire::{Wire, publish_all};
use common::{eventually, resident};
use futures_util::future::join_all;
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
async fn stalled_readers_hold_no_more_than_a_piece_each() {
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
