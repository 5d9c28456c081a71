//! The segmented ring: reduce-scatter, then all-gather.
//!
//! Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
//! 2009. The buffer is cut into one chunk per rank. In round t every rank r sends chunk r - t to
//! its successor and receives chunk r - t - 1 from its predecessor (all modulo n). In the first
//! n - 1 rounds what arrives is added to the local chunk; after them rank r holds chunk r + 1
//! complete. In the next n - 1 rounds the complete chunks go around once. What is sent in round t
//! is what was received in round t - 1, which makes the pipeline: a segment moves on as soon as
//! it is reduced. Each rank sends 2 (n - 1) / n of the buffer.
//!
//! The sum of chunk c is associated from rank c onwards: ((c + (c+1)) + ...) + (c-1).

use super::{Action, Step, chunk};

#[derive(Clone, Debug)]
pub(crate) struct Ring {
    rank: u32,
    size: u32,
    count: u64,
    rounds: u32,
}

impl Ring {
    /// All-reduce of `count` elements; `size` is at least 2.
    pub(crate) fn all_reduce(rank: u32, size: u32, count: u64) -> Self {
        Self { rank, size, count, rounds: 2 * (size - 1) }
    }

    /// A barrier: the reduce-scatter rounds of nothing. After them, word of every rank's arrival
    /// has come round to every other rank.
    pub(crate) fn barrier(rank: u32, size: u32) -> Self {
        Self { rank, size, count: 0, rounds: size - 1 }
    }

    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
    }

    pub(crate) fn len(&self) -> u32 {
        2 * self.rounds
    }

    /// Even steps send, odd steps receive; round t has steps 2t and 2t + 1.
    pub(crate) fn step(&self, index: u32) -> Step {
        let round = index / 2;
        if index.is_multiple_of(2) {
            Step {
                action: Action::Send,
                peer: self.next(),
                range: self.chunk_behind(round),
                after: index.checked_sub(1),
            }
        } else {
            let action = if round < self.size - 1 {
                Action::ReceiveReduce { last: round == self.size - 2 }
            } else {
                Action::ReceiveStore
            };
            Step { action, peer: self.previous(), range: self.chunk_behind(round + 1), after: None }
        }
    }

    pub(crate) fn next(&self) -> u32 {
        (self.rank + 1) % self.size
    }

    pub(crate) fn previous(&self) -> u32 {
        (self.rank + self.size - 1) % self.size
    }

    /// The chunk of the rank `distance` places before this one on the ring.
    fn chunk_behind(&self, distance: u32) -> std::ops::Range<u64> {
        let index = (self.rank + 2 * self.size - distance) % self.size;
        chunk(self.count, self.size, index)
    }
}
