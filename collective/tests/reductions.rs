//! Reductions of every type by every operation, algorithm and collective.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::fmt::Debug;

use allfold::{Communicator, ReduceOp, Reducible, Result, bf16, f16};
use worlds::{by_every_algorithm, on_every_link};

/// A type whose small whole numbers are exact, and what they combine to.
trait Number: Reducible + PartialEq + Debug {
    fn of(value: i64) -> Self;
    /// What the mean of values with this sum is in this type.
    fn mean(sum: i64, ranks: i64) -> Self;
}

macro_rules! whole_numbers {
    ($($type:ty),*) => { $(impl Number for $type {
        fn of(value: i64) -> Self {
            value as $type
        }
        fn mean(sum: i64, ranks: i64) -> Self {
            (sum / ranks) as $type
        }
    })* };
}
whole_numbers!(i8, u8, i32, u32, i64, u64);

macro_rules! fractions {
    ($($type:ty: $of:expr),*) => { $(impl Number for $type {
        fn of(value: i64) -> Self {
            $of(value as f64)
        }
        fn mean(sum: i64, ranks: i64) -> Self {
            $of(sum as f64 / ranks as f64)
        }
    })* };
}
fractions!(f32: |v: f64| v as f32, f64: |v: f64| v, f16: f16::from_f64, bf16: bf16::from_f64);

/// 1 to 3: no sum of five and no product of five of them overflows an i8, save the products, which
/// have few threes.
fn value(rank: usize, index: usize) -> i64 {
    [1, 2, 1, 3, 1, 1, 2][(rank * 3 + index) % 7]
}

fn expected<T: Number>(size: usize, index: usize, op: ReduceOp) -> T {
    let values = (0..size).map(|rank| value(rank, index));
    match op {
        ReduceOp::Sum => T::of(values.sum()),
        ReduceOp::Avg => T::mean(values.sum(), size as i64),
        ReduceOp::Min => T::of(values.min().unwrap()),
        ReduceOp::Max => T::of(values.max().unwrap()),
        _ => T::of(values.product()),
    }
}

fn input<T: Number>(world: &Communicator, length: usize) -> Vec<T> {
    (0..length).map(|index| T::of(value(world.rank(), index))).collect()
}

fn output<T: Number>(world: &Communicator, length: usize, op: ReduceOp) -> Vec<T> {
    (0..length).map(|index| expected(world.size(), index, op)).collect()
}

fn all_reduces<T: Number>(world: &Communicator) -> Result<()> {
    // Averages of halves are exact only where the number of ranks is a power of two.
    let inexact = size_of::<T>() == 2 && !world.size().is_power_of_two();
    for &op in ReduceOp::ALL {
        if op == ReduceOp::Avg && inexact {
            continue;
        }
        for length in [0, 1, 5, 1_000, 40_000] {
            let want = output::<T>(world, length, op);
            let mut buffer = input::<T>(world, length);
            world.all_reduce(&mut buffer, op)?;
            assert!(buffer == want, "{op} of {length}, rank {}", world.rank());
            let mut separate = vec![T::of(9); length];
            world.all_reduce_into(&input::<T>(world, length), &mut separate, op)?;
            assert!(separate == want, "{op} of {length} out of place, rank {}", world.rank());
        }
    }
    Ok(())
}

#[test]
fn every_type_by_every_operation_and_algorithm() {
    by_every_algorithm(&[2, 3, 5, 4], |world| {
        all_reduces::<f32>(world)?;
        all_reduces::<f64>(world)?;
        all_reduces::<f16>(world)?;
        all_reduces::<bf16>(world)?;
        all_reduces::<i8>(world)?;
        all_reduces::<u8>(world)?;
        all_reduces::<i32>(world)?;
        all_reduces::<u32>(world)?;
        all_reduces::<i64>(world)?;
        all_reduces::<u64>(world)
    });
}

#[test]
fn a_reduce_reaches_every_root_and_leaves_the_others_alone() {
    on_every_link(&[1, 2, 3, 5, 8], |world| {
        for root in 0..world.size() {
            for length in [0, 1, 1_000, 16_385, 200_000] {
                let want = output::<f32>(world, length, ReduceOp::Sum);
                let own = input::<f32>(world, length);
                let is_root = world.rank() == root;
                let mut buffer = own.clone();
                world.reduce(&mut buffer, ReduceOp::Sum, root)?;
                assert!(buffer == if is_root { &want[..] } else { &own }, "{length} to {root}");
                let mut separate = vec![0.0; if is_root { length } else { 0 }];
                world.reduce_into(&own, &mut separate, ReduceOp::Sum, root)?;
                assert!(!is_root || separate == want, "{length} to {root} out of place");
            }
        }
        Ok(())
    });
}

#[test]
fn a_reduce_scatter_leaves_each_rank_its_block() {
    on_every_link(&[1, 2, 3, 5, 8], |world| {
        // Beyond the relay's 512 KiB a block takes several rounds.
        for block in [0, 1, 1_000, 16_385, 200_000] {
            let length = block * world.size();
            let own = world.rank() * block..(world.rank() + 1) * block;
            let want = output::<f32>(world, length, ReduceOp::Avg);
            let all = input::<f32>(world, length);
            let mut separate = vec![0.0; block];
            world.reduce_scatter(&all, &mut separate, ReduceOp::Avg)?;
            assert!(separate == want[own.clone()], "{block} on rank {}", world.rank());
            let mut buffer = all.clone();
            world.reduce_scatter_in_place(&mut buffer, ReduceOp::Avg)?;
            assert!(buffer[own.clone()] == want[own.clone()], "{block} in place");
            assert!(buffer[..own.start] == all[..own.start] && buffer[own.end..] == all[own.end..]);
        }
        Ok(())
    });
}
