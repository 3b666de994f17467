//! A histogram of latencies: it has a fixed size, is exact to 3 %, and is cheap enough for a million values per second.

/// Buckets per doubling of the value.
const STEPS: u64 = 32;

/// Counts of values in nanoseconds.
#[derive(Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; 64 * STEPS as usize], count: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, nanos: u64) {
        self.buckets[Self::bucket(nanos)] += 1;
        self.count += 1;
    }

    /// The quantile of this part (0.5, 0.99) of the values, in milliseconds.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let rank = (self.count as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return Self::upper(bucket) as f64 / 1e6;
            }
        }
        f64::NAN // nothing was measured
    }

    /// Values below `STEPS` have a bucket each; above, the top bits after the first choose the bucket.
    fn bucket(nanos: u64) -> usize {
        let doublings = u64::from(nanos.max(STEPS).ilog2() - STEPS.ilog2());
        (doublings * STEPS + (nanos >> doublings)) as usize
    }

    fn upper(bucket: usize) -> u64 {
        let doublings = (bucket as u64 / STEPS).saturating_sub(1);
        (bucket as u64 - doublings * STEPS) << doublings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_percent() {
        let mut histogram = Histogram::default();
        (1..=1_000_000).for_each(|i| histogram.add(i * 1000));
        for part in [0.01, 0.5, 0.99, 1.0] {
            let (found, truth) = (histogram.quantile_ms(part), 1000.0 * part);
            assert!((found / truth - 1.0).abs() < 0.033, "{part}: {found} for {truth}");
        }
    }

    #[test]
    fn buckets_ascend_and_each_value_lies_within_the_bounds_of_its_bucket() {
        for nanos in [0, 1, 31, 32, 33, 63, 64, 65, 1000, 123_456_789, u64::MAX / 2] {
            let bucket = Histogram::bucket(nanos);
            assert!(Histogram::upper(bucket) <= nanos && nanos < Histogram::upper(bucket + 1), "{nanos}");
        }
    }
}
