//! A rank is lost in the middle of a job that the test launched by plain environment: every other
//! rank ends with the error that names it.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use allfold_tests::{Ended, Job, Process, clean_command, machine_lock};
use rustix::process::{Pid, Signal, kill_process};

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");
const ALLFOLD: &str = env!("CARGO_BIN_EXE_allfold-under-test");

/// Starts four ranks, does something to rank 2 once all are in the middle, and returns how the
/// others ended.
fn others_after(script: &[&str], act: impl FnOnce(&Process)) -> Vec<Ended> {
    let job = Job::new(4);
    let mut ranks = job.start(RANK, script);
    if script == ["forever"] {
        for rank in &mut ranks {
            rank.wait_for_line("started");
        }
    }
    let lost = ranks.remove(2);
    act(&lost);
    let ended = ranks.into_iter().map(Process::wait).collect();
    drop(lost);
    ended
}

#[test]
fn a_killed_rank_is_named_by_all_others() {
    let _one_at_a_time = machine_lock();
    for ended in others_after(&["forever"], |rank| rank.signal(Signal::KILL)) {
        let words = " waiting in all_reduce #";
        ended.assert_error(75, &["rank 2 (", "is gone: its process ended", words]);
    }
}

#[test]
fn a_killed_rank_whose_wrapper_lives_on_is_named_by_all_others() {
    let _one_at_a_time = machine_lock();
    let script = "[ $ALLFOLD_RANK != 2 ] && exec \"$0\" forever; \
                  \"$0\" forever & echo \"rank 2 is pid $!\"; wait; sleep 60";
    let words = ["run", "-n", "3", "sh", "-c", script, RANK];
    let mut job = Process::start(clean_command(ALLFOLD).args(words));
    let line = job.wait_for_line("rank 2 is pid ");
    let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    for _ in 0..3 {
        job.wait_for_line("started");
    }
    kill_process(pid.unwrap(), Signal::KILL).unwrap();
    let ended = job.wait();
    let errors = ended.errors();
    // Before its silence is.
    let named = errors.iter().filter(|line| line.contains("is gone: its process ended"));
    assert_eq!(named.filter(|line| line.contains("rank 2 (")).count(), 2, "{ended:#?}");
}

#[test]
fn a_stopped_rank_is_named_by_all_others() {
    let _one_at_a_time = machine_lock();
    for ended in others_after(&["forever"], |rank| rank.signal(Signal::STOP)) {
        let words = "rank 0, 1, 3 were waiting in all_reduce #";
        ended.assert_error(75, &["rank 2 (", "stopped answering", "process is stopped", words]);
    }
}

#[test]
fn a_rank_that_panics_tells_the_others() {
    let _one_at_a_time = machine_lock();
    for ended in others_after(&["panic", "2"], |_| {}) {
        ended.assert_error(75, &["rank 2 (", "panicked"]);
    }
}

#[test]
fn a_rank_that_exits_without_closing_is_lost() {
    let _one_at_a_time = machine_lock();
    for ended in others_after(&["exit", "2", "0"], |_| {}) {
        ended.assert_error(75, &["rank 2 (", "exited without closing its communicator"]);
    }
}

#[test]
fn a_rank_that_closes_too_early_disagrees() {
    let _one_at_a_time = machine_lock();
    for ended in others_after(&["close", "2"], |_| {}) {
        ended.assert_error(3, &["rank 2 (", "closed its communicator after 5 calls"]);
    }
}

#[test]
fn ranks_that_end_right_after_their_last_call_lose_nothing() {
    let _one_at_a_time = machine_lock();
    for round in 0..ROUNDS {
        for (rank, ended) in
            Job::new(4).start(RANK, &["calls", "3"]).into_iter().map(Process::wait).enumerate()
        {
            assert_eq!(ended.code(), 0, "round {round}, rank {rank}: {ended:#?}");
            assert!(ended.lines.is_empty(), "round {round}, rank {rank}: {ended:#?}");
        }
    }
}

/// The same with threads for ranks runs a thousand times in the library's tests.
const ROUNDS: usize = 40;
