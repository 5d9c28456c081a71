//! What is counted over samples: how many, their losses, how many were recognised.

use std::ops::AddAssign;

use crate::error::{Error, Result};

/// Counts over some samples; the counts of two sets of samples add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// The number of samples.
    pub samples: usize,
    /// The sum of their losses.
    pub loss: f64,
    /// How many of them the model recognised.
    pub correct: usize,
}

impl Tally {
    /// The mean loss of a sample; NaN without samples.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.samples as f64
    }

    /// The part that was recognised, 0 to 1; NaN without samples.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.samples as f64
    }

    /// As numbers that can be added up between ranks.
    pub(crate) fn to_numbers(self) -> [f64; TALLY_NUMBERS] {
        [self.samples as f64, self.loss, self.correct as f64]
    }

    /// From the sums of [`to_numbers`](Self::to_numbers).
    pub(crate) fn from_numbers([samples, loss, correct]: [f64; TALLY_NUMBERS]) -> Self {
        Self { samples: samples as usize, loss, correct: correct as usize }
    }
}

/// What rides along with the gradients of a step: every rank's is added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Riders {
    pub(crate) tally: Tally,
    /// How many ranks were asked to stop.
    pub(crate) stops: usize,
}

impl Riders {
    pub(crate) fn to_numbers(self) -> [f64; NUMBERS] {
        let [samples, loss, correct] = self.tally.to_numbers();
        [samples, loss, correct, self.stops as f64]
    }

    pub(crate) fn from_numbers([samples, loss, correct, stops]: [f64; NUMBERS]) -> Self {
        Self { tally: Tally::from_numbers([samples, loss, correct]), stops: stops as usize }
    }

    /// Whether a step can be taken of what all ranks have counted. All see the same sum, and so
    /// all end here; `steps` are those done before.
    pub(crate) fn check(&self, steps: u64) -> Result<()> {
        if self.tally.samples == 0 {
            return Err(Error::NoSamples { step: steps });
        }
        if !self.tally.loss.is_finite() {
            return Err(Error::LossNotFinite { step: steps + 1, resumed: None });
        }
        Ok(())
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.loss += other.loss;
        self.correct += other.correct;
    }
}

/// The numbers of a tally.
pub(crate) const TALLY_NUMBERS: usize = 3;
/// The numbers of the riders.
pub(crate) const NUMBERS: usize = TALLY_NUMBERS + 1;
