//! Runs the processes of a case and collects what they say, until all have ended or too much time
//! has passed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};

use super::case::{Case, Launch, What, When};
use super::chaos::CHAOS;
use super::victim::{FAULT, GATE, MARK};
use crate::{Job, clean_command};

/// The programs that ranks run: a program and its first arguments.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The rank under test.
    pub rank: Vec<String>,
    /// The binary `allfold`.
    pub allfold: Vec<String>,
}

/// What a case's processes said.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When it happened.
    pub fault: Option<u64>,
    /// By rank.
    pub ranks: Vec<RankSeen>,
    /// Under `allfold run`: its own error, and its exit code.
    pub launcher: Option<(Option<String>, i32)>,
    /// It did not all end in time, and was ended.
    pub hung: bool,
    /// Everything printed, with the rank before each line.
    pub log: Vec<String>,
}

/// What one rank said.
#[derive(Clone, Debug, Default)]
pub struct RankSeen {
    /// When its first call returned the error, or it had not connected, or `train` came to its end.
    pub error_at: Option<u64>,
    /// The error.
    pub error: Option<String>,
    /// The call after that.
    pub again: Option<Again>,
    /// Its exit code, or 128 and the signal; unknown under a launcher.
    pub code: Option<i32>,
    /// A result was wrong.
    pub is_wrong: bool,
    /// Lines of a panic in the runtime.
    pub panicked: bool,
}

/// What came after the first error.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// The next call returned the same error.
    pub is_same: bool,
    /// How long it took.
    pub later: Duration,
    /// How long it took to drop the communicator then.
    pub drop: Duration,
}

/// Runs a case, with random calls where there is a seed for them.
///
/// # Errors
/// Where processes cannot be started.
pub fn run(case: &Case, chaos: Option<u64>, programs: &Programs) -> Result<Seen, String> {
    let scratch = Scratch::new()?;
    let mut gate = scratch.gate()?;
    let mut world = World::start(case, chaos, programs, &scratch.gate_path())?;
    let mut seen = Seen { ranks: vec![RankSeen::default(); case.ranks], ..Seen::default() };
    let mut deadline = Instant::now() + UNTIL_FAULT;
    let mut pid = None;
    let mut continued = false;
    while !world.running.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        match world.events.recv_timeout(left) {
            Ok(Event::Line(process, line)) => {
                if let Some(victim) = world.hear(process, &line, &mut seen) {
                    pid = Pid::from_raw(victim);
                    deadline = Instant::now() + AFTER_FAULT;
                    gate.write_all(&[0]).map_err(|error| format!("the gate: {error}"))?;
                }
            }
            Ok(Event::Closed(process)) => world.ended(process, &mut seen),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                seen.hung = true;
                break;
            }
        }
        // A launcher ends a stopped rank itself.
        let only_victim = world.running == [case.victim];
        if case.what == What::Stop && case.launch == Launch::Plain && only_victim && !continued {
            continued = true;
            deadline = Instant::now() + AFTER_FAULT;
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::CONT);
            }
        }
    }
    Ok(seen)
}

struct World {
    children: Vec<Child>,
    /// Those whose output has not ended, by number.
    running: Vec<usize>,
    /// Streams that are open, by process.
    open: Vec<usize>,
    events: Receiver<Event>,
    /// Whether the processes are the ranks.
    are_ranks: bool,
}

enum Event {
    Line(usize, String),
    Closed(usize),
}

impl World {
    fn start(
        case: &Case,
        chaos: Option<u64>,
        programs: &Programs,
        gate: &Path,
    ) -> Result<Self, String> {
        let commands = commands(case, programs);
        let (sender, events) = channel();
        let mut children = Vec::new();
        for (number, mut command) in commands.into_iter().enumerate() {
            command.env(FAULT, case.to_string()).env(GATE, gate);
            if let Some(seed) = chaos {
                command.env(CHAOS, seed.to_string());
            }
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child =
                command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
            read(number, child.stdout.take(), &sender);
            read(number, child.stderr.take(), &sender);
            children.push(child);
        }
        let running: Vec<usize> = (0..children.len()).collect();
        let open = vec![2; children.len()];
        Ok(Self { children, running, open, events, are_ranks: case.launch == Launch::Plain })
    }

    /// Takes note of a line; the victim's process if it says that it happens now.
    fn hear(&self, process: usize, line: &str, seen: &mut Seen) -> Option<i32> {
        let (rank, line) = match self.are_ranks {
            true => (Some(process), line),
            false => unprefixed(line),
        };
        let who = rank.map_or("launcher".into(), |rank| format!("rank {rank}"));
        seen.log.push(format!("{who}: {line}"));
        let Some(rank) = rank else {
            if let Some(error) = line.strip_prefix("error: ") {
                seen.launcher = Some((Some(error.into()), 0));
            }
            return None;
        };
        let said = seen.ranks.get_mut(rank)?;
        if let Some(error) = line.strip_prefix("error: ") {
            said.error = Some(error.into());
        }
        if line.contains("panicked at") || line.starts_with("error: bug:") {
            said.panicked = true;
        }
        let words: Vec<&str> = line.strip_prefix(MARK)?.split(' ').skip(1).collect();
        let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok());
        match words.first().copied() {
            Some("fault") => {
                seen.fault = number(1);
                return number(2).and_then(|pid| i32::try_from(pid).ok());
            }
            // `train` that was asked to stop has no error.
            Some("error" | "ended") => said.error_at = said.error_at.or(number(1)),
            Some("again") => {
                let span = |index| Duration::from_nanos(number(index).unwrap_or(u64::MAX));
                let is_same = number(1) == Some(1);
                said.again = Some(Again { is_same, later: span(2), drop: span(3) });
            }
            Some("wrong") => said.is_wrong = true,
            _ => {}
        }
        None
    }

    /// One of a process's two streams has ended; both do so when it ends.
    fn ended(&mut self, process: usize, seen: &mut Seen) {
        self.open[process] -= 1;
        if self.open[process] > 0 {
            return;
        }
        self.running.retain(|other| *other != process);
        let status = self.children[process].wait().ok();
        let code = status.and_then(|s| s.code().or(s.signal().map(|signal| 128 + signal)));
        if self.are_ranks {
            seen.ranks[process].code = code;
        } else {
            seen.launcher.get_or_insert((None, 0)).1 = code.unwrap_or(-1);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn commands(case: &Case, programs: &Programs) -> Vec<Command> {
    let is_trainer = case.when == When::Backward;
    let mut words = match is_trainer {
        true => programs.allfold.clone(),
        false => programs.rank.clone(),
    };
    let script = if is_trainer { TRAIN } else { "faults" };
    words.extend(script.split(' ').map(String::from));
    let connect = if case.is_before_the_world() { SHORT_CONNECT } else { CONNECT };
    let finish = |mut command: Command| {
        // Printing one takes longer than telling the others.
        command.env("RUST_BACKTRACE", "0");
        command.env("ALLFOLD_CONNECT_TIMEOUT", format!("{}s", connect.as_secs()));
        command.envs(case.settings().iter().copied());
        command
    };
    let (program, arguments) = words.split_at(1);
    match case.launch {
        Launch::Plain => {
            let job = Job::new(case.ranks);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let rank = |rank| finish(job.rank(rank, &program[0], &arguments));
            (0..case.ranks).map(rank).collect()
        }
        Launch::Run => {
            let mut command = clean_command(&programs.allfold[0]);
            command.args(&programs.allfold[1..]);
            command.args(["run", "--prefix", "always", "-n", &case.ranks.to_string(), "--"]);
            command.args(program).args(arguments);
            vec![finish(command)]
        }
    }
}

fn read(process: usize, stream: Option<impl Read + Send + 'static>, events: &Sender<Event>) {
    let events = events.clone();
    std::thread::spawn(move || {
        for line in stream.into_iter().flat_map(|s| BufReader::new(s).lines()).map_while(Result::ok)
        {
            let _ = events.send(Event::Line(process, line));
        }
        let _ = events.send(Event::Closed(process));
    });
}

/// `[2] words`, or `[ 2] words`, as the launcher shows what rank 2 prints.
fn unprefixed(line: &str) -> (Option<usize>, &str) {
    let rank = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    match rank.and_then(|(rank, words)| Some((rank.trim_start().parse().ok()?, words))) {
        Some((rank, words)) => (Some(rank), words),
        None => (None, line),
    }
}

/// A folder of one's own for the gate; removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A fresh folder.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new() -> Result<Self, String> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("allfold-faults-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// Where the gate is: each rank that reads from it takes one byte.
    pub fn gate_path(&self) -> PathBuf {
        self.0.join("gate")
    }

    /// Makes the gate. It is open both ways, so that nobody has to be there first.
    ///
    /// # Errors
    /// Where the system refuses a pipe with a name.
    pub fn gate(&self) -> Result<File, String> {
        let path = self.gate_path();
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).map_err(|error| failed(&error))?;
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(nonblocking);
        options.open(&path).map_err(|error| failed(&error))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How long ranks wait for each other where somebody never comes.
pub const SHORT_CONNECT: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(20);
/// Starting processes, meeting, ten calls: beyond it nothing comes any more, on any machine.
const UNTIL_FAULT: Duration = Duration::from_secs(40);
/// No rank may take longer to end, whatever the machine does.
pub const AFTER_FAULT: Duration = Duration::from_secs(15);
/// Four buckets a step, and no end.
const TRAIN: &str = "train --model mlp --hidden 64,64,64 --bucket-mib 0.01 --steps 100000000 \
                     --eval-every 1000000";
