//! One clock for all streams: it ticks twice per second and replaces a timer per stream.

use std::time::Duration;
use tokio::time::Instant;

/// The interval of the clock. Heartbeats and write timeouts are late by at most this much.
pub const TICK: Duration = Duration::from_millis(500);

/// Milliseconds since the gateway began.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    /// The current time in milliseconds.
    pub fn now(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}
