//! The models that `train` knows: cnn and mlp, both for 8x8 images and 10 classes.

use std::fmt;
use std::str::FromStr;

use candle_core::{Result as Candle, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module, VarBuilder, conv2d, linear};

use crate::data::{CLASSES, SIDE, Shape};
use crate::error::{Error, Result};

/// A model by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Two 3x3 convolutions (16 and 32 channels), each halved by max pooling, and a dense layer.
    Cnn,
    /// One hidden dense layer.
    Mlp,
}

impl ModelKind {
    /// The width of the hidden dense layer where none is asked for.
    pub fn default_hidden(self) -> usize {
        match self {
            Self::Cnn => 64,
            Self::Mlp => 100,
        }
    }

    /// Builds the model from variables that `vars` names and owns.
    ///
    /// Its input has the shape (n, 1, 8, 8), its output, the logits, (n, 10).
    pub fn build(self, hidden: usize, vars: VarBuilder) -> Candle<Box<dyn Module>> {
        Ok(match self {
            Self::Cnn => Box::new(Cnn::new(hidden, vars)?),
            Self::Mlp => Box::new(Mlp::new(hidden, vars)?),
        })
    }
}

impl ModelKind {
    /// Whether the model can take this data, called `name`.
    ///
    /// # Errors
    /// [`Error::Unfit`].
    pub(crate) fn fits(self, shape: &Shape, name: &str) -> Result<()> {
        let unfit = |problem: String, help: &str| Error::Unfit {
            model: self.to_string(),
            data: name.into(),
            problem,
            help: help.into(),
        };
        match (self, shape) {
            (Self::Cnn, &Shape::Images { height, width, .. }) if height.min(width) < SMALLEST => {
                let problem =
                    format!("images of {shape} cannot be halved twice, {SMALLEST}x{SMALLEST} can");
                Err(unfit(problem, "train `--model mlp` on them"))
            }
            (Self::Cnn | Self::Mlp, Shape::Images { .. }) => Ok(()),
            (Self::Cnn | Self::Mlp, Shape::Text { .. }) => {
                Err(unfit("it takes images, not text".into(), "train `--model lm` on a text"))
            }
        }
    }
}

impl FromStr for ModelKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cnn" => Ok(Self::Cnn),
            "mlp" => Ok(Self::Mlp),
            _ => Err(Error::UnknownModel { name: name.into() }),
        }
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cnn => "cnn",
            Self::Mlp => "mlp",
        })
    }
}

struct Cnn {
    conv1: Conv2d,
    conv2: Conv2d,
    dense1: Linear,
    dense2: Linear,
}

impl Cnn {
    fn new(hidden: usize, vars: VarBuilder) -> Candle<Self> {
        let same = Conv2dConfig { padding: KERNEL / 2, ..Conv2dConfig::default() };
        let [first, second] = CHANNELS;
        let pooled = second * (SIDE / 4) * (SIDE / 4);
        Ok(Self {
            conv1: conv2d(1, first, KERNEL, same, vars.pp("conv1"))?,
            conv2: conv2d(first, second, KERNEL, same, vars.pp("conv2"))?,
            dense1: linear(pooled, hidden, vars.pp("dense1"))?,
            dense2: linear(hidden, CLASSES, vars.pp("dense2"))?,
        })
    }
}

impl Module for Cnn {
    fn forward(&self, images: &Tensor) -> Candle<Tensor> {
        images
            .apply(&self.conv1)?
            .relu()?
            .max_pool2d(2)?
            .apply(&self.conv2)?
            .relu()?
            .max_pool2d(2)?
            .flatten_from(1)?
            .apply(&self.dense1)?
            .relu()?
            .apply(&self.dense2)
    }
}

struct Mlp {
    dense1: Linear,
    dense2: Linear,
}

impl Mlp {
    fn new(hidden: usize, vars: VarBuilder) -> Candle<Self> {
        Ok(Self {
            dense1: linear(SIDE * SIDE, hidden, vars.pp("dense1"))?,
            dense2: linear(hidden, CLASSES, vars.pp("dense2"))?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, images: &Tensor) -> Candle<Tensor> {
        images.flatten_from(1)?.apply(&self.dense1)?.relu()?.apply(&self.dense2)
    }
}

/// The names in words, for messages.
pub(crate) const NAMES: &str = "cnn or mlp";

/// Side of a convolution's window, in pixels.
const KERNEL: usize = 3;
/// Pixels along a side that can be halved twice.
const SMALLEST: usize = 4;
/// Output channels of the two convolutions.
const CHANNELS: [usize; 2] = [16, 32];

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    #[test]
    fn models_have_their_sizes() {
        for (kind, expected) in [(ModelKind::Cnn, 13_706), (ModelKind::Mlp, 7_510)] {
            let map = VarMap::new();
            let vars = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
            let model = kind.build(kind.default_hidden(), vars).unwrap();
            let images = Tensor::zeros((3, 1, 8, 8), DType::F64, &Device::Cpu).unwrap();
            assert_eq!(model.forward(&images).unwrap().dims(), [3, 10]);
            let count: usize = map.all_vars().iter().map(|var| var.elem_count()).sum();
            assert_eq!(count, expected);
            assert_eq!(kind.to_string().parse::<ModelKind>().unwrap(), kind);
        }
    }
}
