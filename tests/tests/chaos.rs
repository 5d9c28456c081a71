//! A handful of seeds of random chaos: random collectives with checked results, and something that
//! happens to a random rank at a random moment. Hundreds of them, and how fast the others are:
//! `cargo run --release -p allfold-tests --bin faults -- chaos --runs 300`.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use allfold_tests::faults::Programs;
use allfold_tests::faults::chaos::Chaos;
use allfold_tests::faults::judge::{Problem, judge};
use allfold_tests::faults::world::run;
use allfold_tests::machine_lock;

#[test]
fn nobody_hangs_and_everybody_names_the_same_rank() {
    let _one_at_a_time = machine_lock();
    let programs = Programs {
        rank: vec![env!("CARGO_BIN_EXE_rank-under-test").into()],
        allfold: vec![env!("CARGO_BIN_EXE_allfold-under-test").into()],
    };
    let seeds = match std::env::var(SEED) {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=SEEDS).collect(),
    };
    let mut failures = Vec::new();
    for seed in seeds {
        let (case, _) = Chaos::draw(seed);
        let seen = run(&case, Some(seed), &programs).unwrap();
        let problems = judge(&case, &seen).problems;
        let problems: Vec<_> = problems.iter().filter(|problem| !problem.is_of_time()).collect();
        if !problems.is_empty() {
            let problems: Vec<String> = problems.into_iter().map(Problem::to_string).collect();
            let (problems, log) = (problems.join("\n  "), seen.log.join("\n    "));
            failures.push(format!("{SEED}={seed} draws {case}:\n  {problems}\n    {log}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Enough for a few of everything that can happen.
const SEEDS: u64 = 8;
/// Runs this seed only.
const SEED: &str = "FAULTS_SEED";
