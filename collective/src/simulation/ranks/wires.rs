//! What lies between the ranks: flows of data with small windows, flows of control messages,
//! heartbeats; and the clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Event;
use crate::deadlock::Stuck;
use crate::group::Standing;
use crate::simulation::{Delivery, FlowId, Network, Quality, Scheduler};
use crate::verdict::Verdict;

/// What travels.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// A message of a data flow, as it lies on the wire.
    Data(Vec<u8>),
    Control(Control),
    Beat(Vec<Standing>),
}

/// What control endpoints say to each other reliably.
#[derive(Clone, Debug)]
pub(super) enum Control {
    Goodbye { group: u64, calls: u64, hash: u64 },
    Leave,
    LeaveRead,
    Stuck(Stuck),
    Verdict(Verdict),
}

/// Names a data flow: communicator, sender, receiver, tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DataFlow {
    pub(super) group: u64,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) tree: u16,
}

pub(super) struct Wires {
    pub(super) scheduler: Scheduler<Event>,
    pub(super) network: Network<Payload>,
    /// Messages that fit a data flow.
    window: u32,
    zero: Instant,
    data: BTreeMap<FlowId, DataFlow>,
    /// Messages sent and not consumed, by data flow.
    in_flight: BTreeMap<FlowId, u32>,
    control: BTreeMap<(u32, u32), FlowId>,
}

impl Wires {
    pub(super) fn new(seed: u64, quality: Quality, window: u32) -> Self {
        Self {
            scheduler: Scheduler::new(seed),
            network: Network::new(quality),
            window,
            zero: Instant::now(),
            data: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            control: BTreeMap::new(),
        }
    }

    /// The present, as the judges see it.
    pub(super) fn now(&self) -> Instant {
        self.zero + Duration::from_nanos(self.scheduler.now())
    }

    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        self.scheduler.random().chance(per_mille)
    }

    pub(super) fn open(&mut self, flow: DataFlow) -> FlowId {
        let id = self.network.open(flow.from, flow.to, self.window);
        self.data.insert(id, flow);
        id
    }

    pub(super) fn open_control(&mut self, from: u32, to: u32) {
        let id = self.network.open(from, to, u32::MAX);
        self.control.insert((from, to), id);
    }

    /// The data flow of this number; None if it is one of control.
    pub(super) fn data_flow(&self, id: FlowId) -> Option<DataFlow> {
        self.data.get(&id).copied()
    }

    /// Sends a message into an open window.
    pub(super) fn send_data(&mut self, flow: FlowId, message: Vec<u8>) {
        let sent = self.network.send(&mut self.scheduler, flow, Payload::Data(message));
        assert!(sent.is_ok(), "a message for a closed window");
        let in_flight = self.in_flight.entry(flow).or_default();
        *in_flight += 1;
        assert!(*in_flight <= self.window, "more messages on {flow:?} than its window holds");
    }

    /// The reader has taken a message of a data flow.
    pub(super) fn consumed(&mut self, flow: FlowId) {
        let in_flight = self.in_flight.entry(flow).or_default();
        assert!(*in_flight > 0, "a message of {flow:?} was read twice");
        *in_flight -= 1;
        self.network.consume(&mut self.scheduler, flow);
    }

    /// Says something to a rank that this one has a control link to.
    pub(super) fn post(&mut self, from: u32, to: u32, message: Control) {
        if let Some(flow) = self.control.get(&(from, to)) {
            // A flow to a rank that is gone takes nothing.
            let _ = self.network.send(&mut self.scheduler, *flow, Payload::Control(message));
        }
    }

    pub(super) fn beat(&mut self, from: u32, to: u32, standings: Vec<Standing>) {
        self.network.datagram(&mut self.scheduler, from, to, Payload::Beat(standings));
    }

    pub(super) fn deliver(&mut self, flow: FlowId) -> Option<Payload> {
        match self.network.deliver(flow) {
            Some(Delivery::Payload(payload)) => Some(payload),
            Some(Delivery::End) | None => None,
        }
    }

    /// Data messages that nobody has read.
    pub(super) fn unread(&self) -> u32 {
        self.in_flight.values().sum()
    }
}
