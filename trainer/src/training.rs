//! The training loop of `allfold train`: steps, tests between them, checkpoints, the word to stop.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use allfold::Communicator;
use candle_core::{Device, Tensor};
use candle_nn::{Module, VarBuilder, VarMap};

use crate::agreement;
use crate::arrivals::{Arrivals, Watch};
use crate::checkpoint::Written;
use crate::data::Data;
use crate::device;
use crate::digest::Digest;
use crate::distributed::Distributed;
use crate::error::{Error, Result};
use crate::evaluation::evaluate;
use crate::gauges::Gauges;
use crate::initial::fill_from_seed;
use crate::interval::Interval;
use crate::loss::{count, sum_of_losses};
use crate::optimizer::Optimiser;
use crate::options::{DeviceKind, Options};
use crate::parameters::by_name;
use crate::problem::Problem;
use crate::resume::{MIXED, Resumed, resume};
use crate::sampler::{Batch, Sampler};
use crate::saving::Saving;
use crate::settings::{Settings, saved_lines};
use crate::stop::Stop;
use crate::tally::Tally;

/// A model, its data and its optimiser, on one rank of a world.
pub struct Training<'a> {
    pub(crate) settings: Settings,
    pub(crate) world: &'a Communicator,
    pub(crate) data: Data,
    pub(crate) optimizer: Distributed<'a, Optimiser>,
    pub(crate) resumed: Option<Resumed>,
    device: Device,
    sampler: Sampler,
    model: Box<dyn Module>,
    /// Rank 0's, where checkpoints are asked for.
    saving: Option<Saving>,
    stop: Stop,
}

/// What happens while training, on every rank.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A step is done.
    Step(StepDone),
    /// The model was tested: after an epoch, after so many steps, or after the last.
    Test(TestDone),
    /// Something could not be written; training goes on.
    Problem(Problem),
}

/// A step of all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepDone {
    /// The step, from 1, counted over all epochs.
    pub step: usize,
    /// What all ranks counted over the batch, before its gradient was applied.
    pub train: Tally,
    /// The length of the gradient before it was clipped, where it was measured.
    pub gradient_norm: Option<f64>,
}

/// A test of the model, and what all ranks did since the one before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TestDone {
    /// The epoch of the last step, from 1.
    pub epoch: usize,
    /// The last step, from 1, counted over all epochs.
    pub step: usize,
    /// The sum over the steps since the last test; of no samples where a resume left none to take.
    pub train: Tally,
    /// The samples held out, where there are any, else the test set.
    pub test: Tally,
    /// Whether `test` is of the samples held out.
    pub is_validation: bool,
    /// Training samples (of a text: characters) of all ranks a second, tests not counted.
    pub samples_per_second: f64,
    /// The part of that time that this rank did nothing but wait for the all-reduce, 0 to 1; none
    /// on GPUs, where waits for sums and for backward are one.
    pub all_reduce_share: Option<f64>,
    /// The part of the all-reduces' time that this rank did other things, 0 to 1; none where they
    /// cannot overlap with anything, and on GPUs.
    pub all_reduce_hidden: Option<f64>,
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The test set, after the last step; none where a SIGTERM stopped the training.
    pub test: Option<Tally>,
    /// Steps taken, those before a resume counted.
    pub steps: usize,
    /// Full passes over the training data, where that is what the steps are.
    pub epochs: Option<usize>,
    /// Time since the first step, tests included.
    pub time: Duration,
    /// The digest of the parameters: the same on all ranks, compared.
    pub digest: Digest,
    /// The world size.
    pub ranks: usize,
    /// The last checkpoint, on rank 0, where one was written.
    pub saved: Option<PathBuf>,
    /// Whether this run has saved its last step: the same on all ranks.
    pub is_saved: bool,
    /// What could not be written, on the rank that writes it.
    pub problems: usize,
    /// How late the ranks came to their calls; of none on GPUs, where that says nothing of them.
    pub arrivals: Arrivals,
}

impl<'a> Training<'a> {
    /// Opens the data, builds the model on this rank, and gives it the weights of rank 0: those of
    /// the seed, or of the checkpoint that rank 0 resumes from.
    ///
    /// # Errors
    /// As [`Options::check`]; [`Error::Disagree`] where ranks were given different options or
    /// data; [`Error::Checkpoint`] on every rank where rank 0 cannot resume; as
    /// [`Distributed::new`].
    pub fn new(options: &Options, world: &'a Communicator) -> Result<Self> {
        options.check_numbers(world.size())?;
        Self::with_data(options, options.open()?, world)
    }

    /// As [`new`](Self::new), of a user's own data.
    ///
    /// # Errors
    /// As there.
    pub fn with_data(options: &Options, data: Data, world: &'a Communicator) -> Result<Self> {
        Self::within(Duration::ZERO, options, data, world)
    }

    /// As [`with_data`](Self::with_data), and waits so long for another process that has the folder
    /// for checkpoints.
    pub(crate) fn within(
        patience: Duration,
        options: &Options,
        data: Data,
        world: &'a Communicator,
    ) -> Result<Self> {
        let settings = Settings::new(options, world.size(), &data)?;
        agreement::compare(world, "options", &settings.lines(&data))?;
        let vars = VarMap::new();
        let build = || {
            let device = device::open(settings.device, world)?;
            let builder = VarBuilder::from_varmap(&vars, settings.dtype(), &device);
            let model = settings.model.build(&settings.hidden, &data.shape, builder)?;
            fill_from_seed(&vars, settings.seed)?;
            let optimizer = Optimiser::new(settings.optimizer_config(), &by_name(&vars))?;
            Ok((device, model, optimizer))
        };
        // On GPUs what one rank cannot have another one may.
        let (device, model, optimizer) = match settings.device {
            DeviceKind::Cpu => build()?,
            DeviceKind::Gpu => agreement::on_all(
                world,
                build().map_err(|error| match error {
                    // As behind the start: it may be another time.
                    Error::Candle { problem } if world.size() > 1 => {
                        Error::World(world.fail(&format!("candle: {problem}")))
                    }
                    other => other,
                }),
            )?,
        };
        let mut optimizer =
            Distributed::new(optimizer, &vars, world)?.with_bucket_limit(settings.bucket_bytes)?;
        optimizer.set_clip_norm(settings.clip_norm);
        let described = settings.model_lines(&data.shape);
        let mut lines = saved_lines(&settings, &data);
        let resumed = resume(options, [&described, &lines], world, &mut optimizer, patience);
        let (resumed, lock) = resumed.map_err(|error| optimizer.fail(error))?;
        if resumed.as_ref().is_some_and(|resumed| !resumed.counts_epochs) {
            lines.push((MIXED.into(), "yes".into()));
        }
        let from = resumed.as_ref().and_then(Resumed::from);
        let saving = match &options.checkpoint {
            Some(folder) if world.rank() == 0 => {
                Some(Saving::start(folder, options, described, lines, lock, from)?)
            }
            _ => None,
        };
        Ok(Self {
            sampler: Sampler::new(world, data.train.len(), settings.batch_size, settings.seed),
            settings,
            device,
            world,
            data,
            optimizer,
            resumed,
            model,
            saving,
            stop: Stop::new(),
        })
    }

    /// All ranks stop behind the step at which the first of them notices this.
    pub fn stop_on(&mut self, stop: Stop) {
        self.stop = stop;
    }

    /// Measures the length of every gradient.
    pub fn measure_norm(&mut self) {
        self.optimizer.measure_norm(true);
    }

    /// Trains to the end, or until a rank is to stop; `watch` sees every step and every test, on
    /// every rank, and ends the training by an error.
    ///
    /// # Errors
    /// [`Error::LossNotFinite`]; [`Error::ParametersDiffer`] at the end; candle's and allfold's
    /// own errors, where candle's on the GPU of one of several ranks is allfold's, on all of them;
    /// those of `watch`.
    pub fn run(&mut self, watch: impl FnMut(Event) -> Result<()>) -> Result<Outcome> {
        self.train(watch).map_err(|error| self.optimizer.fail(error))
    }

    fn train(&mut self, mut watch: impl FnMut(Event) -> Result<()>) -> Result<Outcome> {
        let start = Instant::now();
        // A GPU's rank comes to its calls when it has queued its work, however long that takes.
        let mut arrivals = (!self.optimizer.is_on_gpu()).then(|| Watch::new(self.world));
        let gauges = Gauges::new(self.world);
        let first = self.optimizer.steps() as usize;
        let mut step = first;
        let mut tested = None;
        let mut interval = Interval::begin(&self.optimizer);
        if step >= self.settings.steps {
            // Nothing left to train; what it has come to is told all the same.
            let epoch = step.saturating_sub(1) / self.settings.steps_per_epoch;
            let done = self.test(epoch, step, &interval)?;
            tested = Some(done);
            watch(Event::Test(done))?;
        }
        while step < self.settings.steps && !self.optimizer.is_stopping() {
            let epoch = step / self.settings.steps_per_epoch;
            let done_of_it = step % self.settings.steps_per_epoch * self.settings.accumulate;
            let mut batches = self.sampler.epoch(epoch).skip(done_of_it);
            for _ in step % self.settings.steps_per_epoch..self.settings.steps_per_epoch {
                let of_step: Vec<Batch> = batches.by_ref().take(self.settings.accumulate).collect();
                arrivals.iter_mut().for_each(Watch::step_begins);
                let train = self.step(&of_step).map_err(|error| match error {
                    Error::LossNotFinite { step: at, .. } if step == first => {
                        Error::LossNotFinite { step: at, resumed: self.resumed_from() }
                    }
                    other => other,
                })?;
                arrivals.iter_mut().for_each(Watch::step_is_done);
                step += 1;
                interval.add(train);
                gauges.step(step as u64, train.mean_loss(), train.samples as u64);
                let gradient_norm = self.optimizer.gradient_norm();
                watch(Event::Step(StepDone { step, train, gradient_norm }))?;
                let is_last = step == self.settings.steps || self.optimizer.is_stopping();
                if !self.optimizer.is_stopping() && self.is_test_due(step) {
                    let done = self.test(epoch, step, &interval)?;
                    tested = Some(done);
                    watch(Event::Test(done))?;
                    // Before it is saved.
                    if !done.test.loss.is_finite() {
                        return Err(Error::LossNotFinite { step: step as u64, resumed: None });
                    }
                    interval = Interval::begin(&self.optimizer);
                }
                self.save(step, is_last, &gauges, &mut watch)?;
                if is_last {
                    break;
                }
            }
        }
        let test = match tested {
            _ if self.optimizer.is_stopping() => None,
            Some(done) if !done.is_validation => Some(done.test),
            _ => Some(self.evaluate(false)?),
        };
        // After the last step no other would notice.
        if test.is_some_and(|test| !test.loss.is_finite()) {
            let resumed = self.resumed_from().filter(|_| step == first);
            return Err(Error::LossNotFinite { step: step as u64, resumed });
        }
        let arrivals = arrivals.map_or(Ok(Arrivals::default()), Watch::gather)?;
        let digest = self.optimizer.digest()?;
        let (saved, problems) = self.finish_saving(&gauges, &mut watch)?;
        // Whoever ends first is a sign for launchers to end the others: nobody before rank 0 has
        // written and says so.
        let mut saved_step = [saved.as_ref().map_or(0, |saved| saved.step)];
        self.world.broadcast(&mut saved_step, 0)?;
        Ok(Outcome {
            test,
            steps: step,
            epochs: (step.is_multiple_of(self.settings.steps_per_epoch)
                && self.resumed.as_ref().is_none_or(|resumed| resumed.counts_epochs))
            .then_some(step / self.settings.steps_per_epoch),
            time: start.elapsed(),
            digest,
            ranks: self.world.size(),
            saved: saved.map(|saved| saved.path),
            is_saved: saved_step == [step as u64],
            problems,
            arrivals,
        })
    }

    /// The step of the checkpoint that this training began with.
    pub(crate) fn resumed_from(&self) -> Option<u64> {
        self.resumed.as_ref().and_then(Resumed::from)
    }

    /// One step of all ranks; `batches` hold this rank's samples.
    fn step(&mut self, batches: &[Batch]) -> Result<Tally> {
        if self.stop.requested() {
            self.optimizer.ask_to_stop();
        }
        let Some((last, others)) = batches.split_last() else {
            return self.optimizer.backward_step_of_sum(None, Tally::default());
        };
        for samples in others {
            let (losses, own) = self.forward(samples)?;
            self.optimizer.accumulate_sum(losses.as_ref(), own)?;
        }
        let (losses, own) = self.forward(last)?;
        self.optimizer.backward_step_of_sum(losses.as_ref(), own)
    }

    /// The sum of this rank's losses, and their count.
    fn forward(&self, samples: &[usize]) -> Result<(Option<Tensor>, Tally)> {
        // A rank without samples joins with zeros: a model need not take empty batches.
        if samples.is_empty() {
            return Ok((None, Tally::default()));
        }
        let dtype = self.settings.dtype();
        let (inputs, targets) = self.data.train.batch(samples, dtype)?;
        let (inputs, targets) = (inputs.to_device(&self.device)?, targets.to_device(&self.device)?);
        let logits = match self.optimizer.overlaps() {
            true => {
                let tracked = self.optimizer.tracked(dtype);
                let Settings { model, hidden, .. } = &self.settings;
                model.build(hidden, &self.data.shape, tracked)?.forward(&inputs)?
            }
            false => self.model.forward(&inputs)?,
        };
        let losses = sum_of_losses(&logits, &targets)?;
        let own = count(&logits, &targets, &losses)?;
        Ok((Some(losses), own))
    }

    fn is_test_due(&self, step: usize) -> bool {
        let every = self.settings.eval_every.unwrap_or(self.settings.steps_per_epoch);
        step.is_multiple_of(every) || step == self.settings.steps
    }

    fn test(&self, epoch: usize, step: usize, interval: &Interval) -> Result<TestDone> {
        let times = interval.end(&self.optimizer);
        let is_validation = self.data.validation.is_some();
        let test = self.evaluate(is_validation)?;
        Ok(TestDone {
            epoch: epoch + 1,
            step,
            train: interval.train(),
            test,
            is_validation,
            samples_per_second: times.samples_per_second,
            all_reduce_share: times.all_reduce_share,
            all_reduce_hidden: times.all_reduce_hidden,
        })
    }

    fn evaluate(&self, is_validation: bool) -> Result<Tally> {
        let held_out = self.data.validation.as_ref().filter(|_| is_validation);
        let samples = held_out.unwrap_or(&self.data.test);
        evaluate(&*self.model, &**samples, self.world, (self.settings.dtype(), &self.device))
    }

    /// Rank 0 saves where a checkpoint is due; no other rank waits for it.
    fn save(
        &mut self,
        step: usize,
        is_last: bool,
        gauges: &Gauges,
        watch: &mut impl FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let Some(saving) = &mut self.saving else { return Ok(()) };
        let epoch_ended = step.is_multiple_of(self.settings.steps_per_epoch);
        if saving.is_due(step as u64, epoch_ended) || is_last {
            saving.save(step as u64, &self.optimizer)?;
        }
        saving.news(gauges).into_iter().try_for_each(|problem| watch(Event::Problem(problem)))
    }

    /// Waits for the last checkpoint: where it is, and how many could not be written.
    fn finish_saving(
        &mut self,
        gauges: &Gauges,
        watch: &mut impl FnMut(Event) -> Result<()>,
    ) -> Result<(Option<Written>, usize)> {
        let Some(saving) = self.saving.take() else { return Ok((None, 0)) };
        let saved = saving.finish(gauges);
        saved.untold.into_iter().try_for_each(|problem| watch(Event::Problem(problem)))?;
        Ok((saved.newest, saved.problems))
    }
}
