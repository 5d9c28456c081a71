//! What was measured, as a file that can be read again.

use std::collections::BTreeMap;

use allfold_bench::ladder::Row;
use allfold_bench::plot::{self, Series};
use allfold_bench::turns::median;
use serde::{Deserialize, Serialize};

use crate::contenders::NAMES;
use crate::options::Options;

#[derive(Serialize, Deserialize, Default)]
pub(crate) struct Report {
    pub(crate) collective: String,
    pub(crate) ranks: usize,
    /// Between two hosts: bytes of a packet, and Mbit/s where it is held to a rate.
    pub(crate) mtu: Option<u32>,
    pub(crate) rate_mbit: Option<u32>,
    /// Of each run that is in here.
    pub(crate) environments: Vec<BTreeMap<String, String>>,
    pub(crate) rows: Vec<Measured>,
    /// Who is missing, failed or took too long.
    pub(crate) problems: Vec<String>,
}

/// One contender at one size.
#[derive(Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) by: String,
    pub(crate) bytes: usize,
    /// Of the turns' medians.
    pub(crate) median_us: f64,
    pub(crate) turns: Vec<Turn>,
}

/// What one turn found.
#[derive(Serialize, Deserialize)]
pub(crate) struct Turn {
    pub(crate) calls: usize,
    pub(crate) median_us: f64,
    pub(crate) least_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) processor_us: f64,
}

impl Report {
    pub(crate) fn new(options: &Options, environment: BTreeMap<String, String>) -> Self {
        Self {
            collective: "all_reduce, f32 sum, in place".into(),
            ranks: options.ranks,
            mtu: options.wire.map(|wire| wire.mtu),
            rate_mbit: options.wire.and_then(|wire| wire.rate),
            environments: vec![environment],
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, by: &str, row: &Row) {
        let Row { bytes, calls, median_us, least_us, p95_us, processor_us, .. } = *row;
        let turn = Turn { calls, median_us, least_us, p95_us, processor_us };
        self.put(by, bytes, vec![turn]);
    }

    /// Takes in another run with as many ranks.
    pub(crate) fn join(&mut self, other: Self) -> Result<(), String> {
        let of = |report: &Self| (report.ranks, report.mtu, report.rate_mbit);
        if of(self) != of(&other) {
            return Err("runs of other ranks, or on another network".into());
        }
        self.environments.extend(other.environments);
        self.problems.extend(other.problems);
        for Measured { by, bytes, turns, .. } in other.rows {
            self.put(&by, bytes, turns);
        }
        Ok(())
    }

    fn put(&mut self, by: &str, bytes: usize, turns: Vec<Turn>) {
        let is_same = |row: &&mut Measured| row.by == by && row.bytes == bytes;
        if self.rows.iter_mut().find(is_same).is_none() {
            let row = Measured { by: by.into(), bytes, median_us: 0.0, turns: Vec::new() };
            self.rows.push(row);
        }
        if let Some(row) = self.rows.iter_mut().find(is_same) {
            row.turns.extend(turns);
            row.median_us = median(row.turns.iter().map(|turn| turn.median_us).collect());
        }
    }

    /// Those that have a figure, in the order of the table.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let has_row = |name: &&str| self.rows.iter().any(|row| row.by == **name);
        NAMES.into_iter().filter(has_row).collect()
    }

    pub(crate) fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self.rows.iter().map(|row| row.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// The median in microseconds.
    pub(crate) fn time(&self, by: &str, bytes: usize) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.by == by && row.bytes == bytes)?;
        Some(row.median_us)
    }

    /// Seconds of processor, of all ranks and threads, for 10^9 bytes that one rank sends.
    pub(crate) fn processor(&self, by: &str, bytes: usize) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.by == by && row.bytes == bytes)?;
        let times = row.turns.iter().map(|turn| turn.processor_us).collect();
        Some(median(times) / 1e6 / (self.sent(bytes) / 1e9))
    }

    /// Those whose medians are of fewer turns than another's at that size, and of how many.
    pub(crate) fn short(&self) -> impl Iterator<Item = (&Measured, usize)> {
        self.rows.iter().filter_map(|row| {
            let same = self.rows.iter().filter(|other| other.bytes == row.bytes);
            let most = same.map(|other| other.turns.len()).max()?;
            (row.turns.len() < most).then_some((row, most))
        })
    }

    /// Bytes that one rank sends at least.
    pub(crate) fn sent(&self, bytes: usize) -> f64 {
        bytes as f64 * 2.0 * (self.ranks - 1) as f64 / self.ranks as f64
    }

    pub(crate) fn picture(&self) -> Result<String, String> {
        let line = |name: &'static str| {
            let rows = self.rows.iter().filter(|row| row.by == name);
            let mut points: Vec<_> = rows.map(|row| (row.bytes as f64, row.median_us)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series { label: name.into(), points }
        };
        let series: Vec<Series> = self.names().into_iter().map(line).collect();
        let title = format!("{} ranks: time of an all-reduce over size", self.ranks);
        plot::times(&title, &series)?.ok_or_else(|| "there is no figure".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_fewer_turns_are_named() {
        let row = |bytes, median_us| Row {
            bytes,
            calls: 10,
            median_us,
            least_us: 1.0,
            p95_us: 9.0,
            wrong: 0,
            processor_us: 1.0,
        };
        let mut report = Report { ranks: 2, ..Report::default() };
        for time in [1.0, 2.0, 6.0] {
            report.add("gloo", &row(4, time));
            report.add("gloo", &row(64, time));
            report.add("mpich", &row(4, time));
        }
        assert_eq!(report.short().count(), 0);
        // It was stopped in the second turn.
        report.add("mpich", &row(64, 5.0));
        let short: Vec<_> = report.short().collect();
        let [(found, 3)] = short[..] else { panic!("{}", short.len()) };
        assert_eq!((found.by.as_str(), found.bytes, found.turns.len()), ("mpich", 64, 1));
        assert_eq!(report.time("gloo", 64), Some(2.0));
        let text = crate::tables::print(&report);
        assert!(text.contains("mpich at 64 (1 of 3)"), "{text}");
    }
}
