//! Plans: the steps of one rank for one call, in closed form.
//!
//! A plan answers "what is step i?" from a few numbers, without a list of steps and without
//! allocation: a ring of 10,000 ranks has 40,000 steps. It names no clock, socket or thread;
//! [`crate::machine`] executes it, and [`costs`] chooses it.

mod alone;
mod binomial;
mod by_host;
mod chain;
pub(crate) mod costs;
mod direct;
mod dissemination;
mod doubling;
mod fold;
#[cfg(test)]
mod formulas;
mod halving;
mod pairwise;
mod reduce_scatter;
mod ring;
mod shape;
mod stripes;
mod tree;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use crate::contract::Collective;
use alone::Alone;
pub(crate) use by_host::Hosts;
use shape::Shape;
pub(crate) use stripes::Stripe;

/// What all ranks of a communicator know of a call, and all that the choice of its plan depends on.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) collective: Collective,
    /// Ranks of the communicator, at least 1.
    pub(crate) size: u32,
    /// All-reduce, reduce, broadcast, send: elements of the buffer. Reduce-scatter, all-gather,
    /// gather, scatter, all-to-all: elements of one rank's block. All-gather-v: the total.
    /// Barrier: 0.
    pub(crate) count: u64,
    pub(crate) element_bytes: u32,
    /// All-gather-v: where each rank's block ends (prefix sums), `size` of them; else None.
    pub(crate) counts: Option<Arc<[u64]>>,
}

/// The plan of one rank.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    shape: Shape,
    /// A hash of what the ranks must agree on to follow one plan.
    agreed: u64,
    /// Of a call that is made by several lanes; else none.
    stripes: Arc<[Stripe]>,
}

/// One transfer of one rank: to or from a peer, segment by segment.
///
/// The steps of one flow (peer, tree, direction) are done in order of their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) action: Action,
    /// The rank at the other end, within the communicator.
    pub(crate) peer: u32,
    /// Which of the parallel flows to that peer: the tree of a double tree, else 0.
    pub(crate) tree: u16,
    /// Elements of the call's data, numbered so that sender and receiver of a transfer name the
    /// same length. On one rank, steps joined by [`After::Segment`] number the same elements alike.
    pub(crate) range: Range<u64>,
    pub(crate) after: After,
    /// For a step that fills the relay: segment k waits until segment k - [`RELAY_SEGMENTS`] of
    /// that send, which has the same range, has been copied out.
    pub(crate) room: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Send {
        from: Place,
    },
    Store {
        into: Place,
    },
    /// `into` becomes `local` combined with what arrives.
    Reduce {
        /// One rank's untouched input exactly if its space is [`Space::Input`].
        local: Place,
        into: Place,
        /// What arrives is one rank's untouched input: an average scales it on load.
        incoming_raw: bool,
        /// This completes the result: an average divides.
        last: bool,
    },
}

/// Where the first element of a step, or of a segment, lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) space: Space,
    pub(crate) start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// The caller's contribution, never written. In place, Output lies over it.
    Input,
    /// Where the result goes; also a place to accumulate.
    Output,
    /// Bounded memory of the runtime: element e lies at e % (RELAY_SEGMENTS * segment_elements).
    Relay,
}

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Nothing,
    /// This step's elements below x wait for that step's elements below x.
    Segment(u32),
    /// The whole of that step.
    Whole(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    Ring,
    Tree,
    RecursiveDoubling,
    HalvingDoubling,
    Chain,
    Binomial,
    /// One message between the ranks concerned: linear gather and scatter, pairwise all-to-all,
    /// send, and nothing at all in a world of one.
    Direct,
    Dissemination,
    /// No messages: the ranks of one host meet in memory (`link/shared_memory.rs`).
    SharedMemory,
    /// In memory within each host, and between one rank of each (`by_host`).
    ByHost,
    /// Between GPUs. No plan is: NCCL has its own.
    Nccl,
}

impl Plan {
    /// The plan of `rank` by `algorithm`; where the collective has no such plan, by its usual one.
    /// `segment_elements` is that of the machine which executes it.
    pub(crate) fn new(
        request: &Request,
        rank: u32,
        algorithm: Algorithm,
        segment_elements: u64,
    ) -> Self {
        let shape = Shape::new(request, rank, algorithm, segment_elements);
        let agreed = agreed(request, shape.algorithm());
        Self { shape, agreed, stripes: Arc::default() }
    }

    /// The plan of ranks that meet in memory: nothing is sent.
    pub(crate) fn in_memory(request: &Request) -> Self {
        let shape = Shape::Here(Alone);
        let agreed = agreed(request, shape.algorithm());
        Self { shape, agreed, stripes: Arc::default() }
    }

    /// The plan of `rank` where some of the ranks share memory; `algorithm` is that between hosts.
    pub(crate) fn by_host(
        request: &Request,
        rank: u32,
        hosts: &Hosts,
        algorithm: Algorithm,
        segment_elements: u64,
    ) -> Self {
        let part = hosts.part_of(rank, request.count, request.element_bytes);
        let shape = Shape::by_host(request, rank, (hosts, part), algorithm, segment_elements);
        let agreed = hosts.words().fold(agreed(request, algorithm), fold_hash);
        Self { shape, agreed, stripes: Arc::default() }
    }

    /// Where several lanes make the call: what each of them does. This plan itself is then nobody's,
    /// and stands for them all.
    pub(crate) fn stripes(&self) -> &[Stripe] {
        &self.stripes
    }

    /// The number of steps.
    pub(crate) fn len(&self) -> u32 {
        self.shape.steps().len()
    }

    /// Step `index`, below `len()`.
    pub(crate) fn step(&self, index: u32) -> Step {
        self.shape.steps().step(index)
    }

    /// Each flow's first step is one of the first so many.
    pub(crate) fn opening(&self) -> u32 {
        self.shape.steps().opening()
    }

    /// Whether the first message of this rank's flow to `peer` waits for nothing that another rank
    /// has to do first.
    pub(crate) fn opens_unprompted(&self, peer: u32, tree: u16) -> bool {
        if !self.begins_alone() {
            return false;
        }
        let steps = (0..self.opening()).map(|index| self.step(index));
        let mut flow = steps.filter(|s| s.is_send() && s.peer == peer && s.tree == tree);
        flow.next().is_some_and(|first| first.after == After::Nothing && first.room.is_none())
    }

    /// Whether this rank's first step waits for no other rank. What is sent between hosts waits for
    /// the sums within a host.
    pub(crate) fn begins_alone(&self) -> bool {
        self.algorithm() != Algorithm::ByHost
    }

    /// The step that follows step `index` on the same flow.
    pub(crate) fn next_on_flow(&self, index: u32) -> Option<u32> {
        self.shape.steps().next_on_flow(index)
    }

    /// Relay memory that the steps use, in elements.
    pub(crate) fn relay_elements(&self, segment_elements: u64) -> u64 {
        self.shape.steps().relay_elements(segment_elements)
    }

    /// The algorithm whose steps they are.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.shape.algorithm()
    }

    /// A number that is equal on all ranks exactly if they follow one plan: part of the contract.
    pub(crate) fn fingerprint(&self, segment_elements: u64) -> u64 {
        fold_hash(self.agreed, segment_elements)
    }
}

impl Step {
    fn new(peer: u32, action: Action, range: Range<u64>) -> Self {
        Self { action, peer, tree: 0, range, after: After::Nothing, room: None }
    }

    fn after(self, after: After) -> Self {
        Self { after, ..self }
    }

    /// Waits segment by segment for that step, if there is one.
    fn after_segment(self, step: Option<u32>) -> Self {
        self.after(step.map_or(After::Nothing, After::Segment))
    }

    /// Waits for the whole of that step, if there is one.
    fn after_whole(self, step: Option<u32>) -> Self {
        self.after(step.map_or(After::Nothing, After::Whole))
    }

    pub(crate) fn is_send(&self) -> bool {
        matches!(self.action, Action::Send { .. })
    }
}

impl Space {
    fn at(self, start: u64) -> Place {
        Place { space: self, start }
    }
}

impl Algorithm {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 11] = [
        Algorithm::Ring,
        Algorithm::Tree,
        Algorithm::RecursiveDoubling,
        Algorithm::HalvingDoubling,
        Algorithm::Chain,
        Algorithm::Binomial,
        Algorithm::Direct,
        Algorithm::Dissemination,
        Algorithm::SharedMemory,
        Algorithm::ByHost,
        Algorithm::Nccl,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Algorithm::Ring => "ring",
            Algorithm::Tree => "tree",
            Algorithm::RecursiveDoubling => "recursive-doubling",
            Algorithm::HalvingDoubling => "halving-doubling",
            Algorithm::Chain => "chain",
            Algorithm::Binomial => "binomial",
            Algorithm::Direct => "direct",
            Algorithm::Dissemination => "dissemination",
            Algorithm::SharedMemory => "shared-memory",
            Algorithm::ByHost => "by-host",
            Algorithm::Nccl => "nccl",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The algorithms a user can ask for: those of the all-reduce.
impl FromStr for Algorithm {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = costs::algorithms(Collective::AllReduce);
        let found = known.iter().find(|algorithm| algorithm.to_string() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<String> = known.iter().map(Algorithm::to_string).collect();
            format!("'{name}' is none of {}", names.join(", "))
        })
    }
}

/// The elements of part `index` when `count` elements are cut into `parts` as equal as possible,
/// the longer ones first.
pub(crate) fn chunk(count: u64, parts: u32, index: u32) -> Range<u64> {
    let (parts, index) = (u64::from(parts), u64::from(index));
    let (length, longer) = (count / parts, count % parts);
    let start = index * length + index.min(longer);
    start..start + length + u64::from(index < longer)
}

/// Part `index` when so many bytes are cut into `parts` of whole lines of the cache, as equal as
/// possible; nothing beyond the last.
pub(crate) fn part(bytes: u64, parts: u64, index: u64) -> Range<u64> {
    let lines = bytes.div_ceil(LINE);
    let at = |index: u64| (lines * index.min(parts) / parts.max(1) * LINE).min(bytes);
    at(index)..at(index + 1)
}

/// The elements of blocks `blocks.start` to `blocks.end`, each of `count` elements.
fn blocks(blocks: Range<u32>, count: u64) -> Range<u64> {
    u64::from(blocks.start) * count..u64::from(blocks.end) * count
}

/// How many segments a step of `elements` takes: at least one, because an empty transfer still
/// sends its header.
pub(crate) fn segments(elements: u64, segment_elements: u64) -> u64 {
    elements.div_ceil(segment_elements).max(1)
}

fn agreed(request: &Request, algorithm: Algorithm) -> u64 {
    let (kind, root) = match request.collective {
        Collective::AllReduce => (1, 0),
        Collective::ReduceScatter => (2, 0),
        Collective::AllGather => (3, 0),
        Collective::AllGatherV => (4, 0),
        Collective::Broadcast { root } => (5, root),
        Collective::Reduce { root } => (6, root),
        Collective::Gather { root } => (7, root),
        Collective::Scatter { root } => (8, root),
        Collective::AllToAll => (9, 0),
        Collective::Barrier => (10, 0),
        Collective::Send => (11, 0),
    };
    let ends = request.counts.iter().flat_map(|ends| ends.iter().copied());
    [kind, u64::from(root), u64::from(request.size), request.count, algorithm as u64]
        .into_iter()
        .chain(ends)
        .fold(0, fold_hash)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014) over words: accidents are what a fingerprint
/// must tell apart, not attacks.
fn fold_hash(hash: u64, word: u64) -> u64 {
    let value = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Segments of relay memory of one call: enough that a rank which passes on what it receives
/// keeps both of its links busy, small enough (512 KiB) to stay in the cache.
pub(crate) const RELAY_SEGMENTS: u64 = 8;

/// Ranks that share memory write to lines of their own.
const LINE: u64 = 64;
