//! Inputs whose combination over all ranks is known exactly, at a cost that does not grow with the
//! number of ranks.
//!
//! A table holds one random whole number per rank. At element `i`, rank `r` contributes
//! `table[(r + shift(i)) % ranks] + base(i)`, so that the sum over all ranks is
//! `sum(table) + ranks * base(i)`. `shift` and `base` are random too: a contribution that is lost,
//! counted twice or taken from another element changes the sum. All sums stay below the type's
//! largest exact whole number, so that no order of additions rounds, and they are multiples of the
//! number of ranks, so that the average is a whole number as well.

use allfold::Reducible;

use crate::options::Op;

/// An element type that can be measured and checked.
pub(crate) trait Number: Reducible + Default + PartialEq {
    /// nccl-tests' name.
    const NAME: &'static str;
    /// Whole numbers of so many bits are exact.
    const BITS: u32;

    /// `value`, which has at most `BITS` bits.
    fn exact(value: u64) -> Self;
}

impl Number for f32 {
    const NAME: &'static str = "float";
    const BITS: u32 = Self::MANTISSA_DIGITS;

    fn exact(value: u64) -> Self {
        value as Self
    }
}

impl Number for f64 {
    const NAME: &'static str = "double";
    const BITS: u32 = Self::MANTISSA_DIGITS;

    fn exact(value: u64) -> Self {
        value as Self
    }
}

/// The inputs of one call, the same on every rank for the same seed.
pub(crate) struct Pattern {
    seed: u64,
    /// Table entries and bases lie below it.
    span: u64,
    table: Vec<u64>,
    /// The sum of the table, a multiple of its length.
    total: u64,
}

impl Pattern {
    /// For `ranks` ranks and numbers of `bits` bits; exact up to 2^(bits - 2) ranks.
    pub(crate) fn new(ranks: usize, bits: u32, seed: u64) -> Self {
        let count = ranks as u64;
        // Entries and bases add up to less than 2 * span * ranks <= 2^bits.
        let span = ((1 << (bits - 1)) / count).max(1);
        let mut table: Vec<u64> = (0..count).map(|entry| below(span, mix(!seed, entry))).collect();
        let total: u64 = table.iter().sum();
        let total_rounded = total.next_multiple_of(count);
        if let Some(last) = table.last_mut() {
            *last += total_rounded - total;
        }
        Self { seed, span, table, total: total_rounded }
    }

    /// Makes `buffer` the contribution of `rank`.
    pub(crate) fn fill<T: Number>(&self, rank: usize, buffer: &mut [T]) {
        for (element, value) in buffer.iter_mut().enumerate() {
            *value = T::exact(self.input(rank, element));
        }
    }

    /// How many elements of a result are not exactly right.
    pub(crate) fn wrong<T: Number>(&self, op: Op, result: &[T]) -> u64 {
        let ranks = self.table.len() as u64;
        let right = |element: usize| match op {
            Op::Sum => self.total + ranks * self.base(element),
            Op::Avg => self.total / ranks + self.base(element),
        };
        let differs = |(element, value): &(usize, &T)| **value != T::exact(right(*element));
        result.iter().enumerate().filter(differs).count() as u64
    }

    fn input(&self, rank: usize, element: usize) -> u64 {
        let ranks = self.table.len();
        let shift = below(ranks as u64, mix(self.seed, element as u64) << 32) as usize;
        let entry = (rank + shift) % ranks;
        self.table[entry] + self.base(element)
    }

    /// Of the hash's high bits, where the shift is of its low ones.
    fn base(&self, element: usize) -> u64 {
        below(self.span, mix(self.seed, element as u64))
    }
}

/// A hash scaled to 0..limit without a division.
fn below(limit: u64, hash: u64) -> u64 {
    ((u128::from(hash) * u128::from(limit)) >> 64) as u64
}

/// The `index`-th output of the splitmix64 generator of Steele, Lea and Flood.
fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORLDS: [usize; 9] = [1, 2, 3, 4, 7, 64, 100, 1000, 1024];
    const COUNT: usize = 257;

    fn inputs<T: Number>(ranks: usize, seed: u64) -> (Pattern, Vec<Vec<T>>) {
        let pattern = Pattern::new(ranks, T::BITS, seed);
        let rows = (0..ranks).map(|rank| {
            let mut row = vec![T::default(); COUNT];
            pattern.fill(rank, &mut row);
            row
        });
        let rows = rows.collect();
        (pattern, rows)
    }

    fn sum(rows: impl Iterator<Item = Vec<f32>>) -> Vec<f32> {
        rows.fold(vec![0.0; COUNT], |a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
    }

    #[test]
    fn any_order_gives_the_expected_sum_and_average() {
        for ranks in WORLDS {
            let (pattern, rows) = inputs::<f32>(ranks, 5);
            let forward = sum(rows.iter().cloned());
            let backward = sum(rows.iter().rev().cloned());
            // Even ranks apart from odd ones, as two halves of a tree.
            let even = sum(rows.iter().step_by(2).cloned());
            let odd = sum(rows.iter().skip(1).step_by(2).cloned());
            let halves = sum([even, odd].into_iter());
            for sum in [&forward, &backward, &halves] {
                assert_eq!(pattern.wrong(Op::Sum, sum), 0, "{ranks} ranks");
            }
            assert!(forward.iter().all(|v| *v > 0.0 && *v <= (1_u64 << 24) as f32));
            let average: Vec<f32> = forward.iter().map(|v| v / ranks as f32).collect();
            assert_eq!(pattern.wrong(Op::Avg, &average), 0, "{ranks} ranks");
        }
    }

    #[test]
    fn doubles_use_all_their_bits() {
        for ranks in WORLDS {
            let (pattern, rows) = inputs::<f64>(ranks, 6);
            let mut sum = vec![0.0; COUNT];
            let mut rounded = vec![0.0_f32; COUNT];
            for row in rows {
                for ((sum, rounded), value) in sum.iter_mut().zip(&mut rounded).zip(row) {
                    *sum += value;
                    *rounded += value as f32;
                }
            }
            assert_eq!(pattern.wrong(Op::Sum, &sum), 0);
            // A reduction in single precision would be noticed.
            let rounded: Vec<f64> = rounded.into_iter().map(f64::from).collect();
            assert!(pattern.wrong(Op::Sum, &rounded) > COUNT as u64 * 9 / 10);
        }
    }

    #[test]
    fn a_corrupted_result_is_counted() {
        for ranks in [2, 4, 7] {
            let (pattern, rows) = inputs::<f32>(ranks, 7);
            let good = sum(rows.iter().cloned());

            let mut one = good.clone();
            one[100] = f32::from_bits(one[100].to_bits() ^ 1);
            assert_eq!(pattern.wrong(Op::Sum, &one), 1);
            one[200] = f32::NAN;
            assert_eq!(pattern.wrong(Op::Sum, &one), 2);

            let mut swapped = good.clone();
            let (first, second) = swapped.split_at_mut(COUNT / 2);
            first.swap_with_slice(&mut second[..COUNT / 2]);
            assert!(pattern.wrong(Op::Sum, &swapped) > COUNT as u64 * 9 / 10);

            let lost = sum(rows.iter().skip(1).cloned());
            assert!(pattern.wrong(Op::Sum, &lost) > COUNT as u64 * 9 / 10);

            let twice = sum(rows.iter().skip(1).chain([&rows[1]]).cloned());
            assert!(pattern.wrong(Op::Sum, &twice) > COUNT as u64 * 4 / 5);

            // The untouched input, the sum in place of the average, the data of another call.
            assert!(pattern.wrong(Op::Sum, &rows[0]) > COUNT as u64 * 9 / 10);
            assert!(pattern.wrong(Op::Avg, &good) > COUNT as u64 * 9 / 10);
            let (_, others) = inputs::<f32>(ranks, 8);
            let stale = sum(others.into_iter());
            assert!(pattern.wrong(Op::Sum, &stale) > COUNT as u64 * 9 / 10);
        }
    }

    #[test]
    fn inputs_depend_on_rank_and_element() {
        let (_, rows) = inputs::<f32>(4, 9);
        let equal = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        for rank in 1..4 {
            assert!(equal(&rows[0], &rows[rank]) < COUNT / 20);
        }
        assert!(equal(&rows[0][..COUNT - 1], &rows[0][1..]) < COUNT / 20);
    }
}
