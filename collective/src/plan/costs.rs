//! Which algorithm a call uses, and how large its segments are: a pure function of what all ranks
//! know, so that all choose alike.
//!
//! The predictions are those of docs/algorithms.md: what a transfer takes until its first byte is
//! there, what each byte and each message takes after that, and what it takes to reduce a byte.
//! They need not be exact, only ordered like the truth.

use serde::{Deserialize, Serialize};

use super::{Algorithm, Plan, RELAY_SEGMENTS, Request, segments};
use crate::contract::Collective;

/// What transfers and reductions take; rank 0 hands it out with the world, so that all ranks
/// choose by the same numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CostTable {
    /// From the send of a message until its receiver is awake and has begun to read it, in ns.
    pub(crate) latency_ns: u64,
    /// What each message, of one segment or less, takes besides its bytes, in ns.
    pub(crate) message_ns: u64,
    /// What each byte takes on its way from one rank to another, in ps.
    pub(crate) byte_ps: u64,
    /// What it takes to combine a byte that arrived with a local one, in ps.
    pub(crate) reduce_ps: u64,
}

/// The plan of `rank` for a call: the fastest by prediction, or `forced` where the collective has
/// that algorithm.
pub(crate) fn choose(
    request: &Request,
    rank: u32,
    costs: &CostTable,
    forced: Option<Algorithm>,
) -> Plan {
    let known = algorithms(request.collective);
    let forced = forced.filter(|forced| known.contains(forced) && is_possible(request, *forced));
    // Of equals, the first one listed.
    let fastest = || {
        let possible = known.iter().filter(|algorithm| is_possible(request, **algorithm));
        possible.min_by_key(|algorithm| predicted_ns(request, **algorithm, costs)).copied()
    };
    let algorithm = forced.or_else(fastest).unwrap_or(Algorithm::Direct);
    Plan::new(request, rank, algorithm, segment_elements(request.element_bytes))
}

/// How long a call takes if all ranks make it at once; `u64::MAX` if the collective has no such
/// algorithm.
pub(crate) fn predicted_ns(request: &Request, algorithm: Algorithm, costs: &CostTable) -> u64 {
    if request.size <= 1 {
        return 0;
    }
    if !algorithms(request.collective).contains(&algorithm) {
        return u64::MAX;
    }
    let picoseconds = Prediction { request, costs }.picoseconds(algorithm);
    u64::try_from(picoseconds / 1000).unwrap_or(u64::MAX)
}

/// The algorithms of a collective, in the order that decides between equals.
pub(super) fn algorithms(collective: Collective) -> &'static [Algorithm] {
    match collective {
        Collective::AllReduce => &[
            Algorithm::Ring,
            Algorithm::Tree,
            Algorithm::RecursiveDoubling,
            Algorithm::HalvingDoubling,
        ],
        Collective::ReduceScatter | Collective::AllGather | Collective::AllGatherV => {
            &[Algorithm::Ring]
        }
        Collective::Broadcast { .. } => &[Algorithm::Binomial, Algorithm::Chain],
        Collective::Reduce { .. } => &[Algorithm::Binomial],
        Collective::Gather { .. } | Collective::Scatter { .. } => {
            &[Algorithm::Binomial, Algorithm::Direct]
        }
        Collective::AllToAll | Collective::Send => &[Algorithm::Direct],
        Collective::Barrier => &[Algorithm::Dissemination],
    }
}

/// Elements of one segment.
pub(crate) fn segment_elements(element_bytes: u32) -> u64 {
    SEGMENT_BYTES / u64::from(element_bytes.max(1))
}

/// Binomial gather and scatter keep all blocks in the relay.
fn is_possible(request: &Request, algorithm: Algorithm) -> bool {
    let gathers =
        matches!(request.collective, Collective::Gather { .. } | Collective::Scatter { .. });
    let relay = RELAY_SEGMENTS * segment_elements(request.element_bytes);
    let all = u64::from(request.size).saturating_mul(request.count);
    !gathers || algorithm != Algorithm::Binomial || all <= relay
}

/// The formulas, in picoseconds; wide enough for any count.
struct Prediction<'a> {
    request: &'a Request,
    costs: &'a CostTable,
}

impl Prediction<'_> {
    fn picoseconds(&self, algorithm: Algorithm) -> u128 {
        let n = u128::from(self.request.size);
        let count = self.request.count;
        let rounds = u128::from(self.request.size.next_power_of_two().ilog2());
        let latency = self.latency();
        let all = self.transfer(count);
        match (self.request.collective, algorithm) {
            (Collective::AllReduce, Algorithm::Tree) => self.tree(),
            (Collective::AllReduce, Algorithm::RecursiveDoubling) => {
                let dimensions = u128::from(self.request.size.ilog2());
                dimensions * (latency + all + self.reduce(count)) + self.folding()
            }
            (Collective::AllReduce, Algorithm::HalvingDoubling) => self.halving(),
            (Collective::AllReduce, _) => {
                let chunk = count.div_ceil(u64::from(self.request.size));
                (n - 1) * (2 * (latency + self.transfer(chunk)) + self.reduce(chunk))
            }
            (Collective::ReduceScatter, _) => (n - 1) * (latency + all + self.reduce(count)),
            (Collective::AllGatherV, _) => {
                (n - 1) * (latency + self.transfer(count.div_ceil(u64::from(self.request.size))))
            }
            (Collective::AllGather | Collective::AllToAll, _) => (n - 1) * (latency + all),
            (Collective::Broadcast { .. }, Algorithm::Binomial) => rounds * (latency + all),
            (Collective::Broadcast { .. }, _) => {
                (n - 1) * latency + (n - 2) * self.first_segment(count) + all
            }
            (Collective::Reduce { .. }, _) => rounds * (latency + all + self.reduce(count)),
            (Collective::Gather { .. } | Collective::Scatter { .. }, Algorithm::Binomial) => {
                let messages = 2 * rounds * u128::from(self.costs.message_ns) * 1000;
                rounds * latency + messages + (n - 1) * self.bytes(count)
            }
            (Collective::Gather { .. } | Collective::Scatter { .. }, _) => latency + (n - 1) * all,
            (Collective::Barrier, _) => rounds * (latency + self.transfer(0)),
            (Collective::Send, _) => latency + all,
        }
    }

    /// Depth times two for the first segment; after it, what the busiest rank sends: up once and
    /// down twice in one tree, up once in the other, half the buffer each time.
    fn tree(&self) -> u128 {
        let half = self.request.count.div_ceil(2);
        let depth = u128::from(self.request.size.ilog2());
        let sends = u128::from(self.request.size.min(4));
        2 * depth * (self.latency() + self.first_segment(half))
            + sends * self.transfer(half)
            + 2 * self.reduce(half)
    }

    fn halving(&self) -> u128 {
        let dimensions = self.request.size.ilog2();
        let round = |j: u32| {
            let window = self.request.count.div_ceil(1 << j);
            2 * (self.latency() + self.transfer(window)) + self.reduce(window)
        };
        (1..=dimensions).map(round).sum::<u128>() + self.folding()
    }

    /// Taking in the ranks beyond a power of two, and giving them the result.
    fn folding(&self) -> u128 {
        if self.request.size.is_power_of_two() {
            return 0;
        }
        let count = self.request.count;
        2 * (self.latency() + self.transfer(count)) + self.reduce(count)
    }

    fn latency(&self) -> u128 {
        u128::from(self.costs.latency_ns) * 1000
    }

    /// What so many elements take on a link once the first byte is there.
    fn transfer(&self, elements: u64) -> u128 {
        let messages = segments(elements, segment_elements(self.request.element_bytes));
        u128::from(messages) * u128::from(self.costs.message_ns) * 1000 + self.bytes(elements)
    }

    fn first_segment(&self, elements: u64) -> u128 {
        self.transfer(elements.min(segment_elements(self.request.element_bytes)))
    }

    fn bytes(&self, elements: u64) -> u128 {
        u128::from(elements)
            * u128::from(self.request.element_bytes)
            * u128::from(self.costs.byte_ps)
    }

    fn reduce(&self, elements: u64) -> u128 {
        u128::from(elements)
            * u128::from(self.request.element_bytes)
            * u128::from(self.costs.reduce_ps)
    }
}

impl Default for CostTable {
    /// QUIC over loopback, measured between processes on two shared cores.
    fn default() -> Self {
        Self {
            latency_ns: LATENCY_NS,
            message_ns: MESSAGE_NS,
            byte_ps: BYTE_PS,
            reduce_ps: REDUCE_PS,
        }
    }
}

/// Large enough that headers (40 bytes) and wake-ups do not count, small enough that a few lie in
/// the L2 cache and that a 2-rank ring of 1 MiB has eight of them to overlap.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// With `MESSAGE_NS`, half of the 100 us that an all-reduce of 8 bytes takes on a ring of two
/// ranks, which is two transfers in a row: sealing, two system calls, a wake-up, opening.
const LATENCY_NS: u64 = 40_000;
/// The part of it that keeps a core busy, so that another message cannot use the time.
const MESSAGE_NS: u64 = 10_000;
/// With a message's 10 us spread over its 64 KiB, 1 ns a byte: two ranks exchange 1.0 GB/s.
const BYTE_PS: u64 = 850;
/// A core combines about 10 GB/s of f32 out of the cache; next to encryption it hardly counts.
const REDUCE_PS: u64 = 100;
