//! What the tests share: a gateway on a port of its own, clients that go through its door, brokers as child processes.
//! Each test file uses a part of it.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod client;
pub mod gateway;
#[cfg(unix)]
pub mod process;
pub mod wire;

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take before a test says that it never will.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Waits until `condition` holds, looking every few milliseconds; fails after [`LIMIT`] with `what`.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < LIMIT, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// This process's own memory, in bytes. The gateway is in it, and so are its readers.
#[cfg(target_os = "linux")]
pub fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
