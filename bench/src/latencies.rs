//! The latency of every timed iteration, as a histogram of constant size.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::PerIteration;

/// The latencies of one size on this rank.
pub(crate) struct Latencies {
    /// Nanoseconds; none only if the library refuses the constants below.
    histogram: Option<Histogram<u64>>,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, DIGITS).ok();
        Self { histogram }
    }

    pub(crate) fn clear(&mut self) {
        if let Some(histogram) = &mut self.histogram {
            histogram.reset();
        }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// nccl-tests' figures, by their definitions of a percentile and of the deviation.
    pub(crate) fn summary(&self) -> Option<PerIteration> {
        let histogram = self.histogram.as_ref().filter(|h| !h.is_empty())?;
        let count = histogram.len();
        // The quantile in the middle of a rank, so that rounding cannot choose its neighbour.
        let at = |rank: u64| {
            let quantile = (rank as f64 - 0.5) / count as f64;
            microseconds(histogram.value_at_quantile(quantile) as f64)
        };
        let average = microseconds(histogram.mean());
        let deviation = microseconds(histogram.stdev());
        Some(PerIteration {
            skipped_iterations: 0,
            min_us: microseconds(histogram.min() as f64),
            max_us: microseconds(histogram.max() as f64),
            avg_us: average,
            p50_us: at(count / 2 + 1),
            p95_us: at((count * 95).div_ceil(100)),
            p99_us: at((count * 99).div_ceil(100)),
            stdev_us: deviation,
            cv_pct: if average > 0.0 { deviation / average * 100.0 } else { 0.0 },
        })
    }
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
        let mut latencies = Latencies::new();
        assert!(latencies.summary().is_none());
        for microseconds in 1..=20 {
            latencies.record(Duration::from_micros(microseconds));
        }
        let summary = latencies.summary().unwrap();
        let near = |a: f64, b: f64| (a - b).abs() <= b * 2e-3;
        assert!(near(summary.min_us, 1.0), "{summary:?}");
        assert!(near(summary.max_us, 20.0), "{summary:?}");
        assert!(near(summary.avg_us, 10.5), "{summary:?}");
        // sorted[n / 2], sorted[ceil(n * p / 100) - 1]
        assert!(near(summary.p50_us, 11.0), "{summary:?}");
        assert!(near(summary.p95_us, 19.0), "{summary:?}");
        assert!(near(summary.p99_us, 20.0), "{summary:?}");
        assert!(near(summary.stdev_us, 5.766), "{summary:?}");
        assert!(near(summary.cv_pct, 54.92), "{summary:?}");

        latencies.clear();
        latencies.record(Duration::from_secs(1_000_000));
        let summary = latencies.summary().unwrap();
        assert!(near(summary.p50_us, 3.6e9), "{summary:?}");
        assert!(near(summary.p99_us, 3.6e9), "{summary:?}");
    }
}
