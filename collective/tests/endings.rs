//! Ranks that end right after their last call: nothing is lost and nobody is taken for dead.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use allfold::ReduceOp;
use worlds::{each_rank, over_quic};

#[test]
fn a_thousand_worlds_end_right_after_their_last_call() {
    for round in 0..ROUNDS {
        each_rank(over_quic(2), |world| {
            // The last segments are on their way when the first rank is done and drops its end.
            let mut buffer = vec![1.0f32; 20_000 + round];
            world.all_reduce(&mut buffer, ReduceOp::Sum)?;
            assert!(buffer.iter().all(|value| *value == 2.0));
            Ok(())
        });
    }
}

#[test]
fn many_worlds_leave_no_thread_and_no_descriptor_behind() {
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let round = || each_rank(over_quic(3), |world| world.barrier());
    round();
    let before = (count("fd"), count("task"));
    for _ in 0..20 {
        round();
    }
    // The other test of this file runs beside this one, with at most this many of its own.
    let after = (count("fd"), count("task"));
    assert!(after.0 <= before.0 + 40, "descriptors: {before:?} before, {after:?} after");
    assert!(after.1 <= before.1 + 20, "threads: {before:?} before, {after:?} after");
}

const ROUNDS: usize = 1000;
