//! The embedded data set: 1,797 handwritten digits of 8x8 pixels (data/README.md has the source,
//! the licence and the format).

use super::Images;
use crate::error::{Error, Result};

/// Images cut in two.
#[derive(Clone, Debug)]
pub struct Split {
    /// To train with; 1,438 of the digits.
    pub train: Images,
    /// To test with; 359 of the digits, every fifth.
    pub test: Images,
}

/// The embedded digits; every fifth is for testing.
///
/// # Errors
/// [`Error::Data`] where the embedded file was damaged before the build.
pub fn digits() -> Result<Split> {
    parse(DIGITS)
}

fn parse(text: &[u8]) -> Result<Split> {
    let mut parts = [const { (Vec::new(), Vec::new()) }; 2];
    for (at, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let damaged = || Error::Data { line: at + 1 };
        let (pixels, rest) = line.split_at_checked(SIDE * SIDE).ok_or_else(damaged)?;
        let &[b' ', label @ b'0'..=b'9', b'\n'] = rest else {
            return Err(damaged());
        };
        let part = &mut parts[usize::from(at % EVERY == EVERY - 1)];
        for &digit in pixels {
            part.0.push(ink(digit).ok_or_else(damaged)?);
        }
        part.1.push(label - b'0');
    }
    let [train, test] =
        parts.map(|(pixels, labels)| Images::new(pixels, labels, (SIDE, SIDE), INK));
    Ok(Split { train, test })
}

/// One digit of base 17.
fn ink(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'g' => Some(digit - b'a' + 10),
        _ => None,
    }
}

static DIGITS: &[u8] = include_bytes!("../../data/digits.txt");

/// Pixels along one side of an image.
const SIDE: usize = 8;
/// The value of a pixel full of ink.
const INK: u8 = 16;
/// Every fifth sample is for testing.
const EVERY: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::images::CLASSES;
    use candle_core::DType;

    #[test]
    fn the_embedded_digits_are_whole() {
        let split = digits().unwrap();
        assert_eq!((split.train.len(), split.test.len()), (1438, 359));
        // The counts per digit that the UCI repository gives for its test set.
        let mut counts = [0; CLASSES];
        for &label in split.train.parts()[1].iter().chain(split.test.parts()[1]) {
            counts[usize::from(label)] += 1;
        }
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        let most = split.train.parts()[0].iter().max();
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
