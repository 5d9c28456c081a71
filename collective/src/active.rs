//! The call under way on one communicator: its machine, its memory, and the segments that are
//! arriving. It moves bytes in memory, but sends nothing and waits for nothing.

use std::collections::HashSet;
use std::sync::Arc;

use crate::admission::{Admission, Underway};
use crate::buffer::CallMemory;
use crate::contract::Contract;
use crate::machine::{FlowKey, Machine};
use crate::plan::{Action, Place, Space};
use crate::reduce::{Kernel, Reducer};
use crate::wire::{Header, MessageKind};

pub(crate) struct ActiveCall {
    pub(crate) contract: Contract,
    /// Where in the program, for the peers' errors.
    location: String,
    /// The rolling hash after this call.
    hash: u64,
    /// The communicator's ranks in the world.
    pub(crate) members: Arc<[u32]>,
    machine: Machine,
    memory: CallMemory,
    /// Segments that are arriving.
    arriving: Vec<Arriving>,
    /// Flows that have had the contract.
    told: HashSet<FlowKey>,
}

struct Arriving {
    flow: FlowKey,
    into: Place,
    elements: u64,
    /// None: store.
    kernel: Option<Kernel>,
    reducer: Reducer,
}

/// Whether the segment that a header announces can be taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Yes,
    /// It must wait.
    NotYet,
    /// The peer does not keep to the protocol; or it is of an earlier call that the peer made
    /// otherwise, which is to be compared first.
    Unexpected(String),
}

impl ActiveCall {
    pub(crate) fn new(
        contract: Contract,
        location: String,
        hash: u64,
        members: Arc<[u32]>,
        machine: Machine,
        memory: CallMemory,
    ) -> Self {
        let (arriving, told) = (Vec::new(), HashSet::new());
        Self { contract, location, hash, members, machine, memory, arriving, told }
    }

    /// Whether everything has arrived and everything to be sent has been copied.
    pub(crate) fn is_done(&self) -> bool {
        self.machine.is_done()
    }

    /// The flows it receives on.
    pub(crate) fn sources(&self) -> impl Iterator<Item = FlowKey> {
        self.machine.sources()
    }

    /// All flows of the call.
    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowKey> {
        self.machine.sources().chain(self.machine.destinations())
    }

    /// Whether anything is still to come on a flow.
    pub(crate) fn expects(&self, flow: FlowKey) -> bool {
        self.machine.expects(flow)
    }

    /// Whether anything is still to be sent on a flow.
    pub(crate) fn has_to_send(&self, flow: FlowKey) -> bool {
        self.machine.has_to_send(flow)
    }

    /// The next segment of a flow as one message, which `write` makes of its parts; None if there
    /// is none yet.
    pub(crate) fn next_message<M>(
        &mut self,
        flow: FlowKey,
        epoch: u64,
        write: impl FnOnce(&[&[u8]]) -> M,
    ) -> Option<M> {
        let transfer = self.machine.next_send(flow)?;
        #[cfg(feature = "faults")]
        self.begins(&transfer);
        let Action::Send { from } = transfer.action else { return None };
        let payload = self.memory.bytes(from, transfer.elements);
        let contract = self.contract.to_wire();
        // A flow's first message of a call carries the contract.
        let (contract, location): (&[u8], &[u8]) =
            if self.told.insert(flow) { (&contract, self.location.as_bytes()) } else { (&[], &[]) };
        let header = Header {
            kind: MessageKind::Segment,
            is_unprompted: transfer.is_unprompted,
            contract_bytes: (contract.len() + location.len()) as u16,
            payload_bytes: payload.len() as u32,
            epoch,
            sequence: self.contract.sequence,
            hash: self.hash,
            segment: transfer.segment,
            step: transfer.ordinal,
        };
        Some(write(&[&header.to_wire(), contract, location, payload]))
    }

    /// Takes the segment that `header` announces on a flow, if the call is ready for it.
    pub(crate) fn take(&mut self, flow: FlowKey, header: &Header) -> Taken {
        let underway =
            Underway { contract: &self.contract, hash: self.hash, machine: &self.machine };
        let transfer = match underway.admit(flow, header) {
            Admission::Wait => return Taken::NotYet,
            Admission::Unexpected(problem) => return Taken::Unexpected(problem),
            Admission::Take(transfer) => transfer,
        };
        #[cfg(feature = "faults")]
        self.begins(&transfer);
        let elements = transfer.elements;
        if self.arriving.iter().any(|arriving| arriving.flow == flow) {
            return Taken::Unexpected("two segments at once on one flow".into());
        }
        let (into, kernel) = match transfer.action {
            Action::Store { into } => (into, None),
            Action::Reduce { local, into, incoming_raw, last } => {
                self.memory.bring(local, into, elements);
                // A partial sum that was brought over is still what it was there.
                (into, self.kernel(local, incoming_raw, last))
            }
            Action::Send { .. } => return Taken::NotYet,
        };
        let reducer = Reducer::default();
        self.arriving.push(Arriving { flow, into, elements, kernel, reducer });
        Taken::Yes
    }

    /// Reduces or stores a piece of the segment that is arriving on a flow; false if none is.
    pub(crate) fn absorb(&mut self, flow: FlowKey, piece: &[u8]) -> bool {
        let Some(arriving) = self.arriving.iter_mut().find(|arriving| arriving.flow == flow) else {
            return false;
        };
        let local = self.memory.bytes_mut(arriving.into, arriving.elements);
        match arriving.kernel {
            Some(kernel) => arriving.reducer.reduce(kernel, local, piece),
            None => arriving.reducer.store(local, piece),
        }
        true
    }

    /// The segment on a flow is complete.
    pub(crate) fn arrived(&mut self, flow: FlowKey) {
        self.arriving.retain(|arriving| arriving.flow != flow);
        self.machine.received(flow);
    }

    /// Lets go of the user's memory; the relay can be used again.
    pub(crate) fn into_relay(self) -> Vec<u8> {
        self.memory.into_relay()
    }

    /// Tells the observer when a step begins.
    #[cfg(feature = "faults")]
    fn begins(&self, transfer: &crate::machine::Transfer) {
        if transfer.segment > 0 {
            return;
        }
        let plan = self.machine.plan();
        crate::faults::happens(|rank| {
            crate::faults::Moment::Step(crate::faults::Step {
                rank,
                communicator: self.contract.group,
                sequence: self.contract.sequence,
                collective: self.contract.collective.name(),
                algorithm: plan.algorithm().name(),
                label: self.contract.label,
                index: transfer.index as usize,
                count: plan.len() as usize,
                sends: matches!(transfer.action, Action::Send { .. }),
            })
        });
    }

    /// How to combine what arrives for a reducing step.
    fn kernel(&self, local: Place, incoming_raw: bool, last: bool) -> Option<Kernel> {
        Some(Kernel {
            element: self.contract.element,
            op: self.contract.op?,
            ranks: self.members.len() as u32,
            incoming_raw,
            local_raw: local.space == Space::Input,
            last,
        })
    }
}
