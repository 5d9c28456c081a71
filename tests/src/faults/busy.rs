//! A machine that has four times as much to do as it can: slowness is no death.

use std::fmt;
use std::hint::black_box;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp, Result};

use super::Programs;
use super::victim::{MARK, mark};
use crate::{Job, Process, clean_command};

/// What a world said of a busy machine.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Processes that did nothing but keep cores busy.
    pub spinning: usize,
    /// What each rank said in the end: its calls, and how long they took.
    pub ranks: Vec<String>,
    /// Whatever was not as it should be.
    pub problems: Vec<String>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} processes that spin beside {RANKS} ranks", self.spinning)?;
        self.ranks.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

/// Keeps every core busy four times over for so long, while a world of four makes calls.
///
/// # Errors
/// Where the number of cores is unknown.
pub fn run(programs: &Programs, seconds: u64) -> std::result::Result<Told, String> {
    let cores = available_parallelism().map_err(|error| format!("count cores: {error}"))?.get();
    let (program, first) = programs.rank.split_first().ok_or("no program")?;
    let script = |name: &str, seconds: u64| {
        let mut words: Vec<String> = first.to_vec();
        words.extend([name.into(), seconds.to_string()]);
        words
    };
    let mut told = Told { spinning: cores * TIMES, ..Told::default() };
    // They end by themselves, should nobody be left to end them.
    let spin = || -> Command {
        let mut command = clean_command(program);
        command.args(script("spin", seconds + 60));
        command
    };
    let _spinning: Vec<Process> = (0..told.spinning).map(|_| Process::start(&mut spin())).collect();
    let words = script("calls-for", seconds);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut ranks = Job::new(RANKS).start(program, &words);
    for (rank, process) in ranks.iter_mut().enumerate() {
        told.ranks.push(process.wait_for_line_within(
            &format!("{MARK}{rank} "),
            Duration::from_secs(seconds) + LONGEST_START,
        )?);
    }
    for (rank, process) in ranks.into_iter().enumerate() {
        let ended = process.wait();
        let lines = ended.errors().into_iter().map(|line| format!("rank {rank}: {line}"));
        told.problems.extend(lines);
        if ended.code() != 0 {
            told.problems.push(format!("rank {rank} ended with code {}", ended.code()));
        }
    }
    Ok(told)
}

/// Inside a rank: makes calls for so long, and says how long they took.
///
/// # Errors
/// That of a call.
pub fn call_for(world: &Communicator, limit: Duration) -> Result<()> {
    let began = Instant::now();
    let mut times = Vec::new();
    loop {
        // All ranks stop at the same call.
        let wish = f32::from(u8::from(world.rank() == 0 && began.elapsed() >= limit));
        let mut buffer = vec![wish; ELEMENTS];
        let since = Instant::now();
        world.all_reduce(&mut buffer, ReduceOp::Sum)?;
        times.push(since.elapsed());
        if buffer.first() == Some(&1.0) {
            break;
        }
    }
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    let (p50, p99, max) = (at(50), at(99), at(100));
    let calls = times.len();
    let words = format_args!("{calls} calls, p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms");
    mark(world.rank(), words);
    Ok(())
}

/// Inside a process that only keeps a core busy.
pub fn spin_for(limit: Duration) {
    let began = Instant::now();
    while began.elapsed() < limit {
        (0..ROUNDS).for_each(|round| _ = black_box(round));
    }
}

const RANKS: usize = 4;
/// Processes that spin, for each core.
const TIMES: usize = 4;
const ELEMENTS: usize = 40_000;
/// Between two looks at the clock.
const ROUNDS: u64 = 1_000_000;
/// For four ranks to meet on such a machine.
const LONGEST_START: Duration = Duration::from_secs(60);
