//! One size on GPUs: nccl-tests' way to time a collective, by CUDA's clock; the same calls straight to
//! NCCL beside it; and the check of its data.

use std::time::{Duration, Instant};

use allfold::Communicator;
use allfold::nccl::Gpu;
use allfold::probe::{DeviceBuffer, DeviceBuffers, DeviceCall, DeviceCollective, DeviceMark};

use crate::beside::Beside;
use crate::call::Task;
use crate::collective::Collective;
use crate::deadline::Deadline;
use crate::element::Number;
use crate::explain::Observed;
use crate::foreign::Blocking;
use crate::latencies::{Detail, Latencies};
use crate::layout::Layout;
use crate::measure::{Measure, Method, Placement, TIMED, Time, Trial, half, processor_time};
use crate::options::Options;
use crate::table::Half;
use crate::turns::{self, median};
use crate::{Error, memory, world};

/// Buffers in a GPU's memory.
pub(crate) struct Bench<'a, T> {
    world: &'a Communicator,
    buffers: DeviceBuffers<'a, T>,
    /// On the way to the GPU and back.
    staging: Vec<T>,
    /// In each of the GPU's two.
    elements: usize,
    /// At the beginning of both, that no call gets.
    unaligned: usize,
    blocking: Blocking,
    method: Method,
    latencies: Latencies,
    task: Task,
    task_index: u32,
    deadline: Option<Deadline>,
}

/// One who makes the calls of an iteration, and waits for them where he is told to.
type Make<'a> = &'a dyn Fn(&[DeviceCall], bool) -> allfold::Result<()>;

impl<'a, T: Number> Bench<'a, T> {
    /// For calls with up to `elements` elements.
    pub(crate) fn new(
        gpu: &'a Gpu,
        options: &Options,
        method: Method,
        elements: usize,
    ) -> Result<Self, Error> {
        let unaligned = options.unalign as usize;
        let (input, output) = match options.halves().out_of_place {
            true => (elements + unaligned, elements + unaligned),
            false => (0, elements + unaligned),
        };
        let refused = |problem| Error::GpuAllocation { maximum: options.maxbytes, problem };
        Ok(Self {
            world: gpu.communicator(),
            buffers: DeviceBuffers::new(gpu, input, output).map_err(refused)?,
            staging: memory::buffer(elements)?,
            elements,
            unaligned,
            blocking: options.foreign.blocking(),
            // A mark for each iteration takes time of its own: only where its column is asked for.
            method: Method {
                detail: match method.detail {
                    Detail::Full => Detail::Full,
                    Detail::Summary | Detail::None => Detail::None,
                },
                ..method
            },
            latencies: Latencies::new(),
            task: Task { collective: options.collective, op: None, root: None },
            task_index: 0,
            deadline: None,
        })
    }

    /// The calls of one iteration. Each takes the next part of the buffers.
    fn calls(&self, trial: &Trial<'_>, iteration: u32, many: u32, into: &mut Vec<DeviceCall>) {
        into.clear();
        into.extend((0..many).map(|call| {
            let number = iteration as usize * many as usize + call as usize;
            let first = |length: usize| {
                let regions = self.elements.checked_div(length).unwrap_or(1).max(1);
                self.unaligned + number % regions * length
            };
            DeviceCall {
                collective: called(self.task),
                count: trial.count,
                in_place: trial.placement == Placement::InPlace,
                input: first(trial.layout.input),
                output: first(trial.layout.output),
            }
        }));
    }

    /// One untimed iteration of each, then passes of those that are timed, in turns as allfold's
    /// calls and as NCCL's own: allfold's first pass is the row's time. Of one rank that pass alone:
    /// NCCL has nothing to do for it.
    fn time(&mut self, trial: &Trial<'_>) -> Result<(Time, Option<Beside>), Error> {
        let mut latencies = std::mem::replace(&mut self.latencies, Latencies::new());
        let timed = self.time_into(trial, &mut latencies);
        self.latencies = latencies;
        timed
    }

    fn time_into(
        &self,
        trial: &Trial<'_>,
        latencies: &mut Latencies,
    ) -> Result<(Time, Option<Beside>), Error> {
        let Self { buffers, .. } = self;
        let is_compared = self.world.size() > 1;
        let allfold: Make<'_> = &|calls, waits| buffers.call(calls, waits);
        let begun = Instant::now();
        self.once(allfold, trial)?;
        let mut once = begun.elapsed();
        if is_compared {
            buffers.raw(|raw| self.once(&|calls, waits| raw.call(calls, waits), trial))?;
            once = begun.elapsed() / 2;
        }
        let pace = match &self.deadline {
            Some(deadline) => Some(deadline.pace(self.world, once)?),
            None => None,
        };
        let records = self.method.detail != Detail::None;
        let many = if records { self.method.iterations as usize } else { 1 };
        let marks = buffers.marks(many + 1)?;
        let own = self.pass(allfold, trial, pace, &marks, Some(latencies))?;
        if !is_compared {
            return Ok((own, None));
        }
        let own_again = || self.pass(allfold, trial, pace, &marks, None);
        let raw = || {
            buffers.raw(|raw| {
                self.pass(&|calls, waits| raw.call(calls, waits), trial, pace, &marks, None)
            })
        };
        let (mut owns, mut raws) = (vec![own.duration.as_secs_f64()], Vec::new());
        raws.push(raw()?.duration.as_secs_f64());
        for turn in 1..TURNS {
            for is_raw in turns::order(&[false, true], turn) {
                match is_raw {
                    true => raws.push(raw()?.duration.as_secs_f64()),
                    false => owns.push(own_again()?.duration.as_secs_f64()),
                }
            }
        }
        // The median, so that one pass that was disturbed is in neither.
        let average = |times| world::average(self.world, median(times), self.method.average);
        let beside = Beside { time_us: average(owns)? * 1e6, raw_us: average(raws)? * 1e6 };
        Ok((own, Some(beside)))
    }

    fn once(&self, make: Make<'_>, trial: &Trial<'_>) -> Result<(), Error> {
        let mut calls = Vec::new();
        self.calls(trial, 0, self.method.calls, &mut calls);
        make(&calls, self.blocking != Blocking::No)?;
        Ok(self.buffers.wait()?)
    }

    /// This rank's time of a call. `pace`: after how many iterations the clock is looked at.
    fn pass(
        &self,
        make: Make<'_>,
        trial: &Trial<'_>,
        pace: Option<u32>,
        marks: &[DeviceMark],
        mut latencies: Option<&mut Latencies>,
    ) -> Result<Time, Error> {
        let Method { iterations, calls: many, .. } = self.method;
        let Self { world, buffers, .. } = self;
        let records = latencies.is_some() && self.method.detail != Detail::None;
        if let Some(latencies) = &mut latencies {
            latencies.clear(if records { iterations as usize } else { 0 });
        }
        let mut calls = Vec::with_capacity(many as usize);
        let mut time = Duration::ZERO;
        // Iterations since the first mark.
        let mut since = 0;
        world.barrier()?;
        let processor = processor_time();
        buffers.set(&marks[0])?;
        for iteration in 0..iterations {
            self.calls(trial, iteration, many, &mut calls);
            make(&calls, self.blocking != Blocking::No)?;
            if self.blocking == Blocking::WaitAndMeet {
                world.barrier()?;
            }
            since += 1;
            let is_last = iteration + 1 == iterations;
            let looks = is_last || pace.is_some_and(|pace| iteration % pace == pace - 1);
            let end = &marks[if records { since } else { 1 }];
            if records || looks {
                buffers.set(end)?;
            }
            if !looks {
                continue;
            }
            buffers.wait()?;
            time += buffers.between(&marks[0], end)?;
            if let (true, Some(latencies)) = (records, &mut latencies) {
                for pair in marks[..=since].windows(2) {
                    latencies.record(buffers.between(&pair[0], &pair[1])? / many);
                }
            }
            if let Some(deadline) = &self.deadline {
                deadline.check(world)?;
            }
            if !is_last {
                since = 0;
                buffers.set(&marks[0])?;
            }
        }
        let processor = processor_time().saturating_sub(processor);
        Ok(Time {
            // An empty call may be faster than the clock.
            duration: (time / iterations / many).max(Duration::from_nanos(1)),
            processor: processor / iterations / many,
        })
    }

    /// Writes what this rank gives, on the GPU; all else of the output is spoiled.
    fn give(&mut self, trial: &Trial<'_>, call: u32) -> Result<(), Error> {
        let Layout { input, output, before, after, .. } = trial.layout;
        let pattern = self.pattern(trial, call);
        let (unaligned, staging) = (self.unaligned, &mut self.staging);
        pattern.spoil(after, &mut staging[..*output]);
        if trial.placement == Placement::InPlace {
            pattern.fill(before, &mut staging[..*output]);
        }
        self.buffers.write(DeviceBuffer::Output, unaligned, &staging[..*output])?;
        if trial.placement == Placement::OutOfPlace {
            // The copy above may still be under way.
            self.buffers.wait()?;
            pattern.fill(before, &mut staging[..*input]);
            self.buffers.write(DeviceBuffer::Input, unaligned, &staging[..*input])?;
        }
        Ok(self.buffers.wait()?)
    }

    /// Wrong elements on all ranks, of calls on fresh inputs; none where nothing is checked.
    fn check(&mut self, trial: &Trial<'_>) -> Result<Option<u64>, Error> {
        if self.method.checks == 0 {
            return Ok(None);
        }
        let mut calls = Vec::new();
        self.calls(trial, 0, 1, &mut calls);
        for check in 0..self.method.checks {
            self.give(trial, check)?;
            self.buffers.call(&calls, self.blocking != Blocking::No)?;
            let result = &mut self.staging[..trial.layout.output];
            self.buffers.read(DeviceBuffer::Output, self.unaligned, result)?;
            let pattern = self.pattern(trial, check);
            let own = pattern.wrong(&trial.layout.after, &self.staging[..trial.layout.output]);
            let [all] = world::sum(self.world, [own as f64])?;
            if all > 0.0 {
                return Ok(Some(all as u64));
            }
            if let Some(deadline) = &self.deadline {
                deadline.check(self.world)?;
            }
        }
        Ok(Some(0))
    }

    fn pattern(&self, trial: &Trial<'_>, call: u32) -> crate::pattern::Pattern {
        let pattern = self.task.pattern::<T>(self.world.size(), self.task_index, trial, call);
        pattern.for_nccl::<T>()
    }
}

impl<T: Number> Measure for Bench<'_, T> {
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
        let trial = Trial { count, placement, layout: &layout };
        let mut calls = Vec::new();
        for iteration in 0..iterations {
            self.calls(&trial, iteration, self.method.calls, &mut calls);
            self.buffers.call(&calls, self.blocking != Blocking::No)?;
        }
        Ok(self.buffers.wait()?)
    }

    fn measure(&mut self, count: usize, placement: Placement) -> Result<Half, Error> {
        let layout = self.task.layout(self.world, count, placement);
        let trial = Trial { count, placement, layout: &layout };
        if self.method.checks > 0 {
            self.give(&trial, TIMED)?;
        }
        let (own, beside) = self.time(&trial)?;
        let mut half =
            half::<T>(self.world, self.task, count, &self.method, &own, &self.latencies)?;
        half.beside = beside;
        half.wrong = self.check(&trial)?;
        Ok(half)
    }

    fn take_observed(&mut self) -> Option<Observed> {
        None
    }
}

fn called(task: Task) -> DeviceCollective {
    let op = task.op.unwrap_or_default().into();
    let root = task.root.unwrap_or_default();
    match task.collective {
        Collective::ReduceScatter => DeviceCollective::ReduceScatter(op),
        Collective::AllGather => DeviceCollective::AllGather,
        Collective::Broadcast => DeviceCollective::Broadcast { root },
        Collective::Reduce => DeviceCollective::Reduce { op, root },
        Collective::SendRecv => DeviceCollective::SendRecv,
        // The others are refused: `Collective::halves_on_gpu`.
        _ => DeviceCollective::AllReduce(op),
    }
}

/// Passes of allfold's calls, and as many of NCCL's own.
const TURNS: usize = 3;
