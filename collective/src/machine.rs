//! Executes a plan: says what to send next and what must arrive next, and is told what did.
//!
//! No clock, no socket, no thread, and never a byte of the user's data: only ranges. Memory is one
//! cursor per peer, whatever the number of steps.

use std::ops::Range;

use crate::plan::{self, Action, Plan, Step};

/// One call in progress on one rank.
#[derive(Debug)]
pub(crate) struct Machine {
    plan: Plan,
    segment_elements: u64,
    sending: Vec<Cursor>,
    receiving: Vec<Cursor>,
}

/// A segment to send, or one that must come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// The how-manieth step between the two ranks in this direction: sender and receiver number
    /// their own steps differently, but count these alike.
    pub(crate) ordinal: u32,
    pub(crate) segment: u64,
    pub(crate) action: Action,
    /// Elements of the user's buffer.
    pub(crate) range: Range<u64>,
}

/// How far the steps with one peer, in one direction, have come.
#[derive(Debug)]
struct Cursor {
    peer: u32,
    /// None when all steps with this peer are done.
    at: Option<Position>,
}

#[derive(Debug)]
struct Position {
    index: u32,
    ordinal: u32,
    step: Step,
    segment: u64,
}

impl Machine {
    pub(crate) fn new(plan: Plan, segment_elements: u64) -> Self {
        let sending = plan.destinations().map(|peer| Cursor::first(&plan, peer, true)).collect();
        let receiving = plan.sources().map(|peer| Cursor::first(&plan, peer, false)).collect();
        Self { plan, segment_elements, sending, receiving }
    }

    /// The ranks this call sends to.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = u32> {
        self.sending.iter().map(|cursor| cursor.peer)
    }

    /// The ranks this call receives from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = u32> {
        self.receiving.iter().map(|cursor| cursor.peer)
    }

    /// The next segment for `peer`, if what it depends on is there. The caller has copied it when
    /// it asks again.
    pub(crate) fn next_send(&mut self, peer: u32) -> Option<Transfer> {
        let cursor = self.sending.iter().position(|c| c.peer == peer)?;
        let at = self.sending[cursor].at.as_ref()?;
        if !self.is_ready(at) {
            return None;
        }
        let transfer = self.transfer(at);
        self.sending[cursor].advance(&self.plan, self.segment_elements, true);
        Some(transfer)
    }

    /// What the next segment from `peer` must be, if it may be taken now. None also where nothing
    /// is expected from that rank any more.
    pub(crate) fn next_receive(&self, peer: u32) -> Option<Transfer> {
        let at = self.receiving.iter().find(|c| c.peer == peer)?.at.as_ref()?;
        self.is_ready(at).then(|| self.transfer(at))
    }

    /// Whether anything is still to come from `peer` in this call.
    pub(crate) fn expects(&self, peer: u32) -> bool {
        self.receiving.iter().any(|c| c.peer == peer && c.at.is_some())
    }

    /// The segment that `next_receive` named has arrived and is reduced or stored.
    pub(crate) fn received(&mut self, peer: u32) {
        if let Some(cursor) = self.receiving.iter_mut().find(|c| c.peer == peer) {
            cursor.advance(&self.plan, self.segment_elements, false);
        }
    }

    /// Whether everything has arrived and everything to be sent has been copied.
    pub(crate) fn is_done(&self) -> bool {
        self.sending.iter().chain(&self.receiving).all(|c| c.at.is_none())
    }

    fn is_ready(&self, at: &Position) -> bool {
        let Some(after) = at.step.after else {
            return true;
        };
        let source = self.plan.step(after).peer;
        self.receiving.iter().filter(|c| c.peer == source).all(|c| match &c.at {
            None => true,
            Some(p) => p.index > after || (p.index == after && p.segment > at.segment),
        })
    }

    fn transfer(&self, at: &Position) -> Transfer {
        Transfer {
            ordinal: at.ordinal,
            segment: at.segment,
            action: at.step.action,
            range: plan::segment(&at.step.range, self.segment_elements, at.segment),
        }
    }
}

impl Cursor {
    fn first(plan: &Plan, peer: u32, sending: bool) -> Self {
        Self { peer, at: find_step(plan, 0, 0, peer, sending) }
    }

    fn advance(&mut self, plan: &Plan, segment_elements: u64, sending: bool) {
        let Some(at) = &mut self.at else { return };
        let length = at.step.range.end - at.step.range.start;
        at.segment += 1;
        if at.segment >= plan::segments(length, segment_elements) {
            self.at = find_step(plan, at.index + 1, at.ordinal + 1, self.peer, sending);
        }
    }
}

/// The first step from `index` on that sends to, or receives from, `peer`.
fn find_step(plan: &Plan, index: u32, ordinal: u32, peer: u32, sending: bool) -> Option<Position> {
    (index..plan.len()).find_map(|index| {
        let step = plan.step(index);
        let matches = step.peer == peer && (step.action == Action::Send) == sending;
        matches.then_some(Position { index, ordinal, step, segment: 0 })
    })
}

#[cfg(test)]
mod tests {
    //! All ranks' machines under a random scheduler, on symbols instead of numbers: what an element
    //! is made of, and in which association.

    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::contract::Collective;
    use crate::plan::costs;

    /// A symbolic value: how often each rank's input is in it, and a hash of the expression.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Symbol {
        inputs: Vec<u8>,
        expression: u64,
    }

    impl Symbol {
        fn input(rank: u32, size: u32) -> Self {
            let inputs = (0..size).map(|other| u8::from(other == rank)).collect();
            Self { inputs, expression: u64::from(rank) + 1 }
        }

        /// `lower + upper`: not commutative here, so that an operand's place shows.
        fn add(lower: &Self, upper: &Self) -> Self {
            let inputs = lower.inputs.iter().zip(&upper.inputs).map(|(a, b)| a + b).collect();
            let mixed = lower.expression.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ upper.expression;
            Self { inputs, expression: mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(23) }
        }
    }

    struct Rank {
        machine: Machine,
        buffer: Vec<Symbol>,
        /// Messages from each rank, in order.
        inbox: Vec<VecDeque<(Transfer, Vec<Symbol>)>>,
    }

    /// Runs a call on all ranks with windows of `window` messages; picks who acts next by `choose`.
    fn run(
        collective: Collective,
        size: u32,
        count: u64,
        segment: u64,
        window: usize,
        mut choose: impl FnMut(usize) -> usize,
    ) -> Vec<Vec<Symbol>> {
        let mut ranks: Vec<Rank> = (0..size)
            .map(|rank| Rank {
                machine: Machine::new(costs::choose(collective, rank, size, count), segment),
                buffer: vec![Symbol::input(rank, size); count as usize],
                inbox: vec![VecDeque::new(); size as usize],
            })
            .collect();
        loop {
            // Everything that anybody can do now.
            let mut moves = Vec::new();
            for (rank, state) in ranks.iter().enumerate() {
                for from in state.machine.sources() {
                    let head = state.inbox[from as usize].front();
                    if head.is_some() && state.machine.next_receive(from).is_some() {
                        moves.push((rank, from, false));
                    }
                }
                for to in state.machine.destinations() {
                    if ranks[to as usize].inbox[rank].len() < window {
                        moves.push((rank, to, true));
                    }
                }
            }
            let mut acted = false;
            while !acted && !moves.is_empty() {
                let (rank, peer, sends) = moves.swap_remove(choose(moves.len()));
                acted = if sends {
                    send(&mut ranks, rank, peer)
                } else {
                    receive(&mut ranks[rank], peer);
                    true
                };
            }
            if !acted {
                break;
            }
        }
        for (rank, state) in ranks.iter().enumerate() {
            assert!(state.machine.is_done(), "rank {rank} is stuck: {:?}", state.machine);
            assert!(state.inbox.iter().all(VecDeque::is_empty), "rank {rank} has messages left");
        }
        ranks.into_iter().map(|rank| rank.buffer).collect()
    }

    fn send(ranks: &mut [Rank], rank: usize, to: u32) -> bool {
        let Some(transfer) = ranks[rank].machine.next_send(to) else { return false };
        let data = ranks[rank].buffer[bounds(&transfer)].to_vec();
        ranks[to as usize].inbox[rank].push_back((transfer, data));
        true
    }

    fn receive(rank: &mut Rank, from: u32) {
        let expected = rank.machine.next_receive(from).unwrap();
        let (sent, data) = rank.inbox[from as usize].pop_front().unwrap();
        assert_eq!((sent.ordinal, sent.segment), (expected.ordinal, expected.segment));
        assert_eq!(sent.range, expected.range);
        for (mine, theirs) in rank.buffer[bounds(&expected)].iter_mut().zip(data) {
            *mine = match expected.action {
                Action::ReceiveReduce { .. } => Symbol::add(&theirs, mine),
                _ => theirs,
            };
        }
        rank.machine.received(from);
    }

    fn bounds(transfer: &Transfer) -> Range<usize> {
        transfer.range.start as usize..transfer.range.end as usize
    }

    /// Lengths around every boundary of `size` chunks of some segments.
    fn lengths(size: u64, segment: u64) -> impl Iterator<Item = u64> {
        let around = move |n: u64| [n.saturating_sub(1), n, n + 1];
        [0, 1, size, size * segment, 2 * size * segment].into_iter().flat_map(around)
    }

    #[test]
    fn every_world_to_64_adds_each_input_once_and_alike_everywhere() {
        for size in 2..=64 {
            for count in lengths(u64::from(size), 2) {
                let ends = run(Collective::AllReduce, size, count, 2, 2, |_| 0);
                for buffer in &ends {
                    assert_eq!(*buffer, ends[0], "{size} ranks, {count} elements");
                    for symbol in buffer {
                        assert!(symbol.inputs.iter().all(|n| *n == 1), "{size}, {count}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_root_reaches_every_rank() {
        for size in 2..=24 {
            for root in 0..size {
                for count in [0, 1, 5] {
                    let ends = run(Collective::Broadcast { root }, size, count, 2, 1, |_| 0);
                    let want = vec![Symbol::input(root, size); count as usize];
                    assert!(ends.iter().all(|buffer| *buffer == want), "{size} ranks from {root}");
                }
            }
        }
    }

    #[test]
    fn a_ring_sends_what_its_formula_says() {
        for size in 2..=16u64 {
            let count = size * 30;
            let plan = costs::choose(Collective::AllReduce, 0, size as u32, count);
            assert_eq!(u64::from(plan.len()), 4 * (size - 1));
            let sent: u64 = (0..plan.len())
                .map(|index| plan.step(index))
                .filter(|step| step.action == Action::Send)
                .map(|step| step.range.end - step.range.start)
                .sum();
            assert_eq!(sent, 2 * (size - 1) * count / size);
        }
    }

    proptest! {
        #[test]
        fn any_order_of_events_gives_the_same_result(
            size in 2u32..9, count in 0u64..200, segment in 1u64..20, window in 1usize..4,
            root in 0u32..9, order in prop::collection::vec(any::<usize>(), 64),
        ) {
            let mut order = order.into_iter().cycle();
            let mut choose = move |n: usize| order.next().unwrap_or(0) % n;
            for collective in
                [Collective::AllReduce, Collective::Broadcast { root: root % size }, Collective::Barrier]
            {
                let count = if collective == Collective::Barrier { 0 } else { count };
                let calm = run(collective, size, count, segment, 4, |_| 0);
                prop_assert_eq!(run(collective, size, count, segment, window, &mut choose), calm);
            }
        }

        #[test]
        fn a_machine_ignores_what_it_does_not_await(peer in 2u32..9) {
            let plan = costs::choose(Collective::AllReduce, 0, 2, 10);
            let mut machine = Machine::new(plan, 4);
            prop_assert!(machine.next_receive(peer).is_none());
            prop_assert!(machine.next_send(peer).is_none());
            machine.received(peer);
            prop_assert!(!machine.is_done());
        }
    }
}
