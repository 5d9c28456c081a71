use allfold::{bf16, f16};
use clap::ValueEnum;

use super::*;
use crate::layout::Content;

const WORLDS: [usize; 11] = [1, 2, 3, 4, 5, 7, 8, 63, 64, 100, 1024];
const COUNT: usize = 257;

/// What a type computes with, as the library does it: short floats in f32, rounded each time.
trait Arithmetic: Number + std::fmt::Debug {
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn smaller(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    /// What it contributes to an average.
    fn before(self, ranks: usize) -> Self;
    /// The average, from the sum of those.
    fn after(self, ranks: usize) -> Self;
}

macro_rules! integers {
    ($($integer:ident in $wide:ident),*) => {$(
        impl Arithmetic for $integer {
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn multiply(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            fn before(self, _: usize) -> Self {
                self
            }
            fn after(self, ranks: usize) -> Self {
                ($wide::from(self) / ranks as $wide) as Self
            }
        }
    )*};
}
integers!(i8 in i64, u8 in u64, i32 in i64, u32 in u64, i64 in i64, u64 in u64);

macro_rules! floats {
    ($($float:ident),*) => {$(
        impl Arithmetic for $float {
            fn add(self, other: Self) -> Self {
                self + other
            }
            fn multiply(self, other: Self) -> Self {
                self * other
            }
            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            fn before(self, _: usize) -> Self {
                self
            }
            fn after(self, ranks: usize) -> Self {
                self / ranks as Self
            }
        }
    )*};
}
floats!(f32, f64);

macro_rules! short_floats {
    ($($float:ident),*) => {$(
        impl Arithmetic for $float {
            fn add(self, other: Self) -> Self {
                Self::from_f32(self.to_f32() + other.to_f32())
            }
            fn multiply(self, other: Self) -> Self {
                Self::from_f32(self.to_f32() * other.to_f32())
            }
            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            fn before(self, ranks: usize) -> Self {
                Self::from_f32(self.to_f32() / ranks as f32)
            }
            fn after(self, _: usize) -> Self {
                self
            }
        }
    )*};
}
short_floats!(f16, bf16);

/// Every type's own tests.
macro_rules! for_every_type {
    ($($test:ident)*) => {$(
        #[test]
        fn $test() {
            super::$test::<T>();
        }
    )*};
}
macro_rules! types {
    ($($name:ident: $type:ty),*) => {$(
        mod $name {
            type T = $type;
            for_every_type!(
                any_order_gives_the_expected_result
                a_corrupted_result_is_counted
                moved_elements_tell_their_origin
            );
        }
    )*};
}
types!(
    int8: i8, uint8: u8, int32: i32, uint32: u32, int64: i64, uint64: u64,
    half: allfold::f16, bfloat16: allfold::bf16, float: f32, double: f64
);

fn parts(content: Content) -> [Part; 1] {
    [Part { range: 0..COUNT, content }]
}

fn inputs<T: Number>(pattern: &Pattern, ranks: usize) -> Vec<Vec<T>> {
    let row = |rank| {
        let mut row = vec![T::default(); COUNT];
        pattern.fill(&parts(Content::Of { rank, first: 0 }), &mut row);
        row
    };
    (0..ranks).map(row).collect()
}

fn wrong<T: Number>(pattern: &Pattern, result: &[T]) -> u64 {
    pattern.wrong(&parts(Content::Combined { first: 0 }), result)
}

/// The rows combined from left to right; none combine to what one row of them contributes.
fn fold<T: Arithmetic>(op: Op, rows: impl IntoIterator<Item = Vec<T>>) -> Vec<T> {
    let combine = match op {
        Op::Sum | Op::Avg => T::add,
        Op::Prod => T::multiply,
        Op::Min => T::smaller,
        Op::Max => T::larger,
    };
    let pairs = |a: Vec<T>, b: Vec<T>| a.into_iter().zip(b).map(|(a, b)| combine(a, b)).collect();
    rows.into_iter().reduce(pairs).unwrap_or_default()
}

fn each<T: Arithmetic>(op: Op, row: &[T], f: impl Fn(T) -> T) -> Vec<T> {
    row.iter().map(|value| if op == Op::Avg { f(*value) } else { *value }).collect()
}

fn any_order_gives_the_expected_result<T: Arithmetic>() {
    for ranks in WORLDS {
        for op in Op::value_variants() {
            let pattern = Pattern::new::<T>(ranks, Some(*op), 5);
            let rows = inputs::<T>(&pattern, ranks);
            let rows: Vec<_> = rows.iter().map(|row| each(*op, row, |v| v.before(ranks))).collect();
            let forward = fold(*op, rows.iter().cloned());
            let backward = fold(*op, rows.iter().rev().cloned());
            // A tree of neighbours, and even ranks apart from odd ones.
            let pairs = rows.chunks(2).map(|pair| fold(*op, pair.iter().cloned()));
            let pairs = fold(*op, pairs);
            let even = fold(*op, rows.iter().step_by(2).cloned());
            let odd = rows.iter().skip(1).step_by(2).cloned();
            let halves = match ranks {
                1 => even,
                _ => fold(*op, [even, fold(*op, odd)]),
            };
            for result in [forward, backward, pairs, halves] {
                let result = each(*op, &result, |v| v.after(ranks));
                assert_eq!(wrong(&pattern, &result), 0, "{op:?} over {ranks} ranks");
            }
        }
    }
}

fn a_corrupted_result_is_counted<T: Arithmetic>() {
    let most = COUNT as u64 / 2;
    for ranks in [2, 3, 4, 7, 8, 64] {
        for op in Op::value_variants() {
            let of = |seed| {
                let pattern = Pattern::new::<T>(ranks, Some(*op), seed);
                let rows = inputs::<T>(&pattern, ranks);
                let rows: Vec<_> =
                    rows.iter().map(|row| each(*op, row, |v| v.before(ranks))).collect();
                (pattern, rows)
            };
            let finish = |row: Vec<T>| each(*op, &row, |v| v.after(ranks));
            let (pattern, rows) = of(7);
            let what = format!("{op:?} over {ranks} ranks");
            let good = finish(fold(*op, rows.iter().cloned()));
            assert_eq!(wrong(&pattern, &good), 0, "{what}");

            // Each single bit counts, the lowest as the highest.
            let mut flipped = good.clone();
            for bit in 0..8 * size_of::<T>() {
                flipped[bit] = T::from_bits(flipped[bit].bits() ^ 1 << bit);
                assert_eq!(wrong(&pattern, &flipped), bit as u64 + 1, "{what}, bit {bit}");
            }

            // What a call leaves that writes nothing.
            let mut untouched = good.clone();
            pattern.spoil(&parts(Content::Combined { first: 0 }), &mut untouched);
            assert_eq!(wrong(&pattern, &untouched), COUNT as u64, "{what}");

            // With many ranks two elements of a short float are often equal, and one rank is
            // seldom the only one with the smallest contribution: some are noticed, of many.
            let noticed = |result: Vec<T>, at_least: u64, how: &str| {
                let count = wrong(&pattern, &result);
                assert!(count >= at_least, "{what}: {how} in {count} of {COUNT}");
            };
            let few = match op {
                Op::Min | Op::Max => 1,
                _ => COUNT as u64 / 8,
            };
            let mut moved = good.clone();
            moved.rotate_left(1);
            noticed(moved, few, "elements moved");
            let lost = finish(fold(*op, rows.iter().skip(1).cloned()));
            noticed(lost, few, "a lost contribution");
            if !matches!(op, Op::Min | Op::Max) {
                let twice = finish(fold(*op, rows.iter().chain([&rows[1]]).cloned()));
                noticed(twice, few, "a contribution that counts twice");
            }
            noticed(rows[0].clone(), few, "the untouched input");
            let (_, others) = of(8);
            noticed(finish(fold(*op, others)), few, "the data of another call");
            for other in Op::value_variants().iter().filter(|other| *other != op) {
                let rows = inputs::<T>(&pattern, ranks);
                let row = rows.iter().map(|row| each(*other, row, |v| v.before(ranks)));
                let result = fold(*other, row);
                noticed(each(*other, &result, |v| v.after(ranks)), most, "another operation");
            }
        }
    }
}

fn moved_elements_tell_their_origin<T: Arithmetic>() {
    let pattern = Pattern::new::<T>(4, None, 9);
    let rows = inputs::<T>(&pattern, 4);
    let of = |rank, first| parts(Content::Of { rank, first });
    // One in 256 elements of 8 bits is right by chance.
    let almost_all = COUNT as u64 * 9 / 10;
    for rank in 0..4 {
        for (other, row) in rows.iter().enumerate() {
            let count = pattern.wrong(&of(rank, 0), row);
            match rank == other {
                true => assert_eq!(count, 0),
                false => assert!(count > almost_all, "rank {other} for {rank}: {count}"),
            }
        }
        let rest = [Part { range: 0..COUNT - 100, content: Content::Of { rank, first: 100 } }];
        assert_eq!(pattern.wrong(&rest, &rows[rank][100..]), 0);
        assert!(pattern.wrong(&of(rank, 1), &rows[rank]) > almost_all);
    }
    let (first, second) = (Pattern::new::<T>(4, None, 9), Pattern::new::<T>(4, None, 10));
    let mut row = vec![T::default(); COUNT];
    first.fill(&of(0, 0), &mut row);
    assert!(second.wrong(&of(0, 0), &row) > almost_all);
    first.spoil(&of(0, 0), &mut row);
    assert_eq!(first.wrong(&of(0, 0), &row), COUNT as u64);
}

#[test]
fn doubles_use_all_their_bits() {
    for ranks in [2, 3, 64] {
        let pattern = Pattern::new::<f64>(ranks, Some(Op::Sum), 6);
        let rows = inputs::<f64>(&pattern, ranks);
        let single = |row: Vec<f64>| row.into_iter().map(|v| v as f32).collect::<Vec<_>>();
        let sum = fold(Op::Sum, rows.into_iter().map(single));
        let sum: Vec<f64> = sum.into_iter().map(f64::from).collect();
        // A reduction in single precision would be noticed.
        assert!(wrong(&pattern, &sum) > COUNT as u64 * 9 / 10);
    }
}

#[test]
fn an_average_is_exact_where_the_world_size_is_no_number_of_the_type() {
    // Above 2^8 and 2^11, and odd: bf16 and f16 round them.
    fn exact<T: Arithmetic>(ranks: usize) {
        assert_eq!(T::whole(ranks as i64).bits(), T::whole(ranks as i64 + 1).bits());
        let pattern = Pattern::new::<T>(ranks, Some(Op::Avg), 5);
        let rows = inputs::<T>(&pattern, ranks);
        let rows: Vec<_> = rows.iter().map(|row| each(Op::Avg, row, |v| v.before(ranks))).collect();
        assert_eq!(wrong(&pattern, &fold(Op::Avg, rows.iter().cloned())), 0);
        let lost = rows.iter().skip(ranks / 2).cloned();
        assert!(wrong(&pattern, &fold(Op::Avg, lost)) > COUNT as u64 / 4);
    }
    exact::<bf16>(259);
    exact::<f16>(2051);
}

#[test]
fn averages_by_nccl_may_round_and_no_more() {
    /// How many are not exact.
    fn by_nccl<T: Arithmetic>(ranks: usize, reciprocal: T) -> u64 {
        let pattern = || Pattern::new::<T>(ranks, Some(Op::Avg), 11);
        let rows = inputs::<T>(&pattern(), ranks);
        let rows: Vec<_> =
            rows.iter().map(|row| each(Op::Avg, row, |v| v.multiply(reciprocal))).collect();
        let result = fold(Op::Sum, rows.iter().cloned());
        let backward = fold(Op::Sum, rows.iter().rev().cloned());
        let what = format!("{:?} over {ranks} ranks", T::DATATYPE);
        for result in [&result, &backward] {
            assert_eq!(wrong(&pattern().for_nccl::<T>(), result), 0, "{what}");
        }
        let lost = fold(Op::Sum, rows.iter().skip(1).cloned());
        let noticed = wrong(&pattern().for_nccl::<T>(), &lost);
        assert!(noticed > COUNT as u64 / 8, "{what}: {noticed} of {COUNT}");
        wrong(&pattern(), &result)
    }
    for ranks in [2, 3, 4, 5, 7] {
        let one = 1.0 / ranks as f32;
        let inexact = [
            by_nccl(ranks, one),
            by_nccl(ranks, 1.0 / ranks as f64),
            by_nccl(ranks, f16::from_f32(one)),
            by_nccl(ranks, bf16::from_f32(one)),
        ];
        let is_exact = ranks.is_power_of_two();
        assert_eq!(inexact == [0; 4], is_exact, "{inexact:?} over {ranks} ranks");
    }
    // Only averages of floats have any tolerance.
    for (op, tolerance) in [(Op::Avg, 10), (Op::Sum, 0), (Op::Prod, 0), (Op::Min, 0)] {
        assert_eq!(Pattern::new::<f32>(3, Some(op), 1).for_nccl::<f32>().tolerance, tolerance);
        assert_eq!(Pattern::new::<i32>(3, Some(op), 1).for_nccl::<i32>().tolerance, 0);
    }
    assert_eq!(Pattern::new::<f32>(3, None, 1).for_nccl::<f32>().tolerance, 0);
}
