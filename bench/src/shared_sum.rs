//! `allfold bench reduce --probe`: how fast processes add up buffers in memory that all of them see,
//! with nothing around it. What a host reaches here is what an all-reduce within it can hope for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use allfold::probe::{SharedBuffers, SharedSum};
use clap::Args;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::console::{Console, State};
use crate::ladder::{self, Ladder, Row};
use crate::number::{bandwidth_cell, cell};
use crate::{Error, memory};

/// What only the probe asks for.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProbeOptions {
    /// What memory allows that all processes of this host see: ranks whose float buffers lie in it
    /// sum a part each and write it into all of them, with no protocol
    #[arg(long, conflicts_with_all = ["datatype", "op"])]
    probe: bool,

    /// This process is one of the ranks
    #[arg(long, hide = true, value_name = "RANK", requires_all = ["probe", "probe_memory"])]
    probe_rank: Option<usize>,

    /// Where the ranks find their memory
    #[arg(long, hide = true, value_name = "PATH", requires = "probe_rank")]
    probe_memory: Option<PathBuf>,
}

impl ProbeOptions {
    pub(crate) fn is_given(&self) -> bool {
        self.probe
    }

    /// Measures it, or is one of the ranks; without sizes of the user's, those of the ladder.
    pub(crate) fn run(
        &self,
        ranks: Option<&str>,
        sizes: &[u64],
        duration: Duration,
        out: &mut dyn Write,
    ) -> Result<(), Error> {
        let ranks = match ranks.map_or(Ok(2), str::parse) {
            Ok(ranks) if (1..=MOST_RANKS).contains(&ranks) => ranks,
            _ => return Err(refused(format!("--ranks: the probe has 1 to {MOST_RANKS}"))),
        };
        let sizes: Vec<usize> = match sizes {
            [] => Ladder::sizes(FIRST, LAST).collect(),
            sizes => {
                sizes.iter().map(|bytes| usize::try_from(*bytes).unwrap_or(usize::MAX)).collect()
            }
        };
        if let Some(bytes) = sizes.iter().find(|bytes| **bytes == 0 || !bytes.is_multiple_of(8)) {
            // Of 4 bytes is the ladder's own first.
            if *bytes != FIRST {
                return Err(Error::KernelSize { bytes: *bytes as u64 });
            }
        }
        let ladder = Ladder { sizes, budget_us: duration.as_secs_f64() * 1e6 };
        match (&self.probe_rank, &self.probe_memory) {
            (Some(rank), Some(path)) => climb(&ladder, *rank, ranks, path, out),
            _ => start(&ladder, ranks, duration, out),
        }
    }
}

/// One rank; the first prints.
fn climb(
    ladder: &Ladder,
    rank: usize,
    ranks: usize,
    path: &Path,
    out: &mut dyn Write,
) -> Result<(), Error> {
    // Ranks wait for each other for ever: none outlives who started them.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let bytes = ladder.buffer_bytes(ranks);
    let problem = |error: std::io::Error| refused(format!("{}: {error}", path.display()));
    let mut own = SharedSum::open(path, rank, ranks, bytes).map_err(problem)?;
    let mut console = Console::new(out);
    ladder.climb(&mut own, |found| {
        if rank == 0 {
            console.print(&row(&found, ranks));
        }
    });
    match console.into_state() {
        State::Failed(error) => Err(Error::Output(error)),
        State::Open | State::Closed => Ok(()),
    }
}

/// The ranks, each a process of this program.
fn start(
    ladder: &Ladder,
    ranks: usize,
    duration: Duration,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let bytes = ladder.buffer_bytes(ranks);
    memory::check(bytes as u64, ranks)?;
    let problem = |error: std::io::Error| refused(format!("the probe cannot start: {error}"));
    let buffers = SharedBuffers::new(ranks, bytes).map_err(problem)?;
    let mut console = Console::new(out);
    console.print(&header(ranks));
    let sizes: Vec<String> = ladder.sizes.iter().map(|bytes| bytes.to_string()).collect();
    let mut running = Ranks(Vec::new());
    for rank in 0..ranks {
        let mut command = Command::new(std::env::current_exe().map_err(problem)?);
        command.args(["bench", "reduce", "--probe", "--ranks", &ranks.to_string()]);
        command.args(["--sizes", &sizes.join(","), "--probe-rank", &rank.to_string()]);
        command.args(["--duration", &duration.as_secs_f64().to_string()]);
        command.arg("--probe-memory").arg(buffers.path());
        if rank > 0 {
            command.stdout(Stdio::null());
        }
        running.0.push(command.stdin(Stdio::null()).spawn().map_err(problem)?);
    }
    running.wait()
}

/// None outlives this.
struct Ranks(Vec<Child>);

impl Ranks {
    /// Until all have ended well, or one has not: the others would wait for it for ever.
    fn wait(&mut self) -> Result<(), Error> {
        loop {
            let mut are_running = false;
            for (rank, child) in self.0.iter_mut().enumerate() {
                match child.try_wait() {
                    Ok(Some(ended)) if ended.success() => {}
                    Ok(Some(ended)) => {
                        return Err(refused(format!(
                            "rank {rank} of the probe ended with {ended}"
                        )));
                    }
                    Ok(None) => are_running = true,
                    Err(error) => {
                        return Err(refused(format!("rank {rank} of the probe: {error}")));
                    }
                }
            }
            if !are_running {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

fn refused(problem: String) -> Error {
    Error::Link { problem, help: "see `allfold bench reduce --help`" }
}

fn header(ranks: usize) -> String {
    format!(
        "# allfold version {} what memory allows that {ranks} processes see: each sums a part of \
         all float buffers and writes it into all, two meetings by flags, no protocol\n\
         # The time of a call is that of the slowest rank; at least {} calls of each size.\n\
         #\n\
         # {:>10}  {:>7}  {:>8}  {:>8}  {:>8}  {:>6}  {:>6}  {:>6}\n\
         # {:>10}  {:>7}  {:>8}  {:>8}  {:>8}  {:>6}  {:>6}  {:>6}\n",
        env!("CARGO_PKG_VERSION"),
        ladder::LEAST_CALLS,
        "size",
        "calls",
        "median",
        "least",
        "p95",
        "algbw",
        "busbw",
        "#wrong",
        "(B)",
        "",
        "(us)",
        "(us)",
        "(us)",
        "(GB/s)",
        "(GB/s)",
        ""
    )
}

fn row(row: &Row, ranks: usize) -> String {
    // A median of nothing is a clock that is too coarse.
    let algorithm = row.bytes as f64 / row.median_us.max(1e-3) / 1e3;
    let bus = algorithm * 2.0 * (ranks - 1) as f64 / ranks as f64;
    format!(
        "  {:>10}  {:>7}  {}  {}  {}  {}  {}  {:>6}\n",
        row.bytes,
        row.calls,
        cell(row.median_us, 8),
        cell(row.least_us, 8),
        cell(row.p95_us, 8),
        bandwidth_cell(algorithm),
        bandwidth_cell(bus),
        row.wrong
    )
}

const FIRST: usize = 4;
const LAST: usize = 64 << 20;
/// More than any host has cores for, and a flag for each lies within a page.
const MOST_RANKS: usize = 64;
/// At ranks that take seconds; a core that measures is not disturbed by it.
const LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_dies_ends_the_others_with_an_error() {
        let start = |line: &str| Command::new("sh").args(["-c", line]).spawn().unwrap();
        // Rank 0 would wait for ever.
        let mut ranks = Ranks(vec![start("exec sleep 1000000"), start("exit 7")]);
        let error = ranks.wait().unwrap_err();
        assert!(error.to_string().contains("rank 1 of the probe ended with exit status: 7"));
        let first = ranks.0[0].id();
        drop(ranks);
        assert!(!Path::new(&format!("/proc/{first}")).exists(), "rank 0 is still there");
        Ranks(vec![start("exit 0"), start("exit 0")]).wait().unwrap();
    }
}
