//! Who gets which samples: the same global batches whatever the world size, in a new order each
//! epoch, every sample on exactly one rank.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use allfold::Communicator;

use crate::random::Random;

/// Deals a data set to the ranks, batch by batch.
///
/// The order of an epoch depends on the seed and the epoch alone. It is cut into global batches,
/// the last one smaller where the batch size does not divide the samples, and each batch into one
/// consecutive share a rank; the sizes of the shares differ by at most one. A rank has no sample
/// in a batch that is smaller than the world.
#[derive(Clone, Debug)]
pub struct Sampler {
    samples: usize,
    batch_size: usize,
    seed: u64,
    rank: usize,
    size: usize,
    weight: Weight,
}

impl Sampler {
    /// Deals `samples` samples in global batches of `batch_size` (0 counts as 1).
    ///
    /// With [`Distributed`](crate::Distributed) use
    /// [`Distributed::sampler`](crate::Distributed::sampler), which weighs the losses as well.
    pub fn new(world: &Communicator, samples: usize, batch_size: usize, seed: u64) -> Self {
        Self::weighing(
            world.rank(),
            world.size(),
            samples,
            batch_size,
            seed,
            Weight::default(),
        )
    }

    pub(crate) fn weighing(
        rank: usize,
        size: usize,
        samples: usize,
        batch_size: usize,
        seed: u64,
        weight: Weight,
    ) -> Self {
        Self {
            samples,
            batch_size: batch_size.max(1),
            seed,
            rank,
            size,
            weight,
        }
    }

    /// The number of global batches in an epoch.
    pub fn batches(&self) -> usize {
        self.samples.div_ceil(self.batch_size)
    }

    /// This rank's shares of the batches of `epoch` (from 0), in order.
    pub fn epoch(&self, epoch: usize) -> Epoch {
        let mut order: Vec<usize> = (0..self.samples).collect();
        Random::new(self.seed, epoch as u64).shuffle(&mut order);
        Epoch {
            order,
            next: 0,
            sampler: self.clone(),
        }
    }
}

/// One pass over the data: an iterator over this rank's shares.
#[derive(Debug)]
pub struct Epoch {
    order: Vec<usize>,
    next: usize,
    sampler: Sampler,
}

impl Iterator for Epoch {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let rest = self.order.get(self.next..).filter(|r| !r.is_empty())?;
        let Sampler { rank, size, .. } = self.sampler;
        let global = rest.len().min(self.sampler.batch_size);
        let samples = rest[share(global, rank, size)].to_vec();
        self.next += global;
        self.sampler.weight.set(samples.len());
        Some(Batch { samples, global })
    }
}

/// This rank's share of a global batch; it reads as a slice of sample numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    samples: Vec<usize>,
    global: usize,
}

impl Batch {
    /// The number of samples of all ranks together.
    pub fn global_len(&self) -> usize {
        self.global
    }
}

impl Deref for Batch {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.samples
    }
}

/// How many samples the next loss is the mean of; set by the sampler, read by the optimiser.
#[derive(Clone, Debug)]
pub(crate) struct Weight(Arc<AtomicUsize>);

impl Weight {
    pub(crate) fn set(&self, samples: usize) {
        self.0.store(samples, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Weight {
    /// One: without a sampler every rank's loss counts the same.
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }
}

/// The part of `0..count` that is `rank`'s: consecutive, sizes that differ by at most one.
pub(crate) fn share(count: usize, rank: usize, size: usize) -> Range<usize> {
    let size = size.max(1);
    let start = |rank: usize| count / size * rank + (count % size).min(rank);
    start(rank)..start(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(rank: usize, size: usize, samples: usize, batch_size: usize) -> Sampler {
        Sampler::weighing(rank, size, samples, batch_size, 1, Weight::default())
    }

    /// The global batches, put together from the shares of all ranks.
    fn global(size: usize, samples: usize, batch_size: usize, epoch: usize) -> Vec<Vec<usize>> {
        let mut ranks: Vec<Epoch> = (0..size)
            .map(|rank| sampler(rank, size, samples, batch_size).epoch(epoch))
            .collect();
        let mut batches = Vec::new();
        loop {
            let shares: Vec<Option<Batch>> = ranks.iter_mut().map(Iterator::next).collect();
            let Some(shares) = shares.into_iter().collect::<Option<Vec<Batch>>>() else {
                return batches;
            };
            let batch: Vec<usize> = shares.iter().flat_map(|share| share.to_vec()).collect();
            assert!(shares.iter().all(|share| share.global_len() == batch.len()));
            batches.push(batch);
        }
    }

    #[test]
    fn each_sample_goes_to_exactly_one_rank() {
        for (size, samples, batch_size) in [(1, 10, 3), (4, 1438, 97), (7, 5, 5), (3, 12, 100)] {
            let batches = global(size, samples, batch_size, 0);
            assert_eq!(batches.len(), samples.div_ceil(batch_size));
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..samples));
        }
    }

    #[test]
    fn batches_do_not_depend_on_the_world_size() {
        let alone = global(1, 1438, 97, 3);
        for size in [2, 3, 4, 200] {
            assert_eq!(global(size, 1438, 97, 3), alone);
        }
        assert_ne!(
            global(1, 1438, 97, 4),
            alone,
            "each epoch has its own order"
        );
    }

    #[test]
    fn a_partial_batch_may_leave_ranks_without_samples() {
        let lengths: Vec<usize> = (0..4)
            .map(|rank| {
                sampler(rank, 4, 10, 8)
                    .epoch(0)
                    .last()
                    .map_or(9, |b| b.len())
            })
            .collect();
        assert_eq!(lengths, [1, 1, 0, 0]);
    }

    #[test]
    fn the_weight_follows_the_batch() {
        let weight = Weight::default();
        let sampler = Sampler::weighing(0, 2, 10, 8, 1, weight.clone());
        assert_eq!(weight.get(), 1);
        let weights: Vec<usize> = sampler.epoch(0).map(|_| weight.get()).collect();
        assert_eq!(weights, [4, 1]);
    }

    #[test]
    fn nothing_to_deal() {
        assert_eq!(sampler(0, 2, 0, 10).epoch(0).next(), None);
        assert_eq!(sampler(0, 1, 2, 0).batches(), 2);
    }
}
