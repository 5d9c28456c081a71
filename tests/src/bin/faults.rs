//! The fault suite's commands: each prints a table, and fails where something is not as promised.
//!
//! It is the rank under test and the binary `allfold` as well, so that building this one program
//! builds all.

use std::io::{self, Write};
use std::process::ExitCode;

use allfold::simulation::Random;
use allfold_tests::faults::case::Launch;
use allfold_tests::faults::chaos::Chaos;
use allfold_tests::faults::judge::{Problem, judge};
use allfold_tests::faults::table::Table;
use allfold_tests::faults::world::{Seen, run};
use allfold_tests::faults::{Case, Programs, busy};
use allfold_tests::{allfold, machine_lock, networks, rank};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((word, rest)) if word == "rank" => return rank::main(rest),
        Some((word, rest)) if word == "matrix" => Options::parse(rest).and_then(matrix),
        Some((word, rest)) if word == "chaos" => Options::parse(rest).and_then(chaos),
        Some((word, rest)) if word == "networks" => Options::parse(rest).and_then(bad_networks),
        Some((word, rest)) if word == "busy" => Options::parse(rest).and_then(busy_machine),
        Some((word, _)) if word.starts_with('-') => Err(Failed::usage(format!("`{word}`"))),
        Some(_) => return allfold(),
        None => Err(Failed::usage("what?".into())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { error, help, code }) => {
            let _ = io::stderr().write_all(format!("error: {error}\nhelp: {help}\n").as_bytes());
            code.into()
        }
    }
}

/// Why the command fails.
struct Failed {
    error: String,
    help: String,
    code: u8,
}

impl Failed {
    fn usage(error: String) -> Self {
        Self { error, help: USAGE.into(), code: 2 }
    }

    fn system(error: String) -> Self {
        Self { error, help: "the machine refused it; try again".into(), code: 75 }
    }
}

struct Options {
    turns: usize,
    seed: u64,
    launches: Vec<Launch>,
    case: Option<String>,
    runs: u64,
    seconds: u64,
    shows: bool,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, Failed> {
        let mut options = Self {
            turns: 1,
            seed: 1,
            launches: vec![Launch::Plain, Launch::Run],
            case: None,
            runs: 300,
            seconds: 60,
            shows: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--show" {
                options.shows = true;
                continue;
            }
            let value = words.next().ok_or_else(|| Failed::usage(format!("`{word}` of what?")))?;
            let wrong = || Failed::usage(format!("`{word} {value}`"));
            match word.as_str() {
                "--turns" => options.turns = value.parse().map_err(|_| wrong())?,
                "--seed" => options.seed = value.parse().map_err(|_| wrong())?,
                "--runs" => options.runs = value.parse().map_err(|_| wrong())?,
                "--seconds" => options.seconds = value.parse().map_err(|_| wrong())?,
                "--case" => options.case = Some(value.clone()),
                "--launch" => match value.as_str() {
                    "plain" => options.launches = vec![Launch::Plain],
                    "run" => options.launches = vec![Launch::Run],
                    _ => return Err(wrong()),
                },
                _ => return Err(Failed::usage(format!("`{word}`"))),
            }
        }
        Ok(options)
    }
}

/// Everything that can happen, at every moment.
fn matrix(options: Options) -> Result<(), Failed> {
    let programs = programs()?;
    let exact = options.case.as_ref().and_then(|text| text.parse::<Case>().ok());
    let mut cases = match exact {
        Some(case) => vec![case],
        None => options.launches.iter().flat_map(|launch| Case::matrix(*launch)).collect(),
    };
    if exact.is_none() {
        let text = options.case.clone().unwrap_or_default();
        cases.retain(|case| case.to_string().contains(&text));
    }
    if cases.is_empty() {
        let text = options.case.unwrap_or_default();
        return Err(Failed::usage(format!("no case is or contains `{text}`")));
    }
    let mut random = Random::new(options.seed);
    let mut table = Table::default();
    let total = cases.len() * options.turns;
    let mut done = 0;
    let mut failures = 0;
    for _ in 0..options.turns {
        shuffle(&mut cases, &mut random);
        for case in &cases {
            done += 1;
            let _one_at_a_time = machine_lock();
            let seen = run(case, None, &programs).map_err(Failed::system)?;
            let verdict = judge(case, &seen);
            let replay = format!("matrix --case {case}");
            failures += usize::from(!verdict.problems.is_empty());
            tell(&verdict.problems, &seen, &replay, options.shows);
            progress(done, total, failures);
            table.add(case, verdict);
        }
    }
    print(&table.text());
    finish(failures, total)
}

/// Random calls, and something at a random moment.
fn chaos(options: Options) -> Result<(), Failed> {
    let programs = programs()?;
    let total = options.runs as usize;
    let (mut table, mut failures) = (Table::default(), 0);
    for seed in (options.seed..).take(total) {
        let (case, _) = Chaos::draw(seed);
        let _one_at_a_time = machine_lock();
        let seen = run(&case, Some(seed), &programs).map_err(Failed::system)?;
        let verdict = judge(&case, &seen);
        failures += usize::from(!verdict.problems.is_empty());
        let replay = format!("chaos --runs 1 --seed {seed}");
        tell(&verdict.problems, &seen, &replay, options.shows);
        progress((seed - options.seed) as usize + 1, total, failures);
        table.add(&case, verdict);
    }
    print(&table.text());
    finish(failures, total)
}

/// Hosts of their own, with a bad network between them.
fn bad_networks(options: Options) -> Result<(), Failed> {
    let program = programs()?.rank;
    let (turns, out) = (options.turns as u64, &mut io::stdout());
    match networks::table(turns, options.seed, &program, out).map_err(Failed::system)? {
        true => Ok(()),
        false => Err(Failed {
            error: "not all networks gave what they must".into(),
            help: format!("faults networks --turns {turns} --seed {} tries again", options.seed),
            code: 1,
        }),
    }
}

/// Every core has four times as much to do as it can: nobody is taken for dead.
fn busy_machine(options: Options) -> Result<(), Failed> {
    let _one_at_a_time = machine_lock();
    let told = busy::run(&programs()?, options.seconds).map_err(Failed::system)?;
    print(&format!("{told}\n"));
    match told.problems.is_empty() {
        true => Ok(()),
        false => Err(Failed {
            error: told.problems.join("; "),
            help: format!("`{AGAIN} busy --seconds {}` tries it again", options.seconds),
            code: 1,
        }),
    }
}

fn programs() -> Result<Programs, Failed> {
    let own = std::env::current_exe().map_err(|error| Failed::system(error.to_string()))?;
    let own = own.to_string_lossy().into_owned();
    Ok(Programs { rank: vec![own.clone(), "rank".into()], allfold: vec![own] })
}

/// Says what was wrong with a case, and how to see it again.
fn tell(problems: &[Problem], seen: &Seen, replay: &str, shows: bool) {
    let mut text = String::new();
    if !problems.is_empty() {
        let words: Vec<String> = problems.iter().map(Problem::to_string).collect();
        text = format!("failed: {}\n  again: {AGAIN} {replay} --show\n", words.join("\n        "));
    }
    // A hang is seldom seen twice.
    if shows || problems.iter().any(|problem| matches!(problem, Problem::Hang(_))) {
        text.extend(seen.log.iter().map(|line| format!("  {line}\n")));
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

fn progress(done: usize, total: usize, failures: usize) {
    if done.is_multiple_of(REPORT_EVERY) && done < total {
        let line = format!("{done} of {total} cases, {failures} not as promised\n");
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

fn finish(failures: usize, total: usize) -> Result<(), Failed> {
    match failures {
        0 => Ok(()),
        _ => Err(Failed {
            error: format!("{failures} of {total} cases were not as promised"),
            help: "each is listed above, with the command that replays it".into(),
            code: 1,
        }),
    }
}

fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn shuffle(cases: &mut [Case], random: &mut Random) {
    for last in (1..cases.len()).rev() {
        cases.swap(last, random.below(last as u64 + 1) as usize);
    }
}

const USAGE: &str = "faults matrix [--turns N] [--seed S] [--launch plain|run] [--case TEXT] [--show], \
                     faults chaos [--runs N] [--seed S] [--show], faults networks [--turns N] \
                     [--seed S], or faults busy [--seconds N]";
/// How to run this program.
const AGAIN: &str = "cargo run --release -p allfold-tests --bin faults --";
/// A line a minute, about.
const REPORT_EVERY: usize = 25;
