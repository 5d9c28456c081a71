//! The options of `allfold bench`: nccl-tests' names and letters, checked before any rank starts.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use allfold::nccl::Presence;
use allfold::{Config, Ranks};
use clap::{Args, ValueEnum};

use crate::choices::{
    Algorithm, Average, Choice, DataType, DeviceKind, Op, Switch, Transport, Unit, one_or_all,
    rank_or_all,
};
use crate::collective::{Collective, Halves};
use crate::foreign::Foreign;
use crate::size::{self, Step};
use crate::{Error, memory, plot, report};

/// Measures a collective as nccl-tests do, on hosts without GPUs and on GPUs.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The collective; nccl-tests' other names (all_reduce_perf) and those with dashes mean the
    /// same
    #[arg(value_enum, value_name = "COLLECTIVE", default_value_t)]
    pub collective: Collective,

    /// Where the data lies: in the host's memory, or in that of a GPU for each rank [cpu; with -g:
    /// gpu]
    #[arg(long, value_enum, value_name = "cpu|gpu")]
    pub device: Option<DeviceKind>,

    /// As --device gpu --ranks N; -g 1 under a launcher, or beside --ranks: a GPU for each rank
    #[arg(short = 'g', long, value_name = "N", allow_negative_numbers = true)]
    pub ngpus: Option<usize>,

    /// Number of ranks; auto: one for each core, gpu: one for each GPU [outside a launcher: 2; on
    /// GPUs one for each]; no short form, because -n is --iters
    #[arg(long, value_name = "N|auto|gpu", allow_negative_numbers = true)]
    pub ranks: Option<Ranks>,

    /// Smallest size in bytes; K, M and G are powers of 1024
    #[arg(short = 'b', long, value_name = "SIZE", default_value = "8", value_parser = size::parse, allow_hyphen_values = true)]
    pub minbytes: u64,

    /// Largest size in bytes (nccl-tests, without -b and -e: one row of 32M)
    #[arg(short = 'e', long, value_name = "SIZE", default_value = "64M", value_parser = size::parse, allow_hyphen_values = true)]
    pub maxbytes: u64,

    /// Each size is so many bytes more than the one before; -f above 1 wins over it
    #[arg(short = 'i', long, value_name = "SIZE", value_parser = size::parse, allow_hyphen_values = true)]
    pub stepbytes: Option<u64>,

    /// Each size is so many times the one before [without -i: 2]
    #[arg(short = 'f', long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub stepfactor: Option<u64>,

    /// Timed iterations of each size
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 20,
        allow_negative_numbers = true
    )]
    pub iters: u32,

    /// Iterations of each size in the warm-up sweep, not timed
    #[arg(
        short = 'w',
        long = "warmup-iters",
        alias = "warmup_iters",
        value_name = "N",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    pub warmup_iters: u32,

    /// Calls of each iteration, started together and then awaited; the time is that of one call
    #[arg(
        short = 'm',
        long = "agg-iters",
        alias = "agg_iters",
        value_name = "N",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    pub agg_iters: u32,

    /// How often the sweep is run and printed; 0 is for ever
    #[arg(
        short = 'N',
        long = "run-cycles",
        alias = "run_cycles",
        value_name = "N",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    pub run_cycles: u32,

    /// Whose time is printed: 0 rank 0's, 1 the average, 2 the shortest, 3 the longest
    #[arg(short = 'a', long, value_name = "0-3", default_value = "1", value_parser = Average::parse, allow_negative_numbers = true)]
    pub average: Average,

    /// 1 adds a summary of the iterations to each row: i_min i_max i_p99 i_cv%, each the slowest
    /// rank's; and all their times to the JSON report
    #[arg(short = 'I', long = "per-iter-timing", alias = "per_iter_timing", value_name = "0/1", default_value = "0", value_parser = Switch::parse)]
    pub per_iter_timing: Switch,

    /// Leading iterations that the summary leaves out
    #[arg(
        short = 'K',
        long = "per-iter-skip",
        alias = "per_iter_skip",
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub per_iter_skip: u32,

    /// Calls of each size whose data is checked; 0 checks nothing
    #[arg(short = 'c', long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub check: u32,

    /// Element type
    #[arg(short = 'd', long, value_name = "TYPE", default_value = "float", value_parser = one_or_all::<DataType>())]
    pub datatype: Choice<DataType>,

    /// How the ranks' data is combined, where it is
    #[arg(short = 'o', long, value_name = "OP", default_value = "sum", value_parser = one_or_all::<Op>())]
    pub op: Choice<Op>,

    /// The rank that differs from the others, where one does, or all in turn
    #[arg(short = 'r', long, value_name = "RANK", default_value = "0", value_parser = rank_or_all, allow_negative_numbers = true)]
    pub root: Choice<usize>,

    /// Seconds that one row may take [no limit]; a longer one ends the benchmark, exit code 75
    #[arg(
        short = 'T',
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub timeout: u32,

    /// 1 prints the processor time of a call, all threads of a rank, in place of its duration
    #[arg(short = 'C', long = "report-cputime", alias = "report_cputime", value_name = "0/1", default_value = "0", value_parser = Switch::parse)]
    pub report_cputime: Switch,

    /// 1 adds to each row when it was measured, in UTC
    #[arg(short = 'S', long = "report-timestamps", alias = "report_timestamps", value_name = "0/1", default_value = "0", value_parser = Switch::parse)]
    pub report_timestamps: Switch,

    /// Buffers begin so many elements after where the system put them
    #[arg(
        short = 'u',
        long,
        value_name = "ELEMENTS",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub unalign: u32,

    /// Also write a JSON report; where FILE exists, to FILE.0, FILE.1, ...
    #[arg(short = 'J', long = "output-file", alias = "output_file", value_name = "FILE")]
    pub output_file: Option<PathBuf>,

    /// What carries the data [ALLFOLD_TRANSPORT, else auto: shared memory where all ranks are on one
    /// host]
    #[arg(long, value_enum, value_name = "NAME")]
    pub transport: Option<Transport>,

    /// Algorithm of all_reduce; the others have no choice [ALLFOLD_ALGORITHM, else auto]
    #[arg(long, value_enum, value_name = "NAME")]
    pub algorithm: Option<Algorithm>,

    /// The columns' unit of bandwidth; JSON is always GB/s
    #[arg(long, value_enum, value_name = "UNIT", default_value_t)]
    pub unit: Unit,

    /// Exit code 1 if the average bus bandwidth is lower
    #[arg(long, value_name = "GB/s", value_parser = bandwidth, allow_negative_numbers = true)]
    pub min_bandwidth: Option<f64>,

    /// Also draw bus bandwidth over size
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,

    /// Say where the time went, below the table
    #[arg(long)]
    pub explain: bool,

    #[command(flatten)]
    pub(crate) foreign: Foreign,
}

impl Options {
    /// Finds bad input before any of the `ranks` ranks starts; `rank` is this process's where it is
    /// one of them.
    ///
    /// What is asked of the system (memory, the folder of `-J`) is asked of this host; under a
    /// launcher the report's folder matters on rank 0 only. `find` looks for its GPUs: in a launcher
    /// that is another process, so that it has nothing of CUDA in it.
    pub fn check(
        &self,
        ranks: usize,
        rank: Option<usize>,
        find: fn() -> Presence,
    ) -> Result<(), Error> {
        if ranks == 0 {
            return Err(Error::NoRanks);
        }
        self.check_values()?;
        self.check_root(ranks)?;
        self.check_neighbour(ranks)?;
        self.check_plot(ranks)?;
        // Outside a launcher all ranks will be children of this process.
        let on_this_host = if rank.is_some() { 1 } else { ranks };
        let Halves { out_of_place, in_place } = self.halves();
        let buffers = match self.agg_iters {
            // From which the GPU's are filled, and to which they are read.
            _ if self.is_on_gpu() => 1,
            1 => usize::from(out_of_place) + usize::from(self.collective.has_data()),
            // Those that are started own theirs, and a message has two.
            calls => calls as usize * if in_place { 1 } else { 2 } + usize::from(out_of_place),
        };
        memory::check(self.maxbytes, on_this_host.saturating_mul(buffers))?;
        if rank.is_none() {
            self.check_gpus(find)?;
        }
        if rank.is_some_and(|rank| rank != 0) {
            return Ok(());
        }
        self.output_file.as_deref().map_or(Ok(()), report::check)?;
        self.plot.as_deref().map_or(Ok(()), plot::check)
    }

    /// How a rank of the benchmark connects: with the transport and the algorithm of the command
    /// line, if given, and its limit as that of every call.
    ///
    /// # Errors
    /// As [`Config::transport`] and [`Config::algorithm`].
    pub fn configure(&self, config: Config) -> allfold::Result<Config> {
        let config = match self.limit() {
            Some(limit) => config.timeout(limit),
            None => config,
        };
        let config = match self.transport {
            Some(transport) => config.transport(transport.name())?,
            None => config,
        };
        match self.algorithm {
            Some(algorithm) => config.algorithm(algorithm.name()),
            None => Ok(config),
        }
    }

    /// The algorithm that is not left to the library.
    pub(crate) fn forced_algorithm(&self) -> Option<String> {
        let given = self.algorithm.map(|algorithm| algorithm.name().to_string());
        let name = given.or_else(|| env::var("ALLFOLD_ALGORITHM").ok());
        let is_forced = |name: &String| {
            // Only this collective has them, and not on GPUs; and a world of one reads no settings.
            let known = Algorithm::value_variants().iter().any(|known| known.name() == name);
            let has_them = self.collective == Collective::AllReduce && !self.is_on_gpu();
            has_them && known && name != Algorithm::Auto.name()
        };
        name.filter(is_forced)
    }

    /// From one size to the next.
    pub(crate) fn step(&self) -> Step {
        match (self.stepfactor, self.stepbytes) {
            (Some(factor), None) => Step::Factor(factor),
            (Some(factor), _) if factor > 1 => Step::Factor(factor),
            (_, Some(bytes)) => Step::Bytes(bytes),
            (None, None) => Step::Factor(DEFAULT_FACTOR),
        }
    }

    /// How long a row may take.
    pub(crate) fn limit(&self) -> Option<Duration> {
        (self.timeout > 0).then(|| Duration::from_secs(self.timeout.into()))
    }

    /// Which halves of a row there are.
    pub(crate) fn halves(&self) -> Halves {
        match self.collective.halves_on_gpu() {
            Some(halves) if self.is_on_gpu() => halves,
            _ => self.collective.halves(self.agg_iters > 1),
        }
    }

    pub(crate) fn check_root(&self, ranks: usize) -> Result<(), Error> {
        match self.root {
            Choice::One(root) if self.collective.has_root() && root >= ranks => {
                Err(Error::Root { root, ranks })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn check_plot(&self, ranks: usize) -> Result<(), Error> {
        let Some(path) = &self.plot else { return Ok(()) };
        if self.collective.bus_factor(ranks) > 0.0 {
            return Ok(());
        }
        let (why, help) = match self.collective.has_data() {
            true => (
                "with one rank no byte crosses a link",
                "give --ranks 2 or more, or leave --plot out",
            ),
            false => (
                "a barrier moves no data",
                "leave --plot out, or choose a collective that moves data",
            ),
        };
        Err(Error::NothingToDraw { subject: plot::subject(path), why, help })
    }

    /// The part of [`check`](Self::check) that gives the same answer on every rank.
    pub(crate) fn check_values(&self) -> Result<(), Error> {
        self.check_device()?;
        if self.ranks == Some(Ranks::Number(0)) {
            return Err(Error::NoRanks);
        }
        if self.iters == 0 {
            return Err(Error::NoIterations);
        }
        let step = self.step();
        if self.minbytes == 0 && matches!(step, Step::Factor(_)) {
            return Err(Error::ZeroSize);
        }
        if self.minbytes > self.maxbytes {
            return Err(Error::SizeOrder { minimum: self.minbytes, maximum: self.maxbytes });
        }
        // A single size needs no step: nccl-tests take `-b 1G -e 1G -f 1`.
        if step.stands_still() && self.minbytes != self.maxbytes {
            return Err(Error::Step { step });
        }
        if !(1..=MOST_STARTED).contains(&self.agg_iters) {
            return Err(Error::Aggregated { calls: self.agg_iters, most: MOST_STARTED });
        }
        if self.agg_iters > 1 && self.unalign > 0 && !self.is_on_gpu() {
            return Err(Error::UnalignedVector);
        }
        if self.per_iter_skip >= self.iters {
            return Err(Error::Skip { skip: self.per_iter_skip, iterations: self.iters });
        }
        let records = self.per_iter_timing.is_on() || self.output_file.is_some();
        if records && self.iters > MOST_RECORDED {
            return Err(Error::Recorded { iterations: self.iters, most: MOST_RECORDED });
        }
        if self.unalign > FARTHEST_UNALIGNED {
            return Err(Error::Unaligned { elements: self.unalign, most: FARTHEST_UNALIGNED });
        }
        let at_the_end = [
            (self.output_file.is_some(), "-J"),
            (self.plot.is_some(), "--plot"),
            (self.explain, "--explain"),
            (self.min_bandwidth.is_some(), "--min-bandwidth"),
        ];
        if let Some((_, option)) = at_the_end.iter().find(|(is_given, _)| *is_given)
            && self.run_cycles == 0
        {
            return Err(Error::Endless { option });
        }
        if let Some(path) = self.output_file.as_deref().filter(|path| !has_suffix(path, "json")) {
            return Err(Error::Suffix { option: "-J", suffix: "json", path: path.into() });
        }
        self.plot.as_deref().map_or(Ok(()), plot::check_name)
    }
}

/// As nccl-tests look for it: any case, and `.json` alone is one too.
pub(crate) fn has_suffix(path: &Path, suffix: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(suffix))
}

/// Reads a bandwidth in GB/s.
fn bandwidth(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("a bandwidth is a number of GB/s above 0, such as 0.5".into()),
    }
}

/// nccl-tests' default is 1, and so steps of bytes; sizes from 8 bytes to 64 MiB need a factor.
const DEFAULT_FACTOR: u64 = 2;
/// 8 MB a rank and size, on every rank.
const MOST_RECORDED: u32 = 1_000_000;
/// A page of the smallest elements: beyond it the alignments come again.
const FARTHEST_UNALIGNED: u32 = 4_096;
/// A communicator takes 1,024 outstanding calls.
const MOST_STARTED: u32 = 1024;

mod device;
#[cfg(test)]
mod tests;
