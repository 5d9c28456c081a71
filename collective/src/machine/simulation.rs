//! All ranks of a call under a schedule, on symbols instead of numbers.

use std::collections::VecDeque;

use super::symbols::{Memory, Symbol};
use super::{FlowKey, Machine};
use crate::plan::{Action, Algorithm, Plan, Request};

/// A call that all ranks make.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) request: Request,
    pub(super) algorithm: Algorithm,
    pub(super) segment_elements: u64,
    /// Input and Output lie over each other where they can.
    pub(super) in_place: bool,
    /// Only ranges, no symbols: for counts that no memory could hold.
    pub(super) is_dry: bool,
}

/// Segments that may be under way on one flow, and who acts next.
pub(super) enum Schedule<'a> {
    /// All ranks in turn.
    Forwards(usize),
    /// As before, and that rank only once nobody else can do anything.
    Late(usize, u32),
    /// Picks one of so many moves.
    Random(usize, &'a mut dyn FnMut(usize) -> usize),
}

/// All ranks' machines, memory and messages.
pub(super) struct World {
    call: Call,
    ranks: Vec<Rank>,
}

struct Rank {
    machine: Machine,
    memory: Memory,
    sources: Vec<FlowKey>,
    inbox: Vec<VecDeque<Message>>,
    /// With the place of this flow among the peer's sources.
    destinations: Vec<(FlowKey, usize)>,
}

#[derive(Debug)]
struct Message {
    ordinal: u32,
    segment: u64,
    elements: u64,
    symbols: Vec<Symbol>,
}

impl World {
    pub(super) fn new(call: Call) -> Self {
        let machines: Vec<Machine> = (0..call.request.size)
            .map(|rank| {
                let plan = Plan::new(&call.request, rank, call.algorithm, call.segment_elements);
                assert!(plan.len() == 0 || plan.algorithm() == call.algorithm);
                Machine::new(plan, call.segment_elements)
            })
            .collect();
        let sources: Vec<Vec<FlowKey>> = machines.iter().map(|m| m.sources().collect()).collect();
        let ranks = (0..).zip(machines).map(|(rank, machine)| Rank {
            memory: Memory::new(&call, rank, machine.relay_elements()),
            inbox: sources[rank as usize].iter().map(|_| VecDeque::new()).collect(),
            destinations: machine
                .destinations()
                .map(|flow| {
                    let here = FlowKey { peer: rank, ..flow };
                    let there = &sources[flow.peer as usize];
                    (flow, there.binary_search(&here).expect("the peer awaits this flow"))
                })
                .collect(),
            sources: sources[rank as usize].clone(),
            machine,
        });
        Self { ranks: ranks.collect(), call }
    }

    /// Runs the call to its end, and checks that it has one.
    pub(super) fn run(mut self, schedule: Schedule<'_>) -> Self {
        match schedule {
            Schedule::Forwards(window) => while self.sweep(window, None) {},
            Schedule::Late(window, late) => {
                let late = late as usize;
                while self.sweep(window, Some(late)) || self.turn(late, window) {}
            }
            Schedule::Random(window, choose) => while self.pick(window, choose) {},
        }
        for (rank, state) in self.ranks.iter().enumerate() {
            let call = &self.call;
            assert!(
                state.machine.is_done(),
                "rank {rank} is stuck in {call:?}: {:?}",
                state.machine
            );
            assert!(state.inbox.iter().all(VecDeque::is_empty), "rank {rank} has messages left");
            assert_eq!(
                state.memory.unread(),
                0,
                "rank {rank} has not sent on what it relays in {call:?}"
            );
            for flow in state.machine.sources() {
                assert!(!state.machine.expects(flow));
            }
        }
        self
    }

    /// All ranks but one take their turns; false if nobody could do anything.
    fn sweep(&mut self, window: usize, without: Option<usize>) -> bool {
        let mut acted = false;
        for rank in (0..self.ranks.len()).filter(|rank| Some(*rank) != without) {
            acted |= self.turn(rank, window);
        }
        acted
    }

    /// The rank takes what it can, then sends what it can; false if it could do nothing.
    fn turn(&mut self, rank: usize, window: usize) -> bool {
        let mut acted = false;
        for source in 0..self.ranks[rank].sources.len() {
            while self.receive(rank, source) {
                acted = true;
            }
        }
        for destination in 0..self.ranks[rank].destinations.len() {
            while self.send(rank, destination, window) {
                acted = true;
            }
        }
        acted
    }

    /// One move; false if there is none.
    fn pick(&mut self, window: usize, choose: &mut dyn FnMut(usize) -> usize) -> bool {
        let mut moves = Vec::new();
        for (rank, state) in self.ranks.iter().enumerate() {
            moves.extend((0..state.sources.len()).map(|source| (rank, source, false)));
            moves.extend((0..state.destinations.len()).map(|to| (rank, to, true)));
        }
        while !moves.is_empty() {
            let (rank, flow, sends) = moves.swap_remove(choose(moves.len()));
            if if sends { self.send(rank, flow, window) } else { self.receive(rank, flow) } {
                return true;
            }
        }
        false
    }

    fn send(&mut self, rank: usize, destination: usize, window: usize) -> bool {
        let (flow, inbox) = self.ranks[rank].destinations[destination];
        if self.ranks[flow.peer as usize].inbox[inbox].len() >= window {
            return false;
        }
        let sender = &mut self.ranks[rank];
        let Some(transfer) = sender.machine.next_send(flow) else { return false };
        let Action::Send { from } = transfer.action else { panic!("a send of {transfer:?}") };
        let symbols = sender.memory.read_to_send(from, transfer.elements);
        let (ordinal, segment, elements) = (transfer.ordinal, transfer.segment, transfer.elements);
        self.ranks[flow.peer as usize].inbox[inbox].push_back(Message {
            ordinal,
            segment,
            elements,
            symbols,
        });
        true
    }

    fn receive(&mut self, rank: usize, source: usize) -> bool {
        let receiver = &mut self.ranks[rank];
        if receiver.inbox[source].is_empty() {
            return false;
        }
        let flow = receiver.sources[source];
        assert!(receiver.machine.expects(flow), "rank {rank} awaits nothing more on {flow:?}");
        let Some(expected) = receiver.machine.next_receive(flow) else { return false };
        let Some(message) = receiver.inbox[source].pop_front() else { return false };
        let announced = (message.ordinal, message.segment, message.elements);
        let want = (expected.ordinal, expected.segment, expected.elements);
        assert_eq!(announced, want, "from {flow:?} to {rank} in {:?}", self.call);
        receiver.memory.take(expected.action, message.elements, &message.symbols);
        receiver.machine.received(flow);
        true
    }

    /// Checks what every rank has got in its output.
    pub(super) fn check(&self) {
        let mut expressions = Vec::new();
        for (rank, state) in (0..).zip(&self.ranks) {
            if self.call.is_dry {
                state.memory.check_coverage(&self.call.request, rank);
            } else {
                state.memory.check_output(&self.call, rank, &mut expressions);
            }
        }
    }

    /// The outputs of all ranks.
    pub(super) fn outputs(&self) -> Vec<Vec<Option<Symbol>>> {
        self.ranks.iter().map(|rank| rank.memory.output()).collect()
    }
}
