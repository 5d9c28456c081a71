//! What happened between two tests: how much was trained, and where the time went.

use std::time::{Duration, Instant};

use candle_nn::Optimizer;

use crate::distributed::Distributed;
use crate::tally::Tally;

/// Some steps, from the time they began.
pub(crate) struct Interval {
    began: Instant,
    blocked: Duration,
    under_way: Duration,
    train: Tally,
}

/// Where the time of some steps went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Times {
    pub(crate) samples_per_second: f64,
    pub(crate) all_reduce_share: Option<f64>,
    pub(crate) all_reduce_hidden: Option<f64>,
}

impl Interval {
    pub(crate) fn begin(optimizer: &Distributed<impl Optimizer>) -> Self {
        Self {
            began: Instant::now(),
            blocked: optimizer.time_in_all_reduce(),
            under_way: optimizer.time_of_all_reduce(),
            train: Tally::default(),
        }
    }

    /// A step is done.
    pub(crate) fn add(&mut self, train: Tally) {
        self.train += train;
    }

    /// What the steps counted.
    pub(crate) fn train(&self) -> Tally {
        self.train
    }

    /// The times up to now.
    pub(crate) fn end(&self, optimizer: &Distributed<impl Optimizer>) -> Times {
        let seconds = self.began.elapsed().as_secs_f64();
        let blocked = (optimizer.time_in_all_reduce() - self.blocked).as_secs_f64();
        let under_way = (optimizer.time_of_all_reduce() - self.under_way).as_secs_f64();
        // A GPU is given its work in advance: who waits there for sums waits for backward, too.
        let is_measured = !optimizer.is_on_gpu();
        Times {
            samples_per_second: self.train.samples as f64 / seconds,
            all_reduce_share: is_measured.then(|| blocked / seconds),
            all_reduce_hidden: (is_measured && optimizer.overlaps() && under_way > 0.0)
                .then(|| (1.0 - blocked / under_way).clamp(0.0, 1.0)),
        }
    }
}
