//! The options of `allfold bench`: nccl-tests' names and letters, checked before any rank starts.

use std::path::{Path, PathBuf};

use allfold::{Identity, ReduceOp};
use clap::{Args, ValueEnum};

use crate::{Error, memory, report, size};

/// Measures a collective as nccl-tests do, on hosts without GPUs.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The collective; nccl-tests' names (all_reduce, all_reduce_perf) mean the same
    #[arg(value_enum, value_name = "COLLECTIVE", default_value_t)]
    pub collective: Collective,

    /// Number of ranks [outside a launcher: 2]; no short form, because -n is --iters
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub ranks: Option<usize>,

    /// Smallest size in bytes; K, M and G are powers of 1024
    #[arg(short = 'b', long, value_name = "SIZE", default_value = "8", value_parser = size::parse, allow_hyphen_values = true)]
    pub minbytes: u64,

    /// Largest size in bytes (nccl-tests, without -b and -e: one row of 32M)
    #[arg(short = 'e', long, value_name = "SIZE", default_value = "64M", value_parser = size::parse, allow_hyphen_values = true)]
    pub maxbytes: u64,

    /// Each size is so many times the one before
    #[arg(
        short = 'f',
        long,
        value_name = "FACTOR",
        default_value_t = 2,
        allow_negative_numbers = true
    )]
    pub stepfactor: u64,

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

    /// Calls of each size whose data is checked; 0 checks nothing
    #[arg(short = 'c', long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub check: u32,

    /// Element type
    #[arg(short = 'd', long, value_enum, value_name = "TYPE", default_value_t)]
    pub datatype: DataType,

    /// How the ranks' data is combined
    #[arg(short = 'o', long, value_enum, value_name = "OP", default_value_t)]
    pub op: Op,

    /// Also write a JSON report; where FILE exists, to FILE.0, FILE.1, ...
    #[arg(short = 'J', long = "output-file", alias = "output_file", value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

/// The collective under test.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Collective {
    /// Every rank gets the combination of all ranks' data.
    #[default]
    #[value(
        help = None,
        aliases = ["all_reduce", "allreduce", "all_reduce_perf"]
    )]
    AllReduce,
}

/// The element type, by nccl-tests' name.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataType {
    /// 32 bits.
    #[default]
    #[value(help = None)]
    Float,
    /// 64 bits.
    #[value(help = None)]
    Double,
}

/// How data is combined, by nccl-tests' name.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// The sum over all ranks.
    #[default]
    #[value(help = None)]
    Sum,
    /// The sum divided by the number of ranks.
    #[value(help = None)]
    Avg,
}

impl Options {
    /// Finds bad input before any of the `ranks` ranks starts.
    ///
    /// What is asked of the system (memory, the folder of `-J`) is asked of this host; under a
    /// launcher the report's folder matters on rank 0 only.
    pub fn check(&self, ranks: usize) -> Result<(), Error> {
        if ranks == 0 {
            return Err(Error::NoRanks);
        }
        self.check_values()?;
        let identity = Identity::from_env().ok().flatten();
        // Outside a launcher all ranks will be children of this process.
        let on_this_host = if identity.is_some() { 1 } else { ranks };
        memory::check(self.maxbytes, on_this_host)?;
        match &self.output_file {
            Some(path) if identity.is_none_or(|identity| identity.rank == 0) => report::check(path),
            _ => Ok(()),
        }
    }

    /// The part of [`check`](Self::check) that gives the same answer on every rank.
    pub(crate) fn check_values(&self) -> Result<(), Error> {
        if self.ranks == Some(0) {
            return Err(Error::NoRanks);
        }
        if self.iters == 0 {
            return Err(Error::NoIterations);
        }
        if self.minbytes == 0 {
            return Err(Error::ZeroSize);
        }
        if self.minbytes > self.maxbytes {
            return Err(Error::SizeOrder { minimum: self.minbytes, maximum: self.maxbytes });
        }
        // A single size needs no factor: nccl-tests take `-b 1G -e 1G -f 1`.
        if self.stepfactor < 2 && self.minbytes != self.maxbytes {
            return Err(Error::Factor { factor: self.stepfactor });
        }
        match &self.output_file {
            Some(path) if !is_json(path) => Err(Error::Suffix { path: path.clone() }),
            _ => Ok(()),
        }
    }
}

impl Collective {
    /// The name of nccl-tests' program for it.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce_perf",
        }
    }
}

impl Op {
    /// nccl-tests' name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Avg => "avg",
        }
    }
}

impl From<Op> for ReduceOp {
    fn from(op: Op) -> Self {
        match op {
            Op::Sum => Self::Sum,
            Op::Avg => Self::Avg,
        }
    }
}

/// As nccl-tests look for it: any case, and `.json` alone is one too.
fn is_json(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('.').is_some_and(|(_, suffix)| suffix.eq_ignore_ascii_case("json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Result<Options, clap::Error> {
        Line::try_parse_from(format!("bench {line}").split_whitespace()).map(|l| l.options)
    }

    fn refused(line: &str) -> Error {
        parse(line).unwrap().check(2).unwrap_err()
    }

    #[test]
    fn defaults_and_names_are_nccl_tests() {
        let options = parse("").unwrap();
        assert_eq!((options.minbytes, options.maxbytes), (8, 64 << 20));
        assert_eq!((options.stepfactor, options.iters), (2, 20));
        assert_eq!((options.warmup_iters, options.check), (1, 1));
        assert_eq!((options.datatype, options.op), (DataType::Float, Op::Sum));
        assert_eq!((options.ranks, options.output_file.is_none()), (None, true));
        assert!(options.check(2).is_ok());

        let short = parse("--ranks 4 -b 1K -e 16M -f 4 -n 5 -w 2 -c 3 -d double -o avg -J a.json");
        let long = parse(
            "all_reduce_perf --ranks=4 --minbytes 1K --maxbytes 16M --stepfactor 4 --iters 5 \
             --warmup_iters 2 --check 3 --datatype double --op avg --output_file a.json",
        );
        assert_eq!(format!("{:?}", short.unwrap()), format!("{:?}", long.unwrap()));
        assert!(parse("--warmup-iters 2 --output-file a.json").is_ok());
    }

    #[test]
    fn every_name_of_all_reduce_is_known_and_others_are_refused() {
        for name in ["all-reduce", "all_reduce", "allreduce", "all_reduce_perf"] {
            assert_eq!(parse(name).unwrap().collective, Collective::AllReduce);
        }
        for line in ["all-shout", "-d half", "-o max", "-b 8X", "-b -1K", "-n -3", "-f x"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn bad_input_is_found_before_the_start() {
        assert!(matches!(refused("-b 1K -e 8"), Error::SizeOrder { .. }));
        assert!(matches!(refused("-f 1"), Error::Factor { factor: 1 }));
        assert!(matches!(refused("-f 0"), Error::Factor { factor: 0 }));
        assert!(matches!(refused("-b 0"), Error::ZeroSize));
        assert!(matches!(refused("-n 0"), Error::NoIterations));
        assert!(matches!(refused("--ranks 0"), Error::NoRanks));
        assert!(matches!(refused("-J out.txt"), Error::Suffix { .. }));
        assert!(matches!(refused("-J json"), Error::Suffix { .. }));
        assert!(matches!(refused("-J /no/such/folder/out.json"), Error::Report { .. }));
        assert!(matches!(refused("-e 1000000G"), Error::Memory { .. }));
        assert!(matches!(parse("").unwrap().check(0).unwrap_err(), Error::NoRanks));
        assert!(parse("-b 1K -e 1K -f 1").unwrap().check(1).is_ok());
    }

    #[test]
    fn the_suffix_is_found_as_nccl_tests_do() {
        for (path, yes) in [
            ("a.json", true),
            ("a.b.JSON", true),
            (".json", true),
            ("json", false),
            ("a.json/b", false),
            ("a.json.txt", false),
            ("a.", false),
        ] {
            assert_eq!(is_json(Path::new(path)), yes, "{path}");
        }
    }
}
