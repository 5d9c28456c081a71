//! All-reduce by recursive doubling: fewest rounds, for short buffers.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! 2005. In round j every member of the hypercube exchanges all it has with the member whose index
//! differs in bit j, and both combine the two, so that after k rounds all of 2^k have everything.
//! Ranks beyond the power of two are folded in before ([`super::fold`]).
//!
//! Both partners combine the same two values, and every operation is commutative bit by bit, so
//! all hold the same bits: the sum is associated as a balanced binary tree over the members.
//!
//! A rank's partial result is overwritten by the next one, so each segment is received only after
//! the same segment has been sent.

use super::fold::{Fold, Role};
use super::shape::Steps;
use super::{Action, Space, Step};

#[derive(Clone, Debug)]
pub(super) struct Doubling {
    count: u64,
    fold: Fold,
}

impl Doubling {
    /// All-reduce of `count` elements; `size` is at least 2.
    pub(super) fn new(rank: u32, size: u32, count: u64) -> Self {
        Self { count, fold: Fold::new(rank, size) }
    }

    /// Step `index` of the exchange, of which round j has 2j and 2j + 1; `before` steps precede it.
    fn exchange(&self, member: u32, index: u32, before: u32) -> Step {
        let round = index / 2;
        let partner = member ^ (1 << round);
        let is_raw = |member| round == 0 && self.fold.is_raw(member);
        let space = if is_raw(member) { Space::Input } else { Space::Output };
        let action = if index.is_multiple_of(2) {
            Action::Send { from: space.at(0) }
        } else {
            Action::Reduce {
                local: space.at(0),
                into: Space::Output.at(0),
                incoming_raw: is_raw(partner),
                last: round + 1 == self.fold.dimensions,
            }
        };
        Step::new(self.fold.rank_of(partner), action, 0..self.count)
            .after_segment((before + index).checked_sub(1))
    }
}

impl Steps for Doubling {
    fn len(&self) -> u32 {
        match self.fold.role {
            Role::Folded { .. } => 2,
            Role::Member { folded, .. } => {
                2 * self.fold.dimensions + if folded.is_some() { 2 } else { 0 }
            }
        }
    }

    fn step(&self, index: u32) -> Step {
        match self.fold.role {
            Role::Folded { into } => Fold::folded_step(into, index, self.count),
            Role::Member { index: member, folded: None } => self.exchange(member, index, 0),
            Role::Member { folded: Some(folded), .. } if index == 0 => {
                Fold::take_in(folded, self.count)
            }
            Role::Member { folded: Some(folded), .. } if index + 1 == self.len() => {
                Fold::give_back(folded, self.count).after_segment(Some(index - 1))
            }
            Role::Member { index: member, .. } => self.exchange(member, index - 1, 1),
        }
    }
}
