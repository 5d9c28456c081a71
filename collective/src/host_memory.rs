//! The memory that this rank shares with the other ranks of its host: its own arena, theirs, and
//! which part of each belongs to which communicator.

mod heap;

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use heap::Heap;

use crate::fork::Process;
use crate::link::shared_memory::{self, Arena, Attached, Peers, Place, Shared};

/// Of one world.
pub(crate) struct HostMemory {
    rank: u32,
    own: Arc<Arena>,
    /// Each rank of the host may have a core of its own.
    has_own_core: bool,
    /// What a fork gives back is not its own.
    process: Process,
    /// By rank of the world.
    others: HashMap<u32, Attached>,
    /// The communicator that each slot of the own arena was given to last.
    slots: Mutex<Vec<Option<u64>>>,
    buffers: Mutex<Buffers>,
}

/// The users' buffers in the own arena.
struct Buffers {
    heap: Heap,
    /// A call has failed: some of it is private now, and nobody sees it.
    is_over: bool,
}

/// The part of an arena that one communicator uses, by number.
pub(crate) type Slot = u32;

impl HostMemory {
    pub(crate) fn new(
        rank: u32,
        own: Arc<Arena>,
        others: Vec<(u32, Attached)>,
        has_own_core: bool,
    ) -> Self {
        // The first slot is the whole world's.
        let slots = Mutex::new(vec![Some(crate::world::WHOLE_WORLD)]);
        let heap = Heap::new(SLOTS * SLOT_BYTES..ARENA_BYTES);
        let buffers = Buffers { heap, is_over: false };
        let others = others.into_iter().collect();
        let process = Process::this();
        let buffers = Mutex::new(buffers);
        Self { rank, own, has_own_core, process, others, slots, buffers }
    }

    /// A slot that no communicator uses that `is_open`; None where all are in use. It is clean: the
    /// others may count on that as soon as they know its number.
    pub(crate) fn take_slot(&self, is_open: impl Fn(u64) -> bool) -> Option<Slot> {
        if !self.process.is_this() {
            return None;
        }
        let mut slots = self.slots();
        let free = slots.iter().position(|user| user.is_some_and(|user| !is_open(user)));
        let slot = match free {
            Some(slot) => slot,
            None if slots.len() < SLOTS => {
                slots.push(None);
                slots.len() - 1
            }
            None => return None,
        };
        slots[slot] = None;
        shared_memory::clear(self.own.place().part(slot * SLOT_BYTES, SLOT_BYTES));
        Some(slot as Slot)
    }

    /// The communicator did not come to be.
    pub(crate) fn return_slot(&self, slot: Slot) {
        self.give_slot(slot, NOBODY);
    }

    /// The slot is this communicator's.
    pub(crate) fn give_slot(&self, slot: Slot, group: u64) {
        if let Some(user) = self.slots().get_mut(slot as usize) {
            *user = Some(group);
        }
    }

    /// The memory of a communicator of these ranks of the world, with the slot of each; None where
    /// not all share memory.
    pub(crate) fn communicator(self: &Arc<Self>, ranks: &[(u32, Slot)]) -> Option<Shared> {
        let arena = |rank: u32| match rank == self.rank {
            true => Some(self.own.place()),
            false => self.others.get(&rank).map(Attached::place),
        };
        let part = |(rank, slot): &(u32, Slot)| {
            let start = *slot as usize;
            (start < SLOTS).then_some(())?;
            Some((arena(*rank)?, start * SLOT_BYTES))
        };
        let arenas: Vec<(Place, usize)> = ranks.iter().map(part).collect::<Option<_>>()?;
        let own = ranks.iter().position(|(rank, _)| *rank == self.rank)?;
        Some(Shared::new(Peers { own, arenas, _memory: self.clone() }, self.has_own_core))
    }

    /// Zeroed memory in the own arena, and where; None where there is no room, or the world has
    /// ended.
    pub(crate) fn take(&self, length: usize) -> Option<(Range<usize>, NonNull<u8>)> {
        let mut buffers = self.buffers();
        // A fork's arena is its parent's.
        if buffers.is_over || !self.process.is_this() {
            return None;
        }
        let part = buffers.heap.take(length)?;
        drop(buffers);
        self.own.clear(part.clone());
        let start = NonNull::new(self.own.place().at(part.start, part.len()))?;
        Some((part, start))
    }

    /// Gives memory back.
    pub(crate) fn give(&self, part: Range<usize>) {
        let mut buffers = self.buffers();
        if !buffers.is_over && self.process.is_this() {
            self.own.forget(part.clone());
            buffers.heap.give(part);
        }
    }

    /// A call on this buffer has failed, and with it the world. Puts private memory with the same
    /// contents in its place, if it lies in the arena: a rank that wakes in the middle of the call
    /// must not write into what the user has back. Other buffers stay as they are: other threads may
    /// be writing to them, and nobody else knows of them.
    pub(crate) fn make_private(&self, buffer: &[u8]) {
        let mut buffers = self.buffers();
        buffers.is_over = true;
        if let Some(start) = self.own.place().offset_of(buffer.as_ptr(), buffer.len()) {
            self.own.make_private(start..start + buffer.len());
        }
    }

    /// Another rank's arena, as it is seen here.
    #[cfg(test)]
    pub(crate) fn seen(&self, rank: u32, offset: usize, length: usize) -> *mut u8 {
        self.others[&rank].place().at(offset, length)
    }

    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Option<u64>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No communicator's number.
const NOBODY: u64 = u64::MAX;
/// Of one communicator in each of its ranks' arenas.
const SLOT_BYTES: usize = shared_memory::BYTES.next_multiple_of(1 << 16);
/// As many as there can be communicators, and some that are closed here and not yet everywhere.
const SLOTS: usize = 2 * crate::engine::MAX_COMMUNICATORS;
/// Of an arena. What nobody touches costs nothing.
pub(crate) const ARENA_BYTES: usize = 1 << 36;
