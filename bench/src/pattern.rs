//! Inputs whose combination over all ranks is known exactly, at a cost that does not grow with the
//! number of ranks.
//!
//! A table holds one random entry per rank. At element `i`, rank `r` contributes the entry
//! `(r + shift(i)) % ranks`, changed by a random `base(i)`. `shift` and `base` differ from element
//! to element, so that a contribution that is lost, counted twice or taken from another element
//! changes the result, and every order of combining gives the same one:
//!
//! - **sum**: entry + base. Integers wrap, so they take all their bits. The entries and bases of
//!   floats are whole numbers whose sum over all ranks is exact.
//! - **avg**: the same. f32 and f64 divide the exact sum, which rounds once. f16 and bf16 divide
//!   each contribution by the world size and round at each addition: their contributions are whole
//!   multiples of the world size, so that each quotient and each sum is exact also where 1/n is
//!   not, and no tolerance hides an error.
//! - **prod**: the entries are odd integers, or for floats -1 and a few -2; one entry is multiplied
//!   by the base, which alone has more than one significant bit.
//! - **min, max**: entry + base, within the type, around its zero or its middle.
//!
//! NCCL rounds averages of floats more often, and is held to a few units in the last place there.
//!
//! Where nothing is combined, each rank's element is random bits of its own.

use crate::choices::Op;
use crate::element::{Kind, Number};
use crate::layout::{Content, Part};

/// The inputs of one call of one type, the same on every rank for the same seed.
pub(crate) struct Pattern {
    seed: u64,
    op: Option<Op>,
    table: Vec<i64>,
    /// The combination of the table.
    total: i64,
    /// What [`base`](Self::base) chooses from.
    bases: Bases,
    /// How many units in the last place an element may differ by.
    tolerance: u64,
}

/// Random numbers to change the entries by.
#[derive(Clone, Copy)]
enum Bases {
    /// From 0 up to, not with, this number.
    Below(u64),
    /// All 64-bit numbers.
    All,
    /// Odd numbers of at most so many bits.
    Odd(u32),
}

impl Pattern {
    /// For what `op` makes of elements of type `T`, or for elements that are only moved.
    pub(crate) fn new<T: Number>(ranks: usize, op: Option<Op>, seed: u64) -> Self {
        let integer = matches!(T::KIND, Kind::Signed | Kind::Unsigned);
        let entry = |rank: usize| mix(!seed, rank as u64);
        let (table, bases): (Vec<i64>, _) = match op {
            None => (Vec::new(), Bases::All),
            Some(Op::Sum | Op::Avg) if integer => {
                ((0..ranks).map(|rank| entry(rank) as i64).collect(), Bases::All)
            }
            Some(Op::Sum | Op::Avg) => {
                // Entries and bases add up to less than 2 * span * ranks <= 2^bits.
                let span = (1 << (T::BITS - 1)) / ranks as u64;
                match span {
                    2.. => (table(ranks, |rank| below(span, entry(rank))), Bases::Below(span)),
                    // Too many ranks for that: a few contribute 1.
                    _ => (table(ranks, |rank| one_of(ranks, T::BITS, rank)), Bases::Below(1)),
                }
            }
            Some(Op::Prod) if integer => {
                ((0..ranks).map(|rank| entry(rank) as i64 | 1).collect(), Bases::Odd(64))
            }
            Some(Op::Prod) => {
                let twos = |rank| rank < TWOS && entry(rank) % 2 == 0;
                let table = (0..ranks).map(|rank| if twos(rank) { -2 } else { -1 });
                // What the twos take of f16's range is far from what the base leaves.
                (table.collect(), Bases::Odd(T::BITS))
            }
            Some(Op::Min | Op::Max) => {
                let span = 1 << (T::BITS - 2);
                let low = match T::KIND {
                    Kind::Unsigned => span,
                    _ => -span,
                };
                let entry = |rank| below(span as u64, entry(rank)) as i64;
                ((0..ranks).map(|rank| low + entry(rank)).collect(), Bases::Below(span as u64))
            }
        };
        let total = match op {
            None => 0,
            Some(Op::Sum | Op::Avg) => table.iter().fold(0, |a: i64, b| a.wrapping_add(*b)),
            Some(Op::Prod) => table.iter().fold(1, |a: i64, b| a.wrapping_mul(*b)),
            Some(Op::Min) => table.iter().copied().min().unwrap_or(0),
            Some(Op::Max) => table.iter().copied().max().unwrap_or(0),
        };
        Self { seed, op, table, total, bases, tolerance: 0 }
    }

    /// The same for NCCL, whose averages of floats multiply each contribution by 1/n, which only
    /// with a power of two is exact: that rounds twice for each rank, and each addition once more.
    pub(crate) fn for_nccl<T: Number>(self) -> Self {
        let ranks = self.table.len();
        let is_float = matches!(T::KIND, Kind::Float | Kind::ShortFloat);
        let rounds = self.op == Some(Op::Avg) && is_float && !ranks.is_power_of_two();
        Self { tolerance: if rounds { 2 * (ranks as u64 + 2) } else { 0 }, ..self }
    }

    /// Writes what each part of a buffer holds.
    pub(crate) fn fill<T: Number>(&self, parts: &[Part], buffer: &mut [T]) {
        for part in parts {
            for (offset, value) in buffer[part.range.clone()].iter_mut().enumerate() {
                *value = self.element(part.content, offset);
            }
        }
    }

    /// Writes what is wrong in every element, so that a call that writes nothing is found out.
    pub(crate) fn spoil<T: Number>(&self, parts: &[Part], buffer: &mut [T]) {
        for part in parts {
            for (offset, value) in buffer[part.range.clone()].iter_mut().enumerate() {
                *value = T::from_bits(!self.element::<T>(part.content, offset).bits());
            }
        }
    }

    /// How many elements of a buffer are not exactly, to the bit, what its parts should hold; for NCCL
    /// within its [tolerance](Self::for_nccl).
    pub(crate) fn wrong<T: Number>(&self, parts: &[Part], buffer: &[T]) -> u64 {
        let wrong = |part: &Part| {
            let elements = buffer[part.range.clone()].iter().enumerate();
            let right = |offset| self.element::<T>(part.content, offset).bits();
            // Floats that are not negative, as those of averages, are as far apart as their bits.
            let differs = |offset, value: T| value.bits().abs_diff(right(offset)) > self.tolerance;
            elements.filter(|(offset, value)| differs(*offset, **value)).count() as u64
        };
        parts.iter().map(wrong).sum()
    }

    fn element<T: Number>(&self, content: Content, offset: usize) -> T {
        match content {
            Content::Of { rank, first } => self.input(rank, first + offset),
            Content::Combined { first } => self.combined(first + offset),
        }
    }

    /// What `rank` contributes.
    fn input<T: Number>(&self, rank: usize, element: usize) -> T {
        let Some(op) = self.op else {
            return T::from_bits(mix(mix(self.seed, rank as u64), element as u64));
        };
        let ranks = self.table.len();
        let shift = below(ranks as u64, mix(self.seed, element as u64) << 32) as usize;
        let index = (rank + shift) % ranks;
        let entry = self.table[index];
        T::whole(match op {
            Op::Prod if index > 0 => entry,
            Op::Prod => entry.wrapping_mul(self.base(element)),
            Op::Avg if T::KIND == Kind::ShortFloat => (entry + self.base(element)) * ranks as i64,
            Op::Sum | Op::Avg | Op::Min | Op::Max => entry.wrapping_add(self.base(element)),
        })
    }

    /// What all ranks' contributions make together.
    fn combined<T: Number>(&self, element: usize) -> T {
        let ranks = self.table.len();
        let base = self.base(element);
        match self.op {
            None => T::default(),
            Some(Op::Sum) => T::whole(self.sum(base)),
            Some(Op::Avg) => T::average(self.sum(base), ranks),
            Some(Op::Prod) => T::whole(self.total.wrapping_mul(base)),
            Some(Op::Min | Op::Max) => T::whole(self.total.wrapping_add(base)),
        }
    }

    fn sum(&self, base: i64) -> i64 {
        self.total.wrapping_add(base.wrapping_mul(self.table.len() as i64))
    }

    /// Of the hash's high bits, where the shift is of its low ones.
    fn base(&self, element: usize) -> i64 {
        let hash = mix(self.seed, element as u64);
        match self.bases {
            Bases::Below(limit) => below(limit, hash) as i64,
            Bases::All => hash as i64,
            Bases::Odd(bits) => (hash >> (64 - bits)) as i64 | 1,
        }
    }
}

fn table(ranks: usize, entry: impl Fn(usize) -> u64) -> Vec<i64> {
    (0..ranks).map(|rank| entry(rank) as i64).collect()
}

/// 1 for so few of the ranks that their sum is exact in `bits` bits. Where the world size itself
/// is not, as an average of short floats needs it, for one rank.
fn one_of(ranks: usize, bits: u32, rank: usize) -> u64 {
    let few = if ranks > 1 << bits { 1 } else { 1 << (bits - 1) };
    u64::from(rank.is_multiple_of(ranks.div_ceil(few)))
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

/// At most so many ranks double a product of floats: f16 has 2^16, and a base takes 2^11.
const TWOS: usize = 4;

#[cfg(test)]
mod tests;
