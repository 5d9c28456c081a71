//! An optimiser whose every step is that of all ranks together.

use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::{Optimizer, VarMap};

use crate::agreement;
use crate::bucket::{BUCKET_LIMIT, Bucket, deal};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::parameters::{by_name, describe};
use crate::sampler::{Sampler, Weight};
use crate::tally::{NUMBERS, Tally};

/// Wraps a candle optimiser so that all ranks take the same step, with the gradient of the mean
/// loss over the samples of all ranks.
///
/// An existing loop changes two lines, where the optimiser is made and where it draws its samples:
///
/// ```
/// # use allfold_trainer::{Distributed, digits};
/// # use candle_core::{DType, Device, Module};
/// # use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear, loss};
/// # fn main() -> Result<(), allfold_trainer::Error> {
/// # let world = allfold::Communicator::from_env_or_single()?;
/// # let (vars, params, seed) = (VarMap::new(), ParamsAdamW::default(), 1);
/// # let model = linear(64, 10, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
/// # let train = digits()?.train;
/// let mut opt = Distributed::new(AdamW::new(vars.all_vars(), params)?, &vars, &world)?;
/// for batch in opt.sampler(train.len(), 100, seed).epoch(0) {
///     let (images, labels) = train.batch(&batch, DType::F32)?;
///     let loss = loss::cross_entropy(&model.forward(&images.flatten_from(1)?)?, &labels)?;
///     opt.backward_step(&loss)?; // sums over ranks, weighted by samples
/// }
/// # Ok(())
/// # }
/// ```
///
/// All ranks must make the same number of steps. Each holds all parameters; they start as rank
/// 0's and stay bit-identical, because every rank applies the same sums.
///
/// Where ranks do not make the same steps, allfold's error shows the label of each rank's call:
/// the step, from 1, times 1,000,000, plus the bucket of parameters, from 0.
///
/// Gradients of f16 and bf16 travel in their own type, added up in f32 and rounded at each rank
/// (see [`ReduceOp::Sum`]). Where a parameter has one of these types, a step first counts the
/// samples of all ranks in a call of its own, whose label has the number behind the last bucket's.
pub struct Distributed<'a, O> {
    optimizer: O,
    world: &'a Communicator,
    /// In the order of names.
    parameters: Vec<(String, Var)>,
    /// Last parameter first.
    buckets: Vec<Box<dyn Bucket>>,
    weight: Weight,
    steps: u64,
    in_all_reduce: Duration,
}

impl<'a, O: Optimizer> Distributed<'a, O> {
    /// Takes over `optimizer`, which must own the variables of `vars`, and gives every rank the
    /// weights of rank 0.
    ///
    /// # Errors
    /// [`Error::Disagree`] on every rank where names, shapes or types of the parameters differ
    /// between ranks, with the first that does; [`Error::Parameter`] for a type other than f16,
    /// bf16, f32 and f64; [`Error::NoParameters`]; allfold's own errors.
    pub fn new(optimizer: O, vars: &VarMap, world: &'a Communicator) -> Result<Self> {
        let parameters = by_name(vars);
        // First of all: the errors below are then the same on all ranks.
        agreement::compare(world, "parameters", &describe(&parameters))?;
        if parameters.is_empty() {
            return Err(Error::NoParameters);
        }
        let mut buckets = deal(&parameters, BUCKET_LIMIT)?;
        for bucket in &mut buckets {
            bucket.broadcast_parameters(world)?;
        }
        Ok(Self {
            optimizer,
            world,
            parameters,
            buckets,
            weight: Weight::default(),
            steps: 0,
            in_all_reduce: Duration::ZERO,
        })
    }

    /// Deals `samples` samples to the ranks in global batches of `batch_size`, and tells this
    /// optimiser with each batch how many samples the next loss is the mean of. Where a batch has
    /// fewer samples than there are ranks, some get a stand-in whose loss does not count.
    ///
    /// A loop that draws several batches ahead must call [`weigh`](Self::weigh) before each step.
    pub fn sampler(&self, samples: usize, batch_size: usize, seed: u64) -> Sampler {
        Sampler::new(self.world, samples, batch_size, seed).weighing(self.weight.clone())
    }

    /// Says that the next losses are the mean over `samples` samples of this rank (with up to
    /// 2^24 samples of all ranks in one step); for data that does not come from
    /// [`sampler`](Self::sampler). Before the first call it is 1: every rank counts the same.
    pub fn weigh(&mut self, samples: usize) {
        self.weight.set(samples);
    }

    /// One step of all ranks. `loss` is the mean loss of this rank's samples, a scalar; a rank
    /// without samples joins with zeros, whatever its loss. Returns the mean loss over the
    /// samples of all ranks.
    ///
    /// # Errors
    /// On every rank [`Error::NoSamples`] where no rank has a sample, and
    /// [`Error::LossNotFinite`] where the mean loss is infinite or no number (the parameters are
    /// then those before the step); candle's and allfold's own errors.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<f64> {
        let samples = self.weight.get();
        if samples == 0 {
            return Ok(self.reduced_step(None, 0.0, Tally::default())?.mean_loss());
        }
        let tally = Tally { samples, loss: scalar(loss)? * samples as f64, correct: 0 };
        let gradients = loss.backward()?;
        let all = self.reduced_step(Some(&gradients), samples as f64, tally)?;
        Ok(all.mean_loss())
    }

    /// One step of all ranks from gradients that are already there: those of the mean loss of
    /// this rank's samples.
    ///
    /// # Errors
    /// As [`backward_step`](Self::backward_step).
    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let samples = self.weight.get();
        let tally = Tally { samples, ..Tally::default() };
        let gradients = (samples > 0).then_some(gradients);
        self.reduced_step(gradients, samples as f64, tally)?;
        Ok(())
    }

    /// One step of all ranks from the *sum* of this rank's losses, a scalar; none where this rank
    /// has no sample. `own` counts this rank's samples; returns the tally of all ranks.
    ///
    /// # Errors
    /// As [`backward_step`](Self::backward_step).
    pub fn backward_step_of_sum(&mut self, losses: Option<&Tensor>, own: Tally) -> Result<Tally> {
        let gradients = losses.map(Tensor::backward).transpose()?;
        self.reduced_step(gradients.as_ref(), 1.0, own)
    }

    /// The optimiser's learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate()
    }

    /// Sets the optimiser's learning rate; all ranks must set the same.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.optimizer.set_learning_rate(learning_rate);
    }

    /// The number of parameters, each element counted.
    pub fn elements(&self) -> usize {
        self.parameters.iter().map(|(_, v)| v.elem_count()).sum()
    }

    /// The time this rank has spent in the all-reduce of gradients, waits included; not the part
    /// during which it packed and unpacked other buckets.
    pub fn time_in_all_reduce(&self) -> Duration {
        self.in_all_reduce
    }

    /// The digest of the parameters, which all ranks must call for: it is compared.
    ///
    /// # Errors
    /// [`Error::ParametersDiffer`] on every rank where any differs; allfold's own errors.
    pub fn digest(&self) -> Result<Digest> {
        let digest = Digest::of(&self.parameters)?;
        digest.compare(self.world)?;
        Ok(digest)
    }

    /// Adds up `scale` times the gradients of each rank, divides by the number of samples, steps.
    fn reduced_step(
        &mut self,
        gradients: Option<&GradStore>,
        scale: f64,
        own: Tally,
    ) -> Result<Tally> {
        let summed = self.sum(gradients, scale, own);
        if summed.is_err() {
            // What is under way comes back, so that a next step has all buckets. An error of these
            // calls is that of every later call.
            self.buckets.iter_mut().for_each(|bucket| drop(bucket.wait()));
        }
        let (mean, all) = summed?;
        self.optimizer.step(&mean)?;
        self.steps += 1;
        Ok(all)
    }

    /// Each bucket is on its way as soon as it is packed, and they come back in order.
    fn sum(
        &mut self,
        gradients: Option<&GradStore>,
        scale: f64,
        own: Tally,
    ) -> Result<(GradStore, Tally)> {
        let mut counted = None;
        if self.buckets.iter().any(|bucket| !bucket.carries_tally()) {
            counted = Some(self.count(own)?);
        }
        for number in 0..self.buckets.len() {
            if let Some(earlier) = number.checked_sub(MAX_UNDER_WAY) {
                self.wait(earlier)?;
            }
            let bucket = &mut self.buckets[number];
            let divisor = match counted {
                Some(all) if !bucket.carries_tally() => all.samples as f64,
                _ => 1.0,
            };
            bucket.pack(gradients, scale / divisor, own)?;
            let start = Instant::now();
            bucket.start_all_reduce(self.world, label(self.steps, number))?;
            self.in_all_reduce += start.elapsed();
        }
        let mut mean = GradStore::default();
        let mut all = counted.unwrap_or_default();
        for number in 0..self.buckets.len() {
            self.wait(number)?;
            let bucket = &self.buckets[number];
            if let Some(tally) = bucket.tally() {
                self.check(tally)?;
                all = counted.unwrap_or(tally);
            }
            bucket.unpack(&mut mean)?;
        }
        Ok((mean, all))
    }

    /// The tally of all ranks, by a call of its own.
    fn count(&mut self, own: Tally) -> Result<Tally> {
        let mut numbers: [f64; NUMBERS] = own.to_numbers();
        let start = Instant::now();
        let world = self.world.labelled(label(self.steps, self.buckets.len()));
        world.all_reduce(&mut numbers, ReduceOp::Sum)?;
        self.in_all_reduce += start.elapsed();
        let all = Tally::from_numbers(numbers);
        self.check(all)?;
        Ok(all)
    }

    /// All ranks see the same sum, and so they all end here.
    fn check(&self, all: Tally) -> Result<()> {
        if all.samples == 0 {
            return Err(Error::NoSamples { step: self.steps });
        }
        if !all.loss.is_finite() {
            return Err(Error::LossNotFinite { step: self.steps + 1 });
        }
        Ok(())
    }

    /// Waits for the all-reduce of a bucket.
    fn wait(&mut self, number: usize) -> Result<()> {
        let start = Instant::now();
        let result = self.buckets[number].wait();
        self.in_all_reduce += start.elapsed();
        result
    }
}

/// Tells the calls of one shape apart. A person reads it in errors: `label 12000003` is bucket 3,
/// from 0, of step 12, from 1 as in the output. `steps` are those done before.
fn label(steps: u64, bucket: usize) -> u64 {
    (steps + 1) * STEP_UNIT + bucket as u64
}

/// The value of a scalar of either type.
fn scalar(loss: &Tensor) -> Result<f64> {
    Ok(loss.to_dtype(candle_core::DType::F64)?.to_scalar()?)
}

/// Room for the bucket in a label: a million buckets of 25 MiB are more than memory holds.
const STEP_UNIT: u64 = 1_000_000;
/// Buckets under way at once: half of the 1024 calls that a communicator lets be outstanding; the
/// others are left to the loop's own calls.
const MAX_UNDER_WAY: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_can_be_read() {
        assert_eq!(label(0, 0), 1_000_000);
        assert_eq!(label(11, 3), 12_000_003);
    }
}
