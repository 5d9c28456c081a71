//! Further communicators: their numbers, their slots in the memory of a host, and how many there may
//! be.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Engine, layout};
use crate::contract;
use crate::group::Group;
use crate::host_memory::Slot;

impl Engine {
    /// Whether the world has as many communicators as it may.
    pub(crate) fn is_full(&self) -> bool {
        self.runtime.open.load(Ordering::Relaxed) >= MAX_COMMUNICATORS
    }

    /// Adds the communicator of `members`, ranks of the world, this one among them. `id` is equal
    /// on all of them, and no other's.
    /// `slots`: by member, of those that share memory.
    pub(crate) fn split_off(
        &self,
        id: u64,
        suffix: &str,
        members: Vec<u32>,
        slots: Vec<Option<Slot>>,
    ) -> Self {
        let world = self.world();
        let slots: Vec<(u32, Option<Slot>)> = members.iter().copied().zip(slots).collect();
        let place = members.iter().position(|member| *member == world.rank).unwrap_or(0);
        world.add_group(Group::new(world.epoch, id, suffix, members.clone(), place as u32));
        let here = layout::lay_out(world, self.runtime.memory.as_ref(), id, &slots);
        world.note_split(id);
        self.runtime.open.fetch_add(1, Ordering::Relaxed);
        Self {
            runtime: self.runtime.clone(),
            group: id,
            members: members.into(),
            busy: Mutex::new(None),
            closed: AtomicBool::new(false),
            here,
        }
    }

    /// A slot of this rank's memory for a communicator that is to come.
    pub(crate) fn take_slot(&self) -> Option<Slot> {
        let memory = self.runtime.memory.as_ref()?;
        memory.take_slot(|group| self.world().members(group).is_some())
    }

    /// Gives back a slot whose communicator did not come to be.
    pub(crate) fn return_slot(&self, slot: Slot) {
        if let Some(memory) = &self.runtime.memory {
            memory.return_slot(slot);
        }
    }

    /// A number for the communicator that comes of call `sequence` for the ranks of `color`.
    pub(crate) fn child_id(&self, sequence: u64, color: u32) -> u64 {
        contract::mix(contract::mix(self.group ^ (sequence + 1) << 32) ^ u64::from(color) << 1 | 1)
    }

    /// What the names of its calls end with.
    pub(crate) fn suffix(&self) -> String {
        self.world().suffix(self.group)
    }
}

/// Each has flows of its own on every link (see `link/quic/tuning.rs`).
pub(crate) const MAX_COMMUNICATORS: usize = 256;
