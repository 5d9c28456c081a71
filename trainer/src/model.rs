//! The models that `train` knows: cnn and mlp for images, lm for text.

mod cnn;
mod gelu;
mod lm;
mod mlp;
mod pooling;

use std::fmt;
use std::str::FromStr;

use candle_core::Result as Candle;
use candle_nn::{Module, VarBuilder};

use crate::data::Shape;
use crate::error::{Error, Result};
use crate::options::OptimizerKind;

/// A model by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Two 3x3 convolutions (16 and 32 channels), each halved by max pooling, and a dense layer.
    Cnn,
    /// Hidden dense layers.
    Mlp,
    /// A small decoder-only transformer that tells the next character.
    Lm,
}

impl ModelKind {
    /// The hidden widths where none are asked for: of the dense layer or layers, for lm the one
    /// width of the model.
    pub fn default_hidden(self) -> &'static [usize] {
        match self {
            Self::Cnn | Self::Lm => &[64],
            Self::Mlp => &[100],
        }
    }

    /// The learning rate where none is asked for.
    pub(crate) fn default_lr(self, optimizer: OptimizerKind) -> f64 {
        match (self, optimizer) {
            // After 200 steps of 32 windows the loss is 2.2, at the usual 0.01 it is 2.5.
            (Self::Lm, OptimizerKind::Adamw) => 0.003,
            _ => optimizer.default_lr(),
        }
    }

    /// Builds the model from the variables that `vars` names and owns.
    ///
    /// Its input is that of a [`Dataset`](crate::Dataset) of this `shape`; its output, the logits,
    /// has the shape (n, classes), or (n, length, characters). Building computes nothing and draws
    /// nothing, so that a model can be built anew at every step, from other tensors each time.
    ///
    /// # Errors
    /// A shape for which the model is not made; tensors of other shapes than the model's.
    pub fn build(
        self,
        hidden: &[usize],
        shape: &Shape,
        vars: VarBuilder,
    ) -> Candle<Box<dyn Module>> {
        Ok(match (self, shape, hidden) {
            (Self::Mlp, &Shape::Images { channels, height, width, classes }, _) => {
                Box::new(mlp::Mlp::new(channels * height * width, hidden, classes, vars)?)
            }
            (Self::Cnn, shape @ Shape::Images { .. }, &[hidden]) => {
                Box::new(cnn::Cnn::new(shape, hidden, vars)?)
            }
            (Self::Lm, Shape::Text { length, vocabulary }, &[width]) => {
                Box::new(lm::Lm::new(vocabulary.len(), *length, width, vars)?)
            }
            _ => candle_core::bail!("model {self} of hidden {hidden:?} on samples of {shape}"),
        })
    }

    /// Whether the model can have these hidden widths.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(crate) fn check_hidden(self, hidden: &[usize]) -> Result<()> {
        let wrong = |problem: String, help: String| Error::Option {
            option: "--hidden",
            value: widths(hidden),
            problem,
            help,
        };
        match (self, hidden) {
            (Self::Lm, &[width]) if !width.is_multiple_of(lm::HEADS) => Err(wrong(
                format!("lm has {} heads of equal width", lm::HEADS),
                format!("give a multiple of {}", lm::HEADS),
            )),
            (Self::Lm, &[width]) if width > lm::WIDTH_LIMIT => Err(wrong(
                format!("more than {}", lm::WIDTH_LIMIT),
                format!("give a number from {} to {}", lm::HEADS, lm::WIDTH_LIMIT),
            )),
            (Self::Cnn | Self::Lm, [_]) | (Self::Mlp, [_, ..]) => Ok(()),
            (Self::Cnn | Self::Lm, _) => {
                Err(wrong(format!("{self} has one width"), "give one number".into()))
            }
            (Self::Mlp, []) => Err(wrong("no layer".into(), "give a width for each layer".into())),
        }
    }

    /// Whether the model can take this data, called `name`.
    ///
    /// # Errors
    /// [`Error::Unfit`].
    pub(crate) fn fits(self, shape: &Shape, name: &str) -> Result<()> {
        match (self, shape) {
            (Self::Cnn, &Shape::Images { height, width, .. })
                if height.min(width) < cnn::SMALLEST =>
            {
                let smallest = cnn::SMALLEST;
                let problem =
                    format!("images of {shape} cannot be halved twice, {smallest}x{smallest} can");
                Err(self.unfit(name, problem, "train `--model mlp` on them"))
            }
            (Self::Cnn | Self::Mlp, Shape::Images { .. }) | (Self::Lm, Shape::Text { .. }) => {
                Ok(())
            }
            (Self::Cnn | Self::Mlp, Shape::Text { .. }) => {
                Err(self.unfit(name, "it takes images, not text", "train `--model lm` on a text"))
            }
            (Self::Lm, Shape::Images { .. }) => {
                Err(self.unfit(name, "it takes text, not images", TEXT_FILE))
            }
        }
    }

    /// The error that data does not fit.
    pub(crate) fn unfit(self, data: &str, problem: impl Into<String>, help: &str) -> Error {
        Error::Unfit {
            model: self.to_string(),
            data: data.into(),
            problem: problem.into(),
            help: help.into(),
        }
    }
}

impl FromStr for ModelKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cnn" => Ok(Self::Cnn),
            "mlp" => Ok(Self::Mlp),
            "lm" => Ok(Self::Lm),
            _ => Err(Error::UnknownModel { name: name.into() }),
        }
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cnn => "cnn",
            Self::Mlp => "mlp",
            Self::Lm => "lm",
        })
    }
}

/// Hidden widths as the command line has them: `1024,1024`.
pub(crate) fn widths(hidden: &[usize]) -> String {
    let widths: Vec<String> = hidden.iter().map(usize::to_string).collect();
    widths.join(",")
}

/// The names in words, for messages.
pub(crate) const NAMES: &str = "cnn, mlp or lm";
/// What to give a model of text.
pub(crate) const TEXT_FILE: &str = "give a text file by --data, or leave it out";

#[cfg(test)]
mod tests;
