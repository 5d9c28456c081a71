//! Dense layers with rectifiers between them.

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};

/// `dense1`, `dense2`, ...: each input to each output.
pub(super) struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    pub(super) fn new(
        inputs: usize,
        hidden: &[usize],
        outputs: usize,
        vars: VarBuilder,
    ) -> Result<Self> {
        let mut layers = Vec::with_capacity(hidden.len() + 1);
        let mut inputs = inputs;
        for (at, &outputs) in hidden.iter().chain([&outputs]).enumerate() {
            layers.push(linear(inputs, outputs, vars.pp(format!("dense{}", at + 1)))?);
            inputs = outputs;
        }
        Ok(Self { layers })
    }
}

impl Module for Mlp {
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut values = images.flatten_from(1)?;
        for (at, layer) in self.layers.iter().enumerate() {
            if at > 0 {
                values = values.relu()?;
            }
            values = layer.forward(&values)?;
        }
        Ok(values)
    }
}
