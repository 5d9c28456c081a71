//! One message between the ranks concerned: gather and scatter of long blocks, and a message from
//! one rank to another.
//!
//! The root exchanges one block with every other rank (linear gather and scatter). All blocks go
//! through the root's link in any case, and here nobody copies any of them on the way.

use super::shape::Steps;
use super::{Action, Space, Step, blocks};

#[derive(Clone, Debug)]
pub(super) struct Linear {
    rank: u32,
    size: u32,
    root: u32,
    /// Elements of one block.
    count: u64,
    gathers: bool,
}

impl Linear {
    /// `root` is below `size`.
    pub(super) fn gather(rank: u32, size: u32, root: u32, count: u64) -> Self {
        Self { rank, size, root, count, gathers: true }
    }

    /// `root` is below `size`.
    pub(super) fn scatter(rank: u32, size: u32, root: u32, count: u64) -> Self {
        Self { rank, size, root, count, gathers: false }
    }
}

impl Steps for Linear {
    fn len(&self) -> u32 {
        if self.rank == self.root { self.size - 1 } else { 1 }
    }

    /// The root serves its successor first.
    fn step(&self, index: u32) -> Step {
        let is_root = self.rank == self.root;
        let (peer, block) = if is_root {
            let peer = (self.root + 1 + index) % self.size;
            (peer, peer)
        } else {
            (self.root, self.rank)
        };
        let range = blocks(block..block + 1, self.count);
        let start = if is_root { range.start } else { 0 };
        let action = if is_root == self.gathers {
            Action::Store { into: Space::Output.at(start) }
        } else {
            Action::Send { from: Space::Input.at(start) }
        };
        Step::new(peer, action, range)
    }
}

/// From member 0 of a pair to member 1.
#[derive(Clone, Debug)]
pub(super) struct Message {
    rank: u32,
    count: u64,
}

impl Message {
    pub(super) fn new(rank: u32, count: u64) -> Self {
        Self { rank, count }
    }
}

impl Steps for Message {
    fn len(&self) -> u32 {
        u32::from(self.rank < 2)
    }

    fn step(&self, _index: u32) -> Step {
        let action = match self.rank {
            0 => Action::Send { from: Space::Input.at(0) },
            _ => Action::Store { into: Space::Output.at(0) },
        };
        Step::new(1 - self.rank.min(1), action, 0..self.count)
    }
}
