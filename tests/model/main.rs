//! Promise 1, held against a plain model: a list per topic of everything that was ever published. Whatever a client
//! lives through, each message reaches it in order and once, or a `stream-gap` stands where it is missing.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod client;
mod edges;
mod replica;
mod schedules;
mod stored;
mod threads;
