//! One rank of allfold, or of the probe, on the ladder of `allfold_bench::ladder`.

use std::env;
use std::path::PathBuf;

use allfold::probe::SharedSum;
use allfold::{Buffer, Communicator, ReduceOp};
use allfold_bench::ladder::{Ladder, Summing};

/// Runs it; rank 0 prints a row for each size.
pub(crate) fn run(how: &str) {
    let ladder = Ladder {
        sizes: Ladder::sizes(asked(FIRST) as usize, asked(LAST) as usize).collect(),
        budget_us: asked(BUDGET_US),
    };
    if how == "probe" {
        return probe(&ladder);
    }
    // Its threads inherit the core.
    bind_to_core(asked("ALLFOLD_RANK") as usize);
    let world = Communicator::from_env().expect("a launched rank");
    let length = ladder.buffer_bytes(world.size()) / size_of::<f32>();
    let buffer = match how {
        "alloc" => Lies::Shared(world.alloc(length)),
        _ => Lies::Private(vec![0.0; length]),
    };
    climb(&ladder, &mut Rank { world: &world, buffer });
    world.close().expect("the end");
}

fn probe(ladder: &Ladder) {
    let (rank, ranks) = (asked("PEERS_RANK") as usize, asked("PEERS_RANKS") as usize);
    bind_to_core(rank);
    let path = PathBuf::from(env::var_os("PEERS_MEMORY").expect("where the memory is"));
    let bytes = ladder.buffer_bytes(ranks);
    climb(ladder, &mut SharedSum::open(&path, rank, ranks, bytes).expect("the memory"));
}

fn climb(ladder: &Ladder, rank: &mut impl Summing) {
    let is_first = rank.rank() == 0;
    ladder.climb(rank, |row| {
        if is_first {
            println!("{}", row.to_line());
        }
    });
}

struct Rank<'a> {
    world: &'a Communicator,
    buffer: Lies,
}

/// Where the buffer lies.
enum Lies {
    Shared(Buffer<f32>),
    Private(Vec<f32>),
}

impl Summing for Rank<'_> {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn ranks(&self) -> usize {
        self.world.size()
    }

    fn buffer(&mut self) -> &mut [f32] {
        match &mut self.buffer {
            Lies::Shared(buffer) => buffer,
            Lies::Private(buffer) => buffer,
        }
    }

    #[inline]
    fn all_reduce(&mut self, count: usize) {
        let buffer: &mut [f32] = match &mut self.buffer {
            Lies::Shared(buffer) => buffer,
            Lies::Private(buffer) => buffer,
        };
        self.world.all_reduce(&mut buffer[..count], ReduceOp::Sum).expect("an all-reduce");
    }
}

/// With PEERS_BIND, this process to one core of those that it may use; before it has threads.
fn bind_to_core(rank: usize) {
    if asked(BIND) == 0.0 {
        return;
    }
    let allowed = rustix::thread::sched_getaffinity(None).expect("the cores of this process");
    let cores: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let mut own = rustix::thread::CpuSet::new();
    own.set(cores[rank % cores.len()]);
    rustix::thread::sched_setaffinity(None, &own).expect("a core");
}

/// A number in the environment, where `ladder.h` looks as well.
fn asked(name: &str) -> f64 {
    let value = env::var(name).ok().and_then(|text| text.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is no number"))
}

pub(crate) const FIRST: &str = "PEERS_FIRST";
pub(crate) const LAST: &str = "PEERS_LAST";
pub(crate) const BUDGET_US: &str = "PEERS_BUDGET_US";
pub(crate) const BIND: &str = "PEERS_BIND";
