//! The walk over the sizes, from the header to the verdict; the same calls on every rank.

use std::collections::HashMap;
use std::io::{self, Write};

use allfold::{Communicator, ReduceOp};

use crate::console::{Console, State};
use crate::latencies::Latencies;
use crate::measure::{Bench, Call};
use crate::options::{Collective, DataType, Options};
use crate::pattern::Number;
use crate::report::Report;
use crate::table::{self, Device, Row};
use crate::{Error, memory, size, world};

/// Measures what `options` ask for; every rank of `world` calls it, and rank 0 prints the table and
/// writes the report.
///
/// On every rank [`Error::Wrong`] if any element of any rank was wrong. The options must be equal
/// on all ranks, and [`Options::check`] should have passed.
pub fn run(options: &Options, world: &Communicator) -> Result<(), Error> {
    run_on(options, world, &mut io::stdout())
}

fn run_on(options: &Options, world: &Communicator, out: &mut dyn Write) -> Result<(), Error> {
    match (options.collective, options.datatype) {
        (Collective::AllReduce, DataType::Float) => typed(options, world, all_reduce::<f32>, out),
        (Collective::AllReduce, DataType::Double) => typed(options, world, all_reduce::<f64>, out),
    }
}

fn all_reduce<T: Number>(
    world: &Communicator,
    buffer: &mut [T],
    op: ReduceOp,
) -> allfold::Result<()> {
    world.all_reduce(buffer, op)
}

fn typed<T: Number>(
    options: &Options,
    world: &Communicator,
    call: Call<T>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    options.check_values()?;
    let prepared = prepare(options, world, call);
    let agreed = agree(world, prepared.is_ok());
    let (bench, report) = prepared?;
    let mut session = Session {
        options,
        bench,
        leader: world.rank() == 0,
        console: Console::new(out),
        report,
        tally: Tally::default(),
    };
    let outcome = agreed.and_then(|()| session.measure());
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

/// What can fail on one rank alone: its memory, and on rank 0 the report's file.
fn prepare<'a, T: Number>(
    options: &Options,
    world: &'a Communicator,
    call: Call<T>,
) -> Result<(Bench<'a, T>, Option<Report>), Error> {
    let bench = Bench {
        world,
        call,
        op: options.op,
        iterations: options.iters,
        checks: options.check,
        buffer: memory::buffer(count::<T>(options.maxbytes))?,
        latencies: Latencies::new(),
    };
    let report = match &options.output_file {
        Some(path) if world.rank() == 0 => Some(Report::create(path)?),
        _ => None,
    };
    Ok((bench, report))
}

struct Session<'a, T> {
    options: &'a Options,
    bench: Bench<'a, T>,
    /// Rank 0, which prints and reports.
    leader: bool,
    console: Console<'a>,
    report: Option<Report>,
    tally: Tally,
}

/// What the rows add up to.
#[derive(Default)]
struct Tally {
    rows: usize,
    failed: usize,
    wrong: u64,
    bus_bw: f64,
}

impl Tally {
    /// GB/s; 0 without a row.
    fn average(&self) -> f64 {
        match self.rows {
            0 => 0.0,
            rows => self.bus_bw / rows as f64,
        }
    }
}

/// Whether rank 0 still wants rows.
enum Course {
    On,
    /// Nobody reads the table any more.
    Enough,
    /// The table cannot be printed.
    Failed,
}

impl<T: Number> Session<'_, T> {
    /// nccl-tests' order: barrier, warm-up sweep over the doubled sizes, then each size.
    fn measure(&mut self) -> Result<(), Error> {
        self.header()?;
        let (minimum, maximum) = (self.options.minbytes, self.options.maxbytes);
        self.bench.world.barrier()?;
        for bytes in size::steps(minimum, maximum, 2) {
            self.bench.warm_up(count::<T>(bytes), self.options.warmup_iters)?;
        }
        for bytes in size::steps(minimum, maximum, self.options.stepfactor) {
            self.row(count::<T>(bytes))?;
            match self.course()? {
                Course::On => {}
                Course::Enough => break,
                Course::Failed if self.leader => break,
                Course::Failed => return Err(Error::AnotherRank),
            }
        }
        Ok(())
    }

    fn header(&mut self) -> Result<(), Error> {
        let world = self.bench.world;
        let transports = world::transports(world)?;
        if !self.leader {
            return Ok(());
        }
        if let Some(report) = &self.report {
            let path = report.path().display();
            self.console.print(&format!("# Writing JSON output to {path}\n"));
        }
        let devices = devices(world, transports);
        self.console.print(&table::header(self.options, &world.security(), &devices));
        if let Some(report) = &mut self.report {
            report.configure(self.options, &devices);
        }
        Ok(())
    }

    fn row(&mut self, count: usize) -> Result<(), Error> {
        let half = self.bench.measure(count)?;
        let wrong = half.wrong.unwrap_or(0);
        self.tally.rows += 1;
        self.tally.failed += usize::from(wrong > 0);
        self.tally.wrong += wrong;
        self.tally.bus_bw += half.bus_bw;
        if !self.leader {
            return Ok(());
        }
        let row = Row {
            bytes: count * size_of::<T>(),
            count,
            datatype: T::NAME,
            op: self.options.op,
            // Allfold has no such call, and a copy before the call would measure the copy.
            out_of_place: None,
            in_place: half,
        };
        self.console.print(&table::row(&row));
        if let Some(report) = &mut self.report {
            let per_iteration = self.bench.latencies.summary();
            report.add(&row, self.options.iters, per_iteration);
        }
        Ok(())
    }

    /// Rank 0 tells the others whether to go on; its output may be gone.
    fn course(&self) -> Result<Course, Error> {
        let own = match self.console.state() {
            State::Open => [0.0, 0.0],
            State::Closed => [1.0, 0.0],
            State::Failed(_) => [0.0, 1.0],
        };
        Ok(match world::sum(self.bench.world, own)? {
            [_, failed] if failed > 0.0 => Course::Failed,
            [closed, _] if closed > 0.0 => Course::Enough,
            _ => Course::On,
        })
    }

    /// The footer and the report, also of a sweep that was cut short; then the first error.
    fn conclude(mut self, outcome: Result<(), Error>) -> Result<(), Error> {
        let Tally { rows, failed, wrong, .. } = self.tally;
        let average = self.tally.average();
        if self.leader && outcome.is_ok() {
            self.console.print(&table::footer(self.options, failed, average));
        }
        let reported = match self.report.take() {
            Some(report) => report.write(failed, average, outcome.as_ref().err()),
            None => Ok(()),
        };
        outcome?;
        if wrong > 0 {
            return Err(Error::Wrong { wrong, rows: failed, sizes: rows });
        }
        reported?;
        match self.console.into_state() {
            State::Failed(error) => Err(Error::Output(error)),
            State::Open | State::Closed => Ok(()),
        }
    }
}

/// Elements in `bytes`, rounded down as nccl-tests do.
fn count<T>(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<T>()
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
            Device { rank: peer.rank, pid: peer.pid, host: peer.host, device, transport }
        })
        .collect()
}

#[cfg(test)]
mod tests;
