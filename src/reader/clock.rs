//! One clock for all streams: it ticks twice per second and replaces a timer per stream.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The interval of the clock. Heartbeats and write timeouts are late by at most this much.
pub const TICK: Duration = Duration::from_millis(500);

/// The clock of a gateway, which begins with it.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    /// The current time.
    pub fn now(self) -> Millis {
        Millis::at(self.0.elapsed().as_millis() as u64)
    }
}

/// A time of the [`Clock`], in milliseconds since the gateway began. The stored number is one higher, so that
/// `Option<Millis>` is also one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(NonZeroU64);

impl Millis {
    /// The time `millis` after the gateway began.
    pub fn at(millis: u64) -> Self {
        Millis(NonZeroU64::MIN.saturating_add(millis))
    }

    /// Milliseconds since the gateway began.
    pub fn as_u64(self) -> u64 {
        self.0.get() - 1
    }

    /// The time `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Millis(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this one; none if that is later.
    pub fn since(self, earlier: Millis) -> Duration {
        Duration::from_millis(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Default for Millis {
    /// When the gateway began.
    fn default() -> Self {
        Millis::at(0)
    }
}

/// A time that several threads read and write, or none.
#[derive(Debug, Default)]
pub struct AtomicMillis(AtomicU64);

impl AtomicMillis {
    /// The last time that was stored.
    pub fn load(&self) -> Option<Millis> {
        NonZeroU64::new(self.0.load(Ordering::Relaxed)).map(Millis)
    }

    /// Stores a time, or none.
    pub fn store(&self, time: Option<Millis>) {
        self.0.store(time.map_or(0, |time| time.0.get()), Ordering::Relaxed);
    }
}
