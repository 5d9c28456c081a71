//! The segmented ring: all-reduce and all-gather.
//!
//! Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
//! 2009. The buffer is cut into one chunk per rank. In round t every rank r sends chunk r - t to
//! its successor and receives chunk r - t - 1 from its predecessor (all modulo n). In the first
//! n - 1 rounds what arrives is combined with this rank's input; after them rank r holds chunk
//! r + 1 complete. In the next n - 1 rounds the complete chunks go around once. What is sent in
//! round t is what was received in round t - 1, which makes the pipeline: a segment moves on as
//! soon as it is reduced. Each rank sends 2 (n - 1) / n of the buffer.
//!
//! The sum of chunk c is associated from rank c onwards: ((c + (c+1)) + ...) + (c-1).
//!
//! An all-gather is the second half alone: rank r begins with block r complete.
//!
//! In place, a complete chunk overwrites the input that this rank sent of it before, or the
//! partial result that it sent on. Nothing has to order the two: the chunk cannot be complete
//! before what this rank sent is part of it.

use std::ops::Range;
use std::sync::Arc;

use super::shape::Steps;
use super::{Action, Space, Step, blocks, chunk};

#[derive(Clone, Debug)]
pub(super) struct Ring {
    rank: u32,
    size: u32,
    /// Rounds in which what arrives is reduced: n - 1, or none.
    reducing: u32,
    cut: Cut,
}

/// How the elements belong to the ranks.
#[derive(Clone, Debug)]
enum Cut {
    /// So many elements, in parts as equal as possible.
    Chunks(u64),
    /// So many elements to each rank.
    Blocks(u64),
    /// Where each rank's block ends.
    Ends(Arc<[u64]>),
}

impl Ring {
    /// All-reduce of `count` elements; `size` is at least 2.
    pub(super) fn all_reduce(rank: u32, size: u32, count: u64) -> Self {
        Self { rank, size, reducing: size - 1, cut: Cut::Chunks(count) }
    }

    /// All-gather of `count` elements from each rank, or of the blocks that `ends` gives.
    pub(super) fn all_gather(rank: u32, size: u32, count: u64, ends: Option<Arc<[u64]>>) -> Self {
        Self { rank, size, reducing: 0, cut: ends.map_or(Cut::Blocks(count), Cut::Ends) }
    }

    /// The chunk of the rank `distance` places before this one on the ring.
    fn chunk_behind(&self, distance: u32) -> Range<u64> {
        let index = (self.rank + 2 * self.size - distance) % self.size;
        match &self.cut {
            Cut::Chunks(count) => chunk(*count, self.size, index),
            Cut::Blocks(count) => blocks(index..index + 1, *count),
            Cut::Ends(ends) => {
                let end = |index: u32| ends.get(index as usize).copied().unwrap_or(0);
                index.checked_sub(1).map_or(0, end)..end(index)
            }
        }
    }

    /// What this rank does with what arrives in `round`, from element `start` on.
    fn take(&self, round: u32, start: u64) -> Action {
        let into = Space::Output.at(start);
        if round >= self.reducing {
            return Action::Store { into };
        }
        Action::Reduce {
            local: Space::Input.at(start),
            into,
            incoming_raw: round == 0,
            last: round + 1 == self.reducing,
        }
    }
}

impl Steps for Ring {
    fn len(&self) -> u32 {
        2 * (self.reducing + self.size - 1)
    }

    /// Even steps send, odd steps receive; round t has steps 2t and 2t + 1.
    fn step(&self, index: u32) -> Step {
        let round = index / 2;
        if index.is_multiple_of(2) {
            let range = self.chunk_behind(round);
            let space = if index == 0 && self.reducing > 0 { Space::Input } else { Space::Output };
            let from = space.at(range.start);
            Step::new((self.rank + 1) % self.size, Action::Send { from }, range)
                .after_segment(index.checked_sub(1))
        } else {
            let range = self.chunk_behind(round + 1);
            let action = self.take(round, range.start);
            Step::new((self.rank + self.size - 1) % self.size, action, range)
        }
    }

    fn opening(&self) -> u32 {
        2
    }

    fn next_on_flow(&self, index: u32) -> Option<u32> {
        Some(index + 2).filter(|next| *next < self.len())
    }
}
