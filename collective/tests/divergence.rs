//! Whole programs: random sequences of collectives on several communicators, made alike by all
//! ranks or, at random, not. Never Ok with wrong data, never a hang.
//!
//! What a rank gives to a call depends on the call's shape alone, so that any call that ends well
//! has one right result, also if it was matched with another call of the same shape.
//!
//! A failing seed is printed; `ALLFOLD_SEED=N cargo test -p allfold --test divergence` replays it.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use std::time::Duration;

use allfold::{Communicator, Error, ErrorKind, InMemory, ReduceOp, Result};
use worlds::{connect_all, results};

#[test]
fn programs_without_divergence_are_right() {
    for_seeds(0..150, |seed| {
        let mut random = Random(seed);
        let program = Program::draw(&mut random);
        let programs = vec![program.clone(); program.ranks];
        for (rank, end) in run(&programs, seed, false).into_iter().enumerate() {
            assert!(end.is_ok(), "seed {seed}, rank {rank}: {}", end.unwrap_err());
        }
    });
}

#[test]
fn divergence_is_an_error_and_never_a_wrong_result() {
    for_seeds(1000..1400, |seed| diverge(seed, false));
}

#[test]
fn divergence_over_quic_is_an_error_and_never_a_wrong_result() {
    for_seeds(2000..2040, |seed| diverge(seed, true));
}

fn diverge(seed: u64, quic: bool) {
    let mut random = Random(seed);
    let program = Program::draw(&mut random);
    let mut programs = vec![program.clone(); program.ranks];
    let culprit = random.below(program.ranks);
    let kind = programs[culprit].diverge(&mut random);
    let differs = programs[culprit].differs_from(&program, culprit);
    let ends = run(&programs, seed, quic);
    let errors: Vec<&Error> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    for error in &errors {
        let kind = error.kind();
        let is_typed = matches!(
            kind,
            ErrorKind::Mismatch { .. } | ErrorKind::CallCount { .. } | ErrorKind::Deadlock { .. }
        );
        assert!(is_typed, "seed {seed}, {kind:?}: {error}");
    }
    let is_found = !errors.is_empty() || !differs;
    assert!(is_found, "seed {seed}, {kind} on rank {culprit} was not found");
    let deadlocks = |e: &&Error| matches!(e.kind(), ErrorKind::Deadlock { .. });
    let is_fair = differs || errors.iter().all(deadlocks);
    assert!(is_fair, "seed {seed}, {kind} on rank {culprit} is none: {errors:?}");
    // Each rank shows a pair of calls that differ; the one that diverged is always in it.
    for error in errors.iter().filter(|e| matches!(e.kind(), ErrorKind::Mismatch { .. })) {
        let side = format!("rank {culprit} called");
        assert!(error.to_string().contains(&side), "seed {seed}, {kind}: `{side}` not in: {error}");
    }
}

/// Runs each rank's program to its end, or to its first error.
fn run(programs: &[Program], seed: u64, quic: bool) -> Vec<Result<()>> {
    let soon = Duration::from_millis(150);
    let size = programs.len();
    let name =
        ["auto", "ring", "tree", "recursive-doubling", "halving-doubling"][seed as usize % 5];
    let world: Vec<Communicator> = match quic {
        false => {
            let world = InMemory::new(size).unwrap().late_after(soon).algorithm(name).unwrap();
            let world = match [1, 2, 3][seed as usize / 5 % 3] {
                1 => world,
                // Most calls are cut.
                lanes => world.lanes(lanes).unwrap().pieces(16, 32),
            };
            world.start().unwrap()
        }
        true => {
            let connected =
                connect_all(size, |config| config.late_after(soon).algorithm(name).unwrap());
            connected.into_iter().map(|rank| rank.unwrap()).collect()
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = world
            .into_iter()
            .zip(programs)
            .map(|(rank, program)| scope.spawn(move || program.run(rank, seed)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[derive(Clone, Debug, PartialEq)]
struct Program {
    ranks: usize,
    calls: Vec<Call>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Call {
    /// 0 the world, 1 a copy of it, 2 every second rank.
    communicator: usize,
    kind: usize,
    op: usize,
    count: usize,
    /// Among the ranks of the communicator, once taken modulo their number.
    root: usize,
    label: Option<u64>,
    /// Waited for at the end.
    started: bool,
}

const COLLECTIVES: usize = 10;
const OPS: [ReduceOp; 3] = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min];

impl Program {
    fn draw(random: &mut Random) -> Self {
        let ranks = 2 + random.below(4);
        let length = 1 + random.below(12);
        let calls = (0..length).map(|_| Call::draw(random)).collect();
        Self { ranks, calls }
    }

    /// Changes one thing; says what.
    fn diverge(&mut self, random: &mut Random) -> &'static str {
        let at = random.below(self.calls.len());
        let call = &mut self.calls[at];
        match random.below(8) {
            0 => {
                self.calls.remove(at);
                "a skipped call"
            }
            1 => {
                let again = self.calls[at];
                self.calls.insert(at, again);
                "a call made twice"
            }
            2 => {
                call.count += 1;
                "another count"
            }
            3 => {
                call.root += 1;
                "another root"
            }
            4 => {
                call.op = (call.op + 1) % OPS.len();
                "another operation"
            }
            5 => {
                call.label = Some(call.label.map_or(7, |label| label + 1));
                "another label"
            }
            6 => {
                call.kind = (call.kind + 1) % COLLECTIVES;
                "another collective"
            }
            _ => {
                let other = (at + 1) % self.calls.len();
                self.calls.swap(at, other);
                "two calls swapped"
            }
        }
    }

    /// Whether the sequence of calls on any communicator differs. Where only the order between
    /// communicators does, it may go well or be a deadlock.
    fn differs_from(&self, other: &Self, rank: usize) -> bool {
        let sequence = |program: &Self, communicator| -> Vec<_> {
            let half = (0..self.ranks).filter(|other| other % 2 == rank % 2).count();
            let size = if communicator == 2 { half } else { self.ranks };
            // Alone it can disagree with nobody.
            if size == 1 {
                return Vec::new();
            }
            let calls = program.calls.iter().filter(|call| call.communicator == communicator);
            calls.map(|call| call.shape(size)).collect()
        };
        (0..3).any(|communicator| sequence(self, communicator) != sequence(other, communicator))
    }

    fn run(&self, world: Communicator, seed: u64) -> Result<()> {
        let copy = world.split(Some(0), 0)?.unwrap();
        let half = world.split(Some((world.rank() % 2) as u32), 0)?.unwrap();
        let communicators = [&world, &copy, &half];
        // Until a thread has used a communicator, any other might: no deadlock is certain.
        copy.barrier()?;
        half.barrier()?;
        let mut pending = Vec::new();
        for (index, call) in self.calls.iter().enumerate() {
            let communicator = communicators[call.communicator];
            if call.started && call.kind == 0 {
                let shape = call.shape(communicator.size());
                let started = match call.label {
                    Some(label) => communicator
                        .labelled(label)
                        .start_all_reduce(call.input(communicator.rank(), &shape), OPS[call.op]),
                    None => communicator
                        .start_all_reduce(call.input(communicator.rank(), &shape), OPS[call.op]),
                };
                pending.push((started?, call, communicator));
            } else {
                call.make(communicator).inspect_err(|error| {
                    assert!(!error.is_communicator_usable(), "seed {seed}, call {index}: {error}");
                })?;
            }
        }
        for (started, call, communicator) in pending {
            let buffer = started.wait()?;
            call.check_reduced(communicator, &buffer);
        }
        half.close()?;
        copy.close()?;
        world.close()
    }
}

impl Call {
    fn draw(random: &mut Random) -> Self {
        let kind = random.below(COLLECTIVES);
        Self {
            communicator: random.below(3),
            kind,
            op: random.below(OPS.len()),
            count: [0, 1, 2, 3, 64, 5_000, 40_000][random.below(7)],
            root: random.below(6),
            label: (random.below(2) == 0).then(|| random.below(1000) as u64),
            started: random.below(3) == 0,
        }
    }

    /// What the ranks must agree on: only what this kind of call has.
    fn shape(&self, size: usize) -> Vec<u64> {
        let has_root = (5..9).contains(&self.kind);
        let has_op = [0, 1, 7].contains(&self.kind);
        vec![
            self.communicator as u64,
            self.kind as u64,
            if has_op { self.op as u64 } else { 9 },
            if self.kind == 9 { 0 } else { self.count as u64 },
            if has_root { (self.root % size) as u64 } else { 9 },
            self.label.map_or(0, |label| label + 1),
        ]
    }

    fn input(&self, rank: usize, shape: &[u64]) -> Vec<u64> {
        (0..self.count).map(|index| value(shape, rank, index)).collect()
    }

    fn make(&self, world: &Communicator) -> Result<()> {
        match self.label {
            Some(label) => self.make_on(world, &world.labelled(label)),
            None => self.make_on(world, world),
        }
    }

    fn make_on(&self, world: &Communicator, calls: &impl Calls) -> Result<()> {
        let (rank, size) = (world.rank(), world.size());
        let shape = self.shape(size);
        let (op, root) = (OPS[self.op], self.root % size);
        let own = self.input(rank, &shape);
        let all: Vec<u64> = (0..size).flat_map(|rank| self.input(rank, &shape)).collect();
        match self.kind {
            0 => {
                let mut buffer = own;
                calls.all_reduce(&mut buffer, op)?;
                self.check_reduced(world, &buffer);
            }
            1 => {
                // Block b of every rank is what that rank would give alone, b places on.
                let blocks = |rank| -> Vec<u64> {
                    (0..size * self.count).map(|index| value(&shape, rank, index)).collect()
                };
                let mut output = vec![0; self.count];
                calls.reduce_scatter(&blocks(rank), &mut output, op)?;
                for (index, got) in output.iter().enumerate() {
                    let at = rank * self.count + index;
                    assert_eq!(*got, combined(&shape, size, at, op), "{self:?} at {index}");
                }
            }
            2 => {
                let mut output = vec![0; all.len()];
                calls.all_gather(&own, &mut output)?;
                assert!(output == all, "{self:?}");
            }
            3 => {
                let counts: Vec<usize> = (0..size).map(|rank| self.count + rank % 2).collect();
                let part = |rank: usize| -> Vec<u64> {
                    (0..counts[rank]).map(|index| value(&shape, rank, index)).collect()
                };
                let mut output = vec![0; counts.iter().sum()];
                calls.all_gather_v(&part(rank), &mut output, &counts)?;
                assert!(output == (0..size).flat_map(part).collect::<Vec<_>>(), "{self:?}");
            }
            4 => {
                let to = |rank| -> Vec<u64> {
                    (0..size * self.count).map(|index| value(&shape, rank, index)).collect()
                };
                let mut output = vec![0; all.len()];
                calls.all_to_all(&to(rank), &mut output)?;
                let own = rank * self.count..(rank + 1) * self.count;
                let want: Vec<u64> =
                    (0..size).flat_map(|from| to(from)[own.clone()].to_vec()).collect();
                assert!(output == want, "{self:?}");
            }
            5 => {
                let mut buffer = own;
                calls.broadcast(&mut buffer, root)?;
                assert!(buffer == self.input(root, &shape), "{self:?}");
            }
            6 => {
                let mut output = vec![0; if rank == root { all.len() } else { 0 }];
                calls.gather(&own, &mut output, root)?;
                assert!(rank != root || output == all, "{self:?}");
            }
            7 => {
                let mut buffer = own.clone();
                calls.reduce(&mut buffer, op, root)?;
                match rank == root {
                    true => self.check_reduced(world, &buffer),
                    false => assert!(buffer == own, "{self:?}"),
                }
            }
            8 => {
                let mut output = vec![0; self.count];
                let input = if rank == root { all } else { Vec::new() };
                calls.scatter(&input, &mut output, root)?;
                assert!(output == own, "{self:?}");
            }
            _ => calls.barrier()?,
        }
        Ok(())
    }

    fn check_reduced(&self, world: &Communicator, buffer: &[u64]) {
        let shape = self.shape(world.size());
        for (index, got) in buffer.iter().enumerate() {
            let want = combined(&shape, world.size(), index, OPS[self.op]);
            assert_eq!(*got, want, "{self:?} at {index} on rank {}", world.rank());
        }
    }
}

/// What rank `rank` gives to a call of this shape.
fn value(shape: &[u64], rank: usize, index: usize) -> u64 {
    let words = shape.iter().copied().chain([rank as u64, index as u64]);
    words.fold(1, |hash, word| mix(hash ^ word)) >> 8
}

fn combined(shape: &[u64], size: usize, index: usize, op: ReduceOp) -> u64 {
    let values = (0..size).map(|rank| value(shape, rank, index));
    match op {
        ReduceOp::Max => values.max().unwrap(),
        ReduceOp::Min => values.min().unwrap(),
        _ => values.sum(),
    }
}

/// The calls that both a communicator and a labelled one have.
trait Calls {
    fn all_reduce(&self, buffer: &mut [u64], op: ReduceOp) -> Result<()>;
    fn reduce_scatter(&self, input: &[u64], output: &mut [u64], op: ReduceOp) -> Result<()>;
    fn all_gather(&self, input: &[u64], output: &mut [u64]) -> Result<()>;
    fn all_gather_v(&self, input: &[u64], output: &mut [u64], counts: &[usize]) -> Result<()>;
    fn all_to_all(&self, input: &[u64], output: &mut [u64]) -> Result<()>;
    fn broadcast(&self, buffer: &mut [u64], root: usize) -> Result<()>;
    fn gather(&self, input: &[u64], output: &mut [u64], root: usize) -> Result<()>;
    fn reduce(&self, buffer: &mut [u64], op: ReduceOp, root: usize) -> Result<()>;
    fn scatter(&self, input: &[u64], output: &mut [u64], root: usize) -> Result<()>;
    fn barrier(&self) -> Result<()>;
}

macro_rules! calls {
    ($($type:ty),*) => { $(impl Calls for $type {
        fn all_reduce(&self, buffer: &mut [u64], op: ReduceOp) -> Result<()> {
            self.all_reduce(buffer, op)
        }
        fn reduce_scatter(&self, input: &[u64], output: &mut [u64], op: ReduceOp) -> Result<()> {
            self.reduce_scatter(input, output, op)
        }
        fn all_gather(&self, input: &[u64], output: &mut [u64]) -> Result<()> {
            self.all_gather(input, output)
        }
        fn all_gather_v(&self, input: &[u64], output: &mut [u64], counts: &[usize]) -> Result<()> {
            self.all_gather_v(input, output, counts)
        }
        fn all_to_all(&self, input: &[u64], output: &mut [u64]) -> Result<()> {
            self.all_to_all(input, output)
        }
        fn broadcast(&self, buffer: &mut [u64], root: usize) -> Result<()> {
            self.broadcast(buffer, root)
        }
        fn gather(&self, input: &[u64], output: &mut [u64], root: usize) -> Result<()> {
            self.gather(input, output, root)
        }
        fn reduce(&self, buffer: &mut [u64], op: ReduceOp, root: usize) -> Result<()> {
            self.reduce(buffer, op, root)
        }
        fn scatter(&self, input: &[u64], output: &mut [u64], root: usize) -> Result<()> {
            self.scatter(input, output, root)
        }
        fn barrier(&self) -> Result<()> {
            self.barrier()
        }
    })* };
}
calls!(Communicator, allfold::Labelled<'_>);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) % limit as u64) as usize
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn for_seeds(seeds: std::ops::Range<u64>, body: impl Fn(u64)) {
    // Quiet before the first warning.
    results(Communicator::in_memory(2).unwrap(), |_| ());
    match std::env::var("ALLFOLD_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => {
            if seeds.contains(&seed) {
                body(seed);
            }
        }
        None => seeds.for_each(body),
    }
}
