//! One size: nccl-tests' way to time a collective, and the check of its data.

use std::time::{Duration, Instant};

use allfold::Communicator;

use crate::call::{Buffers, Caller, Task};
use crate::element::Number;
use crate::latencies::Latencies;
use crate::layout::Layout;
use crate::pattern::Pattern;
use crate::report::PerIteration;
use crate::table::Half;
use crate::{Error, world};

/// One rank's buffers for one type and how they are used.
pub(crate) struct Bench<'a, T, C> {
    pub(crate) world: &'a Communicator,
    pub(crate) caller: &'a C,
    pub(crate) task: Task,
    /// Counts the tasks, so that none sees another's inputs.
    pub(crate) task_index: u32,
    pub(crate) iterations: u32,
    pub(crate) checks: u32,
    /// As long as the largest size, or empty where nothing is out of place.
    pub(crate) input: Vec<T>,
    /// As long as the largest size; in place the input too.
    pub(crate) output: Vec<T>,
    pub(crate) latencies: Latencies,
}

/// Whether a call's input and output are one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    OutOfPlace,
    InPlace,
}

/// One half of a row.
pub(crate) struct Measured {
    pub(crate) half: Half,
    /// This rank's own.
    pub(crate) per_iteration: Option<PerIteration>,
}

/// One size, in one half.
struct Trial<'a> {
    count: usize,
    placement: Placement,
    layout: &'a Layout,
}

impl<T: Number, C: Caller> Bench<'_, T, C> {
    /// `iterations` calls with `count` elements, not timed.
    pub(crate) fn warm_up(
        &mut self,
        count: usize,
        placement: Placement,
        iterations: u32,
    ) -> Result<(), Error> {
        let layout = self.layout(count, placement);
        let trial = Trial { count, placement, layout: &layout };
        (0..iterations).try_for_each(|iteration| self.call(&trial, iteration))
    }

    /// One half of a row: time and bandwidth of `count` elements, and how many of all ranks' were
    /// wrong.
    pub(crate) fn measure(
        &mut self,
        count: usize,
        placement: Placement,
    ) -> Result<Measured, Error> {
        let layout = self.layout(count, placement);
        let trial = Trial { count, placement, layout: &layout };
        if self.checks > 0 {
            let pattern = self.pattern(&trial, TIMED);
            pattern.fill(&layout.before, self.given(&trial));
        }
        let own = self.time(&trial)?;
        let per_iteration = self.latencies.summary();
        let seconds = world::average(self.world, own.as_secs_f64())?;
        self.world.barrier()?;
        let wrong = self.check(&trial)?;
        let (collective, ranks) = (self.task.collective, self.world.size());
        let bytes = collective.elements(count, ranks) * size_of::<T>();
        let half = Half::new(bytes, seconds, collective.bus_factor(ranks), wrong);
        Ok(Measured { half, per_iteration })
    }

    /// This rank's time per iteration.
    fn time(&mut self, trial: &Trial<'_>) -> Result<Duration, Error> {
        self.call(trial, 0)?;
        self.world.barrier()?;
        self.latencies.clear();
        let start = Instant::now();
        let mut before = start;
        for iteration in 0..self.iterations {
            self.call(trial, iteration)?;
            let after = Instant::now();
            self.latencies.record(after - before);
            before = after;
        }
        // A world of one may be faster than the clock.
        Ok(((before - start) / self.iterations).max(Duration::from_nanos(1)))
    }

    /// Wrong elements on all ranks, of calls on fresh inputs; none where nothing is checked.
    fn check(&mut self, trial: &Trial<'_>) -> Result<Option<u64>, Error> {
        if self.checks == 0 || !self.task.collective.has_data() {
            return Ok(None);
        }
        let layout = trial.layout;
        for check in 0..self.checks {
            let pattern = self.pattern(trial, check);
            let output = region(&mut self.output, layout.output, 0);
            pattern.spoil(&layout.after, output);
            pattern.fill(&layout.before, self.given(trial));
            self.call(trial, 0)?;
            let output = region(&mut self.output, layout.output, 0);
            let own = pattern.wrong(&layout.after, output);
            let [all] = world::sum(self.world, [own as f64])?;
            // An all-reduce that is wrong may lose the count as well.
            let wrong = own.max(all as u64);
            if wrong > 0 {
                return Ok(Some(wrong));
            }
        }
        Ok(Some(0))
    }

    /// Each iteration takes the next part of the buffers, as in nccl-tests, so that small sizes are
    /// not served from the same cache lines.
    fn call(&mut self, trial: &Trial<'_>, iteration: u32) -> Result<(), Error> {
        let layout = trial.layout;
        let output = region(&mut self.output, layout.output, iteration);
        let buffers = match trial.placement {
            Placement::OutOfPlace => {
                let input = region(&mut self.input, layout.input, iteration);
                Buffers::OutOfPlace { input, output }
            }
            Placement::InPlace => Buffers::InPlace(output),
        };
        self.caller.call(self.world, self.task, &layout.counts, buffers)?;
        Ok(())
    }

    /// Where this rank's contribution to the first iteration stands.
    fn given(&mut self, trial: &Trial<'_>) -> &mut [T] {
        match trial.placement {
            Placement::OutOfPlace => region(&mut self.input, trial.layout.input, 0),
            Placement::InPlace => region(&mut self.output, trial.layout.output, 0),
        }
    }

    fn layout(&self, count: usize, placement: Placement) -> Layout {
        let (collective, rank) = (self.task.collective, self.task.place(self.world));
        match placement {
            Placement::OutOfPlace => Layout::out_of_place(collective, count, rank),
            Placement::InPlace => Layout::in_place(collective, count, rank),
        }
    }

    /// Every call has its own inputs, so that an old result is not taken for a new one.
    fn pattern(&self, trial: &Trial<'_>, call: u32) -> Pattern {
        let half = u64::from(trial.placement == Placement::InPlace);
        let task = u64::from(self.task_index) << 1 | half;
        let seed = (trial.count as u64) << 32 | u64::from(call);
        // An odd factor, so that tasks of one size stay apart.
        let seed = seed.wrapping_add(task.wrapping_mul(TASK_STRIDE));
        Pattern::new::<T>(self.world.size(), self.task.op, seed)
    }
}

/// The part of `length` elements for an iteration.
fn region<T>(buffer: &mut [T], length: usize, iteration: u32) -> &mut [T] {
    let regions = buffer.len().checked_div(length).unwrap_or(1).max(1);
    let start = iteration as usize % regions * length;
    &mut buffer[start..start + length]
}

/// The inputs of the timed iterations, apart from those of every check.
const TIMED: u32 = u32::MAX;
/// Odd and without a pattern, and not the step of the hash, which would make one task's elements
/// those of the next: the multiplier of Steele and Vigna's 64-bit generator.
const TASK_STRIDE: u64 = 0xd134_2543_de82_ef95;
