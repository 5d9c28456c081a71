//! Broadcast along a chain: the root sends to its successor, each rank passes every segment on
//! as soon as it has it.
//!
//! Every rank but the last sends the buffer once, so the time for long buffers is that of one
//! transfer, whatever the number of ranks; short ones pay one hop per rank.

use super::shape::Steps;
use super::{Action, Space, Step};

#[derive(Clone, Debug)]
pub(super) struct Chain {
    count: u64,
    previous: Option<u32>,
    next: Option<u32>,
}

impl Chain {
    /// `root` is below `size`.
    pub(super) fn broadcast(rank: u32, size: u32, root: u32, count: u64) -> Self {
        // Hops from the root.
        let position = (rank + size - root) % size;
        Self {
            count,
            previous: (position > 0).then(|| (rank + size - 1) % size),
            next: (position + 1 < size).then(|| (rank + 1) % size),
        }
    }
}

impl Steps for Chain {
    fn len(&self) -> u32 {
        u32::from(self.previous.is_some()) + u32::from(self.next.is_some())
    }

    fn step(&self, index: u32) -> Step {
        let (range, output) = (0..self.count, Space::Output.at(0));
        match (self.previous, self.next) {
            // The root has no predecessor, so its only step is the send.
            (None, Some(next)) => Step::new(next, Action::Send { from: output }, range),
            (Some(_), Some(next)) if index == 1 => {
                Step::new(next, Action::Send { from: output }, range).after_segment(Some(0))
            }
            (previous, _) => {
                Step::new(previous.unwrap_or(0), Action::Store { into: output }, range)
            }
        }
    }
}
