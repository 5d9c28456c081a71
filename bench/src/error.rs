//! What can go wrong in a benchmark, and the exit code it means.

use std::fmt;
use std::io;
use std::path::PathBuf;

use allfold::ErrorKind;
use allfold::error::{EXIT_TRY_AGAIN, EXIT_USAGE};

use crate::number::general;
use crate::size::{Step, binary};

/// Why a benchmark did not end well; `Display` and `Debug` print the same line.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `--ranks 0`.
    #[error("--ranks 0: a benchmark needs at least one rank")]
    NoRanks,

    /// `-n 0`.
    #[error("-n 0: at least one timed iteration is needed")]
    NoIterations,

    /// `-b 0`.
    #[error("-b 0: sizes grow by multiplication, and 0 never grows")]
    ZeroSize,

    /// `-b` is above `-e`.
    #[error("-b {minimum} is larger than -e {maximum}: there is no size to measure")]
    SizeOrder {
        /// The smallest size, in bytes.
        minimum: u64,
        /// The largest size, in bytes.
        maximum: u64,
    },

    /// A step with which the sizes never reach `-e`.
    #[error("{}", standing_still(*.step))]
    Step {
        /// The step.
        step: Step,
    },

    /// `-m` is no number of calls that can be started.
    #[error("-m {calls}: between 1 and {most} calls can be started together")]
    Aggregated {
        /// The number of calls.
        calls: u32,
        /// The largest number.
        most: u32,
    },

    /// `-u` with `-m`.
    #[error("-u with -m: a call that is started owns its buffer, which begins where it begins")]
    UnalignedVector,

    /// `-n` with more times than are kept.
    #[error("-n {iterations}: with -I or -J at most {most} iterations are recorded")]
    Recorded {
        /// Iterations of a size.
        iterations: u32,
        /// The largest number.
        most: u32,
    },

    /// `-u` is too far.
    #[error("-u {elements}: buffers are misaligned by at most {most} elements")]
    Unaligned {
        /// The number of elements.
        elements: u32,
        /// The largest number.
        most: u32,
    },

    /// What is done at the end of a sweep that has none.
    #[error("-N 0 with {option}: it is for the end, and a sweep for ever has none")]
    Endless {
        /// The option.
        option: &'static str,
    },

    /// `-K` leaves nothing to summarise.
    #[error("-K {skip} leaves none of the {iterations} iterations (-n) to summarise")]
    Skip {
        /// Iterations to leave out.
        skip: u32,
        /// Iterations of a size.
        iterations: u32,
    },

    /// An option of nccl-tests that has no meaning here.
    #[error("{option} {value}: {why}")]
    Foreign {
        /// The option.
        option: &'static str,
        /// The value that was given.
        value: String,
        /// Why it has none.
        why: &'static str,
        /// What to do instead.
        help: &'static str,
    },

    /// What a benchmark on GPUs has not.
    #[error("{what} with --device gpu: {why}")]
    NotOnGpu {
        /// The collective, or the option.
        what: String,
        /// Why not.
        why: &'static str,
        /// What to do instead.
        help: &'static str,
    },

    /// A GPU has not so much memory.
    #[error("-e {maximum}: the GPU refuses a buffer of {}: {problem}", binary(*.maximum))]
    GpuAllocation {
        /// The largest size, in bytes.
        maximum: u64,
        /// CUDA's words.
        problem: String,
    },

    /// `-r` is no rank.
    #[error("-r {root}: there are {ranks} ranks, counted from 0")]
    Root {
        /// The root.
        root: usize,
        /// The world size.
        ranks: usize,
    },

    /// The buffers do not fit into this host.
    #[error(
        "-e {maximum} needs {} of memory on this host, and {} is available",
        binary(*.needed),
        binary(*.available)
    )]
    Memory {
        /// The largest size, in bytes.
        maximum: u64,
        /// What the buffers of all ranks on this host take, in bytes.
        needed: u64,
        /// What is there, in bytes.
        available: u64,
    },

    /// A buffer was refused by the system.
    #[error("-e {maximum}: the system refuses a buffer of {}", binary(*.maximum))]
    Allocation {
        /// The largest size, in bytes.
        maximum: u64,
    },

    /// A file that cannot be of the one format there is.
    #[error("{option} {}: the suffix must be {suffix}, the one format there is", .path.display())]
    Suffix {
        /// The option that names it.
        option: &'static str,
        /// The format.
        suffix: &'static str,
        /// The file.
        path: PathBuf,
    },

    /// A file cannot be written.
    #[error("{option} {}: {problem}", .path.display())]
    Report {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// The table cannot be printed.
    #[error("cannot print the table: {0}")]
    Output(io::Error),

    /// Another rank could not go on and says why in its own error.
    #[error("another rank stopped the benchmark; its own error says why")]
    AnotherRank,

    /// Results differ from the exact ones.
    #[error(
        "wrong data: {wrong} elements differ from the exact result, in {failed} of {rows} rows"
    )]
    Wrong {
        /// Elements that differ, over all ranks and rows.
        wrong: u64,
        /// Rows with a wrong element.
        failed: usize,
        /// Rows measured.
        rows: usize,
    },

    /// A link that cannot be measured.
    #[error("{problem}")]
    Link {
        /// Why.
        problem: String,
        /// What to do.
        help: &'static str,
    },

    /// Links that did not come to be, or broke.
    #[error("{failed} of {rows} rows could not be measured: {problem}")]
    LinkFailed {
        /// Rows without figures.
        failed: usize,
        /// Rows.
        rows: usize,
        /// Why the first one has none.
        problem: String,
    },

    /// Kernels reduce whole elements.
    #[error("--sizes {bytes}: a buffer holds whole elements, of up to 8 bytes")]
    KernelSize {
        /// The size.
        bytes: u64,
    },

    /// A picture of bus bandwidths that there are not.
    #[error("{subject}: no bus bandwidth to draw: {why}")]
    NothingToDraw {
        /// The option with its file, or the report.
        subject: String,
        /// Why there are none.
        why: &'static str,
        /// What to do.
        help: &'static str,
    },

    /// A report that cannot be drawn.
    #[error("{}: {problem}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },

    /// A row, or a call between the rows, took longer than `-T`.
    #[error("{row} took longer than {seconds} s (-T){}", .problem.as_ref().map(|p| format!(": {p}")).unwrap_or_default())]
    TimedOut {
        /// Which size, type and operation, or what the ranks did else.
        row: String,
        /// The limit.
        seconds: u32,
        /// Which call, where a single one took longer, and who was late.
        problem: Option<String>,
    },

    /// The average bus bandwidth is below `--min-bandwidth`.
    #[error(
        "too slow: the average bus bandwidth is {} GB/s, and --min-bandwidth is {} GB/s",
        general(*.average),
        general(*.minimum)
    )]
    TooSlow {
        /// What was measured, in GB/s.
        average: f64,
        /// What was asked for, in GB/s.
        minimum: f64,
        /// What to do.
        help: &'static str,
    },

    /// A collective failed.
    #[error(transparent)]
    Collective(#[from] allfold::Error),
}

impl Error {
    /// The exit code a program should end with: 1 wrong data, 2 usage or input, 75 another rank;
    /// a collective's error brings its own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Wrong { .. } | Self::TooSlow { .. } => EXIT_CHECK_FAILED,
            Self::AnotherRank | Self::TimedOut { .. } | Self::LinkFailed { .. } => EXIT_TRY_AGAIN,
            Self::Collective(error) => error.exit_code(),
            _ => EXIT_USAGE,
        }
    }

    /// What to do about it, where there is something to do.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::NoRanks => "give the number of ranks, such as --ranks 4",
            Self::NoIterations => "leave -n out for 20 iterations, or give 1 or more",
            Self::ZeroSize => "start at one element: -b 4 (float) or -b 8 (double)",
            Self::SizeOrder { .. } => {
                "give the smallest size as -b and the largest as -e; K, M and G are powers of 1024"
            }
            Self::Step { step: Step::Factor(_) } => {
                "use -f 2; for a single size give it as -b and as -e"
            }
            Self::Step { step: Step::Bytes(_) } => {
                "use -i 1M; for a single size give it as -b and as -e"
            }
            Self::Aggregated { .. } => "leave -m out, or give a smaller one and more -n",
            Self::UnalignedVector => "leave one of them out",
            Self::Recorded { .. } => "give a smaller -n, or leave -I and -J out",
            Self::Unaligned { .. } => "give a smaller -u; 1 is as unaligned as it gets",
            Self::Endless { .. } => "give a number of cycles, such as -N 100",
            Self::Skip { .. } => "give a smaller -K, or more iterations with -n",
            Self::Foreign { help, .. } | Self::NotOnGpu { help, .. } => help,
            Self::GpuAllocation { .. } => {
                "give a smaller -e; `nvidia-smi` shows who uses the memory"
            }
            Self::Root { .. } => "give a rank that there is, or all",
            Self::Memory { .. } | Self::Allocation { .. } => {
                "give a smaller -e, or run fewer ranks on this host"
            }
            Self::Suffix { suffix: "svg", .. } => "name the file like results.svg",
            Self::Suffix { .. } => "name the file like results.json",
            Self::Report { .. } => "name a file in a folder that exists and that you may write to",
            Self::Wrong { .. } => {
                "do not trust results of these hosts: run two ranks at a time to find the host, \
                 and report it with this table"
            }
            Self::TimedOut { .. } => {
                "look for a slow link with `allfold bench link`; else give a larger -T, fewer -n \
                 or a smaller -e"
            }
            Self::Link { help, .. }
            | Self::NothingToDraw { help, .. }
            | Self::TooSlow { help, .. } => help,
            Self::LinkFailed { .. } => {
                "UDP between the hosts must be open on all ports: the measurement takes a free one"
            }
            Self::KernelSize { .. } => "give multiples of 8",
            Self::Unreadable { .. } => {
                "give JSON reports with rows, as `allfold bench -J FILE.json` writes them"
            }
            Self::Collective(error) if matches!(error.kind(), ErrorKind::NoGpu { .. }) => {
                let help = error.help().map_or(String::new(), |help| format!("{help}; "));
                return Some(help + "--device cpu measures on processors");
            }
            Self::Collective(error) => return error.help(),
            Self::Output(_) | Self::AnotherRank => return None,
        };
        Some(help.into())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn standing_still(step: Step) -> String {
    match step {
        Step::Factor(factor) => {
            format!("-f {factor}: with a step factor below 2 the sizes never grow from -b to -e")
        }
        Step::Bytes(_) => "-i 0: the sizes never grow from -b to -e".into(),
    }
}

/// A check failed.
const EXIT_CHECK_FAILED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_and_end_with_the_code_of_the_table() {
        let wrong = Error::Wrong { wrong: 12, failed: 1, rows: 22 };
        assert_eq!(
            wrong.to_string(),
            "wrong data: 12 elements differ from the exact result, in 1 of 22 rows"
        );
        assert_eq!(format!("{wrong:?}"), wrong.to_string());
        assert_eq!(wrong.exit_code(), 1);
        assert_eq!(Error::NoRanks.exit_code(), 2);
        assert_eq!(Error::AnotherRank.exit_code(), 75);

        let memory = Error::Memory { maximum: 1 << 36, needed: 1 << 38, available: 3 << 29 };
        assert_eq!(
            memory.to_string(),
            "-e 68719476736 needs 256.0 GiB of memory on this host, and 1.5 GiB is available"
        );
    }

    #[test]
    fn a_collectives_error_passes_through() {
        let kind = ErrorKind::NoEnvironment { seen: String::new(), help: None };
        let error = Error::from(allfold::Error::from(kind));
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with("no launcher says"));
        assert!(error.help().unwrap().contains("allfold run"));
    }
}
