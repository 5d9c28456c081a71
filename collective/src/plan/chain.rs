//! Broadcast along a chain: the root sends to its successor, each rank passes every segment on
//! as soon as it has it.
//!
//! Every rank but the last sends the buffer once, so the time for long buffers is that of one
//! transfer, whatever the number of ranks; short ones pay one hop per rank.

use super::{Action, Step};

#[derive(Clone, Debug)]
pub(crate) struct Chain {
    rank: u32,
    size: u32,
    root: u32,
    count: u64,
}

impl Chain {
    /// `root` is below `size`.
    pub(crate) fn broadcast(rank: u32, size: u32, root: u32, count: u64) -> Self {
        Self { rank, size, root, count }
    }

    pub(crate) fn len(&self) -> u32 {
        u32::from(self.previous().is_some()) + u32::from(self.next().is_some())
    }

    pub(crate) fn step(&self, index: u32) -> Step {
        let range = 0..self.count;
        // The root has no predecessor, so its only step is the send.
        match self.previous() {
            Some(peer) if index == 0 => {
                Step { action: Action::ReceiveStore, peer, range, after: None }
            }
            previous => Step {
                action: Action::Send,
                peer: (self.rank + 1) % self.size,
                range,
                after: previous.map(|_| 0),
            },
        }
    }

    pub(crate) fn next(&self) -> Option<u32> {
        (self.position() + 1 < self.size).then(|| (self.rank + 1) % self.size)
    }

    pub(crate) fn previous(&self) -> Option<u32> {
        (self.position() > 0).then(|| (self.rank + self.size - 1) % self.size)
    }

    /// Hops from the root.
    fn position(&self) -> u32 {
        (self.rank + self.size - self.root) % self.size
    }
}
