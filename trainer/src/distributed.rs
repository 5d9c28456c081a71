//! An optimiser whose every step is that of all ranks together.

use std::sync::Arc;
use std::time::Duration;

use allfold::Communicator;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, VarBuilder, VarMap};

use crate::agreement;
use crate::bucket::Limits;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::nccl::gpu_of;
use crate::norm::{clip, norm};
use crate::parameters::{by_name, describe};
use crate::reduction::{Clock, Pass, Reduction};
use crate::sampler::{Sampler, Weight};
use crate::tally::{Riders, Tally};
use crate::tracked::{Shared, Tracked};

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
/// To add up gradients while backward still works on others, make the model anew for each loss,
/// of parameters that report their gradients: see [`tracked`](Self::tracked).
///
/// Variables on a GPU, the one that [`gpu`](crate::gpu) gives, are added up by NCCL and stay there;
/// all ranks then have theirs on GPUs. What is counted rides along with them. The digest, the norm
/// of the gradient and [`Optimiser::state`](crate::Optimiser::state) copy to the host.
///
/// All ranks must make the same number of steps. Each holds all parameters; they start as rank
/// 0's and stay bit-identical, because every rank applies the same sums.
///
/// The sums are made on a communicator of their own, a split of the world, so that the loop may
/// use the world meanwhile. Where ranks do not make the same steps, allfold's error shows the label
/// of each rank's call: the step, from 1, times 1,000,000, plus the bucket of parameters, from 0.
///
/// Gradients of f16 and bf16 travel in their own type, added up in f32 and rounded at each rank
/// (see [`allfold::ReduceOp::Sum`]). Where a parameter has one of these types, a step first counts
/// the samples of all ranks in a call of its own, whose label has the number behind the last
/// bucket's.
pub struct Distributed<'a, O> {
    optimizer: O,
    world: &'a Communicator,
    /// In the order of names.
    parameters: Vec<(String, Var)>,
    /// None in a world of one, but for half floats.
    shared: Option<Arc<Shared>>,
    limits: Limits,
    /// Whether all ranks have the order of parameters that the first model gave.
    is_settled: bool,
    weight: Weight,
    steps: u64,
    /// This rank's riders since the last step.
    riders: Riders,
    /// The sum of the gradients since the last step, in a world of one.
    sum: GradStore,
    clip_norm: Option<f64>,
    wants_norm: bool,
    norm: Option<f64>,
    is_asked_to_stop: bool,
    stops: usize,
}

impl<'a, O: Optimizer> Distributed<'a, O> {
    /// Takes over `optimizer`, which must own the variables of `vars`, and gives every rank the
    /// weights of rank 0.
    ///
    /// # Errors
    /// [`Error::Disagree`] on every rank where names, shapes, types or kind of device of the
    /// parameters differ between ranks, with the first that does; [`Error::Parameter`] for a type other than f16,
    /// bf16, f32 and f64; [`Error::NoParameters`]; allfold's own errors.
    pub fn new(optimizer: O, vars: &VarMap, world: &'a Communicator) -> Result<Self> {
        let parameters = by_name(vars);
        // First of all: the errors below are then the same on all ranks.
        agreement::compare(world, "parameters", &described(&parameters))?;
        if parameters.is_empty() {
            return Err(Error::NoParameters);
        }
        let limits = Limits::default();
        // Also in a world of one: it finds types that cannot be added up.
        let split = world.split(Some(0), world.rank() as u32)?.unwrap_or_else(Communicator::single);
        let order: Vec<usize> = (0..parameters.len()).rev().collect();
        let mut reduction = Reduction::new(split, &parameters, &order, limits)?;
        let shared = reduction.broadcast_parameters();
        shared.map_err(|error| reduction.nccl().fail(error))?;
        // Sums over batches of half floats need their care also where no other rank adds to them.
        let has_halves =
            parameters.iter().any(|(_, var)| matches!(var.dtype(), DType::F16 | DType::BF16));
        let shared = (world.size() > 1 || has_halves).then(|| Arc::new(Shared::new(reduction)));
        Ok(Self {
            optimizer,
            world,
            parameters,
            shared,
            limits,
            is_settled: false,
            weight: Weight::default(),
            steps: 0,
            riders: Riders::default(),
            sum: GradStore::default(),
            clip_norm: None,
            wants_norm: false,
            norm: None,
            is_asked_to_stop: false,
            stops: 0,
        })
    }

    /// Adds up gradients in buckets of up to `bytes` (25 MiB), the first of them of up to 1 MiB;
    /// one parameter may be larger. All ranks must give the same.
    ///
    /// # Errors
    /// [`Error::TooLate`] after the first step.
    pub fn with_bucket_limit(mut self, bytes: usize) -> Result<Self> {
        if self.steps > 0 {
            return Err(Error::TooLate);
        }
        self.limits = Limits::new(bytes);
        if let Some(shared) = &self.shared {
            let mut reduction = shared.reduction();
            let order = reduction.order();
            reduction.deal(&self.parameters, &order, self.limits)?;
        }
        Ok(self)
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

    /// The parameters, for one model that makes one loss: each bucket of gradients is added up
    /// between the ranks as soon as backward has made it, while backward goes on.
    ///
    /// A model is made anew of this for every loss, which costs a copy of the parameters; one of
    /// an earlier step is an error. Where there is nothing to overlap
    /// ([`overlaps`](Self::overlaps)) these are the parameters themselves, and a model of an earlier
    /// step is not noticed: it does no harm there.
    ///
    /// ```
    /// # use allfold_trainer::{Distributed, digits};
    /// # use candle_core::{DType, Device, Module};
    /// # use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear, loss};
    /// # fn main() -> Result<(), allfold_trainer::Error> {
    /// # let world = allfold::Communicator::from_env_or_single()?;
    /// # let (vars, params, seed) = (VarMap::new(), ParamsAdamW::default(), 1);
    /// # let train = digits()?.train;
    /// let build = |vars: VarBuilder| linear(64, 10, vars);
    /// build(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?; // names the parameters
    /// let mut opt = Distributed::new(AdamW::new(vars.all_vars(), params)?, &vars, &world)?;
    /// for batch in opt.sampler(train.len(), 100, seed).epoch(0) {
    ///     let (images, labels) = train.batch(&batch, DType::F32)?;
    ///     let model = build(opt.tracked(DType::F32))?;
    ///     let loss = loss::cross_entropy(&model.forward(&images.flatten_from(1)?)?, &labels)?;
    ///     opt.backward_step(&loss)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn tracked(&self, dtype: DType) -> VarBuilder<'static> {
        let shared = self.shared.clone().filter(|_| self.overlaps());
        let tracked = Tracked::new(&self.parameters, shared, self.steps);
        let device = self.parameters.first().map_or(Device::Cpu, |(_, var)| var.device().clone());
        VarBuilder::from_backend(Box::new(tracked), dtype, device)
    }

    /// Whether there is more than one bucket and a network between ranks, or GPUs, so that the first
    /// can be on its way while backward works on the last. Within one host the ranks' cores move the
    /// bytes themselves: beside backward that takes as long, and the copies of the parameters longer.
    pub fn overlaps(&self) -> bool {
        let is_moved_by_cores = self.world.shares_memory() && !self.is_on_gpu();
        self.world.size() > 1 && self.buckets() > 1 && !is_moved_by_cores
    }

    /// Whether it adds up gradients where they are, on GPUs.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.parameters.iter().any(|(_, var)| gpu_of(var).is_some())
    }

    /// What computes and adds up, as a header shows it, where that is GPUs: one a rank.
    pub(crate) fn gpus(&self) -> Option<String> {
        let nccl = self.shared.as_ref().and_then(|shared| shared.reduction().nccl().described());
        self.is_on_gpu().then(|| nccl.unwrap_or_else(|| "one, alone".into()))
    }

    /// The all-reduces of a step.
    pub fn buckets(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.reduction().buckets())
    }

    /// One step of all ranks. `loss` is the mean loss of this rank's samples, a scalar; a rank
    /// without samples joins with zeros, whatever its loss. Returns the mean loss over the
    /// samples of all ranks.
    ///
    /// # Errors
    /// On every rank [`Error::NoSamples`] where no rank has a sample, and
    /// [`Error::LossNotFinite`] where the mean loss is infinite or no number (the parameters are
    /// then those before the step); [`Error::StaleModel`] and [`Error::TwoGradients`] where the
    /// model was not made for this loss; candle's and allfold's own errors.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<f64> {
        let (source, scale, own) = self.mean(loss)?;
        Ok(self.take_step(source, scale, own)?.mean_loss())
    }

    /// Adds the gradients of a loss to those of the next step: a
    /// [`backward_step`](Self::backward_step) over several batches, each weighed by its samples.
    /// All ranks make as many of these calls before each step.
    ///
    /// # Errors
    /// As [`backward_step`](Self::backward_step).
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<()> {
        let (source, scale, own) = self.mean(loss)?;
        self.pass(source, scale, own, false).map(drop)
    }

    /// One step of all ranks from gradients that are already there: those of the mean loss of
    /// this rank's samples.
    ///
    /// # Errors
    /// As [`backward_step`](Self::backward_step).
    pub fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let samples = self.weight.get();
        let own = Tally { samples, ..Tally::default() };
        let source = if samples > 0 { Source::Gradients(gradients) } else { Source::Nothing };
        self.take_step(source, samples as f64, own)?;
        Ok(())
    }

    /// One step of all ranks from the *sum* of this rank's losses, a scalar; none where this rank
    /// has no sample. `own` counts this rank's samples; returns the tally of all ranks.
    ///
    /// # Errors
    /// As [`backward_step`](Self::backward_step).
    pub fn backward_step_of_sum(&mut self, losses: Option<&Tensor>, own: Tally) -> Result<Tally> {
        self.take_step(losses.map_or(Source::Nothing, Source::Loss), 1.0, own)
    }

    /// Adds gradients to those of the next step, as [`accumulate`](Self::accumulate), from the
    /// *sum* of this rank's losses.
    ///
    /// # Errors
    /// As [`backward_step`](Self::backward_step).
    pub fn accumulate_sum(&mut self, losses: Option<&Tensor>, own: Tally) -> Result<()> {
        self.pass(losses.map_or(Source::Nothing, Source::Loss), 1.0, own, false).map(drop)
    }

    /// Shortens the gradient of the mean loss, over all parameters, to this Euclidean norm where
    /// it is longer. All ranks must set the same.
    ///
    /// (Razvan Pascanu et al., *On the difficulty of training recurrent neural networks*, 2013.)
    pub fn set_clip_norm(&mut self, norm: Option<f64>) {
        self.clip_norm = norm;
    }

    /// Measures the norm of the gradient also where it is not clipped.
    pub fn measure_norm(&mut self, measure: bool) {
        self.wants_norm = measure;
    }

    /// The Euclidean norm of the last step's gradient, before it was clipped; none where it was
    /// neither clipped nor measured.
    pub fn gradient_norm(&self) -> Option<f64> {
        self.norm
    }

    /// Asks all ranks to stop: the word travels with the next step.
    pub fn ask_to_stop(&mut self) {
        self.is_asked_to_stop = true;
    }

    /// Whether any rank had asked to stop when it made the last step: the same on all ranks.
    pub fn is_stopping(&self) -> bool {
        self.stops > 0
    }

    /// The optimiser.
    pub fn inner(&self) -> &O {
        &self.optimizer
    }

    /// The optimiser; what is changed must be changed on all ranks.
    pub fn inner_mut(&mut self) -> &mut O {
        &mut self.optimizer
    }

    /// The optimiser's learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.optimizer.learning_rate()
    }

    /// Sets the optimiser's learning rate; all ranks must set the same.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.optimizer.set_learning_rate(learning_rate);
    }

    /// The steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Goes on behind so many steps, with the parameters as they are; all ranks must set the same.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// The number of parameters, each element counted.
    pub fn elements(&self) -> usize {
        self.parameters.iter().map(|(_, v)| v.elem_count()).sum()
    }

    /// The parameters with their names, in the order of names, numbers in them as numbers.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// The time this rank has spent in the all-reduce of gradients, waits included; not the part
    /// during which it computed or packed others. On a GPU, which is given its work in advance, it
    /// contains what is left of backward.
    pub fn time_in_all_reduce(&self) -> Duration {
        self.clock().blocked
    }

    /// The time during which all-reduces of gradients were under way, in every step from the start
    /// of the first to the end of the last.
    pub fn time_of_all_reduce(&self) -> Duration {
        self.clock().under_way
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

    /// For a loop that ends by an error of its own: on GPUs candle's own, such as a want of memory,
    /// becomes that of all ranks and names this one. Otherwise they would hear only that this rank's
    /// calls differ from theirs. Other errors, and all on the host, are given back as they are.
    pub fn fail(&self, error: Error) -> Error {
        match &self.shared {
            Some(shared) => shared.reduction().nccl().fail(error),
            None => error,
        }
    }

    fn clock(&self) -> Clock {
        self.shared.as_ref().map(|shared| shared.reduction().clock()).unwrap_or_default()
    }

    /// The mean loss of this rank's samples as a part of all ranks'.
    fn mean<'l>(&self, loss: &'l Tensor) -> Result<(Source<'l>, f64, Tally)> {
        let samples = self.weight.get();
        if samples == 0 {
            return Ok((Source::Nothing, 0.0, Tally::default()));
        }
        let tally = Tally { samples, loss: scalar(loss)? * samples as f64, correct: 0 };
        Ok((Source::Loss(loss), samples as f64, tally))
    }

    /// The last pass of a step, and the step.
    fn take_step(&mut self, source: Source, scale: f64, own: Tally) -> Result<Tally> {
        self.riders.stops = usize::from(self.is_asked_to_stop);
        let (mut mean, all) = self.pass(source, scale, own, true)?;
        if self.clip_norm.is_some() || self.wants_norm {
            let norm = norm(&self.parameters, &mean)?;
            if let Some(limit) = self.clip_norm {
                clip(&self.parameters, &mut mean, norm, limit)?;
            }
            self.norm = Some(norm);
        }
        self.optimizer.step(&mean)?;
        self.steps += 1;
        self.stops = all.stops;
        Ok(all.tally)
    }

    /// Adds `scale` times the gradients of this rank. In the last pass of a step it adds up those
    /// of all ranks, divides by the number of samples, and ends the step, also by an error.
    fn pass(
        &mut self,
        source: Source,
        scale: f64,
        own: Tally,
        is_last: bool,
    ) -> Result<(GradStore, Riders)> {
        self.riders.tally += own;
        let summed = match self.shared.clone() {
            Some(shared) => self.shared_pass(&shared, source, scale, own, is_last),
            None => self.lone_pass(source, scale, is_last),
        };
        if is_last || summed.is_err() {
            self.riders = Riders::default();
            self.sum = GradStore::default();
        }
        summed
    }

    fn shared_pass(
        &mut self,
        shared: &Shared,
        source: Source,
        scale: f64,
        own: Tally,
        is_last: bool,
    ) -> Result<(GradStore, Riders)> {
        if !self.is_settled {
            self.settle_order(shared)?;
            self.is_settled = true;
        }
        let pass = Pass { step: self.steps, scale, riders: self.riders, own, is_last };
        let result = self.reduce(shared, source, pass);
        if result.is_err() {
            shared.reduction().abandon();
        }
        match shared.take_error() {
            Some(error) => Err(error),
            None => result,
        }
    }

    fn reduce(&self, shared: &Shared, source: Source, pass: Pass) -> Result<(GradStore, Riders)> {
        shared.reduction().begin(pass)?;
        // Tracked parameters report from within backward; the gradients of others are in the
        // store.
        let made;
        let gradients = match source {
            Source::Loss(loss) => {
                made = loss.backward()?;
                Some(&made)
            }
            Source::Gradients(gradients) => Some(gradients),
            Source::Nothing => None,
        };
        let mut reduction = shared.reduction();
        if let Some(gradients) = gradients {
            for parameter in reduction.order() {
                let Some((_, var)) = self.parameters.get(parameter) else { continue };
                if let Some(gradient) = gradients.get(var) {
                    reduction.ready(parameter, gradient)?;
                }
            }
        }
        if !pass.is_last {
            return Ok(Default::default());
        }
        reduction.finish()
    }

    /// Nobody to add anything up with.
    fn lone_pass(
        &mut self,
        source: Source,
        scale: f64,
        is_last: bool,
    ) -> Result<(GradStore, Riders)> {
        let is_first = self.sum.get_ids().next().is_none();
        if is_last {
            self.riders.check(self.steps)?;
        }
        let samples = self.riders.tally.samples as f64;
        // The usual step is one pass: its gradients are then made as they should be.
        let factor = if is_first && is_last { scale / samples } else { scale };
        let (made, factor) = match source {
            Source::Loss(loss) if factor == 1.0 => (loss.backward()?, 1.0),
            Source::Loss(loss) => ((loss * factor)?.backward()?, 1.0),
            Source::Gradients(gradients) => {
                let mut own = GradStore::default();
                for (_, var) in &self.parameters {
                    if let Some(gradient) = gradients.get(var) {
                        own.insert(var, gradient.clone());
                    }
                }
                (own, factor)
            }
            Source::Nothing => (GradStore::default(), 1.0),
        };
        let is_whole = is_first && is_last;
        if is_whole && factor == 1.0 {
            return Ok((made, self.riders));
        }
        for (_, var) in &self.parameters {
            let Some(gradient) = made.get(var) else { continue };
            let gradient = (gradient * factor)?;
            let sum = match self.sum.remove(var) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.sum.insert(var, sum);
        }
        if !is_last {
            return Ok(Default::default());
        }
        let mut mean = std::mem::take(&mut self.sum);
        if !is_whole {
            for (_, var) in &self.parameters {
                if let Some(sum) = mean.remove(var) {
                    mean.insert(var, (sum / samples)?);
                }
            }
        }
        Ok((mean, self.riders))
    }

    /// At the first pass of a world all ranks take the order of rank 0's model, so that buckets
    /// become complete one after the other.
    fn settle_order(&self, shared: &Shared) -> Result<()> {
        let count = self.parameters.len();
        if !self.overlaps() {
            return Ok(());
        }
        let mut order: Vec<u64> =
            shared.settle_order(count).into_iter().map(|parameter| parameter as u64).collect();
        self.world.broadcast(&mut order, 0)?;
        let order: Vec<usize> = order.into_iter().map(|parameter| parameter as usize).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        // All ranks see the same; what is no order leaves them all with that of names.
        if sorted.into_iter().eq(0..count) {
            shared.reduction().deal(&self.parameters, &order, self.limits)?;
        }
        Ok(())
    }
}

/// Where the gradients of a pass come from.
enum Source<'a> {
    /// Backward from this scalar.
    Loss(&'a Tensor),
    /// They are there.
    Gradients(&'a GradStore),
    /// This rank has none.
    Nothing,
}

/// What the ranks compare of their parameters.
fn described(parameters: &[(String, Var)]) -> Vec<String> {
    let place = |var: &Var| if gpu_of(var).is_some() { " on a GPU" } else { "" };
    let lines = describe(parameters).into_iter().zip(parameters);
    lines.map(|(line, (_, var))| line + place(var)).collect()
}

/// The value of a scalar of either type.
fn scalar(loss: &Tensor) -> Result<f64> {
    Ok(loss.to_dtype(DType::F64)?.to_scalar()?)
}
