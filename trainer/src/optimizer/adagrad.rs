//! Adagrad by TensorFlow's rule (J. Duchi, E. Hazan, Y. Singer, *Adaptive subgradient methods for
//! online learning and stochastic optimization*, 2011): each element's rate is divided by the root
//! of the sum of its squared gradients.

use candle_core::{Result, Tensor};

use super::Number;

/// A step.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) lr: f64,
}

impl Rule {
    pub(super) fn apply<T: Number>(self, values: &mut [T], gradient: &[T], sum: &mut [T]) {
        let lr = T::of(self.lr);
        for ((value, &gradient), sum) in values.iter_mut().zip(gradient).zip(sum) {
            *sum = *sum + gradient * gradient;
            *value = *value - gradient * lr / sum.sqrt();
        }
    }

    /// The new values, by the same arithmetic.
    pub(super) fn apply_to_tensors(
        self,
        values: &Tensor,
        gradient: &Tensor,
        sum: &mut Tensor,
    ) -> Result<Tensor> {
        *sum = (&*sum + gradient.sqr()?)?;
        values - ((gradient * self.lr)? / sum.sqrt()?)?
    }
}

/// The sums start here, as TensorFlow's do: never 0, so that nothing is divided by it. (PyTorch
/// starts at 0 and adds 1e-10 to the root.)
pub(super) const INITIAL: f64 = 0.1;
