//! Which algorithm a call uses, and how large its segments are: a pure function of what all ranks
//! know, so that all choose alike.
//!
//! The predictions are those of docs/algorithms.md: what a transfer takes until its first byte is
//! there, what each byte and each message takes after that, and what it takes to reduce a byte.
//! They need not be exact, only ordered like the truth.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Hosts, Plan, RELAY_SEGMENTS, Request, segments};
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
    /// Bytes of a segment. Not handed out: everywhere the same, except in simulations.
    #[serde(skip, default = "default_segment_bytes")]
    pub(crate) segment_bytes: u64,
    /// Bytes of a stripe, at least. Not handed out, like those of a segment.
    #[serde(skip, default = "default_stripe_bytes")]
    pub(crate) stripe_bytes: u64,
}

/// How the ranks of a world choose their plans, alike on all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) costs: CostTable,
    /// Taken wherever the collective has it.
    pub(crate) forced: Option<Algorithm>,
    /// Of each rank.
    pub(crate) lanes: u16,
}

impl Choice {
    /// The plan of `rank` for a call of a communicator whose ranks lie like that.
    pub(crate) fn plan(&self, request: &Request, rank: u32, layout: &Layout) -> Plan {
        let meets = self.forced.is_none() && meets_in_memory(request.collective);
        let segment = self.costs.segment_elements(request.element_bytes);
        let (plan, hosts, stripes, algorithm) = match layout {
            Layout::Together if meets => (Plan::in_memory(request), None, 1, Algorithm::Direct),
            Layout::ByHost(hosts) if meets => {
                let count = hosts.longest(request.count, request.element_bytes);
                let between = Request { size: hosts.count() as u32, count, ..request.clone() };
                let algorithm = fastest(&between, &self.costs);
                let plan = Plan::by_host(request, rank, hosts, algorithm, segment);
                let stripes = stripes(&between, algorithm, &self.costs, self.lanes);
                (plan, Some(&**hosts), stripes, algorithm)
            }
            _ => {
                let plan = choose(request, rank, &self.costs, self.forced);
                let algorithm = plan.algorithm();
                let stripes = stripes(request, algorithm, &self.costs, self.lanes);
                (plan, None, stripes, algorithm)
            }
        };
        plan.in_stripes((request, rank), hosts, (stripes, self.lanes), algorithm, segment)
    }
}

/// Where the ranks of a communicator are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// None shares memory with another, or they do not ask.
    Apart,
    /// All share memory.
    Together,
    /// Some do.
    ByHost(Arc<Hosts>),
}

/// Whether ranks that share memory meet there for it.
pub(crate) fn meets_in_memory(collective: Collective) -> bool {
    matches!(collective, Collective::AllReduce | Collective::Barrier)
}

/// Into how many stripes a call is cut, for as many of the lanes: each is worth a lane's while.
fn stripes(request: &Request, algorithm: Algorithm, costs: &CostTable, lanes: u16) -> u32 {
    let &Request { collective, size, count, element_bytes, .. } = request;
    let blocks = match collective {
        Collective::AllReduce
        | Collective::Broadcast { .. }
        | Collective::Reduce { .. }
        | Collective::Send => 1,
        // It passes several blocks on in one piece.
        Collective::Gather { .. } | Collective::Scatter { .. }
            if algorithm == Algorithm::Binomial =>
        {
            return 1;
        }
        Collective::ReduceScatter
        | Collective::AllGather
        | Collective::Gather { .. }
        | Collective::Scatter { .. }
        | Collective::AllToAll => u64::from(size),
        // Blocks of different lengths; nothing to cut.
        Collective::AllGatherV | Collective::Barrier => return 1,
    };
    let bytes = |elements: u64| elements.saturating_mul(element_bytes.into());
    let segments = bytes(costs.segment_elements(element_bytes)).saturating_mul(size.into());
    let least = costs.stripe_bytes.max(segments).max(1);
    (bytes(count.saturating_mul(blocks)) / least).clamp(1, lanes.max(1).into()) as u32
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
    let forced =
        forced.filter(|forced| known.contains(forced) && is_possible(request, *forced, costs));
    let algorithm = forced.unwrap_or_else(|| fastest(request, costs));
    Plan::new(request, rank, algorithm, costs.segment_elements(request.element_bytes))
}

fn fastest(request: &Request, costs: &CostTable) -> Algorithm {
    let known = algorithms(request.collective).iter();
    // Of equals, the first one listed.
    known
        .filter(|algorithm| is_possible(request, **algorithm, costs))
        .min_by_key(|algorithm| predicted_ns(request, **algorithm, costs))
        .copied()
        .unwrap_or(Algorithm::Direct)
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
pub(crate) fn algorithms(collective: Collective) -> &'static [Algorithm] {
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

/// Binomial gather and scatter keep all blocks in the relay.
fn is_possible(request: &Request, algorithm: Algorithm, costs: &CostTable) -> bool {
    let gathers =
        matches!(request.collective, Collective::Gather { .. } | Collective::Scatter { .. });
    let relay = RELAY_SEGMENTS * costs.segment_elements(request.element_bytes);
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
                self.ring(2 * (n - 1), chunk) + (n - 1) * self.reduce(chunk)
            }
            (Collective::ReduceScatter, _) => {
                self.ring(n - 1, count) + (n - 1) * self.reduce(count)
            }
            (Collective::AllGather, _) => self.ring(n - 1, count),
            (Collective::AllGatherV, _) => {
                self.ring(n - 1, count.div_ceil(u64::from(self.request.size)))
            }
            (Collective::AllToAll, _) => (n - 1) * (latency + all),
            (Collective::Broadcast { .. }, Algorithm::Binomial) => rounds * (latency + all),
            (Collective::Broadcast { .. }, _) => {
                (n - 1) * latency + (n - 2) * self.first_segment(count) + all
            }
            (Collective::Reduce { .. }, _) => rounds * (latency + all + self.reduce(count)),
            (Collective::Gather { .. } | Collective::Scatter { .. }, Algorithm::Binomial) => {
                // Two messages for each child of the root but the leaf.
                let messages = (2 * rounds - 1).min(n - 1);
                rounds * latency + messages * self.message() + (n - 1) * self.bytes(count)
            }
            // The root wakes for one link after the other.
            (Collective::Gather { .. } | Collective::Scatter { .. }, _) => {
                (n - 1) * (latency + all)
            }
            (Collective::Barrier, _) => rounds * (latency + self.transfer(0)),
            (Collective::Send, _) => latency + all,
        }
    }

    /// Rounds of a pipeline: the next begins with this one's first segment, so that a long chunk
    /// hides the latency of all but the last.
    fn ring(&self, rounds: u128, chunk: u64) -> u128 {
        let whole = self.transfer(chunk);
        let next = whole.max(self.latency() + self.first_segment(chunk));
        self.latency() + whole + (rounds - 1) * next
    }

    /// The first segment goes up and down, and meets two children on each level; the others follow
    /// as fast as the busiest rank sends them: up once and down twice in one tree, up once in the
    /// other, half the buffer each time.
    fn tree(&self) -> u128 {
        let half = self.request.count.div_ceil(2);
        let first = self.first_segment(half);
        let depth = u128::from(self.request.size.ilog2());
        let sends = u128::from(self.request.size.min(4));
        2 * depth * (self.latency() + 2 * first)
            + sends * (self.transfer(half) - first)
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
        let messages = segments(elements, self.costs.segment_elements(self.request.element_bytes));
        u128::from(messages) * self.message() + self.bytes(elements)
    }

    fn message(&self) -> u128 {
        u128::from(self.costs.message_ns) * 1000
    }

    fn first_segment(&self, elements: u64) -> u128 {
        self.transfer(elements.min(self.costs.segment_elements(self.request.element_bytes)))
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

impl CostTable {
    /// Elements of one segment.
    pub(crate) fn segment_elements(&self, element_bytes: u32) -> u64 {
        (self.segment_bytes / u64::from(element_bytes.max(1))).max(1)
    }
}

fn default_segment_bytes() -> u64 {
    SEGMENT_BYTES
}

fn default_stripe_bytes() -> u64 {
    STRIPE_BYTES
}

impl CostTable {
    /// Of QUIC between hosts, where a switch and two network cards lie in between.
    pub(crate) fn network() -> Self {
        Self { latency_ns: NETWORK_LATENCY_NS, ..Self::default() }
    }

    /// Whether predictions from it stay within their numbers: it comes from another rank.
    pub(crate) fn is_within_limits(&self) -> bool {
        let Self { latency_ns, message_ns, byte_ps, reduce_ps, segment_bytes: _, stripe_bytes: _ } =
            *self;
        [latency_ns, message_ns, byte_ps, reduce_ps].iter().all(|cost| *cost < MAX_COST)
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
            segment_bytes: SEGMENT_BYTES,
            stripe_bytes: STRIPE_BYTES,
        }
    }
}

/// Large enough that headers (44 bytes) and wake-ups do not count, small enough that a few lie in
/// the L2 cache and that a 2-rank ring of 1 MiB has eight of them to overlap. With its header it fits
/// one packet on loopback (`link/quic/tuning.rs`): 64 KiB, which take two, are 8 % slower.
pub(crate) const SEGMENT_BYTES: u64 = 63 * 1024;
/// Eight segments: what a lane gains by its share is then more than waking it takes. In a ring every
/// rank's chunk of it must fill a segment besides.
const STRIPE_BYTES: u64 = 512 * 1024;
/// With `MESSAGE_NS`, half of the 100 us that an all-reduce of 8 bytes takes on a ring of two
/// ranks, which is two transfers in a row: sealing, two system calls, a wake-up, opening.
const LATENCY_NS: u64 = 40_000;
/// Some 60 us on top, as cards that collect interrupts and a switch take in data centres; not
/// measured by us. Encryption stays the limit of a byte up to 10 Gbit/s.
const NETWORK_LATENCY_NS: u64 = 100_000;
/// The part of it that keeps a core busy, so that another message cannot use the time.
const MESSAGE_NS: u64 = 10_000;
/// With a message's 10 us spread over its 63 KiB, 1 ns a byte: two ranks exchange 1.0 GB/s.
const BYTE_PS: u64 = 850;
/// A core combines about 10 GB/s of f32 out of the cache; next to encryption it hardly counts.
const REDUCE_PS: u64 = 100;

/// Eighteen minutes for a message, one second for a byte: nothing is so slow.
const MAX_COST: u64 = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(collective: Collective, size: u32, count: u64) -> Request {
        Request { collective, size, count, element_bytes: 4, counts: None }
    }

    fn chosen(collective: Collective, size: u32, count: u64) -> Algorithm {
        choose(&request(collective, size, count), 0, &CostTable::default(), None).algorithm()
    }

    #[test]
    fn few_bytes_take_few_rounds_and_many_bytes_a_pipeline() {
        // Whole segments for each: 192 is a multiple of all these sizes.
        let many = 64 * 192 * CostTable::default().segment_elements(4);
        for size in [2, 4, 6, 8, 16, 24, 64] {
            let all_reduce = |count| chosen(Collective::AllReduce, size, count);
            assert_eq!(all_reduce(0), Algorithm::RecursiveDoubling, "{size} ranks");
            assert_eq!(all_reduce(1), Algorithm::RecursiveDoubling, "{size} ranks");
            assert_eq!(all_reduce(many), Algorithm::Ring, "{size} ranks");
        }
        let broadcast = |count| chosen(Collective::Broadcast { root: 3 }, 8, count);
        assert_eq!((broadcast(1), broadcast(1 << 26)), (Algorithm::Binomial, Algorithm::Chain));
    }

    #[test]
    fn in_between_the_others_are_fastest() {
        assert_eq!(chosen(Collective::AllReduce, 16, 1 << 16), Algorithm::HalvingDoubling);
        assert_eq!(chosen(Collective::AllReduce, 24, 1 << 18), Algorithm::Tree);
        // A tree of three is one hop deep, and folding takes two.
        assert_eq!(chosen(Collective::AllReduce, 3, 1), Algorithm::Tree);
    }

    #[test]
    fn blocks_go_through_the_relay_if_all_of_them_fit() {
        for collective in [Collective::Gather { root: 1 }, Collective::Scatter { root: 1 }] {
            let relay = RELAY_SEGMENTS * CostTable::default().segment_elements(4);
            assert_eq!(chosen(collective, 8, relay / 8), Algorithm::Binomial);
            assert_eq!(chosen(collective, 8, relay / 8 + 1), Algorithm::Direct);
            let request = request(collective, 8, relay);
            let forced = Some(Algorithm::Binomial);
            let plan = choose(&request, 0, &CostTable::default(), forced);
            assert_eq!(plan.algorithm(), Algorithm::Direct, "a relay it does not fit");
        }
    }

    #[test]
    fn what_is_forced_applies_where_it_exists() {
        let costs = CostTable::default();
        for forced in algorithms(Collective::AllReduce) {
            let all_reduce = request(Collective::AllReduce, 7, 100);
            assert_eq!(choose(&all_reduce, 3, &costs, Some(*forced)).algorithm(), *forced);
            let broadcast = request(Collective::Broadcast { root: 0 }, 7, 100);
            let automatic = choose(&broadcast, 3, &costs, None).algorithm();
            assert_eq!(choose(&broadcast, 3, &costs, Some(*forced)).algorithm(), automatic);
        }
    }

    proptest! {
        #[test]
        fn all_ranks_choose_one_plan(
            size in 1u32..40, count in 0u64..1 << 30, root in 0u32..40, kind in 0usize..4,
            latency_ns in 0..MAX_COST, message_ns in 0..MAX_COST,
            byte_ps in 0..MAX_COST, reduce_ps in 0..MAX_COST,
        ) {
            let costs =
                CostTable { latency_ns, message_ns, byte_ps, reduce_ps, ..CostTable::default() };
            let root = root % size;
            let collective = [
                Collective::AllReduce,
                Collective::Broadcast { root },
                Collective::Gather { root },
                Collective::Scatter { root },
            ][kind];
            let request = request(collective, size, count);
            let print = |rank| choose(&request, rank, &costs, None).fingerprint(1);
            prop_assert!((1..size).all(|rank| print(rank) == print(0)));
            let chosen = choose(&request, 0, &costs, None).algorithm();
            for algorithm in algorithms(collective).iter().filter(|a| is_possible(&request, **a, &costs)) {
                let (this, that) = (chosen, *algorithm);
                prop_assert!(
                    predicted_ns(&request, this, &costs) <= predicted_ns(&request, that, &costs)
                );
            }
        }

        #[test]
        fn more_elements_never_take_less_time(
            size in 2u32..100_000, count: u64, more: u64, element_bytes in 1u32..16,
        ) {
            let costs = CostTable::default();
            let (few, many) = (count.min(more), count.max(more));
            for collective in [Collective::AllReduce, Collective::Broadcast { root: 0 }] {
                for algorithm in algorithms(collective) {
                    let of = |count| {
                        let request =
                            Request { element_bytes, ..request(collective, size, count) };
                        predicted_ns(&request, *algorithm, &costs)
                    };
                    prop_assert!(of(few) <= of(many), "{algorithm}: {few} and {many}");
                }
            }
        }
    }
}
