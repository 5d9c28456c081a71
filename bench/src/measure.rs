//! One size: nccl-tests' way to time a collective, and the check of its data.

use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};

use crate::latencies::Latencies;
use crate::options::Op;
use crate::pattern::{Number, Pattern};
use crate::table::Half;
use crate::{Error, world};

/// The collective under test.
pub(crate) type Call<T> = fn(&Communicator, &mut [T], ReduceOp) -> allfold::Result<()>;

/// One rank's buffer and how it is used.
pub(crate) struct Bench<'a, T> {
    pub(crate) world: &'a Communicator,
    pub(crate) call: Call<T>,
    pub(crate) op: Op,
    pub(crate) iterations: u32,
    pub(crate) checks: u32,
    /// As long as the largest size.
    pub(crate) buffer: Vec<T>,
    pub(crate) latencies: Latencies,
}

impl<T: Number> Bench<'_, T> {
    /// `iterations` calls with `count` elements, not timed.
    pub(crate) fn warm_up(&mut self, count: usize, iterations: u32) -> Result<(), Error> {
        (0..iterations).try_for_each(|iteration| self.call(count, iteration))
    }

    /// One half of a row: time and bandwidth of `count` elements, and how many of all ranks' were
    /// wrong.
    pub(crate) fn measure(&mut self, count: usize) -> Result<Half, Error> {
        if self.checks > 0 {
            let rank = self.world.rank();
            self.pattern(count, TIMED).fill(rank, self.region(count, 0));
        }
        let own = self.time(count)?;
        let seconds = world::average(self.world, own.as_secs_f64())?;
        self.world.barrier()?;
        let wrong = self.check(count)?;
        Ok(Half::all_reduce(count * size_of::<T>(), seconds, self.world.size(), wrong))
    }

    /// This rank's time per iteration.
    fn time(&mut self, count: usize) -> Result<Duration, Error> {
        self.call(count, 0)?;
        self.world.barrier()?;
        self.latencies.clear();
        let start = Instant::now();
        let mut before = start;
        for iteration in 0..self.iterations {
            self.call(count, iteration)?;
            let after = Instant::now();
            self.latencies.record(after - before);
            before = after;
        }
        // A world of one may be faster than the clock.
        Ok(((before - start) / self.iterations).max(Duration::from_nanos(1)))
    }

    /// Wrong elements on all ranks, of calls on fresh inputs; none where nothing is checked.
    fn check(&mut self, count: usize) -> Result<Option<u64>, Error> {
        if self.checks == 0 {
            return Ok(None);
        }
        for check in 0..self.checks {
            let pattern = self.pattern(count, check);
            let rank = self.world.rank();
            pattern.fill(rank, self.region(count, 0));
            self.call(count, 0)?;
            let own = pattern.wrong(self.op, self.region(count, 0));
            let [all] = world::sum(self.world, [own as f64])?;
            // An all-reduce that is wrong may lose the count as well.
            let wrong = own.max(all as u64);
            if wrong > 0 {
                return Ok(Some(wrong));
            }
        }
        Ok(Some(0))
    }

    fn call(&mut self, count: usize, iteration: u32) -> Result<(), Error> {
        let (call, world, op) = (self.call, self.world, self.op);
        call(world, self.region(count, iteration), op.into())?;
        Ok(())
    }

    /// Each iteration takes the next part of the buffer, as in nccl-tests, so that small sizes are
    /// not served from the same cache lines.
    fn region(&mut self, count: usize, iteration: u32) -> &mut [T] {
        let regions = self.buffer.len().checked_div(count).unwrap_or(1).max(1);
        let start = iteration as usize % regions * count;
        &mut self.buffer[start..start + count]
    }

    /// Every call has its own inputs, so that an old result is not taken for a new one.
    fn pattern(&self, count: usize, call: u32) -> Pattern {
        let seed = (count as u64) << 32 | u64::from(call);
        Pattern::new(self.world.size(), T::BITS, seed)
    }
}

/// The inputs of the timed iterations, apart from those of every check.
const TIMED: u32 = u32::MAX;
