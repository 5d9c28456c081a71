//! In steady state nothing is allocated per segment: not by the plan, the machine, the lane or
//! the link within a process.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use allfold::{Communicator, InMemory, ReduceOp};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test, because all tests of a process share the count.
#[test]
fn a_long_call_allocates_as_often_as_a_short_one() {
    for algorithm in ["ring", "tree", "recursive-doubling", "halving-doubling"] {
        for size in [2, 3] {
            let world = InMemory::new(size).unwrap().algorithm(algorithm).unwrap();
            let (few, many) = fewest(world.start().unwrap());
            println!("{algorithm} of {size}: {few} for {FEW} segments, {many} for {MANY}");
            assert!(
                many <= few + SLACK,
                "{algorithm} of {size} ranks: {few} allocations for {FEW} segments, {many} for {MANY}"
            );
        }
    }
}

/// How often all threads allocate in a call of few, and in one of many segments: the fewest of
/// some calls, because at first the pools fill with as many buffers as can be on their way, and
/// now and then ranks tell each other how far they are. A call that allocated for each of its
/// segments would never be as cheap as a short one.
fn fewest(world: Vec<Communicator>) -> (usize, usize) {
    let gate = Barrier::new(world.len());
    let enough = AtomicBool::new(false);
    let ranks = world.iter().map(|rank| {
        let (gate, enough) = (&gate, &enough);
        move || {
            let mut fewest = [usize::MAX; 2];
            let mut buffer = vec![1u32; MANY * SEGMENT];
            for attempt in 0..MOST_ATTEMPTS {
                for (fewest, segments) in fewest.iter_mut().zip([FEW, MANY]) {
                    gate.wait();
                    let before = ALLOCATIONS.load(Ordering::SeqCst);
                    rank.all_reduce(&mut buffer[..segments * SEGMENT], ReduceOp::Max).unwrap();
                    gate.wait();
                    *fewest = (*fewest).min(ALLOCATIONS.load(Ordering::SeqCst) - before);
                }
                if rank.rank() == 0 && attempt >= LEAST_ATTEMPTS && fewest[1] <= fewest[0] + SLACK {
                    enough.store(true, Ordering::SeqCst);
                }
                gate.wait();
                if enough.load(Ordering::SeqCst) {
                    break;
                }
            }
            (fewest[0], fewest[1])
        }
    });
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks.map(|rank| scope.spawn(rank)).collect();
        let counts: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        counts[0]
    })
}

/// Elements of a segment of 63 KiB.
const SEGMENT: usize = 63 * 256;
const FEW: usize = 10;
const MANY: usize = 400;
const LEAST_ATTEMPTS: usize = 4;
/// A pool holds at most 128 buffers of a segment, and every long call adds some until it does.
const MOST_ATTEMPTS: usize = 120;
/// For what the ranks tell each other four times a second, on a machine that is busy; one for each
/// of the segments would be ten times as many.
const SLACK: usize = 40;
