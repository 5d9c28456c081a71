//! Calls whose data NCCL moves between GPUs: the engine numbers them, and their contracts meet by
//! way of a barrier: all of them have begun the call when it ends, also of a message, so that ranks
//! which wait for each other in vain are found as in calls on the host.

use std::panic::Location;

use super::Engine;
use crate::buffer::{self, Borrowed, Parts};
use crate::contract::{CallShape, Collective, Role};
use crate::error::Result;
use crate::pending::Pending;
use crate::reduce::ElementType;

impl Engine {
    /// Numbers a call and returns once every rank is seen to have made the same one. `shape` is that
    /// of [`Role::Device`].
    pub(crate) fn compare(&self, shape: &CallShape) -> Result<()> {
        let nothing = Parts { input: 0..0, output: 0..0 };
        self.call(shape, Borrowed::in_place::<u8>(&mut [], nothing)).map(|_| ())
    }

    /// Numbers a call; its end says that every rank has made the same one.
    pub(crate) fn start_comparing(&self, shape: &CallShape) -> Result<Pending<()>> {
        self.start(shape, (), Parts { input: 0..0, output: 0..0 })
    }

    /// As [`start_comparing`](Self::start_comparing), for a message of `count` elements.
    pub(crate) fn start_comparing_message(
        &self,
        (peer, sends): (u32, bool),
        (element, count): (ElementType, usize),
        label: Option<u64>,
        location: &'static Location<'static>,
    ) -> Result<Pending<()>> {
        let _turn = self.enter(location)?;
        let world = self.world();
        let peer = self.members.get(peer as usize).copied().unwrap_or(world.rank);
        let (from, to) = if sends { (world.rank, peer) } else { (peer, world.rank) };
        let shape = CallShape {
            collective: Collective::Send,
            role: Role::Device,
            op: None,
            element,
            count: count as u64,
            counts: None,
            label,
            location,
        };
        let nothing = Parts { input: 0..0, output: 0..0 };
        self.start_on(world.pair(self.group, from, to), &shape, buffer::hold((), nothing))
    }
}
