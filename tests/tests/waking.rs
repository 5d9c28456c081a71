//! A rank is stopped in the middle of a call and continued after the others have had their error:
//! their buffers are theirs again, and nothing that the woken rank does changes them.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use allfold_tests::faults::Case;
use allfold_tests::faults::victim::{FAULT, GATE, MARK};
use allfold_tests::faults::world::Scratch;
use allfold_tests::{Job, Process, machine_lock};
use rustix::process::Signal;

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

#[test]
fn a_woken_rank_changes_no_buffer_of_the_others() {
    let _one_at_a_time = machine_lock();
    for (text, how) in [
        ("stop/ring-middle/2/4/plain", "blocking"),
        ("stop/tree-middle/1/4/plain", "started"),
        ("stop/shared-memory-first/0/4/plain", "blocking"),
        ("stop/shared-memory-middle/1/4/plain", "started"),
        ("stop/shared-memory-last/2/4/plain", "blocking"),
    ] {
        let case: Case = text.parse().unwrap();
        let scratch = Scratch::new().unwrap();
        let mut gate = scratch.gate().unwrap();
        let job = Job::new(case.ranks);
        let mut survivors: Vec<Process> = (0..case.ranks)
            .map(|rank| {
                let mut command = job.rank(rank, RANK, &["keep-a-buffer", how]);
                command.env(FAULT, text).env(GATE, scratch.gate_path());
                Process::start(command.envs(case.settings().iter().copied()))
            })
            .collect();
        let mut victim = survivors.remove(case.victim);
        victim.wait_for_line(&format!("{MARK}{} fault", case.victim));
        let hashes = |survivors: &mut Vec<Process>, word: &str| -> Vec<String> {
            let line = |process: &mut Process| process.wait_for_line(word);
            let lines = survivors.iter_mut().map(line);
            lines.map(|line| line.rsplit(' ').next().unwrap().to_string()).collect()
        };
        let first = hashes(&mut survivors, " first ");
        victim.signal(Signal::CONT);
        let woken = victim.wait();
        woken.assert_error(75, &[&format!("rank {} (", case.victim), "was declared dead by rank "]);
        gate.write_all(&vec![0; survivors.len()]).unwrap();
        assert_eq!(first, hashes(&mut survivors, " second "), "{text}");
        for survivor in survivors {
            survivor.wait().assert_error(75, &[&format!("rank {} (", case.victim)]);
        }
    }
}
