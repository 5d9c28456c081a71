//! Whom this rank waits for in a call, and how long.
//!
//! Of every flow whose first message depends on nothing but that its sender has begun the call, the
//! time until that message comes is the sender's lateness. It is counted when the message is here;
//! where that takes long, also before, so that whoever looks meanwhile sees who is late.

use std::rc::Rc;
use std::time::Duration;

use super::{Active, Driver};
use crate::contract::Collective;
use crate::link::Flow;
use crate::machine::FlowKey;
use crate::plan::{Plan, Request};
use crate::wire::Header;

/// Of one call.
#[derive(Default)]
pub(super) struct Lateness {
    /// Flows whose first message has come, of those that wait for nobody.
    came: Vec<FlowKey>,
    /// Those that are awaited; None as long as that does not take long.
    awaited: Option<Vec<Awaited>>,
}

struct Awaited {
    flow: FlowKey,
    /// The rank of the world.
    peer: u32,
    /// So much of the wait has been counted.
    counted: Duration,
}

impl Driver {
    /// A message has come that its sender sent as soon as it had begun its call: if that call is
    /// under way here, this rank has waited for it.
    pub(super) fn note_arrival(&self, flow: Flow, key: FlowKey, header: &Header) {
        let mut all = self.calls.borrow_mut();
        let active = all.get_mut(&flow.group).and_then(|calls| calls.active.as_mut());
        let Some(active) = active.filter(|a| a.call.contract.sequence == header.sequence) else {
            return;
        };
        let waited = active.since.elapsed();
        active.lateness.came.push(key);
        let mut counted = Duration::ZERO;
        if let Some(awaited) = &mut active.lateness.awaited
            && let Some(place) = awaited.iter().position(|awaited| awaited.flow == key)
        {
            counted = awaited.swap_remove(place).counted;
        }
        self.world.counters.late(flow.peer, waited.saturating_sub(counted));
    }

    /// Counts the waits of calls that take long.
    pub(super) fn count_waits(self: &Rc<Self>) {
        for active in self.calls.borrow_mut().values_mut().filter_map(|calls| calls.active.as_mut())
        {
            let waited = active.since.elapsed();
            if waited < LONG {
                continue;
            }
            if active.lateness.awaited.is_none() {
                active.lateness.awaited = Some(self.awaited(active));
            }
            for awaited in active.lateness.awaited.iter_mut().flatten() {
                self.world.counters.late(awaited.peer, waited.saturating_sub(awaited.counted));
                awaited.counted = waited;
            }
        }
    }

    /// The flows of a call whose first message would be here if their senders had begun it.
    fn awaited(&self, active: &Active) -> Vec<Awaited> {
        let contract = &active.call.contract;
        let members = &active.call.members;
        // How long the blocks of others are is not in the contract.
        if contract.collective == Collective::AllGatherV {
            return Vec::new();
        }
        let request = Request {
            collective: contract.collective,
            size: members.len() as u32,
            count: contract.count,
            element_bytes: contract.element.size() as u32,
            counts: None,
        };
        let segment = self.world.choice.costs.segment_elements(request.element_bytes);
        let place = members.iter().position(|member| *member == self.world.rank);
        let opens = |flow: &FlowKey| {
            let plan = Plan::new(&request, flow.peer, active.algorithm, segment);
            place.is_some_and(|place| plan.opens_unprompted(place as u32, flow.stripe))
        };
        let sources = active.call.sources().take(MAX_AWAITED);
        let missing = sources.filter(|flow| !active.lateness.came.contains(flow)).filter(opens);
        missing
            .filter_map(|flow| {
                let peer = *members.get(flow.peer as usize)?;
                Some(Awaited { flow, peer, counted: Duration::ZERO })
            })
            .collect()
    }
}

/// Shorter waits are counted when they end: two scrapes are further apart.
const LONG: Duration = Duration::from_secs(1);
/// To find out costs as many steps of a plan each as the communicator has ranks.
const MAX_AWAITED: usize = 64;
