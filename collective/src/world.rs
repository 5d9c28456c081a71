//! What the threads of one rank share: who is in the world, how far each has come on every
//! communicator, and the verdict that ends it all.

mod communicators;
mod doubt;
mod words;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::contract;
use crate::control::ControlHandle;
use crate::deadlock::{Blocked, Reports, Stuck, Threads, Wait, is_only_thread};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Accusation, Group};
use crate::lanes::Inboxes;
use crate::plan::costs::Choice;
use crate::report;
use crate::statistics::Counters;
use crate::verdict::{Fault, Loss, Verdict};

pub(crate) use communicators::Goodbye;
use communicators::{EarlyGoodbye, Turn};
use doubt::Doubts;
pub(crate) use doubt::Judged;

/// A rank of the world, as it introduced itself at the start.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its number in the communicator that was asked.
    pub rank: usize,
    /// The host name it gave.
    pub host: String,
    /// Its process id on that host.
    pub pid: u32,
    /// Where this rank has found it, else where rank 0 has; None within a process.
    pub address: Option<IpAddr>,
    /// All addresses at which it may be found, the best first.
    pub(crate) ways: Vec<IpAddr>,
    /// Where its process id is known (see `control/processes.rs`).
    pub(crate) habitat: u64,
    /// Equal in ranks that share memory with each other; None shares with nobody.
    pub(crate) home: Option<u64>,
}

impl Peer {
    /// A rank of which no more is known.
    pub fn new(rank: usize, host: &str, pid: u32) -> Self {
        Self {
            rank,
            host: host.into(),
            pid,
            address: None,
            ways: Vec::new(),
            habitat: 0,
            home: None,
        }
    }

    /// Whether the two have mapped each other's memory; both are of the same world.
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        self.home.is_some() && self.home == other.home
    }

    /// Where this rank may find what that one says is at `address`, the best first: it may know
    /// itself by an address that only its host has.
    pub(crate) fn found_at(&self, address: SocketAddr) -> Vec<SocketAddr> {
        match self.ways.is_empty() {
            true => vec![address],
            false => self.ways.iter().map(|ip| SocketAddr::new(*ip, address.port())).collect(),
        }
    }

    /// Whether it is on the same host. Hosts may have the same name, which counts only where a rank
    /// could not say more.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        match self.habitat == 0 || other.habitat == 0 {
            true => self.host == other.host,
            false => self.habitat == other.habitat || self.shares_memory_with(other),
        }
    }
}

/// One rank's view of the world.
pub(crate) struct World {
    pub(crate) rank: u32,
    pub(crate) epoch: u64,
    pub(crate) peers: Vec<Peer>,
    pub(crate) limits: Limits,
    /// How plans are chosen, alike on all ranks.
    pub(crate) choice: Choice,
    pub(crate) counters: Arc<Counters>,
    state: Mutex<State>,
    verdict: OnceLock<(Verdict, Error)>,
    /// A call has returned the error that ended the world.
    told: AtomicBool,
    lanes: OnceLock<Inboxes>,
    /// Segments sent and received, by all lanes.
    moved: AtomicU64,
    control: OnceLock<ControlHandle>,
}

/// For communicators, whose numbers are members' own and are looked up several times in each call.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = contract::mix(self.0 ^ word);
    }
}

/// How long to wait before saying something, and before giving up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A call that waits longer names the late ranks in a warning; ranks that all wait longer, in
    /// vain, are a deadlock.
    pub(crate) late_after: Duration,
    /// A call that waits longer is an error.
    pub(crate) timeout: Option<Duration>,
    /// How long silence is borne; None: for ever, or there is no network.
    pub(crate) dead_after: Option<Duration>,
}

struct State {
    groups: HashMap<u64, Group, BuildHasherDefault<Mixed>>,
    /// The pairs that this rank has made, by communicator.
    pairs: HashMap<u64, Vec<u64>>,
    /// Each rank's goodbyes on communicators that this one has not made yet, by communicator.
    early: Vec<HashMap<u64, EarlyGoodbye>>,
    /// Communicators that all members have closed: words about them may still come.
    over: VecDeque<u64>,
    /// Which ranks have left the world.
    left: Vec<bool>,
    threads: Threads,
    /// On the collector.
    stuck: Reports,
    /// Whose turn it is in a heartbeat.
    turn: Turn,
    /// Differences of which more is asked.
    doubts: Doubts,
}

impl World {
    pub(crate) fn new(
        rank: u32,
        epoch: u64,
        peers: Vec<Peer>,
        limits: Limits,
        choice: Choice,
        counters: Arc<Counters>,
    ) -> Self {
        counters.connected(epoch);
        let members = (0..peers.len() as u32).collect();
        let whole = Group::new(epoch, WHOLE_WORLD, "", members, rank);
        let state = State {
            groups: std::iter::once((WHOLE_WORLD, whole)).collect(),
            pairs: HashMap::new(),
            early: peers.iter().map(|_| HashMap::new()).collect(),
            over: VecDeque::new(),
            left: vec![false; peers.len()],
            threads: Threads::default(),
            stuck: Reports::default(),
            turn: Turn::default(),
            doubts: Doubts::default(),
        };
        Self {
            rank,
            epoch,
            peers,
            limits,
            choice,
            counters,
            state: Mutex::new(state),
            verdict: OnceLock::new(),
            told: AtomicBool::new(false),
            lanes: OnceLock::new(),
            moved: AtomicU64::new(0),
            control: OnceLock::new(),
        }
    }

    /// The process of another rank, if it is one of this host whose number means the same here.
    pub(crate) fn process_here(&self, rank: u32) -> Option<u32> {
        let own = self.peers.get(self.rank as usize)?;
        let peer = self.peers.get(rank as usize)?;
        let is_here = own.habitat != 0 && own.habitat == peer.habitat && own.pid != peer.pid;
        is_here.then_some(peer.pid)
    }

    /// Joins the threads to the world; a verdict reaches them from here on.
    pub(crate) fn attach(&self, lanes: Inboxes, control: ControlHandle) {
        let _ = self.lanes.set(lanes);
        let _ = self.control.set(control);
    }

    pub(crate) fn control(&self) -> Option<&ControlHandle> {
        self.control.get()
    }

    /// `trainer-3, 10.244.0.7, pid 41`: where a rank ran.
    pub(crate) fn place(&self, rank: u32) -> String {
        let Some(Peer { host, pid, address, .. }) = self.peers.get(rank as usize) else {
            return "unknown".into();
        };
        match address.filter(|address| !address.is_loopback()) {
            Some(address) => format!("{host}, {address}, pid {pid}"),
            None => format!("{host}, pid {pid}"),
        }
    }

    /// A communicator was split off.
    pub(crate) fn note_split(&self, group: u64) {
        self.state().threads.awaits_caller(group);
    }

    /// This thread waits for a call, until the answer is dropped.
    pub(crate) fn note_waiting(&self, group: u64, sequence: u64) -> Waiting<'_> {
        self.state().threads.waits(group, sequence);
        Waiting(self)
    }

    /// What this rank says to rank 0 if every thread that could make a call waits for one.
    pub(crate) fn stuck(&self) -> Option<Stuck> {
        let (stuck, unless_another) = self.blocked()?;
        // The state is not locked while /proc is read.
        (!unless_another || is_only_thread()).then_some(stuck)
    }

    /// The threads that wait in calls, as the kernel numbers them.
    pub(crate) fn waiting_threads(&self) -> Vec<u32> {
        self.state().threads.waiting_ids()
    }

    /// What the threads that are known to make calls wait for, if all do; and whether it counts
    /// only if there is no other.
    fn blocked(&self) -> Option<(Stuck, bool)> {
        let state = self.state();
        let Blocked { calls, unless_another } = state.threads.blocked()?;
        let waits = calls.into_iter().filter_map(|(id, sequence)| {
            let group = state.groups.get(&id)?;
            let call = group.describe_call(sequence)?;
            Some(Wait { group: id, sequence, members: group.members().to_vec(), call })
        });
        let waits: Vec<Wait> = waits.collect();
        let calls = state
            .groups
            .iter()
            .map(|(id, group)| (*id, group.calls().0, group.calls().1))
            .collect();
        (!waits.is_empty()).then_some((Stuck { calls, waits }, unless_another))
    }

    /// The lowest rank that has not left, which collects what the stuck ranks say.
    pub(crate) fn collector(&self) -> u32 {
        let state = self.state();
        (0..).zip(&state.left).find(|(_, left)| !**left).map_or(self.rank, |(rank, _)| rank)
    }

    /// On the collector: a rank says at `now` that it cannot go on.
    pub(crate) fn note_stuck(&self, rank: u32, stuck: Stuck, now: Instant) {
        if !stuck.is_within_limits(self.peers.len()) {
            return;
        }
        let calls = {
            let mut state = self.state();
            let State { stuck: reports, left, .. } = &mut *state;
            let here = (0..).zip(left.iter()).filter(|(_, left)| !**left).map(|(rank, _)| rank);
            reports.note(rank, stuck, now, here)
        };
        if let Some(calls) = calls {
            self.raise(self.rank, Fault::Deadlock { calls });
        }
    }

    /// Ends the world for what was found, if anything was.
    pub(crate) fn accuse(&self, accusation: Option<Accusation>) {
        if let Some(Accusation { culprit, fault }) = accusation {
            self.raise(culprit, fault);
        }
    }

    /// Ends the world: `culprit` is at fault, as this rank sees it.
    pub(crate) fn raise(&self, culprit: u32, fault: Fault) {
        // What is known already comes first.
        if !matches!(fault, Fault::Mismatch { .. }) {
            self.end_doubt();
        }
        let waiting = match fault {
            Fault::Lost { .. } | Fault::LinkDown { .. } => self.waiting(Some(culprit)),
            Fault::CutOff { .. } => self.waiting(None),
            // They show calls themselves.
            _ => None,
        };
        let (epoch, seen_by) = (self.epoch, self.rank);
        self.settle(Verdict { epoch, seen_by, culprit, fault, waiting });
    }

    /// Ends the world: this rank is on its way out, and says nothing of what others may know better.
    pub(crate) fn depart(&self) {
        self.end_doubt();
        let (epoch, seen_by, culprit) = (self.epoch, self.rank, self.rank);
        let fault = Fault::Lost { loss: Loss::Departed, last: None };
        self.settle(Verdict { epoch, seen_by, culprit, fault, waiting: None });
    }

    /// Ends the world: `rank` is lost.
    pub(crate) fn lose(&self, rank: u32, loss: Loss) {
        let last = self.last_seen(rank);
        self.raise(rank, Fault::Lost { loss, last });
    }

    /// Ends the world with a verdict of this rank or of another; only the first one counts.
    pub(crate) fn settle(&self, verdict: Verdict) {
        if verdict.epoch != self.epoch {
            return;
        }
        let error = self.error_of(&verdict);
        if self.verdict.set((verdict, error)).is_err() {
            return;
        }
        let call = self.call_under_way();
        if let Some(lanes) = self.lanes() {
            lanes.abort();
        }
        let Some((verdict, error)) = self.verdict.get() else { return };
        self.counters.aborted(&verdict.fault, &error.to_string());
        if let Some(control) = self.control.get() {
            control.flood(verdict);
        }
        report::has_ended(&self.counters.origin, error, call);
    }

    /// What a call returns that ended with `result`. Its error is the world's.
    pub(crate) fn conclude(&self, result: Result<()>) -> Result<()> {
        let Err(error) = result else { return Ok(()) };
        // Without a verdict the lane itself has failed: the others must not wait for this rank.
        if self.error().is_none() {
            self.lose(self.rank, Loss::Failed { problem: error.to_string() });
        }
        // A program may end right after an error: it must have been said by then, which is waited
        // for once, and the others must have been told.
        self.tell();
        self.wait_flooded();
        #[cfg(feature = "faults")]
        crate::faults::failed(self.rank);
        Err(self.error().unwrap_or(error))
    }

    /// The error that has ended the world, for a call to return.
    pub(crate) fn ended(&self) -> Error {
        let closed = || Error::from(ErrorKind::Closed);
        self.conclude(Err(closed())).err().unwrap_or_else(closed)
    }

    /// Waits until the verdict is on its way to the others, and said here.
    pub(crate) fn wait_told(&self) {
        self.wait_flooded();
        report::flush();
    }

    fn wait_flooded(&self) {
        if let Some(control) = self.control() {
            control.wait_flooded(FLOOD_LIMIT);
        }
    }

    /// A call returns the error that ended the world. True the first time.
    pub(crate) fn tell(&self) -> bool {
        let is_first = !self.told.swap(true, Ordering::Relaxed);
        if is_first {
            report::flush();
        }
        is_first
    }

    /// The error every call returns, once there is a verdict.
    pub(crate) fn error(&self) -> Option<Error> {
        self.verdict.get().map(|(_, error)| error.clone())
    }

    /// Whether the world has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.verdict.get().is_some()
    }

    /// The lanes, once they are attached.
    pub(crate) fn lanes(&self) -> Option<&Inboxes> {
        self.lanes.get()
    }

    /// A lane has sent or received a segment.
    pub(crate) fn note_moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes whenever a lane has sent or received a segment.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Why the world ended, if it did.
    #[cfg(test)]
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.verdict.get().map(|(verdict, _)| verdict)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread waits for as long as this lives.
pub(crate) struct Waiting<'a>(&'a World);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().threads.goes_on();
    }
}

/// The communicator of all ranks.
pub(crate) const WHOLE_WORLD: u64 = 0;

/// Writing a verdict to open connections takes microseconds; a peer that does not take it is not
/// waited for.
const FLOOD_LIMIT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::costs::CostTable;

    /// Rank 0's view of a world of three.
    pub(super) fn of_three() -> World {
        rank_of_three(0)
    }

    pub(super) fn rank_of_three(rank: u32) -> World {
        let late_after = Duration::from_secs(10);
        let limits = Limits { late_after, timeout: None, dead_after: None };
        let choice = Choice { costs: CostTable::default(), forced: None, lanes: 1 };
        let peers = (0..3).map(|rank| Peer::new(rank, "host", 1)).collect();
        World::new(rank, 1, peers, limits, choice, Arc::new(Counters::new(rank, 3, "memory")))
    }

    #[test]
    fn a_rank_is_looked_for_at_all_its_addresses_by_the_port_it_says() {
        let said: SocketAddr = "127.0.0.1:4711".parse().unwrap();
        let unknown = Peer::new(1, "host", 1);
        assert_eq!(unknown.found_at(said), [said]);
        let ways = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).to_vec();
        let known = Peer { address: ways.first().copied(), ways, ..unknown };
        let expected: [SocketAddr; 2] =
            ["192.0.2.1:4711", "[2001:db8::1]:4711"].map(|way| way.parse().unwrap());
        assert_eq!(known.found_at(said), expected);
    }

    #[test]
    fn a_report_beyond_all_limits_counts_for_nothing() {
        let world = of_three();
        let now = Instant::now();
        // Each waits for a call that the others have not made.
        let report = |rank: u32, members: u32| {
            let members = (0..members).collect();
            let wait = Wait { group: u64::from(rank), sequence: 0, members, call: "it".into() };
            Stuck { calls: vec![(u64::from(rank), 1, 7)], waits: vec![wait] }
        };
        for rank in [0, 1] {
            world.note_stuck(rank, report(rank, 3), now);
        }
        world.note_stuck(2, report(2, 4), now);
        assert_eq!(world.verdict(), None, "of a world of four");
        world.note_stuck(2, report(2, 3), now);
        assert!(matches!(world.verdict().map(|v| &v.fault), Some(Fault::Deadlock { .. })));
    }
}
