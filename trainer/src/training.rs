//! The training loop of `allfold train`: epochs of steps, the test set after each.

use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};
use candle_core::{DType, Device};
use candle_nn::{Module, VarBuilder, VarMap};

use crate::agreement;
use crate::data::{Split, digits};
use crate::digest::Digest;
use crate::distributed::Distributed;
use crate::error::{Error, Result};
use crate::initial::fill_from_seed;
use crate::loss::{count, sum_of_losses};
use crate::optimizer::{Optimiser, OptimizerConfig};
use crate::options::{Options, Precision, Settings};
use crate::parameters::by_name;
use crate::sampler::{Sampler, share};
use crate::tally::{TALLY_NUMBERS, Tally};

/// A model, its data and its optimiser, on one rank of a world.
pub struct Training<'a> {
    pub(crate) settings: Settings,
    pub(crate) world: &'a Communicator,
    pub(crate) split: Split,
    pub(crate) optimizer: Distributed<'a, Optimiser>,
    sampler: Sampler,
    model: Box<dyn Module>,
}

/// What happens while training, on every rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A step is done.
    Step(StepDone),
    /// An epoch is done, or the last step in the middle of one.
    Epoch(EpochDone),
}

/// A step of all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepDone {
    /// The step, from 1, counted over all epochs.
    pub step: usize,
    /// What all ranks counted over the batch, before its gradient was applied.
    pub train: Tally,
}

/// An epoch of all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochDone {
    /// The epoch, from 1.
    pub epoch: usize,
    /// The last step, from 1, counted over all epochs.
    pub step: usize,
    /// The sum over its steps.
    pub train: Tally,
    /// The test set, after the last step.
    pub test: Tally,
    /// Training samples of all ranks a second, the test set not counted.
    pub images_per_second: f64,
    /// The part of that time that this rank spent in the all-reduce, 0 to 1.
    pub all_reduce_share: f64,
}

/// How a training ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The test set, after the last step.
    pub test: Tally,
    /// Steps taken.
    pub steps: usize,
    /// Full passes over the training data, where that is what the steps are.
    pub epochs: Option<usize>,
    /// Time since the first step, tests included.
    pub time: Duration,
    /// The digest of the parameters: the same on all ranks, compared.
    pub digest: Digest,
    /// The world size.
    pub ranks: usize,
}

impl<'a> Training<'a> {
    /// Builds the model on this rank and gives it the weights of rank 0.
    ///
    /// # Errors
    /// As [`Options::check`]; [`Error::Disagree`] where ranks were given
    /// different options; as [`Distributed::new`].
    pub fn new(options: &Options, world: &'a Communicator) -> Result<Self> {
        let split = digits()?;
        let settings = options.settings(world.size(), &split)?;
        agreement::compare(world, "options", &settings.lines())?;
        let vars = VarMap::new();
        let builder = VarBuilder::from_varmap(&vars, settings.dtype(), &Device::Cpu);
        let model = settings.model.build(&settings.hidden, &split.train.shape(), builder)?;
        fill_from_seed(&vars, settings.seed)?;
        let config =
            OptimizerConfig { lr: settings.lr, ..OptimizerConfig::new(settings.optimizer) };
        let optimizer = Optimiser::new(config, &by_name(&vars))?;
        Ok(Self {
            optimizer: Distributed::new(optimizer, &vars, world)?,
            sampler: Sampler::new(world, split.train.len(), settings.batch_size, settings.seed),
            settings,
            world,
            split,
            model,
        })
    }

    /// Trains to the end; `watch` sees every step and every epoch, on every rank, and ends the
    /// training by an error.
    ///
    /// # Errors
    /// [`Error::LossNotFinite`]; [`Error::ParametersDiffer`] at the end; candle's and allfold's
    /// own errors; those of `watch`.
    pub fn run(&mut self, mut watch: impl FnMut(Event) -> Result<()>) -> Result<Outcome> {
        let start = Instant::now();
        let gauges = crate::gauges::Gauges::new(self.world);
        let mut test = Tally::default();
        let mut step = 0;
        let mut epoch = 0;
        while step < self.settings.steps {
            let (began, waited) = (Instant::now(), self.optimizer.time_in_all_reduce());
            let mut train = Tally::default();
            let batches = self.sampler.epoch(epoch);
            for batch in batches.take(self.settings.steps - step) {
                let tally = self.step(&batch)?;
                train += tally;
                step += 1;
                gauges.step(step as u64, tally.mean_loss(), tally.samples as u64);
                let train = tally;
                watch(Event::Step(StepDone { step, train }))?;
            }
            let seconds = began.elapsed().as_secs_f64();
            let waited = self.optimizer.time_in_all_reduce() - waited;
            test = self.test()?;
            // After the last step no other would notice.
            if !test.loss.is_finite() {
                return Err(Error::LossNotFinite { step: step as u64 });
            }
            epoch += 1;
            watch(Event::Epoch(EpochDone {
                epoch,
                step,
                train,
                test,
                images_per_second: train.samples as f64 / seconds,
                all_reduce_share: waited.as_secs_f64() / seconds,
            }))?;
        }
        Ok(Outcome {
            test,
            steps: step,
            epochs: step.is_multiple_of(self.sampler.batches()).then_some(epoch),
            time: start.elapsed(),
            digest: self.optimizer.digest()?,
            ranks: self.world.size(),
        })
    }

    /// The number of steps in an epoch.
    pub(crate) fn steps_per_epoch(&self) -> usize {
        self.sampler.batches()
    }

    /// One step of all ranks; `samples` are this rank's.
    fn step(&mut self, samples: &[usize]) -> Result<Tally> {
        // A rank without samples joins with zeros: a model need not take empty batches.
        if samples.is_empty() {
            return self.optimizer.backward_step_of_sum(None, Tally::default());
        }
        let (images, labels) = self.split.train.batch(samples, self.settings.dtype())?;
        let logits = self.model.forward(&images)?;
        let losses = sum_of_losses(&logits, &labels)?;
        let tally = count(&logits, &labels, &losses)?;
        self.optimizer.backward_step_of_sum(Some(&losses), tally)
    }

    /// Tries the model on the test set, each rank on its share; every rank gets the tally of all.
    fn test(&self) -> Result<Tally> {
        let part = share(self.split.test.len(), self.world.rank(), self.world.size());
        let samples: Vec<usize> = part.collect();
        let mut own = Tally::default();
        for samples in samples.chunks(TEST_BATCH) {
            let (images, labels) = self.split.test.batch(samples, self.settings.dtype())?;
            let logits = self.model.forward(&images)?.detach();
            let losses = sum_of_losses(&logits, &labels)?;
            own += count(&logits, &labels, &losses)?;
        }
        let mut numbers: [f64; TALLY_NUMBERS] = own.to_numbers();
        self.world.all_reduce(&mut numbers, ReduceOp::Sum)?;
        Ok(Tally::from_numbers(numbers))
    }
}

impl Settings {
    fn dtype(&self) -> DType {
        match self.precision {
            Precision::F32 => DType::F32,
            Precision::F64 => DType::F64,
        }
    }
}

/// Test images in one forward pass: bounds the memory it takes.
const TEST_BATCH: usize = 512;
