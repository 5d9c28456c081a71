//! Steps and bytes of every plan against the closed formulas of docs/algorithms.md, and the closed
//! forms of the flows against a scan of all steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Algorithm, Plan, Request, chunk};
use crate::contract::Collective;

const SEGMENT: u64 = 4;
const SIZES: std::ops::RangeInclusive<u32> = 2..=64;

fn request(collective: Collective, size: u32, count: u64) -> Request {
    Request { collective, size, count, element_bytes: 4, counts: None }
}

/// All ranks' plans.
fn plans(collective: Collective, algorithm: Algorithm, size: u32, count: u64) -> Vec<Plan> {
    let request = request(collective, size, count);
    (0..size).map(|rank| Plan::new(&request, rank, algorithm, SEGMENT)).collect()
}

/// Elements that a rank sends.
fn sent(plan: &Plan) -> u64 {
    let steps = (0..plan.len()).map(|index| plan.step(index));
    steps.filter(|step| step.is_send()).map(|step| step.range.end - step.range.start).sum()
}

fn log2_up(size: u32) -> u32 {
    size.next_power_of_two().ilog2()
}

#[test]
fn a_ring_takes_four_steps_a_rank_and_sends_all_but_one_chunk_twice() {
    for size in SIZES {
        let count = u64::from(size) * 30;
        for plan in plans(Collective::AllReduce, Algorithm::Ring, size, count) {
            assert_eq!(plan.len(), 4 * (size - 1));
            assert_eq!(sent(&plan), 2 * u64::from(size - 1) * 30);
        }
        for plan in plans(Collective::AllGather, Algorithm::Ring, size, 30) {
            assert_eq!(plan.len(), 2 * (size - 1));
            assert_eq!(sent(&plan), u64::from(size - 1) * 30);
        }
    }
}

#[test]
fn a_reduce_scatter_sends_all_blocks_but_one_in_pieces_of_half_the_relay() {
    for size in SIZES {
        for (count, pieces) in [(0, 1), (1, 1), (16, 1), (17, 2), (33, 3)] {
            for plan in plans(Collective::ReduceScatter, Algorithm::Ring, size, count) {
                assert_eq!(plan.len(), 2 * (size - 1) * pieces);
                assert_eq!(sent(&plan), u64::from(size - 1) * count);
                assert!(plan.relay_elements(SEGMENT) <= 8 * SEGMENT);
            }
        }
    }
}

#[test]
fn a_double_tree_sends_the_buffer_twice_at_most_and_all_have_about_the_same_to_do() {
    for size in SIZES {
        let count = 100;
        let plans = plans(Collective::AllReduce, Algorithm::Tree, size, count);
        let links = 2 * u64::from(size - 1);
        assert_eq!(plans.iter().map(|plan| u64::from(plan.len())).sum::<u64>(), 4 * links);
        assert_eq!(plans.iter().map(sent).sum::<u64>(), links * count);
        for plan in &plans {
            assert!(sent(plan) <= u64::from(size.min(4)) * count / 2, "{size}: {plan:?}");
        }
        // With children in both trees, a rank would have more than four links.
        assert!(plans.iter().all(|plan| plan.len() <= 8));
    }
}

#[test]
fn a_double_tree_is_as_deep_as_its_logarithm() {
    for size in SIZES {
        let plans = plans(Collective::AllReduce, Algorithm::Tree, size, 100);
        for tree in [0, 1] {
            let parent = |rank: u32| {
                let plan = &plans[rank as usize];
                let steps = (0..plan.len()).map(|index| plan.step(index));
                // A rank stores only what comes from its parent.
                let stores =
                    |step: &super::Step| matches!(step.action, super::Action::Store { .. });
                steps.filter(|s| s.tree == tree).find(stores).map(|step| step.peer)
            };
            let depth = |rank| std::iter::successors(Some(rank), |rank| parent(*rank)).count() - 1;
            let deepest = (0..size).map(depth).max();
            assert_eq!(deepest, Some(size.ilog2() as usize), "{size} ranks, tree {tree}");
        }
    }
}

/// Folded ranks send their input; their substitutes send the result on top of the rest.
fn check_hypercube(algorithm: Algorithm, steps: u32, elements: impl Fn(u32, u64) -> u64) {
    for size in SIZES {
        let dimensions = size.ilog2();
        let extra = size - (1 << dimensions);
        let count = 64;
        for (rank, plan) in (0..).zip(plans(Collective::AllReduce, algorithm, size, count)) {
            let member = elements(dimensions, count);
            let (len, sends) = match (rank < 2 * extra, rank % 2) {
                (false, _) => (steps * dimensions, member),
                (true, 0) => (2, count),
                (true, _) => (steps * dimensions + 2, member + count),
            };
            assert_eq!((plan.len(), sent(&plan)), (len, sends), "{size} ranks, rank {rank}");
        }
    }
}

#[test]
fn recursive_doubling_sends_the_buffer_once_a_dimension() {
    check_hypercube(Algorithm::RecursiveDoubling, 2, |k, count| u64::from(k) * count);
}

#[test]
fn halving_and_doubling_sends_all_but_one_chunk_twice() {
    check_hypercube(Algorithm::HalvingDoubling, 4, |k, count| 2 * (count - count / (1 << k)));
}

#[test]
fn a_broadcast_sends_the_buffer_once_a_child_or_once() {
    for size in SIZES {
        let root = size / 3;
        let broadcast = Collective::Broadcast { root };
        let binomial = plans(broadcast, Algorithm::Binomial, size, 10);
        assert_eq!(binomial[root as usize].len(), log2_up(size));
        assert_eq!(binomial.iter().map(sent).sum::<u64>(), u64::from(size - 1) * 10);
        for plan in &binomial {
            assert!(sent(plan) <= u64::from(log2_up(size)) * 10);
        }
        for (rank, plan) in (0..).zip(plans(broadcast, Algorithm::Chain, size, 10)) {
            let is_last = (rank + 1) % size == root;
            assert_eq!(sent(&plan), if is_last { 0 } else { 10 });
            assert_eq!(plan.len(), if is_last || rank == root { 1 } else { 2 });
        }
    }
}

#[test]
fn a_reduce_sends_the_buffer_once() {
    for size in SIZES {
        let root = size / 3;
        let plans = plans(Collective::Reduce { root }, Algorithm::Binomial, size, 10);
        assert_eq!(plans[root as usize].len(), log2_up(size));
        assert_eq!(plans.iter().map(Plan::len).sum::<u32>(), 2 * (size - 1));
        for (rank, plan) in (0..).zip(&plans) {
            assert_eq!(sent(plan), if rank == root { 0 } else { 10 });
            assert!(plan.relay_elements(SEGMENT) <= 10);
        }
    }
}

#[test]
fn a_binomial_gather_sends_each_subtree_once_in_few_messages() {
    for size in SIZES {
        for root in [0, 1, size / 2, size - 1] {
            for collective in [Collective::Gather { root }, Collective::Scatter { root }] {
                let plans = plans(collective, Algorithm::Binomial, size, 3);
                let served = plans[root as usize].len();
                // Two messages a child but the leaf, one more where the ranks wrap.
                assert!(served <= 2 * log2_up(size), "{size} ranks, {root}: {served}");
                // Each block travels once for each ancestor of its rank.
                let hops = |rank: u32| ((rank + size - root) % size).count_ones();
                let all: u64 = (0..size).map(|rank| u64::from(hops(rank)) * 3).sum();
                assert_eq!(plans.iter().map(sent).sum::<u64>(), all);
            }
        }
    }
}

#[test]
fn direct_exchanges_send_each_block_once() {
    for size in SIZES {
        let root = size / 2;
        for (rank, plan) in
            (0..).zip(plans(Collective::Gather { root }, Algorithm::Direct, size, 3))
        {
            let (len, elements) = if rank == root { (size - 1, 0) } else { (1, 3) };
            assert_eq!((plan.len(), sent(&plan)), (len, elements));
        }
        for (rank, plan) in
            (0..).zip(plans(Collective::Scatter { root }, Algorithm::Direct, size, 3))
        {
            let (len, blocks) = if rank == root { (size - 1, size - 1) } else { (1, 0) };
            assert_eq!((plan.len(), sent(&plan)), (len, u64::from(blocks) * 3));
        }
        for plan in plans(Collective::AllToAll, Algorithm::Direct, size, 3) {
            assert_eq!((plan.len(), sent(&plan)), (2 * (size - 1), u64::from(size - 1) * 3));
        }
    }
}

#[test]
fn a_barrier_takes_as_many_rounds_as_the_logarithm() {
    for size in SIZES {
        for plan in plans(Collective::Barrier, Algorithm::Dissemination, size, 0) {
            assert_eq!((plan.len(), sent(&plan)), (2 * log2_up(size), 0));
        }
    }
}

#[test]
fn a_world_of_one_has_nothing_to_do() {
    let root = 0;
    for (collective, algorithm) in every_plan(root) {
        let alone = Plan::new(&request(collective, 1, 5), 0, algorithm, SEGMENT);
        assert_eq!((alone.len(), alone.opening(), alone.relay_elements(SEGMENT)), (0, 0, 0));
    }
}

#[test]
fn flows_are_found_as_a_scan_of_all_steps_finds_them() {
    for size in 2..=20 {
        for (collective, algorithm) in every_plan(size / 2) {
            for plan in plans(collective, algorithm, size, 40) {
                let mut scanned: BTreeMap<_, Vec<u32>> = BTreeMap::new();
                let mut found: BTreeMap<_, Vec<u32>> = BTreeMap::new();
                let key = |index| {
                    let step = plan.step(index);
                    (step.is_send(), step.peer, step.tree)
                };
                (0..plan.len()).for_each(|i| scanned.entry(key(i)).or_default().push(i));
                for first in 0..plan.opening() {
                    found.entry(key(first)).or_insert_with(|| {
                        std::iter::successors(Some(first), |at| plan.next_on_flow(*at)).collect()
                    });
                }
                assert_eq!(found, scanned, "{collective:?} by {algorithm} of {size}");
            }
        }
    }
}

#[test]
fn a_fingerprint_is_equal_on_all_ranks_and_on_no_other_plan() {
    let mut seen = BTreeMap::new();
    for size in [2, 3, 8] {
        for (collective, algorithm) in every_plan(1) {
            for count in [0, 10] {
                for segment in [SEGMENT, SEGMENT + 1] {
                    let all = plans(collective, algorithm, size, count);
                    let print = all[0].fingerprint(segment);
                    assert!(all.iter().all(|plan| plan.fingerprint(segment) == print));
                    let call = format!("{collective:?} by {algorithm}: {size}, {count}, {segment}");
                    assert_eq!(seen.insert(print, call), None);
                }
            }
        }
    }
}

#[test]
fn blocks_of_other_lengths_are_another_plan() {
    let plan = |ends: [u64; 3]| {
        let counts: Option<Arc<[u64]>> = Some(ends.into());
        let request = Request { counts, ..request(Collective::AllGatherV, 3, 9) };
        Plan::new(&request, 0, Algorithm::Ring, SEGMENT).fingerprint(SEGMENT)
    };
    assert_eq!(plan([1, 4, 9]), plan([1, 4, 9]));
    assert_ne!(plan([1, 4, 9]), plan([1, 5, 9]));
}

#[test]
fn the_four_algorithms_of_the_all_reduce_have_names() {
    for name in ["ring", "tree", "recursive-doubling", "halving-doubling"] {
        assert_eq!(
            name.parse::<Algorithm>().map(|algorithm| algorithm.to_string()),
            Ok(name.into())
        );
    }
    for name in ["chain", "binomial", "Ring", ""] {
        let error = name.parse::<Algorithm>().expect_err("no algorithm of an all-reduce");
        let names = "is none of ring, tree, recursive-doubling, halving-doubling";
        assert_eq!(error, format!("'{name}' {names}"));
    }
}

fn every_plan(root: u32) -> Vec<(Collective, Algorithm)> {
    use super::costs::algorithms;
    [
        Collective::AllReduce,
        Collective::ReduceScatter,
        Collective::AllGather,
        Collective::Broadcast { root },
        Collective::Reduce { root },
        Collective::Gather { root },
        Collective::Scatter { root },
        Collective::AllToAll,
        Collective::Barrier,
    ]
    .into_iter()
    .flat_map(|collective| algorithms(collective).iter().map(move |a| (collective, *a)))
    .collect()
}

proptest! {
    #[test]
    fn chunks_cover_everything_once(count in 0u64..10_000, parts in 1u32..70) {
        let mut position = 0;
        for index in 0..parts {
            let range = chunk(count, parts, index);
            prop_assert_eq!(range.start, position);
            prop_assert!(range.end - range.start <= count.div_ceil(u64::from(parts)));
            position = range.end;
        }
        prop_assert_eq!(position, count);
    }
}
