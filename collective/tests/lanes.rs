//! Calls that several lanes make: right, with bits that are known, and no different in their ends.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::time::Duration;

use allfold::{Communicator, ErrorKind, InMemory, ReduceOp, Result};
use proptest::prelude::*;
use worlds::{connect_all, each_rank, results};

/// Elements of four bytes that are cut into three stripes by the lengths that are built in.
const LARGE: usize = 3 << 17;

#[test]
fn every_collective_is_right_over_quic_with_several_lanes() {
    for (size, lanes) in [(2, 2), (3, 3), (2, 8)] {
        each_rank(over_quic(size, lanes), |world| {
            for length in [0, 1, 2, 1_000, LARGE - 1, LARGE, LARGE + 1, 4 * LARGE + 5] {
                all_kinds(world, length)?;
            }
            Ok(())
        });
    }
}

/// Every collective on buffers of so many elements, or blocks that make up about as many.
fn all_kinds(world: &Communicator, length: usize) -> Result<()> {
    let (rank, size) = (world.rank(), world.size());
    let of = |rank: usize, count: usize| (0..count).map(move |i| (rank * 7 + i % 1_013) as u32);
    let sum = |i: usize| (0..size).map(|rank| (rank * 7 + i % 1_013) as u32).sum::<u32>();
    let mut buffer: Vec<u32> = of(rank, length).collect();
    world.all_reduce(&mut buffer, ReduceOp::Sum)?;
    assert!(buffer.iter().enumerate().all(|(i, found)| *found == sum(i)), "all_reduce {length}");

    let mut buffer: Vec<u32> = of(rank, length).collect();
    world.broadcast(&mut buffer, size - 1)?;
    assert!(buffer.iter().copied().eq(of(size - 1, length)), "broadcast {length}");
    world.reduce(&mut buffer, ReduceOp::Max, 0)?;
    assert!(buffer.iter().copied().eq(of(size - 1, length)), "reduce {length}");

    let block = length / size;
    let everything: Vec<u32> = (0..size).flat_map(|rank| of(rank, block)).collect();
    let own: Vec<u32> = of(rank, block).collect();
    let mut all = vec![0; size * block];
    world.all_gather(&own, &mut all)?;
    assert!(all == everything, "all_gather {length}");
    let mut mine = vec![0; block];
    world.scatter(if rank == 0 { &all } else { &[] }, &mut mine, 0)?;
    assert!(mine == own, "scatter {length}");
    let mut gathered = vec![0; if rank == 1 { size * block } else { 0 }];
    world.gather(&own, &mut gathered, 1)?;
    assert!(rank != 1 || gathered == everything, "gather {length}");
    let mut transposed: Vec<u32> = (0..size).flat_map(|to| of(rank + to, block)).collect();
    world.all_to_all_in_place(&mut transposed)?;
    let expected = (0..size).flat_map(|from| of(from + rank, block));
    assert!(transposed.into_iter().eq(expected), "all_to_all {length}");
    world.reduce_scatter(&all, &mut mine, ReduceOp::Sum)?;
    let sums = own.iter().map(|value| value * size as u32);
    assert!(mine.iter().copied().eq(sums), "reduce_scatter {length}");

    let (next, former) = ((rank + 1) % size, (rank + size - 1) % size);
    let mut received = vec![0; length];
    let sent: Vec<u32> = of(rank, length).collect();
    world.send_recv(&sent, next, &mut received, former)?;
    assert!(received.into_iter().eq(of(former, length)), "send_recv {length}");
    world.barrier()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn the_bits_are_those_of_a_call_for_each_stripe(
        size in 2usize..6, lanes in 1usize..9, length in 0usize..3_000, algorithm in 0usize..4,
    ) {
        let name = ["ring", "tree", "recursive-doubling", "halving-doubling"][algorithm];
        // Of segments of one element, and as many stripes as the call allows.
        let world = |lanes| {
            let world = InMemory::new(size).unwrap().algorithm(name).unwrap();
            world.lanes(lanes).unwrap().pieces(4, 4).start().unwrap()
        };
        let of = |rank: &Communicator| -> Vec<f32> {
            (0..length).map(|i| 1.0 / (1.0 + (i * 31 + rank.rank() * 7) as f32)).collect()
        };
        let cut = results(world(lanes), |rank| {
            let mut buffer = of(rank);
            rank.all_reduce(&mut buffer, ReduceOp::Avg).unwrap();
            buffer
        });
        let stripes = (length / size).clamp(1, lanes);
        let one_by_one = results(world(1), |rank| {
            let mut buffer = of(rank);
            let mut start = 0;
            for stripe in 0..stripes {
                let end = start + length / stripes + usize::from(stripe < length % stripes);
                rank.all_reduce(&mut buffer[start..end], ReduceOp::Avg).unwrap();
                start = end;
            }
            buffer
        });
        let bits = |buffer: &Vec<f32>| buffer.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        prop_assert!(cut.iter().map(bits).eq(one_by_one.iter().map(bits)));
        prop_assert!(cut.iter().all(|buffer| bits(buffer) == bits(&cut[0])), "ranks differ");
    }
}

#[test]
fn short_calls_between_long_ones_end_in_order_and_do_not_get_mixed_up() {
    for world in [over_quic(2, 3), worlds::with_lanes(3, 3)] {
        each_rank(world, |world| {
            let lengths = [LARGE, 1, 7, 2 * LARGE, 0, 3];
            let started: Vec<_> = (0..24)
                .map(|call| {
                    let length = lengths[call % lengths.len()];
                    let buffer = vec![(call + world.rank()) as u32; length];
                    world.start_all_reduce(buffer, ReduceOp::Sum).unwrap()
                })
                .collect();
            while started.iter().any(|call| !call.is_done()) {
                let ended = started.iter().rposition(|call| call.is_done());
                let before = &started[..ended.unwrap_or(0)];
                assert!(before.iter().all(|call| call.is_done()), "{ended:?} ended too early");
                std::thread::yield_now();
            }
            for (call, pending) in started.into_iter().enumerate() {
                let sum: usize = (0..world.size()).map(|rank| call + rank).sum();
                assert!(pending.wait()?.into_iter().all(|v| v == sum as u32), "call {call}");
            }
            Ok(())
        });
    }
}

#[test]
fn a_call_counts_once_whatever_lanes_make_it() {
    for lanes in [1, 3] {
        let world = over_quic(2, lanes);
        let words = world[0].transport();
        assert_eq!(words.contains(&format!("{lanes} lanes")), lanes > 1, "{words}");
        let world = results(world, |world| {
            let mut buffer = vec![1.0f32; LARGE];
            world.all_reduce(&mut buffer, ReduceOp::Sum).unwrap();
            world.barrier().unwrap();
            world.all_reduce(&mut buffer, ReduceOp::Sum).unwrap();
            let stats = world.stats();
            let calls = stats.calls.iter().filter(|calls| calls.collective == "all_reduce");
            let peer = stats.peers.iter().find(|peer| peer.rank != world.rank()).unwrap();
            (calls.map(|calls| calls.calls).sum::<u64>(), peer.late.count)
        });
        // One wait for each call that began with a message of the other: three.
        assert!(world.iter().all(|(calls, waits)| *calls == 2 && *waits <= 3), "{world:?}");
    }
}

#[test]
fn many_worlds_with_lanes_end_right_after_their_last_call() {
    for round in 0..40 {
        let world = if round % 8 == 0 { over_quic(2, 3) } else { worlds::with_lanes(3, 3) };
        each_rank(world, |world| {
            let part = world.split(Some(0), 0)?.unwrap();
            let mut buffer = vec![1u32; 2 * LARGE];
            part.all_reduce(&mut buffer, ReduceOp::Sum)?;
            part.close()?;
            world.broadcast(&mut buffer, 0)
        });
    }
}

#[test]
fn another_number_of_lanes_is_refused_with_both() {
    let ends = connect_all(2, |config| match config.rank() {
        1 => config.lanes(3).unwrap().connect_timeout(Duration::from_secs(5)),
        _ => config.lanes(2).unwrap().connect_timeout(Duration::from_secs(2)),
    });
    let error = ends.into_iter().nth(1).unwrap().err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
    let words = "ALLFOLD_LANES is 2 on rank 0, but 3 on rank 1";
    assert!(error.to_string().contains(words), "{error}");
}

fn over_quic(size: usize, lanes: usize) -> Vec<Communicator> {
    let ranks = connect_all(size, |config| config.transport("quic").unwrap().lanes(lanes).unwrap());
    ranks.into_iter().map(|rank| rank.unwrap()).collect()
}
