//! A small decoder-only transformer (A. Vaswani et al., *Attention is all you need*, 2017; norms
//! before the layers as in GPT-2).

use candle_core::{D, Result, Tensor};
use candle_nn::{Embedding, Init, Linear, Module, VarBuilder, embedding, linear};

use super::gelu::gelu;

/// Characters to the scores of the next character, at each place.
pub(super) struct Lm {
    token: Embedding,
    /// A row for each place of the window.
    position: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    output: Linear,
}

impl Lm {
    pub(super) fn new(
        characters: usize,
        length: usize,
        width: usize,
        vars: VarBuilder,
    ) -> Result<Self> {
        let blocks = (1..=BLOCKS)
            .map(|number| Block::new(width, vars.pp(format!("block{number}"))))
            .collect::<Result<_>>()?;
        Ok(Self {
            token: embedding(characters, width, vars.pp("embedding.token"))?,
            position: vars.pp("embedding.position").get((length, width), "weight")?,
            blocks,
            norm: Norm::new(width, vars.pp("norm"))?,
            output: linear(width, characters, vars.pp("output"))?,
        })
    }
}

impl Module for Lm {
    fn forward(&self, characters: &Tensor) -> Result<Tensor> {
        let length = characters.dim(1)?;
        let position = self.position.narrow(0, 0, length)?;
        let mut values = characters.apply(&self.token)?.broadcast_add(&position)?;
        let hidden = future(length, &values)?;
        for block in &self.blocks {
            values = block.forward(&values, &hidden)?;
        }
        values.apply(&self.norm)?.apply(&self.output)
    }
}

/// What is added to the scores so that no place sees those after it.
fn future(length: usize, like: &Tensor) -> Result<Tensor> {
    let scores: Vec<f32> = (0..length)
        .flat_map(|from| (0..length).map(move |to| if to > from { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(scores, (length, length), like.device())?.to_dtype(like.dtype())
}

/// Each place looks at those before it, then thinks by itself.
struct Block {
    norm1: Norm,
    attention: Attention,
    norm2: Norm,
    dense1: Linear,
    dense2: Linear,
}

impl Block {
    fn new(width: usize, vars: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: Norm::new(width, vars.pp("norm1"))?,
            attention: Attention::new(width, vars.pp("attention"))?,
            norm2: Norm::new(width, vars.pp("norm2"))?,
            dense1: linear(width, WIDER * width, vars.pp("mlp.dense1"))?,
            dense2: linear(WIDER * width, width, vars.pp("mlp.dense2"))?,
        })
    }

    fn forward(&self, values: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        let seen = self.attention.forward(&values.apply(&self.norm1)?, hidden)?;
        let values = (values + seen)?;
        let thought = gelu(&values.apply(&self.norm2)?.apply(&self.dense1)?)?;
        values + thought.apply(&self.dense2)?
    }
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl Attention {
    fn new(width: usize, vars: VarBuilder) -> Result<Self> {
        let layer = |name: &str| linear(width, width, vars.pp(name));
        Ok(Self {
            query: layer("query")?,
            key: layer("key")?,
            value: layer("value")?,
            output: layer("output")?,
        })
    }

    fn forward(&self, values: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        let (n, length, width) = values.dims3()?;
        let heads = |layer: &Linear| {
            let split = (n, length, HEADS, width / HEADS);
            values.apply(layer)?.reshape(split)?.transpose(1, 2)?.contiguous()
        };
        let [query, key, value] = [heads(&self.query)?, heads(&self.key)?, heads(&self.value)?];
        let scale = 1.0 / ((width / HEADS) as f64).sqrt();
        let scores = (query * scale)?.matmul(&key.transpose(2, 3)?)?;
        let seen = softmax(&scores.broadcast_add(hidden)?)?.matmul(&value)?;
        seen.transpose(1, 2)?.reshape((n, length, width))?.apply(&self.output)
    }
}

/// Along the last dimension. (candle's `softmax_last_dim` has no gradient, and its `softmax` one
/// that also runs through the maximum, where it is 0.)
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let largest = scores.detach().max_keepdim(D::Minus1)?;
    let powers = scores.broadcast_sub(&largest)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// Mean 0 and variance 1 along the last dimension, then a weight and a bias. (candle's own has no
/// gradient.)
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(width: usize, vars: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vars.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: vars.get_with_hints(width, "bias", Init::Const(0.0))?,
        })
    }
}

impl Module for Norm {
    fn forward(&self, values: &Tensor) -> Result<Tensor> {
        let centred = values.broadcast_sub(&values.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred
            .broadcast_div(&(variance + EPSILON)?.sqrt()?)?
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias)
    }
}

/// The width of the model is split into so many.
pub(super) const HEADS: usize = 4;
/// Some 400 million parameters: a mistyped number should not take more.
pub(super) const WIDTH_LIMIT: usize = 4096;
const BLOCKS: usize = 2;
/// How much wider the layers inside a block are.
const WIDER: usize = 4;
/// Keeps a variance from being 0: PyTorch's.
const EPSILON: f64 = 1e-5;
