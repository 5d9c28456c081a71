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
use crate::plan::part;
use crate::reduce::{ElementType, Kernel, ReduceOp};

/// How the elements are combined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    pub(crate) element: ElementType,
    pub(crate) op: ReduceOp,
    /// Of how many ranks in all.
    pub(crate) ranks: u32,
    /// The ranks that meet here are all of them.
    pub(crate) is_all: bool,
}

/// The shared memory of one communicator, as one of its ranks uses it.
pub(crate) struct Shared {
    posts: Posts,
    /// Calls that have met here; others of the communicator may lie between them.
    calls: u64,
    /// Steps of them all, wrapping.
    steps: u32,
}

/// Why a call did not come to its end.
pub(crate) enum Stop {
    /// The world has ended.
    Over,
    /// That rank makes another call, or has made another one before.
    Differs(usize),
}

impl From<Interrupt> for Stop {
    fn from(_: Interrupt) -> Self {
        Stop::Over
    }
}

/// One call, on one rank.
struct Call<'a> {
    posts: &'a Posts,
    /// Its number among those that meet here.
    number: u64,
    hash: u64,
    /// The steps before it.
    before: u32,
    sum: Sum,
    /// The first so many ranks have a part each.
    parts: usize,
    /// Its steps are the first of the call.
    opens: bool,
    start: *mut u8,
    length: usize,
}

impl Shared {
    /// Of parts that have [`BYTES`] each, and clean posts. Where each of the host's ranks may have a
    /// core of its own, waiting begins with looking.
    pub(crate) fn new(peers: super::Peers, has_own_core: bool) -> Self {
        let spins = if has_own_core { SPINS } else { 0 };
        Self { posts: Posts::new(peers, spins), calls: 0, steps: 0 }
    }

    /// Where a rank differs: tells the others of a call of this one, and hears of that one's; rounds
    /// count from 0. None if that one does not wait for this one, and is rounds ahead.
    pub(crate) fn explain(
        &self,
        round: u64,
        own: &[u8],
        rank: usize,
        patience: &mut impl Patience,
    ) -> Result<Option<Vec<u8>>, Stop> {
        Ok(self.posts.explain(round, own, rank, patience)?)
    }

    /// All-reduces `buffer` in place; `hash` is of this call.
    pub(crate) fn all_reduce(
        &mut self,
        hash: u64,
        sum: Sum,
        buffer: &mut [u8],
        patience: &mut impl Patience,
    ) -> Result<(), Stop> {
        let ranks = self.posts.peers().arenas.len();
        let call = self.call(hash, sum, ranks, buffer);
        let steps = if buffer.len() <= INLINE_BYTES {
            call.inline(patience)?
        } else if buffer.len() <= SMALL_BYTES {
            call.small(patience)?
        } else {
            call.reduce(true, patience)?
        };
        self.steps = self.steps.wrapping_add(steps);
        self.calls += 1;
        Ok(())
    }

    /// Leaves the sum of this host's ranks in each of the first `parts` ranks' part of its buffer;
    /// what the rest of the buffer holds then is not said.
    pub(crate) fn reduce_parts(
        &mut self,
        hash: u64,
        sum: Sum,
        parts: usize,
        buffer: &mut [u8],
        patience: &mut impl Patience,
    ) -> Result<(), Stop> {
        let steps = self.call(hash, sum, parts, buffer).reduce(false, patience)?;
        self.steps = self.steps.wrapping_add(steps);
        Ok(())
    }

    /// After [`reduce_parts`](Self::reduce_parts), in the same call: gives the parts to all.
    pub(crate) fn gather_parts(
        &mut self,
        hash: u64,
        sum: Sum,
        parts: usize,
        buffer: &mut [u8],
        patience: &mut impl Patience,
    ) -> Result<(), Stop> {
        let call = self.call(hash, sum, parts, buffer);
        let steps = Call { opens: false, ..call }.gather(patience)?;
        self.steps = self.steps.wrapping_add(steps);
        self.calls += 1;
        Ok(())
    }

    fn call(&self, hash: u64, sum: Sum, parts: usize, buffer: &mut [u8]) -> Call<'_> {
        Call {
            posts: &self.posts,
            number: self.calls,
            hash,
            before: self.steps,
            sum,
            parts,
            opens: true,
            start: buffer.as_mut_ptr(),
            length: buffer.len(),
        }
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

    /// Each rank adds up its part of all ranks' buffers, piece by piece, and writes it where the
    /// others find it if `shows`. With step b + 1 the pieces of block b are staged, and those of
    /// the block before added up.
    fn reduce(&self, shows: bool, patience: &mut impl Patience) -> Result<u32, Stop> {
        let (arena, _) = self.posts.peers().arenas[self.rank()];
        let lies = arena.offset_of(self.start, self.length);
        self.own_post().show(self.hash, &[lies.map_or(0, |offset| offset as u64 + 1)]);
        let copies = lies.is_none();
        if copies {
            self.stage(0);
        }
        // How the others do it is not known yet.
        patience.steps(0, self.blocks(false) + 1);
        self.publish(1);
        let mut all_lie = !copies;
        for rank in self.others() {
            self.meet(rank, patience)?;
            all_lie &= self.lies_at(rank).is_some();
        }
        let count = self.blocks(all_lie);
        for block in 0..count {
            patience.steps(block + 1, count + 1);
            self.add_up_piece(self.piece(block, self.rank(), all_lie), block, shows, patience)?;
            if copies && block + 1 < count {
                self.stage(block + 1);
            }
            self.publish(block + 2);
            for rank in self.others() {
                self.wait(rank, block + 2, patience)?;
            }
            if copies && shows {
                for owner in self.others() {
                    let piece = self.piece(block, owner, false);
                    let staged = self.staged(self.rank(), block, owner, piece.clone());
                    // SAFETY: the piece is within the buffer.
                    self.copy(staged, unsafe { self.start.add(piece.start) }, piece.len());
                }
            }
        }
        Ok(count + 1)
    }

    /// Gives each rank's part to all. Where the buffers lie has been shown before.
    fn gather(&self, patience: &mut impl Patience) -> Result<u32, Stop> {
        let lies = |rank: usize| self.lies_at(rank).is_some();
        let count = self.blocks(false);
        let offer = |block: u32| {
            let piece = self.piece(block, self.rank(), false);
            if !lies(self.rank()) {
                let staged = self.staged(self.rank(), block, self.rank(), piece.clone());
                // SAFETY: the piece is within the buffer.
                self.copy(unsafe { self.start.add(piece.start) }, staged, piece.len());
            }
        };
        offer(0);
        self.publish(1);
        for block in 0..count {
            for rank in self.others() {
                self.wait(rank, block + 1, patience)?;
            }
            for owner in self.others() {
                let piece = self.piece(block, owner, false);
                let from = match self.lies_at(owner) {
                    Some(offset) => self.lies(owner, offset + piece.start, piece.len()),
                    None => self.staged(owner, block, owner, piece.clone()),
                };
                // SAFETY: the piece is within the buffer.
                self.copy(from, unsafe { self.start.add(piece.start) }, piece.len());
            }
            if block + 1 < count {
                offer(block + 1);
            }
            self.publish(block + 2);
        }
        // Until all have taken the last, it must stay.
        for rank in self.others() {
            self.wait(rank, count + 1, patience)?;
        }
        Ok(count + 1)
    }

    /// Copies what is not this rank's of a block to where the others see it.
    fn stage(&self, block: u32) {
        for owner in self.others() {
            let piece = self.piece(block, owner, false);
            let staged = self.staged(self.rank(), block, owner, piece.clone());
            // SAFETY: the piece is within the buffer.
            self.copy(unsafe { self.start.add(piece.start) }, staged, piece.len());
        }
    }

    fn add_up_piece(
        &self,
        piece: Range<usize>,
        block: u32,
        shows: bool,
        patience: &impl Patience,
    ) -> Result<(), Stop> {
        let own = self.rank();
        for chunk in chunks(piece, CHUNK) {
            // A piece may be as long as the buffer.
            if patience.is_over() {
                return Err(Stop::Over);
            }
            let at = |rank: usize| match self.lies_at(rank) {
                Some(offset) => self.lies(rank, offset + chunk.start, chunk.len()),
                None => self.staged(rank, block, own, chunk.clone()),
            };
            self.add_up(chunk.clone(), at);
            for rank in self.others().filter(|_| shows) {
                // SAFETY: the chunk is within the buffer.
                self.copy(unsafe { self.start.add(chunk.start) }, at(rank), chunk.len());
            }
        }
        Ok(())
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
            if !self.is_small() {
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
            ranks: self.sum.ranks,
            incoming_raw: true,
            local_raw: rank == 1,
            last: self.sum.is_all && rank + 1 == self.ranks(),
        }
    }

    fn meet(&self, rank: usize, patience: &mut impl Patience) -> Result<(), Stop> {
        self.wait(rank, 1, patience)?;
        match self.posts.of(rank, self.number).hash() == self.hash {
            true => Ok(()),
            false => Err(Stop::Differs(rank)),
        }
    }

    fn wait(&self, rank: usize, step: u32, patience: &mut impl Patience) -> Result<(), Stop> {
        let to_come = step == 1 && self.opens;
        let step = self.before.wrapping_add(step);
        Ok(self.posts.wait_for(rank, self.number, step, to_come, patience)?)
    }

    fn publish(&self, step: u32) {
        self.posts.publish(self.number, self.before.wrapping_add(step));
    }

    fn own_post(&self) -> &posts::Post {
        self.posts.of(self.rank(), self.number)
    }

    /// Whether all is passed to everybody.
    fn is_small(&self) -> bool {
        self.sum.is_all && self.length <= SMALL_BYTES
    }

    /// Where a rank's buffer lies in its arena, if it does.
    fn lies_at(&self, rank: usize) -> Option<usize> {
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

    /// The part of the buffer that a rank adds up.
    fn part(&self, rank: usize) -> Range<usize> {
        let part = part(self.length as u64, self.parts as u64, rank as u64);
        part.start as usize..part.end as usize
    }

    /// Of a rank's part, what belongs to a block; all of it where nothing is staged.
    fn piece(&self, block: u32, rank: usize, is_whole: bool) -> Range<usize> {
        let part = self.part(rank);
        match is_whole {
            true => part,
            false => {
                let start = part.start + block as usize * self.piece_bytes();
                start.min(part.end)..(start + self.piece_bytes()).min(part.end)
            }
        }
    }

    /// How many blocks there are.
    fn blocks(&self, is_whole: bool) -> u32 {
        let longest = self.length.div_ceil(LINE).div_ceil(self.parts) * LINE;
        if is_whole { 1 } else { longest.div_ceil(self.piece_bytes()).max(1) as u32 }
    }

    fn piece_bytes(&self) -> usize {
        (PIECE_BYTES.min(MAX_BLOCK_BYTES / self.parts) / LINE).max(1) * LINE
    }

    /// Where a rank stages a range of the owner's piece of a block.
    fn staged(&self, rank: usize, block: u32, owner: usize, range: Range<usize>) -> *mut u8 {
        let start = STAGE_AT + (block % 2) as usize * MAX_BLOCK_BYTES + owner * self.piece_bytes();
        self.at(rank, start + range.start - self.piece(block, owner, false).start, range.len())
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
/// Up to here one meeting and reading everything is faster than two meetings. Measured with 2, 4 and
/// 8 ranks: at 2 and 4 KiB two meetings are by 5 to 50 % faster, but for slices of 8 ranks.
pub(crate) const SMALL_BYTES: usize = 1 << 10;
/// With two ranks measured: from 64 KiB on larger ones are no faster; smaller ones have to meet too
/// often.
const PIECE_BYTES: usize = 128 << 10;
/// What is staged, added up and copied back stays in a core's second-level cache.
const MAX_BLOCK_BYTES: usize = 1 << 20;
/// What is added up and then copied to the others is still in the first-level cache.
const CHUNK: usize = 8 << 10;
const LINE: usize = 64;
const PAGE: usize = 4096;
const SMALL_AT: usize = posts::BYTES.next_multiple_of(PAGE);
const STAGE_AT: usize = (SMALL_AT + 2 * SMALL_BYTES).next_multiple_of(PAGE);
/// Of each arena, for one communicator.
pub(crate) const BYTES: usize = STAGE_AT + 2 * MAX_BLOCK_BYTES;
