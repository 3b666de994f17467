//! The common ticks of readers with an interval: all readers with the same interval are woken together, at the
//! multiples of the interval since the gateway began, so that what they receive is made once. While there is no such
//! reader, nothing ticks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::clock::{Clock, Millis};
use super::handle::ReaderHandle;
use crate::protocol::view::Interval;

/// How many readers are woken before other tasks have their turn.
const GROUP: usize = 128;

/// A reader may read this part of its interval too early after it has read: it was late before, and the next tick is
/// still its own.
const EARLY: u64 = 4;

/// The readers with an interval.
#[derive(Debug)]
pub struct Ticks {
    clock: Clock,
    readers: Mutex<Readers>,
    joined: Notify,
}

type Readers = BTreeMap<Interval, HashMap<u64, Arc<ReaderHandle>>>;

impl Ticks {
    /// Ticks of that clock, for nobody yet.
    pub fn new(clock: Clock) -> Self {
        Ticks { clock, readers: Mutex::default(), joined: Notify::new() }
    }

    /// From now on, `handle` is woken at the ticks of `interval` if it is due.
    pub fn join(&self, interval: Interval, handle: &Arc<ReaderHandle>) {
        self.readers.lock().entry(interval).or_default().insert(handle.id, handle.clone());
        self.joined.notify_one();
    }

    /// Forgets the reader with this id.
    pub fn leave(&self, interval: Interval, id: u64) {
        let mut readers = self.readers.lock();
        if let Some(of_interval) = readers.get_mut(&interval) {
            of_interval.remove(&id);
            if of_interval.is_empty() {
                readers.remove(&interval);
            }
        }
    }

    /// Wakes readers at their ticks, for ever.
    pub async fn run(&self) {
        let step = Interval::STEP.as_millis() as u64;
        let mut last = self.clock.now();
        loop {
            if self.readers.lock().is_empty() {
                self.joined.notified().await;
                last = self.clock.now();
            }
            let next = Millis::at((last.as_u64() / step + 1) * step);
            tokio::time::sleep(next.since(self.clock.now())).await;
            let now = self.clock.now();
            for group in self.due(last, now).chunks(GROUP) {
                group.iter().for_each(|handle| handle.tick(now));
                yield_now().await;
            }
            last = now;
        }
    }

    /// The readers that have a tick after `last` and up to `now`.
    fn due(&self, last: Millis, now: Millis) -> Vec<Arc<ReaderHandle>> {
        let readers = self.readers.lock();
        let ticked = |interval: &Interval| {
            let millis = interval.as_millis();
            now.as_u64() / millis > last.as_u64() / millis
        };
        let due = readers.iter().filter(|(interval, _)| ticked(interval));
        due.flat_map(|(_, of_interval)| of_interval.values().cloned()).collect()
    }
}

/// The tick at which a reader with this interval reads again after it has read at `now`.
pub fn next_tick(interval: Interval, now: Millis) -> Millis {
    let millis = interval.as_millis();
    Millis::at((now.as_u64() + millis - grace(interval)).div_ceil(millis) * millis)
}

/// How old a batch may be that a reader with this interval takes over from another one, in milliseconds.
pub fn grace(interval: Interval) -> u64 {
    interval.as_millis() / EARLY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_stays_in_step_with_the_others_and_never_reads_twice_in_an_interval() {
        let second = Interval::read("1s").unwrap();
        for (now, next) in
            [(0, 1_000), (1, 1_000), (250, 1_000), (251, 2_000), (999, 2_000), (1_000, 2_000), (1_200, 2_000)]
        {
            assert_eq!(next_tick(second, Millis::at(now)).as_u64(), next, "{now}");
        }
    }
}
