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

    /// The next pause, random between half of it and all of it: gateways that lost their server together must not reconnect
    /// at the same time.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(LONGEST);
        pause
    }

    /// A connection that succeeded at `start` has ended now. The pauses start over only if it lasted: a server that
    /// accepts a connection and closes it at once must not be tried more often.
    pub(super) fn ended(&mut self, start: Instant) {
        if start.elapsed() >= LONGEST {
            self.0 = FIRST;
        }
    }
}
