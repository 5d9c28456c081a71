//! The cores that the ranks of one host have together; a rank that is bound sees its own alone.

use rustix::thread::{CpuSet, sched_getaffinity};

/// What one rank may run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// A bit for each core.
    cores: [u32; WORDS],
    /// How many of them a container's quota pays for.
    parallelism: u32,
}

impl Share {
    /// This rank's.
    pub(crate) fn own() -> Self {
        // A system that does not tell leaves the number alone.
        let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        let mut cores = [0; WORDS];
        for core in (0..WORDS * WORD).filter(|core| allowed.is_set(*core)) {
            cores[core / WORD] |= 1 << (core % WORD);
        }
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cores, parallelism: parallelism as u32 }
    }

    /// As a collective carries it.
    pub(crate) fn to_numbers(&self) -> [f64; Self::NUMBERS] {
        let mut numbers = [f64::from(self.parallelism); Self::NUMBERS];
        for (number, word) in numbers.iter_mut().zip(self.cores) {
            *number = word.into();
        }
        numbers
    }

    /// What [`to_numbers`](Self::to_numbers) gave.
    pub(crate) fn from_numbers(numbers: &[f64; Self::NUMBERS]) -> Self {
        let mut cores = [0; WORDS];
        for (word, number) in cores.iter_mut().zip(numbers) {
            *word = *number as u32;
        }
        Self { cores, parallelism: numbers[WORDS] as u32 }
    }

    /// One without a quota.
    #[cfg(test)]
    pub(crate) fn of(cores: &[usize]) -> Self {
        let mut share = Self { cores: [0; WORDS], parallelism: cores.len() as u32 };
        for core in cores {
            share.cores[core / WORD] |= 1 << (core % WORD);
        }
        share
    }

    /// How many [`to_numbers`](Self::to_numbers) gives.
    pub(crate) const NUMBERS: usize = WORDS + 1;
}

/// How many cores ranks of one host have together.
pub(crate) fn together<'a>(shares: impl Iterator<Item = &'a Share> + Clone) -> u32 {
    let mut all = [0; WORDS];
    for share in shares.clone() {
        for (word, own) in all.iter_mut().zip(share.cores) {
            *word |= own;
        }
    }
    let most =
        |shares: &mut dyn Iterator<Item = &'a Share>| shares.map(|share| share.parallelism).max();
    let quota = most(&mut shares.clone().filter(|share| share.parallelism < count(&share.cores)));
    match (count(&all), quota) {
        (0, _) => most(&mut shares.clone()).unwrap_or(1),
        (cores, Some(quota)) => cores.min(quota),
        (cores, None) => cores,
    }
}

fn count(cores: &[u32; WORDS]) -> u32 {
    cores.iter().map(|word| word.count_ones()).sum()
}

/// Bits; a 64-bit float holds every value of so many.
const WORD: usize = 32;
const WORDS: usize = CpuSet::MAX_CPU / WORD;

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(shares: &[Share]) -> u32 {
        together(shares.iter())
    }

    #[test]
    fn bound_ranks_have_together_what_each_may_run_on() {
        assert_eq!(cores(&[Share::of(&[0]), Share::of(&[1])]), 2);
        assert_eq!(cores(&[Share::of(&[0, 1]), Share::of(&[1, 2]), Share::of(&[1023])]), 4);
        assert_eq!(cores(&[Share::of(&[4, 5]), Share::of(&[4, 5])]), 2);
    }

    #[test]
    fn a_quota_pays_for_fewer() {
        let paid = |parallelism, cores: &[usize]| Share { parallelism, ..Share::of(cores) };
        assert_eq!(cores(&[paid(2, &[0, 1, 2, 3]), paid(2, &[0, 1, 2, 3])]), 2);
        // No mask: the number is all there is.
        assert_eq!(cores(&[paid(3, &[]), paid(2, &[])]), 3);
    }

    #[test]
    fn a_share_crosses_a_collective_whole() {
        let own = Share::own();
        assert!(cores(std::slice::from_ref(&own)) >= 1);
        for share in [own, Share::of(&[0, 31, 32, 1023])] {
            assert_eq!(Share::from_numbers(&share.to_numbers()), share);
        }
    }
}
