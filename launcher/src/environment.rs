//! The variables that a rank is started with.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use allfold::identity::Findings;

use crate::directory;
use crate::variables::Variable;

/// What all ranks of one job have in common.
pub(crate) struct Environment<'a> {
    pub(crate) ranks: usize,
    pub(crate) rendezvous: SocketAddr,
    pub(crate) job: &'a str,
    pub(crate) directory: &'a Path,
    pub(crate) secret: &'a Path,
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
        for name in CREDENTIALS {
            command.env_remove(name);
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
        let threads = threads(self.ranks).to_string();
        for name in THREADS {
            if std::env::var_os(name).is_none() {
                command.env(name, &threads);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    fn contract(&self, rank: usize) -> Vec<(&'static str, OsString)> {
        let rank = OsString::from(rank.to_string());
        let ranks = OsString::from(self.ranks.to_string());
        vec![
            ("ALLFOLD_RANK", rank.clone()),
            ("ALLFOLD_WORLD_SIZE", ranks.clone()),
            ("ALLFOLD_LOCAL_RANK", rank.clone()),
            ("ALLFOLD_LOCAL_WORLD_SIZE", ranks.clone()),
            ("ALLFOLD_RENDEZVOUS", self.rendezvous.to_string().into()),
            ("ALLFOLD_JOB", self.job.into()),
            ("ALLFOLD_SECRET_FILE", self.secret.into()),
            ("ALLFOLD_LAUNCHER", directory::socket(self.directory).into()),
            (RESTART, self.restart.to_string().into()),
            // torchrun's contract, for programs that know nothing of allfold.
            ("RANK", rank.clone()),
            ("WORLD_SIZE", ranks.clone()),
            ("LOCAL_RANK", rank),
            ("LOCAL_WORLD_SIZE", ranks),
            ("MASTER_ADDR", self.rendezvous.ip().to_string().into()),
            ("MASTER_PORT", self.rendezvous.port().to_string().into()),
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

    fn command(rank: usize) -> Command {
        let environment = Environment {
            ranks: 4,
            rendezvous: "127.0.0.1:29501".parse().unwrap(),
            job: "run-00000000000000ff",
            directory: Path::new("/run/d"),
            secret: Path::new("/run/d/secret"),
            restart: 1,
            variables: &[("OMP_NUM_THREADS".into(), "3".into())],
        };
        let mut command = Command::new("x");
        environment.apply(rank, &mut command);
        command
    }

    #[test]
    fn a_rank_finds_both_contracts() {
        let command = command(2);
        let value = |name: &str| {
            let mut variables = command.get_envs();
            variables.find(|(key, _)| *key == name).unwrap().1.and_then(OsStr::to_str)
        };
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
