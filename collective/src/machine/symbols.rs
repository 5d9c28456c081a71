//! What an element is made of, and in which association; where it must lie, and where it does.
//! Every wrong read, write or flag panics where it happens.

use std::ops::Range;

use super::simulation::Call;
use crate::contract::Collective;
use crate::plan::{Action, Place, RELAY_SEGMENTS, Request, Space};

/// Where Input and Output of one rank lie in one array, and what the caller has put there.
pub(super) struct Memory {
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

impl Memory {
    pub(super) fn new(call: &Call, rank: u32, relay_elements: u64) -> Self {
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

    pub(super) fn read_to_send(&mut self, place: Place, elements: u64) -> Vec<Symbol> {
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

    pub(super) fn take(&mut self, action: Action, elements: u64, incoming: &[Symbol]) {
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

    /// Elements that were to be relayed, and never were.
    pub(super) fn unread(&self) -> usize {
        self.relay.iter().flatten().count()
    }

    pub(super) fn output(&self) -> Vec<Option<Symbol>> {
        self.cells[self.output.start as usize..self.output.end as usize].to_vec()
    }

    /// The output is what it must be; each result is associated as in `expressions`, by element,
    /// where other ranks have noted it.
    pub(super) fn check_output(&self, call: &Call, rank: u32, expressions: &mut Vec<Option<u64>>) {
        let size = call.request.size;
        for (at, cell) in (0..).zip(self.output()) {
            let Some(symbol) = cell else { panic!("{call:?}: {rank}, {at}: nothing") };
            let (element, inputs, reduces) = match wanted(&call.request, rank, at) {
                Wanted::Copy { of, element } => (element, 1 << of, false),
                Wanted::Result { element } => (element, u64::MAX >> (64 - size), size > 1),
            };
            assert_eq!(symbol.element, element, "rank {rank} at {at} in {call:?}");
            assert_eq!(symbol.inputs, inputs, "rank {rank} at {at} in {call:?}");
            assert_eq!(symbol.is_complete, reduces, "rank {rank} at {at} in {call:?}");
            if reduces {
                let element = element as usize;
                expressions.resize(expressions.len().max(element + 1), None);
                let expression = *expressions[element].get_or_insert(symbol.expression);
                assert_eq!(symbol.expression, expression, "{rank}, {at}: {call:?}");
            }
        }
    }

    /// Every element of the output is final exactly once, or was there before the call.
    pub(super) fn check_coverage(&self, request: &Request, rank: u32) {
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
