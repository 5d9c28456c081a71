//! Counts cases by kind: how long the survivors took, and what was wrong.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::case::{Case, Launch, What};
use super::judge::{Problem, Verdict};

/// All cases that were run.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<Kind, Row>,
    failures: Vec<(Case, Vec<Problem>)>,
}

/// What is counted together.
type Kind = (Launch, bool, What);

#[derive(Debug, Default)]
struct Row {
    cases: usize,
    times: Vec<Duration>,
    wrong: usize,
    hangs: usize,
    late: usize,
}

impl Table {
    /// Counts a case.
    pub fn add(&mut self, case: &Case, verdict: Verdict) {
        let kind = (case.launch, !case.is_before_the_world(), case.what);
        let row = self.rows.entry(kind).or_default();
        row.cases += 1;
        row.times.extend(&verdict.times);
        let has = |is: fn(&Problem) -> bool| usize::from(verdict.problems.iter().any(is));
        row.hangs += has(|problem| matches!(problem, Problem::Hang(_)));
        row.late += has(Problem::is_of_time);
        row.wrong += has(|problem| !problem.is_of_time() && !matches!(problem, Problem::Hang(_)));
        if !verdict.problems.is_empty() {
            self.failures.push((*case, verdict.problems));
        }
    }

    /// The table, in Markdown.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "| started by | when | what | cases | p50 | p99 | max | too late | wrong | hangs |\n\
             | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        );
        for ((launch, is_world, what), row) in &self.rows {
            let when = if *is_world { "in the world" } else { "while meeting" };
            let mut times = row.times.clone();
            times.sort_unstable();
            let at = |share: f64| seconds(quantile(&times, share));
            let _ = writeln!(
                text,
                "| {launch} | {when} | {} | {} | {} | {} | {} | {} | {} | {} |",
                what.words(),
                row.cases,
                at(0.5),
                at(0.99),
                at(1.0),
                row.late,
                row.wrong,
                row.hangs
            );
        }
        text
    }

    /// The cases in which something was not as promised.
    pub fn failures(&self) -> &[(Case, Vec<Problem>)] {
        &self.failures
    }
}

/// The least of the times that at least this share do not exceed.
fn quantile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1).min(last)).copied()
}

fn seconds(duration: Option<Duration>) -> String {
    duration.map_or("-".into(), |duration| format!("{:.3} s", duration.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Some(Duration::from_millis(100)));
        assert_eq!(quantile(&times, 0.99), Some(Duration::from_millis(198)));
        assert_eq!(quantile(&times, 1.0), Some(Duration::from_millis(200)));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
