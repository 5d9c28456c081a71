//! Binomial trees: broadcast, reduce, and, for short blocks, gather and scatter.
//!
//! As in Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
//! MPICH", 2005. Ranks count from the root, modulo n. The parent of v is v without its lowest set
//! bit, so v's subtree is an interval that begins with v, and child j is v + 2^j. The tree is
//! ceil(log2 n) deep, which is also how often the root is met.

mod blocks;

pub(super) use blocks::{Gather, Scatter};

use super::shape::Steps;
use super::{Action, RELAY_SEGMENTS, Space, Step};

/// A rank's place in the tree.
#[derive(Clone, Copy, Debug)]
struct Seat {
    /// Counted from the root.
    relative: u32,
    size: u32,
    root: u32,
}

impl Seat {
    fn new(rank: u32, size: u32, root: u32) -> Self {
        Self { relative: (rank + size - root) % size, size, root }
    }

    fn rank(self) -> u32 {
        (self.relative + self.root) % self.size
    }

    fn parent(self) -> Option<u32> {
        let relative = self.relative & self.relative.checked_sub(1)?;
        Some(Self { relative, ..self }.rank())
    }

    /// The ranks of the subtree.
    fn span(self) -> u32 {
        match self.relative {
            0 => self.size,
            relative => (relative & relative.wrapping_neg()).min(self.size - relative),
        }
    }

    fn children(self) -> u32 {
        self.span().next_power_of_two().ilog2()
    }

    /// Child `index`, below `children()`; the later ones have the larger subtrees.
    fn child(self, index: u32) -> Self {
        Self { relative: self.relative + (1 << index), ..self }
    }
}

/// The root sends to its children, the one with the largest subtree first; every rank passes each
/// segment on as soon as it has it.
#[derive(Clone, Debug)]
pub(super) struct Broadcast {
    seat: Seat,
    count: u64,
}

impl Broadcast {
    /// `root` is below `size`.
    pub(super) fn new(rank: u32, size: u32, root: u32, count: u64) -> Self {
        Self { seat: Seat::new(rank, size, root), count }
    }
}

impl Steps for Broadcast {
    fn len(&self) -> u32 {
        u32::from(self.seat.parent().is_some()) + self.seat.children()
    }

    fn step(&self, index: u32) -> Step {
        let (range, output) = (0..self.count, Space::Output.at(0));
        match self.seat.parent() {
            Some(parent) if index == 0 => Step::new(parent, Action::Store { into: output }, range),
            parent => {
                let child = self.seat.child(self.len() - 1 - index).rank();
                Step::new(child, Action::Send { from: output }, range)
                    .after_segment(parent.map(|_| 0))
            }
        }
    }
}

/// Every rank combines its own input with what comes from its children, the one with the smallest
/// subtree first, and sends it to its parent; below the root the partial results live in the relay.
#[derive(Clone, Debug)]
pub(super) struct Reduce {
    seat: Seat,
    count: u64,
}

impl Reduce {
    /// `root` is below `size`.
    pub(super) fn new(rank: u32, size: u32, root: u32, count: u64) -> Self {
        Self { seat: Seat::new(rank, size, root), count }
    }
}

impl Steps for Reduce {
    fn len(&self) -> u32 {
        self.seat.children() + u32::from(self.seat.parent().is_some())
    }

    fn step(&self, index: u32) -> Step {
        let (seat, children) = (self.seat, self.seat.children());
        let parent = seat.parent();
        let partial = if parent.is_some() { Space::Relay } else { Space::Output };
        let local = if index == 0 { Space::Input } else { partial }.at(0);
        let (peer, action) = match parent {
            Some(parent) if index == children => (parent, Action::Send { from: local }),
            _ => {
                let child = seat.child(index);
                let action = Action::Reduce {
                    local,
                    into: partial.at(0),
                    incoming_raw: child.children() == 0,
                    last: parent.is_none() && index + 1 == children,
                };
                (child.rank(), action)
            }
        };
        let room = (index == 0 && children > 0 && parent.is_some()).then_some(children);
        let step = Step::new(peer, action, 0..self.count).after_segment(index.checked_sub(1));
        Step { room, ..step }
    }

    fn relay_elements(&self, segment_elements: u64) -> u64 {
        if self.seat.children() == 0 || self.seat.parent().is_none() {
            return 0;
        }
        self.count.min(RELAY_SEGMENTS * segment_elements)
    }
}
