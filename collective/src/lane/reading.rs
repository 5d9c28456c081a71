//! Reading tasks: one for each flow from a peer.

use std::rc::Rc;
use std::time::Instant;

use super::Driver;
use crate::active::Taken;
use crate::contract::Contract;
use crate::link::{Flow, FlowEnd, FlowReceiver, Incoming};
use crate::machine::FlowKey;
use crate::verdict::Fault;
use crate::wire::{self, HEADER_BYTES, Header, MessageKind};
use crate::world::WHOLE_WORLD;

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
        let Incoming { flow, receiver } = incoming;
        let end = self.read_messages(flow, receiver).await;
        self.forget_flow(flow);
        match end {
            Ok(()) | Err(Stop::Done) => {}
            Err(Stop::Broken(problem)) => self.flow_broke(flow, problem).await,
            Err(Stop::Protocol(problem)) => {
                self.world.raise(flow.peer, Fault::Protocol { problem });
            }
        }
    }

    async fn read_messages(
        self: &Rc<Self>,
        flow: Flow,
        mut receiver: FlowReceiver,
    ) -> Result<(), Stop> {
        let mut place = None;
        loop {
            let mut header = [0; HEADER_BYTES];
            receiver.exact(&mut header).await?;
            let header = Header::from_wire(&header).map_err(Stop::Protocol)?;
            if header.epoch != self.world.epoch {
                return Err(Stop::Protocol("a message of another epoch".into()));
            }
            if header.kind == MessageKind::Goodbye {
                let Header { sequence, hash, .. } = header;
                self.world.note_flow_goodbye(flow.peer, flow.group, sequence, hash);
                if flow.group == WHOLE_WORLD {
                    self.world.note_left(flow.peer);
                }
                receiver.answer();
                self.changed.notify_waiters();
                return Ok(());
            }
            let contract = self.read_contract(&header, &mut receiver).await?;
            let peer = match place {
                Some(place) => place,
                None => *place.insert(self.sender_place(flow).await?),
            };
            let key = FlowKey { peer, tree: flow.tree };
            if header.is_unprompted {
                self.note_arrival(flow, key, &header, Instant::now());
            }
            self.admit(flow, key, &header, contract).await?;
            let mut left = header.payload_bytes as usize;
            while left > 0 {
                let piece = receiver.piece(left).await?;
                left -= piece.len();
                self.absorb(flow.group, key, &piece)?;
            }
            let words = HEADER_BYTES + usize::from(header.contract_bytes);
            self.world.counters.received(flow.peer, words + header.payload_bytes as usize);
            self.arrived(flow.group, key)?;
        }
    }

    /// The sender's rank in the communicator, once this rank has that communicator.
    async fn sender_place(&self, flow: Flow) -> Result<u32, Stop> {
        loop {
            let changed = self.changed.notified();
            if self.world.error().is_some() {
                return Err(Stop::Done);
            }
            if let Some(members) = self.world.members(flow.group) {
                let place = members.iter().position(|member| *member == flow.peer);
                let outside = || Stop::Protocol("a message on a communicator of others".into());
                return place.map(|place| place as u32).ok_or_else(outside);
            }
            changed.await;
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
        flow: Flow,
        key: FlowKey,
        header: &Header,
        contract: Option<(Contract, String)>,
    ) -> Result<(), Stop> {
        loop {
            let changed = self.changed.notified();
            if self.world.error().is_some() {
                return Err(Stop::Done);
            }
            let taken = self.take(flow.group, key, header);
            if taken == Taken::Yes {
                return Ok(());
            }
            // Nobody awaits what belongs to another call than the one made here, either.
            self.world.compare(flow.peer, flow.group, header, contract.as_ref());
            if self.world.error().is_some() {
                return Err(Stop::Done);
            }
            // Which of the calls before it was another, the ranks are finding out.
            if let Taken::Unexpected(problem) = taken
                && !self.world.is_in_doubt()
            {
                return Err(Stop::Protocol(problem));
            }
            changed.await;
        }
    }

    /// Takes the next segment of a flow if the call under way is ready for it.
    fn take(&self, group: u64, key: FlowKey, header: &Header) -> Taken {
        let mut all = self.calls.borrow_mut();
        let active = all.get_mut(&group).and_then(|calls| calls.active.as_mut());
        active.map_or(Taken::NotYet, |active| active.call.take(key, header))
    }

    /// Reduces or stores a piece of the segment that is arriving on a flow.
    fn absorb(&self, group: u64, key: FlowKey, piece: &[u8]) -> Result<(), Stop> {
        let mut all = self.calls.borrow_mut();
        let active = all.get_mut(&group).and_then(|calls| calls.active.as_mut());
        let active = active.ok_or(Stop::Done)?;
        if active.call.absorb(key, piece) { Ok(()) } else { Err(Stop::Done) }
    }

    /// The segment on a flow is complete.
    fn arrived(self: &Rc<Self>, group: u64, key: FlowKey) -> Result<(), Stop> {
        {
            let mut all = self.calls.borrow_mut();
            let active = all.get_mut(&group).and_then(|calls| calls.active.as_mut());
            active.ok_or(Stop::Done)?.call.arrived(key);
        }
        self.progressed(group);
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
