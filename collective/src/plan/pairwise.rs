//! All-to-all by pairwise exchange.
//!
//! Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH",
//! 2005. In round t rank r exchanges blocks with rank (t - r) modulo n, whose partner in turn is r;
//! in round 2r it would be its own and rests. A rank sends to one partner at a time, so no rank
//! is flooded by all the others at once.
//!
//! In place, the block that comes from a partner overwrites the one that goes to it, so each
//! segment is received only after the same segment has been sent. This cannot deadlock: order all
//! transfers by (round, segment), and each waits only for earlier ones and, to be received, for
//! its opposite, which waits only for earlier ones to be sent.

use super::shape::Steps;
use super::{Action, After, Space, Step, blocks};

#[derive(Clone, Debug)]
pub(super) struct Pairwise {
    rank: u32,
    size: u32,
    /// Elements of one block.
    count: u64,
}

impl Pairwise {
    /// Blocks of `count` elements; `size` is at least 2.
    pub(super) fn new(rank: u32, size: u32, count: u64) -> Self {
        Self { rank, size, count }
    }
}

impl Steps for Pairwise {
    fn len(&self) -> u32 {
        2 * (self.size - 1)
    }

    /// Even steps send, odd steps receive.
    fn step(&self, index: u32) -> Step {
        let own = 2 * self.rank % self.size;
        let round = index / 2 + u32::from(index / 2 >= own);
        let partner = (round + self.size - self.rank) % self.size;
        let range = blocks(partner..partner + 1, self.count);
        let start = range.start;
        if index.is_multiple_of(2) {
            let action = Action::Send { from: Space::Input.at(start) };
            Step::new(partner, action, range).after_whole(index.checked_sub(2))
        } else {
            let action = Action::Store { into: Space::Output.at(start) };
            Step::new(partner, action, range).after(After::Segment(index - 1))
        }
    }
}
