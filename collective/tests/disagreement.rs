//! Ranks that make different calls: a typed error on every rank that shows both sides, never a
//! wrong result and never a hang.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::time::Duration;

use allfold::{Communicator, Error, ErrorKind, ReduceOp, Result};
use worlds::{connect_all, every_link, results};

/// Runs `body` on two and three ranks, over memory and QUIC; every rank must end with a mismatch.
fn all_ranks_disagree(body: impl Fn(&Communicator) -> Result<()> + Sync, shown: [&str; 2]) {
    for size in [2, 3] {
        for world in every_link(size) {
            let ends = results(world, |rank| {
                // A call that leaves the others behind may end well; the next one cannot.
                let error = body(rank).and_then(|()| rank.barrier()).unwrap_err();
                let again = rank.barrier().unwrap_err();
                assert_eq!(error.to_string(), again.to_string(), "a later call has another error");
                error
            });
            for (rank, error) in ends.iter().enumerate() {
                assert!(matches!(error.kind(), ErrorKind::Mismatch { .. }), "rank {rank}: {error}");
                assert_eq!(error.exit_code(), 3);
                assert!(!error.is_communicator_usable());
                let text = error.to_string();
                for side in shown {
                    assert!(text.contains(side), "rank {rank}: `{side}` is missing in: {text}");
                }
                assert!(text.contains("tests/disagreement.rs:"), "no source line in: {text}");
            }
        }
    }
}

#[test]
fn another_count() {
    all_ranks_disagree(
        |world| {
            world
                .all_reduce(&mut vec![1.0f32; 1000 + usize::from(world.rank() == 1)], ReduceOp::Sum)
        },
        ["all_reduce #0 (sum of f32 x 1000, ", "all_reduce #0 (sum of f32 x 1001, "],
    );
}

#[test]
fn another_type() {
    all_ranks_disagree(
        |world| match world.rank() {
            1 => world.all_reduce(&mut [1.0f64; 10], ReduceOp::Sum),
            _ => world.all_reduce(&mut [1.0f32; 10], ReduceOp::Sum),
        },
        ["of f32 x 10, ", "of f64 x 10, "],
    );
}

#[test]
fn another_operation() {
    all_ranks_disagree(
        |world| {
            let op = if world.rank() == 1 { ReduceOp::Avg } else { ReduceOp::Sum };
            world.all_reduce(&mut [1.0f32; 10], op)
        },
        ["all_reduce #0 (sum of", "all_reduce #0 (avg of"],
    );
}

#[test]
fn another_root() {
    all_ranks_disagree(
        |world| world.broadcast(&mut [1.0f32; 10], usize::from(world.rank() == 1)),
        ["broadcast #0 (from rank 0, ", "broadcast #0 (from rank 1, "],
    );
}

#[test]
fn another_label() {
    all_ranks_disagree(
        |world| {
            let label = 7 + u64::from(world.rank() == 1);
            world.labelled(label).all_reduce(&mut [1.0f32; 10], ReduceOp::Sum)
        },
        ["label 7", "label 8"],
    );
}

#[test]
fn another_collective() {
    all_ranks_disagree(
        |world| match world.rank() {
            1 => world.barrier(),
            _ => world.all_reduce(&mut [1.0f32; 10], ReduceOp::Sum),
        },
        ["barrier #0 (", "all_reduce #0 (sum of f32 x 10, "],
    );
}

#[test]
fn another_forced_algorithm_is_refused_with_both() {
    let ends = connect_all(2, |config| match config.rank() {
        1 => config.algorithm("tree").unwrap().connect_timeout(Duration::from_secs(5)),
        _ => config.connect_timeout(Duration::from_secs(2)),
    });
    let error = ends.into_iter().nth(1).unwrap().err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
    let text = error.to_string();
    for words in ["ALLFOLD_ALGORITHM", "tree", "auto"] {
        assert!(text.contains(words), "`{words}` is missing in: {text}");
    }
}

#[test]
fn nothing_of_a_mismatched_call_is_reduced() {
    for world in every_link(2) {
        results(world, |rank| {
            // Rank 1 sends doubles where rank 0 waits for floats.
            let mut floats = [1.0f32; 64];
            let error = match rank.rank() {
                1 => rank.all_reduce(&mut [3.0f64; 32], ReduceOp::Sum),
                _ => rank.all_reduce(&mut floats, ReduceOp::Sum),
            }
            .unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Mismatch { .. }), "{error}");
            assert_eq!(floats, [1.0f32; 64]);
        });
    }
}

#[test]
fn fewer_calls_are_found_at_the_close() {
    for world in every_link(3) {
        let ends = results(world, |rank| -> Result<Option<Error>> {
            if rank.rank() == 2 {
                return rank.barrier().map(|()| None);
            }
            // Rank 2 has left by the second; the word of it may reach a rank in its first.
            Ok(rank.barrier().and_then(|()| rank.barrier()).err())
        });
        for (rank, end) in ends.into_iter().enumerate().take(2) {
            let error = end.unwrap().unwrap_or_else(|| panic!("rank {rank} has no error"));
            assert!(
                matches!(error.kind(), ErrorKind::CallCount { rank: 2, calls: 1, .. }),
                "{error}"
            );
            assert_eq!(error.exit_code(), 3);
        }
    }
}

#[test]
fn two_calls_at_once_are_refused_and_name_both_lines() {
    let world = Communicator::in_memory(2).unwrap();
    let (first, second) = (&world[0], &world[1]);
    let (ended, ends) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for label in 0..2 {
            let ended = ended.clone();
            scope.spawn(move || ended.send((label, first.labelled(label).barrier())));
        }
        // One waits for rank 1; the other, whichever it is, is refused at once.
        let (refused, result) = ends.recv().unwrap();
        let error = result.unwrap_err();
        match error.kind() {
            ErrorKind::ConcurrentCalls { first, second } => {
                assert!(first.contains("disagreement.rs:") && second.contains("disagreement.rs:"));
            }
            _ => panic!("{error}"),
        }
        assert!(error.is_communicator_usable());
        second.labelled(1 - refused).barrier().unwrap();
        ends.recv().unwrap().1.unwrap();
    });
}
