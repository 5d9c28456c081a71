//! The kinds of plan there are, and what each of them answers.

use std::ops::Range;

use super::alone::Alone;
use super::binomial::{Broadcast, Gather, Reduce, Scatter};
use super::by_host::ByHost;
use super::chain::Chain;
use super::direct::{Linear, Message};
use super::dissemination::Dissemination;
use super::doubling::Doubling;
use super::halving::Halving;
use super::pairwise::Pairwise;
use super::reduce_scatter::ReduceScatter;
use super::ring::Ring;
use super::tree::DoubleTree;
use super::{Algorithm, Hosts, Request, Step};
use crate::contract::Collective;

/// The steps of one rank, in closed form.
pub(super) trait Steps {
    fn len(&self) -> u32;

    /// Step `index`, below `len()`.
    fn step(&self, index: u32) -> Step;

    /// Each flow's first step is one of the first so many. Most plans have few steps on each of
    /// their flows, so that looking at all of them costs no more than looking at the flows.
    fn opening(&self) -> u32 {
        self.len()
    }

    /// The step that follows step `index` on the same flow.
    fn next_on_flow(&self, _index: u32) -> Option<u32> {
        None
    }

    /// Relay memory that the steps use, in elements.
    fn relay_elements(&self, _segment_elements: u64) -> u64 {
        0
    }
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Alone(Alone),
    /// In memory that all ranks have mapped.
    Here(Alone),
    ByHost(ByHost),
    Ring(Ring),
    ReduceScatter(ReduceScatter),
    Tree(DoubleTree),
    Doubling(Doubling),
    Halving(Halving),
    Chain(Chain),
    Broadcast(Broadcast),
    Reduce(Reduce),
    Gather(Gather),
    Scatter(Scatter),
    Linear(Linear),
    Message(Message),
    Pairwise(Pairwise),
    Dissemination(Dissemination),
}

impl Shape {
    pub(super) fn new(
        request: &Request,
        rank: u32,
        algorithm: Algorithm,
        segment_elements: u64,
    ) -> Self {
        let &Request { collective, size, count, ref counts, .. } = request;
        if size <= 1 {
            return Self::Alone(Alone);
        }
        match (collective, algorithm) {
            (Collective::AllReduce, Algorithm::Tree) => {
                Self::Tree(DoubleTree::new(rank, size, count))
            }
            (Collective::AllReduce, Algorithm::RecursiveDoubling) => {
                Self::Doubling(Doubling::new(rank, size, count))
            }
            (Collective::AllReduce, Algorithm::HalvingDoubling) => {
                Self::Halving(Halving::new(rank, size, count))
            }
            (Collective::AllReduce, _) => Self::Ring(Ring::all_reduce(rank, size, count)),
            (Collective::ReduceScatter, _) => {
                Self::ReduceScatter(ReduceScatter::new(rank, size, count, segment_elements))
            }
            (Collective::AllGather | Collective::AllGatherV, _) => {
                Self::Ring(Ring::all_gather(rank, size, count, counts.clone()))
            }
            (Collective::Broadcast { root }, Algorithm::Binomial) => {
                Self::Broadcast(Broadcast::new(rank, size, root, count))
            }
            (Collective::Broadcast { root }, _) => {
                Self::Chain(Chain::broadcast(rank, size, root, count))
            }
            (Collective::Reduce { root }, _) => Self::Reduce(Reduce::new(rank, size, root, count)),
            (Collective::Gather { root }, Algorithm::Binomial) => {
                Self::Gather(Gather::new(rank, size, root, count))
            }
            (Collective::Gather { root }, _) => {
                Self::Linear(Linear::gather(rank, size, root, count))
            }
            (Collective::Scatter { root }, Algorithm::Binomial) => {
                Self::Scatter(Scatter::new(rank, size, root, count))
            }
            (Collective::Scatter { root }, _) => {
                Self::Linear(Linear::scatter(rank, size, root, count))
            }
            (Collective::AllToAll, _) => Self::Pairwise(Pairwise::new(rank, size, count)),
            (Collective::Barrier, _) => Self::Dissemination(Dissemination::new(rank, size)),
            (Collective::Send, _) => Self::Message(Message::new(rank, count)),
        }
    }

    /// The steps of `rank` between hosts; it has that part of the buffer there.
    pub(super) fn by_host(
        request: &Request,
        rank: u32,
        (hosts, part): (&Hosts, Range<u64>),
        algorithm: Algorithm,
        segment_elements: u64,
    ) -> Self {
        Self::ByHost(ByHost::new(hosts, rank, part, |rank, size, count| {
            let request = Request { size, count, ..request.clone() };
            Self::new(&request, rank, algorithm, segment_elements)
        }))
    }

    pub(super) fn steps(&self) -> &dyn Steps {
        match self {
            Self::Alone(steps) | Self::Here(steps) => steps,
            Self::ByHost(steps) => steps,
            Self::Ring(steps) => steps,
            Self::ReduceScatter(steps) => steps,
            Self::Tree(steps) => steps,
            Self::Doubling(steps) => steps,
            Self::Halving(steps) => steps,
            Self::Chain(steps) => steps,
            Self::Broadcast(steps) => steps,
            Self::Reduce(steps) => steps,
            Self::Gather(steps) => steps,
            Self::Scatter(steps) => steps,
            Self::Linear(steps) => steps,
            Self::Message(steps) => steps,
            Self::Pairwise(steps) => steps,
            Self::Dissemination(steps) => steps,
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ring(_) | Self::ReduceScatter(_) => Algorithm::Ring,
            Self::Tree(_) => Algorithm::Tree,
            Self::Doubling(_) => Algorithm::RecursiveDoubling,
            Self::Halving(_) => Algorithm::HalvingDoubling,
            Self::Chain(_) => Algorithm::Chain,
            Self::Broadcast(_) | Self::Reduce(_) | Self::Gather(_) | Self::Scatter(_) => {
                Algorithm::Binomial
            }
            Self::Alone(_) | Self::Linear(_) | Self::Message(_) | Self::Pairwise(_) => {
                Algorithm::Direct
            }
            Self::Dissemination(_) => Algorithm::Dissemination,
            Self::Here(_) => Algorithm::SharedMemory,
            Self::ByHost(_) => Algorithm::ByHost,
        }
    }
}
