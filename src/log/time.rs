//! Times in the logs. `since` searches them, so they must not run backwards, but the clocks of the gateway and of a
//! broker can be set. This file makes them monotonic. The age of an entry does not depend on them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::protocol::seq::Seq;

/// How far the times of a line may be ahead of their clock. If the clock is set back by less, the times wait for it.
const AHEAD: Duration = Duration::from_secs(1);

/// The times of consecutive entries.
#[derive(Debug, Default)]
pub(super) struct Line(Option<SystemTime>);

impl Line {
    /// A line that continues after an entry with that time.
    pub(super) fn after(time: SystemTime) -> Self {
        Line(Some(time))
    }

    /// The time of a new entry when the clock says `now`, and whether the clock was set back: then the times of all
    /// older entries must be brought back to this one.
    pub(super) fn next(&mut self, now: SystemTime) -> (SystemTime, bool) {
        let last = self.0.unwrap_or(now);
        let is_set_back = last.duration_since(now).is_ok_and(|ahead| ahead > AHEAD);
        let time = if is_set_back { now } else { last.max(now) };
        self.0 = Some(time);
        (time, is_set_back)
    }

    /// The time of an entry that a broker stored at `time`: the highest so far. So the first entry that is not before a
    /// given time is also the first one that the broker would find for it, even if its clock was set.
    pub(super) fn highest(&mut self, time: SystemTime) -> SystemTime {
        *self.0.insert(self.0.map_or(time, |last| last.max(time)))
    }

    /// The current time on this line.
    pub(super) fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        self.0.filter(|last| last.duration_since(now).is_ok_and(|ahead| ahead <= AHEAD)).unwrap_or(now)
    }
}

/// A point after which something is complete: every entry with a higher number is there, or is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Horizon {
    pub(super) number: Seq,
    /// The time of the entry of that number, or when this begins.
    pub(super) time: SystemTime,
}

impl Horizon {
    /// Before every entry.
    pub(super) const START: Horizon = Horizon { number: Seq::START, time: SystemTime::UNIX_EPOCH };

    /// The point after which both are complete.
    pub(super) fn later(self, other: Horizon) -> Horizon {
        if other.number > self.number { other } else { self }
    }
}

/// The time of an entry.
#[derive(Debug)]
pub(super) struct Stamp {
    /// Nanoseconds since 1970. It changes only when the clock is set back, or when it becomes known.
    time: AtomicU64,
    /// When it was received, on the monotonic clock.
    taken: Instant,
}

impl Stamp {
    pub(super) fn new(time: SystemTime, taken: Instant) -> Self {
        Stamp { time: nanoseconds(time).into(), taken }
    }

    /// The time of a gap in a stored source: the missing messages are older than the next one, and nothing else is
    /// known. Until the next one arrives, they may have any time.
    pub(super) fn unknown() -> Self {
        Stamp { time: u64::MAX.into(), taken: Instant::now() }
    }

    pub(super) fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.time.load(Ordering::Relaxed))
    }

    pub(super) fn taken(&self) -> Instant {
        self.taken
    }

    /// Brings its time back to `latest`, if it is later.
    pub(super) fn bring_back(&self, latest: SystemTime) {
        self.time.fetch_min(nanoseconds(latest), Ordering::Relaxed);
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn times_never_decrease_for_a_clock_that_lags_and_go_back_with_a_clock_that_is_set_back() {
        let mut line = Line::default();
        assert_eq!(line.next(at(10_000)), (at(10_000), false));
        assert_eq!(line.next(at(9_000)), (at(10_000), false));
        assert_eq!(line.next(at(10_001)), (at(10_001), false));
        assert_eq!(line.next(at(9_000)), (at(9_000), true));
        assert_eq!(line.next(at(9_000)), (at(9_000), false));
    }

    #[test]
    fn the_times_of_a_broker_never_go_back() {
        let mut line = Line::after(at(5));
        assert_eq!([3, 7, 6].map(|time| line.highest(at(time))), [at(5), at(7), at(7)]);
    }

    #[test]
    fn a_time_is_only_ever_moved_back() {
        let stamp = Stamp::new(at(5), Instant::now());
        stamp.bring_back(at(7));
        assert_eq!(stamp.time(), at(5));
        stamp.bring_back(at(4));
        assert_eq!(stamp.time(), at(4));
        assert!(Stamp::unknown().time() > SystemTime::now());
    }
}
