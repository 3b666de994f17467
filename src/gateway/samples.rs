//! The last minutes in numbers, one sample a second, so that the console's charts begin before somebody looks.

use std::collections::VecDeque;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

/// Samples kept: five minutes.
const SAMPLES: usize = 300;

/// How things stood at one moment. What is counted is counted since the start.
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
    /// Gaps.
    pub gaps: u64,
    /// Requests refused, or told to come back, and streams that we ended.
    pub refused: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Adds the newest, and gives the oldest up.
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
