//! How long to wait before the next attempt.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause, which each attempt doubles, and the longest. With it, delivery is back within two seconds of the
/// server's return.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// The pauses between attempts that fail.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Backoff(FIRST)
    }

    /// The next pause. Random between its half and all of it: many gateways that lost their server together must not come
    /// back in step.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(LONGEST);
        pause
    }

    /// An attempt succeeded at `start` and has ended now. It starts over only if that lasted: a server that accepts a
    /// connection and closes it at once is not to be asked more often.
    pub(super) fn ended(&mut self, start: Instant) {
        if start.elapsed() >= LONGEST {
            self.0 = FIRST;
        }
    }
}
