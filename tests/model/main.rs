//! The first promise, checked against a plain model: a list per topic of everything that was ever published. In any
//! schedule, each message reaches a client in order and once, or there is a `stream-gap` where it is missing.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod client;
mod edges;
#[path = "../common/gunzip.rs"]
mod gunzip;
mod gzip;
mod replica;
mod schedules;
mod stored;
mod threads;
mod view;
mod warm;

/// How many schedules are tried; the environment variable `SCHEDULES` multiplies it.
fn cases(cases: u32) -> u32 {
    let times = std::env::var("SCHEDULES").ok().and_then(|times| times.parse().ok());
    cases * times.unwrap_or(1)
}
