//! Limits how often one kind of line is written to the log.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Limits log lines that clients can cause as often as they like.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    last: Option<Instant>,
    /// The number of lines that were left out since the last one.
    others: u64,
}

impl Throttle {
    /// The least time between two lines.
    const PAUSE: Duration = Duration::from_secs(10);

    /// Whether to write the line now.
    pub fn allows(&self) -> bool {
        self.turn().is_some()
    }

    /// If the line is to be written now: the number of lines that were left out since the last one.
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
