//! The loss of logits and how many of them are right, whatever the shape of the targets.

use candle_core::{D, DType, Tensor};

use crate::error::Result;
use crate::tally::Tally;

/// The cross entropy of each target, added up. The sum, not the mean: ranks with fewer samples
/// would otherwise count the same as those with more.
///
/// `logits` have the shape of the u32 `targets` and one dimension more, the classes.
pub(crate) fn sum_of_losses(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (logits, targets) = flat(logits, targets)?;
    // No gradient runs through the maximum: it cancels out.
    let largest = logits.detach().max_keepdim(D::Minus1)?;
    let logits = logits.broadcast_sub(&largest)?;
    let chosen = logits.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
    let whole = logits.exp()?.sum(D::Minus1)?.log()?;
    Ok((whole - chosen)?.sum_all()?)
}

/// What is counted over the targets.
pub(crate) fn count(logits: &Tensor, targets: &Tensor, losses: &Tensor) -> Result<Tally> {
    let hits = logits.detach().argmax(D::Minus1)?.eq(targets)?;
    let correct: u32 = hits.to_dtype(DType::U32)?.sum_all()?.to_scalar()?;
    Ok(Tally {
        samples: targets.elem_count(),
        loss: losses.to_dtype(DType::F64)?.to_scalar()?,
        correct: correct as usize,
    })
}

/// As the shapes (n, classes) and (n).
fn flat(logits: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    let classes = logits.dim(D::Minus1)?;
    Ok((logits.reshape(((), classes))?, targets.flatten_all()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn it_is_candles_cross_entropy_for_any_shape() {
        let logits: Vec<f64> = (0..2 * 3 * 5).map(|at| ((at * 7) % 11) as f64 - 5.0).collect();
        let logits = Tensor::from_vec(logits, (6, 5), &Device::Cpu).unwrap();
        let logits = Var::from_tensor(&logits).unwrap();
        let targets = Tensor::new(&[0u32, 4, 2, 1, 3, 0], &Device::Cpu).unwrap();
        let mean = candle_nn::loss::cross_entropy(&logits, &targets).unwrap();
        let theirs = (mean * 6.0).unwrap();

        let deep = (logits.reshape((2, 3, 5)).unwrap(), targets.reshape((2, 3)).unwrap());
        for (ours_of, targets) in [(logits.as_tensor().clone(), targets), deep] {
            let ours = sum_of_losses(&ours_of, &targets).unwrap();
            let [a, b] = [&ours, &theirs].map(|sum| sum.to_scalar::<f64>().unwrap());
            assert!((a - b).abs() < 1e-12, "{a} and {b}");
            let [a, b] = [&ours, &theirs].map(|sum| {
                let gradients = sum.backward().unwrap();
                gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
            });
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} and {b:?}");
            let tally = count(&ours_of, &targets, &ours).unwrap();
            let best = logits.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap();
            let right = best.iter().zip([0u32, 4, 2, 1, 3, 0]).filter(|(a, b)| *a == b).count();
            assert_eq!((tally.samples, tally.correct), (6, right));
        }
    }
}
