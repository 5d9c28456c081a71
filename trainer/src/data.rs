//! The embedded data set: 1,797 handwritten digits of 8x8 pixels (data/README.md has the source,
//! the licence and the format).

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// Images with a label each.
#[derive(Clone, Debug)]
pub struct Dataset {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

/// A data set cut in two.
#[derive(Clone, Debug)]
pub struct Split {
    /// To train with: 1,438 samples.
    pub train: Dataset,
    /// To test with: 359 samples, every fifth.
    pub test: Dataset,
}

impl Dataset {
    /// The number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The images of `samples` as a tensor of shape (n, 1, 8, 8), values 0 to 1, and their labels
    /// as a u32 tensor of shape (n).
    ///
    /// # Errors
    /// A sample number that is not below [`len`](Self::len).
    pub fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
        let mut pixels = Vec::with_capacity(samples.len() * PIXELS);
        let mut labels = Vec::with_capacity(samples.len());
        for &sample in samples {
            let (Some(image), Some(&label)) =
                (self.pixels.get(sample * PIXELS..(sample + 1) * PIXELS), self.labels.get(sample))
            else {
                return Err(candle_core::Error::Msg(format!(
                    "sample {sample} of a data set of {}",
                    self.len()
                ))
                .into());
            };
            pixels.extend(image.iter().map(|&ink| f32::from(ink) / f32::from(INK)));
            labels.push(u32::from(label));
        }
        let images = Tensor::from_vec(pixels, (samples.len(), 1, SIDE, SIDE), &Device::Cpu)?;
        let labels = Tensor::from_vec(labels, samples.len(), &Device::Cpu)?;
        Ok((images.to_dtype(dtype)?, labels))
    }
}

/// The embedded digits; every fifth is for testing.
///
/// # Errors
/// [`Error::Data`] where the embedded file was damaged before the build.
pub fn digits() -> Result<Split> {
    parse(DIGITS)
}

fn parse(text: &[u8]) -> Result<Split> {
    let empty = Dataset { pixels: Vec::new(), labels: Vec::new() };
    let mut split = Split { train: empty.clone(), test: empty };
    for (at, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let damaged = || Error::Data { line: at + 1 };
        let (pixels, rest) = line.split_at_checked(PIXELS).ok_or_else(damaged)?;
        let &[b' ', label @ b'0'..=b'9', b'\n'] = rest else {
            return Err(damaged());
        };
        let part = if at % EVERY == EVERY - 1 { &mut split.test } else { &mut split.train };
        for &digit in pixels {
            part.pixels.push(ink(digit).ok_or_else(damaged)?);
        }
        part.labels.push(label - b'0');
    }
    Ok(split)
}

/// One digit of base 17.
fn ink(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'g' => Some(digit - b'a' + 10),
        _ => None,
    }
}

static DIGITS: &[u8] = include_bytes!("../data/digits.txt");

/// The number of different labels.
pub(crate) const CLASSES: usize = 10;
/// Pixels along one side of an image.
pub(crate) const SIDE: usize = 8;
/// Pixels of an image.
pub(crate) const PIXELS: usize = SIDE * SIDE;
/// The value of a pixel full of ink.
const INK: u8 = 16;
/// Every fifth sample is for testing.
const EVERY: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_digits_are_whole() {
        let split = digits().unwrap();
        assert_eq!((split.train.len(), split.test.len()), (1438, 359));
        // The counts per digit that the UCI repository gives for its test set.
        let mut counts = [0; CLASSES];
        for &label in split.train.labels.iter().chain(&split.test.labels) {
            counts[usize::from(label)] += 1;
        }
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        let most = split.train.pixels.iter().max();
        assert_eq!(most, Some(&INK));
    }

    #[test]
    fn a_batch_has_the_images_asked_for() {
        let train = digits().unwrap().train;
        let (images, labels) = train.batch(&[0, 4], DType::F64).unwrap();
        assert_eq!(images.dims(), [2, 1, 8, 8]);
        // Sample 4 of the training set is the sixth of the file.
        assert_eq!(labels.to_vec1::<u32>().unwrap(), [0, 5]);
        let row = images.get(0).unwrap().get(0).unwrap().get(0).unwrap();
        let ink = [0., 0., 5., 13., 9., 1., 0., 0.].map(|value| value / 16.0);
        assert_eq!(row.to_vec1::<f64>().unwrap(), ink);
        assert!(train.batch(&[1438], DType::F32).is_err());
    }

    #[test]
    fn damage_is_told_by_its_line() {
        let mut text = DIGITS.to_vec();
        text[67 * 2 + 3] = b'z';
        let error = parse(&text).unwrap_err();
        assert_eq!(error.to_string(), "embedded digits: line 3 is damaged");
        assert!(parse(&DIGITS[..100]).is_err());
    }
}
