//! A process that makes and drops a thousand communicators is as it was before.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};
use worlds::{over_quic, stay_quiet};

// The only test of this file: what it counts is the process's.
#[test]
fn a_thousand_communicators_leave_nothing_behind() {
    stay_quiet();
    let threads = Counts::now().threads;
    std::panic::set_hook(Box::new(|panic| {
        if panic.payload().downcast_ref() != Some(&TOLD_TO) {
            eprintln!("{panic}");
        }
    }));
    // The allocator's arenas, the providers' tables and the thread-locals are there afterwards.
    (0..WARM_UP).for_each(one_world);
    let before = Counts::settled(threads, None);
    (0..COMMUNICATORS / RANKS).for_each(one_world);
    let after = Counts::settled(threads, Some(before.descriptors));
    assert_eq!(after.descriptors, before.descriptors, "descriptors: {before:?} {after:?}");
    assert_eq!(after.threads, before.threads, "threads: {before:?} {after:?}");
    assert!(after.mappings <= before.mappings + MAPPINGS, "mappings: {before:?} {after:?}");
    assert!(after.resident <= before.resident + RESIDENT, "memory: {before:?} {after:?}");
}

/// Two communicators: two in three worlds end well, one in three by an error or a panic.
fn one_world(number: usize) {
    let results: Vec<bool> = std::thread::scope(|scope| {
        let run = |rank: Communicator| scope.spawn(move || one_rank(rank, number));
        let threads: Vec<_> = over_quic(RANKS).into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ends_well = !number.is_multiple_of(3);
    assert!(results.iter().all(|well| *well == ends_well), "world {number}: {results:?}");
}

/// Whether the rank's calls and its end went well.
fn one_rank(world: Communicator, number: usize) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let world = world;
        let is_first = world.rank() == 0;
        // Other lengths are a mismatch.
        let odd = usize::from(number % 6 == 3 && is_first);
        let mut buffer = vec![1.0f32; 30_000 + odd];
        let summed = world.all_reduce(&mut buffer, ReduceOp::Sum);
        if number.is_multiple_of(6) {
            if is_first {
                std::panic::panic_any(TOLD_TO);
            }
            return world.barrier().is_ok();
        }
        let outstanding = world.start_all_reduce(buffer, ReduceOp::Sum);
        drop(outstanding);
        let closed = world.close();
        summed.is_ok() && closed.is_ok()
    }));
    outcome.unwrap_or(false)
}

/// What /proc/self says.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    resident: usize,
}

impl Counts {
    /// Threads that have been joined are gone from /proc a moment later, and the one that writes
    /// warnings when it has had nothing to write for a second.
    fn settled(threads: usize, descriptors: Option<usize>) -> Self {
        let began = Instant::now();
        loop {
            let counts = Self::now();
            let is_settled = counts.threads == threads
                && descriptors.is_none_or(|descriptors| descriptors == counts.descriptors);
            if is_settled || began.elapsed() > SETTLING {
                return counts;
            }
            std::thread::yield_now();
        }
    }

    fn now() -> Self {
        let entries = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
        let text = |what: &str| std::fs::read_to_string(format!("/proc/self/{what}")).unwrap();
        let status = text("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kibibytes = resident.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap();
        Self {
            descriptors: entries("fd"),
            threads: entries("task"),
            mappings: text("maps").lines().count(),
            resident: kibibytes * 1024,
        }
    }
}

const TOLD_TO: &str = "told to";
const RANKS: usize = 2;
const COMMUNICATORS: usize = 1000;
const WARM_UP: usize = 60;
/// A cap, for a busy machine.
const SETTLING: Duration = Duration::from_secs(15);
/// The allocator splits and joins its arenas; a thread's stack or a ring buffer left behind by each
/// would be hundreds.
const MAPPINGS: usize = 40;
/// The allocator's fragments: its arenas go up and down by some 40 MiB, after four thousand as after
/// one thousand. What a communicator holds is more than a thousandth of this: its receive buffers
/// alone are megabytes.
const RESIDENT: usize = 64 << 20;
