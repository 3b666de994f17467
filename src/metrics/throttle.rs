//! Limits how often one kind of line is written to the log.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Lets a line through now and then: for what clients can cause as often as they like.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    last: Option<Instant>,
    /// Those that were held back since.
    others: u64,
}

impl Throttle {
    /// The least time between two lines.
    const PAUSE: Duration = Duration::from_secs(10);

    /// Whether to say it this time.
    pub fn allows(&self) -> bool {
        self.turn().is_some()
    }

    /// If it is to be said this time: how many were held back since the last.
    pub fn turn(&self) -> Option<u64> {
        let mut state = self.0.lock();
        if state.last.is_some_and(|last| last.elapsed() < Self::PAUSE) {
            state.others += 1;
            return None;
        }
        state.last = Some(Instant::now());
        Some(std::mem::take(&mut state.others))
    }
}
