//! The counters behind the statistics: atomics that all threads of a rank share. Counting takes no
//! lock and allocates nothing, except once for each kind of call, each link and each rank that was
//! late.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::waits::Waits;
use super::{
    CallStatistics, LateStatistics, LinkStatistics, PeerStatistics, ReasonCount, SocketStatistics,
    Statistics,
};
use crate::contract::Collective;
use crate::plan::Algorithm;
use crate::report::Origin;
use crate::verdict::Fault;

/// What one rank counts; made before the ranks meet.
pub(crate) struct Counters {
    /// Who counts, as its lines name it.
    pub(crate) origin: Arc<Origin>,
    rank: usize,
    transport: &'static str,
    made: Instant,
    phase: AtomicU8,
    epoch: AtomicU64,
    peers: Box<[PeerCounters]>,
    sockets: Mutex<Vec<Probe<SocketStatistics>>>,
    /// By collective and algorithm.
    calls: [[OnceLock<Box<CallCounters>>; Algorithm::ALL.len()]; Collective::NAMES.len()],
    aborts: [AtomicU64; ABORTS.len()],
    /// Why the world ended, in words.
    abort: OnceLock<String>,
    refused: [AtomicU64; REFUSALS.len()],
}

#[derive(Default)]
struct PeerCounters {
    sent: AtomicU64,
    received: AtomicU64,
    late_ns: AtomicU64,
    /// Made at the first.
    waits: OnceLock<Box<Waits>>,
    /// Nanoseconds since the counters were made; 0: never.
    heard_ns: AtomicU64,
    link: Mutex<Option<Probe<LinkStatistics>>>,
}

/// Asks a link or a socket how it is; None once it is gone.
type Probe<T> = Box<dyn Fn() -> Option<T> + Send + Sync>;

#[derive(Default)]
pub(crate) struct CallCounters {
    total_ns: AtomicU64,
    /// How many took at most as long as the bound, and longer than the one before; one more than
    /// there are bounds.
    buckets: [AtomicU64; CALL_SECONDS.len() + 1],
}

/// Which kind of call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallKey {
    pub(crate) collective: Collective,
    pub(crate) algorithm: Algorithm,
}

/// How far a world has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting,
    Connected,
    Closed,
}

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The handshake failed: another secret, another job, another version.
    Untrusted,
    /// It is a member, but said no hello, or not its own.
    NoHello,
    /// Too many handshakes at once.
    TooMany,
    /// Rank 0 has a reason against it: its settings, its rank, its version.
    Rendezvous,
    /// The world has begun without it.
    Running,
    /// It belongs to another run of the job.
    OtherRun,
    /// It went away by itself, as one does that was faster at another address.
    HungUp,
}

impl Counters {
    /// For `rank` of `size`; `transport` names what carries the data.
    pub(crate) fn new(rank: u32, size: usize, transport: &'static str) -> Self {
        Self {
            origin: Arc::new(Origin::in_memory(rank)),
            rank: rank as usize,
            transport,
            made: Instant::now(),
            phase: AtomicU8::new(Phase::Connecting as u8),
            epoch: AtomicU64::new(0),
            peers: (0..size).map(|_| PeerCounters::default()).collect(),
            sockets: Mutex::default(),
            calls: Default::default(),
            aborts: Default::default(),
            abort: OnceLock::new(),
            refused: Default::default(),
        }
    }

    /// The process is this rank of a job.
    pub(crate) fn of(self, job: &str, host: &str) -> Self {
        let origin = Arc::new(Origin::new(job, self.rank as u32, host));
        origin.introduce();
        Self { origin, ..self }
    }

    pub(crate) fn sent(&self, peer: u32, bytes: usize) {
        if let Some(peer) = self.peers.get(peer as usize) {
            peer.sent.fetch_add(bytes as u64, Relaxed);
        }
    }

    pub(crate) fn received(&self, peer: u32, bytes: usize) {
        if let Some(peer) = self.peers.get(peer as usize) {
            peer.received.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// This rank waits for `peer` to begin a call, by so much longer than was said before.
    pub(crate) fn waits(&self, peer: u32, more: Duration) {
        if let Some(peer) = self.peers.get(peer as usize) {
            peer.late_ns.fetch_add(nanoseconds(more), Relaxed);
        }
    }

    /// A wait for `peer` to begin a call has ended, all of which has been said.
    pub(crate) fn waited(&self, peer: u32, wait: Duration) {
        if let Some(peer) = self.peers.get(peer as usize) {
            peer.waits.get_or_init(Box::default).add(nanoseconds(wait));
        }
    }

    /// A heartbeat of `peer` has come.
    pub(crate) fn heard(&self, peer: u32) {
        if let Some(peer) = self.peers.get(peer as usize) {
            peer.heard_ns.store(nanoseconds(self.made.elapsed()).max(1), Relaxed);
        }
    }

    /// Since the last heartbeat of `peer`; None before the first.
    pub(crate) fn heartbeat_age(&self, peer: u32) -> Option<Duration> {
        let heard = self.peers.get(peer as usize)?.heard_ns.load(Relaxed);
        let heard = (heard > 0).then(|| Duration::from_nanos(heard))?;
        Some(self.made.elapsed().saturating_sub(heard))
    }

    /// There is a data link to `peer`; `state` asks it how it is.
    pub(crate) fn linked(
        &self,
        peer: u32,
        state: impl Fn() -> Option<LinkStatistics> + Send + Sync + 'static,
    ) {
        if let Some(peer) = self.peers.get(peer as usize) {
            *peer.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(state));
        }
    }

    /// A lane has a socket; `state` asks it how it is.
    pub(crate) fn listens(
        &self,
        state: impl Fn() -> Option<SocketStatistics> + Send + Sync + 'static,
    ) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(state));
    }

    /// A call ended well.
    pub(crate) fn call(&self, key: CallKey, took: Duration) {
        let counters = &self.calls[key.collective.index()][key.algorithm as usize];
        let counters = counters.get_or_init(Box::default);
        counters.total_ns.fetch_add(nanoseconds(took), Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = match seconds <= CALL_SECONDS[0] {
            // Calls so short would notice the search.
            true => 0,
            false => CALL_SECONDS.partition_point(|bound| *bound < seconds),
        };
        counters.buckets[bucket].fetch_add(1, Relaxed);
    }

    /// The world ended in an error.
    pub(crate) fn aborted(&self, fault: &Fault, words: &str) {
        let reason = match fault {
            Fault::Lost { .. } => 0,
            Fault::Mismatch { .. } => 1,
            Fault::CallCount { .. } => 2,
            Fault::Deadlock { .. } => 3,
            Fault::TimedOut { .. } => 4,
            Fault::Protocol { .. } => 5,
            Fault::LinkDown { .. } => 6,
            Fault::CutOff { .. } => 7,
        };
        let _ = self.abort.set(words.to_string());
        self.aborts[reason].fetch_add(1, Relaxed);
    }

    /// A connection was turned away.
    pub(crate) fn refused(&self, reason: Refusal) {
        self.refused[reason as usize].fetch_add(1, Relaxed);
    }

    /// The world has begun.
    pub(crate) fn connected(&self, epoch: u64) {
        self.epoch.store(epoch, Relaxed);
        self.origin.set_epoch(epoch);
        self.phase.store(Phase::Connected as u8, Relaxed);
    }

    /// This rank has left the world, or never came into it.
    pub(crate) fn closed(&self) {
        self.epoch.store(0, Relaxed);
        self.phase.store(Phase::Closed as u8, Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        let phase = self.phase.load(Relaxed);
        let known = [Phase::Connecting, Phase::Connected];
        known.into_iter().find(|known| *known as u8 == phase).unwrap_or(Phase::Closed)
    }

    /// 0 unless connected.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// Why the world ended, if it did.
    pub(crate) fn abort(&self) -> Option<&str> {
        self.abort.get().map(String::as_str)
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn size(&self) -> usize {
        self.peers.len()
    }

    pub(crate) fn transport(&self) -> &'static str {
        self.transport
    }

    /// What carries the data of calls by this algorithm.
    pub(crate) fn transport_of(&self, algorithm: &str) -> &'static str {
        let own = [Algorithm::SharedMemory, Algorithm::Nccl].map(Algorithm::name);
        own.into_iter().find(|name| *name == algorithm).unwrap_or(self.transport)
    }

    pub(crate) fn stats(&self) -> Statistics {
        let count = |(reason, count): (&&'static str, &AtomicU64)| ReasonCount {
            reason,
            count: count.load(Relaxed),
        };
        let others = self.peers.iter().enumerate().filter(|(rank, _)| *rank != self.rank);
        Statistics {
            peers: others.map(|(rank, peer)| self.peer(rank, peer)).collect(),
            sockets: self.sockets(),
            calls: self.calls().map(|(key, calls)| self.calls_of(key, calls)).collect(),
            aborts: ABORTS.iter().zip(&self.aborts).map(count).collect(),
            refused_connections: REFUSALS.iter().zip(&self.refused).map(count).collect(),
        }
    }

    /// Lanes begin in any order.
    fn sockets(&self) -> Vec<SocketStatistics> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sockets: Vec<_> = sockets.iter().filter_map(|state| state()).collect();
        sockets.sort_unstable_by_key(|socket| socket.lane);
        sockets
    }

    /// The kinds of call of which one has ended well: collective and algorithm.
    pub(crate) fn calls(
        &self,
    ) -> impl Iterator<Item = ((&'static str, &'static str), &CallCounters)> {
        let rows = Collective::NAMES.into_iter().zip(&self.calls);
        rows.flat_map(|(collective, row)| {
            let cells = Algorithm::ALL.iter().zip(row);
            cells.filter_map(move |(algorithm, cell)| {
                Some(((collective, algorithm.name()), &**cell.get()?))
            })
        })
    }

    /// Those of one kind, if one has ended well.
    pub(crate) fn calls_of_kind(
        &self,
        collective: Collective,
        algorithm: Algorithm,
    ) -> Option<&CallCounters> {
        self.calls[collective.index()][algorithm as usize].get().map(|calls| &**calls)
    }

    fn calls_of(
        &self,
        (collective, algorithm): (&'static str, &'static str),
        counters: &CallCounters,
    ) -> CallStatistics {
        let transport = self.transport_of(algorithm);
        let (calls, time) = (counters.count(), counters.total());
        CallStatistics { collective, algorithm, transport, calls, time }
    }

    fn peer(&self, rank: usize, peer: &PeerCounters) -> PeerStatistics {
        let heard = Some(peer.heard_ns.load(Relaxed)).filter(|heard| *heard > 0);
        let age = |heard| self.made.elapsed().saturating_sub(Duration::from_nanos(heard));
        let link = peer.link.lock().unwrap_or_else(PoisonError::into_inner);
        let link = link.as_ref().and_then(|state| state());
        PeerStatistics {
            rank,
            bytes_sent: peer.sent.load(Relaxed),
            bytes_received: peer.received.load(Relaxed),
            late: peer.late(),
            rtt: link.as_ref().map(|link| link.rtt),
            link,
            heartbeat_age: heard.map(age),
        }
    }
}

impl PeerCounters {
    fn late(&self) -> LateStatistics {
        let total = Duration::from_nanos(self.late_ns.load(Relaxed));
        match self.waits.get() {
            Some(waits) => waits.summary(total),
            None => LateStatistics { total, ..LateStatistics::default() },
        }
    }
}

impl CallCounters {
    pub(crate) fn count(&self) -> u64 {
        self.buckets().map(|(_, calls)| calls).sum()
    }

    pub(crate) fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns.load(Relaxed))
    }

    /// Calls that took at most so many seconds, and more than the bound before; the last is
    /// infinite.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = CALL_SECONDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.buckets.iter().map(|calls| calls.load(Relaxed)))
    }
}

/// 584 years are enough.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// In the order of `aborted`.
const ABORTS: [&str; 8] = [
    "rank_lost",
    "mismatch",
    "call_count",
    "deadlock",
    "timed_out",
    "protocol",
    "link_down",
    "cut_off",
];
/// In the order of `Refusal`.
const REFUSALS: [&str; 7] =
    ["untrusted", "no_hello", "too_many", "rendezvous", "running", "other_run", "hung_up"];
/// A barrier in one host takes some 50 us; a call that waits for a late rank, seconds.
const CALL_SECONDS: [f64; 22] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let counters = Counters::new(0, 2, "memory");
        let key = CallKey { collective: Collective::Barrier, algorithm: Algorithm::Dissemination };
        for micros in [0, 10, 11, 25, 100_000_000, 100_000_001] {
            counters.call(key, Duration::from_micros(micros));
        }
        let (names, calls) = counters.calls().next().unwrap();
        assert_eq!(names, ("barrier", "dissemination"));
        let filled: Vec<_> = calls.buckets().filter(|(_, calls)| *calls > 0).collect();
        assert_eq!(filled, [(1e-5, 2), (2.5e-5, 2), (100.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(calls.count(), 6);
        assert_eq!(calls.total(), Duration::from_micros(200_000_047));
    }

    #[test]
    fn ranks_beyond_the_world_are_nobody() {
        let counters = Counters::new(1, 2, "memory");
        for rank in [0, 1, 2, u32::MAX] {
            counters.sent(rank, 7);
            counters.waits(rank, Duration::MAX);
            counters.waited(rank, Duration::MAX);
            counters.heard(rank);
        }
        let statistics = counters.stats();
        assert_eq!(statistics.peers.len(), 1);
        assert_eq!((statistics.peers[0].rank, statistics.bytes_sent()), (0, 7));
        assert!(statistics.peers[0].heartbeat_age.is_some());
        assert_eq!(statistics.peers[0].rtt, None);
    }
}
