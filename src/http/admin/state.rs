//! `GET /state`: the current state of the gateway as numbers, for the console and for scripts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::gateway::Gateway;
use crate::gateway::samples::Sample;
use crate::ingest::status::Upstream;

/// The body of the answer.
#[derive(Serialize)]
pub(super) struct Standing {
    version: &'static str,
    uptime_ms: u64,
    /// Why the gateway is not ready, if it is not.
    not_ready: Option<String>,
    broker: Broker,
    streams: Level,
    topics: Level,
    connections: Level,
    buffer_bytes: Level,
    addresses: i64,
    /// The newest sample of those that the charts show.
    sample: Sample,
    /// Gaps since the start, by reason; reasons without any are left out.
    gaps: BTreeMap<&'static str, u64>,
    closed: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Broker {
    url: String,
    /// Why the broker is away, if it is.
    away: Option<String>,
    /// Filters that the broker does not let the gateway read.
    refused: Vec<Refused>,
    losses: u64,
}

#[derive(Serialize)]
struct Refused {
    topics: String,
    why: String,
}

/// A count and its limit.
#[derive(Serialize)]
struct Level {
    now: u64,
    limit: u64,
}

impl Standing {
    pub(super) fn of(gateway: &Gateway) -> Self {
        let (current, metrics) = (gateway.current(), gateway.metrics());
        let config = &current.config;
        let part = |now: i64, limit: u64| Level { now: u64::try_from(now).unwrap_or_default(), limit };
        let limits = &config.limits;
        Standing {
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: gateway.table().clock().now().as_u64(),
            not_ready: gateway.ready().err(),
            broker: Broker {
                url: config.broker.masked_url(),
                away: match gateway.upstream() {
                    Upstream::Up => None,
                    Upstream::Partly(why) | Upstream::Down(why) => Some(why),
                },
                refused: gateway
                    .denied()
                    .into_iter()
                    .map(|(topics, why)| Refused { topics: topics.to_string(), why })
                    .collect(),
                losses: metrics.upstream_losses.get(),
            },
            streams: part(gateway.table().len() as i64, limits.streams as u64),
            topics: part(metrics.topics.get(), limits.topics as u64),
            connections: part(metrics.connections.get(), limits.connections as u64),
            buffer_bytes: part(metrics.buffer_bytes.get(), limits.buffer),
            addresses: metrics.addresses.get(),
            sample: gateway.sample(),
            gaps: some(metrics.gaps.counts()),
            closed: some(metrics.streams_closed.counts()),
            refused: some(metrics.requests_refused()),
        }
    }
}

fn some(counts: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<&'static str, u64> {
    counts.filter(|(_, count)| *count > 0).collect()
}

/// The handler of `GET /state`.
pub(super) async fn state(State(gateway): State<Arc<Gateway>>) -> Json<Standing> {
    Json(Standing::of(&gateway))
}
