//! What can go wrong, for whom it is worth trying again, and the exit code it means.

use std::fmt;
use std::sync::Arc;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one line; one pointer wide and cheap to clone.
///
/// `Display` and `Debug` print the same line, so that `fn main() -> Result` reads well.
#[derive(Clone)]
pub struct Error(Arc<ErrorKind>);

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Arc::new(kind))
    }

    /// The operating system, or a library that stands for it, refused `operation`.
    pub(crate) fn system(operation: &str, problem: impl fmt::Display) -> Self {
        let problem = problem.to_string();
        Self::new(ErrorKind::System { operation: operation.into(), problem })
    }

    /// The typed cause.
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }

    /// What to do about it, where there is something to do.
    pub fn help(&self) -> Option<String> {
        use ErrorKind::*;
        match self.kind() {
            NoEnvironment { help: Some(help), .. } => Some(help.clone()),
            NoEnvironment { help: None, .. } => Some(
                "start the program with `allfold run -n 4 PROGRAM`, or set ALLFOLD_RANK, \
                 ALLFOLD_WORLD_SIZE and ALLFOLD_RENDEZVOUS on every rank; `allfold env` shows what \
                 is found"
                    .into(),
            ),
            Setting { help, .. } | Secret { help, .. } | NoGpu { help, .. } | Bind { help, .. } => {
                help.clone()
            }
            ServeMetrics { help, .. } => Some(help.clone()),
            UnknownHost { name, .. } if is_of_service(name) => Some(no_pod(name)),
            UnknownHost { name, .. } => Some(format!(
                "check the name with `getent hosts {name}`, or give an address in \
                 ALLFOLD_RENDEZVOUS or MASTER_ADDR"
            )),
            ConnectTimeout { help: Some(help), .. } => Some(help.clone()),
            ConnectTimeout { help: None, .. } => Some(
                "check that every rank was started with the same rendezvous address and that UDP \
                 passes between the hosts, in packets of up to 1,252 bytes; \
                 ALLFOLD_CONNECT_TIMEOUT sets the wait"
                    .into(),
            ),
            Refused { help, .. } | RankLost { help, .. } => help.clone(),
            LinkDown { .. } => Some(
                "check the network between the two hosts: UDP must pass both ways on the ports of \
                 both ranks (ALLFOLD_PORT fixes them)"
                    .into(),
            ),
            CutOff { rank, .. } => Some(format!(
                "check the network of rank {rank}'s host; if it was only busy, ALLFOLD_DEAD_AFTER, \
                 on all ranks, sets for how long silence is borne"
            )),
            Mismatch { .. } => Some(
                "every rank must make the same calls in the same order; see the two source lines"
                    .into(),
            ),
            CallCount { .. } => Some(
                "the ranks made different numbers of calls; check that all run the same number of \
                 steps"
                    .into(),
            ),
            Deadlock { .. } => Some(
                "make calls on several communicators, and sends and receives, in an order in \
                 which each meets its counterpart; two ranks that send to each other do it by \
                 `send_recv`, on GPUs in one group"
                    .into(),
            ),
            ConcurrentCalls { .. } => Some(
                "make all calls of a communicator from one thread, or give each thread a \
                 communicator of its own by `split`"
                    .into(),
            ),
            Forked { .. } => Some("connect in the process that makes the calls".into()),
            TimedOut { .. }
            | Argument { .. }
            | Closed
            | Done { .. }
            | Protocol { .. }
            | System { .. } => None,
        }
    }

    /// Whether starting the job again, unchanged, may succeed.
    pub fn is_retryable(&self) -> bool {
        self.exit_code() == EXIT_TRY_AGAIN
    }

    /// Whether the communicator still works after this error.
    pub fn is_communicator_usable(&self) -> bool {
        matches!(self.kind(), ErrorKind::ConcurrentCalls { .. } | ErrorKind::Argument { .. })
    }

    /// The exit code a program should end with: 2 usage or input, 3 ranks disagree, 75 another
    /// rank or the network, 101 a bug.
    pub fn exit_code(&self) -> u8 {
        use ErrorKind::*;
        match self.kind() {
            NoEnvironment { .. }
            | Setting { .. }
            | Secret { .. }
            | NoGpu { .. }
            | Bind { .. }
            | ServeMetrics { .. } => EXIT_USAGE,
            // A pod that waits for a node has no name yet, or none any more.
            UnknownHost { name, .. } if is_of_service(name) => EXIT_TRY_AGAIN,
            UnknownHost { .. } => EXIT_USAGE,
            Refused { retryable, .. } => {
                if *retryable {
                    EXIT_TRY_AGAIN
                } else {
                    EXIT_USAGE
                }
            }
            ConcurrentCalls { .. } | Forked { .. } | Argument { .. } | Closed | Done { .. } => {
                EXIT_USAGE
            }
            Mismatch { .. } | CallCount { .. } | Deadlock { .. } => EXIT_DISAGREE,
            ConnectTimeout { .. }
            | RankLost { .. }
            | LinkDown { .. }
            | CutOff { .. }
            | TimedOut { .. }
            | System { .. } => EXIT_TRY_AGAIN,
            Protocol { .. } => EXIT_BUG,
        }
    }
}

/// The causes. Each message is one line and in lower case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No launcher says that this process is a rank.
    #[error("no launcher says which rank this process is{seen}")]
    NoEnvironment {
        /// Launchers that are there, and why they do not say it.
        seen: String,
        /// What to do.
        help: Option<String>,
    },

    /// A setting has a value that cannot be used.
    #[error("{}", match .value {
        Some(value) => format!("{name}={value}: {problem}"),
        None => format!("{name} {problem}"),
    })]
    Setting {
        /// The variable or option.
        name: String,
        /// Its value, where showing it helps.
        value: Option<String>,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        help: Option<String>,
    },

    /// The job's secret cannot be read or used.
    #[error("{problem}")]
    Secret {
        /// What is wrong; never the secret itself.
        problem: String,
        /// What to do.
        help: Option<String>,
    },

    /// GPUs, their driver or NCCL cannot be used.
    #[error("{problem}")]
    NoGpu {
        /// What is missing or wrong.
        problem: String,
        /// What to do.
        help: Option<String>,
    },

    /// A socket could not be bound.
    #[error("cannot listen on {address}/udp: {problem}")]
    Bind {
        /// Address and port.
        address: String,
        /// The system's word.
        problem: String,
        /// What to do.
        help: Option<String>,
    },

    /// The address of `ALLFOLD_METRICS` cannot be listened on.
    #[error("cannot serve metrics at {address}: {problem}")]
    ServeMetrics {
        /// Address and port, the local rank counted in.
        address: String,
        /// What is in the way.
        problem: String,
        /// What to do.
        help: String,
    },

    /// A host name could not be resolved until the deadline.
    #[error("host `{name}` is unknown: {problem} (tried for {waited})")]
    UnknownHost {
        /// The name.
        name: String,
        /// The resolver's word.
        problem: String,
        /// How long it was tried.
        waited: String,
    },

    /// Not all ranks met before the deadline.
    #[error("{problem} (waited {waited})")]
    ConnectTimeout {
        /// Who is missing, or who does not answer and why.
        problem: String,
        /// How long it was tried.
        waited: String,
        /// What to do, where more is known.
        help: Option<String>,
    },

    /// Another rank refused this process.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
        /// Whether it may go better next time.
        retryable: bool,
        /// What to do.
        help: Option<String>,
    },

    /// The job is done, as rank 0's [`Doorkeeper`](crate::Doorkeeper) says: there is no world to
    /// take part in.
    #[error("{reason}")]
    Done {
        /// In rank 0's words.
        reason: String,
    },

    /// A rank is gone: it died, went silent, or left in the middle.
    #[error("rank {rank} ({at}) {how}{}", also(.call))]
    RankLost {
        /// The rank at fault, as numbered in the whole world.
        rank: usize,
        /// Where it ran: host, address, process.
        at: String,
        /// What happened to it, when, and what it did last.
        how: String,
        /// Which ranks were waiting in which call.
        call: Option<String>,
        /// What to do.
        help: Option<String>,
    },

    /// Two ranks are alive, and nothing comes from one to the other.
    #[error("the link between rank {rank} ({at}) and rank {peer} ({peer_at}) is down: {how}{}", also(.call))]
    LinkDown {
        /// The rank that waits, as numbered in the whole world.
        rank: usize,
        /// Where it runs.
        at: String,
        /// The rank from which nothing comes.
        peer: usize,
        /// Where that one runs.
        peer_at: String,
        /// How it shows.
        how: String,
        /// Which ranks were waiting in which call.
        call: Option<String>,
    },

    /// A rank, alive itself, hears no other: its host has lost the network.
    #[error("rank {rank} ({at}) is cut off: {how}{}", also(.call))]
    CutOff {
        /// That rank, as numbered in the whole world.
        rank: usize,
        /// Where it runs.
        at: String,
        /// Since when.
        how: String,
        /// Which ranks were waiting in which call.
        call: Option<String>,
    },

    /// Two ranks made different calls under the same sequence number.
    #[error("ranks disagree on call #{sequence}: {first}, but {second}")]
    Mismatch {
        /// The call's number on the communicator.
        sequence: u64,
        /// What one rank called, and where.
        first: String,
        /// What another rank called, and where.
        second: String,
    },

    /// A rank closed its communicator while another still had a call that needs it.
    #[error("rank {rank} ({at}) closed its communicator after {calls} calls, but {call}")]
    CallCount {
        /// The rank that closed, as numbered in the whole world.
        rank: usize,
        /// Where it ran.
        at: String,
        /// How many calls it made.
        calls: u64,
        /// The call that still needs it, and on which rank.
        call: String,
    },

    /// Every rank waits for a call that another one has not made.
    #[error("deadlock: {}", .calls.join("; "))]
    Deadlock {
        /// What each rank waits in, and where in the program.
        calls: Vec<String>,
    },

    /// A call did not end within ALLFOLD_TIMEOUT.
    #[error("{call} did not end within {limit} (ALLFOLD_TIMEOUT){}", .late.as_ref().map(|l| format!("; {l}")).unwrap_or_default())]
    TimedOut {
        /// The call.
        call: String,
        /// The limit.
        limit: String,
        /// Which ranks had not arrived.
        late: Option<String>,
    },

    /// Two threads made calls on one communicator at once.
    #[error("two calls at once on one communicator: {first} and {second}")]
    ConcurrentCalls {
        /// Source line of the call that was under way.
        first: String,
        /// Source line of the call that was refused.
        second: String,
    },

    /// The process forked after it connected.
    #[error("this process ({process}) is a fork of the one that connected ({connected})")]
    Forked {
        /// This process.
        process: u32,
        /// The process that connected.
        connected: u32,
    },

    /// An argument of a call is out of range. The call was not made and has no number: this rank may
    /// make it again with right arguments; until then the others wait for it.
    #[error("{problem}")]
    Argument {
        /// What is wrong with it.
        problem: String,
    },

    /// The communicator was closed before.
    #[error("the communicator is closed")]
    Closed,

    /// A peer sent something that allfold never sends: a bug, or an attack from inside the job.
    #[error("rank {rank} sent {problem}")]
    Protocol {
        /// The sender, as numbered in the whole world.
        rank: usize,
        /// What was wrong with it.
        problem: String,
    },

    /// The operating system refused something.
    #[error("{operation}: {problem}")]
    System {
        /// What was tried.
        operation: String,
        /// The system's word.
        problem: String,
    },
}

/// Whether it is a pod's name, `POD.SERVICE.NAMESPACE.svc` and the cluster's domain.
fn is_of_service(name: &str) -> bool {
    name.split('.').nth(3) == Some("svc")
}

fn no_pod(name: &str) -> String {
    let mut parts = name.split('.');
    let [pod, service, namespace] = [(); 3].map(|()| parts.next().unwrap_or_default());
    format!(
        "`kubectl -n {namespace} get service {service}` must show a headless Service (clusterIP: \
         None) with publishNotReadyAddresses: true, whose selector the pod {pod} has, and `kubectl \
         -n {namespace} get pod {pod}` that pod"
    )
}

/// What the ranks were waiting in, behind what happened.
fn also(call: &Option<String>) -> String {
    call.as_ref().map_or_else(String::new, |call| format!("; {call}"))
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Error {}

/// Usage or input: would fail again.
pub const EXIT_USAGE: u8 = 2;
/// The ranks disagree.
pub const EXIT_DISAGREE: u8 = 3;
/// Another rank or the network: try again.
pub const EXIT_TRY_AGAIN: u8 = 75;
/// A bug.
pub const EXIT_BUG: u8 = 101;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_small_and_prints_one_line() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        let error = Error::new(ErrorKind::NoEnvironment { seen: String::new(), help: None });
        assert_eq!(format!("{error}"), format!("{error:?}"));
        assert!(!error.to_string().contains('\n'));
        fn is_shareable<T: Send + Sync + Clone + 'static>() {}
        is_shareable::<Error>();
    }

    #[test]
    fn an_unknown_pod_names_its_service() {
        let help = |name: &str| {
            let kind = ErrorKind::UnknownHost {
                name: name.into(),
                problem: "none".into(),
                waited: "1 s".into(),
            };
            let error = Error::new(kind);
            let code = if name.starts_with("trainer-0.") { EXIT_TRY_AGAIN } else { EXIT_USAGE };
            assert_eq!(error.exit_code(), code, "{name}");
            error.help().unwrap()
        };
        let pod = help("trainer-0.trainer.ml.svc.cluster.local");
        assert!(pod.starts_with("`kubectl -n ml get service trainer` must show a headless"));
        assert!(pod.contains("`kubectl -n ml get pod trainer-0`"), "{pod}");
        for host in ["node-0", "a.b.svc", "node-0.example.org"] {
            assert!(help(host).starts_with("check the name with `getent hosts"), "{host}");
        }
    }
}
