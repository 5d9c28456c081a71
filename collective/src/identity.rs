//! Who am I: one detector per launcher, one order of precedence.
//!
//! Reading order: the table below says who comes first; `choice` decides between several that are
//! there; `claim` is what one of them says; `findings` is all of it for `allfold env`.

mod by_hand;
mod choice;
mod claim;
mod environment;
mod findings;
mod flux;
mod kubeflow;
mod mpi;
mod peers;
mod plain;
mod pods;
#[cfg(test)]
mod recorded;
mod run;
mod slurm;
mod tf_config;
mod torchrun;

use crate::error::{ErrorKind, Result};
use choice::{Detector, Scope};

pub use claim::Found;
pub(crate) use environment::{Environment, host_name};
pub use findings::{Findings, Ignored};

/// Who this process is, as its launcher's environment tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Rank, 0 to size - 1.
    pub rank: usize,
    /// World size.
    pub size: usize,
    /// Rank among the ranks of this host.
    pub local_rank: usize,
    /// The number of ranks of this host.
    pub local_size: usize,
    /// The launcher in words, such as `allfold run` or `torchrun`.
    pub launcher: String,
    /// Where the launcher says rank 0 is, as `host:port`.
    pub rendezvous: Option<String>,
    /// An id that the launcher gives to all ranks of the job alike.
    pub job: Option<String>,
    /// The port at which this rank listens, where a list of all ranks' addresses names one.
    pub port: Option<u16>,
    /// Launchers whose variables are set and that did not decide.
    pub ignored: Vec<Ignored>,
}

impl Identity {
    /// Reads the environment; None where no launcher says that this process is a rank.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] where variables are missing, malformed or contradict each other.
    pub fn from_env() -> Result<Option<Self>> {
        Self::detect(&Environment::of_process())
    }

    /// Of a process that is told by hand: all ranks' addresses, `a:2222,b:2222`, and its place
    /// among them. What is None comes from `ALLFOLD_PEERS` or `ALLFOLD_RANK`. They come before
    /// anything else that the environment says.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`] where one is missing or cannot be used; it calls them `--peers` and
    /// `--rank`.
    pub fn by_hand(peers: Option<&str>, rank: Option<usize>) -> Result<Self> {
        Self::told(Environment::of_process(), peers, rank)
    }

    fn told(
        mut environment: Environment,
        peers: Option<&str>,
        rank: Option<usize>,
    ) -> Result<Self> {
        let names = (
            if rank.is_some() { "--rank" } else { by_hand::RANK },
            if peers.is_some() { "--peers" } else { by_hand::PEERS },
        );
        if let Some(peers) = peers {
            environment.set(by_hand::PEERS, peers);
            environment.remove(by_hand::SIZE);
        }
        if let Some(rank) = rank {
            environment.set(by_hand::RANK, &rank.to_string());
        }
        let claim = match environment.get(by_hand::PEERS) {
            Some(_) => by_hand::claim(&environment, names),
            None => {
                let problem = match peers {
                    Some(_) => "is empty",
                    None => "is not given, but --rank is",
                };
                let help = "give every rank the same list, rank 0 first: --peers a:2222,b:2222";
                Err(claim::unset("--peers", problem, help))
            }
        };
        let found = Findings::told(&environment, "--peers and --rank", claim).identity()?;
        found.ok_or_else(|| Findings::default().no_environment())
    }

    /// What the environment says.
    pub(crate) fn detect(environment: &Environment) -> Result<Option<Self>> {
        Findings::of(environment).identity()
    }

    /// Whether `allfold run` numbered this process.
    pub fn is_of_run(&self) -> bool {
        self.launcher == run::LAUNCHER
    }

    /// Whether Kubernetes numbered this process's pod, so that a pod that is lost comes back under
    /// the same rank.
    pub fn is_of_pod(&self) -> bool {
        // One name may stand for several: outside Kubernetes there are no pods.
        let is_pod = |detector: &Detector| {
            detector.scope == Scope::Pod && self.is_numbered_by(detector.launcher)
        };
        DETECTORS.iter().any(is_pod) && Environment::of_process().in_kubernetes()
    }

    /// Whether that was a StatefulSet, which starts a container again whatever it returns.
    pub fn is_of_stateful_set(&self) -> bool {
        self.is_numbered_by(STATEFUL_SET)
    }

    /// Also where variables that started nothing say the same, such as RANK and WORLD_SIZE in a
    /// pod's environment.
    fn is_numbered_by(&self, launcher: &str) -> bool {
        let says_the_same =
            |other: &Ignored| other.launcher == launcher && other.reason == choice::SAME;
        let starts_nothing = |detector: &Detector| {
            detector.launcher == self.launcher
                && matches!(detector.scope, Scope::Plain | Scope::Pod)
        };
        self.launcher == launcher
            || DETECTORS.iter().any(starts_nothing) && self.ignored.iter().any(says_the_same)
    }

    /// For explicit configuration: `rank` of `size`, alone on its host as far as it knows.
    pub(crate) fn explicit(rank: usize, size: usize) -> Self {
        Self {
            rank,
            size,
            local_rank: 0,
            local_size: 1,
            launcher: "the program itself".into(),
            rendezvous: None,
            job: None,
            port: None,
            ignored: Vec::new(),
        }
    }
}

/// What allfold is told on purpose, then launchers that start processes, then what a manifest or a
/// script sets for whatever runs in it. `choice` knows the exceptions.
static DETECTORS: [Detector; 17] = [
    detector(run::LAUNCHER, Scope::Given, run::read),
    detector("ALLFOLD_RANK", Scope::Given, by_hand::read),
    detector(torchrun::LAUNCHER, Scope::Process, torchrun::read),
    detector("Open MPI", Scope::Process, mpi::read_open_mpi),
    detector("MPICH or Intel MPI", Scope::Process, mpi::read_pmi),
    detector("PMIx", Scope::Process, mpi::read_pmix),
    detector(SLURM, Scope::Process, slurm::read),
    detector(FLUX, Scope::Process, flux::read),
    detector("ALLFOLD_RANK", Scope::Pod, by_hand::read_in_pod),
    detector("Kubeflow", Scope::Pod, kubeflow::read_pytorch),
    detector("RANK and WORLD_SIZE", Scope::Plain, plain::read),
    detector("TF_CONFIG", Scope::Pod, tf_config::read),
    detector("MPIJob", Scope::Pod, kubeflow::read_mpi_job),
    detector("LeaderWorkerSet", Scope::Pod, kubeflow::read_leader_worker_set),
    detector("JobSet", Scope::Pod, pods::read_job_set),
    detector("Indexed Job", Scope::Pod, pods::read_indexed_job),
    detector(STATEFUL_SET, Scope::Pod, pods::read_stateful_set),
];

const fn detector(
    launcher: &'static str,
    scope: Scope,
    read: fn(&Environment) -> Result<choice::Reading>,
) -> Detector {
    Detector { launcher, scope, read }
}

/// Whether it hands out hosts, and other launchers run in what it gives.
fn is_resource_manager(launcher: &str) -> bool {
    [SLURM, FLUX].contains(&launcher)
}

pub(crate) fn invalid(name: &str, value: &str, problem: &str) -> crate::Error {
    ErrorKind::Setting {
        name: name.into(),
        value: Some(value.into()),
        problem: problem.into(),
        help: None,
    }
    .into()
}

const SLURM: &str = "Slurm";
const FLUX: &str = "Flux";
const STATEFUL_SET: &str = "StatefulSet";
/// What the world table and the wire are sized for.
pub(crate) const MAX_WORLD_SIZE: usize = 65_536;
/// A DNS name is no longer.
const MAX_HOST_BYTES: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn detect<const N: usize>(pairs: [(&str, &str); N]) -> Result<Option<Identity>> {
        Identity::detect(&Environment::from(pairs))
    }

    #[test]
    fn nothing_set_is_no_identity() {
        assert_eq!(detect([]).unwrap(), None);
        assert_eq!(detect([("ALLFOLD_RANK", ""), ("HOME", "/")]).unwrap(), None);
    }

    #[test]
    fn torchrun_is_read() {
        let identity = detect([
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "10.0.0.7"),
            ("MASTER_PORT", "4711"),
            ("TORCHELASTIC_RUN_ID", "none"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!((identity.rank, identity.size), (1, 4));
        assert_eq!((identity.local_rank, identity.local_size), (1, 2));
        assert_eq!(identity.rendezvous.as_deref(), Some("10.0.0.7:4711"));
        assert_eq!(identity.job, None, "torchrun's `none` is no job id");
        assert_eq!(identity.launcher, "torchrun");
    }

    #[test]
    fn a_stateful_set_is_known_also_behind_variables_that_say_the_same() {
        let pod = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("POD_NAME", "trainer-2")];
        let job = [("ALLFOLD_WORLD_SIZE", "4"), ("ALLFOLD_RENDEZVOUS", "trainer-0:29500")];
        let found = |[more, other]: [(&'static str, &'static str); 2]| {
            detect([pod[0], pod[1], job[0], job[1], more, other]).unwrap().unwrap()
        };
        let nothing = ("A", "b");
        assert!(found([nothing, nothing]).is_of_stateful_set());
        let plain = found([("RANK", "2"), ("WORLD_SIZE", "4")]);
        assert_eq!(plain.launcher, "RANK and WORLD_SIZE");
        assert!(plain.is_of_stateful_set());
        // What the test itself runs in is no pod.
        assert_eq!(plain.is_of_pod(), Environment::of_process().in_kubernetes());
        assert!(!found([("JOB_COMPLETION_INDEX", "2"), nothing]).is_of_stateful_set());
        // A rank of `allfold run` in the pod may have the pod's number by chance.
        let run = found([("ALLFOLD_LAUNCHER", "/run/socket"), ("ALLFOLD_RANK", "2")]);
        assert!(run.is_of_run() && !run.is_of_stateful_set() && !run.is_of_pod());
        let by_hand = detect([job[0], job[1], ("ALLFOLD_RANK", "2")]).unwrap().unwrap();
        assert!(!by_hand.is_of_stateful_set() && !by_hand.is_of_pod());
    }

    #[test]
    fn a_command_line_comes_before_everything_else() {
        let told = |peers, rank, more| {
            let run = [("ALLFOLD_LAUNCHER", "/x"), ("ALLFOLD_RANK", "0"), more];
            Identity::told(Environment::from(run), peers, rank).map_err(|e| e.to_string())
        };
        let size = ("ALLFOLD_WORLD_SIZE", "4");
        let identity = told(Some("a:2222,b:2222,b:2223,"), Some(2), size).unwrap();
        assert_eq!((identity.rank, identity.size), (2, 3));
        assert_eq!((identity.local_rank, identity.local_size), (1, 2));
        assert_eq!(identity.rendezvous.as_deref(), Some("a:2222"));
        assert!(!identity.is_of_run(), "its socket is not for this rank");
        let peers = ("ALLFOLD_PEERS", "[::1]:1,[::1]:2");
        assert_eq!(told(None, Some(1), peers).unwrap().rendezvous.as_deref(), Some("[::1]:1"));
        assert_eq!(told(Some("a,b"), None, peers).unwrap().rank, 0, "ALLFOLD_RANK");
        for (peers, rank, more, problem) in [
            (None, 1, size, "--peers is not given, but --rank is"),
            (
                Some("a,b"),
                2,
                size,
                "2 (--rank) must be below the world size, 2; ranks count from 0",
            ),
            (
                Some("a,,b"),
                1,
                size,
                "--peers=a,,b: has the entry ``: names no host; give host:port",
            ),
            (Some("a,a:29500"), 1, size, "--peers=a,a:29500: names a:29500 twice"),
        ] {
            assert_eq!(told(peers, Some(rank), more), Err(problem.into()));
        }
        let error = Identity::told(Environment::from([]), Some("a,b"), None).unwrap_err();
        assert_eq!(error.to_string(), "ALLFOLD_RANK is not set, but --peers is");
    }

    #[test]
    fn explicit_settings_come_before_torchrun() {
        let identity = detect([
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("ALLFOLD_RANK", "2"),
            ("ALLFOLD_WORLD_SIZE", "3"),
            ("ALLFOLD_RENDEZVOUS", "[::1]:29500"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!((identity.rank, identity.size), (2, 3));
        assert_eq!(identity.rendezvous.as_deref(), Some("[::1]:29500"));
    }

    #[test]
    fn wrong_numbers_name_the_variable() {
        let error = detect([("ALLFOLD_RANK", "4"), ("ALLFOLD_WORLD_SIZE", "4")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ALLFOLD_RANK=4: must be below the world size, 4 (ALLFOLD_WORLD_SIZE); ranks count from 0"
        );
        assert_eq!(error.exit_code(), 2);
        let error = detect([("ALLFOLD_RANK", "x"), ("ALLFOLD_WORLD_SIZE", "4")]).unwrap_err();
        assert_eq!(error.to_string(), "ALLFOLD_RANK=x: must be a whole number");
        for (set, missing) in
            [("ALLFOLD_WORLD_SIZE", "ALLFOLD_RANK"), ("WORLD_SIZE", "RANK"), ("RANK", "WORLD_SIZE")]
        {
            let error = detect([(set, "2")]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{missing} is not set")), "{error}");
        }
        assert!(detect([("ALLFOLD_RENDEZVOUS", "a:1")]).is_err(), "half an environment passed");
        let one = detect([("ALLFOLD_WORLD_SIZE", "1")]).unwrap().unwrap();
        assert_eq!((one.rank, one.size), (0, 1), "one rank needs no number");
        let huge = ("LOCAL_RANK", "18446744073709551615");
        let error = detect([("RANK", "0"), ("WORLD_SIZE", "2"), huge]).unwrap_err();
        assert!(error.to_string().ends_with("must be below the world size, 2"), "{error}");
        let error = detect([("ALLFOLD_RANK", "1")]).unwrap_err();
        assert_eq!(error.to_string(), "ALLFOLD_WORLD_SIZE is not set, but ALLFOLD_RANK is");
    }
}
