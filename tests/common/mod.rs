//! The common parts of the tests: a gateway on its own port, clients that connect to it, brokers as child processes. Each
//! test binary uses a part of it.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod backend;
pub mod browser;
pub mod client;
#[cfg(unix)]
pub mod clock;
pub mod command;
pub mod deploy;
pub mod document;
pub mod front;
pub mod gateway;
pub mod gunzip;
pub mod jetstream;
pub mod nats;
pub mod nats_cluster;
pub mod ports;
#[cfg(unix)]
pub mod process;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod redis_cluster;
pub mod signer;
pub mod site;
pub mod slow;
pub mod sources;
pub mod tls;
pub mod token;
pub mod upstream;
pub mod wire;

use std::time::{Duration, Instant};

use topicgate::internals::config::{self, Config, Secret};

/// `[broker]` with nothing but a URL, which may be one that the configuration would refuse.
pub fn broker_config(url: &str) -> config::Broker {
    config::Broker { url: Secret(url.into()), ..Config::default().broker }
}

/// How long anything may take before a test says that it never will.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Whether every gateway of a test compresses and every reader accepts that: with COMPRESSED=1 in the environment.
pub fn are_all_compressed() -> bool {
    std::env::var_os("COMPRESSED").is_some()
}

/// Waits until `condition` holds, looking every few milliseconds; fails after [`LIMIT`] with `what`.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < LIMIT, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until `probe` yields something; fails after `limit` with `what`.
pub async fn found<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for `future`; fails after `limit` with `what`.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// This process's own memory, in bytes. The gateway is in it, and so are its readers.
#[cfg(target_os = "linux")]
pub fn resident() -> usize {
    resident_of(std::process::id())
}

/// The memory of a process, in bytes.
#[cfg(target_os = "linux")]
pub fn resident_of(process: u32) -> usize {
    let pages = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
