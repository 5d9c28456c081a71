//! The collectives through the public interface, over every kind of link.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use allfold::{Communicator, ErrorKind, ReduceOp};
use worlds::{each_rank, on_every_link};

/// Lengths around the boundaries of ranks, segments (63 KiB) and chunks.
const LENGTHS: [usize; 11] = [0, 1, 2, 3, 5, 7, 64, 1_000, 16_128, 16_129, 150_001];

#[test]
fn a_sum_is_right_and_identical_on_all_ranks() {
    on_every_link(&[1, 2, 3, 4, 7], |world| {
        for length in LENGTHS {
            let mut buffer: Vec<f32> = (0..length).map(|i| value(world.rank(), i)).collect();
            world.all_reduce(&mut buffer, ReduceOp::Sum)?;
            for (i, sum) in buffer.iter().enumerate() {
                let want: f32 = (0..world.size()).map(|rank| value(rank, i)).sum();
                assert_eq!(*sum, want, "element {i} of {length}");
            }
        }
        Ok(())
    });
}

#[test]
fn an_average_of_doubles_is_the_sum_divided_once() {
    on_every_link(&[1, 3, 4], |world| {
        for length in LENGTHS {
            let mut buffer: Vec<f64> =
                (0..length).map(|i| f64::from(value(world.rank(), i))).collect();
            world.all_reduce(&mut buffer, ReduceOp::Avg)?;
            for (i, average) in buffer.iter().enumerate() {
                let sum: f64 = (0..world.size()).map(|rank| f64::from(value(rank, i))).sum();
                assert_eq!(*average, sum / world.size() as f64, "element {i} of {length}");
            }
        }
        Ok(())
    });
}

#[test]
fn inexact_sums_have_the_same_bits_on_all_ranks() {
    on_every_link(&[2, 3, 4], |world| {
        let mut buffer: Vec<f32> =
            (0..50_000).map(|i| 1.0 / (1.0 + (i * 31 + world.rank() * 7) as f32)).collect();
        world.all_reduce(&mut buffer, ReduceOp::Sum)?;
        let mut first = buffer.clone();
        world.broadcast(&mut first, 0)?;
        let same = first.iter().zip(&buffer).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "rank {} differs from rank 0", world.rank());
        Ok(())
    });
}

#[test]
fn a_broadcast_comes_from_every_root() {
    on_every_link(&[1, 2, 3, 5], |world| {
        for root in 0..world.size() {
            for length in LENGTHS {
                let mut buffer: Vec<u32> =
                    (0..length).map(|i| (i + 1_000_000 * world.rank()) as u32).collect();
                world.broadcast(&mut buffer, root)?;
                let right = buffer.iter().zip(0..).all(|(b, i)| *b == i + 1_000_000 * root as u32);
                assert!(right, "{length} from {root} on {}", world.rank());
            }
        }
        Ok(())
    });
}

#[test]
fn no_rank_leaves_a_barrier_before_all_have_entered() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static ENTERED: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = 20;
    for size in [2, 3, 4] {
        ENTERED.store(0, Ordering::SeqCst);
        each_rank(Communicator::in_memory(size).unwrap(), |world| {
            for round in 1..=ROUNDS {
                ENTERED.fetch_add(1, Ordering::SeqCst);
                world.barrier()?;
                assert!(ENTERED.load(Ordering::SeqCst) >= round * world.size());
            }
            Ok(())
        });
    }
}

#[test]
fn not_a_number_has_the_same_bits_on_all_ranks() {
    on_every_link(&[2, 3], |world| {
        let mut buffer =
            [f32::from_bits(0x7fc0_0000 + world.rank() as u32 + 1), 1.0, f32::INFINITY];
        if world.rank() == 1 {
            buffer[2] = f32::NEG_INFINITY;
        }
        world.all_reduce(&mut buffer, ReduceOp::Sum)?;
        assert_eq!(
            buffer.map(f32::to_bits),
            [0x7fc0_0000, (world.size() as f32).to_bits(), 0x7fc0_0000]
        );
        Ok(())
    });
}

#[test]
fn many_small_calls_in_a_row() {
    on_every_link(&[2, 4], |world| {
        for step in 0..500u32 {
            let mut buffer = [f64::from(step) + world.rank() as f64];
            world.labelled(u64::from(step)).all_reduce(&mut buffer, ReduceOp::Sum)?;
            let ranks = world.size() as f64;
            assert_eq!(buffer[0], f64::from(step) * ranks + ranks * (ranks - 1.0) / 2.0);
        }
        Ok(())
    });
}

#[test]
fn a_root_that_is_no_rank_is_an_argument_error_and_harms_nothing() {
    on_every_link(&[1, 2], |world| {
        let error = world.broadcast(&mut [0u8; 4], 9).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
        assert!(error.is_communicator_usable());
        world.barrier()
    });
}

/// Small whole numbers, so that sums are exact in any order.
fn value(rank: usize, index: usize) -> f32 {
    ((index * 7 + rank * 13) % 101) as f32
}
