//! Communicators of some of the ranks: who belongs to them, their own sequence, their ends.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::time::Duration;

use allfold::{Communicator, ErrorKind, InMemory, ReduceOp, Result};
use worlds::{connect_all, every_link, on_every_link, results};

fn sum(world: &Communicator, value: usize) -> Result<usize> {
    let mut buffer = [value as u64];
    world.all_reduce(&mut buffer, ReduceOp::Sum)?;
    Ok(buffer[0] as usize)
}

#[test]
fn rows_and_columns_add_up_apart() {
    on_every_link(&[1, 2, 4, 6], |world| {
        let (rank, size) = (world.rank(), world.size());
        let row = world.split(Some((rank / 2) as u32), 0)?.unwrap();
        let column = world.split(Some((rank % 2) as u32), 0)?.unwrap();
        assert_eq!((row.rank(), column.rank()), (rank % 2, rank / 2));
        let of_row: usize = (0..size).filter(|other| other / 2 == rank / 2).sum();
        let of_column: usize = (0..size).filter(|other| other % 2 == rank % 2).sum();
        assert_eq!(sum(&row, rank)?, of_row);
        assert_eq!(sum(&column, rank)?, of_column);
        assert_eq!(sum(world, rank)?, size * (size - 1) / 2);
        // Their sequences are their own: unlike numbers of calls are no error.
        for _ in 0..rank / 2 {
            row.barrier()?;
        }
        column.close()?;
        assert_eq!(sum(&row, 1)?, row.size());
        row.close()
    });
}

#[test]
fn keys_order_the_ranks_and_some_take_no_part() {
    on_every_link(&[2, 3, 5], |world| {
        let (rank, size) = (world.rank(), world.size());
        let color = (rank != 1).then_some(7);
        let part = world.split(color, (size - rank) as u32)?;
        assert_eq!(part.is_none(), rank == 1);
        let Some(part) = part else { return world.barrier() };
        assert_eq!(part.size(), size - 1);
        let mut order = vec![0u64; part.size()];
        part.all_gather(&[rank as u64], &mut order)?;
        let descending: Vec<u64> = (0..size as u64).rev().filter(|rank| *rank != 1).collect();
        assert_eq!(order, descending);
        let pids: Vec<usize> = part.peers().iter().map(|peer| peer.rank).collect();
        assert_eq!(pids, (0..part.size()).collect::<Vec<_>>());
        let root = part.size() - 1;
        let mut word = [rank as u32];
        part.broadcast(&mut word, root)?;
        assert_eq!(word[0], 0, "the last in descending order");
        if part.size() > 1 {
            let (next, previous) =
                ((part.rank() + 1) % part.size(), (part.rank() + part.size() - 1) % part.size());
            let mut got = [0u64];
            part.send_recv(&[part.rank() as u64], next, &mut got, previous)?;
            assert_eq!(got[0], previous as u64);
        }
        world.barrier()
    });
}

#[test]
fn a_part_of_a_part_is_told_from_its_parent() {
    on_every_link(&[4], |world| {
        let half = world.split(Some(world.rank() as u32 / 2), 0)?.unwrap();
        let single = half.split(Some(half.rank() as u32), 0)?.unwrap();
        assert_eq!((single.size(), sum(&single, 5)?), (1, 5));
        let again = half.split(Some(0), 0)?.unwrap();
        assert_eq!(sum(&again, world.rank())?, sum(&half, world.rank())?);
        Ok(())
    });
}

#[test]
fn communicators_work_at_the_same_time_from_different_threads() {
    on_every_link(&[2, 3], |world| {
        let other = world.split(Some(0), 0)?.unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| (0..50).try_for_each(|i| sum(&other, i).map(|_| ())));
            // In the other order on every second rank.
            let pending: Vec<_> = (0..8)
                .map(|_| world.start_all_reduce(vec![1.0f32; 50_000], ReduceOp::Sum))
                .collect::<Result<_>>()?;
            (0..50).try_for_each(|i| sum(world, i).map(|_| ()))?;
            pending.into_iter().try_for_each(|call| call.wait().map(|_| ()))?;
            thread.join().unwrap()
        })
    });
}

#[test]
fn splitting_again_and_again_uses_nothing_up() {
    on_every_link(&[2, 3], |world| {
        for round in 0..300 {
            let part = world.split(Some(0), 0)?.unwrap();
            assert_eq!(sum(&part, round)?, round * world.size());
            if round % 2 == 0 {
                part.close()?;
            }
        }
        Ok(())
    });
}

#[test]
fn too_many_parts_at_once_are_refused_and_harm_nothing() {
    on_every_link(&[2], |world| {
        let mut parts = Vec::new();
        let error = loop {
            match world.split(Some(0), 0) {
                Ok(part) => parts.push(part.unwrap()),
                Err(error) => break error,
            }
        };
        assert_eq!(parts.len(), 255);
        assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
        // Every one of them works.
        for part in &parts {
            assert_eq!(sum(part, 1)?, 2);
            let other = 1 - part.rank();
            part.send_recv(&[1u8], other, &mut [0u8], other)?;
        }
        parts.clear();
        world.split(Some(0), 0).map(|_| ())
    });
}

#[test]
fn a_part_may_outlive_the_whole() {
    for world in every_link(3) {
        std::thread::scope(|scope| {
            for rank in world {
                scope.spawn(move || {
                    let part = rank.split(Some(0), 0).unwrap().unwrap();
                    rank.close().unwrap();
                    assert_eq!(sum(&part, 2).unwrap(), 6);
                    part.close().unwrap();
                });
            }
        });
    }
}

#[test]
fn a_mismatch_in_a_part_ends_the_whole_world_and_names_the_part() {
    for world in every_link(4) {
        let ends = results(world, |rank| {
            let half = rank.split(Some(rank.rank() as u32 / 2), 0)?.unwrap();
            let count = if rank.rank() == 3 { 11 } else { 10 };
            half.all_reduce(&mut vec![1.0f32; count], ReduceOp::Sum)?;
            rank.barrier()
        });
        for end in ends {
            let error = end.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Mismatch { .. }), "{error}");
            let text = error.to_string();
            for words in
                ["rank 2 called", "rank 3 called", "f32 x 10, ", "f32 x 11, ", ") on split 1"]
            {
                assert!(text.contains(words), "`{words}` is missing in: {text}");
            }
        }
    }
}

#[test]
fn calls_in_opposite_order_are_a_deadlock_that_names_them_all() {
    let soon = Duration::from_millis(300);
    let memory = InMemory::new(3).unwrap().late_after(soon).start().unwrap();
    let over = |transport: &str| -> Vec<_> {
        let change =
            |config: allfold::Config| config.late_after(soon).transport(transport).unwrap();
        connect_all(3, change).into_iter().map(|r| r.unwrap()).collect()
    };
    for world in [memory, over("quic"), over("shared-memory")] {
        let ends = results(world, |rank| {
            let other = rank.split(Some(0), 0)?.unwrap();
            // Until a thread has used a communicator, any other might: no deadlock is certain.
            other.barrier()?;
            let (first, second) = if rank.rank() == 1 { (&other, rank) } else { (rank, &other) };
            first.barrier()?;
            second.all_reduce(&mut [0.0f32], ReduceOp::Sum)
        });
        for end in ends {
            let error = end.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Deadlock { .. }), "{error}");
            assert_eq!(error.exit_code(), 3);
            let text = error.to_string();
            let calls: Vec<&str> = text.trim_start_matches("deadlock: ").split("; ").collect();
            for (rank, call) in calls.iter().enumerate() {
                let words = format!("rank {rank} waits in barrier #");
                assert!(call.starts_with(&words), "{text}");
                assert!(call.contains(" (collective/tests/splits.rs:"), "{text}");
                assert_eq!(call.ends_with(") on split 0"), rank == 1, "{text}");
            }
            assert_eq!(calls.len(), 3, "{text}");
        }
    }
}

#[test]
fn a_thread_that_is_late_with_its_first_call_is_no_deadlock() {
    let soon = Duration::from_millis(100);
    let world = InMemory::new(2).unwrap().late_after(soon).start().unwrap();
    let ends = results(world, |rank| -> Result<()> {
        let (x, y) = (rank.split(Some(0), 0)?.unwrap(), rank.split(Some(0), 0)?.unwrap());
        // Each rank waits in one at once and, from another thread, comes late to the other.
        let (now, later) = if rank.rank() == 0 { (&x, &y) } else { (&y, &x) };
        std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                // Computing for several times the patience.
                std::thread::sleep(soon * 8);
                later.barrier()
            });
            now.barrier()?;
            late.join().unwrap()
        })
    });
    for end in ends {
        end.unwrap();
    }
}

#[test]
fn a_new_thread_that_computes_before_its_call_is_no_deadlock() {
    let soon = Duration::from_millis(400);
    let world = InMemory::new(2).unwrap().late_after(soon).start().unwrap();
    let ends = results(world, |rank| -> Result<()> {
        let (x, y) = (rank.split(Some(0), 0)?.unwrap(), rank.split(Some(0), 0)?.unwrap());
        // This thread has made the last call on both, and then waits in one.
        x.barrier()?;
        y.barrier()?;
        let (now, later) = if rank.rank() == 0 { (&x, &y) } else { (&y, &x) };
        std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                let began = std::time::Instant::now();
                while began.elapsed() < soon * 5 {
                    std::hint::spin_loop();
                }
                later.barrier()
            });
            now.barrier()?;
            late.join().unwrap()
        })
    });
    for end in ends {
        end.unwrap();
    }
}

#[test]
fn a_split_is_numbered_alike_whatever_other_threads_call() {
    for round in 0..40 {
        let world = Communicator::in_memory(2).unwrap();
        let ends = results(world, |rank| -> Result<()> {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| {
                    loop {
                        match rank.labelled(round).barrier() {
                            Err(error) if error.is_communicator_usable() => {
                                std::thread::yield_now()
                            }
                            end => break end,
                        }
                    }
                });
                let part = loop {
                    match rank.split(Some(0), 0) {
                        Err(error) if error.is_communicator_usable() => std::thread::yield_now(),
                        end => break end,
                    }
                };
                // Which of the two came first differs between ranks at times: then it is a mismatch.
                let (part, other) = (part, other.join().unwrap());
                other?;
                sum(&part?.unwrap(), 1).map(|found| assert_eq!(found, 2))
            })
        });
        for end in ends {
            if let Err(error) = end {
                assert!(matches!(error.kind(), ErrorKind::Mismatch { .. }), "{error}");
            }
        }
    }
}

#[test]
fn ranks_in_errors_are_those_of_the_whole_world() {
    let ends = results(Communicator::in_memory(4).unwrap(), |rank| {
        let half = rank.split(Some(rank.rank() as u32 / 2), 0)?.unwrap();
        let root = usize::from(rank.rank() == 3);
        half.broadcast(&mut [1.0f32], root)?;
        rank.barrier()
    });
    for end in ends {
        let text = end.unwrap_err().to_string();
        if text.contains("on split 1") {
            assert!(text.contains("rank 2 called broadcast #0 (from rank 2, f32 x 1,"), "{text}");
            assert!(text.contains("rank 3 called broadcast #0 (from rank 3, f32 x 1,"), "{text}");
        }
    }
}

#[test]
fn a_receive_that_nobody_sends_to_is_a_deadlock() {
    let soon = Duration::from_millis(300);
    let memory = InMemory::new(2).unwrap().late_after(soon).start().unwrap();
    let quic: Vec<_> =
        connect_all(2, |config| config.late_after(soon)).into_iter().map(|r| r.unwrap()).collect();
    for world in [memory, quic] {
        let ends = results(world, |rank| rank.recv(&mut [0u8; 4], 1 - rank.rank()));
        for end in ends {
            let error = end.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Deadlock { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("rank 0 waits in recv #0 (u8 x 4, "), "{text}");
            assert!(text.contains(") from rank 1 to rank 0"), "{text}");
        }
    }
}
