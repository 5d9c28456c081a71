//! What `run`, `train` and `bench` can be told about how ranks are started and watched.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use allfold::Ranks;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::meeting::Meeting;

/// `allfold run`
#[derive(clap::Args, Debug)]
#[command(after_long_help = EXIT_CODES)]
pub(crate) struct RunOptions {
    /// Number of ranks; auto: one for each core this process may use, gpu: one for each GPU; with
    /// --hosts: all slots, unless given (also -np)
    #[arg(short = 'n', long, visible_alias = "np", value_name = "N|auto|gpu")]
    #[arg(allow_negative_numbers = true)]
    #[arg(required_unless_present_any = ["hosts", "hostfile", "nnodes"])]
    pub(crate) ranks: Option<Ranks>,

    /// Set a variable for all ranks; without a value: insist that it is set (also -x)
    #[arg(short = 'x', long = "env", value_name = "NAME[=V]")]
    pub(crate) variables: Vec<OsString>,

    /// Print a POSIX shell script that does the same without allfold, and start nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) output: OutputOptions,

    #[command(flatten)]
    pub(crate) job: JobOptions,

    #[command(flatten)]
    pub(crate) nodes: NodeOptions,

    /// The program and its arguments; standard input goes to rank 0 only, and with
    /// --hosts to none
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<OsString>,
}

/// What becomes of the ranks' lines.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct OutputOptions {
    /// Also write what each rank prints to DIR/rank-R.log
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub(crate) log_dir: Option<PathBuf>,

    /// The rank before each line; auto: unless --only-rank shows one rank alone
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = OUTPUT)]
    pub(crate) prefix: Prefix,

    /// The time before each line, in UTC, in the logs as well
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) timestamp: bool,

    /// Show only these ranks' lines; logs have all
    #[arg(long, value_name = "R,..", value_delimiter = ',', help_heading = OUTPUT)]
    pub(crate) only_rank: Vec<usize>,
}

/// How the ranks are started and watched.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct JobOptions {
    /// Start all ranks anew, at most N times, after one has failed
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = RANKS)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) max_restarts: usize,

    /// Between SIGTERM and SIGKILL [default: 30s for a job that is stopped, 1s for ranks that
    /// hang after another has failed]
    #[arg(long, value_name = "TIME", value_parser = allfold::parse_duration, help_heading = RANKS)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) grace: Option<Duration>,

    #[command(flatten)]
    pub(crate) binding: BindOptions,

    /// Write what happens to the ranks to FILE, one JSON object a line
    #[arg(long, value_name = "FILE", help_heading = RANKS)]
    pub(crate) json_events: Option<PathBuf>,

    /// An option of `train` only.
    #[arg(skip)]
    pub(crate) kill_every: Option<Duration>,

    #[command(flatten)]
    pub(crate) hosts: HostOptions,
}

/// Ranks on several hosts.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct HostOptions {
    /// Start the ranks on these hosts by ssh; as many as there are slots, unless fewer are asked
    /// for. A host without a number has one slot
    #[arg(long, value_name = "HOST:SLOTS,..", help_heading = HOSTS, conflicts_with = "hostfile")]
    pub(crate) hosts: Option<String>,

    /// The same from a file, with lines such as `h0 slots=2` or `h0:2`
    #[arg(long, value_name = "FILE", help_heading = HOSTS)]
    pub(crate) hostfile: Option<PathBuf>,

    /// How to call ssh, an OpenSSH client, as in "ssh -F FILE -p PORT" [default: ssh]
    #[arg(long, value_name = "COMMAND", help_heading = HOSTS)]
    pub(crate) ssh: Option<String>,

    /// Where allfold is on the hosts [default: where it is here]
    #[arg(long, value_name = "PATH", help_heading = HOSTS)]
    pub(crate) remote_path: Option<String>,

    /// Where rank 0 is met [default with --hosts: the first host's name and a free port]
    #[arg(long, visible_alias = "rdzv-endpoint", value_name = "HOST:PORT", help_heading = HOSTS)]
    pub(crate) rdzv: Option<Meeting>,
}

/// One launcher on each host, started by hand.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct NodeOptions {
    /// Number of hosts, each with a launcher that is started by hand; all have the same secret
    #[arg(long, value_name = "N", help_heading = HOSTS, allow_negative_numbers = true)]
    #[arg(requires_all = ["node_rank", "nproc_per_node", "rdzv"])]
    #[arg(conflicts_with_all = ["ranks", "hosts", "hostfile"])]
    pub(crate) nnodes: Option<usize>,

    /// Which of these hosts this one is, from 0
    #[arg(long, value_name = "I", help_heading = HOSTS, requires = "nnodes")]
    #[arg(allow_negative_numbers = true)]
    pub(crate) node_rank: Option<usize>,

    /// Number of ranks on each of these hosts; auto: as many as this one has cores, gpu: as many as
    /// it has GPUs, and so must the others
    #[arg(long, value_name = "N|auto|gpu", help_heading = HOSTS, requires = "nnodes")]
    #[arg(allow_negative_numbers = true)]
    pub(crate) nproc_per_node: Option<Ranks>,
}

/// Where the ranks run.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct BindOptions {
    /// Keep each rank on its share of the cores, or of the NUMA nodes
    #[arg(long, value_name = "TO", default_value = "none", help_heading = RANKS)]
    pub(crate) bind: Bind,
}

/// Who this process is, where no launcher says so.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct PeerOptions {
    /// Part of a job by hand, with the same list on each host, rank 0 first; the port is UDP's.
    /// Also ALLFOLD_PEERS
    #[arg(long, value_name = "HOST:PORT,..", help_heading = BY_HAND)]
    pub(crate) peers: Option<String>,

    /// Which of the peers this process is. Also ALLFOLD_RANK
    #[arg(long, value_name = "R", help_heading = BY_HAND, allow_negative_numbers = true)]
    pub(crate) rank: Option<usize>,
}

/// `allfold env`
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct EnvOptions {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `allfold train`: the trainer's options, and how its ranks are started.
#[derive(clap::Args, Debug)]
pub(crate) struct TrainOptions {
    #[command(flatten)]
    pub(crate) trainer: allfold_trainer::Options,
    #[command(flatten)]
    pub(crate) peers: PeerOptions,
    #[command(flatten)]
    pub(crate) job: JobOptions,

    /// To see it go on: end a rank by SIGKILL every so often, each in turn, as often as there are
    /// --max-restarts
    #[arg(long, value_name = "TIME", value_parser = allfold::parse_duration, help_heading = RANKS)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) kill_every: Option<Duration>,
}

/// `allfold bench`: the bench's options, and how its ranks are started.
#[derive(clap::Args, Debug)]
pub(crate) struct BenchOptions {
    #[command(flatten)]
    pub(crate) bench: allfold_bench::Command,
    #[command(flatten)]
    pub(crate) peers: PeerOptions,
    #[command(flatten)]
    pub(crate) binding: BindOptions,
    #[command(flatten)]
    pub(crate) hosts: HostOptions,
}

impl OutputOptions {
    /// Whether the rank's lines are shown.
    pub(crate) fn shows(&self, rank: usize) -> bool {
        self.only_rank.is_empty() || self.only_rank.contains(&rank)
    }

    /// Finds a rank to show that there is not.
    pub(crate) fn check(&self, ranks: usize) -> Result<(), Error> {
        match self.only_rank.iter().find(|rank| **rank >= ranks) {
            None => Ok(()),
            Some(rank) => Err(Error::Usage {
                problem: format!("--only-rank {rank}: there is no such rank"),
                help: Some(match ranks {
                    1 => "the only rank is 0".into(),
                    _ => format!("{ranks} ranks have the numbers 0 to {}", ranks - 1),
                }),
            }),
        }
    }

    /// Whether lines bear their rank.
    pub(crate) fn has_prefix(&self) -> bool {
        match self.prefix {
            Prefix::Always => true,
            Prefix::Never => false,
            Prefix::Auto => self.only_rank.iter().collect::<BTreeSet<_>>().len() != 1,
        }
    }
}

impl TrainOptions {
    /// How its ranks are started.
    pub(crate) fn job(&self) -> Result<JobOptions, Error> {
        let refuse = |problem: &str, help: &str| Error::Usage {
            problem: format!("--kill-every {problem}"),
            help: Some(help.into()),
        };
        let job = JobOptions { kill_every: self.kill_every, ..self.job.clone() };
        match self.kill_every {
            Some(Duration::ZERO) => {
                Err(refuse("0: must be more than no time", "give a time such as 10s"))
            }
            Some(_) if self.trainer.checkpoint.is_none() => {
                Err(refuse("needs something to go on from", "add --checkpoint DIR"))
            }
            Some(_) if job.max_restarts == 0 => {
                Err(refuse("needs somebody who starts ranks anew", "add --max-restarts 9"))
            }
            _ => Ok(job),
        }
    }
}

impl PeerOptions {
    /// Whether the command line says it.
    pub(crate) fn are_given(&self) -> bool {
        self.peers.is_some() || self.rank.is_some()
    }
}

impl JobOptions {
    /// Only a binding, and hosts.
    pub(crate) fn bound(binding: BindOptions, hosts: HostOptions) -> Self {
        Self { binding, hosts, ..Self::default() }
    }

    /// An option that was given and needs a launcher of our own.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--max-restarts", self.max_restarts > 0),
            ("--grace", self.grace.is_some()),
            ("--bind", self.binding.bind != Bind::None),
            ("--json-events", self.json_events.is_some()),
            ("--kill-every", self.kill_every.is_some()),
        ];
        let given = given.into_iter().find_map(|(option, is_given)| is_given.then_some(option));
        given.or(self.hosts.first_given())
    }
}

impl HostOptions {
    /// An option that was given.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--hosts", self.hosts.is_some()),
            ("--hostfile", self.hostfile.is_some()),
            ("--ssh", self.ssh.is_some()),
            ("--remote-path", self.remote_path.is_some()),
            ("--rdzv", self.rdzv.is_some()),
        ];
        given.into_iter().find_map(|(option, is_given)| is_given.then_some(option))
    }
}

/// Which lines bear their rank.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// All, unless one rank alone is shown
    #[default]
    Auto,
    /// All
    Always,
    /// None
    Never,
}

/// What a rank is bound to.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Bind {
    /// Nothing: the kernel moves it as it likes
    #[default]
    None,
    /// Its equal share of the cores, at least one
    Core,
    /// One NUMA node
    Numa,
}

const EXIT_CODES: &str = "\
Exit codes: 0 when all ranks are done, else that of the rank at fault, 128 and its number where a \
signal killed it; 130 and 143 after Ctrl-C and SIGTERM; 1 when the ranks are done but a log or \
the events are not whole; 2 for usage, input or output that would fail again; 75 when another try \
may help.";
const BY_HAND: &str = "By hand, on each host";
const HOSTS: &str = "Several hosts";
const OUTPUT: &str = "Output";
const RANKS: &str = "Starting and watching the ranks";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_is_alone_needs_no_prefix() {
        let options = |prefix, only_rank: &[usize]| OutputOptions {
            prefix,
            only_rank: only_rank.to_vec(),
            ..OutputOptions::default()
        };
        assert!(options(Prefix::Auto, &[]).has_prefix());
        assert!(options(Prefix::Auto, &[0, 2]).has_prefix());
        assert!(!options(Prefix::Auto, &[2]).has_prefix());
        assert!(!options(Prefix::Auto, &[2, 2]).has_prefix());
        assert!(options(Prefix::Always, &[2]).has_prefix());
        assert!(!options(Prefix::Never, &[]).has_prefix());
        assert!(options(Prefix::Auto, &[]).shows(7));
        assert!(options(Prefix::Auto, &[7]).shows(7));
        assert!(!options(Prefix::Auto, &[7]).shows(0));
    }
}
