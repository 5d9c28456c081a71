//! Some of the samples of a data set, under numbers of their own.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::{Dataset, no_such_sample};
use crate::error::{Error, Result};
use crate::random::Random;

/// Cuts `count` samples, drawn by the seed, out of `all`: what is left, and what was cut out.
///
/// Drawn and not the last ones: files may be sorted by label.
#[expect(clippy::type_complexity, reason = "two data sets, one of them optional")]
pub(super) fn hold_out(
    all: Arc<dyn Dataset>,
    count: usize,
    seed: u64,
) -> Result<(Arc<dyn Dataset>, Option<Arc<dyn Dataset>>)> {
    if count == 0 {
        return Ok((all, None));
    }
    if count >= all.len() {
        return Err(Error::Option {
            option: "--validation",
            value: count.to_string(),
            problem: format!("there are {} training samples", all.len()),
            help: format!("give a number from 0 to {}", all.len().saturating_sub(1)),
        });
    }
    let mut samples: Vec<usize> = (0..all.len()).collect();
    Random::new(seed, HELD_OUT).shuffle(&mut samples);
    let [mut held_out, mut left] = [samples[..count].to_vec(), samples[count..].to_vec()];
    held_out.sort_unstable();
    left.sort_unstable();
    let left = Arc::new(Subset { of: Arc::clone(&all), samples: left });
    Ok((left, Some(Arc::new(Subset { of: all, samples: held_out }))))
}

struct Subset {
    of: Arc<dyn Dataset>,
    /// The number there of each sample here.
    samples: Vec<usize>,
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
        let there = |&sample: &usize| {
            self.samples.get(sample).copied().ok_or_else(|| no_such_sample(sample, self.len()))
        };
        let samples: Vec<usize> = samples.iter().map(there).collect::<Result<_>>()?;
        self.of.batch(&samples, dtype)
    }
}

/// The stream of random numbers that draws; the small ones are the sampler's epochs.
const HELD_OUT: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;

    fn cut(count: usize, seed: u64) -> [Vec<Vec<f64>>; 2] {
        let all: Arc<dyn Dataset> = Arc::new(digits().unwrap().train);
        let (left, held_out) = hold_out(all, count, seed).unwrap();
        [left, held_out.unwrap()].map(|part| {
            let every: Vec<usize> = (0..part.len()).collect();
            let (images, _) = part.batch(&every, DType::F64).unwrap();
            assert!(part.batch(&[part.len()], DType::F64).is_err());
            images.flatten_from(1).unwrap().to_vec2().unwrap()
        })
    }

    #[test]
    fn every_sample_is_in_one_part() {
        let [left, held_out] = cut(200, 7);
        assert_eq!((left.len(), held_out.len()), (1238, 200));
        let all = digits().unwrap().train;
        let every: Vec<usize> = (0..all.len()).collect();
        let (images, _) = all.batch(&every, DType::F64).unwrap();
        let mut images: Vec<Vec<f64>> = images.flatten_from(1).unwrap().to_vec2().unwrap();
        let mut parts = [left, held_out].concat();
        let order = |a: &Vec<f64>, b: &Vec<f64>| a.partial_cmp(b).unwrap();
        images.sort_by(order);
        parts.sort_by(order);
        assert_eq!(images, parts);
    }

    #[test]
    fn the_seed_draws() {
        assert_eq!(cut(100, 1), cut(100, 1));
        assert_ne!(cut(100, 1), cut(100, 2));
    }

    #[test]
    fn something_must_be_left() {
        let all: Arc<dyn Dataset> = Arc::new(digits().unwrap().train);
        let error = hold_out(Arc::clone(&all), 1438, 1).err().unwrap();
        assert_eq!(error.to_string(), "--validation 1438: there are 1438 training samples");
        assert_eq!(error.help().as_deref(), Some("give a number from 0 to 1437"));
        let (left, held_out) = hold_out(Arc::clone(&all), 0, 1).unwrap();
        assert_eq!(left.len(), all.len());
        assert!(held_out.is_none());
    }
}
