//! One clock for all streams: it ticks twice a second and stands in for a timer of each stream.

use std::time::Duration;
use tokio::time::Instant;

/// How often the clock looks whose time has come. Heartbeats and write timeouts are late by at most this much.
pub const TICK: Duration = Duration::from_millis(500);

/// Milliseconds since the gateway began.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// One that begins now.
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    /// Milliseconds now.
    pub fn now(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}
