//! What is counted over samples: how many, their losses, how many were recognised.

use std::ops::AddAssign;

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
    pub(crate) fn to_numbers(self) -> [f64; NUMBERS] {
        [self.samples as f64, self.loss, self.correct as f64]
    }

    /// From the sums of [`to_numbers`](Self::to_numbers).
    pub(crate) fn from_numbers([samples, loss, correct]: [f64; NUMBERS]) -> Self {
        Self { samples: samples as usize, loss, correct: correct as usize }
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
pub(crate) const NUMBERS: usize = 3;
