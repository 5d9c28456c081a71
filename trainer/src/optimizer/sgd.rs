//! Stochastic gradient descent with momentum, by PyTorch's rule: the velocity keeps a part of
//! itself and takes the whole gradient (I. Sutskever et al., *On the importance of initialization
//! and momentum in deep learning*, 2013, with the learning rate outside).

use candle_core::{Result, Tensor};

use super::Number;

/// A step.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) lr: f64,
    pub(super) momentum: f64,
}

impl Rule {
    pub(super) fn apply<T: Number>(self, values: &mut [T], gradient: &[T], velocity: &mut [T]) {
        let [lr, momentum] = [self.lr, self.momentum].map(T::of);
        for ((value, &gradient), velocity) in values.iter_mut().zip(gradient).zip(velocity) {
            *velocity = *velocity * momentum + gradient;
            *value = *value - *velocity * lr;
        }
    }

    /// The new values, by the same arithmetic.
    pub(super) fn apply_to_tensors(
        self,
        values: &Tensor,
        gradient: &Tensor,
        velocity: &mut Tensor,
    ) -> Result<Tensor> {
        *velocity = ((&*velocity * self.momentum)? + gradient)?;
        values - (&*velocity * self.lr)?
    }
}
