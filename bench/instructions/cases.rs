//! What is counted.

use std::hint::black_box;

use allfold::{Communicator, Element, ReduceOp, Reducible, bf16, f16, probe};

/// Something that is done so often.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) times: u64,
    /// Of which the median counts.
    pub(crate) runs: usize,
}

impl Case {
    const fn exact(name: &'static str) -> Self {
        Self { name, times: 20, runs: 1 }
    }
}

/// Does it.
pub(crate) fn run(name: &str, times: u64) {
    match name {
        SEGMENTS => assert_eq!(probe::segment_headers(times), times),
        CALLS => assert_eq!(probe::call_headers(times), times),
        SMALL => all_reduce(4, times),
        LARGE => all_reduce(256 << 10, times),
        _ => {
            let mut words = name.trim_end_matches(", 64 KiB").split(' ').skip(1);
            let (element, op) =
                (words.next().expect("a type"), words.next().expect("an operation"));
            let op = match op {
                "sum" => ReduceOp::Sum,
                "max" => ReduceOp::Max,
                "avg" => ReduceOp::Avg,
                other => panic!("{other}"),
            };
            match element {
                "f32" => kernel::<f32>(op, times),
                "f64" => kernel::<f64>(op, times),
                "i32" => kernel::<i32>(op, times),
                "i8" => kernel::<i8>(op, times),
                "f16" => kernel::<f16>(op, times),
                "bf16" => kernel::<bf16>(op, times),
                other => panic!("{other}"),
            }
        }
    }
}

fn kernel<T: Element + Reducible>(op: ReduceOp, times: u64) {
    let (mut local, incoming) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    for _ in 0..times {
        probe::combine::<T>(&mut local, black_box(&incoming), op).expect("whole elements");
    }
    black_box(local);
}

/// Two ranks of this process, over memory links.
fn all_reduce(bytes: usize, times: u64) {
    let worlds = Communicator::in_memory(2).expect("two ranks");
    std::thread::scope(|scope| {
        for world in worlds {
            scope.spawn(move || {
                let mut buffer = vec![0f32; bytes / size_of::<f32>()];
                for _ in 0..times {
                    world.all_reduce(&mut buffer, ReduceOp::Sum).expect("an all-reduce");
                }
                world.close().expect("the end");
            });
        }
    });
}

/// The instruction sets by which kernels are chosen.
pub(crate) fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("sse4.2", is_x86_feature_detected!("sse4.2")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
        ];
        let there = all.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name);
        format!("x86_64 {}", there.collect::<Vec<_>>().join(" "))
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.into()
}

/// In the order of the table.
pub(crate) const CASES: &[Case] = &[
    Case::exact("kernel f32 sum, 64 KiB"),
    Case::exact("kernel f32 max, 64 KiB"),
    Case::exact("kernel f64 sum, 64 KiB"),
    Case::exact("kernel i32 sum, 64 KiB"),
    Case::exact("kernel i8 sum, 64 KiB"),
    Case::exact("kernel f16 sum, 64 KiB"),
    Case::exact("kernel bf16 sum, 64 KiB"),
    Case::exact("kernel bf16 avg, 64 KiB"),
    Case { name: SEGMENTS, times: 1000, runs: 1 },
    Case { name: CALLS, times: 1000, runs: 1 },
    Case { name: SMALL, times: 1000, runs: 5 },
    Case { name: LARGE, times: 200, runs: 3 },
];
const SEGMENTS: &str = "header of a segment, written and read";
const CALLS: &str = "header and contract of a call, rolled, written and read";
const SMALL: &str = "all-reduce, 2 ranks, memory links, 4 bytes";
const LARGE: &str = "all-reduce, 2 ranks, memory links, 256 KiB";
