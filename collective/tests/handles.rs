//! Calls that are started and waited for later: many at once, dropped, leaked, awaited, failed.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::panic::{AssertUnwindSafe, catch_unwind};

use allfold::{Bucket, Communicator, ErrorKind, ReduceOp, Result};
use worlds::{every_link, on_every_link, results};

#[test]
fn many_outstanding_calls_end_in_order() {
    on_every_link(&[1, 2, 3], |world| {
        let start = |call: usize| {
            let length = [1, 20_000, 3, 100_000][call % 4];
            world.start_all_reduce(vec![(call + world.rank()) as f32; length], ReduceOp::Sum)
        };
        let pending: Vec<_> = (0..64).map(start).collect::<Result<_>>()?;
        // A blocking call takes its turn behind them.
        world.barrier()?;
        assert!(pending.iter().all(|call| call.is_done()));
        for (call, pending) in pending.into_iter().enumerate() {
            let buffer = pending.wait()?;
            let want: usize = (0..world.size()).map(|rank| call + rank).sum();
            assert!(buffer.iter().all(|value| *value == want as f32), "call {call}");
        }
        Ok(())
    });
}

#[test]
fn a_buffer_of_the_runtime_s_can_be_lent_too() {
    on_every_link(&[1, 2, 3], |world| {
        let (rank, size) = (world.rank(), world.size());
        let want = (0..size).sum::<usize>() as f32;
        // In the second turn the memory is that of the first.
        for length in [3, 70_000, 3, 70_000] {
            let mut buffer = world.alloc(length);
            buffer.fill(rank as f32);
            let sums = world.start_all_reduce(buffer, ReduceOp::Sum)?.wait()?;
            assert_eq!(*sums, *vec![want; length]);
            let mut bucket = Bucket::within(world, [length, 0, 1]);
            bucket.as_mut_slice().fill(rank as f32);
            let first = bucket.clone().start_all_reduce(world, ReduceOp::Sum)?;
            bucket.all_reduce(world, ReduceOp::Sum)?;
            assert_eq!(bucket, first.wait()?);
            assert_eq!(bucket.view(0), vec![want; length]);
        }
        // Dropped, the call is made all the same.
        drop(world.start_all_reduce(world.alloc::<f32>(70_000), ReduceOp::Sum)?);
        world.barrier()
    });
}

#[test]
fn a_world_says_whether_its_ranks_share_memory() {
    let shares = |world| results(world, Communicator::shares_memory).into_iter().all(|is| is);
    let [in_process, with_lanes, over_quic, in_shared_memory] = every_link(2);
    assert!(!shares(in_process) && !shares(with_lanes) && !shares(over_quic));
    assert!(shares(in_shared_memory));
    assert!(Communicator::single().shares_memory());
}

#[test]
fn every_collective_can_be_started() {
    on_every_link(&[1, 2, 3], |world| {
        let (rank, size) = (world.rank(), world.size());
        let own = |block: usize| {
            let mut buffer = vec![0u64; block * size];
            buffer[rank * block..][..block].fill(rank as u64 + 1);
            buffer
        };
        let all: Vec<u64> = (1..=size as u64).collect();
        let sum: u64 = all.iter().sum();
        let gathered = world.start_all_gather(own(1))?;
        let gathered_v = world.start_all_gather_v(own(2), &vec![2; size])?;
        let scattered = world.start_reduce_scatter(vec![rank as u64 + 1; size], ReduceOp::Sum)?;
        let broadcast = world.start_broadcast(vec![rank as u64; 3], size - 1)?;
        let reduced = world.start_reduce(vec![rank as u64 + 1; 3], ReduceOp::Max, 0)?;
        let to_root =
            world.start_gather(if rank == 0 { own(1) } else { own(1)[rank..=rank].to_vec() }, 0)?;
        let from_root = world.start_scatter(if rank == 0 { all.clone() } else { vec![0] }, 0)?;
        let transposed = world.start_all_to_all(vec![rank as u64 + 1; size])?;
        let barrier = world.start_barrier()?;
        assert_eq!(gathered.wait()?, all);
        assert_eq!(gathered_v.wait()?, all.iter().flat_map(|v| [*v, *v]).collect::<Vec<_>>());
        assert_eq!(scattered.wait()?[rank], sum);
        assert_eq!(broadcast.wait()?, vec![size as u64 - 1; 3]);
        assert_eq!(reduced.wait()?, vec![if rank == 0 { size as u64 } else { rank as u64 + 1 }; 3]);
        assert_eq!(to_root.wait()?, if rank == 0 { all.clone() } else { vec![rank as u64 + 1] });
        assert_eq!(from_root.wait()?[0], rank as u64 + 1);
        assert_eq!(transposed.wait()?, all);
        barrier.wait()?;
        if size > 1 && rank < 2 {
            // Both send first: blocking sends of any length could wait for each other.
            let sent = world.start_send(vec![rank as u64; 3_000_000], 1 - rank)?;
            let received = world.start_recv(vec![9; 3_000_000], 1 - rank)?;
            assert_eq!(received.wait()?, vec![1 - rank as u64; 3_000_000]);
            assert_eq!(sent.wait()?, vec![rank as u64; 3_000_000]);
        }
        Ok(())
    });
}

#[test]
fn a_handle_that_is_dropped_or_leaked_loses_no_call() {
    on_every_link(&[2, 3], |world| {
        for call in 0..20 {
            let pending = world.start_all_reduce(vec![1.0f64; 30_000], ReduceOp::Sum)?;
            match (call + world.rank()) % 3 {
                0 => drop(pending),
                1 => std::mem::forget(pending),
                _ => assert_eq!(pending.wait()?[29_999], world.size() as f64),
            }
        }
        let mut buffer = [1.0f32];
        world.all_reduce(&mut buffer, ReduceOp::Sum)?;
        assert_eq!(buffer[0], world.size() as f32);
        // Closing waits for one that nobody waits for.
        drop(world.start_all_reduce(vec![1.0f64; 200_000], ReduceOp::Sum)?);
        Ok(())
    });
}

#[test]
fn a_handle_can_be_awaited_on_both_kinds_of_runtime() {
    on_every_link(&[2], |world| {
        let task = async {
            let first = world.start_all_reduce(vec![1.0f32; 50_000], ReduceOp::Sum)?;
            let second = world.start_broadcast(vec![world.rank() as u8; 5], 1)?;
            let (second, first) = (second.await?, first.await?);
            assert_eq!((first[49_999], second), (2.0, vec![1; 5]));
            Ok(())
        };
        if world.rank() == 0 {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(task)
        } else {
            let many = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
            many.unwrap().block_on(task)
        }
    });
}

#[test]
fn a_panic_between_start_and_wait_ends_the_world_and_touches_nothing() {
    for world in every_link(3) {
        std::thread::scope(|scope| {
            let threads = world.into_iter().map(|rank| {
                scope.spawn(move || {
                    let number = rank.rank();
                    let outcome = catch_unwind(AssertUnwindSafe(move || {
                        let pending = rank.start_all_reduce(vec![1.0f32; 1_000_000], ReduceOp::Sum);
                        if rank.rank() == 1 {
                            // Not `panic!`, whose message would be printed.
                            std::panic::resume_unwind(Box::new("between start and wait"));
                        }
                        pending.and_then(|pending| pending.wait()).and_then(|_| rank.barrier())
                    }));
                    (number, outcome)
                })
            });
            let threads: Vec<_> = threads.collect();
            for thread in threads {
                let (rank, outcome) = thread.join().unwrap();
                match outcome {
                    Err(_) => assert_eq!(rank, 1),
                    Ok(result) => {
                        let error = result.unwrap_err();
                        assert!(
                            matches!(error.kind(), ErrorKind::RankLost { rank: 1, .. }),
                            "rank {rank}: {error}"
                        );
                        assert!(error.to_string().contains("panicked"), "{error}");
                    }
                }
            }
        });
    }
}

#[test]
fn a_failed_call_gives_its_buffer_back() {
    for world in every_link(2) {
        let ends = results(world, |rank| {
            let count = 1000 + rank.rank();
            let first = rank.start_all_reduce(vec![1.0f32; count], ReduceOp::Sum).unwrap();
            // The world may have ended by now; then no call begins.
            let second = rank.start_all_reduce(vec![1.0f32; 7], ReduceOp::Sum);
            let (buffer, result) = first.finish();
            assert_eq!(buffer.len(), count);
            let error = result.unwrap_err();
            let later = second.and_then(|second| second.wait()).unwrap_err();
            assert_eq!(error.to_string(), later.to_string());
            error
        });
        for error in ends {
            assert!(matches!(error.kind(), ErrorKind::Mismatch { .. }), "{error}");
        }
    }
}

#[test]
fn too_many_outstanding_calls_are_refused_and_harm_nothing() {
    let mut world = Communicator::in_memory(2).unwrap();
    let (second, first) = (world.pop().unwrap(), world.pop().unwrap());
    let mut pending = Vec::new();
    let error = loop {
        match first.start_barrier() {
            Ok(call) => pending.push(call),
            Err(error) => break error,
        }
    };
    assert_eq!(pending.len(), 1024);
    assert!(error.to_string().contains("1024 calls are outstanding"), "{error}");
    assert!(error.is_communicator_usable());
    std::thread::scope(|scope| {
        scope.spawn(|| (0..1025).for_each(|_| second.barrier().unwrap()));
        pending.into_iter().for_each(|call| call.wait().unwrap());
        first.barrier().unwrap();
    });
}
