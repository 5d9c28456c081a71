//! An all-reduce through memory that the ranks share. Every rank adds up its part of all ranks'
//! buffers, in rank order: `((r0 + r1) + r2) + ...`, whatever the length and wherever the buffers
//! lie, so that a sum has the same bits in each of these ways:
//!
//! - A few words travel in the posts themselves, and every rank adds up all of them.
//! - A small buffer is copied to where all read it, and every rank adds up all of it.
//! - Buffers that all lie in shared memory stay there: each rank adds up its part, and writes it
//!   into all of them.
//! - Others pass in blocks that fit a core's cache: each rank copies what is not its part of a
//!   block to where the others see it, adds up its part, writes it into all these copies, and takes
//!   the other parts' results from its own. A line of the cache goes to the rank that adds it up,
//!   and back: results in a place of their own would take two more journeys.

use std::ops::Range;

use super::posts::{self, INLINE_WORDS, Interrupt, Patience, Posts};
use crate::reduce::{ElementType, Kernel, ReduceOp};

/// How the elements are combined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    pub(crate) element: ElementType,
    pub(crate) op: ReduceOp,
}

/// The shared memory of one communicator, as one of its ranks uses it.
pub(crate) struct Shared {
    posts: Posts,
    /// Steps of all calls so far, wrapping.
    steps: u32,
}

/// Why a call did not come to its end.
pub(crate) enum Stop {
    /// The world has ended.
    Over,
    /// That rank makes another call, after which its rolling hash is this.
    Differs(usize, u64),
}

impl From<Interrupt> for Stop {
    fn from(_: Interrupt) -> Self {
        Stop::Over
    }
}

/// One call, on one rank.
struct Call<'a> {
    posts: &'a Posts,
    /// Its number.
    number: u64,
    hash: u64,
    /// The steps before it.
    before: u32,
    sum: Sum,
    start: *mut u8,
    length: usize,
}

impl Shared {
    /// Of parts that have [`BYTES`] each, and clean posts. Where each of the host's ranks may have a
    /// core of its own, waiting begins with looking.
    pub(crate) fn new(peers: super::Peers, has_own_core: bool) -> Self {
        let spins = if has_own_core { SPINS } else { 0 };
        Self { posts: Posts::new(peers, spins), steps: 0 }
    }

    /// Where a rank differs: tells the others what this one calls, and hears what that one does.
    pub(crate) fn explain(
        &self,
        number: u64,
        own: &[u8],
        rank: usize,
        patience: &mut impl Patience,
    ) -> Result<Vec<u8>, Stop> {
        Ok(self.posts.explain(number, own, rank, patience)?)
    }

    /// All-reduces `buffer` in place. `number` and `hash` are of this call.
    pub(crate) fn all_reduce(
        &mut self,
        (number, hash): (u64, u64),
        sum: Sum,
        buffer: &mut [u8],
        patience: &mut impl Patience,
    ) -> Result<(), Stop> {
        let call = Call {
            posts: &self.posts,
            number,
            hash,
            before: self.steps,
            sum,
            start: buffer.as_mut_ptr(),
            length: buffer.len(),
        };
        let steps = if buffer.len() <= INLINE_BYTES {
            call.inline(patience)?
        } else if buffer.len() <= SMALL_BYTES {
            call.small(patience)?
        } else {
            call.large(patience)?
        };
        self.steps = self.steps.wrapping_add(steps);
        Ok(())
    }
}

impl Call<'_> {
    /// The posts carry it.
    fn inline(&self, patience: &mut impl Patience) -> Result<u32, Stop> {
        let used = self.length.div_ceil(8);
        let mut bytes = [0u8; INLINE_BYTES];
        bytes[..self.length].copy_from_slice(self.own(0..self.length));
        self.own_post().show(self.hash, &as_words(&bytes)[..used]);
        patience.steps(0, 1);
        self.publish(1);
        let mut total = [0u8; INLINE_BYTES];
        for rank in 0..self.ranks() {
            if rank != self.rank() {
                self.meet(rank, patience)?;
            }
            let mut words = [0u64; INLINE_WORDS];
            self.posts.of(rank, self.number).read(&mut words[..used]);
            let bytes = as_bytes(&words);
            match rank {
                0 => total = bytes,
                _ => self.kernel(rank).combine(&mut total[..self.length], &bytes[..self.length]),
            }
        }
        self.own_mut(0..self.length).copy_from_slice(&total[..self.length]);
        Ok(1)
    }

    /// Everybody reads everything.
    fn small(&self, patience: &mut impl Patience) -> Result<u32, Stop> {
        let offset = SMALL_AT + (self.number % 2) as usize * SMALL_BYTES;
        let whole = 0..self.length;
        self.copy(self.start, self.at(self.rank(), offset, self.length), self.length);
        self.own_post().show(self.hash, &[]);
        patience.steps(0, 1);
        self.publish(1);
        for rank in self.others() {
            self.meet(rank, patience)?;
        }
        self.add_up(whole, |rank| self.at(rank, offset, self.length));
        Ok(1)
    }

    fn large(&self, patience: &mut impl Patience) -> Result<u32, Stop> {
        let (arena, _) = self.posts.peers().arenas[self.rank()];
        let shared = arena.offset_of(self.start, self.length);
        self.own_post().show(self.hash, &[shared.map_or(0, |offset| offset as u64 + 1)]);
        if shared.is_none() {
            self.stage(0);
        }
        let blocks = self.length.div_ceil(self.block_bytes()) as u32;
        // How the others do it is not known yet.
        patience.steps(0, blocks + 1);
        self.publish(1);
        let mut all_shared = shared.is_some();
        for rank in self.others() {
            self.meet(rank, patience)?;
            all_shared &= self.buffer_of(rank).is_some();
        }
        match all_shared {
            true => self.where_they_lie(patience),
            false => self.in_blocks(blocks, shared.is_none(), patience),
        }
    }

    fn where_they_lie(&self, patience: &mut impl Patience) -> Result<u32, Stop> {
        let starts: Vec<*mut u8> = (0..self.ranks())
            .map(|rank| self.lies(rank, self.buffer_of(rank).unwrap_or(0), self.length))
            .collect();
        let part = self.part(0..self.length, self.rank());
        patience.steps(1, 2);
        for chunk in chunks(part, CHUNK) {
            // SAFETY: the chunk is within every rank's buffer.
            self.add_up(chunk.clone(), |rank| unsafe { starts[rank].add(chunk.start) });
            for rank in self.others() {
                // SAFETY: as above.
                let (from, to) =
                    unsafe { (self.start.add(chunk.start), starts[rank].add(chunk.start)) };
                self.copy(from, to, chunk.len());
            }
        }
        self.publish(2);
        for rank in self.others() {
            self.wait(rank, 2, patience)?;
        }
        Ok(2)
    }

    /// With step b + 1 block b is staged, and the block before it added up.
    fn in_blocks(
        &self,
        count: u32,
        copies: bool,
        patience: &mut impl Patience,
    ) -> Result<u32, Stop> {
        for block in 0..count {
            patience.steps(block + 1, count + 1);
            self.reduce_block(block);
            if copies && block + 1 < count {
                self.stage(block + 1);
            }
            self.publish(block + 2);
            for rank in self.others() {
                self.wait(rank, block + 2, patience)?;
            }
            if copies {
                for (range, staged) in self.others_parts(block) {
                    // SAFETY: the range is within the buffer.
                    self.copy(staged, unsafe { self.start.add(range.start) }, range.len());
                }
            }
        }
        Ok(count + 1)
    }

    /// Copies what is not this rank's part of a block to where the others see it.
    fn stage(&self, block: u32) {
        for (range, staged) in self.others_parts(block) {
            // SAFETY: the range is within the buffer.
            self.copy(unsafe { self.start.add(range.start) }, staged, range.len());
        }
    }

    /// What is not this rank's part of a block, and where it is staged.
    fn others_parts(&self, block: u32) -> [(Range<usize>, *mut u8); 2] {
        let whole = self.block(block);
        let part = self.part(whole.clone(), self.rank());
        [whole.start..part.start, part.end..whole.end]
            .map(|range| (range.clone(), self.staged(self.rank(), block, range)))
    }

    fn reduce_block(&self, block: u32) {
        for chunk in chunks(self.part(self.block(block), self.rank()), CHUNK) {
            let at = |rank: usize| match self.buffer_of(rank) {
                Some(offset) => self.lies(rank, offset + chunk.start, chunk.len()),
                None => self.staged(rank, block, chunk.clone()),
            };
            self.add_up(chunk.clone(), at);
            for rank in self.others() {
                // SAFETY: the chunk is within the buffer.
                self.copy(unsafe { self.start.add(chunk.start) }, at(rank), chunk.len());
            }
        }
    }

    /// This range of the own buffer becomes the combination of all ranks', `of` them.
    fn add_up(&self, range: Range<usize>, of: impl Fn(usize) -> *mut u8) {
        let own = self.rank();
        let length = range.len();
        let into = self.own_mut(range);
        // SAFETY: `of` gives `length` bytes that nobody writes between this step and the next.
        let theirs = |rank: usize| unsafe { std::slice::from_raw_parts(of(rank), length) };
        // Kernels are commutative to the bit: ranks 0 and 1 begin with what they have.
        let (first, second) = if own == 1 { (1, 0) } else { (0, 1) };
        if own > 1 {
            // Own input is read from where the others see it, in its turn.
            if self.buffer_of(own).is_some() || self.length > SMALL_BYTES {
                return self.add_up_aside(into, own, theirs);
            }
            into.copy_from_slice(theirs(first));
        }
        self.kernel(1).combine(into, theirs(second));
        for rank in 2..self.ranks() {
            self.kernel(rank).combine(into, theirs(rank));
        }
    }

    /// As `add_up`, where the own input lies nowhere but in `into`.
    fn add_up_aside<'b>(&self, into: &mut [u8], own: usize, theirs: impl Fn(usize) -> &'b [u8]) {
        let mut aside = [0u8; CHUNK];
        let total = &mut aside[..into.len()];
        total.copy_from_slice(theirs(0));
        for rank in 1..self.ranks() {
            match rank == own {
                true => self.kernel(rank).combine(total, into),
                false => self.kernel(rank).combine(total, theirs(rank)),
            }
        }
        into.copy_from_slice(total);
    }

    /// Combines the total of the ranks before this one with its input.
    fn kernel(&self, rank: usize) -> Kernel {
        Kernel {
            element: self.sum.element,
            op: self.sum.op,
            ranks: self.ranks() as u32,
            incoming_raw: true,
            local_raw: rank == 1,
            last: rank + 1 == self.ranks(),
        }
    }

    fn meet(&self, rank: usize, patience: &mut impl Patience) -> Result<(), Stop> {
        self.wait(rank, 1, patience)?;
        match self.posts.of(rank, self.number).hash() {
            hash if hash == self.hash => Ok(()),
            hash => Err(Stop::Differs(rank, hash)),
        }
    }

    fn wait(&self, rank: usize, step: u32, patience: &mut impl Patience) -> Result<(), Stop> {
        let to_come = step == 1;
        let step = self.before.wrapping_add(step);
        Ok(self.posts.wait_for(rank, self.number, step, to_come, patience)?)
    }

    fn publish(&self, step: u32) {
        self.posts.publish(self.number, self.before.wrapping_add(step));
    }

    fn own_post(&self) -> &posts::Post {
        self.posts.of(self.rank(), self.number)
    }

    /// Where a rank's buffer lies in its arena, if it does.
    fn buffer_of(&self, rank: usize) -> Option<usize> {
        if self.length <= SMALL_BYTES {
            return None;
        }
        let word = self.posts.of(rank, self.number).word(0);
        (word as usize).checked_sub(1)
    }

    fn rank(&self) -> usize {
        self.posts.peers().own
    }

    fn ranks(&self) -> usize {
        self.posts.peers().arenas.len()
    }

    /// All but this rank, beginning with the next one, so that not all read the same one at once.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, ranks) = (self.rank(), self.ranks());
        (1..ranks).map(move |distance| (rank + distance) % ranks)
    }

    fn at(&self, rank: usize, offset: usize, length: usize) -> *mut u8 {
        self.posts.at(rank, offset, length)
    }

    /// In the arena of a rank, where its buffer lies.
    fn lies(&self, rank: usize, offset: usize, length: usize) -> *mut u8 {
        self.posts.peers().arenas[rank].0.at(offset, length)
    }

    fn own(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: within the buffer, which this call has borrowed.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    #[expect(clippy::mut_from_ref)]
    fn own_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: within the buffer, which this call has borrowed for writing; one at a time.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    fn copy(&self, from: *const u8, to: *mut u8, length: usize) {
        // SAFETY: the callers give places of that length, in different memory.
        unsafe { std::ptr::copy_nonoverlapping(from, to, length) }
    }

    fn block(&self, block: u32) -> Range<usize> {
        let start = block as usize * self.block_bytes();
        start..(start + self.block_bytes()).min(self.length)
    }

    fn block_bytes(&self) -> usize {
        (BLOCK_BYTES_A_RANK * self.ranks()).min(MAX_BLOCK_BYTES)
    }

    /// The part of a range that a rank adds up: whole lines of the cache, as equal as they can be.
    fn part(&self, range: Range<usize>, rank: usize) -> Range<usize> {
        let lines = range.len().div_ceil(LINE);
        let at = |rank: usize| (range.start + lines * rank / self.ranks() * LINE).min(range.end);
        at(rank)..at(rank + 1)
    }

    /// Where a rank stages a range of a block.
    fn staged(&self, rank: usize, block: u32, range: Range<usize>) -> *mut u8 {
        let start = STAGE_AT + (block % 2) as usize * MAX_BLOCK_BYTES;
        self.at(rank, start + range.start - self.block(block).start, range.len())
    }
}

fn as_words(bytes: &[u8; INLINE_BYTES]) -> [u64; INLINE_WORDS] {
    std::array::from_fn(|index| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
        u64::from_le_bytes(word)
    })
}

fn as_bytes(words: &[u64; INLINE_WORDS]) -> [u8; INLINE_BYTES] {
    let mut bytes = [0; INLINE_BYTES];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}

/// About 2 us: longer than a rank that is as far needs, shorter than a turn of another process.
const SPINS: u32 = 200;
const INLINE_BYTES: usize = 8 * INLINE_WORDS;
/// Up to here one meeting and reading everything is faster than two meetings.
pub(crate) const SMALL_BYTES: usize = 4 << 10;
/// With two ranks measured: from 64 KiB on larger ones are no faster; smaller ones have to meet too
/// often. With more ranks a part of the block should still be worth a meeting.
const BLOCK_BYTES_A_RANK: usize = 128 << 10;
/// What is staged, added up and copied back stays in a core's second-level cache.
const MAX_BLOCK_BYTES: usize = 1 << 20;
/// What is added up and then copied to the others is still in the first-level cache.
const CHUNK: usize = 8 << 10;
const LINE: usize = 64;
const PAGE: usize = 4096;
const SMALL_AT: usize = posts::BYTES.next_multiple_of(PAGE);
const STAGE_AT: usize = SMALL_AT + 2 * SMALL_BYTES;
/// Of each arena, for one communicator.
pub(crate) const BYTES: usize = STAGE_AT + 2 * MAX_BLOCK_BYTES;
