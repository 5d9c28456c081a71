//! What allfold's calls on GPUs take beside the same calls straight to NCCL: lines that begin with
//! `#`, so that nccl-tests' columns stay theirs.

use std::fmt::Write;

use crate::number::cell;
use crate::table::Row;

/// A half of a row, each the median of passes in which the two take turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Beside {
    /// Of a call of allfold's.
    pub(crate) time_us: f64,
    /// Of a call straight to NCCL, on the same communicator, buffers and stream.
    pub(crate) raw_us: f64,
}

impl Beside {
    /// 1 where nothing is lost.
    pub(crate) fn ratio(self) -> f64 {
        self.time_us / self.raw_us
    }

    fn more_us(self) -> f64 {
        self.time_us - self.raw_us
    }

    /// Whether the time is that of moving `bytes`, and not that of a launch alone.
    fn is_long(self, bytes: usize) -> bool {
        bytes >= LARGE && self.raw_us >= LONG_US
    }
}

/// All rows, and those that were not shown yet.
#[derive(Default)]
pub(crate) struct Comparison {
    rows: Vec<(usize, [Option<Beside>; 2])>,
    /// The largest ratio of calls that are long, and at which size.
    ratio: Option<(f64, usize)>,
    /// The most microseconds of others.
    more_us: Option<(f64, usize)>,
}

impl Comparison {
    pub(crate) fn add(&mut self, row: &Row) {
        let halves = [&row.out_of_place, &row.in_place];
        let halves = halves.map(|half| half.as_ref().and_then(|half| half.beside));
        for half in halves.into_iter().flatten() {
            let (worst, value) = match half.is_long(row.bytes) {
                true => (&mut self.ratio, half.ratio()),
                false => (&mut self.more_us, half.more_us()),
            };
            if worst.is_none_or(|(worst, _)| value > worst) {
                *worst = Some((value, row.bytes));
            }
        }
        if halves.iter().any(Option::is_some) {
            self.rows.push((row.bytes, halves));
        }
    }

    /// The rows since the last time, in lines below the table's.
    pub(crate) fn lines(&mut self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "#\n# Beside raw NCCL: the same calls straight to it, in this process, on the same \
             communicator\n# {:>10}  {:^26}  {:^26}\n# {:>10}",
            "", "out-of-place", "in-place", "size"
        );
        // Writing to a string cannot fail.
        for _ in 0..2 {
            let _ = write!(text, "  {:>9}  {:>6}  {:>7}", "raw", "ratio", "more");
        }
        let _ = write!(text, "\n# {:>10}", "(B)");
        for _ in 0..2 {
            let _ = write!(text, "  {:>9}  {:>6}  {:>7}", "(us)", "", "(us)");
        }
        text.push('\n');
        for (bytes, halves) in self.rows.drain(..) {
            let _ = write!(text, "# {bytes:>10}");
            for half in halves {
                let _ = match half {
                    Some(half) => write!(
                        text,
                        "  {:>9}  {:>6.3}  {:>+7.2}",
                        cell(half.raw_us, 7).trim_start(),
                        half.ratio(),
                        half.more_us(),
                    ),
                    None => write!(text, "  {:26}", ""),
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text + "#\n"
    }

    /// The worst of all rows, in one line.
    pub(crate) fn summary(&self) -> Option<String> {
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        let long = self.ratio.map(|(ratio, bytes)| {
            format!("{:+.1} % from 1 MiB and 50 us on (at {bytes} B)", percent(ratio))
        });
        let others =
            self.more_us.map(|(more, bytes)| format!("{more:+.2} us below (at {bytes} B)"));
        let found: Vec<String> = long.into_iter().chain(others).collect();
        (!found.is_empty())
            .then(|| format!("# {:<20} : at most {}\n", "Beside raw NCCL", found.join(", ")))
    }
}

/// Below it microseconds count, from it on shares of a time.
const LARGE: usize = 1 << 20;
/// Of NCCL's own call. Where that takes less, as between GPUs with fast links, 2 us are a large share
/// of it.
const LONG_US: f64 = 50.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Half;

    fn row(bytes: usize, times: [Option<(f64, f64)>; 2]) -> Row {
        let half = |(time_us, raw_us): (f64, f64)| {
            let mut half = Half::new(bytes, time_us / 1e6, 1.0, Some(0));
            half.beside = Some(Beside { time_us, raw_us });
            half
        };
        let [out_of_place, in_place] = times.map(|times| times.map(half));
        let (datatype, op, root) = ("float", None, None);
        Row { bytes, count: bytes / 4, datatype, op, root, out_of_place, in_place }
    }

    #[test]
    fn rows_are_shown_once_and_the_worst_at_the_end() {
        let mut comparison = Comparison::default();
        assert_eq!((comparison.lines(), comparison.summary()), (String::new(), None));
        comparison.add(&row(8, [Some((10.5, 10.0)), Some((9.0, 10.0))]));
        comparison.add(&row(1 << 20, [None, Some((101.0, 100.0))]));
        let lines = comparison.lines();
        assert!(lines.lines().all(|line| line.starts_with('#')), "{lines}");
        let cells: Vec<Vec<&str>> =
            lines.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(cells[5], ["#", "8", "10.00", "1.050", "+0.50", "10.00", "0.900", "-1.00"]);
        assert_eq!(cells[6], ["#", "1048576", "100.00", "1.010", "+1.00"]);
        let end = |line: &str, word: &str| line.rfind(word).unwrap() + word.len();
        let (title, last) = (lines.lines().nth(3).unwrap(), lines.lines().nth(6).unwrap());
        assert_eq!(end(title, "more"), end(last, "+1.00"));
        assert_eq!(comparison.lines(), "");
        comparison.add(&row(2 << 20, [Some((99.0, 100.0)), None]));
        assert_eq!(
            comparison.summary().unwrap(),
            "# Beside raw NCCL      : at most +1.0 % from 1 MiB and 50 us on (at 1048576 B), +0.50 us \
             below (at 8 B)\n"
        );
        // A large share of little.
        comparison.add(&row(4 << 20, [Some((51.4, 49.9)), None]));
        assert_eq!(
            comparison.summary().unwrap(),
            "# Beside raw NCCL      : at most +1.0 % from 1 MiB and 50 us on (at 1048576 B), +1.50 us \
             below (at 4194304 B)\n"
        );
    }
}
