//! Two convolutions, each halved, and two dense layers.

use candle_core::{Result, Tensor, bail};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module, VarBuilder, conv2d, linear};

use super::pooling::halve;
use crate::data::Shape;

/// The model.
pub(super) struct Cnn {
    conv1: Conv2d,
    conv2: Conv2d,
    dense1: Linear,
    dense2: Linear,
}

impl Cnn {
    pub(super) fn new(shape: &Shape, hidden: usize, vars: VarBuilder) -> Result<Self> {
        let &Shape::Images { channels, height, width, classes } = shape else {
            bail!("a convolution of {shape}")
        };
        let same = Conv2dConfig { padding: KERNEL / 2, ..Conv2dConfig::default() };
        let [first, second] = CHANNELS;
        let halved = second * (height / SMALLEST) * (width / SMALLEST);
        Ok(Self {
            conv1: conv2d(channels, first, KERNEL, same, vars.pp("conv1"))?,
            conv2: conv2d(first, second, KERNEL, same, vars.pp("conv2"))?,
            dense1: linear(halved, hidden, vars.pp("dense1"))?,
            dense2: linear(hidden, classes, vars.pp("dense2"))?,
        })
    }
}

impl Module for Cnn {
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let once = halve(&images.apply(&self.conv1)?.relu()?)?;
        let twice = halve(&once.apply(&self.conv2)?.relu()?)?;
        twice.flatten_from(1)?.apply(&self.dense1)?.relu()?.apply(&self.dense2)
    }
}

/// Pixels along a side that can be halved twice.
pub(super) const SMALLEST: usize = 4;
/// Side of a convolution's window, in pixels.
const KERNEL: usize = 3;
/// Output channels of the two convolutions.
const CHANNELS: [usize; 2] = [16, 32];
