//! AdamW (I. Loshchilov, F. Hutter, *Decoupled weight decay regularization*, 2019), with the
//! arithmetic of candle's, in one pass.

use candle_core::{Result, Tensor};

use super::Number;

/// A step.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    lr: f64,
    /// What corrects the start of the first and of the second moment at zero.
    scales: [f64; 2],
}

impl Rule {
    /// The step is counted from 1.
    pub(super) fn new(lr: f64, step: u64) -> Self {
        // Beyond 2^31 steps the powers have long been 0.
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        let scales = [BETA1, BETA2].map(|beta: f64| 1.0 / (1.0 - beta.powi(step)));
        Self { lr, scales }
    }

    pub(super) fn apply<T: Number>(
        self,
        values: &mut [T],
        gradient: &[T],
        first: &mut [T],
        second: &mut [T],
    ) {
        let [keep1, take1, keep2, take2] = [BETA1, 1.0 - BETA1, BETA2, 1.0 - BETA2].map(T::of);
        let [scale1, scale2] = self.scales.map(T::of);
        let [lr, decay, epsilon] = [self.lr, 1.0 - self.lr * WEIGHT_DECAY, EPSILON].map(T::of);
        let moments = first.iter_mut().zip(second);
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first = *first * keep1 + gradient * take1;
            *second = *second * keep2 + gradient * gradient * take2;
            let step = *first * scale1 / ((*second * scale2).sqrt() + epsilon);
            *value = *value * decay - step * lr;
        }
    }

    /// The new values, by the same arithmetic.
    pub(super) fn apply_to_tensors(
        self,
        values: &Tensor,
        gradient: &Tensor,
        first: &mut Tensor,
        second: &mut Tensor,
    ) -> Result<Tensor> {
        let [scale1, scale2] = self.scales;
        *first = ((&*first * BETA1)? + (gradient * (1.0 - BETA1))?)?;
        *second = ((&*second * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?)?;
        let step = ((&*first * scale1)? / ((&*second * scale2)?.sqrt()? + EPSILON)?)?;
        (values * (1.0 - self.lr * WEIGHT_DECAY))? - (step * self.lr)?
    }
}

// The defaults of PyTorch and candle.
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.01;
