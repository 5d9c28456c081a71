//! All-reduce and barrier of ranks on several hosts, some of which share memory.
//!
//! The ranks of a host add up in memory, each its part; the ranks that have the same part meet over
//! the network, by a plan of their own; then each host gives the parts to all its ranks. So a host
//! sends no more than one rank would, and several of its ranks send it at once. The same way is
//! taken by Jia et al., "Highly scalable deep learning training system with mixed-precision", 2018,
//! section 3.3, and by NCCL's chains within hosts.
//!
//! Here are the steps between hosts. What they work on is the sum of a host already, and counts as
//! one rank's raw input only where a host has one rank.

use std::ops::Range;
use std::sync::Arc;

use super::shape::{Shape, Steps};
use super::{Action, Place, Space, Step, part};

/// The ranks of a communicator by host: places in it, hosts in the order of their first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hosts(Vec<Vec<u32>>);

impl Hosts {
    /// From what each rank has in common with those of its host, in order; None shares no memory.
    pub(crate) fn new(homes: impl Iterator<Item = Option<u64>>) -> Self {
        let mut hosts: Vec<(Option<u64>, Vec<u32>)> = Vec::new();
        for (rank, home) in (0..).zip(homes) {
            match hosts.iter_mut().find(|(of, _)| home.is_some() && *of == home) {
                Some((_, ranks)) => ranks.push(rank),
                None => hosts.push((home, vec![rank])),
            }
        }
        Self(hosts.into_iter().map(|(_, ranks)| ranks).collect())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether there are several, and one of them has several ranks.
    pub(crate) fn are_mixed(&self) -> bool {
        self.0.len() > 1 && self.0.iter().any(|ranks| ranks.len() > 1)
    }

    /// The ranks of the host that this one is on.
    pub(crate) fn around(&self, rank: u32) -> &[u32] {
        let own = self.0.iter().find(|ranks| ranks.contains(&rank));
        own.map_or(&[], Vec::as_slice)
    }

    /// Into how many parts the data are cut: each host has a rank for each.
    pub(crate) fn parts(&self) -> usize {
        self.0.iter().map(Vec::len).min().unwrap_or(1).max(1)
    }

    /// The ranks that have the same part as this one, one of each host; None if it has none.
    fn with_part_of(&self, rank: u32) -> Option<(u64, Vec<u32>)> {
        let index = self.around(rank).iter().position(|member| *member == rank)?;
        let has = index < self.parts();
        let ranks = self.0.iter().filter_map(|ranks| ranks.get(index).copied()).collect();
        has.then_some((index as u64, ranks))
    }

    /// The elements that are this rank's between hosts; none if it has no part.
    pub(super) fn part_of(&self, rank: u32, count: u64, element_bytes: u32) -> Range<u64> {
        let bytes = u64::from(element_bytes);
        let index = self.with_part_of(rank).map(|(index, _)| index);
        let part = index.map_or(0..0, |index| part(count * bytes, self.parts() as u64, index));
        part.start / bytes..part.end / bytes
    }

    /// Equal where the ranks lie alike.
    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        let each = |ranks: &Vec<u32>| {
            std::iter::once(ranks.len() as u64).chain(ranks.clone().into_iter().map(u64::from))
        };
        self.0.iter().flat_map(each)
    }

    /// Elements of the longest part.
    pub(super) fn longest(&self, count: u64, element_bytes: u32) -> u64 {
        let bytes = u64::from(element_bytes);
        let parts = self.parts() as u64;
        let length = |index| part(count * bytes, parts, index);
        (0..parts).map(|index| (length(index).end - length(index).start) / bytes).max().unwrap_or(0)
    }
}

/// What one rank does between hosts.
#[derive(Clone, Debug)]
pub(super) struct ByHost {
    /// None: it has no part.
    meets: Option<Arc<Meets>>,
}

/// A plan among one rank of each host.
#[derive(Debug)]
struct Meets {
    plan: Shape,
    /// The communicator's ranks, by the plan's.
    ranks: Vec<u32>,
    /// Which of the plan's ranks are alone on their hosts.
    alone: Vec<bool>,
    is_alone: bool,
    /// Where its part begins.
    start: u64,
}

impl ByHost {
    /// `part` is what this rank has of the buffer; `plan` makes that of a rank among so many, for so
    /// many elements.
    pub(super) fn new(
        hosts: &Hosts,
        rank: u32,
        part: Range<u64>,
        plan: impl FnOnce(u32, u32, u64) -> Shape,
    ) -> Self {
        let meets = hosts.with_part_of(rank).map(|(_, ranks)| {
            let place = ranks.iter().position(|member| *member == rank).unwrap_or(0);
            let alone: Vec<bool> =
                ranks.iter().map(|member| hosts.around(*member).len() == 1).collect();
            let plan = plan(place as u32, ranks.len() as u32, part.end - part.start);
            let is_alone = alone[place];
            Arc::new(Meets { plan, ranks, alone, is_alone, start: part.start })
        });
        Self { meets }
    }
}

impl Meets {
    fn place(&self, place: Place) -> Place {
        match place.space {
            Space::Relay => place,
            // In place, both lie over one another.
            Space::Input if !self.is_alone => Space::Output.at(place.start + self.start),
            space => space.at(place.start + self.start),
        }
    }

    fn action(&self, peer: u32, action: Action) -> Action {
        let is_alone = self.alone.get(peer as usize) == Some(&true);
        match action {
            Action::Send { from } => Action::Send { from: self.place(from) },
            Action::Store { into } => Action::Store { into: self.place(into) },
            Action::Reduce { local, into, incoming_raw, last } => Action::Reduce {
                local: self.place(local),
                into: self.place(into),
                incoming_raw: incoming_raw && is_alone,
                last,
            },
        }
    }
}

impl Steps for ByHost {
    fn len(&self) -> u32 {
        self.meets.as_ref().map_or(0, |meets| meets.plan.steps().len())
    }

    fn step(&self, index: u32) -> Step {
        match &self.meets {
            Some(meets) => {
                let step = meets.plan.steps().step(index);
                let action = meets.action(step.peer, step.action);
                let peer = meets.ranks.get(step.peer as usize).copied().unwrap_or(step.peer);
                Step { action, peer, ..step }
            }
            // There is none, so this is never asked.
            None => Step::new(0, Action::Send { from: Space::Output.at(0) }, 0..0),
        }
    }

    fn opening(&self) -> u32 {
        self.meets.as_ref().map_or(0, |meets| meets.plan.steps().opening())
    }

    fn next_on_flow(&self, index: u32) -> Option<u32> {
        self.meets.as_ref().and_then(|meets| meets.plan.steps().next_on_flow(index))
    }

    fn relay_elements(&self, segment_elements: u64) -> u64 {
        self.meets.as_ref().map_or(0, |meets| meets.plan.steps().relay_elements(segment_elements))
    }
}
