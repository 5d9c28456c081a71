//! A sample of the kill matrix: something happens to one rank of a whole job, and every other rank
//! names it. How fast they are is asserted where nothing else runs, by the command that prints the
//! table: `cargo run --release -p allfold-tests --bin faults -- matrix`.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use allfold_tests::faults::case::Launch;
use allfold_tests::faults::judge::{Problem, judge};
use allfold_tests::faults::world::run;
use allfold_tests::faults::{Case, Programs};
use allfold_tests::machine_lock;

#[test]
fn by_plain_environment() {
    sample(Launch::Plain, 18);
}

#[test]
fn under_the_launcher() {
    sample(Launch::Run, 9);
}

#[test]
fn in_a_call_that_several_lanes_make() {
    let _one_at_a_time = machine_lock();
    let cases = ["kill/lanes-middle/2/4/plain", "stop/lanes-middle/0/4/plain"];
    all_kept(cases.into_iter().map(|case| case.parse().unwrap()).collect(), "");
}

/// Runs some of the matrix's cases, drawn from a seed.
fn sample(launch: Launch, count: usize) {
    let _one_at_a_time = machine_lock();
    let seed = seed();
    let cases = match std::env::var(CASE) {
        Ok(text) => vec![text.parse().unwrap()],
        Err(_) => Case::sample(launch, count, seed),
    };
    let cases = cases.into_iter().filter(|case| case.launch == launch).collect();
    all_kept(cases, &format!("{SEED}={seed} draws these cases again:\n"));
}

/// What is promised is kept in all of these cases; else `hint` and the failures.
fn all_kept(cases: Vec<Case>, hint: &str) {
    let mut failures = Vec::new();
    for case in &cases {
        let seen = run(case, None, &programs()).unwrap();
        let problems = judge(case, &seen).problems;
        let problems: Vec<_> = problems.iter().filter(|problem| !problem.is_of_time()).collect();
        if !problems.is_empty() {
            let problems: Vec<String> = problems.into_iter().map(Problem::to_string).collect();
            let (problems, log) = (problems.join("\n  "), seen.log.join("\n    "));
            failures.push(format!(
                "{case} ({CASE}={case} cargo test -p allfold-tests --test matrix):\n  {problems}\n    \
                 {log}"
            ));
        }
    }
    let failures = failures.join("\n");
    assert!(failures.is_empty(), "{hint}{failures}");
}

/// The same sample each time, so that a failure is the code's; another one on demand.
fn seed() -> u64 {
    std::env::var(SEED).map_or(1, |seed| seed.parse().unwrap())
}

fn programs() -> Programs {
    Programs {
        rank: vec![env!("CARGO_BIN_EXE_rank-under-test").into()],
        allfold: vec![env!("CARGO_BIN_EXE_allfold-under-test").into()],
    }
}

/// Draws another sample.
const SEED: &str = "FAULTS_SEED";
/// Runs this case only.
const CASE: &str = "FAULTS_CASE";
