//! What a rank has counted since its world began: bytes, calls, lateness, refusals.

mod counters;
mod network;
mod waits;

use std::time::Duration;

use crate::communicator::{Communicator, Kind};

pub(crate) use counters::{CallKey, Counters, Phase, Refusal};
pub use network::{LinkStatistics, SocketStatistics};

/// What this rank has counted since its world began; see [`Communicator::stats`].
///
/// Counters only grow. They are of the whole world, whichever of its communicators is asked, and
/// ranks are numbered as in the whole world.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// The other ranks, in order; those that this rank never had to do with as well.
    pub peers: Vec<PeerStatistics>,
    /// Of the lanes, in order; none where there is no network.
    pub sockets: Vec<SocketStatistics>,
    /// Calls that ended well, by kind: those kinds of which there was one.
    pub calls: Vec<CallStatistics>,
    /// Why the world ended in an error, if it did: all reasons there are, 0 or 1 each.
    pub aborts: Vec<ReasonCount>,
    /// Connections that this rank turned away, by reason: all reasons there are.
    pub refused_connections: Vec<ReasonCount>,
}

/// What this rank has exchanged with another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatistics {
    /// The other rank, as numbered in the whole world.
    pub rank: usize,
    /// Bytes of calls handed to the link: data and allfold's headers, each once, without QUIC's own
    /// framing and what it sends again.
    pub bytes_sent: u64,
    /// Bytes of calls read from the link, counted alike.
    pub bytes_received: u64,
    /// How late this peer came to calls that this rank had begun.
    pub late: LateStatistics,
    /// The smoothed round trip of the data link, as it is now; None without a link, or where it is
    /// not a network.
    pub rtt: Option<Duration>,
    /// The data link; None without one, or where it is not a network.
    pub link: Option<LinkStatistics>,
    /// Since the last heartbeat; None of ranks that this one does not watch, and before the first.
    pub heartbeat_age: Option<Duration>,
}

/// How long this rank waited, with a call under way, for a peer to come.
///
/// A wait is the time from this rank's own beginning of a call (its turn has come, on the lane)
/// until the header of the peer's first message of that call is read here, for each flow whose
/// first message depends on nothing but that the peer has begun the call. A message that has to
/// wait for a third rank is not counted, so the peer is blamed for no other's lateness. A peer
/// that came first counts nothing. It includes the network's latency, and where calls follow
/// each other at once also by how much this rank ended the call before sooner. Calls that are under
/// way at the same time count each for itself. Half a second or more in which this rank was itself
/// stopped counts for nobody.
///
/// In a ring it is known of the left neighbour only, in a tree of the leaves: the lateness of
/// rank r is found on the ranks that receive from it first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LateStatistics {
    /// Waits that have ended.
    pub count: u64,
    /// All waits together. One of more than a second is counted while it lasts (except in an
    /// `all_gather_v`), a shorter one when the peer comes.
    pub total: Duration,
    /// Half of the waits that have ended took at most so long, to within 3 %.
    pub p50: Duration,
    /// As `p50`, of 99 in 100.
    pub p99: Duration,
    /// The longest that has ended.
    pub max: Duration,
}

/// The calls of one kind that ended well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallStatistics {
    /// Such as `all_reduce`; a split counts as the `all_gather` that it makes.
    pub collective: &'static str,
    /// Such as `ring`.
    pub algorithm: &'static str,
    /// `quic`, `shared-memory`, or `memory` in a world of threads.
    pub transport: &'static str,
    /// How many.
    pub calls: u64,
    /// From when a call's turn came until it was done, the sum.
    pub time: Duration,
}

/// How often something happened for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReasonCount {
    /// One word, or several joined by `_`.
    pub reason: &'static str,
    /// How often.
    pub count: u64,
}

impl Statistics {
    /// Bytes of calls that this rank has handed to its links, to all peers.
    pub fn bytes_sent(&self) -> u64 {
        self.peers.iter().map(|peer| peer.bytes_sent).sum()
    }

    /// Bytes of calls that this rank has read from its links, from all peers.
    pub fn bytes_received(&self) -> u64 {
        self.peers.iter().map(|peer| peer.bytes_received).sum()
    }
}

impl Communicator {
    /// What this rank has counted since the world began. Cheap enough to ask before and after a
    /// call; counting goes on meanwhile, so the numbers of one answer may be a segment apart.
    ///
    /// A world of one counts nothing: its calls are done where they are made.
    pub fn stats(&self) -> Statistics {
        match &self.kind {
            Kind::Single => Statistics::default(),
            Kind::Joined(engine) => engine.world().counters.stats(),
        }
    }
}
