//! The options of `allfold bench`: nccl-tests' names and letters, checked before any rank starts.

use std::env;
use std::path::{Path, PathBuf};

use allfold::{Config, Identity};
use clap::{Args, ValueEnum};

use crate::choices::{Algorithm, Choice, DataType, Op, one_or_all, rank_or_all};
use crate::collective::Collective;
use crate::{Error, memory, report, size};

/// Measures a collective as nccl-tests do, on hosts without GPUs.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The collective; nccl-tests' other names (all_reduce_perf) and those with dashes mean the
    /// same
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
    #[arg(short = 'd', long, value_name = "TYPE", default_value = "float", value_parser = one_or_all::<DataType>())]
    pub datatype: Choice<DataType>,

    /// How the ranks' data is combined, where it is
    #[arg(short = 'o', long, value_name = "OP", default_value = "sum", value_parser = one_or_all::<Op>())]
    pub op: Choice<Op>,

    /// The rank that differs from the others, where one does, or all in turn
    #[arg(short = 'r', long, value_name = "RANK", default_value = "0", value_parser = rank_or_all, allow_negative_numbers = true)]
    pub root: Choice<usize>,

    /// Algorithm of all_reduce; the others have no choice [ALLFOLD_ALGORITHM, else auto]
    #[arg(long, value_enum, value_name = "NAME")]
    pub algorithm: Option<Algorithm>,

    /// Also write a JSON report; where FILE exists, to FILE.0, FILE.1, ...
    #[arg(short = 'J', long = "output-file", alias = "output_file", value_name = "FILE")]
    pub output_file: Option<PathBuf>,
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
        self.check_root(ranks)?;
        let identity = Identity::from_env().ok().flatten();
        // Outside a launcher all ranks will be children of this process.
        let on_this_host = if identity.is_some() { 1 } else { ranks };
        let halves = self.collective.halves();
        let buffers = usize::from(halves.out_of_place) + usize::from(self.collective.has_data());
        memory::check(self.maxbytes, on_this_host.saturating_mul(buffers))?;
        match &self.output_file {
            Some(path) if identity.is_none_or(|identity| identity.rank == 0) => report::check(path),
            _ => Ok(()),
        }
    }

    /// How a rank of the benchmark connects: with the algorithm of the command line, if there is
    /// one.
    ///
    /// # Errors
    /// As [`Config::algorithm`].
    pub fn configure(&self, config: Config) -> allfold::Result<Config> {
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
            // Only this collective has them; and a world of one reads no settings.
            let known = Algorithm::value_variants().iter().any(|known| known.name() == name);
            self.collective == Collective::AllReduce && known && name != Algorithm::Auto.name()
        };
        name.filter(is_forced)
    }

    pub(crate) fn check_root(&self, ranks: usize) -> Result<(), Error> {
        match self.root {
            Choice::One(root) if self.collective.has_root() && root >= ranks => {
                Err(Error::Root { root, ranks })
            }
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
        assert_eq!(
            (options.datatype, options.op),
            (Choice::One(DataType::Float), Choice::One(Op::Sum))
        );
        assert_eq!((options.ranks, options.output_file.is_none()), (None, true));
        assert!(options.check(2).is_ok());

        let short =
            parse("--ranks 4 -b 1K -e 16M -f 4 -n 5 -w 2 -c 3 -d double -o avg -r 3 -J a.json");
        let long = parse(
            "all_reduce_perf --ranks=4 --minbytes 1K --maxbytes 16M --stepfactor 4 --iters 5 \
             --warmup_iters 2 --check 3 --datatype double --op avg --root 3 --output_file a.json",
        );
        assert_eq!(format!("{:?}", short.unwrap()), format!("{:?}", long.unwrap()));
        assert!(parse("--warmup-iters 2 --output-file a.json").is_ok());
    }

    #[test]
    fn every_name_of_a_collective_is_known_and_others_are_refused() {
        for (names, collective) in [
            ("all_reduce all-reduce allreduce", Collective::AllReduce),
            ("all_gather all-gather", Collective::AllGather),
            ("reduce_scatter reduce-scatter", Collective::ReduceScatter),
            ("broadcast", Collective::Broadcast),
            ("reduce", Collective::Reduce),
            ("alltoall all_to_all all-to-all", Collective::AllToAll),
            ("gather", Collective::Gather),
            ("scatter", Collective::Scatter),
            ("sendrecv send_recv send-recv", Collective::SendRecv),
            ("all_gather_v", Collective::AllGatherV),
            ("barrier", Collective::Barrier),
        ] {
            for name in names.split(' ').chain([collective.program()]) {
                assert_eq!(parse(name).unwrap().collective, collective, "{name}");
            }
        }
        for line in ["all-shout", "-d f8e4m3", "-o mulsum", "-b 8X", "-b -1K", "-n -3", "-f x"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        for line in ["-r -1", "-r x", "--algorithm measured", "-d all,float"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn all_is_a_choice() {
        let options = parse("reduce -d all -o all -r all").unwrap();
        assert_eq!((options.datatype, options.op), (Choice::All, Choice::All));
        assert_eq!(options.root, Choice::All);
        let options = parse("-d bfloat16 -o prod").unwrap();
        assert_eq!(options.datatype, Choice::One(DataType::Bfloat16));
        assert_eq!(options.op, Choice::One(Op::Prod));
    }

    #[test]
    fn an_algorithm_is_put_into_the_configuration() {
        for name in ["ring", "tree", "recursive-doubling", "halving-doubling"] {
            let options = parse(&format!("--algorithm {name}")).unwrap();
            assert_eq!(options.forced_algorithm().as_deref(), Some(name));
            let config = Config::new(0, 1, "127.0.0.1:1").unwrap();
            let expected = config.clone().algorithm(name).unwrap();
            let config = options.configure(config).unwrap();
            assert_eq!(format!("{config:?}"), format!("{expected:?}"));
        }
        assert_eq!(parse("--algorithm auto").unwrap().forced_algorithm(), None);
    }

    #[test]
    fn bad_input_is_found_before_the_start() {
        assert!(matches!(refused("-b 1K -e 8"), Error::SizeOrder { .. }));
        assert!(matches!(refused("-f 1"), Error::Factor { factor: 1 }));
        assert!(matches!(refused("-f 0"), Error::Factor { factor: 0 }));
        assert!(matches!(refused("-b 0"), Error::ZeroSize));
        assert!(matches!(refused("-n 0"), Error::NoIterations));
        assert!(matches!(refused("--ranks 0"), Error::NoRanks));
        assert!(matches!(refused("reduce -r 2"), Error::Root { root: 2, ranks: 2 }));
        assert!(parse("all_reduce -r 2").unwrap().check(2).is_ok());
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
