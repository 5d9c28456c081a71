//! Reduce-scatter on a ring: the first half of the ring all-reduce (Patarasuk and Yuan 2009),
//! shifted so that rank r ends with block r.
//!
//! In round t rank r sends block r - 1 - t to its successor and receives block r - 2 - t from its
//! predecessor (all modulo n); what arrives in the last round, n - 2, is block r and goes into the
//! output. The sum of block b is associated from rank b + 1 onwards, its own input last.
//!
//! The input is never written, and the output holds one block only, so the partial results of
//! rounds 0 to n - 3 live in the relay. Each block is cut into pieces of at most half the relay;
//! the ring runs for the first piece, then for the second, and so on. Partial results alternate
//! between the two halves, and one is filled only when the send that reads its former contents is
//! done.
//!
//! It cannot deadlock, not even where only one segment fits between two ranks. Order all transfers
//! by (piece, round, segment). To send one, a rank needs its earlier transfers on that link to
//! have been received, and the same segment of the round before to have come in: all of them come
//! earlier in the order. To receive one, a rank must have emptied half a relay of the partial
//! result before last. That one came in two rounds earlier, and goes out one round earlier than
//! this transfer, or with a piece before it: earlier in the order again. So the first transfer
//! that is not done can always be done.

use std::ops::Range;

use super::shape::Steps;
use super::{Action, RELAY_SEGMENTS, Space, Step, blocks};

#[derive(Clone, Debug)]
pub(super) struct ReduceScatter {
    rank: u32,
    size: u32,
    /// Elements of one block.
    count: u64,
    /// Elements of half the relay.
    half: u64,
}

impl ReduceScatter {
    /// Blocks of `count` elements; `size` is at least 2.
    pub(super) fn new(rank: u32, size: u32, count: u64, segment_elements: u64) -> Self {
        Self { rank, size, count, half: RELAY_SEGMENTS / 2 * segment_elements }
    }

    fn rounds(&self) -> u32 {
        self.size - 1
    }

    fn pieces(&self) -> u64 {
        self.count.div_ceil(self.half).max(1)
    }

    /// That piece of the block of the rank `distance` places before this one on the ring.
    fn piece_behind(&self, distance: u32, piece: u32) -> Range<u64> {
        let index = (self.rank + 2 * self.size - distance) % self.size;
        let block = blocks(index..index + 1, self.count);
        let start = block.start + u64::from(piece) * self.half;
        start..(start + self.half).min(block.end)
    }

    /// The how-manieth partial result it is that arrives then, and in which half it lies.
    fn partial(&self, piece: u32, round: u32) -> (u64, u64) {
        let number = u64::from(piece) * u64::from(self.size - 2) + u64::from(round);
        (number, number % 2 * self.half)
    }

    /// The send that empties the half which partial result `number` fills.
    fn emptied_by(&self, number: u64) -> Option<u32> {
        let former = number.checked_sub(2)?;
        let kept = u64::from(self.size - 2);
        let (piece, round) = (former / kept, former % kept);
        Some(2 * (piece as u32 * self.rounds() + round as u32 + 1))
    }

    fn send(&self, index: u32, piece: u32, round: u32) -> Step {
        let range = self.piece_behind(1 + round, piece);
        let peer = (self.rank + 1) % self.size;
        match round.checked_sub(1) {
            None => Step::new(peer, Action::Send { from: Space::Input.at(range.start) }, range),
            Some(before) => {
                let from = Space::Relay.at(self.partial(piece, before).1);
                Step::new(peer, Action::Send { from }, range).after_segment(Some(index - 1))
            }
        }
    }

    fn receive(&self, piece: u32, round: u32) -> Step {
        let range = self.piece_behind(2 + round, piece);
        let peer = (self.rank + self.size - 1) % self.size;
        let last = round + 1 == self.rounds();
        let (into, emptied_by) = if last {
            (Space::Output.at(u64::from(piece) * self.half), None)
        } else {
            let (number, start) = self.partial(piece, round);
            (Space::Relay.at(start), self.emptied_by(number))
        };
        let local = Space::Input.at(range.start);
        let action = Action::Reduce { local, into, incoming_raw: round == 0, last };
        Step::new(peer, action, range).after_whole(emptied_by)
    }
}

impl Steps for ReduceScatter {
    /// At 63 KiB a segment, 2^32 steps are some terabytes on ten ranks.
    fn len(&self) -> u32 {
        u32::try_from(2 * self.pieces() * u64::from(self.rounds())).unwrap_or(u32::MAX)
    }

    /// Even steps send, odd steps receive, round after round, piece after piece.
    fn step(&self, index: u32) -> Step {
        let (piece, round) = (index / 2 / self.rounds(), index / 2 % self.rounds());
        if index.is_multiple_of(2) {
            self.send(index, piece, round)
        } else {
            self.receive(piece, round)
        }
    }

    fn opening(&self) -> u32 {
        2
    }

    fn next_on_flow(&self, index: u32) -> Option<u32> {
        index.checked_add(2).filter(|next| *next < self.len())
    }

    fn relay_elements(&self, _segment_elements: u64) -> u64 {
        match self.pieces() * u64::from(self.size - 2) {
            0 => 0,
            1 => self.count,
            _ => self.half + self.count.min(self.half),
        }
    }
}
