//! Binomial gather and scatter, for blocks so short that all of them fit the relay.
//!
//! The link between a rank and its parent carries the blocks of the rank's subtree: first its own
//! block, which lies elsewhere than the others, then the rest in one message, or in two where the
//! ranks wrap past n. A block lies in the relay where it lies in the root's buffer.

use std::ops::Range;

use super::super::{blocks, shape::Steps};
use super::{Action, Seat, Space, Step};

#[derive(Clone, Debug)]
pub(in crate::plan) struct Gather {
    seat: Seat,
    count: u64,
}

#[derive(Clone, Debug)]
pub(in crate::plan) struct Scatter {
    seat: Seat,
    count: u64,
}

impl Seat {
    /// How many transfers the link to the parent has.
    fn parts(self) -> u32 {
        let (rest, before_wrap) = self.rest();
        1 + u32::from(rest > 0) + u32::from(rest > before_wrap)
    }

    /// The ranks whose blocks transfer `part` carries.
    fn part(self, part: u32) -> Range<u32> {
        let first = (self.rank() + 1) % self.size;
        let (rest, before_wrap) = self.rest();
        match part {
            0 => self.rank()..self.rank() + 1,
            1 => first..first + before_wrap,
            _ => 0..rest - before_wrap,
        }
    }

    /// The subtree without its own rank, and how many of those come before the ranks wrap.
    fn rest(self) -> (u32, u32) {
        let rest = self.span() - 1;
        (rest, rest.min(self.size - (self.rank() + 1) % self.size))
    }

    /// The child and the part of its link that is number `index` when all parts of the links to
    /// all children are counted, and None beyond them; `children` gives their order.
    fn child_part(
        self,
        index: u32,
        children: impl Iterator<Item = u32>,
    ) -> Result<(Self, u32), u32> {
        let mut left = index;
        for child in children.map(|child| self.child(child)) {
            if left < child.parts() {
                return Ok((child, left));
            }
            left -= child.parts();
        }
        Err(left)
    }

    fn children_parts(self) -> u32 {
        (0..self.children()).map(|child| self.child(child).parts()).sum()
    }

    fn own_parts(self) -> u32 {
        if self.relative == 0 { 0 } else { self.parts() }
    }

    /// The relay is as large as the root's buffer where the subtree has more than its own block.
    fn blocks_relay(self, count: u64) -> u64 {
        if self.relative == 0 || self.span() == 1 { 0 } else { u64::from(self.size) * count }
    }

    /// Steps to one peer follow each other.
    fn next_part(steps: &dyn Steps, index: u32) -> Option<u32> {
        let next = Some(index + 1).filter(|next| *next < steps.len())?;
        let (this, that) = (steps.step(index), steps.step(next));
        (this.peer == that.peer && this.is_send() == that.is_send()).then_some(next)
    }
}

impl Gather {
    /// Blocks of `count` elements; `root` is below `size`, and `size * count` elements fit the
    /// relay.
    pub(in crate::plan) fn new(rank: u32, size: u32, root: u32, count: u64) -> Self {
        Self { seat: Seat::new(rank, size, root), count }
    }
}

impl Steps for Gather {
    fn len(&self) -> u32 {
        self.seat.children_parts() + self.seat.own_parts()
    }

    /// What comes from the children, the smallest subtree first; then what goes to the parent.
    fn step(&self, index: u32) -> Step {
        let (seat, parent) = (self.seat, self.seat.parent());
        match seat.child_part(index, 0..seat.children()) {
            Ok((child, part)) => {
                let range = blocks(child.part(part), self.count);
                let space = if parent.is_some() { Space::Relay } else { Space::Output };
                let action = Action::Store { into: space.at(range.start) };
                // Each after the one before, so that the last of them stands for all.
                let before = index.checked_sub(1).filter(|_| parent.is_some());
                Step::new(child.rank(), action, range).after_whole(before)
            }
            Err(part) => {
                let range = blocks(seat.part(part), self.count);
                let (from, gathered) = match part {
                    0 => (Space::Input.at(0), None),
                    _ => (Space::Relay.at(range.start), (index - part).checked_sub(1)),
                };
                Step::new(parent.unwrap_or(0), Action::Send { from }, range).after_whole(gathered)
            }
        }
    }

    fn next_on_flow(&self, index: u32) -> Option<u32> {
        Seat::next_part(self, index)
    }

    fn relay_elements(&self, _segment_elements: u64) -> u64 {
        self.seat.blocks_relay(self.count)
    }
}

impl Scatter {
    /// Blocks of `count` elements; `root` is below `size`, and `size * count` elements fit the
    /// relay.
    pub(in crate::plan) fn new(rank: u32, size: u32, root: u32, count: u64) -> Self {
        Self { seat: Seat::new(rank, size, root), count }
    }

    fn receive(&self, parent: u32, part: u32) -> Step {
        let range = blocks(self.seat.part(part), self.count);
        let into = match part {
            0 => Space::Output.at(0),
            _ => Space::Relay.at(range.start),
        };
        Step::new(parent, Action::Store { into }, range)
    }

    fn send(&self, child: Seat, part: u32) -> Step {
        let ranks = child.part(part);
        // The transfer from the parent in which these blocks came.
        let came =
            (1..self.seat.own_parts()).find(|part| self.seat.part(*part).contains(&ranks.start));
        let range = blocks(ranks, self.count);
        let space = if self.seat.relative == 0 { Space::Input } else { Space::Relay };
        Step::new(child.rank(), Action::Send { from: space.at(range.start) }, range)
            .after_segment(came)
    }
}

impl Steps for Scatter {
    fn len(&self) -> u32 {
        self.seat.own_parts() + self.seat.children_parts()
    }

    /// What comes from the parent; then what goes to the children, the largest subtree first.
    fn step(&self, index: u32) -> Step {
        let seat = self.seat;
        match (index.checked_sub(seat.own_parts()), seat.parent()) {
            (None, Some(parent)) => self.receive(parent, index),
            (sent, _) => match seat.child_part(sent.unwrap_or(0), (0..seat.children()).rev()) {
                Ok((child, part)) => self.send(child, part),
                Err(_) => self.receive(seat.rank(), 0),
            },
        }
    }

    fn next_on_flow(&self, index: u32) -> Option<u32> {
        Seat::next_part(self, index)
    }

    fn relay_elements(&self, _segment_elements: u64) -> u64 {
        self.seat.blocks_relay(self.count)
    }
}
