//! For tests: the driver of a rank whose peers never come, in a runtime in which none of its tasks
//! gets a turn.

use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;

use super::{Call, Completion, Driver, Queued, completion};
use crate::buffer::{self, Parts};
use crate::contract::{CallShape, Collective, Role};
use crate::group::Planned;
use crate::link::{Links, memory};
use crate::machine::Machine;
use crate::plan::Algorithm;
use crate::plan::costs::{Choice, CostTable};
use crate::reduce::{ElementType, ReduceOp};
use crate::statistics::Counters;
use crate::world::{Limits, Peer, WHOLE_WORLD, World};

/// Rank 1 of a ring of three, which receives from rank 0.
pub(super) fn with(limits: Limits, test: impl FnOnce(Rc<Driver>)) {
    // Activating a call starts tasks.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let peer = |rank| Peer::new(rank, "", 0);
        let choice =
            Choice { costs: CostTable::default(), forced: Some(Algorithm::Ring), lanes: 1 };
        let counters = Arc::new(Counters::new(1, 3, "memory"));
        let peers = (0..3).map(peer).collect();
        let world = World::new(1, 0, peers, limits, choice, counters);
        let mut links = memory::Hub::links(3);
        let own = Links::Memory(links.remove(1));
        test(Driver::new(Arc::new(world), 0, own));
        // The other ranks' ends: they do not hang up before.
        drop(links);
    });
}

/// This rank's next call.
pub(super) fn call(driver: &Rc<Driver>) -> Completion {
    let shape = CallShape {
        collective: Collective::AllReduce,
        role: Role::Data,
        op: Some(ReduceOp::Sum),
        element: ElementType::F32,
        count: 6,
        counts: None,
        label: None,
        location: Location::caller(),
    };
    let Planned { begun, plan, members } = driver.world.begin_planned(WHOLE_WORLD, &shape).unwrap();
    let (_, lent) = buffer::hold(vec![0.0f32; 6], Parts { input: 0..6, output: 0..6 });
    let (done, end) = completion();
    let call = Call {
        contract: begun.contract,
        location: String::new(),
        hash: begun.hash,
        members,
        algorithm: plan.algorithm(),
        machine: Machine::new(plan, 1024),
        lent,
        done,
    };
    driver.queue(WHOLE_WORLD, Queued::Call(Box::new(call)));
    end
}
