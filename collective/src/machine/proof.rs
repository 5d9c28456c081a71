//! Every plan, on symbols: each result is made of each input exactly once, in one association,
//! wherever the spaces lie and in whatever order things happen.

use std::sync::Arc;

use proptest::prelude::*;

use super::simulation::{Call, Schedule, World};
use super::{FlowKey, Machine};
use crate::contract::Collective;
use crate::plan::{Algorithm, Plan, RELAY_SEGMENTS, Request};

const ALL_REDUCES: [Algorithm; 4] =
    [Algorithm::Ring, Algorithm::Tree, Algorithm::RecursiveDoubling, Algorithm::HalvingDoubling];

/// Runs one call every way that is worth it: one segment at a time, so that whatever can get stuck
/// does; then with one rank behind all others. Where little fits a flow, its neighbour cannot send
/// and may overwrite what it still has to; where much does, messages come early.
fn prove(collective: Collective, algorithm: Algorithm, size: u32, count: u64, segment: u64) {
    prove_request(request(collective, size, count), algorithm, segment);
}

fn prove_request(request: Request, algorithm: Algorithm, segment_elements: u64) {
    let late = request.size / 2;
    for in_place in [false, true] {
        let call =
            Call { request: request.clone(), algorithm, segment_elements, in_place, is_dry: false };
        let run = |schedule| World::new(call.clone()).run(schedule).check();
        // Large worlds take long, and differ from small ones in nothing that both would show.
        let is_small = request.size <= EVERY_WAY;
        if is_small || !in_place {
            run(Schedule::Forwards(1));
        }
        if is_small || in_place {
            run(Schedule::Late(1, late));
        }
        if is_small {
            run(Schedule::Late(2 * RELAY_SEGMENTS as usize, late));
        }
    }
}

fn request(collective: Collective, size: u32, count: u64) -> Request {
    Request { collective, size, count, element_bytes: 4, counts: None }
}

fn all_gather_v(lengths: &[u64]) -> Request {
    let ends: Arc<[u64]> = lengths
        .iter()
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect();
    let count = lengths.iter().sum();
    let size = lengths.len() as u32;
    Request { counts: Some(ends), ..request(Collective::AllGatherV, size, count) }
}

/// Every root of small worlds; of large ones those around which the ranks wrap differently.
fn roots(size: u32) -> Vec<u32> {
    if size <= EVERY_ROOT { (0..size).collect() } else { vec![0, 1, size / 2, size - 1] }
}

/// Lengths around every boundary of chunks and segments; in large worlds around some.
fn buffers(size: u32, segment: u64) -> Vec<u64> {
    let ranks = u64::from(size);
    let around = |n: u64| [n.saturating_sub(1), n, n + 1];
    let mut lengths: Vec<u64> = [1, ranks].into_iter().flat_map(around).collect();
    if size <= EVERY_WAY {
        lengths.extend([ranks * segment, 2 * ranks * segment].into_iter().flat_map(around));
    } else {
        lengths.push(2 * ranks * segment + 1);
    }
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Lengths of one rank's block, around the boundaries of segments and of half the relay.
const BLOCKS: [u64; 8] = [0, 1, 2, 3, 7, 8, 9, 17];
/// Lengths of what goes through the relay, around its boundaries.
const RELAYED: [u64; 7] = [0, 1, 5, 15, 16, 17, 35];
const SEGMENT: u64 = 2;
const EVERY_ROOT: u32 = 24;
/// Up to so many ranks, every combination is tried.
const EVERY_WAY: u32 = 20;

#[test]
fn every_all_reduce_of_every_world_to_64_adds_each_input_once_and_alike_everywhere() {
    for size in 1..=64 {
        for count in buffers(size, SEGMENT) {
            for algorithm in ALL_REDUCES {
                prove(Collective::AllReduce, algorithm, size, count, SEGMENT);
            }
        }
    }
}

#[test]
fn reduce_scatter_leaves_each_rank_its_block() {
    for size in 1..=64 {
        for count in BLOCKS {
            prove(Collective::ReduceScatter, Algorithm::Ring, size, count, SEGMENT);
        }
        // Many pieces, so that the halves of the relay are filled again and again.
        prove(Collective::ReduceScatter, Algorithm::Ring, size.min(12), 50, 1);
    }
}

#[test]
fn all_gather_brings_every_block_to_every_rank() {
    for size in 1..=64 {
        for count in [0, 1, 2, 3] {
            prove(Collective::AllGather, Algorithm::Ring, size, count, SEGMENT);
        }
        let lengths: Vec<u64> = (0..u64::from(size)).map(|rank| rank * 7 % 5).collect();
        prove_request(all_gather_v(&lengths), Algorithm::Ring, SEGMENT);
        prove_request(all_gather_v(&vec![0; size as usize]), Algorithm::Ring, SEGMENT);
    }
}

#[test]
fn all_to_all_exchanges_every_block_in_place_too() {
    for size in 1..=64 {
        for count in [0, 1, 2, 5] {
            prove(Collective::AllToAll, Algorithm::Direct, size, count, SEGMENT);
        }
    }
}

#[test]
fn every_root_reaches_every_rank() {
    for size in 1..=64 {
        for root in roots(size) {
            for count in RELAYED {
                for algorithm in [Algorithm::Binomial, Algorithm::Chain] {
                    prove(Collective::Broadcast { root }, algorithm, size, count, SEGMENT);
                }
            }
        }
    }
}

#[test]
fn every_root_gets_the_reduction() {
    for size in 1..=64 {
        for root in roots(size) {
            for count in RELAYED {
                prove(Collective::Reduce { root }, Algorithm::Binomial, size, count, SEGMENT);
            }
        }
    }
}

#[test]
fn every_root_gathers_and_scatters_every_block() {
    for size in 1..=64 {
        for root in roots(size) {
            for collective in [Collective::Gather { root }, Collective::Scatter { root }] {
                for count in [0, 1, 3] {
                    prove(collective, Algorithm::Direct, size, count, SEGMENT);
                    // Segments just large enough for all blocks to fit the relay.
                    let all = u64::from(size) * count;
                    let segment = all.div_ceil(RELAY_SEGMENTS).max(1);
                    prove(collective, Algorithm::Binomial, size, count, segment);
                }
            }
        }
    }
}

#[test]
fn a_message_arrives() {
    for count in RELAYED {
        prove(Collective::Send, Algorithm::Direct, 2, count, SEGMENT);
    }
}

/// Nobody leaves a barrier before everybody has come, wherever the one who is late.
#[test]
fn nobody_passes_a_barrier_that_somebody_has_not_reached() {
    for size in 2..=64u32 {
        prove(Collective::Barrier, Algorithm::Dissemination, size, 0, SEGMENT);
        let call = request(Collective::Barrier, size, 0);
        for late in 0..size {
            let mut machines: Vec<Machine> = (0..size)
                .map(|rank| Machine::new(Plan::new(&call, rank, Algorithm::Dissemination, 1), 1))
                .collect();
            let mut inbox = Vec::new();
            let mut acted = true;
            while std::mem::take(&mut acted) {
                for rank in (0..size).filter(|rank| *rank != late) {
                    let machine = &mut machines[rank as usize];
                    let flows: Vec<FlowKey> = machine.destinations().collect();
                    for flow in flows {
                        while machine.next_send(flow).is_some() {
                            inbox.push((rank, flow.peer));
                            acted = true;
                        }
                    }
                }
                inbox.retain(|&(from, to)| {
                    let flow = FlowKey { peer: from, tree: 0 };
                    let machine = &mut machines[to as usize];
                    if to == late || machine.next_receive(flow).is_none() {
                        return true;
                    }
                    machine.received(flow);
                    acted = true;
                    false
                });
            }
            assert!(machines.iter().all(|machine| !machine.is_done()), "{size} ranks, {late} late");
        }
    }
}

/// Counts and segments past 2^32: on ranges only, since no memory holds them.
#[test]
fn counts_beyond_32_bits_are_covered_exactly() {
    let segment_elements = 3 << 31;
    for size in [2, 3, 5, 8, 13] {
        for count in [(1 << 33) + 1, 9 * segment_elements + 5] {
            let root = size - 1;
            let mut calls: Vec<(Request, Algorithm, u64)> = ALL_REDUCES
                .map(|a| (request(Collective::AllReduce, size, count), a, segment_elements))
                .into();
            for (collective, algorithm) in [
                (Collective::ReduceScatter, Algorithm::Ring),
                (Collective::AllGather, Algorithm::Ring),
                (Collective::Broadcast { root }, Algorithm::Chain),
                (Collective::Broadcast { root }, Algorithm::Binomial),
                (Collective::Reduce { root }, Algorithm::Binomial),
                (Collective::Gather { root }, Algorithm::Direct),
                (Collective::Scatter { root }, Algorithm::Direct),
                (Collective::AllToAll, Algorithm::Direct),
            ] {
                calls.push((request(collective, size, count), algorithm, segment_elements));
            }
            for collective in [Collective::Gather { root }, Collective::Scatter { root }] {
                let all = u64::from(size) * count;
                let segment = all.div_ceil(RELAY_SEGMENTS);
                calls.push((request(collective, size, count), Algorithm::Binomial, segment));
            }
            let lengths: Vec<u64> = (0..u64::from(size)).map(|rank| rank % 3 * count).collect();
            calls.push((all_gather_v(&lengths), Algorithm::Ring, segment_elements));
            for (request, algorithm, segment_elements) in calls {
                let call =
                    Call { request, algorithm, segment_elements, in_place: false, is_dry: true };
                World::new(call).run(Schedule::Forwards(2)).check();
            }
        }
    }
}

fn any_call() -> impl Strategy<Value = Call> {
    let size = 1u32..12;
    (size, 0usize..17, 0u64..70, 1u64..6, any::<u32>(), any::<bool>()).prop_flat_map(
        |(size, kind, count, segment, root, in_place)| {
            let root = root % size;
            let all_reduce = |algorithm| (Collective::AllReduce, algorithm);
            let (collective, algorithm) = match kind {
                0..4 => all_reduce(ALL_REDUCES[kind]),
                4 | 5 => (Collective::ReduceScatter, Algorithm::Ring),
                6 => (Collective::AllGather, Algorithm::Ring),
                7 => (Collective::Broadcast { root }, Algorithm::Chain),
                8 => (Collective::Broadcast { root }, Algorithm::Binomial),
                9 | 10 => (Collective::Reduce { root }, Algorithm::Binomial),
                11 => (Collective::Gather { root }, Algorithm::Binomial),
                12 => (Collective::Scatter { root }, Algorithm::Binomial),
                13 => (Collective::Gather { root }, Algorithm::Direct),
                14 => (Collective::Scatter { root }, Algorithm::Direct),
                15 => (Collective::AllToAll, Algorithm::Direct),
                _ => (Collective::AllGatherV, Algorithm::Ring),
            };
            let fits = u64::from(size) * count <= RELAY_SEGMENTS * segment;
            let algorithm = match (collective, algorithm) {
                (Collective::Gather { .. } | Collective::Scatter { .. }, _) if !fits => {
                    Algorithm::Direct
                }
                _ => algorithm,
            };
            prop::collection::vec(0u64..9, size as usize).prop_map(move |lengths| Call {
                request: match collective {
                    Collective::AllGatherV => all_gather_v(&lengths),
                    _ => request(collective, size, count),
                },
                algorithm,
                segment_elements: segment,
                in_place,
                is_dry: false,
            })
        },
    )
}

proptest! {
    /// What a rank can send before anything has come to it says when that rank came: sender and
    /// receiver of each flow agree which messages those are, and there are some.
    #[test]
    fn what_waits_for_nobody_is_marked(call in any_call()) {
        let Call { request, algorithm, segment_elements, .. } = call;
        let mut marked = 0;
        for rank in 0..request.size {
            let plan = Plan::new(&request, rank, algorithm, segment_elements);
            let flows: Vec<FlowKey> =
                Machine::new(plan.clone(), segment_elements).destinations().collect();
            for flow in flows {
                let first = Machine::new(plan.clone(), segment_elements).next_send(flow);
                let opens = plan.opens_unprompted(flow.peer, flow.tree);
                prop_assert_eq!(first.map(|first| first.is_unprompted), opens.then_some(true));
                marked += u32::from(opens);
            }
        }
        prop_assert!(marked > 0 || request.size == 1);
    }

    #[test]
    fn any_order_of_events_gives_the_same_result(
        call in any_call(), window in 1usize..12,
        order in prop::collection::vec(any::<usize>(), 64),
    ) {
        let calm = World::new(call.clone()).run(Schedule::Forwards(4));
        let mut order = order.into_iter().cycle();
        let mut choose = |n: usize| order.next().unwrap_or(0) % n;
        let wild = World::new(call).run(Schedule::Random(window, &mut choose));
        wild.check();
        prop_assert_eq!(wild.outputs(), calm.outputs());
    }

    #[test]
    fn a_machine_ignores_what_it_does_not_await(peer in 2u32..9, tree in 0u16..3) {
        let call = request(Collective::AllReduce, 2, 10);
        let mut machine = Machine::new(Plan::new(&call, 0, Algorithm::Ring, 4), 4);
        let flow = FlowKey { peer, tree };
        prop_assert!(machine.next_receive(flow).is_none());
        prop_assert!(machine.next_send(flow).is_none());
        prop_assert!(!machine.expects(flow));
        machine.received(flow);
        prop_assert!(!machine.is_done());
    }
}
