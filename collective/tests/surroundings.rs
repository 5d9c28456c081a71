//! allfold is called from wherever programs live: plain threads, both flavours of tokio, rayon.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use allfold::{Communicator, ReduceOp};
use worlds::{in_shared_memory, over_quic};

/// Connects nothing itself: makes a call and drops the communicator where it is called.
fn use_and_drop(world: Communicator) {
    let mut buffer = [1.0f32; 1000];
    world.all_reduce(&mut buffer, ReduceOp::Sum).unwrap();
    assert_eq!(buffer, [world.size() as f32; 1000]);
    drop(world);
}

/// Calls by way of a lane's thread, and on the caller's own.
fn both() -> [Vec<Communicator>; 2] {
    [over_quic(2), in_shared_memory(2)]
}

#[test]
fn from_plain_threads() {
    for world in both() {
        let threads: Vec<_> =
            world.into_iter().map(|rank| std::thread::spawn(|| use_and_drop(rank))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn from_inside_a_current_thread_runtime() {
    // One runtime a rank: a blocking call blocks its runtime's only thread.
    let rank = |world| {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { use_and_drop(world) });
        })
    };
    for world in both() {
        let threads: Vec<_> = world.into_iter().map(rank).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn from_inside_a_multi_thread_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        for world in both() {
            let tasks: Vec<_> =
                world.into_iter().map(|rank| tokio::spawn(async { use_and_drop(rank) })).collect();
            for task in tasks {
                task.await.unwrap();
            }
        }
    });
}

#[test]
fn from_a_rayon_pool() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for world in both() {
        pool.scope(|scope| {
            for rank in world {
                scope.spawn(|_| use_and_drop(rank));
            }
        });
    }
}

#[test]
fn connecting_inside_a_runtime_works_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for world in both() {
            std::thread::scope(|scope| {
                for rank in world {
                    scope.spawn(|| use_and_drop(rank));
                }
            });
        }
    });
}
