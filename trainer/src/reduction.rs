//! The all-reduces of a step: each bucket is on its way as soon as its gradients are there.

use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::bucket::{Bucket, Limits, deal};
use crate::error::{Error, Result};
use crate::nccl::Nccl;
use crate::tally::{NUMBERS, Riders, Tally};

/// What the ranks add up in a step, and how far this one is.
///
/// A step is one or more passes: [`begin`](Self::begin), then [`ready`](Self::ready) with each
/// gradient. In the last pass a bucket is sent as soon as it and all before it are complete, so
/// that every rank makes the same calls in the same order; [`finish`](Self::finish) sends the
/// rest and waits.
pub(crate) struct Reduction {
    // NCCL, which buckets use, is taken down first: that is a call of all ranks.
    buckets: Vec<Box<dyn Bucket>>,
    nccl: Nccl,
    world: Communicator,
    /// Bucket and place in it of each parameter, in the order of names.
    places: Vec<(usize, usize)>,
    /// The parameters in the order of their buckets.
    order: Vec<usize>,
    /// Those that have a gradient in this pass, in the order of names.
    reported: Vec<bool>,
    /// The gradients that each bucket still waits for.
    missing: Vec<usize>,
    pass: Pass,
    /// Buckets that were started and waited for in this step.
    started: usize,
    waited: usize,
    /// The samples of all ranks in the first pass of a step, for half floats: these are divided
    /// before they are added up.
    reference: f64,
    /// All ranks' riders over the passes of a step, where half floats had them counted.
    counted: Option<Riders>,
    /// When the first bucket of this step was started.
    began: Option<Instant>,
    clock: Clock,
}

/// A part of a step whose gradients come from one backward pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pass {
    /// The steps done before.
    pub(crate) step: u64,
    /// What each gradient is multiplied by.
    pub(crate) scale: f64,
    /// This rank's, of the whole step so far.
    pub(crate) riders: Riders,
    /// This rank's, of this pass.
    pub(crate) own: Tally,
    /// Whether the gradients are sent.
    pub(crate) is_last: bool,
}

/// Where the time of the all-reduces went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// This rank did nothing but wait for them.
    pub(crate) blocked: Duration,
    /// Some of them were under way: from the start of the first to the end of the last.
    pub(crate) under_way: Duration,
}

impl Reduction {
    /// For parameters in the order of names, and the order in which backward reaches them.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a type that cannot be added up; as [`Nccl::connect`].
    pub(crate) fn new(
        world: Communicator,
        parameters: &[(String, Var)],
        order: &[usize],
        limits: Limits,
    ) -> Result<Self> {
        let mut reduction = Self {
            nccl: Nccl::connect(&world, parameters)?,
            world,
            buckets: Vec::new(),
            places: Vec::new(),
            order: Vec::new(),
            reported: Vec::new(),
            missing: Vec::new(),
            pass: Pass::default(),
            started: 0,
            waited: 0,
            reference: 1.0,
            counted: None,
            began: None,
            clock: Clock::default(),
        };
        reduction.deal(parameters, order, limits)?;
        Ok(reduction)
    }

    /// Deals the parameters anew; only between steps.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn deal(
        &mut self,
        parameters: &[(String, Var)],
        order: &[usize],
        limits: Limits,
    ) -> Result<()> {
        // Freed first: the buckets are as large as the parameters.
        self.buckets.clear();
        let ordered: Vec<&(String, Var)> =
            order.iter().filter_map(|&parameter| parameters.get(parameter)).collect();
        self.buckets = deal(&self.world, &self.nccl, &ordered, limits)?;
        self.order = order.to_vec();
        self.places = vec![(0, 0); parameters.len()];
        self.reported = vec![false; parameters.len()];
        let mut next = order.iter();
        for (number, bucket) in self.buckets.iter().enumerate() {
            for (member, &parameter) in next.by_ref().take(bucket.len()).enumerate() {
                if let Some(place) = self.places.get_mut(parameter) {
                    *place = (number, member);
                }
            }
        }
        Ok(())
    }

    /// The number of buckets: one all-reduce each.
    pub(crate) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Gives every rank the parameters of rank 0.
    pub(crate) fn broadcast_parameters(&mut self) -> Result<()> {
        self.buckets.iter_mut().try_for_each(|bucket| bucket.broadcast_parameters(&self.world))
    }

    pub(crate) fn nccl(&self) -> &Nccl {
        &self.nccl
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether a bucket was sent in this step.
    #[cfg(test)]
    pub(crate) fn is_under_way(&self) -> bool {
        self.started > 0
    }

    /// The steps done before the one under way.
    pub(crate) fn step(&self) -> u64 {
        self.pass.step
    }

    /// The parameters in the order of their buckets.
    pub(crate) fn order(&self) -> Vec<usize> {
        self.order.clone()
    }

    /// Begins a pass.
    ///
    /// # Errors
    /// Those of the call that counts samples, where some parameters are half floats: as
    /// [`finish`](Self::finish).
    pub(crate) fn begin(&mut self, pass: Pass) -> Result<()> {
        self.pass = pass;
        self.reported.fill(false);
        self.missing = self.buckets.iter().map(|bucket| bucket.len()).collect();
        if self.buckets.iter().any(|bucket| !bucket.carries_riders()) {
            let all = self.count()?;
            match &mut self.counted {
                None => {
                    self.reference = all.tally.samples as f64;
                    self.counted = Some(all);
                }
                Some(sum) => {
                    sum.tally += all.tally;
                    sum.stops += all.stops;
                }
            }
        }
        Ok(())
    }

    /// Takes a gradient of this rank. Sends what can be sent.
    ///
    /// # Errors
    /// Where the parameter has one in this pass already; [`Error::Candle`] for one of another
    /// shape; allfold's own errors.
    pub(crate) fn ready(&mut self, parameter: usize, gradient: &Tensor) -> Result<()> {
        let (Some(&(number, member)), Some(reported)) =
            (self.places.get(parameter), self.reported.get_mut(parameter))
        else {
            return Ok(());
        };
        if std::mem::replace(reported, true) {
            return Err(Error::TwoGradients);
        }
        let bucket = &mut self.buckets[number];
        let divisor = if bucket.carries_riders() { 1.0 } else { self.reference };
        bucket.add(member, gradient, self.pass.scale / divisor)?;
        self.missing[number] -= 1;
        while self.pass.is_last && self.missing.get(self.started) == Some(&0) {
            self.start_next()?;
        }
        Ok(())
    }

    /// Sends what is left, waits for all, and gives the gradient of the mean loss over the samples
    /// of all ranks, and all ranks' riders.
    ///
    /// # Errors
    /// On every rank [`Error::NoSamples`] and [`Error::LossNotFinite`]; allfold's own errors.
    pub(crate) fn finish(&mut self) -> Result<(GradStore, Riders)> {
        while self.started < self.buckets.len() {
            self.start_next()?;
        }
        let mut mean = GradStore::default();
        let mut all = self.counted.unwrap_or_default();
        for number in 0..self.buckets.len() {
            if number >= self.waited {
                self.wait_next()?;
            }
            let bucket = &self.buckets[number];
            if let Some(riders) = bucket.riders() {
                riders.check(self.pass.step)?;
                all = self.counted.unwrap_or(riders);
            }
            let samples = all.tally.samples as f64;
            let divisor = if bucket.carries_riders() { samples } else { samples / self.reference };
            bucket.unpack(&mut mean, divisor)?;
        }
        self.reset();
        Ok((mean, all))
    }

    /// Ends a step that failed: what is under way comes back, so that a next step has all buckets.
    /// An error of these calls is that of every later call.
    pub(crate) fn abandon(&mut self) {
        // On GPUs a wait is a call of all ranks, which this one may be the only one to make.
        if !self.nccl.settle() {
            self.buckets.iter_mut().for_each(|bucket| drop(bucket.wait()));
        }
        self.reset();
    }

    fn reset(&mut self) {
        self.began = None;
        self.buckets.iter_mut().for_each(|bucket| bucket.clear());
        (self.started, self.waited) = (0, 0);
        (self.reference, self.counted) = (1.0, None);
        self.pass.is_last = false;
    }

    /// Starts the next bucket. Beyond as many as may be under way, the first of them ends first.
    fn start_next(&mut self) -> Result<()> {
        if self.started - self.waited >= MAX_UNDER_WAY {
            self.wait_next()?;
        }
        let start = Instant::now();
        self.began.get_or_insert(start);
        let label = label(self.pass.step, self.started);
        let is_last = self.started + 1 == self.buckets.len();
        let bucket = &mut self.buckets[self.started];
        match is_last {
            true => bucket.all_reduce(&self.world, label, self.pass.riders)?,
            false => bucket.start_all_reduce(&self.world, label, self.pass.riders)?,
        }
        self.started += 1;
        self.clock.blocked += start.elapsed();
        Ok(())
    }

    fn wait_next(&mut self) -> Result<()> {
        let start = Instant::now();
        let result = self.buckets[self.waited].wait();
        self.waited += 1;
        self.clock.blocked += start.elapsed();
        if self.waited == self.buckets.len() {
            let took = self.began.take().map(|began| began.elapsed());
            self.clock.under_way += took.unwrap_or_default();
        }
        result
    }

    /// The riders of all ranks, by a call of its own.
    fn count(&mut self) -> Result<Riders> {
        let own = Riders { tally: self.pass.own, stops: self.pass.riders.stops };
        let mut numbers: [f64; NUMBERS] = own.to_numbers();
        let start = Instant::now();
        let label = label(self.pass.step, self.buckets.len());
        self.world.labelled(label).all_reduce(&mut numbers, ReduceOp::Sum)?;
        self.clock.blocked += start.elapsed();
        let all = Riders::from_numbers(numbers);
        all.check(self.pass.step)?;
        Ok(all)
    }
}

/// Tells the calls of one shape apart. A person reads it in errors: `label 12000003` is bucket 3,
/// from 0, of step 12, from 1 as in the output. `steps` are those done before.
fn label(steps: u64, bucket: usize) -> u64 {
    (steps + 1) * STEP_UNIT + bucket as u64
}

/// Room for the bucket in a label: a million buckets of 25 MiB are more than memory holds.
const STEP_UNIT: u64 = 1_000_000;
/// Buckets under way at once: half of the 1024 calls that a communicator lets be outstanding.
const MAX_UNDER_WAY: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn a_label_can_be_read() {
        assert_eq!(label(0, 0), 1_000_000);
        assert_eq!(label(11, 3), 12_000_003);
    }

    fn parameters() -> Vec<(String, Var)> {
        (0..4)
            .map(|at| (format!("p{at}"), Var::zeros(2, DType::F32, &Device::Cpu).unwrap()))
            .collect()
    }

    /// Two buckets: parameters 3 and 2, then 1 and 0.
    fn reduction(world: Communicator) -> Reduction {
        let limits = Limits { first: 16, others: 16 };
        Reduction::new(world, &parameters(), &[3, 2, 1, 0], limits).unwrap()
    }

    fn pass(is_last: bool) -> Pass {
        let own = Tally { samples: 1, ..Tally::default() };
        let riders = Riders { tally: own, stops: 0 };
        Pass { step: 4, scale: 1.0, riders, own, is_last }
    }

    #[test]
    fn a_ready_bucket_waits_for_its_predecessors() {
        let ones = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let mut reduction = reduction(Communicator::single());
        reduction.begin(pass(true)).unwrap();
        for (parameter, started) in [(0, 0), (1, 0), (3, 0), (2, 2)] {
            reduction.ready(parameter, &ones).unwrap();
            assert_eq!(reduction.started, started, "after parameter {parameter}");
        }
        let (_, all) = reduction.finish().unwrap();
        assert_eq!(all.tally.samples, 1);
    }

    #[test]
    fn only_the_last_pass_is_sent() {
        let ones = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let parameters = parameters();
        let mut reduction = reduction(Communicator::single());
        for is_last in [false, true] {
            reduction.begin(pass(is_last)).unwrap();
            for parameter in [3, 2] {
                reduction.ready(parameter, &ones).unwrap();
            }
            assert_eq!(reduction.started, usize::from(is_last));
        }
        reduction.finish().unwrap();
        // A parameter without a gradient is none of the next step's.
        reduction.begin(pass(true)).unwrap();
        reduction.ready(3, &ones).unwrap();
        assert!(matches!(reduction.ready(3, &ones), Err(Error::TwoGradients)));
        let (mean, _) = reduction.finish().unwrap();
        assert!(mean.get(&parameters[2].1 as &Tensor).is_none());
    }
}
