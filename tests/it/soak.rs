//! Gateways and brokers that are killed, held and reloaded for hours, under numbered publishers and readers that are cut:
//! `make soak HOURS=1`. It ends at the first loss without a gap.
#![cfg(unix)]

use std::time::{Duration, Instant};

use super::kills::{self, Plan};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes hours: make soak HOURS=1"]
async fn every_loss_is_reported_for_hours() {
    let hours: f64 =
        std::env::var("SOAK_HOURS").map_or(1.0, |hours| hours.parse().expect("a number of hours"));
    let until = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    let plan = |name| Plan { name, readers: 10, until: Some(until) };
    tokio::join!(
        kills::jetstream(plan("jetstream")),
        kills::nats(plan("nats")),
        kills::redis(plan("redis")),
        kills::redis_stream(plan("redis-stream")),
    );
}
