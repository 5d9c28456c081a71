//! What is trained on: samples by number, from the embedded sets or from the user's files.

mod csv;
mod digits;
mod file;
mod folder;
mod gzip;
mod idx;
mod images;
mod subset;
mod text;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use candle_core::{DType, Tensor};

use crate::digest::hex;
use crate::error::{Error, Result};
use crate::model::ModelKind;
use subset::hold_out;

pub use digits::{Split, digits};
#[cfg(test)]
pub(crate) use file::Scratch;
pub use images::Images;
pub use text::{Text, Windows};

/// Samples by number, so that a user's own store fits.
///
/// All ranks must have the same samples under the same numbers; each reads those that it is dealt
/// (see [`Sampler`](crate::Sampler)).
///
/// ```
/// use allfold_trainer::{Dataset, Result, Sampler};
/// use candle_core::{DType, Device, Tensor};
///
/// /// Numbers, and whether they are odd: a store that needs no memory.
/// struct Numbers(usize);
///
/// impl Dataset for Numbers {
///     fn len(&self) -> usize {
///         self.0
///     }
///
///     fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
///         let labels: Vec<u32> = samples.iter().map(|&number| number as u32 % 2).collect();
///         let images = samples.iter().map(|&number| number as f32 / self.0 as f32).collect();
///         let images = Tensor::from_vec(images, (samples.len(), 1, 1, 1), &Device::Cpu)?;
///         Ok((images.to_dtype(dtype)?, Tensor::new(labels, &Device::Cpu)?))
///     }
/// }
///
/// # fn main() -> Result<()> {
/// # let world = allfold::Communicator::single();
/// let store = Numbers(1000);
/// for share in Sampler::new(&world, store.len(), 100, 1).epoch(0) {
///     let (images, labels) = store.batch(&share, DType::F32)?;
///     assert_eq!(images.dim(0)?, labels.dim(0)?);
/// }
/// # Ok(())
/// # }
/// ```
pub trait Dataset: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there is no sample.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The inputs and the targets of `samples`, in this order.
    ///
    /// Images: the shape (n, channels, height, width) with values from 0 to 1 in `dtype`, and u32
    /// labels of shape (n). Text: u32 characters of shape (n, length), and of the same shape the
    /// u32 characters that come next.
    ///
    /// # Errors
    /// A sample number that is not below [`len`](Self::len); what the store says.
    fn batch(&self, samples: &[usize], dtype: DType) -> Result<(Tensor, Tensor)>;
}

/// A data set in its parts, and what of it a model needs to know.
#[derive(Clone)]
pub struct Data {
    /// To train with.
    pub train: Arc<dyn Dataset>,
    /// Held out of the training samples, where that was asked for.
    pub validation: Option<Arc<dyn Dataset>>,
    /// To test with.
    pub test: Arc<dyn Dataset>,
    /// What a sample looks like.
    pub shape: Shape,
    /// What it is and where it comes from, for people: `digits (embedded)`.
    pub name: String,
    /// SHA-256 over all samples as they were read, in hex: equal on ranks that have the same data.
    pub fingerprint: String,
}

/// What a sample looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An image, to be put into a class.
    Images {
        /// Colours of a pixel.
        channels: usize,
        /// Rows of pixels.
        height: usize,
        /// Pixels of a row.
        width: usize,
        /// The number of different labels.
        classes: usize,
    },
    /// A piece of a text, whose next characters are to be told.
    Text {
        /// Characters of a sample.
        length: usize,
        /// All characters of the text, in order; a character's number is its place here.
        vocabulary: Vec<char>,
    },
}

impl Data {
    /// Opens the data that fits a model: for images the embedded digits (`None` or `digits`) or a
    /// folder of the MNIST family, for text the embedded text (`None`) or a file. `held_out`
    /// samples are taken out of the training samples, the same on every rank that has the same
    /// `seed`.
    ///
    /// A folder holds IDX files under MNIST's names (`train-images-idx3-ubyte`, ..., also packed
    /// by gzip), or `mnist_train.csv` and `mnist_test.csv`, or one `*_train.csv` and its
    /// `*_test.csv`, one sample a line, the label first.
    ///
    /// # Errors
    /// [`Error::Input`] with file and place for what cannot be read; [`Error::Unfit`] where the
    /// model needs other data; [`Error::Option`] where `held_out` leaves nothing to train with.
    pub fn open(
        source: Option<&str>,
        model: ModelKind,
        held_out: usize,
        seed: u64,
    ) -> Result<Self> {
        if source == Some("") {
            return Err(Error::Input {
                place: "--data".into(),
                problem: "empty".into(),
                help: "give a folder or a file, or leave it out to take the embedded data".into(),
            });
        }
        let mut data = match (model, source) {
            (ModelKind::Lm, None) => {
                Self::of_text(Text::embedded()?, "persuasion (embedded)".into())
            }
            (ModelKind::Lm, Some(source)) => {
                if source == EMBEDDED || Path::new(source).is_dir() {
                    let problem = "it takes a text file, not images";
                    return Err(model.unfit(source, problem, crate::model::TEXT_FILE));
                }
                Self::of_text(Text::read(Path::new(source))?, format!("{source} (text)"))
            }
            (_, None | Some(EMBEDDED)) => Self::of_images(digits()?, "digits (embedded)".into()),
            (_, Some(folder)) => {
                let (split, format) = folder::open(Path::new(folder))?;
                Self::of_images(split, format!("{folder} ({format})"))
            }
        };
        model.fits(&data.shape, &data.name)?;
        (data.train, data.validation) = hold_out(data.train, held_out, seed)?;
        Ok(data)
    }

    fn of_images(Split { train, test }: Split, name: String) -> Self {
        let shape = train.shape();
        let fingerprint = fingerprint(&shape, &[train.parts(), test.parts()].concat());
        let (train, test): (Arc<dyn Dataset>, Arc<dyn Dataset>) = (Arc::new(train), Arc::new(test));
        Self { train, validation: None, test, shape, name, fingerprint }
    }

    fn of_text(text: Text, name: String) -> Self {
        let shape = text.shape();
        let fingerprint = fingerprint(&shape, &[&text.train.bytes(), &text.test.bytes()]);
        let (train, test) = (Arc::new(text.train), Arc::new(text.test));
        Self { train, validation: None, test, shape, name, fingerprint }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Shape {
    /// `28x28`, or `64 of 75 characters`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Images { channels: 1, height, width, .. } => write!(f, "{height}x{width}"),
            Self::Images { channels, height, width, .. } => {
                write!(f, "{channels}x{height}x{width}")
            }
            Self::Text { length, vocabulary } => {
                write!(f, "{length} of {} characters", vocabulary.len())
            }
        }
    }
}

/// SHA-256 over the shape and the bytes of the samples, each part with its length.
fn fingerprint(shape: &Shape, parts: &[&[u8]]) -> String {
    let mut hash = Context::new(&SHA256);
    hash.update(format!("{shape:?}\n").as_bytes());
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(hash.finish().as_ref())
}

/// A sample number beyond the end: a mistake in the program, not in the data.
fn no_such_sample(sample: usize, len: usize) -> Error {
    candle_core::Error::Msg(format!("sample {sample} of a data set of {len}")).into()
}

/// The name of the embedded digits.
const EMBEDDED: &str = "digits";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_data_follows_the_model() {
        for (model, source, name, train) in [
            (ModelKind::Cnn, None, "digits (embedded)", 1438),
            (ModelKind::Mlp, Some("digits"), "digits (embedded)", 1438),
            (ModelKind::Lm, None, "persuasion (embedded)", 3030),
        ] {
            let data = Data::open(source, model, 0, 1).unwrap();
            assert_eq!((data.name.as_str(), data.train.len()), (name, train));
            assert!(data.validation.is_none());
            assert_eq!(data.fingerprint.len(), 64);
        }
    }

    #[test]
    fn the_fingerprint_is_that_of_the_samples() {
        let open = |source: Option<&str>, model, held_out, seed| {
            Data::open(source, model, held_out, seed).unwrap()
        };
        let digits = open(None, ModelKind::Cnn, 0, 1);
        assert_eq!(digits.fingerprint, open(None, ModelKind::Mlp, 9, 2).fingerprint);
        let folder = Scratch::new("data");
        let text = "All ranks must have the same samples. ".repeat(50);
        let [one, other] = ["one", "other"].map(|name| {
            let text =
                if name == "one" { text.clone() } else { text.replacen("ranks", "tanks", 1) };
            let path = folder.write(name, text.as_bytes());
            open(path.to_str(), ModelKind::Lm, 0, 1).fingerprint
        });
        assert_ne!(one, other);
    }

    #[test]
    fn data_that_does_not_fit_the_model() {
        let folder = Scratch::new("data");
        let text = folder.write("a.txt", &[b'a'; 1000]);
        for (model, source, expected) in [
            (ModelKind::Lm, Some(""), "--data: empty"),
            (ModelKind::Cnn, Some(""), "--data: empty"),
            (ModelKind::Lm, Some("digits"), "it takes a text file, not images"),
            (ModelKind::Lm, folder.path().to_str(), "it takes a text file, not images"),
            (ModelKind::Cnn, text.to_str(), "is a file, and images come from a folder"),
        ] {
            let error = Data::open(source, model, 0, 1).unwrap_err();
            assert!(error.to_string().ends_with(expected), "{error}");
            assert!(error.help().is_some());
            assert_eq!(error.exit_code(), 2);
        }
        folder.write("mnist_train.csv", b"1,2\n3,4\n");
        folder.write("mnist_test.csv", b"1,2\n");
        let error = Data::open(folder.path().to_str(), ModelKind::Cnn, 0, 1).unwrap_err();
        assert!(error.to_string().contains("images of 1x1 cannot be halved twice"), "{error}");
        let data = Data::open(folder.path().to_str(), ModelKind::Mlp, 1, 1).unwrap();
        assert!(data.name.ends_with(" (csv)"), "{}", data.name);
    }
}
