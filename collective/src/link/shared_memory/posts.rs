//! Posts: where a rank shows how far it is, and how the others wait for that.
//!
//! The steps of all calls of a communicator are counted through, alike on all its ranks. A rank
//! does a step and then *publishes* it, with all that it wrote before; another *waits for* it and
//! then sees what was written. Two posts serve two calls in turn: what a call has shown stays until
//! all have shown the next one, so that nobody has to say that it has read it.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::Timespec;

use super::arena::{Peers, Place};
use super::meeting::{self, Steps, has_come};

/// Two lines of the cache, which processors fetch together; most calls use the first.
#[repr(C, align(128))]
pub(crate) struct Post {
    /// The latest step of this rank, wrapping; written last.
    steps: AtomicU32,
    _unused: u32,
    /// The rolling hash of the calls up to this one.
    hash: AtomicU64,
    /// What the call shows: where its buffer lies, or the buffer itself, where it is that small.
    words: [AtomicU64; INLINE_WORDS],
}

/// Ranks that sleep; apart from the post, which must stay in the caches of those who read it.
#[repr(C, align(64))]
struct Sleepers(AtomicU32);

/// The posts of a communicator.
pub(crate) struct Posts {
    peers: Peers,
    spins: u32,
    crowd: Crowd,
}

/// Notices two ranks on one core although each may have its own: then what one waits for is there
/// as soon as it has yielded once, again and again, and as none of them ever sleeps it takes the
/// scheduler 20 ms to move one. Who sleeps is woken on an idle core.
struct Crowd {
    /// Waits in a row that ended at the first yield.
    waits: Cell<u32>,
    /// So many are a crowd. Doubles each time: also a rank that is late by as much each time looks so.
    limit: Cell<u32>,
}

/// What a rank says of a call where it differs from another's; written only then.
#[repr(C, align(64))]
struct Card {
    /// Which it is, from 1; written last, and 0 meanwhile.
    number: AtomicU64,
    length: AtomicU64,
    words: [AtomicU64; CARD_WORDS],
}

/// Why a wait ended without what it waited for.
pub(crate) struct Interrupt;

/// What a wait that takes long has to look after.
pub(crate) trait Patience {
    /// Whether the world has ended.
    fn is_over(&self) -> bool;
    /// `peer` of the communicator is awaited for long; called every so often. `to_come`: it has not
    /// begun the call.
    fn waits(&mut self, peer: usize, to_come: bool);
    /// `peer` has begun the call, after it was awaited for a while.
    fn came(&mut self, peer: usize);
    /// This rank is about to take a step of the call, which has `count` of them.
    fn steps(&mut self, _index: u32, _count: u32) {}
}

impl Posts {
    /// Of parts that have [`BYTES`] at their beginning.
    pub(crate) fn new(peers: Peers, spins: u32) -> Self {
        Self { peers, spins, crowd: Crowd { waits: Cell::new(0), limit: Cell::new(CROWD) } }
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The post of a rank for a call.
    pub(crate) fn of(&self, rank: usize, call: u64) -> &Post {
        let start = self.at(rank, (call % 2) as usize * POST_STRIDE, size_of::<Post>());
        // SAFETY: within the arena, aligned, and nothing but atomics, for which any bytes will do.
        unsafe { &*start.cast::<Post>() }
    }

    /// Shows a step of this rank, and wakes those who sleep until it comes.
    pub(crate) fn publish(&self, call: u64, step: u32) {
        meeting::publish(&self.steps(self.peers.own, call), step);
    }

    /// Waits until a rank has published a step; `to_come`: its first of the call.
    pub(crate) fn wait_for(
        &self,
        rank: usize,
        call: u64,
        step: u32,
        to_come: bool,
        patience: &mut impl Patience,
    ) -> Result<(), Interrupt> {
        let steps = self.steps(rank, call);
        for _ in 0..self.spins {
            if has_come(steps.latest(), step) {
                return Ok(());
            }
            spin_loop();
        }
        let yields = if self.crowd.is_seen() { 0 } else { YIELDS };
        let yielded = wait_long((rank, to_come), &steps, step, yields, patience)?;
        if self.spins > 0 {
            self.crowd.note(yielded);
        }
        if to_come {
            patience.came(rank);
        }
        Ok(())
    }

    /// Tells what this rank calls, and waits for what another does, for the `round`th time. Two
    /// cards serve two rounds in turn, as posts do. None if that one speaks with a third, and has
    /// shown another call since.
    pub(crate) fn explain(
        &self,
        round: u64,
        own: &[u8],
        rank: usize,
        patience: &mut impl Patience,
    ) -> Result<Option<Vec<u8>>, Interrupt> {
        let own = &own[..own.len().min(8 * CARD_WORDS)];
        let card = self.card(self.peers.own, round);
        // A third rank may still read what it held.
        card.number.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, bytes) in card.words.iter().zip(own.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
        card.length.store(own.len() as u64, Ordering::Relaxed);
        card.number.store(round + 1, Ordering::Release);
        let card = self.card(rank, round);
        while card.number.load(Ordering::Acquire) <= round {
            if patience.is_over() {
                return Err(Interrupt);
            }
            patience.waits(rank, false);
            std::thread::park_timeout(PAUSE);
        }
        let length = card.length.load(Ordering::Relaxed).min(8 * CARD_WORDS as u64) as usize;
        let words = card.words.iter().map(|word| word.load(Ordering::Relaxed));
        let mut theirs: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        theirs.truncate(length);
        fence(Ordering::Acquire);
        let is_whole = card.number.load(Ordering::Relaxed) == round + 1;
        Ok(is_whole.then_some(theirs))
    }

    fn card(&self, rank: usize, round: u64) -> &Card {
        let offset = CARDS_AT + (round % 2) as usize * size_of::<Card>();
        let start = self.at(rank, offset, size_of::<Card>());
        // SAFETY: as in `of`.
        unsafe { &*start.cast::<Card>() }
    }

    fn steps(&self, rank: usize, call: u64) -> Shown<'_> {
        let start = self.at(rank, 2 * POST_STRIDE, size_of::<Sleepers>());
        // SAFETY: as in `of`.
        let sleepers = unsafe { &*start.cast::<Sleepers>() };
        Shown { steps: &self.of(rank, call).steps, sleepers: &sleepers.0 }
    }

    /// `length` bytes of a rank's part.
    pub(crate) fn at(&self, rank: usize, offset: usize, length: usize) -> *mut u8 {
        let (arena, start) = self.peers.arenas[rank];
        arena.at(start + offset, length)
    }
}

impl Post {
    /// Shows the hash of this call and the first words. Published with the next step.
    pub(crate) fn show(&self, hash: u64, words: &[u64]) {
        self.hash.store(hash, Ordering::Relaxed);
        for (shown, word) in self.words.iter().zip(words) {
            shown.store(*word, Ordering::Relaxed);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.load(Ordering::Relaxed)
    }

    /// The first words.
    pub(crate) fn read(&self, words: &mut [u64]) {
        for (word, shown) in words.iter_mut().zip(&self.words) {
            *word = shown.load(Ordering::Relaxed);
        }
    }

    pub(crate) fn word(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Relaxed)
    }
}

/// One rank's steps, in the memory that all share.
struct Shown<'a> {
    steps: &'a AtomicU32,
    sleepers: &'a AtomicU32,
}

impl Steps for Shown<'_> {
    fn latest(&self) -> u32 {
        self.steps.load(Ordering::SeqCst)
    }

    fn show(&self, step: u32) {
        // In one instruction with what would be the fence.
        self.steps.swap(step, Ordering::SeqCst);
    }

    /// All accesses here are sequentially consistent, which does what fences do between others, and
    /// on x86-64 costs one locked instruction less.
    fn fence(&self) {}

    fn sleepers(&self) -> u32 {
        self.sleepers.load(Ordering::SeqCst)
    }

    fn add_sleeper(&self) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
    }

    fn remove_sleeper(&self) {
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    fn sleep(&self, seen: u32) {
        let _ = futex::wait(self.steps, futex::Flags::empty(), seen, Some(&LOOK));
    }

    fn wake_all(&self) {
        let _ = futex::wake(self.steps, futex::Flags::empty(), i32::MAX as u32);
    }
}

/// How often it has yielded.
#[cold]
fn wait_long(
    (rank, to_come): (usize, bool),
    steps: &Shown<'_>,
    step: u32,
    yields: u32,
    patience: &mut impl Patience,
) -> Result<u32, Interrupt> {
    for yielded in 0..yields {
        if has_come(steps.latest(), step) {
            return Ok(yielded);
        }
        if patience.is_over() {
            return Err(Interrupt);
        }
        std::thread::yield_now();
    }
    let goes_on = || {
        patience.waits(rank, to_come);
        !patience.is_over()
    };
    if meeting::sleep_until(steps, step, goes_on) { Ok(yields) } else { Err(Interrupt) }
}

impl Crowd {
    fn is_seen(&self) -> bool {
        let is_seen = self.waits.get() >= self.limit.get();
        if is_seen {
            self.waits.set(0);
            self.limit.set(self.limit.get().saturating_mul(2));
        }
        is_seen
    }

    fn note(&self, yielded: u32) {
        self.waits.set(if yielded == 1 { self.waits.get() + 1 } else { 0 });
    }
}

/// Makes the posts of a part as new. Nobody uses it yet, or any more.
pub(crate) fn clear(part: Place) {
    let start = part.at(0, BYTES);
    // SAFETY: within the arena, and nobody else's.
    unsafe { std::ptr::write_bytes(start, 0, BYTES) }
}

/// What fits into two lines beside the counter and the hash.
pub(crate) const INLINE_WORDS: usize = 14;
const POST_STRIDE: usize = size_of::<Post>();
/// A contract, and where in the program.
const CARD_WORDS: usize = 30;
const CARDS_AT: usize = 3 * POST_STRIDE;
/// Two posts, the sleepers, and two cards.
pub(crate) const BYTES: usize = CARDS_AT + 2 * size_of::<Card>();
/// Between two looks at a card: the job is lost anyway.
const PAUSE: Duration = Duration::from_millis(1);
/// Others may need the core; a turn of each costs less than sleeping and being woken.
const YIELDS: u32 = 200;
/// Half a millisecond of calls.
const CROWD: u32 = 64;
/// How often a sleeper looks whether the world has ended: a verdict must not wait longer.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
