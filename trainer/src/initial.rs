//! Initial weights from a seed: candle's generator on the CPU cannot be seeded.

use std::collections::HashMap;

use candle_core::{Device, Shape, Tensor, Var};
use candle_nn::VarMap;

use crate::error::Result;
use crate::parameters::by_name;
use crate::random::Random;

/// Fills every variable, in the order of names, as PyTorch's dense and convolution layers start:
/// evenly from -b to b, b = 1 / sqrt(fan in), for a weight and for the bias beside it.
///
/// (Kaiming He et al., *Delving deep into rectifiers*, 2015, with the factor that PyTorch takes.)
///
/// A weight of one dimension is that of a norm: it starts at 1 and the bias beside it at 0. An
/// embedding counts as a weight whose fan in is its width.
///
/// # Errors
/// A variable that cannot be set, which is a bug in candle.
pub fn fill_from_seed(vars: &VarMap, seed: u64) -> Result<()> {
    let parameters = by_name(vars);
    let shapes: HashMap<&str, &Shape> =
        parameters.iter().map(|(name, var)| (name.as_str(), var.shape())).collect();
    for (stream, (name, var)) in parameters.iter().enumerate() {
        let beside = name
            .strip_suffix("bias")
            .and_then(|layer| shapes.get(format!("{layer}weight").as_str()).copied());
        let weight = if name.ends_with("weight") { Some(var.shape()) } else { beside };
        match weight {
            // A norm starts as if it were not there.
            Some(weight) if weight.rank() == 1 => {
                var.set(&if beside.is_some() { var.zeros_like()? } else { var.ones_like()? })?;
            }
            _ => {
                let inputs = fan_in(weight.unwrap_or(var.shape())).max(1);
                let bound = 1.0 / (inputs as f64).sqrt();
                fill_evenly(var, bound, &mut Random::new(seed, stream as u64))?;
            }
        }
    }
    Ok(())
}

/// The number of inputs that one output adds up: all dimensions of a weight but the first.
fn fan_in(weight: &Shape) -> usize {
    weight.dims().iter().skip(1).product()
}

fn fill_evenly(var: &Var, bound: f64, random: &mut Random) -> Result<()> {
    let values: Vec<f64> =
        (0..var.elem_count()).map(|_| (2.0 * random.unit() - 1.0) * bound).collect();
    // Rounded on the host, so that the seed gives the same bits on every device.
    let values = Tensor::from_vec(values, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?;
    var.set(&values.to_device(var.device())?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;
    use crate::model::ModelKind;
    use candle_core::DType;
    use candle_nn::VarBuilder;

    fn filled(seed: u64) -> Vec<(String, Vec<f32>)> {
        let map = VarMap::new();
        let vars = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        ModelKind::Cnn.build(&[64], &digits().unwrap().train.shape(), vars).unwrap();
        fill_from_seed(&map, seed).unwrap();
        read(&map)
    }

    fn read(map: &VarMap) -> Vec<(String, Vec<f32>)> {
        by_name(map)
            .into_iter()
            .map(|(name, var)| (name, var.flatten_all().unwrap().to_vec1().unwrap()))
            .collect()
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(filled(1), filled(1));
        assert_ne!(filled(1), filled(2));
    }

    #[test]
    fn values_keep_the_bound_of_their_layer() {
        for (name, values) in filled(1) {
            let inputs = match name.split('.').next() {
                Some("conv1") => 9.0,
                Some("conv2") => 144.0,
                Some("dense1") => 128.0,
                _ => 64.0f32,
            };
            let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let bound = 1.0 / inputs.sqrt();
            assert!(most <= bound && most > 0.7 * bound, "{name}: {most}");
        }
    }

    #[test]
    fn norms_start_as_if_they_were_not_there() {
        let map = VarMap::new();
        let vars = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        for (name, shape) in
            [("norm.weight", &[3][..]), ("norm.bias", &[3]), ("token.weight", &[9, 16])]
        {
            vars.get(shape, name).unwrap();
        }
        fill_from_seed(&map, 1).unwrap();
        let [(_, bias), (_, weight), (_, token)] = <[_; 3]>::try_from(read(&map)).unwrap();
        assert_eq!((bias, weight), (vec![0.0; 3], vec![1.0; 3]));
        assert!(token.iter().all(|value| value.abs() <= 0.25 && *value != 0.0));
    }
}
