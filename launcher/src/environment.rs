//! The variables that a rank is started with.

use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use allfold::identity::Findings;

use crate::directory;
use crate::meeting::Meeting;
use crate::variables::Variable;

/// What all ranks of one job on this host have in common.
pub(crate) struct Environment<'a> {
    /// The world size.
    pub(crate) ranks: usize,
    /// Which of them are on this host.
    pub(crate) here: Range<usize>,
    pub(crate) rendezvous: &'a Meeting,
    pub(crate) job: &'a str,
    pub(crate) directory: &'a Path,
    /// None where the ranks find one by themselves, or certificates.
    pub(crate) secret: Option<&'a Path>,
    /// By which the keeper knows the ranks where the job's name is not this launcher's alone.
    pub(crate) mark: Option<&'a str>,
    /// How often the ranks have been started before.
    pub(crate) restart: usize,
    /// What the user sets; none of the names below.
    pub(crate) variables: &'a [Variable],
}

impl Environment<'_> {
    /// Puts them into the command that starts `rank`.
    pub(crate) fn apply(&self, rank: usize, command: &mut Command) {
        // A secret in the environment would go before the file, and show in /proc; so would
        // certificates, which are for the names of jobs that live longer than one start.
        if let Some(secret) = self.secret {
            for name in CREDENTIALS {
                command.env_remove(name);
            }
            command.env("ALLFOLD_SECRET_FILE", secret);
        }
        // The ranks of another job.
        command.env_remove("ALLFOLD_PEERS");
        // Set for a copy of ourselves only, and not for what it may start.
        command.env_remove(REPORT);
        command.envs(self.contract(rank));
        match Findings::within() {
            Some(launchers) => command.env(WITHIN, launchers),
            None => command.env_remove(WITHIN),
        };
        command.envs(self.mark.map(|mark| (MARK, mark)));
        let threads = threads(self.here.len()).to_string();
        for name in THREADS {
            if std::env::var_os(name).is_none() {
                command.env(name, &threads);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    fn contract(&self, rank: usize) -> Vec<(&'static str, OsString)> {
        let local_rank = OsString::from(rank.saturating_sub(self.here.start).to_string());
        let local_size = OsString::from(self.here.len().to_string());
        let rank = OsString::from(rank.to_string());
        let ranks = OsString::from(self.ranks.to_string());
        vec![
            ("ALLFOLD_RANK", rank.clone()),
            ("ALLFOLD_WORLD_SIZE", ranks.clone()),
            ("ALLFOLD_LOCAL_RANK", local_rank.clone()),
            ("ALLFOLD_LOCAL_WORLD_SIZE", local_size.clone()),
            ("ALLFOLD_RENDEZVOUS", self.rendezvous.to_string().into()),
            ("ALLFOLD_JOB", self.job.into()),
            ("ALLFOLD_LAUNCHER", directory::socket(self.directory).into()),
            (RESTART, self.restart.to_string().into()),
            // torchrun's contract, for programs that know nothing of allfold.
            ("RANK", rank),
            ("WORLD_SIZE", ranks),
            ("LOCAL_RANK", local_rank),
            ("LOCAL_WORLD_SIZE", local_size),
            ("MASTER_ADDR", self.rendezvous.host.clone().into()),
            ("MASTER_PORT", self.rendezvous.port.to_string().into()),
        ]
    }
}

/// A rank's fair share of the cores, at least one. The standard library counts by the cgroup's
/// quota (v1 and v2) and the affinity mask.
pub(crate) fn threads(ranks: usize) -> usize {
    let cores = available_parallelism().map_or(1, usize::from);
    (cores / ranks.max(1)).max(1)
}

/// Where a copy of ourselves writes its error; the library would warn of an unknown ALLFOLD_*.
pub(crate) const REPORT: &str = "_ALLFOLD_REPORT";
/// How often the ranks have been started before.
pub(crate) const RESTART: &str = "ALLFOLD_RESTART";
/// What marks the ranks of one launcher of several that start a job; not the library's either.
pub(crate) const MARK: &str = "_ALLFOLD_SHARE";
/// What the launcher itself sets or removes, so that the user cannot.
pub(crate) const OWN_NAMES: [&str; 21] = [
    "ALLFOLD_RANK",
    "ALLFOLD_WORLD_SIZE",
    "ALLFOLD_LOCAL_RANK",
    "ALLFOLD_LOCAL_WORLD_SIZE",
    "ALLFOLD_RENDEZVOUS",
    "ALLFOLD_JOB",
    "ALLFOLD_SECRET_FILE",
    "ALLFOLD_LAUNCHER",
    RESTART,
    WITHIN,
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ALLFOLD_SECRET",
    "ALLFOLD_TLS_CERT",
    "ALLFOLD_TLS_KEY",
    "ALLFOLD_TLS_CA",
    "ALLFOLD_PEERS",
];
/// The launchers that numbered this one: their numbers are not the ranks'.
const WITHIN: &str = "ALLFOLD_WITHIN";
/// What would come before the secret that the launcher makes.
const CREDENTIALS: [&str; 4] =
    ["ALLFOLD_SECRET", "ALLFOLD_TLS_CERT", "ALLFOLD_TLS_KEY", "ALLFOLD_TLS_CA"];
/// What a rank's share of the cores goes into.
pub(crate) const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn command(rank: usize, here: Range<usize>, secret: Option<&Path>) -> Command {
        let environment = Environment {
            ranks: 4,
            here,
            rendezvous: &"127.0.0.1:29501".parse().unwrap(),
            job: "run-00000000000000ff",
            directory: Path::new("/run/d"),
            secret,
            mark: None,
            restart: 1,
            variables: &[("OMP_NUM_THREADS".into(), "3".into())],
        };
        let mut command = Command::new("x");
        environment.apply(rank, &mut command);
        command
    }

    /// None where nothing is done about the variable, and within it where it is removed.
    fn value<'a>(command: &'a Command, name: &str) -> Option<Option<&'a str>> {
        let mut variables = command.get_envs();
        let (_, value) = variables.find(|(key, _)| *key == name)?;
        Some(value.and_then(OsStr::to_str))
    }

    #[test]
    fn ranks_of_one_host_of_several_count_twice() {
        let command = command(3, 2..4, None);
        for (name, expected) in [
            ("ALLFOLD_RANK", "3"),
            ("ALLFOLD_WORLD_SIZE", "4"),
            ("ALLFOLD_LOCAL_RANK", "1"),
            ("ALLFOLD_LOCAL_WORLD_SIZE", "2"),
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
        ] {
            assert_eq!(value(&command, name), Some(Some(expected)), "{name}");
        }
        // What all hosts have in common stays.
        for name in CREDENTIALS.into_iter().chain(["ALLFOLD_SECRET_FILE"]) {
            assert_eq!(value(&command, name), None, "{name}");
        }
    }

    #[test]
    fn a_rank_finds_both_contracts() {
        let command = command(2, 0..4, Some(Path::new("/run/d/secret")));
        let value = |name: &str| value(&command, name).unwrap();
        for (name, expected) in [
            ("ALLFOLD_RANK", "2"),
            ("ALLFOLD_WORLD_SIZE", "4"),
            ("ALLFOLD_LOCAL_RANK", "2"),
            ("ALLFOLD_LOCAL_WORLD_SIZE", "4"),
            ("ALLFOLD_RENDEZVOUS", "127.0.0.1:29501"),
            ("ALLFOLD_JOB", "run-00000000000000ff"),
            ("ALLFOLD_SECRET_FILE", "/run/d/secret"),
            ("ALLFOLD_LAUNCHER", "/run/d/launcher.sock"),
            ("ALLFOLD_RESTART", "1"),
            ("OMP_NUM_THREADS", "3"),
            ("RANK", "2"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "2"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", "29501"),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        assert_eq!(value("ALLFOLD_SECRET"), None);
        // none of them is left to --env
        for (name, _) in command.get_envs().filter(|(name, _)| !THREADS.iter().any(|t| name == t)) {
            assert!(name == REPORT || OWN_NAMES.iter().any(|own| name == *own), "{name:?}");
        }
    }

    #[test]
    fn every_rank_has_a_core() {
        assert_eq!(threads(1_000_000), 1);
        assert_eq!(threads(1), available_parallelism().unwrap().get());
    }
}
