//! Messages between two ranks at their ends: closing with some under way, and peers that are gone.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::sync::Barrier;

use allfold::{Communicator, ErrorKind, Result};
use worlds::{over_quic, results};

fn on_both_links(size: usize, body: impl Fn(Vec<Communicator>)) {
    body(Communicator::in_memory(size).unwrap());
    body(over_quic(size));
}

#[test]
fn closing_waits_for_messages_under_way() {
    on_both_links(2, |world| {
        let late = Barrier::new(2);
        std::thread::scope(|scope| {
            let mut ranks = world.into_iter();
            let (first, second) = (ranks.next().unwrap(), ranks.next().unwrap());
            scope.spawn(|| {
                let sent = first.start_send(vec![7u8; 20_000_000], 1).unwrap();
                let received = first.start_recv(vec![0u8; 5], 1).unwrap();
                drop(sent);
                late.wait();
                first.close().unwrap();
                assert_eq!(received.wait().unwrap(), [3; 5]);
            });
            scope.spawn(|| {
                late.wait();
                let mut buffer = vec![0u8; 20_000_000];
                second.recv(&mut buffer, 0).unwrap();
                assert!(buffer.iter().all(|byte| *byte == 7));
                second.send(&[3u8; 5], 0).unwrap();
                second.close().unwrap();
            });
        });
    });
}

#[test]
fn closing_a_part_waits_for_its_messages() {
    on_both_links(2, |world| {
        for end in results(world, |rank| -> Result<()> {
            let part = rank.split(Some(0), 0)?.unwrap();
            let other = 1 - rank.rank();
            let sent = part.start_send(vec![rank.rank() as u32; 1_000_000], other)?;
            let received = part.start_recv(vec![9u32; 1_000_000], other)?;
            part.close()?;
            assert_eq!(received.wait()?[999_999], other as u32);
            sent.wait().map(|_| ())
        }) {
            end.unwrap();
        }
    });
}

#[test]
fn a_message_to_or_from_a_rank_that_has_closed_is_an_error() {
    for sends in [true, false] {
        on_both_links(2, |world| {
            let mut ranks = world.into_iter();
            let (first, second) = (ranks.next().unwrap(), ranks.next().unwrap());
            std::thread::scope(|scope| {
                // It may hear of the message, and then that is its error too.
                scope.spawn(|| second.close());
                // Before its goodbye comes the call waits for it; after it, it does not begin.
                let end = if sends { first.send(&[1u8], 1) } else { first.recv(&mut [1u8], 1) };
                let end = end.and_then(|()| first.close());
                let error = end.unwrap_err();
                let is_count = matches!(error.kind(), ErrorKind::CallCount { .. });
                assert!(is_count, "{error}");
            });
        });
    }
}

#[test]
fn a_message_to_a_rank_that_has_closed_the_world_but_not_a_part_is_an_error() {
    on_both_links(2, |world| {
        let mut ranks = world.into_iter();
        let (first, second) = (ranks.next().unwrap(), ranks.next().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let part = second.split(Some(0), 0).unwrap().unwrap();
                // The other rank's message ends the world, before this rank closes or after.
                let _ = second.close();
                let _ = part.barrier();
            });
            let part = first.split(Some(0), 0).unwrap().unwrap();
            let end = first.send(&[1u8], 1).and_then(|()| first.close());
            let end = end.and_then(|()| part.barrier());
            let error = end.and_then(|()| part.close()).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::CallCount { .. }), "{error}");
        });
    });
}

#[test]
fn in_a_large_world_a_part_ends_like_in_a_small_one() {
    // Ranks 1 and 4 of twelve have no control link to each other.
    let ends = results(over_quic(12), |rank| -> Result<()> {
        let member = [1, 4].contains(&rank.rank()).then_some(0);
        let part = rank.split(member, 0)?;
        rank.barrier()?;
        let Some(part) = part else { return rank.barrier() };
        part.barrier()?;
        if rank.rank() == 4 {
            part.close()?;
        } else {
            part.barrier()?;
        }
        rank.barrier()
    });
    for end in ends {
        let error = end.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::CallCount { rank: 4, .. }), "{error}");
    }
}

#[test]
fn a_result_is_given_out_once() {
    let world = Communicator::in_memory(2).unwrap();
    results(world, |rank| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut pending = rank.start_barrier().unwrap();
            (&mut pending).await.unwrap();
            let error = pending.wait().unwrap_err();
            assert!(error.to_string().contains("taken already"), "{error}");
        });
    });
}
