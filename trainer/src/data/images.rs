//! Images in memory, a byte a pixel.

use candle_core::{DType, Device, Tensor};

use super::{Dataset, Shape, no_such_sample};
use crate::error::Result;

/// Grey images with a label each.
#[derive(Clone, Debug)]
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    height: usize,
    width: usize,
    /// The value of each byte, from 0 to 1.
    values: [f32; 256],
}

impl Images {
    /// `pixels` are those of each label's image in turn; `full` is the byte that stands for 1.
    pub(super) fn new(
        pixels: Vec<u8>,
        labels: Vec<u8>,
        (height, width): (usize, usize),
        full: u8,
    ) -> Self {
        debug_assert_eq!(pixels.len(), labels.len() * height * width);
        let values = std::array::from_fn(|byte| byte as f32 / f32::from(full));
        Self { pixels, labels, height, width, values }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The images of `samples` as a tensor of shape (n, 1, height, width), values 0 to 1, and
    /// their labels as a u32 tensor of shape (n).
    ///
    /// # Errors
    /// A sample number that is not below [`len`](Self::len).
    pub fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
        let size = self.height * self.width;
        let mut values = Vec::with_capacity(samples.len() * size);
        let mut labels = Vec::with_capacity(samples.len());
        for &sample in samples {
            let label =
                self.labels.get(sample).ok_or_else(|| no_such_sample(sample, self.len()))?;
            let image = &self.pixels[sample * size..(sample + 1) * size];
            values.extend(image.iter().map(|&byte| self.values[usize::from(byte)]));
            labels.push(u32::from(*label));
        }
        let shape = (samples.len(), 1, self.height, self.width);
        let images = Tensor::from_vec(values, shape, &Device::Cpu)?;
        let labels = Tensor::from_vec(labels, samples.len(), &Device::Cpu)?;
        Ok((images.to_dtype(dtype)?, labels))
    }

    /// What a sample looks like.
    pub fn shape(&self) -> Shape {
        let Self { height, width, .. } = *self;
        Shape::Images { channels: 1, height, width, classes: CLASSES }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// All that is in it, for a fingerprint.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        [&self.pixels, &self.labels]
    }
}

impl Dataset for Images {
    fn len(&self) -> usize {
        self.len()
    }

    fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
        self.batch(samples, dtype)
    }
}

/// The number of different labels: the whole MNIST family has ten.
pub(super) const CLASSES: usize = 10;
