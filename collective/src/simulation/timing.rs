//! How long an all-reduce takes on worlds too large to start, by the network of the cost table.
//!
//! The real plans and machines of all ranks run on ranges, without data. A rank sends one message
//! at a time, which takes the message's cost and its bytes' cost; a latency after its last byte it
//! is there; a rank combines one message at a time. Windows are as large as need be, and nothing
//! is ever late. Of several flows with something to send, the one served longest ago is next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::contract::Collective;
use crate::machine::{FlowKey, Machine};
use crate::plan::costs::{self, CostTable};
use crate::plan::{Action, Algorithm, Plan, Request};

/// An all-reduce of f32 on every rank of a world at once.
#[derive(Clone, Debug)]
pub struct AllReduce {
    request: Request,
    algorithm: Algorithm,
    costs: CostTable,
}

impl AllReduce {
    /// `ranks` of them, at least 2, on `bytes` bytes each, by the algorithm of this name.
    ///
    /// # Errors
    ///
    /// What is wrong with the name.
    pub fn new(ranks: u32, bytes: u64, algorithm: &str) -> Result<Self, String> {
        let count = bytes / u64::from(ELEMENT_BYTES);
        let request = Request {
            collective: Collective::AllReduce,
            size: ranks.max(2),
            count,
            element_bytes: ELEMENT_BYTES,
            counts: None,
        };
        Ok(Self { request, algorithm: algorithm.parse()?, costs: CostTable::default() })
    }

    /// What the choice of the plan counts on, in nanoseconds.
    pub fn predicted_ns(&self) -> u64 {
        costs::predicted_ns(&self.request, self.algorithm, &self.costs)
    }

    /// From the call until the last rank has its result, in nanoseconds; every message simulated.
    ///
    /// # Panics
    ///
    /// If a plan gets stuck.
    pub fn simulated_ns(&self) -> u64 {
        let ranks = (0..self.request.size).map(|rank| Rank::new(self, rank));
        Run { costs: &self.costs, ranks: ranks.collect(), alike: false, queue: BinaryHeap::new() }
            .run()
    }

    /// The same by a ring, with one rank for all: its successor is itself. Exact if all chunks
    /// are of one length, because all ranks do the same at the same time then; so the buffer is
    /// rounded up to that.
    pub fn simulated_ring_ns(&self) -> u64 {
        let size = u64::from(self.request.size);
        let count = self.request.count.next_multiple_of(size);
        let request = Request { count, ..self.request.clone() };
        let of_one = Self { request, algorithm: Algorithm::Ring, costs: self.costs.clone() };
        let ranks = vec![Rank::new(&of_one, 0)];
        Run { costs: &self.costs, ranks, alike: true, queue: BinaryHeap::new() }.run()
    }

    /// About how many messages all ranks send together.
    pub fn messages(&self) -> u64 {
        let segment = self.costs.segment_elements(ELEMENT_BYTES);
        let plan = |rank| Plan::new(&self.request, rank, self.algorithm, segment);
        let of_rank = |rank| {
            let plan: Plan = plan(rank);
            let sends = (0..plan.len()).map(|index| plan.step(index)).filter(|step| step.is_send());
            sends.map(|step| (step.range.end - step.range.start).div_ceil(segment).max(1)).sum()
        };
        // Ranks in the middle are like most others: neither root nor folded.
        let middle: u64 = of_rank(self.request.size / 2);
        middle * u64::from(self.request.size)
    }
}

/// The ranks of a world, and what is going to happen.
struct Run<'a> {
    costs: &'a CostTable,
    ranks: Vec<Rank>,
    /// One rank stands for all.
    alike: bool,
    queue: BinaryHeap<Reverse<(u64, Event)>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A message is there, on the how-manieth of the receiver's flows.
    Arrived { rank: u32, source: u32 },
    /// What arrived on that flow is combined.
    Combined { rank: u32, source: u32 },
    /// The rank can send again.
    Free { rank: u32 },
}

struct Rank {
    machine: Machine,
    sources: Vec<FlowKey>,
    /// Messages that are there, by source.
    waiting: Vec<u32>,
    /// With the place of the flow among the receiver's sources.
    destinations: Vec<(FlowKey, u32)>,
    /// The destination that is asked first next time.
    turn: usize,
    sends: bool,
    combines: bool,
}

impl Rank {
    fn new(call: &AllReduce, rank: u32) -> Self {
        let segment = call.costs.segment_elements(ELEMENT_BYTES);
        let of =
            |rank| Machine::new(Plan::new(&call.request, rank, call.algorithm, segment), segment);
        let machine = of(rank);
        let sources: Vec<FlowKey> = machine.sources().collect();
        let destinations = machine.destinations().map(|flow| {
            let here = FlowKey { peer: rank, ..flow };
            let source = of(flow.peer).sources().position(|source| source == here);
            (flow, source.unwrap_or(0) as u32)
        });
        Self {
            destinations: destinations.collect(),
            waiting: vec![0; sources.len()],
            sources,
            machine,
            turn: 0,
            sends: false,
            combines: false,
        }
    }
}

impl Run<'_> {
    /// Until nothing happens any more; when that is, in nanoseconds.
    fn run(mut self) -> u64 {
        (0..self.ranks.len() as u32).for_each(|rank| _ = self.send(0, rank));
        let mut now = 0;
        while let Some(Reverse((time, event))) = self.queue.pop() {
            now = time;
            let rank = match event {
                Event::Arrived { rank, source } => {
                    self.ranks[rank as usize].waiting[source as usize] += 1;
                    rank
                }
                Event::Combined { rank, source } => {
                    let state = &mut self.ranks[rank as usize];
                    state.combines = false;
                    state.machine.received(state.sources[source as usize]);
                    rank
                }
                Event::Free { rank } => {
                    self.ranks[rank as usize].sends = false;
                    rank
                }
            };
            // What is received may be awaited by what is there on another flow, and by a send;
            // what is sent may make room.
            while self.receive(now, rank) || self.send(now, rank) {}
        }
        assert!(self.ranks.iter().all(|rank| rank.machine.is_done()), "a plan has got stuck");
        now.div_ceil(PICOSECONDS)
    }

    /// Takes what is there, as far as the machine and the rank's kernel are ready; false if
    /// nothing was.
    fn receive(&mut self, now: u64, rank: u32) -> bool {
        let state = &mut self.ranks[rank as usize];
        let mut taken = false;
        for (source, waiting) in (0..).zip(&mut state.waiting).filter(|(_, waiting)| **waiting > 0)
        {
            let flow = state.sources[source as usize];
            let Some(transfer) = state.machine.next_receive(flow) else { continue };
            let bytes = transfer.elements * u64::from(ELEMENT_BYTES);
            if !matches!(transfer.action, Action::Reduce { .. }) {
                state.machine.received(flow);
            } else if !state.combines {
                state.combines = true;
                let done = now + bytes * self.costs.reduce_ps;
                self.queue.push(Reverse((done, Event::Combined { rank, source })));
            } else {
                continue;
            }
            *waiting -= 1;
            taken = true;
        }
        taken
    }

    /// Sends the next message; false if there is none, or another is being sent.
    fn send(&mut self, now: u64, rank: u32) -> bool {
        let state = &mut self.ranks[rank as usize];
        if state.sends {
            return false;
        }
        let flows = state.destinations.len();
        for turn in (state.turn..state.turn + flows).map(|turn| turn % flows) {
            let (flow, source) = state.destinations[turn];
            let Some(transfer) = state.machine.next_send(flow) else { continue };
            let bytes = transfer.elements * u64::from(ELEMENT_BYTES);
            let sent = now + self.costs.message_ns * PICOSECONDS + bytes * self.costs.byte_ps;
            let there = sent + self.costs.latency_ns * PICOSECONDS;
            let to = if self.alike { rank } else { flow.peer };
            (state.turn, state.sends) = (turn + 1, true);
            self.queue.push(Reverse((sent, Event::Free { rank })));
            self.queue.push(Reverse((there, Event::Arrived { rank: to, source })));
            return true;
        }
        false
    }
}

/// f32.
const ELEMENT_BYTES: u32 = 4;
/// In a nanosecond: bytes take fractions of one.
const PICOSECONDS: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_each_way_takes_what_the_costs_say() {
        for algorithm in ["ring", "recursive-doubling"] {
            let call = AllReduce::new(2, 8, algorithm).unwrap();
            let CostTable { latency_ns, message_ns, .. } = call.costs;
            let rounds = if algorithm == "ring" { 2 } else { 1 };
            let least = rounds * (latency_ns + message_ns);
            assert!((least..least + 20).contains(&call.simulated_ns()), "{algorithm}");
        }
    }

    /// With chunks of one length one rank of a ring stands for all of them.
    #[test]
    fn the_ranks_of_a_ring_are_alike() {
        for ranks in [2, 3, 5, 8, 13, 32, 50, 100] {
            for elements in [1, 2, 1_000, 16_127, 16_128, 16_129, 50_000] {
                let bytes = u64::from(ranks) * elements * 4;
                let call = AllReduce::new(ranks, bytes, "ring").unwrap();
                let (all, one) = (call.simulated_ns(), call.simulated_ring_ns());
                assert_eq!(all, one, "{ranks} ranks, chunks of {elements}");
            }
        }
    }

    #[test]
    fn predictions_are_of_the_right_size() {
        for (ranks, bytes) in [(4, 1 << 22), (16, 8), (16, 1 << 20), (24, 1 << 24), (64, 1 << 16)] {
            for algorithm in ["ring", "tree", "recursive-doubling", "halving-doubling"] {
                let call = AllReduce::new(ranks, bytes, algorithm).unwrap();
                let (simulated, predicted) = (call.simulated_ns(), call.predicted_ns());
                assert!(
                    simulated < 2 * predicted && predicted < 2 * simulated,
                    "{algorithm}, {ranks} ranks, {bytes} bytes: {simulated} and {predicted}"
                );
            }
        }
    }
}
