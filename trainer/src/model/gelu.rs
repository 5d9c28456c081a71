//! The Gaussian error linear unit in its tanh form (D. Hendrycks, K. Gimpel, *Gaussian error
//! linear units*, 2016), which PyTorch calls `gelu(approximate="tanh")`.
//!
//! On the host in one pass forwards and one backwards: candle's own, which a GPU takes, needs a dozen,
//! with two general powers.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// x times the tanh form of the normal distribution's integral up to x.
pub(super) fn gelu(values: &Tensor) -> Result<Tensor> {
    match values.device().is_cpu() {
        true => values.contiguous()?.apply_op1(Gelu),
        false => values.gelu(),
    }
}

struct Gelu;

/// From the values and the gradient of their gelu, the gradient of the values.
struct Slope;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, values: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let range = contiguous(layout)?;
        let mapped = match values {
            CpuStorage::F32(values) => {
                CpuStorage::F32(values[range].iter().map(|&x| x * part32(x)).collect())
            }
            CpuStorage::F64(values) => {
                CpuStorage::F64(values[range].iter().map(|&x| x * part64(x)).collect())
            }
            _ => bail!("gelu takes f32 or f64"),
        };
        Ok((mapped, layout.shape().clone()))
    }

    fn bwd(&self, values: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        values.apply_op2_no_bwd(&gradient.contiguous()?, &Slope).map(Some)
    }
}

impl CustomOp2 for Slope {
    fn name(&self) -> &'static str {
        "gelu-slope"
    }

    fn cpu_fwd(
        &self,
        values: &CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (range, from) = (contiguous(layout)?, contiguous(gradient_layout)?);
        let mapped = match (values, gradient) {
            (CpuStorage::F32(values), CpuStorage::F32(gradient)) => {
                let pairs = values[range].iter().zip(&gradient[from]);
                CpuStorage::F32(pairs.map(|(&x, &gradient)| gradient * slope32(x)).collect())
            }
            (CpuStorage::F64(values), CpuStorage::F64(gradient)) => {
                let pairs = values[range].iter().zip(&gradient[from]);
                CpuStorage::F64(pairs.map(|(&x, &gradient)| gradient * slope64(x)).collect())
            }
            _ => bail!("gelu takes f32 or f64"),
        };
        Ok((mapped, layout.shape().clone()))
    }
}

/// (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), with u = sqrt(2 / pi) (x + 0.044715 x^3).
fn part64(x: f64) -> f64 {
    1.0 / (1.0 + (-2.0 * SCALE * x * (1.0 + CUBE * x * x)).exp())
}

/// The derivative of x times that part: part + x part (1 - part) 2u'.
fn slope64(x: f64) -> f64 {
    let part = part64(x);
    part + x * part * (1.0 - part) * 2.0 * SCALE * (1.0 + 3.0 * CUBE * x * x)
}

fn part32(x: f32) -> f32 {
    1.0 / (1.0 + (-2.0 * SCALE as f32 * x * (1.0 + CUBE as f32 * x * x)).exp())
}

fn slope32(x: f32) -> f32 {
    let part = part32(x);
    part + x * part * (1.0 - part) * 2.0 * SCALE as f32 * (1.0 + 3.0 * CUBE as f32 * x * x)
}

/// Where the elements of a contiguous tensor lie.
fn contiguous(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("values that are not contiguous"),
    }
}

/// The root of 2 / pi.
const SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// The authors' factor of the third power.
const CUBE: f64 = 0.044715;

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn it_is_candles_in_value_and_gradient() {
        let values: Vec<f64> = (-60..=60).map(|at| f64::from(at) / 10.0).collect();
        for dtype in [DType::F32, DType::F64] {
            let values = Tensor::new(&values[..], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let values = Var::from_tensor(&values).unwrap();
            let results = [gelu(&values).unwrap(), values.gelu().unwrap()];
            let [ours, theirs] = results.map(|result| {
                let gradients = result.sum_all().unwrap().backward().unwrap();
                let both = Tensor::cat(&[&result, gradients.get(&values).unwrap()], 0).unwrap();
                both.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
            });
            for (a, b) in ours.iter().zip(&theirs) {
                // candle rounds its constants to six digits.
                assert!((a - b).abs() < 1e-5, "{a} and {b}");
            }
        }
        // Far out it is 0 and x, never an overflow.
        assert_eq!([-1e4, 1e4].map(|x| x * part32(x)), [0.0, 1e4]);
        assert_eq!([-1e4, 1e4].map(slope32), [0.0, 1.0]);
    }
}
