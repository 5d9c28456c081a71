//! All ranks of a call on symbols instead of numbers: what an element is made of, and in which
//! association. Every wrong read, write or flag panics where it happens.

use std::collections::VecDeque;
use std::ops::Range;

use super::{FlowKey, Machine};
use crate::contract::Collective;
use crate::plan::{Action, Algorithm, Place, Plan, RELAY_SEGMENTS, Request, Space};

/// A symbolic value: which ranks' inputs are in it, once each, and a hash of the expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Which element of the input it was, so that nothing lands in a wrong place.
    element: u64,
    /// A bit for each rank.
    inputs: u64,
    expression: u64,
    /// An average has divided it.
    is_complete: bool,
}

impl Symbol {
    fn input(rank: u32, element: u64) -> Self {
        Self { element, inputs: 1 << rank, expression: u64::from(rank) + 1, is_complete: false }
    }

    fn is_raw(&self) -> bool {
        self.inputs.count_ones() == 1
    }

    /// Commutative, but not associative.
    fn combine(&self, other: &Self, last: bool) -> Self {
        assert_eq!(self.element, other.element, "two different elements are combined");
        assert_eq!(self.inputs & other.inputs, 0, "an input is combined twice");
        assert!(!self.is_complete && !other.is_complete, "a result is combined with more");
        let sum = mix(self.expression).wrapping_add(mix(other.expression));
        Self {
            element: self.element,
            inputs: self.inputs | other.inputs,
            expression: mix(sum),
            is_complete: last,
        }
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

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

/// Where Input and Output of one rank lie in one array, and what the caller has put there.
struct Memory {
    is_dry: bool,
    cells: Vec<Option<Symbol>>,
    input: Range<u64>,
    output: Range<u64>,
    relay: Vec<Option<Symbol>>,
    relay_elements: u64,
    relay_capacity: u64,
    segment_elements: u64,
    /// Parts of Output that are final.
    finished: Vec<Range<u64>>,
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
            let unread = state.memory.relay.iter().flatten().count();
            assert_eq!(unread, 0, "rank {rank} has not sent on what it relays in {call:?}");
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
        let everybody = u64::MAX >> (64 - self.call.request.size);
        let mut expressions: Vec<Option<u64>> = Vec::new();
        for (rank, state) in self.ranks.iter().enumerate() {
            let rank = rank as u32;
            if self.call.is_dry {
                state.memory.check_coverage(&self.call.request, rank);
                continue;
            }
            for index in state.memory.output.clone() {
                let at = index - state.memory.output.start;
                let want = wanted(&self.call.request, rank, at);
                let got = state.memory.cells[index as usize];
                let Some(symbol) = got else { panic!("{:?}: {rank}, {at}: nothing", self.call) };
                let (element, inputs, reduces) = match want {
                    Wanted::Copy { of, element } => (element, 1 << of, false),
                    Wanted::Result { element } => (element, everybody, self.call.request.size > 1),
                };
                assert_eq!(symbol.element, element, "rank {rank} at {at} in {:?}", self.call);
                assert_eq!(symbol.inputs, inputs, "rank {rank} at {at} in {:?}", self.call);
                assert_eq!(symbol.is_complete, reduces, "rank {rank} at {at} in {:?}", self.call);
                if reduces {
                    let element = element as usize;
                    expressions.resize(expressions.len().max(element + 1), None);
                    let expression = *expressions[element].get_or_insert(symbol.expression);
                    assert_eq!(symbol.expression, expression, "{rank}, {at}: {:?}", self.call);
                }
            }
        }
    }

    /// The outputs of all ranks.
    pub(super) fn outputs(&self) -> Vec<Vec<Option<Symbol>>> {
        let output = |state: &Rank| {
            let range = state.memory.output.start as usize..state.memory.output.end as usize;
            state.memory.cells[range].to_vec()
        };
        self.ranks.iter().map(output).collect()
    }
}

impl Memory {
    fn new(call: &Call, rank: u32, relay_elements: u64) -> Self {
        let (input, output) = spaces(&call.request, rank);
        let (input, output) = match in_place(&call.request, rank).filter(|_| call.in_place) {
            Some(offset) if offset >= 0 => (0..input, offset as u64..offset as u64 + output),
            Some(offset) => (offset.unsigned_abs()..offset.unsigned_abs() + input, 0..output),
            None => (0..input, input..input + output),
        };
        let relay_capacity = RELAY_SEGMENTS * call.segment_elements;
        assert!(relay_elements <= relay_capacity);
        let lengths =
            if call.is_dry { (0, 0) } else { (input.end.max(output.end), relay_elements) };
        let mut memory = Self {
            is_dry: call.is_dry,
            cells: vec![None; lengths.0 as usize],
            input: input.clone(),
            output: output.clone(),
            relay: vec![None; lengths.1 as usize],
            relay_elements,
            relay_capacity,
            segment_elements: call.segment_elements,
            finished: Vec::new(),
        };
        if call.is_dry {
            return memory;
        }
        for (element, at) in input.enumerate() {
            memory.cells[at as usize] = Some(Symbol::input(rank, element as u64));
        }
        for (index, at) in output.enumerate() {
            match wanted(&call.request, rank, index as u64) {
                Wanted::Copy { of, element } if of == rank => {
                    memory.cells[at as usize] = Some(Symbol::input(rank, element));
                }
                // A result of one input is that input.
                Wanted::Result { element } if call.request.size == 1 => {
                    memory.cells[at as usize] = Some(Symbol::input(rank, element));
                }
                _ => {}
            }
        }
        memory
    }

    /// The cells of a place in Input or Output.
    fn cells(&self, place: Place, elements: u64) -> Range<usize> {
        let space = match place.space {
            Space::Input => &self.input,
            Space::Output => &self.output,
            Space::Relay => &(0..self.relay_elements),
        };
        let start = space.start + place.start;
        assert!(elements == 0 || start + elements <= space.end, "{place:?} of {elements}");
        assert!(elements <= self.segment_elements);
        assert!(place.space != Space::Relay || start + elements <= self.relay_capacity);
        if self.is_dry { 0..0 } else { start as usize..(start + elements) as usize }
    }

    fn read_to_send(&mut self, place: Place, elements: u64) -> Vec<Symbol> {
        let cells = self.cells(place, elements);
        if cells.is_empty() {
            return Vec::new();
        }
        let nothing = "nothing there yet";
        match place.space {
            // What is relayed is sent once, and may be overwritten then.
            Space::Relay => {
                self.relay[cells].iter_mut().map(|c| c.take().expect(nothing)).collect()
            }
            _ => self.cells[cells].iter().map(|cell| cell.expect(nothing)).collect(),
        }
    }

    fn take(&mut self, action: Action, elements: u64, incoming: &[Symbol]) {
        let (into, last) = match action {
            Action::Send { .. } => panic!("a receive that sends"),
            Action::Store { into } => (into, true),
            Action::Reduce { into, last, .. } => (into, last),
        };
        assert_ne!(into.space, Space::Input, "the input is never written");
        if into.space == Space::Output && last && elements > 0 {
            self.finished.push(into.start..into.start + elements);
        }
        let cells = self.cells(into, elements);
        let locals = match action {
            Action::Reduce { local, .. } => Some((local, self.cells(local, elements))),
            _ => None,
        };
        for (index, theirs) in incoming.iter().enumerate() {
            let value = match (action, &locals) {
                (Action::Reduce { incoming_raw, last, .. }, Some((local, mine))) => {
                    assert_eq!(theirs.is_raw(), incoming_raw, "{action:?} of {theirs:?}");
                    let memory = match local.space {
                        Space::Relay => &mut self.relay,
                        _ => &mut self.cells,
                    };
                    let mine = &mut memory[mine.start + index];
                    let value = mine.expect("a local operand");
                    assert_eq!(
                        value.is_raw(),
                        local.space == Space::Input,
                        "{action:?}: {value:?}"
                    );
                    if local.space == Space::Relay {
                        *mine = None;
                    }
                    theirs.combine(&value, last)
                }
                _ => *theirs,
            };
            if into.space == Space::Relay {
                let slot = &mut self.relay[cells.start + index];
                assert!(slot.is_none(), "{action:?} overwrites what was not sent yet");
                *slot = Some(value);
            } else {
                self.cells[cells.start + index] = Some(value);
            }
        }
    }

    /// Every element of the output is final exactly once, or was there before the call.
    fn check_coverage(&self, request: &Request, rank: u32) {
        let mut parts = self.finished.clone();
        let length = self.output.end - self.output.start;
        if let Some(own) = placed_before(request, rank) {
            parts.push(own);
        }
        parts.retain(|part| !part.is_empty());
        parts.sort_by_key(|part| part.start);
        let end = parts.iter().fold(0, |end, part| {
            assert_eq!(part.start, end, "{request:?}: {parts:?}");
            part.end
        });
        assert_eq!(end, length, "{request:?}: rank {rank}");
    }
}

/// What must be in an element of the output.
enum Wanted {
    Copy { of: u32, element: u64 },
    Result { element: u64 },
}

fn wanted(request: &Request, rank: u32, at: u64) -> Wanted {
    let count = request.count;
    match request.collective {
        Collective::AllReduce | Collective::Reduce { .. } => Wanted::Result { element: at },
        Collective::ReduceScatter => Wanted::Result { element: u64::from(rank) * count + at },
        Collective::AllGather | Collective::Gather { .. } => {
            Wanted::Copy { of: (at / count) as u32, element: at % count }
        }
        Collective::AllGatherV => {
            let ends = request.counts.as_deref().expect("all-gather-v has counts");
            let of = ends.partition_point(|end| *end <= at);
            let start = of.checked_sub(1).map_or(0, |before| ends[before]);
            Wanted::Copy { of: of as u32, element: at - start }
        }
        Collective::Broadcast { root } => Wanted::Copy { of: root, element: at },
        Collective::Scatter { root } => {
            Wanted::Copy { of: root, element: u64::from(rank) * count + at }
        }
        Collective::AllToAll => {
            Wanted::Copy { of: (at / count) as u32, element: u64::from(rank) * count + at % count }
        }
        Collective::Send => Wanted::Copy { of: 0, element: at },
        Collective::Barrier => panic!("a barrier has no output"),
    }
}

/// The part of the output that the caller fills before the plan starts.
fn placed_before(request: &Request, rank: u32) -> Option<Range<u64>> {
    let own = u64::from(rank) * request.count..u64::from(rank + 1) * request.count;
    match request.collective {
        Collective::AllGather | Collective::AllToAll => Some(own),
        Collective::Gather { root } if root == rank => Some(own),
        Collective::Broadcast { root } | Collective::Scatter { root } if root == rank => {
            Some(0..request.count)
        }
        Collective::AllGatherV => {
            let ends = request.counts.as_deref().expect("all-gather-v has counts");
            let start = (rank as usize).checked_sub(1).map_or(0, |before| ends[before]);
            Some(start..ends[rank as usize])
        }
        _ => None,
    }
}

/// Elements of Input and Output.
fn spaces(request: &Request, rank: u32) -> (u64, u64) {
    let (one, all) = (request.count, u64::from(request.size) * request.count);
    let at_root = |root: u32, elements: u64| if root == rank { elements } else { 0 };
    match request.collective {
        Collective::AllReduce => (one, one),
        Collective::ReduceScatter => (all, one),
        Collective::AllGather => (0, all),
        Collective::AllGatherV | Collective::Broadcast { .. } => (0, one),
        Collective::Reduce { root } => (one, at_root(root, one)),
        Collective::Gather { root } => (one, at_root(root, all)),
        Collective::Scatter { root } => (at_root(root, all), one),
        Collective::AllToAll => (all, all),
        Collective::Barrier => (0, 0),
        Collective::Send => (at_root(0, one), at_root(1, one)),
    }
}

/// Where Output begins, counted from Input's first element, if the one lies within the other.
fn in_place(request: &Request, rank: u32) -> Option<i64> {
    let own = (u64::from(rank) * request.count) as i64;
    match request.collective {
        Collective::AllReduce | Collective::AllToAll => Some(0),
        Collective::ReduceScatter => Some(own),
        Collective::Reduce { root } if root == rank => Some(0),
        Collective::Gather { root } if root == rank => Some(-own),
        Collective::Scatter { root } if root == rank => Some(own),
        _ => None,
    }
}
