//! What allfold is held to beside the speed of all-reduces (`peers`): how fast ranks connect, what
//! memory they take, and how much of two trainings' speed is left when they train together.
//!
//! ```console
//! $ cargo build --release -p allfold-launcher
//! $ cargo run --release -p allfold-bench --example targets -- [connect] [memory] [trainer] [--turns N]
//! ```
//!
//! Each line says the target, what was measured, and whether it is met; with several turns the
//! median. The network's targets are `peers --veth MTU [--rate-mbit N]`.

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

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["rank", "connect"] => {
            connect::rank();
            return ExitCode::SUCCESS;
        }
        ["rank", "memory", how] => {
            memory::rank(how);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    processes::adopt_orphans();
    let mut turns = 3;
    if let Some(at) = words.iter().position(|word| *word == "--turns") {
        let given: Vec<&str> = words.drain(at..(at + 2).min(words.len())).collect();
        match given.get(1).and_then(|number| number.parse().ok()) {
            Some(number) if number > 0 => turns = number,
            _ => return usage("--turns"),
        }
    }
    if words.is_empty() {
        words = PARTS.to_vec();
    }
    if let Some(unknown) = words.iter().find(|word| !PARTS.contains(word)) {
        return usage(unknown);
    }
    println!("| what | unit | measured | target | |\n| --- | --- | ---: | ---: | --- |");
    for part in words {
        let measured = match part {
            "connect" => connect::measure(turns),
            "memory" => memory::measure(),
            _ => trainer::measure(turns),
        };
        match measured {
            Ok(rows) => rows.iter().for_each(print),
            Err(problem) => eprintln!("skipped: {part}: {problem}"),
        }
    }
    ExitCode::SUCCESS
}

fn print(row: &Row) {
    let Row { what, unit, measured, target } = row;
    let (target, is_met) = match *target {
        Target::AtMost(most) => (format!("<= {most}"), Some(*measured <= most)),
        Target::AtLeast(least) => (format!(">= {least}"), Some(*measured >= least)),
        Target::None => ("-".into(), None),
    };
    let verdict = is_met.map_or("", |is_met| if is_met { "met" } else { "**missed**" });
    println!("| {what} | {unit} | {measured:.2} | {target} | {verdict} |");
}

fn usage(word: &str) -> ExitCode {
    eprintln!("error: `{word}`\nhelp: targets [{}] [--turns N]", PARTS.join("] ["));
    ExitCode::from(2)
}

/// The median.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const PARTS: [&str; 3] = ["connect", "memory", "trainer"];
