//! Where the ranks of a communicator are: which of them meet in memory.

use std::sync::Arc;

use super::within_host::WithinHost;
use crate::host_memory::{HostMemory, Slot};
use crate::plan::Hosts;
use crate::plan::costs::Layout;
use crate::verdict::Loss;
use crate::world::World;

/// Settles where the ranks of a communicator are, which all of them find alike, and returns what it
/// has where this rank shares memory with others of it; `slots`: by member.
pub(super) fn lay_out(
    world: &Arc<World>,
    memory: Option<&Arc<HostMemory>>,
    group: u64,
    slots: &[(u32, Option<Slot>)],
) -> Option<Arc<WithinHost>> {
    let home = |(rank, slot): &(u32, Option<Slot>)| {
        // Who has no slot left does without.
        slot.and(world.peers.get(*rank as usize)?.home)
    };
    let hosts = Hosts::new(slots.iter().map(home));
    let parts = hosts.parts();
    let own = (0..).zip(slots).find(|(_, (rank, _))| *rank == world.rank);
    let (place, (_, slot)) = own?;
    let around: Vec<(u32, Slot)> = hosts
        .around(place)
        .iter()
        .filter_map(|place| slots.get(*place as usize))
        .filter_map(|(rank, slot)| Some((*rank, (*slot)?)))
        .collect();
    if let (Some(memory), Some(slot)) = (memory, slot) {
        memory.give_slot(*slot, group);
    }
    let is_whole = around.len() == slots.len();
    let layout = match () {
        () if is_whole && around.len() > 1 => Layout::Together,
        () if hosts.are_mixed() => Layout::ByHost(Arc::new(hosts)),
        () => Layout::Apart,
    };
    world.lay_out_group(group, layout);
    if around.len() < 2 {
        return None;
    }
    let shared = memory.and_then(|memory| Some((memory.communicator(&around)?, memory.clone())));
    let Some((shared, memory)) = shared else {
        // All ranks have said that they have mapped it. Without it, calls would add up nothing.
        let problem = "the memory of the ranks of its host is not mapped".into();
        world.lose(world.rank, Loss::Failed { problem });
        return None;
    };
    let between = (!is_whole).then_some(parts);
    let ranks = slots.len() as u32;
    let around = around.into_iter().map(|(rank, _)| rank).collect();
    Some(WithinHost::new(world.clone(), (group, ranks), (around, shared, memory), between))
}
