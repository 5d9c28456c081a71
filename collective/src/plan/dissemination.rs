//! The dissemination barrier.
//!
//! Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization", 1988. In round j every
//! rank tells the rank 2^j after it, and hears from the rank 2^j before it, that all it has heard
//! of so far have arrived. After ceil(log2 n) rounds that is everybody.

use super::shape::Steps;
use super::{Action, Space, Step};

#[derive(Clone, Debug)]
pub(super) struct Dissemination {
    rank: u32,
    size: u32,
}

impl Dissemination {
    /// `size` is at least 2.
    pub(super) fn new(rank: u32, size: u32) -> Self {
        Self { rank, size }
    }
}

impl Steps for Dissemination {
    fn len(&self) -> u32 {
        2 * self.size.next_power_of_two().ilog2()
    }

    /// Even steps send, odd steps receive. Each message is heard only after those of the rounds
    /// before, so that the last one stands for all.
    fn step(&self, index: u32) -> Step {
        let (round, distance) = (index / 2, 1 << (index / 2));
        let nothing = Space::Output.at(0);
        let (peer, action) = if index.is_multiple_of(2) {
            ((self.rank + distance) % self.size, Action::Send { from: nothing })
        } else {
            let peer = (self.rank + self.size - distance) % self.size;
            (peer, Action::Store { into: nothing })
        };
        Step::new(peer, action, 0..0).after_whole((2 * round).checked_sub(1))
    }
}
