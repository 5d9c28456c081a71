//! A process that makes and drops a thousand communicators is as it was before.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};
use worlds::{in_shared_memory, over_quic, stay_quiet};

/// The system's allocator, counting the bytes that are in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

// The only test of this file: what it counts is the process's.
#[test]
fn a_thousand_communicators_leave_nothing_behind() {
    stay_quiet();
    keep_little_that_is_free();
    let threads = Counts::now().threads;
    // A third of the worlds ends by a panic; those of this thread are the test's own.
    let test = std::thread::current().id();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == test {
            hook(info);
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
    println!("before: {before:?}\nafter:  {after:?}");
    assert!(after.in_use <= before.in_use + IN_USE_MORE, "memory in use: {before:?} {after:?}");
    assert!(after.resident <= before.resident + RESIDENT, "memory: {before:?} {after:?}");
}

/// Two communicators: two in three worlds end well, one in three by an error or a panic.
fn one_world(number: usize) {
    let results: Vec<bool> = std::thread::scope(|scope| {
        let run = |rank: Communicator| scope.spawn(move || one_rank(rank, number));
        let threads: Vec<_> = world(number).into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ends_well = !number.is_multiple_of(3);
    assert!(results.iter().all(|well| *well == ends_well), "world {number}: {results:?}");
}

/// In memory that the ranks share, and over QUIC: in turn six of each.
fn world(number: usize) -> Vec<Communicator> {
    if (number / 6).is_multiple_of(2) { in_shared_memory(RANKS) } else { over_quic(RANKS) }
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
            assert!(!is_first, "told to");
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
    in_use: usize,
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
                give_free_memory_back();
                return Self::now();
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
            in_use: IN_USE.load(Ordering::Relaxed),
            resident: kibibytes * 1024,
        }
    }
}

/// The system's allocator makes up to eight arenas for each core, each keeps up to 64 MiB at its end
/// for the next thread, and how much of that is resident is chance.
fn keep_little_that_is_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets numbers of the allocator's, as its manual page says.
    unsafe {
        mallopt(M_ARENA_MAX, 1);
        mallopt(M_TRIM_THRESHOLD, 128 * 1024);
    }
}

/// What is resident afterwards is in use, or not the allocator's.
fn give_free_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it unmaps pages of the allocator's that nobody holds.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    fn mallopt(parameter: i32, value: i32) -> i32;
    fn malloc_trim(pad: usize) -> i32;
}

/// Of glibc's malloc.h.
#[cfg(target_env = "gnu")]
const M_ARENA_MAX: i32 = -8;
/// As above.
#[cfg(target_env = "gnu")]
const M_TRIM_THRESHOLD: i32 = -1;

const RANKS: usize = 2;
const COMMUNICATORS: usize = 1000;
const WARM_UP: usize = 60;
/// A cap, for a busy machine.
const SETTLING: Duration = Duration::from_secs(15);
/// The allocator may map another arena: two each. Stacks and ring buffers left behind would be
/// hundreds.
const MAPPINGS: usize = 16;
/// Measured: not one byte. What the test's own thread reads of /proc may be longer.
const IN_USE_MORE: usize = 4096;
/// It also holds what the cryptography allocates past the count above: 8 KiB for each communicator
/// would show (measured: 0.04 to 0.6 MB in all). Without glibc's calls above, free memory counts.
const RESIDENT: usize = COMMUNICATORS << if cfg!(target_env = "gnu") { 13 } else { 17 };
