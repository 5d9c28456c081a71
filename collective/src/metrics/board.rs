//! What a server of metrics shows: the world that is there now, and what the program puts beside it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Metrics;
use super::address::Address;
use super::server;
use crate::error::Result;
use crate::report;
use crate::statistics::{Counters, Phase};

/// Outlives the world that it shows.
#[derive(Debug)]
pub(crate) struct Board {
    /// As the setting says, this rank's place on its host counted in.
    asked: Address,
    /// Where the server listens.
    address: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    shown: Shown,
    own: Vec<Own>,
}

/// A world, as the server shows it.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) about: About,
    pub(crate) counters: Arc<Counters>,
}

/// What stays as it is for as long as a world lives.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) job: String,
    pub(crate) host: String,
}

/// A metric of the program's.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) kind: Kind,
    /// Without `_total`.
    pub(crate) name: String,
    pub(crate) help: String,
    /// A counter's number, or a gauge's bits.
    pub(crate) value: Arc<AtomicU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gauge,
    Counter,
}

/// What a probe is told; the words say why not.
pub(crate) enum Health {
    Well,
    Ill(String),
}

impl Metrics {
    /// Serves a world's metrics at `asked`, for as long as the process lives: the last numbers of a
    /// world that has ended can still be read. The process's next world takes the place of one that
    /// has ended; the program's own metrics stay.
    pub(crate) fn serve(asked: Address, about: About, counters: Arc<Counters>) -> Result<Self> {
        let shown = Shown { about, counters };
        let process = std::process::id();
        let mut boards = BOARDS.lock().unwrap_or_else(PoisonError::into_inner);
        // A fork has none of the threads.
        boards.retain(|(owner, _)| *owner == process);
        let free = |board: &&Arc<Board>| board.asked == asked && board.is_over();
        if let Some(board) = boards.iter().map(|(_, board)| board).find(free) {
            board.state().shown = shown;
            return Ok(Self::on(board.clone()));
        }
        let (listener, address) = server::listen(asked)?;
        let state = Mutex::new(State { shown, own: Vec::new() });
        let board = Arc::new(Board { asked, address, state });
        server::start(listener, board.clone())?;
        report::info(&format!("metrics at http://{address}/metrics"));
        boards.push((process, board.clone()));
        Ok(Self::on(board))
    }
}

/// With the processes they belong to.
static BOARDS: Mutex<Vec<(u32, Arc<Board>)>> = Mutex::new(Vec::new());

impl Board {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn shown(&self) -> Shown {
        self.state().shown.clone()
    }

    /// The program's metrics, in the order in which they were asked for.
    pub(crate) fn owns(&self) -> Vec<Own> {
        self.state().own.clone()
    }

    /// The value of the program's metric of this name, made if it is new.
    pub(crate) fn own(&self, kind: Kind, name: &str, help: &str) -> Option<Arc<AtomicU64>> {
        let mut state = self.state();
        if let Some(own) = state.own.iter().find(|own| own.kind == kind && own.name == name) {
            return Some(own.value.clone());
        }
        let problem = if !is_name(name) {
            "a name begins with a letter and consists of letters, digits and underscores"
        } else if state.own.iter().any(|own| overlap(&own.name, name))
            || BUILT_IN.iter().any(|taken| overlap(taken, name))
        {
            "the name is taken"
        } else {
            let help = help.replace(['\\', '\n', '\r'], " ");
            let value = Arc::new(AtomicU64::new(0));
            state.own.push(Own { kind, name: name.into(), help, value: value.clone() });
            return Some(value);
        };
        report::warn(&format!("metric `{}` is not shown: {problem}", report::printable(name)));
        None
    }

    /// Whether the process is as it should be: no world has ended in an error.
    pub(crate) fn health(&self) -> Health {
        match self.shown().counters.abort() {
            Some(words) => Health::Ill(words.into()),
            None => Health::Well,
        }
    }

    /// Whether the ranks have met, and calls can be made.
    pub(crate) fn readiness(&self) -> Health {
        match (self.health(), self.shown().counters.phase()) {
            (Health::Ill(words), _) => Health::Ill(words),
            (_, Phase::Connected) => Health::Well,
            (_, Phase::Connecting) => Health::Ill("waiting for the other ranks".into()),
            (_, Phase::Closed) => Health::Ill("the communicator is closed".into()),
        }
    }

    fn is_over(&self) -> bool {
        let shown = self.shown();
        shown.counters.phase() == Phase::Closed || shown.counters.abort().is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Own {
    pub(crate) fn count(&self) -> u64 {
        self.value.load(Relaxed)
    }

    pub(crate) fn level(&self) -> f64 {
        f64::from_bits(self.value.load(Relaxed))
    }
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.about.fmt(f)
    }
}

fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

/// Whether two names would be shown alike: some kinds of metric append to theirs.
fn overlap(one: &str, other: &str) -> bool {
    let stem = |name: &str| {
        let ends = ["_total", "_bucket", "_count", "_sum", "_created", "_info"];
        let end = ends.iter().find_map(|end| name.strip_suffix(end));
        end.unwrap_or(name).to_string()
    };
    stem(one) == stem(other)
}

/// What allfold shows itself, without endings.
const BUILT_IN: [&str; 11] = [
    "allfold",
    "allfold_world_size",
    "allfold_epoch",
    "allfold_calls",
    "allfold_call_seconds",
    "allfold_bytes",
    "allfold_late_seconds",
    "allfold_heartbeat_age_seconds",
    "allfold_link_rtt_seconds",
    "allfold_aborts",
    "allfold_refused_connections",
];
