//! SplitMix64 (Steele, Lea and Flood, 2014): small, and the same on every machine.

use std::ops::RangeInclusive;

/// A generator; equal seeds give equal numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Begins the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-32 for every bound that a test uses.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number within the range, both ends included.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (least, most) = (*range.start(), *range.end());
        least + self.below(most.saturating_sub(least).saturating_add(1))
    }

    /// True in `per_mille` of a thousand cases.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1_000) < u64::from(per_mille)
    }

    /// True in this share of all cases.
    pub fn chance_of(&mut self, share: f64) -> bool {
        // 53 bits: as many as the fraction has.
        ((self.bits() >> 11) as f64) < share * (1u64 << 53) as f64
    }

    /// One of `choices`; None if there is none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let chosen = self.below(choices.len() as u64);
        choices.get(chosen as usize)
    }
}

/// 2^64 divided by the golden ratio, odd: the increment of the original.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_splitmix64() {
        let mut random = Random::new(1_234_567);
        let first = [random.bits(), random.bits(), random.bits()];
        // From the reference implementation, https://prng.di.unimi.it/splitmix64.c
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn numbers_keep_their_bounds_and_reach_them() {
        let mut random = Random::new(7);
        let drawn: Vec<u64> = (0..1_000).map(|_| random.within(3..=6)).collect();
        assert!((3..=6).all(|number| drawn.contains(&number)), "{drawn:?}");
        assert!(drawn.iter().all(|number| (3..=6).contains(number)), "{drawn:?}");
        assert_eq!(random.below(0), 0);
        assert!(!random.chance(0) && random.chance(1_000));
    }
}
