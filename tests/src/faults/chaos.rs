//! Random chaos: 4 to 8 ranks make collectives that a seed draws, all the same ones, and compare
//! every result with its closed form; at a moment that the seed draws, something of the matrix
//! happens to one of them.

use allfold::faults::Moment;
use allfold::simulation::Random;
use allfold::{Communicator, Pending, ReduceOp, Result};

use super::case::{Case, Launch, What, When};

/// Says the seed; every rank of a job has it.
pub const CHAOS: &str = "UNDER_TEST_CHAOS";

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chaos {
    seed: u64,
    trigger: Trigger,
}

/// The moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    /// On the caller's thread, before its so-manieth call.
    Call(u64),
    /// In a call of the whole world with at least this number, at a step so many thousandths into
    /// the rank's plan.
    Step(u64, usize),
}

impl Chaos {
    /// The case that a seed draws, and its moment.
    pub fn draw(seed: u64) -> (Case, Self) {
        let mut random = Random::new(seed);
        let ranks = random.within(4..=8) as usize;
        let what = random.pick(&What::ALL).copied().unwrap_or(What::Kill);
        let case = Case {
            what,
            when: When::Idle,
            victim: random.below(ranks as u64) as usize,
            ranks,
            launch: if random.chance(300) { Launch::Run } else { Launch::Plain },
        };
        let number = random.within(1..=40);
        // A program's own thread makes calls and panics; the lane's threads are the runtime's.
        let trigger = match what == What::Panic || random.chance(300) {
            true => Trigger::Call(number),
            false => Trigger::Step(number, random.below(1000) as usize),
        };
        (case, Self { seed, trigger })
    }

    /// What the variable says.
    pub fn take() -> Option<Self> {
        let seed = std::env::var(CHAOS).ok()?.parse().ok()?;
        Some(Self::draw(seed).1)
    }

    /// Whether it is time, after `calls` calls of this rank.
    pub fn is_time(&self, moment: &Moment, calls: u64) -> bool {
        match (self.trigger, moment) {
            (Trigger::Call(number), Moment::Call { .. }) => calls >= number,
            (Trigger::Step(number, part), Moment::Step(step)) => {
                let is_late_enough = step.index * 1000 >= part * step.count.saturating_sub(1);
                step.communicator == 0 && step.sequence >= number && is_late_enough
            }
            _ => false,
        }
    }

    /// Makes calls until one fails; true once a result was wrong.
    ///
    /// # Errors
    /// That of the call.
    pub fn play(&self, world: &Communicator) -> Result<bool> {
        // Neighbours together: with an odd number of ranks the last is alone.
        let halves = world.split(Some(world.rank() as u32 / 2), 0)?;
        let mut random = Random::new(!self.seed);
        let mut outstanding: Option<(Pending<Vec<u64>>, Want)> = None;
        for _ in 0..MOST_CALLS {
            let pick = random.bits();
            let length = random.below(MOST_ELEMENTS).max(1) as usize;
            let length = if pick & 0x300 == 0 { length * 50 } else { length };
            let on_half = pick & 0xc00 == 0;
            let group = halves.as_ref().filter(|_| on_half).unwrap_or(world);
            let call = Call { group, length, number: random.below(1000), root: pick >> 32 };
            let is_right = match pick % KINDS {
                0 if outstanding.is_none() => {
                    outstanding = Some(call.start()?);
                    true
                }
                kind => call.make(kind)?,
            };
            if !is_right {
                return Ok(true);
            }
            if pick & 0x7000 == 0
                && let Some((pending, want)) = outstanding.take()
                && !want.is(&pending.wait()?)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// One call of all ranks of a communicator.
struct Call<'a> {
    group: &'a Communicator,
    length: usize,
    number: u64,
    root: u64,
}

/// What a sum must be.
struct Want {
    ranks: u64,
    number: u64,
}

impl Want {
    fn is(&self, sums: &[u64]) -> bool {
        let Self { ranks, number } = *self;
        let all = ranks * (ranks + 1) / 2;
        (0..).zip(sums).all(|(index, sum)| *sum == all * element(index, number))
    }
}

impl Call<'_> {
    /// Rank r gives r + 1 times this.
    fn input(&self, rank: usize, length: usize) -> Vec<u64> {
        (0..length as u64).map(|index| (rank as u64 + 1) * element(index, self.number)).collect()
    }

    fn start(&self) -> Result<(Pending<Vec<u64>>, Want)> {
        let input = self.input(self.group.rank(), self.length);
        let want = Want { ranks: self.group.size() as u64, number: self.number };
        Ok((self.group.start_all_reduce(input, ReduceOp::Sum)?, want))
    }

    /// Whether the result is right.
    fn make(&self, kind: u64) -> Result<bool> {
        let (group, length) = (self.group, self.length);
        let (rank, size) = (group.rank(), group.size());
        let root = (self.root % size as u64) as usize;
        let want = Want { ranks: size as u64, number: self.number };
        // One block for each rank, as long as the others.
        let block = length.div_ceil(size);
        let mine = self.input(rank, block);
        let all = || (0..size).flat_map(|rank| self.input(rank, block)).collect::<Vec<u64>>();
        Ok(match kind {
            1 => {
                let mut buffer = self.input(rank, length);
                group.all_reduce(&mut buffer, ReduceOp::Sum)?;
                want.is(&buffer)
            }
            2 => {
                let mut buffer = self.input(rank, length);
                group.all_reduce(&mut buffer, ReduceOp::Max)?;
                buffer == self.input(size - 1, length)
            }
            3 => {
                let mut output = vec![0; block];
                let input: Vec<u64> = (0..size).flat_map(|_| mine.iter().copied()).collect();
                group.reduce_scatter(&input, &mut output, ReduceOp::Sum)?;
                want.is(&output)
            }
            4 => {
                let mut output = vec![0; block * size];
                group.all_gather(&mine, &mut output)?;
                output == all()
            }
            5 => {
                let mut buffer = self.input(rank, length);
                group.broadcast(&mut buffer, root)?;
                buffer == self.input(root, length)
            }
            6 => {
                let mut buffer = self.input(rank, length);
                group.reduce(&mut buffer, ReduceOp::Sum, root)?;
                rank != root || want.is(&buffer)
            }
            7 => {
                let mut output = vec![0; if rank == root { block * size } else { 0 }];
                group.gather(&mine, &mut output, root)?;
                rank != root || output == all()
            }
            8 => {
                let input = if rank == root { all() } else { Vec::new() };
                let mut output = vec![0; block];
                group.scatter(&input, &mut output, root)?;
                output == mine
            }
            9 => {
                let input: Vec<u64> = (0..size).flat_map(|_| mine.iter().copied()).collect();
                let mut output = vec![0; block * size];
                group.all_to_all(&input, &mut output)?;
                output == all()
            }
            10 if size > 1 => {
                let mut output = vec![0; block];
                let (to, from) = ((rank + 1) % size, (rank + size - 1) % size);
                group.send_recv(&mine, to, &mut output, from)?;
                output == self.input(from, block)
            }
            _ => {
                group.barrier()?;
                true
            }
        })
    }
}

fn element(index: u64, number: u64) -> u64 {
    index % 1009 + number
}

/// Kinds of calls; 0 starts one that goes on beside the next.
const KINDS: u64 = 12;
/// Three seconds of calls are a part of it.
const MOST_CALLS: u64 = 10_000_000;
/// A quarter of the calls is fifty times as long: several segments a chunk.
const MOST_ELEMENTS: u64 = 2_000;
