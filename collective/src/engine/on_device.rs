//! Calls whose data NCCL moves between GPUs: the engine numbers them, so that their contracts are in
//! the rolling hash, and the ranks compare that by way of a barrier, before a call or after many. It
//! is one for messages too: ranks that wait for each other in vain are found as in calls on the host.

use std::panic::Location;
use std::time::Duration;

use super::Engine;
use crate::buffer::{self, Borrowed, Parts};
use crate::contract::{CallShape, Role};
use crate::error::Result;
use crate::pending::Pending;
use crate::plan::Algorithm;
use crate::reduce::ElementType;

impl Engine {
    /// Numbers a call and returns once every rank is seen to have made the same one, and the same
    /// ones before it; its communicator and sequence. `shape` is that of [`Role::DeviceNow`] or of a wait.
    pub(crate) fn compare(&self, shape: &CallShape) -> Result<(u64, u64)> {
        let nothing = Parts { input: 0..0, output: 0..0 };
        let sequence = self.call(shape, Borrowed::in_place::<u8>(&mut [], nothing))?;
        Ok((self.group, sequence))
    }

    /// Numbers a call, which is compared together with the next one that is; its communicator and
    /// sequence.
    pub(crate) fn note(&self, shape: &CallShape) -> Result<(u64, u64)> {
        let _turn = self.enter(shape.location)?;
        let begun = self.begin(shape, |world, shape| world.note(self.group, shape))?;
        let world = self.world();
        world.counters.call(begun.contract.key(Algorithm::Nccl), Duration::ZERO);
        Ok((self.group, begun.contract.sequence))
    }

    /// Numbers a message of so many elements; its end says that the other rank has made its own.
    pub(crate) fn start_comparing_message(
        &self,
        peer: (u32, bool),
        data: (ElementType, usize),
        label: Option<u64>,
        location: &'static Location<'static>,
    ) -> Result<Pending<()>> {
        let _turn = self.enter(location)?;
        let (group, shape) = self.message(data, Role::Device, peer, label, location);
        let nothing = Parts { input: 0..0, output: 0..0 };
        self.start_on(group, &shape, buffer::hold((), nothing))
    }
}
