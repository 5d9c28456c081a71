//! One size: nccl-tests' way to time a collective, and the check of its data.

use std::time::{Duration, Instant};

use allfold::Communicator;
use rustix::time::{ClockId, clock_gettime};

use crate::call::{Buffers, Caller, Owned, Task};
use crate::choices::Average;
use crate::collective::Collective;
use crate::deadline::Deadline;
use crate::element::Number;
use crate::explain::{Observed, Observer};
use crate::latencies::{Detail, Latencies};
use crate::layout::Layout;
use crate::pattern::Pattern;
use crate::table::Half;
use crate::{Error, world};

/// One rank's buffers for one type, wherever they lie, and calls on them.
pub(crate) trait Measure {
    /// From now on this is called; `index` counts the tasks, so that none sees another's inputs.
    fn begin(&mut self, task: Task, index: u32);

    /// The limit of what comes.
    fn limit(&mut self, deadline: Option<Deadline>);

    /// `iterations` calls with `count` elements, not timed.
    fn warm_up(&mut self, count: usize, placement: Placement, iterations: u32)
    -> Result<(), Error>;

    /// One half of a row: time and bandwidth of `count` elements, and how many of all ranks' were
    /// wrong.
    fn measure(&mut self, count: usize, placement: Placement) -> Result<Half, Error>;

    /// What was counted during the last half, where it is asked for.
    fn take_observed(&mut self) -> Option<Observed>;
}

/// Buffers in the host's memory.
pub(crate) struct Bench<'a, T, C> {
    pub(crate) world: &'a Communicator,
    pub(crate) caller: &'a C,
    pub(crate) task: Task,
    pub(crate) task_index: u32,
    pub(crate) method: Method,
    pub(crate) memory: Memory<T>,
    pub(crate) latencies: Latencies,
    pub(crate) deadline: Option<Deadline>,
    /// Of the last half, where it is asked for.
    pub(crate) observed: Option<Observed>,
}

/// How each size is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    pub(crate) iterations: u32,
    /// Calls of an iteration.
    pub(crate) calls: u32,
    pub(crate) checks: u32,
    pub(crate) average: Average,
    pub(crate) detail: Detail,
    /// Leading iterations that statistics leave out.
    pub(crate) skip: usize,
    /// Whether to count what the calls cost.
    pub(crate) observes: bool,
    /// Whether the processor's time is shown in place of the clock's.
    pub(crate) processor_time: bool,
}

/// Where the data lies.
pub(crate) enum Memory<T> {
    /// One call at a time borrows a part.
    Borrowed {
        /// As long as the largest size, or empty where nothing is out of place.
        input: Vec<T>,
        /// As long as the largest size; in place the input too.
        output: Vec<T>,
        /// Elements at the beginning of both that no call gets.
        unaligned: usize,
    },
    /// Calls are started together, and own theirs.
    Owned(Vec<Owned<T>>),
}

/// Whether a call's input and output are one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    OutOfPlace,
    InPlace,
}

/// One size, in one half.
pub(crate) struct Trial<'a> {
    pub(crate) count: usize,
    pub(crate) placement: Placement,
    pub(crate) layout: &'a Layout,
}

/// Of one call on this rank.
pub(crate) struct Time {
    pub(crate) duration: Duration,
    pub(crate) processor: Duration,
}

impl<T: Number, C: Caller> Measure for Bench<'_, T, C> {
    fn begin(&mut self, task: Task, index: u32) {
        (self.task, self.task_index) = (task, index);
    }

    fn limit(&mut self, deadline: Option<Deadline>) {
        self.deadline = deadline;
    }

    fn warm_up(
        &mut self,
        count: usize,
        placement: Placement,
        iterations: u32,
    ) -> Result<(), Error> {
        let layout = self.task.layout(self.world, count, placement);
        self.memory.fit(&layout);
        let trial = Trial { count, placement, layout: &layout };
        (0..iterations).try_for_each(|iteration| self.call(&trial, iteration))
    }

    fn measure(&mut self, count: usize, placement: Placement) -> Result<Half, Error> {
        let layout = self.task.layout(self.world, count, placement);
        self.memory.fit(&layout);
        let trial = Trial { count, placement, layout: &layout };
        let slots = self.memory.slots();
        if self.method.checks > 0 {
            for slot in 0..slots {
                let pattern = self.pattern(&trial, TIMED - slot as u32);
                pattern.fill(&layout.before, self.memory.given(&trial, slot));
            }
        }
        let own = self.time(&trial)?;
        let mut half =
            half::<T>(self.world, self.task, count, &self.method, &own, &self.latencies)?;
        half.wrong = self.check(&trial)?;
        Ok(half)
    }

    fn take_observed(&mut self) -> Option<Observed> {
        self.observed.take()
    }
}

/// What the ranks' times come to.
pub(crate) fn half<T: Number>(
    world: &Communicator,
    task: Task,
    count: usize,
    method: &Method,
    own: &Time,
    latencies: &Latencies,
) -> Result<Half, Error> {
    let seconds = world::average(world, own.duration.as_secs_f64(), method.average)?;
    let per_iteration = latencies.gather(world, method.detail, method.skip)?;
    world.barrier()?;
    let (collective, ranks) = (task.collective, world.size());
    let bytes = collective.elements(count, ranks) * size_of::<T>();
    let mut half = Half::new(bytes, seconds, collective.bus_factor(ranks), None);
    half.per_iteration = per_iteration;
    if method.processor_time {
        let seconds = world::average(world, own.processor.as_secs_f64(), method.average)?;
        half.show_processor_time(seconds);
    }
    Ok(half)
}

impl<T: Number, C: Caller> Bench<'_, T, C> {
    /// This rank's time of a call.
    fn time(&mut self, trial: &Trial<'_>) -> Result<Time, Error> {
        let Method { iterations, calls, .. } = self.method;
        let begun = Instant::now();
        self.call(trial, 0)?;
        let once = begun.elapsed();
        let watch = match &self.deadline {
            Some(deadline) => Some(deadline.pace(self.world, once)?),
            None => None,
        };
        let records = self.method.detail != Detail::None;
        self.latencies.clear(if records { iterations as usize } else { 0 });
        self.world.barrier()?;
        let observer = self.method.observes.then(|| Observer::begin(self.world));
        let processor = processor_time();
        let start = Instant::now();
        let mut before = start;
        // Spent on something else than the calls.
        let mut aside = Duration::ZERO;
        for iteration in 0..iterations {
            self.call(trial, iteration)?;
            let after = Instant::now();
            if records {
                self.latencies.record((after - before) / calls);
            }
            before = after;
            if let (Some(deadline), Some(pace)) = (&self.deadline, watch)
                && iteration % pace == pace - 1
            {
                deadline.check(self.world)?;
                before = Instant::now();
                aside += before - after;
            }
        }
        let processor = processor_time().saturating_sub(processor);
        self.observed = observer.map(|observer| observer.end(self.world));
        let duration = (before - start).saturating_sub(aside) / iterations / calls;
        Ok(Time {
            // A world of one may be faster than the clock.
            duration: duration.max(Duration::from_nanos(1)),
            processor: processor / iterations / calls,
        })
    }

    /// Wrong elements on all ranks, of calls on fresh inputs; none where nothing is checked.
    fn check(&mut self, trial: &Trial<'_>) -> Result<Option<u64>, Error> {
        if self.method.checks == 0 || !self.task.collective.has_data() {
            return Ok(None);
        }
        let layout = trial.layout;
        let slots = self.memory.slots();
        for check in 0..self.method.checks {
            let patterns: Vec<Pattern> = (0..slots)
                .map(|slot| self.pattern(trial, check.wrapping_mul(slots as u32) + slot as u32))
                .collect();
            for (slot, pattern) in patterns.iter().enumerate() {
                pattern.spoil(&layout.after, self.memory.output(layout.output, slot));
                pattern.fill(&layout.before, self.memory.given(trial, slot));
            }
            self.call(trial, 0)?;
            let mut own = 0;
            for (slot, pattern) in patterns.iter().enumerate() {
                own += pattern.wrong(&layout.after, self.memory.output(layout.output, slot));
            }
            let [all] = world::sum(self.world, [own as f64])?;
            // An all-reduce that is wrong may lose the count as well.
            let wrong = own.max(all as u64);
            if wrong > 0 {
                return Ok(Some(wrong));
            }
            if let Some(deadline) = &self.deadline {
                deadline.check(self.world)?;
            }
        }
        Ok(Some(0))
    }

    /// Each iteration takes the next part of the buffers, as in nccl-tests, so that small sizes are
    /// not served from the same cache lines.
    fn call(&mut self, trial: &Trial<'_>, iteration: u32) -> Result<(), Error> {
        let (world, task, layout) = (self.world, self.task, trial.layout);
        let result = match &mut self.memory {
            Memory::Owned(buffers) => self.caller.together(world, task, &layout.counts, buffers),
            Memory::Borrowed { input, output, unaligned } => {
                let output = region(&mut output[*unaligned..], layout.output, iteration);
                let buffers = match trial.placement {
                    Placement::OutOfPlace => {
                        let input = region(&mut input[*unaligned..], layout.input, iteration);
                        Buffers::OutOfPlace { input, output }
                    }
                    Placement::InPlace => Buffers::InPlace(output),
                };
                self.caller.call(world, task, &layout.counts, buffers)
            }
        };
        Ok(result?)
    }

    fn pattern(&self, trial: &Trial<'_>, call: u32) -> Pattern {
        self.task.pattern::<T>(self.world.size(), self.task_index, trial, call)
    }
}

impl Task {
    /// What stands where, on this rank.
    pub(crate) fn layout(self, world: &Communicator, count: usize, placement: Placement) -> Layout {
        let (collective, rank) = (self.collective, self.place(world));
        match placement {
            Placement::OutOfPlace => Layout::out_of_place(collective, count, rank),
            Placement::InPlace => Layout::in_place(collective, count, rank),
        }
    }

    /// Every call has its own inputs, so that an old result is not taken for a new one.
    pub(crate) fn pattern<T: Number>(
        self,
        ranks: usize,
        index: u32,
        trial: &Trial<'_>,
        call: u32,
    ) -> Pattern {
        let half = u64::from(trial.placement == Placement::InPlace);
        let task = u64::from(index) << 1 | half;
        let seed = (trial.count as u64) << 32 | u64::from(call);
        // An odd factor, so that tasks of one size stay apart.
        let seed = seed.wrapping_add(task.wrapping_mul(TASK_STRIDE));
        Pattern::new::<T>(ranks, self.op, seed)
    }
}

impl<T: Number> Memory<T> {
    /// For calls with up to `elements` elements.
    pub(crate) fn new(
        collective: Collective,
        elements: usize,
        calls: u32,
        unaligned: usize,
    ) -> Result<Self, Error> {
        let halves = collective.halves(calls > 1);
        let buffer = |is_needed: bool| {
            crate::memory::buffer(if is_needed { elements + unaligned } else { unaligned })
        };
        if calls == 1 {
            let (input, output) = (buffer(halves.out_of_place)?, buffer(true)?);
            return Ok(Self::Borrowed { input, output, unaligned });
        }
        let one = |_| Ok(Owned { input: buffer(halves.out_of_place)?, output: buffer(true)? });
        Ok(Self::Owned((0..calls).map(one).collect::<Result<_, Error>>()?))
    }

    /// Gives vectors that calls own the length that they want; no call is timed meanwhile.
    fn fit(&mut self, layout: &Layout) {
        if let Self::Owned(buffers) = self {
            for Owned { input, output } in buffers {
                input.resize(layout.input, T::default());
                output.resize(layout.output, T::default());
            }
        }
    }

    /// Calls that are made at once.
    fn slots(&self) -> usize {
        match self {
            Self::Borrowed { .. } => 1,
            Self::Owned(buffers) => buffers.len(),
        }
    }

    /// Where this rank's contribution to the first iteration stands.
    fn given(&mut self, trial: &Trial<'_>, slot: usize) -> &mut [T] {
        if trial.placement == Placement::InPlace {
            return self.output(trial.layout.output, slot);
        }
        match self {
            Self::Borrowed { input, unaligned, .. } => {
                region(&mut input[*unaligned..], trial.layout.input, 0)
            }
            Self::Owned(buffers) => &mut buffers[slot].input,
        }
    }

    fn output(&mut self, length: usize, slot: usize) -> &mut [T] {
        match self {
            Self::Borrowed { output, unaligned, .. } => {
                region(&mut output[*unaligned..], length, 0)
            }
            Self::Owned(buffers) => &mut buffers[slot].output,
        }
    }
}

/// What all threads of this process have computed.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// The part of `length` elements for an iteration.
fn region<T>(buffer: &mut [T], length: usize, iteration: u32) -> &mut [T] {
    let regions = buffer.len().checked_div(length).unwrap_or(1).max(1);
    let start = iteration as usize % regions * length;
    &mut buffer[start..start + length]
}

/// The inputs of the timed iterations, counted downwards, apart from those of every check.
pub(crate) const TIMED: u32 = u32::MAX;
/// Odd and without a pattern, and not the step of the hash, which would make one task's elements
/// those of the next: the multiplier of Steele and Vigna's 64-bit generator.
const TASK_STRIDE: u64 = 0xd134_2543_de82_ef95;
