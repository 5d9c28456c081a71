//! Ranks as threads, each with mappings of its own of all arenas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::host_memory::{ARENA_BYTES, HostMemory};
use crate::reduce::{ElementType, Kernel, ReduceOp};

/// Waits until the test says that the world is over.
struct Until<'a> {
    over: &'a AtomicBool,
    waits: u32,
}

impl Patience for Until<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn waits(&mut self, _: usize, _: bool) {
        self.waits += 1;
    }

    fn came(&mut self, _: usize) {}
}

static NEVER: AtomicBool = AtomicBool::new(false);

fn patience() -> Until<'static> {
    Until { over: &NEVER, waits: 0 }
}

/// The whole world's communicator, on each rank.
fn world(ranks: u32) -> Vec<Shared> {
    memories(ranks).iter().map(|memory| whole(memory, ranks)).collect()
}

fn whole(memory: &Arc<HostMemory>, ranks: u32) -> Shared {
    let slots: Vec<(u32, u32)> = (0..ranks).map(|rank| (rank, 0)).collect();
    memory.communicator(&slots).unwrap()
}

/// What each rank has of its host.
fn memories(ranks: u32) -> Vec<Arc<HostMemory>> {
    let arenas: Vec<Arc<Arena>> =
        (0..ranks).map(|_| Arc::new(Arena::new(ARENA_BYTES).unwrap())).collect();
    let attach = |own: u32| {
        let others = (0..ranks).filter(|rank| *rank != own);
        let map = |rank: u32| Attached::new(arenas[rank as usize].file(), ARENA_BYTES).unwrap();
        let others = others.map(|rank| (rank, map(rank))).collect();
        let has_own_core = crate::cores::suffice_beside(&vec![None; ranks as usize - 1]);
        Arc::new(HostMemory::new(own, arenas[own as usize].clone(), others, has_own_core))
    };
    (0..ranks).map(attach).collect()
}

/// A sum of all ranks, which meet in one memory.
fn all(element: ElementType, op: ReduceOp, ranks: u32) -> Sum {
    Sum { element, op, ranks, is_all: true }
}

/// `((r0 + r1) + r2) + ...`
fn expected(sum: Sum, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut total = inputs[0].clone();
    for (rank, input) in inputs.iter().enumerate().skip(1) {
        let kernel = Kernel {
            element: sum.element,
            op: sum.op,
            ranks: sum.ranks,
            incoming_raw: true,
            local_raw: rank == 1,
            last: rank + 1 == inputs.len(),
        };
        kernel.combine(&mut total, input);
    }
    total
}

/// Runs the calls on all ranks; each rank's buffers afterwards.
fn run(world: Vec<Shared>, calls: &[(Sum, Vec<Vec<u8>>)]) -> Vec<Vec<Vec<u8>>> {
    std::thread::scope(|scope| {
        let rank = |(rank, mut shared): (usize, Shared)| {
            scope.spawn(move || {
                let call = |(number, (sum, inputs)): (usize, &(Sum, Vec<Vec<u8>>))| {
                    let mut buffer = inputs[rank].clone();
                    let id = number as u64 * 7;
                    let done = shared.all_reduce(id, *sum, &mut buffer, &mut patience());
                    assert!(done.is_ok());
                    buffer
                };
                calls.iter().enumerate().map(call).collect()
            })
        };
        let ranks: Vec<_> = world.into_iter().enumerate().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = crate::simulation::Random::new(seed);
    (0..length.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).take(length).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn all_ranks_hold_the_bits_of_the_sum_in_rank_order(
        ranks in 2u32..=6,
        calls in prop::collection::vec(
            (
                prop::sample::select(ElementType::ALL),
                prop::sample::select(ReduceOp::ALL),
                prop_oneof![0usize..20, 20usize..5_000, 5_000usize..400_000],
                any::<u64>(),
            ),
            1..8,
        ),
    ) {
        let calls: Vec<(Sum, Vec<Vec<u8>>)> = calls
            .into_iter()
            .map(|(element, op, count, seed)| {
                let length = count.min(1_500_000 / element.size()) * element.size();
                let input = |rank| random_bytes(seed ^ u64::from(rank), length);
                (all(element, op, ranks), (0..ranks).map(input).collect())
            })
            .collect();
        let results = run(world(ranks), &calls);
        for (number, (sum, inputs)) in calls.iter().enumerate() {
            let want = expected(*sum, inputs);
            for (rank, buffers) in results.iter().enumerate() {
                prop_assert!(buffers[number] == want, "call {number}, rank {rank}: {sum:?}");
            }
        }
    }
}

#[test]
fn many_calls_of_all_sizes_in_a_row_agree() {
    let sizes = [0usize, 4, 48, 52, 1_000, 16_384, 16_388, 262_144, 300_000, 1_048_576];
    let sum = all(ElementType::I32, ReduceOp::Sum, 3);
    let calls: Vec<(Sum, Vec<Vec<u8>>)> = (0..300)
        .map(|number: u64| {
            let length = sizes[(number * 7 % 10) as usize];
            (sum, (0..3).map(|rank| random_bytes(number * 3 + rank, length)).collect())
        })
        .collect();
    let results = run(world(3), &calls);
    for (number, (sum, inputs)) in calls.iter().enumerate() {
        let want = expected(*sum, inputs);
        assert!(results.iter().all(|buffers| buffers[number] == want), "call {number}");
    }
}

#[test]
fn buffers_that_lie_in_shared_memory_are_added_up_where_they_lie() {
    let sum = all(ElementType::U32, ReduceOp::Sum, 4);
    // Which of the ranks give a buffer that the others see.
    for shares in [[true, true, true, true], [true, false, true, false], [false, true, true, true]]
    {
        for length in [4usize, 16_384, 16_388, 100_000, 600_000, 1_048_580] {
            let inputs: Vec<Vec<u8>> =
                (0..4).map(|rank| random_bytes(rank + length as u64, length)).collect();
            let want = expected(sum, &inputs);
            std::thread::scope(|scope| {
                for (rank, memory) in memories(4).into_iter().enumerate() {
                    let (inputs, want) = (&inputs, &want);
                    scope.spawn(move || {
                        let mut shared = whole(&memory, 4);
                        let (part, start) = memory.take(length).unwrap();
                        let mut plain = vec![0; length];
                        let buffer = match shares[rank] {
                            // SAFETY: the part is this rank's alone.
                            true => unsafe {
                                std::slice::from_raw_parts_mut(start.as_ptr(), length)
                            },
                            false => &mut plain[..],
                        };
                        assert!(buffer.iter().all(|byte| *byte == 0));
                        for call in 0..3 {
                            buffer.copy_from_slice(&inputs[rank]);
                            let done = shared.all_reduce(call, sum, buffer, &mut patience());
                            assert!(done.is_ok() && *buffer == want[..], "rank {rank}, {length}");
                        }
                        memory.give(part);
                    });
                }
            });
        }
    }
}

#[test]
fn the_parts_of_a_host_are_its_sums_and_come_to_all() {
    // In between each owner changes its part, as a sum with other hosts does.
    for (ranks, parts) in [(2, 1), (2, 2), (3, 2), (4, 4)] {
        for length in [0usize, 4, 100, 4_096, 100_000, 1_048_580] {
            let sum = Sum { is_all: false, ..all(ElementType::U32, ReduceOp::Sum, 9) };
            let inputs: Vec<Vec<u8>> =
                (0..ranks).map(|rank| random_bytes(rank + length as u64, length)).collect();
            let mut want = expected(all(ElementType::U32, ReduceOp::Sum, 9), &inputs);
            want.iter_mut().for_each(|byte| *byte ^= 0x55);
            std::thread::scope(|scope| {
                for (rank, memory) in memories(ranks as u32).into_iter().enumerate() {
                    let (inputs, want) = (&inputs, &want);
                    scope.spawn(move || {
                        let mut shared = whole(&memory, ranks as u32);
                        // One rank's buffer lies where the others see it.
                        let (part, start) = memory.take(length.max(1)).unwrap();
                        let mut plain = vec![0; length];
                        let buffer = match rank {
                            // SAFETY: the part is this rank's alone.
                            0 => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) },
                            _ => &mut plain[..],
                        };
                        for call in 0..3 {
                            buffer.copy_from_slice(&inputs[rank]);
                            let id = call;
                            let done = shared.reduce_parts(id, sum, parts, buffer, &mut patience());
                            assert!(done.is_ok());
                            let own = crate::plan::part(length as u64, parts as u64, rank as u64);
                            let own = &mut buffer[own.start as usize..own.end as usize];
                            own.iter_mut().for_each(|byte| *byte ^= 0x55);
                            let done = shared.gather_parts(id, sum, parts, buffer, &mut patience());
                            assert!(done.is_ok() && *buffer == want[..], "rank {rank}, {length}");
                        }
                        memory.give(part);
                    });
                }
            });
        }
    }
}

#[test]
fn a_private_buffer_keeps_its_contents_and_hears_nobody() {
    let memories = memories(2);
    let (part, own) = memories[0].take(100_000).unwrap();
    let theirs = memories[1].seen(0, part.start, part.len());
    // SAFETY: both are mapped, and this is the only thread.
    unsafe {
        own.as_ptr().write_bytes(7, 100_000);
        assert_eq!(*theirs.add(99_999), 7);
        memories[0].make_private(std::slice::from_raw_parts(own.as_ptr(), 100_000));
        assert_eq!(*own.as_ptr().add(99_999), 7);
        theirs.write_bytes(9, 100_000);
        assert_eq!(*own.as_ptr().add(99_999), 7);
        own.as_ptr().write_bytes(8, 100_000);
        assert_eq!(*theirs, 9);
    }
    assert!(memories[0].take(1).is_none(), "nothing is shared any more");
    memories[0].give(part);
}

#[test]
fn a_rank_that_does_not_come_is_waited_for_until_the_world_is_over() {
    let over = AtomicBool::new(false);
    let looks = AtomicU32::new(0);
    let mut first = world(2).remove(0);
    std::thread::scope(|scope| {
        let (over, looks) = (&over, &looks);
        let waits = scope.spawn(move || {
            struct Ends<'a>(&'a AtomicBool, &'a AtomicU32);
            impl Patience for Ends<'_> {
                fn is_over(&self) -> bool {
                    self.0.load(Ordering::Relaxed)
                }
                fn waits(&mut self, peer: usize, to_come: bool) {
                    assert_eq!((peer, to_come), (1, true));
                    // The third look finds the verdict.
                    if self.1.fetch_add(1, Ordering::Relaxed) == 2 {
                        self.0.store(true, Ordering::Relaxed);
                    }
                }
                fn came(&mut self, _: usize) {}
            }
            let sum = all(ElementType::F32, ReduceOp::Sum, 2);
            let mut buffer = vec![0; 100];
            first.all_reduce(0, sum, &mut buffer, &mut Ends(over, looks))
        });
        assert!(matches!(waits.join().unwrap(), Err(Stop::Over)));
    });
    assert!(looks.into_inner() >= 3);
}

#[test]
fn ranks_that_differ_hear_what_the_other_calls() {
    let results: Vec<(usize, Vec<u8>)> = std::thread::scope(|scope| {
        let rank = |(rank, mut shared): (usize, Shared)| {
            scope.spawn(move || {
                let sum = all(ElementType::F32, ReduceOp::Sum, 2);
                // Other lengths, so that each meets the other in its own way.
                let mut buffer = vec![0; [40, 100_000][rank]];
                let hash = [11, 22][rank];
                match shared.all_reduce(hash, sum, &mut buffer, &mut patience()) {
                    Err(Stop::Differs(other)) => {
                        let own = format!("this is rank {rank}").into_bytes();
                        let words = shared.explain(0, &own, other, &mut patience());
                        (other, words.ok().flatten().unwrap_or_default())
                    }
                    _ => panic!("no difference on rank {rank}"),
                }
            })
        };
        let ranks: Vec<_> = world(2).into_iter().enumerate().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert_eq!(results[0], (1, b"this is rank 1".to_vec()));
    assert_eq!(results[1], (0, b"this is rank 0".to_vec()));
}

#[test]
fn only_memory_that_cannot_shrink_is_mapped() {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    let file = memfd_create("t", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, 4096).unwrap();
    assert!(Attached::new(&file, 4096).is_err());
    let arena = Arena::new(4096).unwrap();
    assert!(Attached::new(arena.file(), 8192).is_err());
    assert!(Attached::new(arena.file(), 4096).is_ok());
    assert!(ftruncate(arena.file(), 0).is_err());
}

#[test]
fn memory_is_made_where_none_may_be_executed() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_get_seals, fstat, memfd_create};
    let arena = Arena::new(4096).unwrap();
    // Before Linux 6.3 the system cannot be asked for that.
    if memfd_create("t", MemfdFlags::NOEXEC_SEAL).is_err() {
        eprintln!("skipped: memory_is_made_where_none_may_be_executed: no MFD_NOEXEC_SEAL");
        return;
    }
    assert_eq!(fstat(arena.file()).unwrap().st_mode & 0o111, 0);
    assert!(fcntl_get_seals(arena.file()).unwrap().contains(SealFlags::EXEC));
    assert!(Attached::new(arena.file(), 4096).is_ok());
}
