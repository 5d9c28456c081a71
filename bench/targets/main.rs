//! What allfold is held to beside the speed of all-reduces (`peers`): how fast ranks connect, what
//! memory they take, and how much of two trainings' speed is left when they train together.
//!
//! ```console
//! $ cargo build --release -p allfold-launcher
//! $ cargo run --release -p allfold-bench --example targets -- [connect] [memory] [trainer] [--turns N] [--report]
//! ```
//!
//! Each line says the target, what was measured, and whether it is met; of connecting and training
//! the median of several turns. The exit code is 1 where a target is missed, unless `--report` asks
//! for figures only, or where something could not be measured. The network's targets are
//! `peers --veth MTU [--rate-mbit N]`.

// A benchmark ends by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod connect;
mod memory;
#[path = "../peers/processes.rs"]
mod processes;
mod ranks;
mod trainer;

use std::process::ExitCode;

/// One line of the table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) measured: f64,
    pub(crate) target: Target,
}

#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// It explains another line.
    None,
}

/// Why a part has no figures.
#[derive(Debug)]
pub(crate) enum Problem {
    /// What it needs is not here.
    Skipped(String),
    Failed(String),
}

impl From<String> for Problem {
    fn from(problem: String) -> Self {
        Self::Failed(problem)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["rank", "connect"] => connect::rank(),
        ["rank", "memory", how] => memory::rank(how),
        _ => {
            return match Options::parse(&words) {
                Ok(options) => measure(&options),
                Err(problem) => {
                    let parts = PARTS.join("] [");
                    eprintln!("error: {problem}\nhelp: targets [{parts}] [--turns N] [--report]");
                    ExitCode::from(2)
                }
            };
        }
    }
    ExitCode::SUCCESS
}

struct Options<'a> {
    parts: Vec<&'a str>,
    turns: usize,
    /// Figures only.
    report: bool,
}

impl<'a> Options<'a> {
    fn parse(words: &[&'a str]) -> Result<Self, String> {
        let mut options = Self { parts: Vec::new(), turns: 3, report: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--report" => options.report = true,
                "--turns" => {
                    let turns = words.next().and_then(|turns| turns.parse().ok());
                    let turns = turns.filter(|turns| *turns > 0);
                    options.turns = turns.ok_or("--turns wants a number, at least 1")?;
                }
                part if PARTS.contains(&part) => options.parts.push(part),
                other => return Err(format!("`{other}`")),
            }
        }
        if options.parts.is_empty() {
            options.parts = PARTS.to_vec();
        }
        Ok(options)
    }
}

fn measure(options: &Options<'_>) -> ExitCode {
    processes::take_charge();
    println!("| what | unit | measured | target | |\n| --- | --- | ---: | ---: | --- |");
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for part in &options.parts {
        let measured = match *part {
            "connect" => connect::measure(options.turns).map_err(Problem::from),
            "memory" => memory::measure().map_err(Problem::from),
            _ => trainer::measure(options.turns),
        };
        if let Some(code) = processes::interrupted() {
            eprintln!("error: interrupted");
            return ExitCode::from(code);
        }
        match measured {
            Ok(measured) => {
                measured.iter().for_each(|row| println!("{}", row.line()));
                rows.extend(measured);
            }
            Err(Problem::Skipped(reason)) => eprintln!("skipped: {part}: {reason}"),
            Err(Problem::Failed(problem)) => failed.push(format!("{part}: {problem}")),
        }
    }
    match complaint(&rows, &failed, options.report) {
        None => ExitCode::SUCCESS,
        Some(words) => {
            eprintln!("error: {words}");
            ExitCode::FAILURE
        }
    }
}

/// What was missed, or could not be measured; in a report only the latter counts.
fn complaint(rows: &[Row], failed: &[String], report: bool) -> Option<String> {
    let missed = rows.iter().filter(|row| !report && row.is_met() == Some(false));
    let missed: Vec<&str> = missed.map(|row| row.what.as_str()).collect();
    let missed = (!missed.is_empty()).then(|| format!("missed: {}", missed.join("; ")));
    let words: Vec<String> = failed.iter().cloned().chain(missed).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

impl Row {
    /// Nothing where it has no target.
    fn is_met(&self) -> Option<bool> {
        match self.target {
            Target::AtMost(most) => Some(self.measured <= most),
            Target::AtLeast(least) => Some(self.measured >= least),
            Target::None => None,
        }
    }

    fn line(&self) -> String {
        let Self { what, unit, measured, target } = self;
        let target = match *target {
            Target::AtMost(most) => format!("<= {most}"),
            Target::AtLeast(least) => format!(">= {least}"),
            Target::None => "-".into(),
        };
        let verdict = self.is_met().map_or("", |is_met| if is_met { "met" } else { "**missed**" });
        format!("| {what} | {unit} | {measured:.2} | {target} | {verdict} |")
    }
}

/// The number behind a word that rank 0 printed.
pub(crate) fn number(text: &str, word: &str) -> Result<f64, String> {
    let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).ok_or_else(|| format!("no {word} in {text:?}"))
}

const PARTS: [&str; 3] = ["connect", "memory", "trainer"];

#[cfg(test)]
mod tests {
    use super::*;

    fn row(measured: f64, target: Target) -> Row {
        Row { what: format!("what takes {measured}"), unit: "ms", measured, target }
    }

    #[test]
    fn a_missed_target_is_named_unless_figures_are_all_that_is_asked_for() {
        let rows = [
            row(1.0, Target::AtMost(2.0)),
            row(3.0, Target::AtMost(2.0)),
            row(4.0, Target::AtLeast(5.0)),
            row(6.0, Target::None),
        ];
        let words = complaint(&rows, &[], false).unwrap();
        assert_eq!(words, "missed: what takes 3; what takes 4");
        assert_eq!(complaint(&rows, &[], true), None);
        assert_eq!(complaint(&rows[..1], &[], false), None);
        // Nothing is not a figure.
        assert_eq!(row(f64::NAN, Target::AtMost(2.0)).is_met(), Some(false));
        let failed = ["connect: 64 ranks: exit status: 101".to_string()];
        assert_eq!(complaint(&rows, &failed, true).unwrap(), failed[0]);
    }

    #[test]
    fn options_are_parts_turns_and_report() {
        let options = Options::parse(&["memory", "--turns", "5", "--report"]).unwrap();
        assert_eq!((&options.parts[..], options.turns, options.report), (&["memory"][..], 5, true));
        assert_eq!(Options::parse(&[]).unwrap().parts, PARTS);
        for words in [&["--turns"][..], &["--turns", "0"], &["--turns", "x"], &["speed"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_number_stands_behind_its_word() {
        assert_eq!(number("a 1\nmet 2.5\n", "met"), Ok(2.5));
        assert!(number("meter 2.5", "met").is_err());
    }
}
