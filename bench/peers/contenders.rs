//! Who takes part: how each is found, built and run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use allfold::probe::SharedBuffers;
use allfold_bench::ladder::{Ladder, Row};

use crate::hosts::Hosts;
use crate::ladder::{BIND, BUDGET_US, FIRST, LAST};
use crate::options::Options;
use crate::processes::together;

/// One that is there.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    program: PathBuf,
}

/// What came of a turn: the rows there are, and why there are no more.
pub(crate) struct Turn {
    pub(crate) rows: Vec<Row>,
    pub(crate) problem: Option<String>,
}

impl Contender {
    /// Finds it, or installs it where that is asked for, and builds its program.
    pub(crate) fn find(name: &'static str, install: bool) -> Result<Self, String> {
        let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
        let program = match name {
            "open-mpi" | "open-mpi-tcp" => {
                let is_there = || there("mpicc.openmpi") && there("mpirun.openmpi");
                have(is_there, &["libopenmpi-dev", "openmpi-bin"], install)?;
                build("mpicc.openmpi", "mpi.c", "open-mpi", &[])?
            }
            "mpich" => {
                let is_there = || there("mpicc.mpich") && there("mpirun.mpich");
                have(is_there, &["libmpich-dev", "mpich"], install)?;
                build("mpicc.mpich", "mpi.c", "mpich", &[])?
            }
            "gloo" => {
                let is_there = || there("c++") && Path::new(GLOO_HEADER).exists();
                have(is_there, &["g++", "libgloo-dev"], install)?;
                build("c++", "gloo.cc", "gloo", &["-std=c++17", "-lgloo", "-pthread"])?
            }
            _ => std::env::current_exe().map_err(|error| error.to_string())?,
        };
        Ok(Self { name, program })
    }

    /// Once over the ladder.
    pub(crate) fn run(&self, options: &Options, hosts: Option<&Hosts>) -> Turn {
        let result = match self.name {
            "gloo" => self.gloo(options, hosts),
            "probe" => self.probe(options),
            "allfold-alloc" => self.allfold(options, hosts, "alloc", "auto"),
            "allfold-slices" => self.allfold(options, hosts, "slices", "auto"),
            "allfold-quic" => self.allfold(options, hosts, "slices", "quic"),
            _ => Ok(self.mpi(options)),
        };
        result.unwrap_or_else(|problem| Turn { rows: Vec::new(), problem: Some(problem) })
    }

    fn mpi(&self, options: &Options) -> Turn {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = mpirun(self.name, options.ranks, cores);
        command.arg(&self.program);
        run(options, vec![command])
    }

    fn gloo(&self, options: &Options, hosts: Option<&Hosts>) -> Result<Turn, String> {
        let folder = std::env::temp_dir().join(format!("allfold-peers-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
        let start = |rank: usize| {
            let mut command = Command::new(&self.program);
            command.arg(rank.to_string()).arg(options.ranks.to_string()).arg(&folder);
            if hosts.is_some() {
                command.arg(Hosts::address(rank));
            }
            command
        };
        let turn = run_on(options, hosts, (0..options.ranks).map(start).collect());
        let _ = std::fs::remove_dir_all(&folder);
        Ok(turn)
    }

    fn probe(&self, options: &Options) -> Result<Turn, String> {
        let sizes = Ladder::sizes(options.first, options.last).collect();
        let bytes = Ladder { sizes, budget_us: 0.0 }.buffer_bytes(options.ranks);
        let memory = SharedBuffers::new(options.ranks, bytes).map_err(|error| error.to_string())?;
        let start = |rank: usize| {
            let mut command = Command::new(&self.program);
            command.args(["rank", "probe"]).env("PEERS_MEMORY", memory.path());
            command.env("PEERS_RANK", rank.to_string());
            command.env("PEERS_RANKS", options.ranks.to_string());
            command
        };
        Ok(run(options, (0..options.ranks).map(start).collect()))
    }

    fn allfold(
        &self,
        options: &Options,
        hosts: Option<&Hosts>,
        how: &str,
        transport: &str,
    ) -> Result<Turn, String> {
        let free = std::net::UdpSocket::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .map_err(|error| error.to_string())?;
        let meeting = match hosts {
            Some(_) => Hosts::address(0),
            None => free.to_string(),
        };
        let secret = allfold::Secret::random().map_err(|error| error.to_string())?;
        let line = secret.to_line();
        let start = |rank: usize| {
            let mut command = Command::new(&self.program);
            command.args(["rank", how]);
            command.env("ALLFOLD_RANK", rank.to_string());
            command.env("ALLFOLD_WORLD_SIZE", options.ranks.to_string());
            command.env("ALLFOLD_RENDEZVOUS", &meeting);
            command.env("ALLFOLD_TRANSPORT", transport);
            command.env("ALLFOLD_SECRET", line.as_str());
            command
        };
        Ok(run_on(options, hosts, (0..options.ranks).map(start).collect()))
    }
}

/// An MPI's launcher on a host with so many cores.
fn mpirun(name: &str, ranks: usize, cores: usize) -> Command {
    let is_mpich = name == "mpich";
    let mut command = Command::new(if is_mpich { "mpirun.mpich" } else { "mpirun.openmpi" });
    // Open MPI's launcher binds by itself, MPICH's does not: our program does it for all alike.
    command.args(if is_mpich { ["-bind-to", "none"] } else { ["--bind-to", "none"] });
    if !is_mpich {
        // As root it wants to be asked twice.
        command.arg("--allow-run-as-root");
        // Its ranks then yield whenever they wait, which helps only where others need the core.
        command.arg(match ranks > cores {
            true => "--oversubscribe",
            // A core has as many places as it runs threads, as everybody else counts them.
            false => "--use-hwthread-cpus",
        });
    }
    if name == "open-mpi-tcp" {
        command.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]);
    }
    command.args(["-n", &ranks.to_string()]);
    command
}

/// One rank on each host, where there are hosts.
fn run_on(options: &Options, hosts: Option<&Hosts>, commands: Vec<Command>) -> Turn {
    let place = |(rank, command): (usize, &Command)| Some(hosts?.on(rank, command));
    let moved: Option<Vec<Command>> = commands.iter().enumerate().map(place).collect();
    run(options, moved.unwrap_or(commands))
}

fn run(options: &Options, mut commands: Vec<Command>) -> Turn {
    for command in &mut commands {
        command.env(FIRST, options.first.to_string()).env(LAST, options.last.to_string());
        command.env(BUDGET_US, (options.budget_ms * 1e3).to_string());
        command.env(BIND, u8::from(options.bind).to_string());
    }
    let ended = together(commands, Duration::from_secs_f64(options.limit_s));
    let rows: Vec<Row> = ended.text.lines().filter_map(Row::from_line).collect();
    let silent = || rows.is_empty().then(|| format!("it printed no row: {}", ended.text));
    let problem = ended.problem.or_else(silent);
    Turn { rows, problem }
}

/// Makes sure that something is there, from these packages.
fn have(is_there: impl Fn() -> bool, packages: &[&str], install: bool) -> Result<(), String> {
    if is_there() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !install {
        return Err(format!("give --install, or run `{line}`"));
    }
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).env("DEBIAN_FRONTEND", "noninteractive");
    match command.output() {
        Ok(ended) if ended.status.success() && is_there() => Ok(()),
        Ok(ended) if ended.status.success() => Err(format!("`{line}` did not bring it")),
        Ok(_) => Err(format!("`{line}` failed: run it as root, after `apt-get update`")),
        Err(_) => Err(format!("no apt-get here: install the equivalent of {}", packages.join(" "))),
    }
}

/// Compiles one of our programs, for this processor: Gloo's sums are compiled into it.
fn build(compiler: &str, source: &str, name: &str, libraries: &[&str]) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = own.with_file_name(format!("peer-{name}"));
    let mut command = Command::new(compiler);
    command.args(["-O3", "-march=native", "-o"]).arg(&program);
    command.arg(folder.join("peers").join(source)).args(libraries).arg("-lm");
    let ended = command.output().map_err(|error| format!("{compiler}: {error}"))?;
    match ended.status.success() {
        true => Ok(program),
        false => Err(format!("{compiler}: {}", String::from_utf8_lossy(&ended.stderr))),
    }
}

/// All of them, in the order of the table. Open MPI and MPICH take shared memory, Gloo has TCP
/// only.
pub(crate) const NAMES: [&str; 8] = [
    "open-mpi",
    "mpich",
    "open-mpi-tcp",
    "gloo",
    "probe",
    "allfold-alloc",
    "allfold-slices",
    "allfold-quic",
];
const GLOO_HEADER: &str = "/usr/include/gloo/allreduce.h";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_mpi_yields_only_where_ranks_outnumber_cores() {
        let has = |name, ranks, cores, word: &str| {
            mpirun(name, ranks, cores).get_args().any(|argument| argument == word)
        };
        for name in ["open-mpi", "open-mpi-tcp"] {
            assert!(!has(name, 2, 2, "--oversubscribe") && has(name, 3, 2, "--oversubscribe"));
        }
        // It has no such word.
        assert!(!has("mpich", 3, 2, "--oversubscribe"));
    }
}
