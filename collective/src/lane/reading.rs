//! Reading tasks: one for each flow from a peer.

use std::rc::Rc;

use super::{Arriving, Driver};
use crate::contract::{self, Contract};
use crate::link::{FlowEnd, FlowReceiver, Incoming};
use crate::machine::{FlowKey, Transfer};
use crate::plan::Action;
use crate::reduce::Reducer;
use crate::verdict::Fault;
use crate::wire::{self, HEADER_BYTES, Header, MessageKind};

/// Why a reading task ends.
enum Stop {
    /// The world has ended, or this flow's sender has nothing more to say.
    Done,
    /// The flow broke.
    Broken(String),
    /// The peer sent what allfold never sends.
    Protocol(String),
}

impl Driver {
    /// Reads one flow to its end.
    pub(super) async fn read_flow(self: Rc<Self>, incoming: Incoming) {
        let Incoming { from, receiver } = incoming;
        match self.read_messages(from, receiver).await {
            Ok(()) | Err(Stop::Done) => {}
            Err(Stop::Broken(problem)) => self.flow_broke(from, problem).await,
            Err(Stop::Protocol(problem)) => self.world.raise(from, Fault::Protocol { problem }),
        }
    }

    async fn read_messages(&self, from: u32, mut flow: FlowReceiver) -> Result<(), Stop> {
        loop {
            let mut header = [0; HEADER_BYTES];
            flow.exact(&mut header).await?;
            let header = Header::from_wire(&header).map_err(Stop::Protocol)?;
            if header.epoch != self.world.epoch {
                return Err(Stop::Protocol("a message of another epoch".into()));
            }
            if header.kind == MessageKind::Goodbye {
                self.world.note_goodbye(from, header.sequence, header.hash);
                flow.answer();
                self.changed.notify_waiters();
                return Ok(());
            }
            let contract = self.read_contract(&header, &mut flow).await?;
            self.admit(from, &header, contract).await?;
            let mut left = header.payload_bytes as usize;
            while left > 0 {
                let piece = flow.piece(left).await?;
                left -= piece.len();
                self.absorb(from, &piece)?;
            }
            self.arrived(from)?;
        }
    }

    async fn read_contract(
        &self,
        header: &Header,
        flow: &mut FlowReceiver,
    ) -> Result<Option<(Contract, String)>, Stop> {
        if header.contract_bytes == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::from(header.contract_bytes)];
        flow.exact(&mut bytes).await?;
        match wire::read_contract(&bytes) {
            Some(contract) => Ok(Some(contract)),
            None => Err(Stop::Protocol("a contract that cannot be read".into())),
        }
    }

    /// Waits until the call that a message belongs to is under way here and has a place for it.
    /// The contract is compared before that, so nothing of another call is ever reduced.
    async fn admit(
        &self,
        from: u32,
        header: &Header,
        contract: Option<(Contract, String)>,
    ) -> Result<(), Stop> {
        loop {
            let changed = self.changed.notified();
            if self.world.error().is_some() {
                return Err(Stop::Done);
            }
            if header.sequence < self.world.calls().0 {
                if let Some((hash, ours)) = self.world.describe_call(header.sequence)
                    && hash != header.hash
                {
                    let theirs = match &contract {
                        Some((theirs, location)) => contract::describe(theirs, location),
                        None => "other calls before it".into(),
                    };
                    self.world.raise_mismatch(from, header.sequence, &ours, &theirs);
                    return Err(Stop::Done);
                }
                if self.place(from, header)? {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Takes the next segment from `from` if the active call's machine is ready for it; false if
    /// it must wait.
    fn place(&self, from: u32, header: &Header) -> Result<bool, Stop> {
        let mut slot = self.active.borrow_mut();
        let Some(active) = slot.as_mut() else {
            return Ok(false);
        };
        let contract = &active.call.contract;
        if header.sequence > contract.sequence {
            return Ok(false);
        }
        let unexpected = || {
            let Header { sequence, step, segment, .. } = header;
            Stop::Protocol(format!(
                "segment {segment} of step {step} of call #{sequence}, which nobody awaits"
            ))
        };
        if header.sequence < contract.sequence || !active.call.machine.expects(flow(from)) {
            return Err(unexpected());
        }
        let Some(transfer) = active.call.machine.next_receive(flow(from)) else {
            return Ok(false);
        };
        let bytes = byte_range(&transfer, contract).len();
        if (header.step, header.segment) != (transfer.ordinal, transfer.segment)
            || header.payload_bytes as usize != bytes
        {
            return Err(unexpected());
        }
        active.arriving.push(Arriving { peer: from, transfer, reducer: Reducer::default() });
        Ok(true)
    }

    /// Reduces or stores a piece of the segment that is arriving from `from`.
    fn absorb(&self, from: u32, piece: &[u8]) -> Result<(), Stop> {
        let mut slot = self.active.borrow_mut();
        let active = slot.as_mut().ok_or(Stop::Done)?;
        let contract = active.call.contract;
        let arriving = active.arriving.iter_mut().find(|a| a.peer == from).ok_or(Stop::Done)?;
        let range = byte_range(&arriving.transfer, &contract);
        let local = active.call.buffer.bytes_mut(range);
        match arriving.transfer.action {
            Action::Reduce { incoming_raw, last, .. } => {
                let kernel = contract.kernel(incoming_raw, last, self.world.size);
                arriving.reducer.reduce(kernel, local, piece);
            }
            Action::Store { .. } => arriving.reducer.store(local, piece),
            Action::Send { .. } => {}
        }
        Ok(())
    }

    /// The segment from `from` is complete.
    fn arrived(&self, from: u32) -> Result<(), Stop> {
        {
            let mut slot = self.active.borrow_mut();
            let active = slot.as_mut().ok_or(Stop::Done)?;
            active.arriving.retain(|arriving| arriving.peer != from);
            active.call.machine.received(flow(from));
        }
        self.progressed();
        Ok(())
    }
}

impl From<FlowEnd> for Stop {
    fn from(end: FlowEnd) -> Self {
        match end {
            FlowEnd::Finished => Stop::Broken("it ended without a goodbye".into()),
            FlowEnd::Failed(problem) => Stop::Broken(problem),
        }
    }
}

/// The bytes of the user's buffer that a segment covers.
pub(super) fn byte_range(transfer: &Transfer, contract: &Contract) -> std::ops::Range<usize> {
    let size = contract.element.size() as u64;
    let (Action::Send { from: place }
    | Action::Store { into: place }
    | Action::Reduce { into: place, .. }) = transfer.action;
    (place.start * size) as usize..((place.start + transfer.elements) * size) as usize
}

/// The only flow to or from a peer.
pub(super) fn flow(peer: u32) -> FlowKey {
    FlowKey { peer, stripe: 0 }
}
