//! After the error that ended a world: every call returns it, nothing waits, and the process can
//! make another world.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::time::Duration;

use allfold::{Communicator, Error, ErrorKind, ReduceOp, Result};
use worlds::{connect_all, each_rank, every_link, over_quic, results};

#[test]
fn every_later_call_returns_the_same_error_and_a_new_world_works() {
    for world in every_link(3) {
        let errors = results(world, |world| {
            let other = world.split(Some(0), 0).unwrap().unwrap();
            // Rank 2 calls something else; another may be a call behind when that is found.
            let before = world.start_all_reduce(vec![1u64; 1000], ReduceOp::Sum);
            let calls =
                before.and_then(|pending| pending.wait()).and_then(|_| match world.rank() {
                    2 => world.barrier(),
                    _ => world.all_reduce(&mut [1u64; 1000], ReduceOp::Sum),
                });
            let first = calls.unwrap_err();
            assert!(matches!(first.kind(), ErrorKind::Mismatch { .. }), "{first}");
            assert!(!first.is_communicator_usable());
            for (name, again) in [("world", all_kinds(world)), ("other", all_kinds(&other))] {
                for (number, result) in again.into_iter().enumerate() {
                    let again = result.unwrap_err().to_string();
                    assert_eq!(again, first.to_string(), "call {number} on {name}");
                }
            }
            first.to_string()
        });
        // Ranks that find it at the same time each name themselves beside the one that differs.
        assert!(
            errors.iter().all(|error| error.contains("rank 2 called barrier #2")),
            "{errors:?}"
        );
    }
    each_rank(over_quic(3), |world| {
        let mut buffer = [1u64; 1000];
        world.all_reduce(&mut buffer, ReduceOp::Sum)?;
        assert_eq!(buffer, [3; 1000]);
        Ok(())
    });
}

#[test]
fn a_rank_that_fails_by_itself_is_named_with_its_reason() {
    for world in every_link(3) {
        let errors = results(world, |world| {
            let error = match world.rank() {
                1 => world.fail("no memory\nfor the model"),
                _ => world.barrier().unwrap_err(),
            };
            assert!(matches!(error.kind(), ErrorKind::RankLost { rank: 1, .. }), "{error}");
            assert_eq!(world.barrier().unwrap_err().to_string(), error.to_string());
            error.to_string()
        });
        for error in errors {
            assert!(error.starts_with("rank 1 ("), "{error}");
            assert!(error.contains(") failed: no memory"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
    let alone = Communicator::single().fail("no memory").to_string();
    assert!(alone.ends_with("no memory"), "{alone}");
}

/// One call of each kind, blocking and started.
fn all_kinds(world: &Communicator) -> Vec<Result<()>> {
    let (size, other) = (world.size(), (world.rank() + 1) % world.size());
    let (block, whole) = (vec![1u64; 8], vec![1u64; 8 * size]);
    let mut output = whole.clone();
    let mut small = block.clone();
    vec![
        world.all_reduce(&mut output, ReduceOp::Sum),
        world.reduce_scatter(&whole, &mut small, ReduceOp::Sum),
        world.all_gather(&block, &mut output),
        world.broadcast(&mut output, 0),
        world.reduce(&mut output, ReduceOp::Sum, 0),
        world.all_to_all(&whole, &mut output),
        world.barrier(),
        world.send(&block, other),
        world.recv(&mut small, other),
        world.start_all_reduce(whole, ReduceOp::Sum).and_then(|p| p.wait()).map(drop),
        world.split(Some(0), 0).map(drop),
    ]
}

#[test]
fn dropping_after_an_error_waits_for_nobody() {
    // Rank 1 neither calls nor closes for as long as rank 0 has not ended.
    let mut world = over_quic(2);
    let slow = world.pop().unwrap();
    let quick = world.pop().unwrap();
    let (ended, told) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let panicking = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _world = quick;
                std::panic::resume_unwind(Box::new("told to"));
            }));
            assert!(panicking.is_err());
            drop(ended);
        });
        // Its end is its sender's.
        assert!(told.recv().is_err());
    });
    let error: Error = slow.barrier().unwrap_err();
    assert!(error.to_string().contains("rank 0 ("), "{error}");
    assert!(error.to_string().contains("panicked"), "{error}");
}

#[test]
fn who_waits_behind_a_started_call_waits_no_longer_than_the_limit() {
    // Of several lanes some have a part of the second call only.
    for (transport, lanes) in [("quic", 1), ("quic", 3), ("shared-memory", 1)] {
        let limit = Duration::from_millis(300);
        let world = connect_all(2, |config| {
            config.timeout(limit).transport(transport).unwrap().lanes(lanes).unwrap()
        });
        let is_over = std::sync::Barrier::new(2);
        let ends = results(world.into_iter().map(|rank| rank.unwrap()).collect(), |rank| {
            if rank.rank() == 1 {
                // It never makes the first call.
                is_over.wait();
                return rank.barrier().unwrap_err();
            }
            let first = rank.start_all_reduce(vec![1.0f32; 10], ReduceOp::Sum).unwrap();
            let second = rank.start_all_reduce(vec![1.0f32; 500_000], ReduceOp::Sum).unwrap();
            let error = second.wait().unwrap_err();
            is_over.wait();
            drop(first);
            error
        });
        for error in ends {
            let context = format!("{transport}, {lanes} lanes: {error}");
            assert!(matches!(error.kind(), ErrorKind::TimedOut { .. }), "{context}");
            assert!(error.to_string().contains("all_reduce #0"), "{context}");
        }
    }
}
