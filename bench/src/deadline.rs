//! The limit of `-T`: the ranks look at the clock together, so that all stop at the same call.

use std::time::{Duration, Instant};

use allfold::{Communicator, ReduceOp};

use crate::{Error, world};

/// When a row has taken too long.
pub(crate) struct Deadline {
    /// The row, in words.
    pub(crate) row: String,
    pub(crate) begun: Instant,
    pub(crate) limit: Duration,
}

impl Deadline {
    /// After how many iterations of `once` the ranks look: often enough to notice soon, and so
    /// rarely that it does not show in the times.
    pub(crate) fn pace(&self, world: &Communicator, once: Duration) -> Result<u32, Error> {
        let mut longest = [once.as_secs_f64()];
        world.all_reduce(&mut longest, ReduceOp::Max)?;
        let pace = self.limit.as_secs_f64() / LOOKS / longest[0].max(f64::MIN_POSITIVE);
        Ok(pace.clamp(1.0, f64::from(u32::MAX)) as u32)
    }

    /// Whether time is up on any rank.
    pub(crate) fn check(&self, world: &Communicator) -> Result<(), Error> {
        let is_over = self.begun.elapsed() > self.limit;
        match world::sum(world, [f64::from(u8::from(is_over))])? {
            [0.0] => Ok(()),
            _ => Err(Error::TimedOut {
                row: self.row.clone(),
                seconds: self.limit.as_secs() as u32,
                problem: None,
            }),
        }
    }
}

/// How often within the limit, at least.
const LOOKS: f64 = 10.0;
