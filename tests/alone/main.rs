//! Tests that measure the memory of their own process, with nothing else in it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod back_pressure;
mod memory;
