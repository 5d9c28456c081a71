//! Who comes late to the calls of a step. All ranks' steps take equally long, because they wait for
//! each other: only when they come tells them apart.

use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};
use hdrhistogram::Histogram;

use crate::error::Result;

/// How long others waited for a rank to come to the calls of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrival {
    /// In half of the steps at most so long.
    pub p50: Duration,
    /// In 99 of 100 steps at most so long.
    pub p99: Duration,
}

/// How the ranks came to their calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrivals {
    /// By rank, as the rank saw it that waited longest; none where no step was made, and on GPUs.
    pub ranks: Vec<Arrival>,
    /// Half of this rank's steps took at most so long.
    pub step: Duration,
}

impl Arrivals {
    /// The rank that came last in the median, if there is more than one.
    pub fn last(&self) -> Option<usize> {
        let ranks = self.ranks.iter().enumerate();
        let last = ranks.max_by_key(|(_, arrival)| arrival.p50).map(|(rank, _)| rank);
        last.filter(|_| self.ranks.len() > 1)
    }

    /// The rank that came last, if it is far behind the usual rank and the job would be notably
    /// faster without that.
    pub fn slowest(&self) -> Option<usize> {
        let mut waits: Vec<Duration> = self.ranks.iter().map(|arrival| arrival.p50).collect();
        waits.sort_unstable();
        let usual = waits.get(waits.len().saturating_sub(1) / 2).copied().unwrap_or_default();
        self.last().filter(|last| {
            let wait = self.ranks[*last].p50;
            wait > usual * FAR_BEHIND && wait * NOTABLE_PART > self.step
        })
    }
}

/// What this rank sees of it, step by step.
pub(crate) struct Watch<'a> {
    world: &'a Communicator,
    /// By rank, in microseconds; made at the first wait.
    waits: Vec<Option<Histogram<u32>>>,
    steps: Histogram<u32>,
    began: Instant,
    before: Vec<Duration>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(world: &'a Communicator) -> Self {
        Self {
            world,
            waits: vec![None; world.size()],
            steps: histogram(),
            began: Instant::now(),
            before: vec![Duration::ZERO; world.size()],
        }
    }

    pub(crate) fn step_begins(&mut self) {
        self.began = Instant::now();
        for peer in self.world.stats().peers {
            if let Some(before) = self.before.get_mut(peer.rank) {
                *before = peer.late.total;
            }
        }
    }

    pub(crate) fn step_is_done(&mut self) {
        self.steps.saturating_record(microseconds(self.began.elapsed()));
        for peer in self.world.stats().peers {
            let Some(before) = self.before.get(peer.rank) else { continue };
            let wait = peer.late.total.saturating_sub(*before);
            if !wait.is_zero() {
                let waits = self.waits[peer.rank].get_or_insert_with(histogram);
                waits.saturating_record(microseconds(wait));
            }
        }
    }

    /// Of each rank what the one that waited longest for it saw; every rank makes the call.
    pub(crate) fn gather(mut self) -> Result<Arrivals> {
        let steps = self.steps.len();
        if steps == 0 || self.world.size() == 1 {
            return Ok(Arrivals::default());
        }
        let mut seen = Vec::new();
        for waits in &mut self.waits {
            let waits = waits.get_or_insert_with(histogram);
            // In the other steps it was there first.
            waits.saturating_record_n(0, (steps - waits.len()) as u32);
            seen.extend([waits.value_at_quantile(0.5), waits.value_at_quantile(0.99)]);
        }
        self.world.all_reduce(&mut seen, ReduceOp::Max)?;
        let at = |microseconds: &u64| Duration::from_micros(*microseconds);
        let ranks =
            seen.chunks_exact(2).map(|pair| Arrival { p50: at(&pair[0]), p99: at(&pair[1]) });
        let step = Duration::from_micros(self.steps.value_at_quantile(0.5));
        Ok(Arrivals { ranks: ranks.collect(), step })
    }
}

fn histogram() -> Histogram<u32> {
    match Histogram::new_with_bounds(1, LONGEST_US, DIGITS) {
        Ok(histogram) => histogram,
        // The constants are within the library's limits.
        Err(error) => unreachable!("{error}"),
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A rank that is waited for so many times longer than the usual one is worth a look.
const FAR_BEHIND: u32 = 3;
/// A rank that costs less than a twentieth of the step is not: whatever is done about it, nobody
/// would see the difference.
const NOTABLE_PART: u32 = 20;
/// An hour: a step that waits longer is counted as that long.
const LONGEST_US: u64 = 3_600_000_000;
/// To within 1 %, in 13 KiB for each rank that was late.
const DIGITS: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn slowest(waits_us: &[u64], step_us: u64) -> Option<usize> {
        let at = |us: &u64| Arrival { p50: Duration::from_micros(*us), p99: Duration::ZERO };
        let (ranks, step) = (waits_us.iter().map(at).collect(), Duration::from_micros(step_us));
        Arrivals { ranks, step }.slowest()
    }

    #[test]
    fn a_rank_stands_out_that_is_far_behind_and_matters() {
        assert_eq!(slowest(&[100, 90, 310, 100], 1000), Some(2));
        assert_eq!(slowest(&[100, 90, 300, 100], 1000), None, "not far enough");
        assert_eq!(slowest(&[100, 90, 310, 100], 6200), None, "a twentieth of a step");
        assert_eq!(slowest(&[0, 51], 1000), Some(1));
        assert_eq!(slowest(&[0, 0], 1000), None);
        // Two of them: the slower one is named.
        assert_eq!(slowest(&[10, 500, 10, 600, 10, 10], 1000), Some(3));
        assert_eq!(slowest(&[500], 1000), None);
        assert_eq!(slowest(&[], 0), None);
    }
}
