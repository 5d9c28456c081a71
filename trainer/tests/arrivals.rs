//! Who came late to the steps of a training.

#![allow(clippy::unwrap_used, reason = "a test says by a panic that it failed")]

mod on_ranks;

use std::sync::Arc;
use std::time::Duration;

use allfold_trainer::{Arrivals, Dataset, Options, Result, Training};
use candle_core::{DType, Tensor};
use on_ranks::on_ranks;

/// A data set that one rank reads from a slow disk.
struct Slow(Arc<dyn Dataset>);

impl Dataset for Slow {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
        std::thread::sleep(READING);
        self.0.batch(samples, dtype)
    }
}

/// Trains on so many ranks, of which one may be slow.
fn arrivals(ranks: usize, slow: Option<usize>) -> Vec<Arrivals> {
    let options = Options { epochs: 1, ..Options::default() };
    on_ranks(ranks, |world| {
        let mut data = options.check(ranks).unwrap();
        if slow == Some(world.rank()) {
            data.train = Arc::new(Slow(data.train));
        }
        let mut training = Training::with_data(&options, data, &world).unwrap();
        training.run(|_| Ok(())).unwrap().arrivals
    })
}

#[test]
fn a_slow_rank_is_named_by_all() {
    for slow in [0, 2] {
        for arrivals in arrivals(3, Some(slow)) {
            assert_eq!(arrivals.slowest(), Some(slow), "{arrivals:?}");
            assert_eq!(arrivals.last(), Some(slow));
            let slow = arrivals.ranks[slow];
            assert!(slow.p50 > Duration::ZERO && slow.p99 >= slow.p50, "{arrivals:?}");
        }
    }
}

#[test]
fn a_world_of_one_has_nobody_to_name() {
    for arrivals in arrivals(1, None) {
        assert_eq!((arrivals.last(), arrivals.slowest()), (None, None));
    }
}

/// Many times the rest of a step, also on a busy machine.
const READING: Duration = Duration::from_millis(100);
