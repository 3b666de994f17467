//! The last minutes in numbers, one sample per second, so that the console's charts have a past when somebody opens it.

use std::collections::VecDeque;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

/// How many samples are kept: five minutes.
const SAMPLES: usize = 300;

/// The state at one moment. Counters count since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Milliseconds of unix time.
    pub time: u64,
    /// Open streams.
    pub streams: usize,
    /// Messages from the broker.
    pub received: u64,
    /// Messages handed to readers.
    pub sent: u64,
    /// Bytes handed to readers.
    pub sent_bytes: u64,
    /// Gaps that readers received.
    pub gaps: u64,
    /// Refused requests, temporary refusals included, and streams that the gateway ended.
    pub refused: u64,
}

/// The samples of the last minutes.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Adds a sample, and drops the oldest if there are too many.
    pub fn push(&self, sample: Sample) {
        let mut samples = self.0.lock();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// All of them, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.0.lock().iter().copied().collect()
    }
}

/// Milliseconds of unix time now.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
