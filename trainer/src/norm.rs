//! The length of the gradient, and the limit to it.

use candle_core::backprop::GradStore;
use candle_core::{DType, Var};

use crate::error::Result;
use crate::parameters::with_elements;

/// The Euclidean norm of the gradients of all parameters together. Every rank adds up in the same
/// order, in f64, and so gets the same bits.
pub(crate) fn norm(parameters: &[(String, Var)], gradients: &GradStore) -> Result<f64> {
    let mut sum = 0.0;
    for (_, var) in parameters {
        let Some(gradient) = gradients.get(var) else { continue };
        sum += match gradient.dtype() {
            DType::F32 => with_elements(gradient, |elements: &[f32]| squares(elements))?,
            _ => with_elements(gradient, |elements: &[f64]| squares(elements))?,
        };
    }
    Ok(sum.sqrt())
}

/// Scales the gradients to the norm `limit`, where theirs is larger.
pub(crate) fn clip(
    parameters: &[(String, Var)],
    gradients: &mut GradStore,
    norm: f64,
    limit: f64,
) -> Result<()> {
    if norm <= limit {
        return Ok(());
    }
    for (_, var) in parameters {
        if let Some(gradient) = gradients.remove(var) {
            gradients.insert(var, (gradient * (limit / norm))?);
        }
    }
    Ok(())
}

/// The sum of squares, in several sums side by side so that the processor can add several at once.
fn squares<T: Copy + Into<f64>>(elements: &[T]) -> f64 {
    let mut sums = [0.0; SUMS];
    let chunks = elements.chunks_exact(SUMS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &element) in sums.iter_mut().zip(chunk) {
            let element: f64 = element.into();
            *sum += element * element;
        }
    }
    let rest = rest.iter().map(|&element| element.into() * element.into());
    rest.chain(sums).sum()
}

/// Two AVX-512 registers of f64, four of AVX2.
const SUMS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn gradients() -> (Vec<(String, Var)>, GradStore) {
        let mut gradients = GradStore::default();
        let mut parameters = Vec::new();
        for (name, value, count) in [("a", 3.0f32, 16 * 4), ("b", 6.0, 16), ("c", 1.0, 17)] {
            let var = Var::zeros(count, DType::F32, &Device::Cpu).unwrap();
            let gradient = Tensor::full(value, count, &Device::Cpu).unwrap();
            gradients.insert(&var, gradient);
            parameters.push((name.to_string(), var));
        }
        (parameters, gradients)
    }

    #[test]
    fn a_long_gradient_is_clipped_to_the_limit() {
        let (parameters, mut gradients) = gradients();
        let before = norm(&parameters, &gradients).unwrap();
        assert_eq!(before, (64.0f64 * 9.0 + 16.0 * 36.0 + 17.0).sqrt());
        clip(&parameters, &mut gradients, before, 2.0).unwrap();
        let after = norm(&parameters, &gradients).unwrap();
        assert!((after - 2.0).abs() < 1e-6, "{after}");
    }

    #[test]
    fn a_short_gradient_is_left_alone() {
        let (parameters, mut gradients) = gradients();
        clip(&parameters, &mut gradients, 1.0, 1.5).unwrap();
        let gradient = gradients.get(&parameters[2].1 as &Tensor).unwrap();
        assert_eq!(gradient.to_vec1::<f32>().unwrap(), [1.0; 17]);
    }
}
