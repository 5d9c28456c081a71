//! How long waits took, in buckets that any thread adds to and reads: the layout of
//! HdrHistogram (Gil Tene), with atomics instead of a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::LateStatistics;

/// Of waits that have ended.
pub(super) struct Waits {
    longest_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Waits {
    fn default() -> Self {
        Self { longest_ns: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl Waits {
    pub(super) fn add(&self, nanoseconds: u64) {
        self.longest_ns.fetch_max(nanoseconds, Relaxed);
        self.buckets[bucket_of(nanoseconds)].fetch_add(1, Relaxed);
    }

    /// What they come to; `total` is known elsewhere.
    pub(super) fn summary(&self, total: Duration) -> LateStatistics {
        let longest = self.longest_ns.load(Relaxed);
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let at = |percent: u64| {
            // Rounded up, so that there is such a wait.
            let wanted = (count * percent).div_ceil(100);
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= wanted
            });
            Duration::from_nanos(bucket.map_or(0, last_of).min(longest))
        };
        let (p50, p99) = (at(50), at(99));
        LateStatistics { count, total, p50, p99, max: Duration::from_nanos(longest) }
    }
}

/// The first `PARTS` buckets are a unit wide; then every doubling has as many.
fn bucket_of(nanoseconds: u64) -> usize {
    let units = nanoseconds >> UNIT_BITS;
    let width = units.max(1).ilog2().saturating_sub(PART_BITS);
    let bucket = ((u64::from(width) << PART_BITS) + (units >> width)) as usize;
    bucket.min(BUCKETS - 1)
}

/// The longest wait that falls into a bucket, in nanoseconds.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let width = (bucket >> PART_BITS).saturating_sub(1);
    let start = bucket - (width << PART_BITS);
    ((start + 1) << (width + UNIT_BITS)) - 1
}

/// A unit is 1,024 ns: nobody is late by less.
const UNIT_BITS: u64 = 10;
/// 32 buckets a doubling: a percentile is at most 1/32 too long.
const PART_BITS: u32 = 5;
/// Up to 2^34 units, five hours: a wait that is longer counts as that long, except for `max`. With
/// the buckets of one unit 8 KiB for each peer that was late.
const BUCKETS: usize = (34 - PART_BITS as usize + 1) << PART_BITS;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(last_of(bucket)), bucket);
            assert_eq!(bucket_of(last_of(bucket) + 1), bucket + 1);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(Waits::default().summary(Duration::ZERO), LateStatistics::default());
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_waits(
            waits in prop::collection::vec((0u32..44).prop_flat_map(|bits| 0..1u64 << bits), 1..300),
        ) {
            let buckets = Waits::default();
            waits.iter().for_each(|wait| buckets.add(*wait));
            let mut sorted = waits.clone();
            sorted.sort_unstable();
            let summary = buckets.summary(Duration::from_secs(7));
            prop_assert_eq!(summary.count, waits.len() as u64);
            prop_assert_eq!(summary.total, Duration::from_secs(7));
            prop_assert_eq!(summary.max.as_nanos() as u64, sorted[sorted.len() - 1]);
            for (percent, found) in [(50, summary.p50), (99, summary.p99)] {
                let exact = sorted[(sorted.len() * percent).div_ceil(100) - 1];
                let found = found.as_nanos() as u64;
                prop_assert!((exact..=exact + exact / 32 + 1024).contains(&found),
                    "p{}: {} for {}", percent, found, exact);
            }
        }
    }
}
