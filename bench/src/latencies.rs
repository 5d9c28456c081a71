//! The times of the iterations of one size: of every rank, of the slowest of each iteration, and
//! what they come to.

use std::time::Duration;

use allfold::{Communicator, ReduceOp, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

/// How much of the iterations is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Nothing: no column or file shows it.
    None,
    /// The statistics.
    Summary,
    /// Those, and every time of every rank.
    Full,
}

/// Statistics over the iterations of one size, in microseconds, by nccl-tests' names.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PerIteration {
    pub(crate) skipped_iterations: usize,
    pub(crate) min_us: f64,
    pub(crate) max_us: f64,
    pub(crate) avg_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) stdev_us: f64,
    pub(crate) cv_pct: f64,
    /// The slowest rank's time of each iteration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) times_us: Vec<f64>,
    /// Every rank's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) per_process_max_times_us: Vec<Vec<f64>>,
}

/// This rank's times, in microseconds.
pub(crate) struct Latencies(Vec<f64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes room for so many, so that recording allocates nothing.
    pub(crate) fn clear(&mut self, iterations: usize) {
        self.0.clear();
        self.0.reserve(iterations);
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.push(latency.as_nanos() as f64 / 1e3);
    }

    /// Puts the ranks' times together, leaving the first `skip` out of the statistics. Every rank
    /// makes the call.
    pub(crate) fn gather(
        &self,
        world: &Communicator,
        detail: Detail,
        skip: usize,
    ) -> Result<Option<PerIteration>> {
        let mut slowest = self.0.clone();
        let mut all = Vec::new();
        match detail {
            Detail::None => return Ok(None),
            Detail::Summary => world.all_reduce(&mut slowest, ReduceOp::Max)?,
            Detail::Full => {
                all = vec![0.0; self.0.len() * world.size()];
                world.all_gather(&self.0, &mut all)?;
                for times in all.chunks_exact(slowest.len().max(1)) {
                    for (slowest, time) in slowest.iter_mut().zip(times) {
                        *slowest = slowest.max(*time);
                    }
                }
            }
        }
        let mut summary = summarise(&slowest, skip);
        if let (Some(summary), Detail::Full) = (&mut summary, detail) {
            if world.size() > 1 {
                let rows = all.chunks_exact(slowest.len().max(1));
                summary.per_process_max_times_us = rows.map(<[f64]>::to_vec).collect();
            }
            summary.times_us = slowest;
        }
        Ok(summary)
    }
}

/// nccl-tests' figures, by their definitions of a percentile and of the deviation.
pub(crate) fn summarise(times: &[f64], skip: usize) -> Option<PerIteration> {
    // None only if the library refuses the constants below.
    let mut histogram =
        Histogram::<u64>::new_with_bounds(1, LONGEST.as_nanos() as u64, DIGITS).ok()?;
    for time in times.iter().skip(skip) {
        histogram.saturating_record((time * 1e3) as u64);
    }
    if histogram.is_empty() {
        return None;
    }
    let count = histogram.len();
    // The quantile in the middle of a rank, so that rounding cannot choose its neighbour.
    let at = |rank: u64| {
        let quantile = (rank as f64 - 0.5) / count as f64;
        microseconds(histogram.value_at_quantile(quantile) as f64)
    };
    let average = microseconds(histogram.mean());
    let deviation = microseconds(histogram.stdev());
    Some(PerIteration {
        skipped_iterations: skip,
        min_us: microseconds(histogram.min() as f64),
        max_us: microseconds(histogram.max() as f64),
        avg_us: average,
        p50_us: at(count / 2 + 1),
        p95_us: at((count * 95).div_ceil(100)),
        p99_us: at((count * 99).div_ceil(100)),
        stdev_us: deviation,
        cv_pct: if average > 0.0 { deviation / average * 100.0 } else { 0.0 },
        times_us: Vec::new(),
        per_process_max_times_us: Vec::new(),
    })
}

fn microseconds(nanoseconds: f64) -> f64 {
    nanoseconds / 1e3
}

/// Longer latencies count as this one.
const LONGEST: Duration = Duration::from_secs(3600);
/// Significant digits of a latency: 0.1 % is below any noise.
const DIGITS: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert!(summarise(&[], 0).is_none());
        assert!(summarise(&[1.0], 1).is_none());
        let times: Vec<f64> = (0..=20).map(|i| if i == 0 { 1e9 } else { f64::from(i) }).collect();
        let summary = summarise(&times, 1).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() <= b * 2e-3;
        assert_eq!(summary.skipped_iterations, 1);
        assert!(near(summary.min_us, 1.0), "{summary:?}");
        assert!(near(summary.max_us, 20.0), "{summary:?}");
        assert!(near(summary.avg_us, 10.5), "{summary:?}");
        // sorted[n / 2], sorted[ceil(n * p / 100) - 1]
        assert!(near(summary.p50_us, 11.0), "{summary:?}");
        assert!(near(summary.p95_us, 19.0), "{summary:?}");
        assert!(near(summary.p99_us, 20.0), "{summary:?}");
        assert!(near(summary.stdev_us, 5.766), "{summary:?}");
        assert!(near(summary.cv_pct, 54.92), "{summary:?}");

        let summary = summarise(&[1e12], 0).unwrap();
        assert!(near(summary.p50_us, 3.6e9), "{summary:?}");
        assert!(near(summary.p99_us, 3.6e9), "{summary:?}");
    }

    #[test]
    fn an_iteration_takes_as_long_as_its_slowest_rank() {
        let worlds = Communicator::in_memory(2).unwrap();
        let times = [[10.0, 40.0], [30.0, 20.0]];
        std::thread::scope(|scope| {
            let rank = |world: Communicator| {
                let own = Latencies(times[world.rank()].to_vec());
                let full = own.gather(&world, Detail::Full, 0).unwrap().unwrap();
                assert_eq!(full.times_us, [30.0, 40.0]);
                assert_eq!(full.per_process_max_times_us, times.map(|t| t.to_vec()));
                let brief = own.gather(&world, Detail::Summary, 0).unwrap().unwrap();
                assert!(brief.times_us.is_empty() && brief.per_process_max_times_us.is_empty());
                assert_eq!((brief.min_us, brief.max_us), (full.min_us, full.max_us));
                assert!(own.gather(&world, Detail::None, 0).unwrap().is_none());
            };
            for world in worlds {
                scope.spawn(move || rank(world));
            }
        });
    }
}
