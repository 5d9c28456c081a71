//! Logarithmic axes with ticks that a person reads at once.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// One axis, in logarithms.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) range: Range<f64>,
    pub(super) ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        let Range { start, end } = self.range;
        left + ((value - start) / (end - start) * f64::from(right - left)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// `drawing.rs` gives the formats.
impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        value.to_string()
    }
}

/// Sizes, by powers of two.
pub(super) fn sizes(values: impl Iterator<Item = f64>) -> Option<Axis> {
    let (lowest, highest) = bounds(values)?;
    let (first, last) = (lowest.log2().floor() as i32, highest.log2().ceil() as i32);
    let step = ((last - first) as usize).div_ceil(MOST_SIZES).max(1);
    let ticks: Vec<f64> = (first..=last).step_by(step).map(f64::from).collect();
    Some(Axis { range: f64::from(first) - 0.2..f64::from(last.max(first + 1)) + 0.2, ticks })
}

/// Bandwidths or times, by powers of ten and their parts.
pub(super) fn values(values: impl Iterator<Item = f64>) -> Option<Axis> {
    let (lowest, highest) = bounds(values)?;
    let (first, last) = (lowest.log10().floor() as i32, highest.log10().ceil() as i32);
    let parts: &[f64] = match last - first {
        ..=2 => &[1.0, 2.0, 5.0],
        3..=4 => &[1.0, 3.0],
        _ => &[1.0],
    };
    let all = (first - 1..=last)
        .flat_map(|power| parts.iter().map(move |part| f64::from(power) + part.log10()));
    let mut ticks: Vec<f64> = all.collect();
    // The picture begins at the last tick below the data and ends at the first above it.
    let (low, high) = (lowest.log10(), highest.log10());
    let begin = ticks.iter().rposition(|tick| *tick <= low + EXACT)?;
    let end = ticks.iter().position(|tick| *tick >= high - EXACT)?;
    ticks.truncate(end.max(begin + 1) + 1);
    ticks.drain(..begin);
    Some(Axis { range: ticks.first()? - 0.02..ticks.last()? + 0.02, ticks })
}

/// `64 KiB`, of a size's logarithm.
pub(super) fn size_label(log: &f64) -> String {
    let power = log.round() as i32;
    let (unit, below) = match power {
        ..10 => ("B", 0),
        10..20 => ("KiB", 10),
        20..30 => ("MiB", 20),
        30..40 => ("GiB", 30),
        _ => ("TiB", 40),
    };
    format!("{} {unit}", 2_f64.powi(power - below))
}

/// `50 MB/s`, of the logarithm of a bandwidth in GB/s.
pub(super) fn bandwidth_label(log: &f64) -> String {
    let bytes = 10_f64.powf(*log + 9.0);
    let (unit, below) = match *log {
        log if log > 3.0 - EXACT => ("TB/s", 1e12),
        log if log > -EXACT => ("GB/s", 1e9),
        log if log > -3.0 - EXACT => ("MB/s", 1e6),
        log if log > -6.0 - EXACT => ("KB/s", 1e3),
        _ => ("B/s", 1.0),
    };
    // Ticks have one digit.
    let value = bytes / below;
    if value >= 0.95 { format!("{value:.0} {unit}") } else { format!("{value:.1e} {unit}") }
}

/// `50 us`, of the logarithm of a time in microseconds.
pub(super) fn time_label(log: &f64) -> String {
    let (unit, below) = match *log {
        log if log > 6.0 - EXACT => ("s", 1e6),
        log if log > 3.0 - EXACT => ("ms", 1e3),
        log if log > -EXACT => ("us", 1.0),
        _ => ("ns", 1e-3),
    };
    format!("{:.0} {unit}", 10_f64.powf(*log) / below)
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| match bounds {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// Labels that stand side by side without touching.
const MOST_SIZES: usize = 8;
/// Between a logarithm and itself, computed another way.
const EXACT: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_enclose_the_values_and_read_well() {
        let axis = sizes([8.0, 1024.0, 67_108_864.0].into_iter()).unwrap();
        let labels: Vec<_> = axis.ticks.iter().map(size_label).collect();
        assert_eq!(
            labels,
            ["8 B", "64 B", "512 B", "4 KiB", "32 KiB", "256 KiB", "2 MiB", "16 MiB"]
        );
        let labels: Vec<_> = sizes([1024.0].into_iter()).unwrap().ticks;
        assert_eq!(labels.iter().map(size_label).collect::<Vec<_>>(), ["1 KiB"]);

        let labels = |values: &[f64]| -> Vec<String> {
            let axis = super::values(values.iter().copied()).unwrap();
            for value in values {
                assert!(axis.range.contains(&value.log10()), "{value} {axis:?}");
            }
            axis.ticks.iter().map(bandwidth_label).collect()
        };
        assert_eq!(labels(&[0.9, 3.0]), ["500 MB/s", "1 GB/s", "2 GB/s", "5 GB/s"]);
        assert_eq!(labels(&[1.0]), ["1 GB/s", "2 GB/s"]);
        assert_eq!(labels(&[0.002, 2.0]).first().unwrap(), "1 MB/s");
        assert_eq!(labels(&[1e-7, 120.0]).first().unwrap(), "100 B/s");
        assert_eq!(labels(&[1e-7, 1200.0]).last().unwrap(), "10 TB/s");
        let times = [-1.0, 0.0, 2.0, 3.0, 6.0].map(|log| time_label(&log));
        assert_eq!(times, ["100 ns", "1 us", "100 us", "1 ms", "1 s"]);
        assert!(sizes([].into_iter()).is_none() && values([].into_iter()).is_none());
    }
}
