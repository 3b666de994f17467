//! Token buckets: a rate per second, with bursts of up to [`BURST`].

use std::time::Duration;

use super::clock::Millis;

/// The capacity of a bucket, as a time at its rate. It is long enough for a whole office whose streams reconnect
/// together.
pub const BURST: Duration = Duration::from_secs(5);

const BURST_NANOS: u64 = BURST.as_nanos() as u64;
const NANOS_PER_MS: u64 = 1_000_000;

/// An amount per second, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// `amount` per second; zero counts as one.
    pub fn per_second(amount: u64) -> Self {
        Rate(amount.max(1))
    }

    /// How long `amount` takes to accrue, in nanoseconds.
    fn nanos(self, amount: u64) -> u64 {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(self.0);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// A bucket, full at first. It is one word: the time when it is full again (the generic cell rate algorithm), which is
/// in the past while it is full.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    full_at_nanos: u64,
}

impl Bucket {
    /// Takes `amount` if it is available.
    pub fn take(&mut self, amount: u64, rate: Rate, now: Millis) -> bool {
        let mut after = *self;
        after.owe(amount, rate, now);
        let there = after.full_at_nanos <= nanos(now).saturating_add(BURST_NANOS);
        if there {
            *self = after;
        }
        there
    }

    /// Takes `amount`, even if it goes into debt: what has already been used cannot be refused.
    pub fn owe(&mut self, amount: u64, rate: Rate, now: Millis) {
        let from = self.full_at_nanos.max(nanos(now));
        self.full_at_nanos = from.saturating_add(rate.nanos(amount));
    }

    /// When the debt is paid, or `None` if there is none.
    pub fn in_debt_until(&self, now: Millis) -> Option<Millis> {
        let due = Millis::at(self.full_at_nanos.saturating_sub(BURST_NANOS).div_ceil(NANOS_PER_MS));
        (due > now).then_some(due)
    }

    /// Whether it is full; a full bucket need not be remembered.
    pub fn is_full(&self, now: Millis) -> bool {
        self.full_at_nanos <= nanos(now)
    }
}

fn nanos(time: Millis) -> u64 {
    time.as_u64() * NANOS_PER_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let (mut bucket, rate) = (Bucket::default(), Rate::per_second(100));
        let mut taken = |now| (0..).take_while(|_| bucket.take(1, rate, Millis::at(now))).count();
        assert_eq!(taken(0), 500);
        assert_eq!(taken(9), 0);
        assert_eq!(taken(10), 1);
        assert_eq!(taken(1_010), 100);
        assert_eq!(taken(100_000), 500);
    }

    #[test]
    fn a_refused_amount_costs_nothing_and_a_debt_must_be_waited_for() {
        let (mut bucket, rate) = (Bucket::default(), Rate::per_second(1_000));
        let at = Millis::at;
        assert!(!bucket.take(5_001, rate, at(0)) && bucket.is_full(at(0)));
        bucket.owe(5_000, rate, at(0));
        assert_eq!(bucket.in_debt_until(at(0)), None);
        bucket.owe(250, rate, at(0));
        assert_eq!(bucket.in_debt_until(at(0)), Some(at(250)));
        assert_eq!(bucket.in_debt_until(at(250)), None);
        assert!(!bucket.is_full(at(5_249)) && bucket.is_full(at(5_250)));
    }

    #[test]
    fn a_bucket_takes_any_rate_and_any_amount() {
        let mut bucket = Bucket::default();
        bucket.owe(u64::MAX, Rate::per_second(0), Millis::at(u64::MAX / NANOS_PER_MS));
        assert!(bucket.in_debt_until(Millis::at(0)).is_some());
        let rate = Rate::per_second(u64::MAX);
        assert!((0..1_000_000).all(|_| Bucket::default().take(1, rate, Millis::at(0))));
    }
}
