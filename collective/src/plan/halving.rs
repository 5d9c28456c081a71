//! All-reduce by recursive halving and doubling: few rounds and few bytes.
//!
//! Rabenseifner, "Optimization of collective reduction operations", 2004; Thakur, Rabenseifner and
//! Gropp 2005. The buffer is cut into one chunk per member of the hypercube. A member begins with
//! the window of all chunks. In each round of the first half it splits its window, sends one half
//! to the member at that distance, and reduces what it gets of the other, in which its own chunk
//! lies; the distance halves from 2^(k-1) to 1, after which it holds its own chunk complete. The
//! second half goes the same way back: the windows double, and complete chunks are exchanged.
//! Ranks beyond the power of two are folded in before ([`super::fold`]).
//!
//! The sum is associated as a balanced binary tree over the members, those at the largest distance
//! first; it is the same for every element, so that a longer buffer adds up alike.
//!
//! In place, nothing has to order a store after a send: what is stored is complete, and so it
//! contains what was sent.

use std::ops::Range;

use super::fold::{Fold, Role};
use super::shape::Steps;
use super::{Action, Space, Step, chunk};

#[derive(Clone, Debug)]
pub(super) struct Halving {
    count: u64,
    fold: Fold,
}

impl Halving {
    /// All-reduce of `count` elements; `size` is at least 2.
    pub(super) fn new(rank: u32, size: u32, count: u64) -> Self {
        Self { count, fold: Fold::new(rank, size) }
    }

    /// The `width` chunks, a power of two, among which that member's lies.
    fn window(&self, member: u32, width: u32) -> Range<u64> {
        let (members, first) = (1 << self.fold.dimensions, member & !(width - 1));
        chunk(self.count, members, first).start..chunk(self.count, members, first + width - 1).end
    }

    /// The rounds count from 0 to 2k - 1 through both halves.
    fn distance(&self, round: u32) -> u32 {
        let k = self.fold.dimensions;
        if round < k { 1 << (k - 1 - round) } else { 1 << (round - k) }
    }

    /// Step `index` of the exchange, of which round j has 2j and 2j + 1; `before` steps precede it.
    fn exchange(&self, member: u32, index: u32, before: u32) -> Step {
        let (round, sends) = (index / 2, index.is_multiple_of(2));
        let distance = self.distance(round);
        let partner = member ^ distance;
        let reduces = round < self.fold.dimensions;
        // A partner reduces its own window; complete chunks go the other way.
        let range = self.window(if sends == reduces { partner } else { member }, distance);
        let is_raw = |member| round == 0 && self.fold.is_raw(member);
        let local = if is_raw(member) { Space::Input } else { Space::Output }.at(range.start);
        let into = Space::Output.at(range.start);
        let action = if sends {
            Action::Send { from: local }
        } else if reduces {
            let last = round + 1 == self.fold.dimensions;
            Action::Reduce { local, into, incoming_raw: is_raw(partner), last }
        } else {
            Action::Store { into }
        };
        // What was received in the round before, or taken in.
        let received = (before + 2 * round).checked_sub(1);
        let step = Step::new(self.fold.rank_of(partner), action, range);
        if round < self.fold.dimensions || (sends && round == self.fold.dimensions) {
            step.after_segment(received)
        } else {
            // A window of complete chunks came in by several steps. Each waits for the whole of
            // the one before it, so the last of them stands for all.
            step.after_whole(received)
        }
    }

    fn exchanges(&self) -> u32 {
        4 * self.fold.dimensions
    }
}

impl Steps for Halving {
    fn len(&self) -> u32 {
        match self.fold.role {
            Role::Folded { .. } => 2,
            Role::Member { folded, .. } => self.exchanges() + if folded.is_some() { 2 } else { 0 },
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
                Fold::give_back(folded, self.count).after_whole(Some(index - 1))
            }
            Role::Member { index: member, .. } => self.exchange(member, index - 1, 1),
        }
    }

    /// Each partner is met twice, in rounds that mirror each other.
    fn next_on_flow(&self, index: u32) -> Option<u32> {
        let Role::Member { folded, .. } = self.fold.role else { return None };
        let before = u32::from(folded.is_some());
        let exchange = index.checked_sub(before)?;
        let mirrored = 2 * (2 * self.fold.dimensions - 1).checked_sub(exchange / 2)? + exchange % 2;
        (exchange < mirrored).then_some(before + mirrored)
    }
}
