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
/// consecutive share a rank; the sizes of the shares differ by at most one. In a batch that is
/// smaller than the world the last ranks have no sample.
#[derive(Clone, Debug)]
pub struct Sampler {
    samples: usize,
    batch_size: usize,
    seed: u64,
    rank: usize,
    size: usize,
    /// The optimiser's, where there is one to tell.
    weight: Option<Weight>,
}

impl Sampler {
    /// Deals `samples` samples in global batches of `batch_size` (0 counts as 1).
    ///
    /// With [`Distributed`](crate::Distributed) use
    /// [`Distributed::sampler`](crate::Distributed::sampler), which weighs the losses as well.
    pub fn new(world: &Communicator, samples: usize, batch_size: usize, seed: u64) -> Self {
        let (rank, size) = (world.rank(), world.size());
        Self { samples, batch_size: batch_size.max(1), seed, rank, size, weight: None }
    }

    /// Tells an optimiser how many samples of each batch count. Where none does, the batch has a
    /// stand-in: models and losses cannot take an empty one.
    pub(crate) fn weighing(self, weight: Weight) -> Self {
        Self { weight: Some(weight), ..self }
    }

    /// The number of global batches in an epoch.
    pub fn batches(&self) -> usize {
        self.samples.div_ceil(self.batch_size)
    }

    /// This rank's shares of the batches of `epoch` (from 0), in order.
    pub fn epoch(&self, epoch: usize) -> Epoch {
        let mut order: Vec<usize> = (0..self.samples).collect();
        Random::new(self.seed, epoch as u64).shuffle(&mut order);
        Epoch { order, next: 0, sampler: self.clone() }
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
        let own = share(global, rank, size);
        let counted = own.len();
        self.next += global;
        let samples = match &self.sampler.weight {
            None => own,
            Some(weight) => {
                weight.set(counted);
                if counted == 0 { 0..1 } else { own }
            }
        };
        Some(Batch { samples: rest[samples].to_vec(), counted, global })
    }
}

/// This rank's share of a global batch; it reads as a slice of sample numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    samples: Vec<usize>,
    counted: usize,
    global: usize,
}

impl Batch {
    /// The number of samples of this rank that count: all of them, or none where the batch of
    /// [`Distributed::sampler`](crate::Distributed::sampler) holds a stand-in, whose loss has no
    /// weight.
    pub fn counted_len(&self) -> usize {
        self.counted
    }

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
        let alone = Sampler::new(&Communicator::single(), samples, batch_size, 1);
        Sampler { rank, size, ..alone }
    }

    /// The global batches, put together from the shares of all ranks.
    fn global(size: usize, samples: usize, batch_size: usize, epoch: usize) -> Vec<Vec<usize>> {
        let mut ranks: Vec<Epoch> =
            (0..size).map(|rank| sampler(rank, size, samples, batch_size).epoch(epoch)).collect();
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
        assert_ne!(global(1, 1438, 97, 4), alone, "each epoch has its own order");
    }

    #[test]
    fn a_partial_batch_may_leave_ranks_without_samples() {
        let lengths: Vec<usize> = (0..4)
            .map(|rank| sampler(rank, 4, 10, 8).epoch(0).last().map_or(9, |b| b.len()))
            .collect();
        assert_eq!(lengths, [1, 1, 0, 0]);
    }

    #[test]
    fn the_weight_follows_the_batch_and_a_stand_in_has_none() {
        let weight = Weight::default();
        assert_eq!(weight.get(), 1);
        let sampler = sampler(2, 4, 10, 8).weighing(weight.clone());
        let dealt: Vec<(usize, usize, usize)> = sampler
            .epoch(0)
            .map(|batch| (batch.len(), batch.counted_len(), weight.get()))
            .collect();
        assert_eq!(dealt, [(2, 2, 2), (1, 0, 0)]);
    }

    #[test]
    fn nothing_to_deal() {
        assert_eq!(sampler(0, 2, 0, 10).epoch(0).next(), None);
        assert_eq!(sampler(0, 1, 2, 0).batches(), 2);
    }
}
