//! What a rank counts: bytes, calls, whom it waited for, whom it turned away.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use allfold::{Communicator, Config, ErrorKind, InMemory, PeerStatistics, ReduceOp, Secret};

use worlds::{connect_all, each_rank, free_address};

/// Worlds of `size` with rings, over both kinds of link.
fn rings(size: usize) -> [Vec<Communicator>; 2] {
    let memory = InMemory::new(size).unwrap().algorithm("ring").unwrap().start().unwrap();
    let quic = connect_all(size, |config| config.algorithm("ring").unwrap());
    [memory, quic.into_iter().map(|rank| rank.unwrap()).collect()]
}

#[test]
fn every_byte_of_a_ring_is_counted_once_at_either_end() {
    for world in rings(3) {
        each_rank(world, |rank| {
            let mut values = vec![1.0f32; ELEMENTS];
            rank.all_reduce(&mut values, ReduceOp::Sum)?;
            let statistics = rank.stats();
            let (right, left) = ((rank.rank() + 1) % 3, (rank.rank() + 2) % 3);
            let data = (2 * 2 * ELEMENTS * 4 / 3) as u64;
            for (peer, counted) in
                [(right, peer(rank, right).bytes_sent), (left, peer(rank, left).bytes_received)]
            {
                // The headers of 4 segments of a chunk, and one contract.
                assert!((data + 4 * 40..data + 1024).contains(&counted), "{peer}: {counted}");
            }
            assert_eq!(statistics.bytes_sent(), peer(rank, right).bytes_sent);
            assert_eq!(statistics.bytes_received(), peer(rank, left).bytes_received);
            Ok(())
        });
    }
}

#[test]
fn calls_are_counted_by_kind() {
    for (world, transport) in rings(2).into_iter().zip(["memory", "quic"]) {
        each_rank(world, |rank| {
            assert_eq!(rank.stats().calls, []);
            let began = Instant::now();
            for _ in 0..3 {
                rank.all_reduce(&mut [1u8; 7], ReduceOp::Max)?;
            }
            rank.barrier()?;
            let calls = rank.stats().calls;
            let kinds: Vec<_> =
                calls.iter().map(|c| (c.collective, c.algorithm, c.calls)).collect();
            assert_eq!(kinds, [("all_reduce", "ring", 3), ("barrier", "dissemination", 1)]);
            assert!(calls.iter().all(|call| call.transport == transport));
            let time: Duration = calls.iter().map(|call| call.time).sum();
            assert!(!time.is_zero() && time <= began.elapsed(), "{time:?}");
            Ok(())
        });
    }
}

#[test]
fn whoever_came_late_is_blamed_and_nobody_else() {
    for world in rings(3) {
        let gate = Barrier::new(3);
        each_rank(world, |rank| {
            match rank.rank() {
                // Rank 2 sends to rank 0 first, so that is who waits for it.
                0 => {
                    let call = rank.start_all_reduce(vec![1.0f32; 6], ReduceOp::Sum)?;
                    until(|| peer(rank, 1).bytes_sent > 0);
                    gate.wait();
                    gate.wait();
                    call.wait()?;
                    gate.wait();
                    assert!(peer(rank, 2).late.max >= HELD, "{:?}", peer(rank, 2));
                    assert_eq!(peer(rank, 1).late.count, 0);
                }
                1 => {
                    let call = rank.start_all_reduce(vec![1.0f32; 6], ReduceOp::Sum)?;
                    until(|| peer(rank, 0).bytes_received > 0 && peer(rank, 2).bytes_sent > 0);
                    let before = peer(rank, 0).late;
                    gate.wait();
                    gate.wait();
                    call.wait()?;
                    gate.wait();
                    // It waits as long as rank 0, but in what rank 0 sends it only then.
                    assert_eq!(peer(rank, 0).late, before);
                    assert_eq!(peer(rank, 2).late.count, 0);
                }
                _ => {
                    gate.wait();
                    let released = Instant::now();
                    // How late it is, not what the others wait for.
                    std::thread::sleep(HELD);
                    assert!(released.elapsed() >= HELD);
                    gate.wait();
                    rank.all_reduce(&mut [1.0f32; 6], ReduceOp::Sum)?;
                    gate.wait();
                }
            }
            Ok(())
        });
    }
}

#[test]
fn a_long_wait_is_counted_while_it_lasts_and_only_once() {
    for world in rings(3) {
        let gate = Barrier::new(3);
        each_rank(world, |rank| {
            let began = Instant::now();
            if rank.rank() == 2 {
                gate.wait();
                return rank.all_reduce(&mut [1.0f32; 6], ReduceOp::Sum);
            }
            let call = rank.start_all_reduce(vec![1.0f32; 6], ReduceOp::Sum)?;
            if rank.rank() == 0 {
                // Rank 2 has not begun, and is known to be late.
                until(|| peer(rank, 2).late.total > Duration::ZERO);
                assert!(peer(rank, 2).late.total >= Duration::from_secs(1));
            }
            gate.wait();
            call.wait()?;
            let late: Duration = rank.stats().peers.iter().map(|peer| peer.late.total).sum();
            assert!(late <= began.elapsed(), "{late:?}");
            assert!(rank.rank() != 1 || peer(rank, 2).late.total.is_zero());
            Ok(())
        });
    }
}

#[test]
fn links_and_heartbeats_are_measured() {
    each_rank(worlds::over_quic(3), |rank| {
        rank.barrier()?;
        let others = (0..3).filter(|other| *other != rank.rank());
        for other in others {
            assert!(peer(rank, other).rtt.is_some_and(|rtt| rtt < Duration::from_secs(1)));
            until(|| peer(rank, other).heartbeat_age.is_some());
            assert!(peer(rank, other).heartbeat_age.unwrap() < Duration::from_secs(60));
        }
        rank.barrier()
    });
    let memory = Communicator::in_memory(2).unwrap();
    assert_eq!((peer(&memory[0], 1).rtt, peer(&memory[0], 1).heartbeat_age), (None, None));
    assert_eq!(Communicator::single().stats(), allfold::Statistics::default());
}

#[test]
fn links_and_sockets_say_how_they_are() {
    let sockets = std::sync::Mutex::new(vec![None; 2]);
    each_rank(worlds::over_quic(2), |rank| {
        let statistics = rank.stats();
        let [socket] = &statistics.sockets[..] else { panic!("{statistics:?}") };
        assert!(socket.receive_buffer > 0 && socket.receive_buffer <= socket.buffer_asked);
        assert!(socket.send_buffer > 0 && socket.send_buffer <= socket.buffer_asked);
        assert!(socket.dropped.is_some() && socket.sent_at_once > 0 && socket.received_at_once > 0);
        sockets.lock().unwrap()[rank.rank()] = Some(socket.address);
        rank.barrier()?;
        let link = peer(rank, 1 - rank.rank()).link.unwrap();
        assert!(link.remote.ip().is_loopback(), "{link:?}");
        assert!(link.payload >= 1_200 && link.packets_sent > 0, "{link:?}");
        let other = sockets.lock().unwrap()[1 - rank.rank()].unwrap();
        assert_eq!(link.remote.port(), other.port());
        rank.barrier()
    });
    assert!(Communicator::in_memory(2).unwrap()[0].stats().sockets.is_empty());
}

#[test]
fn a_stranger_is_counted_and_does_not_get_in() {
    worlds::stay_quiet();
    let place = free_address();
    let [secret, other] = [(); 2].map(|()| Secret::random().unwrap().to_line());
    let config = |rank, secret: &str| {
        let config = Config::new(rank, 2, &place).unwrap().secret(secret).unwrap();
        config.connect_timeout(Duration::from_secs(60))
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Communicator::connect(config(0, &secret)).unwrap());
        let stranger = Communicator::connect(config(1, &other));
        assert!(matches!(stranger.map_err(|e| e.exit_code()), Err(2 | 75)));
        let second = scope.spawn(|| Communicator::connect(config(1, &secret)).unwrap());
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        let refused = first.stats().refused_connections;
        let of = |reason| refused.iter().find(|count| count.reason == reason).unwrap().count;
        assert!(of("untrusted") >= 1, "{refused:?}");
        assert_eq!(of("running"), 0);
        let ends = [first, second].map(|rank| scope.spawn(|| rank.close()));
        assert!(ends.into_iter().all(|end| end.join().unwrap().is_ok()));
    });
}

#[test]
fn an_abort_is_counted_by_its_reason() {
    each_rank(Communicator::in_memory(2).unwrap(), |rank| {
        let error = match rank.rank() {
            0 => rank.all_reduce(&mut [1u8; 7], ReduceOp::Max).unwrap_err(),
            _ => rank.all_reduce(&mut [1u8; 8], ReduceOp::Max).unwrap_err(),
        };
        assert!(matches!(error.kind(), ErrorKind::Mismatch { .. }), "{error}");
        for abort in rank.stats().aborts {
            assert_eq!(abort.count, u64::from(abort.reason == "mismatch"), "{}", abort.reason);
        }
        Ok(())
    });
}

fn peer(rank: &Communicator, other: usize) -> PeerStatistics {
    let statistics = rank.stats();
    statistics.peers.into_iter().find(|peer| peer.rank == other).unwrap()
}

/// Looks until it is so.
fn until(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < CAP, "not within {CAP:?}");
        std::thread::yield_now();
    }
}

/// Three chunks of one segment each.
const ELEMENTS: usize = 3 * 1000;
/// So late is rank 2.
const HELD: Duration = Duration::from_millis(50);
/// No test waits longer for anything.
const CAP: Duration = Duration::from_secs(60);
