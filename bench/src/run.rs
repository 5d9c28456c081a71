//! The walk over types, operations, roots and sizes, from the header to the verdict; the same calls
//! on every rank.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Instant;

use allfold::nccl::cudarc::driver::sys::CUdevice_attribute;
use allfold::nccl::{Gpu, Presence, Version};
use allfold::{Communicator, ErrorKind, Peer, bf16, f16};

use crate::beside::Comparison;
use crate::call::{Caller, Library, Task};
use crate::choices::{DataType, DeviceKind, Op};
use crate::console::{Console, State};
use crate::deadline::Deadline;
use crate::element::Number;
use crate::explain::{self, Explanation, Subject};
use crate::latencies::{Detail, Latencies};
use crate::measure::{Bench, Measure, Memory, Method, Placement};
use crate::options::Options;
use crate::plot::Lines;
use crate::report::Report;
use crate::size::Step;
use crate::table::{self, Device, NO_BUS, Row};
use crate::{Error, gpu, size, timestamp, world};

/// Runs the sweep that `options` ask for; every rank of `world` calls it, and rank 0 prints the table and
/// writes the report. The world is closed then.
///
/// On every rank [`Error::Wrong`] if any element of any rank was wrong. The options must be equal
/// on all ranks, and [`Options::check`] should have passed.
pub fn run(options: &Options, world: Communicator) -> Result<(), Error> {
    let out = &mut io::stdout();
    match options.device() {
        DeviceKind::Cpu => {
            run_on(options, &world, &Library, out)?;
            Ok(world.close()?)
        }
        DeviceKind::Gpu => {
            let gpu = Gpu::connect(world)?;
            run_at(options, gpu.communicator(), Place::<Library>::Gpu(&gpu), out)?;
            Ok(gpu.close()?)
        }
    }
}

fn run_on<C: Caller>(
    options: &Options,
    world: &Communicator,
    caller: &C,
    out: &mut dyn Write,
) -> Result<(), Error> {
    run_at(options, world, Place::Host(caller), out)
}

fn run_at<C: Caller>(
    options: &Options,
    world: &Communicator,
    place: Place<'_, C>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    options.check_values()?;
    options.check_root(world.size())?;
    options.check_neighbour(world.size())?;
    options.check_plot(world.size())?;
    let leader = world.rank() == 0;
    let report = match &options.output_file {
        Some(path) if leader => Report::create(path).map(Some),
        _ => Ok(None),
    };
    let agreed = agree(world, report.is_ok());
    let mut session = Session {
        options,
        world,
        place,
        leader,
        console: Console::new(out),
        report: report?,
        lines: (leader && options.plot.is_some())
            .then(|| Lines::new(options.collective.program(), world.size())),
        subject: None,
        explanation: None,
        tally: Tally::default(),
        comparison: Comparison::default(),
        tasks: 0,
        occupation: "the start".into(),
    };
    let outcome = agreed.and_then(|()| session.measure());
    let outcome = outcome.map_err(|error| session.blame(error));
    session.conclude(outcome)
}

/// A rank that has no memory or no file tells the others, which would wait for it.
fn agree(world: &Communicator, able: bool) -> Result<(), Error> {
    let [unable] = world::sum(world, [f64::from(u8::from(!able))])?;
    match unable {
        0.0 => Ok(()),
        _ => Err(Error::AnotherRank),
    }
}

/// Where the data lies, and who makes the calls there.
#[derive(Clone, Copy)]
enum Place<'a, C> {
    Host(&'a C),
    Gpu(&'a Gpu),
}

struct Session<'a, C> {
    options: &'a Options,
    world: &'a Communicator,
    place: Place<'a, C>,
    /// Rank 0, which prints and reports.
    leader: bool,
    console: Console<'a>,
    report: Option<Report>,
    /// On rank 0, where a picture is asked for.
    lines: Option<Lines>,
    /// What is to be explained, and then what there is to say about it.
    subject: Option<Subject>,
    explanation: Option<Explanation>,
    tally: Tally,
    /// On GPUs, with raw NCCL.
    comparison: Comparison,
    /// Pairs of an operation and a root so far, over all types.
    tasks: u32,
    /// What the ranks do now, in words.
    occupation: String,
}

/// What the rows add up to.
#[derive(Default)]
struct Tally {
    rows: usize,
    failed: usize,
    wrong: u64,
    halves: usize,
    bus_bw: f64,
}

impl Tally {
    /// nccl-tests': of all halves of all rows, in GB/s; 0 without a row.
    fn average(&self) -> f64 {
        match self.halves {
            0 => 0.0,
            halves => self.bus_bw / halves as f64,
        }
    }
}

/// Whether rank 0 still wants rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    On,
    /// Nobody reads the table any more, or it cannot be printed.
    Enough,
}

impl<'a, C: Caller> Session<'a, C> {
    /// nccl-tests' order: type, operation, root.
    fn measure(&mut self) -> Result<(), Error> {
        self.header()?;
        let options = self.options;
        let types = match options.collective.has_data() {
            true => options.datatype.values(),
            false => &[DataType::Uint8],
        };
        for datatype in types {
            let course = match datatype {
                DataType::Int8 => self.typed::<i8>(),
                DataType::Uint8 => self.typed::<u8>(),
                DataType::Int32 => self.typed::<i32>(),
                DataType::Uint32 => self.typed::<u32>(),
                DataType::Int64 => self.typed::<i64>(),
                DataType::Uint64 => self.typed::<u64>(),
                DataType::Half => self.typed::<f16>(),
                DataType::Float => self.typed::<f32>(),
                DataType::Double => self.typed::<f64>(),
                DataType::Bfloat16 => self.typed::<bf16>(),
            };
            if course? == Course::Enough {
                return Ok(());
            }
        }
        if let Some(subject) = &self.subject {
            self.occupation = "--explain".into();
            self.explanation = Some(explain::explain(self.world, subject)?);
        }
        Ok(())
    }

    fn header(&mut self) -> Result<(), Error> {
        let world = self.world;
        let devices = match self.place {
            Place::Host(_) => devices(world, world::texts(world, &world.transport())?),
            Place::Gpu(gpu) => gpus(world, world::texts(world, &describe_gpu(gpu))?),
        };
        let nccl = match self.place {
            Place::Host(_) => None,
            Place::Gpu(_) => Presence::find().nccl.ok().map(|(version, _)| number(version)),
        };
        if !self.leader {
            return Ok(());
        }
        if let Some(report) = &self.report {
            let path = report.path().display();
            self.console.print(&format!("# Writing JSON output to {path}\n"));
        }
        self.console.print(&table::header(self.options, &world.security(), nccl, &devices));
        if let Some(report) = &mut self.report {
            report.configure(self.options, nccl, &devices);
        }
        Ok(())
    }

    /// All operations and roots of one type.
    fn typed<T: Number>(&mut self) -> Result<Course, Error> {
        self.occupation = format!("the preparation of {}", T::DATATYPE.name());
        let prepared = self.prepare::<T>();
        let agreed = agree(self.world, prepared.is_ok());
        let mut bench = prepared?;
        agreed?;
        let options = self.options;
        let (reduces, has_root) = (options.collective.reduces(), options.collective.has_root());
        let roots = if has_root { options.root.ranks(self.world.size()) } else { 0..1 };
        for op in if reduces { options.op.values() } else { &[Op::Sum] } {
            for root in roots.clone() {
                let (op, root) = (reduces.then_some(*op), has_root.then_some(root));
                let task = Task { collective: options.collective, op, root };
                bench.begin(task, self.tasks);
                self.tasks += 1;
                if self.sweep::<T>(&mut *bench, task)? == Course::Enough {
                    return Ok(Course::Enough);
                }
            }
        }
        Ok(Course::On)
    }

    /// What can fail on one rank alone: its memory.
    fn prepare<T: Number>(&self) -> Result<Box<dyn Measure + 'a>, Error> {
        let Options { collective, maxbytes, agg_iters, .. } = *self.options;
        let elements = collective.elements(self.count::<T>(maxbytes), self.world.size());
        let unaligned = self.options.unalign as usize;
        let caller = match self.place {
            Place::Host(caller) => caller,
            Place::Gpu(gpu) => {
                let bench = gpu::Bench::<T>::new(gpu, self.options, self.method(), elements)?;
                return Ok(Box::new(bench));
            }
        };
        Ok(Box::new(Bench {
            world: self.world,
            caller,
            task: Task { collective, op: None, root: None },
            task_index: 0,
            method: self.method(),
            memory: Memory::<T>::new(collective, elements, agg_iters, unaligned)?,
            latencies: Latencies::new(),
            deadline: None,
            observed: None,
        }))
    }

    fn method(&self) -> Method {
        let options = self.options;
        let detail = match (options.per_iter_timing.is_on(), &options.output_file) {
            (true, _) => Detail::Full,
            (false, Some(_)) => Detail::Summary,
            (false, None) => Detail::None,
        };
        Method {
            iterations: options.iters,
            calls: options.agg_iters,
            checks: options.check,
            average: options.average,
            detail,
            skip: options.per_iter_skip as usize,
            observes: options.explain,
            processor_time: options.report_cputime.is_on(),
        }
    }

    /// nccl-tests' order: barrier, warm-up sweep over the doubled sizes, then each size.
    fn sweep<T: Number>(&mut self, bench: &mut dyn Measure, task: Task) -> Result<Course, Error> {
        let Options { collective, minbytes, maxbytes, warmup_iters, .. } = *self.options;
        // Without data all sizes are one.
        let maxbytes = if collective.has_data() { maxbytes } else { minbytes };
        let first = match self.options.halves().out_of_place {
            true => Placement::OutOfPlace,
            false => Placement::InPlace,
        };
        self.world.barrier()?;
        // As nccl-tests, which go on from 0 to 1.
        for bytes in size::steps(minbytes.max(1), maxbytes, Step::Factor(2)) {
            let count = self.count::<T>(bytes);
            self.occupation = format!("the warm-up of {}", name::<T>(task, count));
            bench.warm_up(count, first, warmup_iters)?;
        }
        let mut cycle = 0;
        loop {
            for bytes in size::steps(minbytes, maxbytes, self.options.step()) {
                self.row::<T>(bench, task, self.count::<T>(bytes))?;
                if self.course()? == Course::Enough {
                    return Ok(Course::Enough);
                }
            }
            self.console.print(&self.comparison.lines());
            cycle += 1;
            // 0 is for ever.
            if cycle == self.options.run_cycles {
                return Ok(Course::On);
            }
            cycle %= u32::MAX;
        }
    }

    fn row<T: Number>(
        &mut self,
        bench: &mut dyn Measure,
        task: Task,
        count: usize,
    ) -> Result<(), Error> {
        let collective = self.options.collective;
        let halves = self.options.halves();
        self.occupation = name::<T>(task, count);
        bench.limit(self.deadline());
        let mut measure = |placement| bench.measure(count, placement);
        let out_of_place =
            halves.out_of_place.then(|| measure(Placement::OutOfPlace)).transpose()?;
        let in_place = halves.in_place.then(|| measure(Placement::InPlace)).transpose()?;

        let bytes = collective.elements(count, self.world.size()) * size_of::<T>();
        let measured = in_place.as_ref().or(out_of_place.as_ref());
        if let (Some(observed), Some(half)) = (bench.take_observed(), measured)
            && self.subject.as_ref().is_none_or(|subject| bytes >= subject.bytes)
        {
            let what = describe(task, T::DATATYPE);
            let bus_bw = half.bus_bw;
            self.subject = Some(Subject { what, bytes, bus_bw, observed });
        }
        let mut wrong = 0;
        for half in out_of_place.iter().chain(&in_place) {
            wrong += half.wrong.unwrap_or(0);
            self.tally.halves += 1;
            self.tally.bus_bw += half.bus_bw;
        }
        self.tally.rows += 1;
        self.tally.failed += usize::from(wrong > 0);
        self.tally.wrong += wrong;
        if !self.leader {
            return Ok(());
        }
        let row = Row {
            bytes,
            count,
            datatype: if collective.has_data() { T::DATATYPE.name() } else { NO_TYPE },
            op: task.op,
            root: task.root,
            out_of_place,
            in_place,
        };
        self.console.print(&table::row(self.options, &row, &timestamp::now()));
        self.comparison.add(&row);
        if let Some(lines) = &mut self.lines {
            lines.add(&row);
        }
        if let Some(report) = &mut self.report {
            report.add(row, self.options.iters);
        }
        Ok(())
    }

    /// The limit of a row that begins now.
    fn deadline(&self) -> Option<Deadline> {
        let limit = self.options.limit()?;
        Some(Deadline { row: self.occupation.clone(), begun: Instant::now(), limit })
    }

    /// The limit of every call is that of `-T`, where it is given: whatever call passed it.
    fn blame(&self, error: Error) -> Error {
        match error {
            Error::Collective(error) => match (error.kind(), self.options.limit()) {
                (ErrorKind::TimedOut { call, late, .. }, Some(limit)) => Error::TimedOut {
                    row: self.occupation.clone(),
                    seconds: limit.as_secs() as u32,
                    problem: Some(match late {
                        Some(late) => format!("{call} did not end; {late}"),
                        None => format!("{call} did not end"),
                    }),
                },
                _ => Error::Collective(error),
            },
            error => error,
        }
    }

    /// What the column `count` says at a size; bytes are rounded down as nccl-tests do.
    fn count<T>(&self, bytes: u64) -> usize {
        let elements = usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<T>();
        self.options.collective.count(elements, size_of::<T>(), self.world.size())
    }

    /// Rank 0 tells the others whether to go on; its output may be gone.
    fn course(&self) -> Result<Course, Error> {
        let own = match self.console.state() {
            State::Open => [0.0, 0.0],
            State::Closed => [1.0, 0.0],
            State::Failed(_) => [0.0, 1.0],
        };
        match world::sum(self.world, own)? {
            [_, failed] if failed > 0.0 && !self.leader => Err(Error::AnotherRank),
            [closed, failed] if closed + failed > 0.0 => Ok(Course::Enough),
            _ => Ok(Course::On),
        }
    }

    /// The footer and the report, also of a sweep that was cut short; then the first error.
    fn conclude(mut self, outcome: Result<(), Error>) -> Result<(), Error> {
        let Tally { rows, failed, wrong, .. } = self.tally;
        let average = self.tally.average();
        if self.leader && outcome.is_ok() {
            self.console.print(&self.comparison.summary().unwrap_or_default());
            self.console.print(&table::footer(self.options, failed, average));
            if let Some(found) = &self.explanation {
                self.console.print(&explain::text(found));
            }
        }
        let reported = match self.report.take() {
            Some(report) => {
                let is_fast = table::is_fast(self.options, average);
                report.write(failed, average, is_fast, self.explanation, outcome.as_ref().err())
            }
            None => Ok(()),
        };
        let drawn = match (&self.lines, &self.options.plot) {
            (Some(lines), Some(path)) if rows > 0 => lines.write(path),
            _ => Ok(()),
        };
        outcome?;
        if wrong > 0 {
            return Err(Error::Wrong { wrong, failed, rows });
        }
        reported?;
        drawn?;
        if let (Some(minimum), Some(false)) =
            (self.options.min_bandwidth, table::is_fast(self.options, average))
        {
            let help = match self.options.is_on_gpu() {
                true => "NCCL_DEBUG=INFO shows which links NCCL uses",
                false => "--explain says where the time goes",
            };
            return Err(Error::TooSlow { average, minimum, help });
        }
        match self.console.into_state() {
            State::Failed(error) => Err(Error::Output(error)),
            State::Open | State::Closed => Ok(()),
        }
    }
}

/// `all_reduce_perf of 1024 bytes, float sum`.
fn name<T: Number>(task: Task, count: usize) -> String {
    let (program, bytes) = (task.collective.program(), count * size_of::<T>());
    format!("{program} of {bytes} bytes, {}", describe(task, T::DATATYPE))
}

/// `float sum`.
fn describe(task: Task, datatype: DataType) -> String {
    match task.op {
        Some(op) => format!("{} {}", datatype.name(), op.name()),
        None => datatype.name().into(),
    }
}

/// The ranks for the header, those of one host numbered.
fn devices(world: &Communicator, transports: Vec<String>) -> Vec<Device> {
    let mut on_host: HashMap<String, usize> = HashMap::new();
    world
        .peers()
        .into_iter()
        .zip(transports)
        .map(|(peer, transport)| {
            let next = on_host.entry(peer.host.clone()).or_default();
            let device = *next;
            *next += 1;
            let bus = NO_BUS.into();
            Device { rank: peer.rank, pid: peer.pid, host: peer.host, device, bus, info: transport }
        })
        .collect()
}

/// What a rank says of its GPU for the header: its number, address and name.
fn describe_gpu(gpu: &Gpu) -> String {
    let part = |attribute| gpu.context().attribute(attribute).unwrap_or_default();
    let domain = part(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
    let bus = part(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
    let device = part(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
    format!("{} {domain:04x}:{bus:02x}:{device:02x} {}", gpu.index(), gpu.name())
}

/// The ranks' GPUs for the header.
fn gpus(world: &Communicator, words: Vec<String>) -> Vec<Device> {
    let device = |(peer, words): (Peer, String)| {
        let mut words = words.splitn(3, ' ');
        let mut next = || words.next().unwrap_or_default().to_string();
        let (device, bus, info) = (next().parse().unwrap_or_default(), next(), next());
        Device { rank: peer.rank, pid: peer.pid, host: peer.host, device, bus, info }
    };
    world.peers().into_iter().zip(words).map(device).collect()
}

/// As `ncclGetVersion` gives it: 22809 is 2.28.9.
fn number(version: Version) -> u32 {
    version.major * 10_000 + version.minor * 100 + version.patch
}

/// The type of a call without data.
const NO_TYPE: &str = "none";

#[cfg(test)]
mod tests;
