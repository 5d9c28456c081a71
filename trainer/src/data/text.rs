//! Text, cut into windows of characters.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::file::{Source, bad, bad_line};
use super::{Dataset, Shape, no_such_sample};
use crate::error::Result;

/// A text cut in two.
#[derive(Clone, Debug)]
pub struct Text {
    /// To train with.
    pub train: Windows,
    /// To test with: the last tenth.
    pub test: Windows,
    vocabulary: Vec<char>,
}

/// The windows of a text, each a sample: characters, and those that come next. Windows do not
/// overlap; every character but the first is the next one of exactly one window, up to a rest at
/// the end that does not fill one.
#[derive(Clone, Debug)]
pub struct Windows {
    /// The number of each character in the vocabulary.
    characters: Arc<[u16]>,
}

impl Text {
    /// The embedded text: the first volume of *Persuasion* by Jane Austen, 1817 (data/README.md).
    ///
    /// # Errors
    /// None in a build that passed its tests.
    pub fn embedded() -> Result<Self> {
        Self::of(EMBEDDED, Path::new("persuasion.txt"))
    }

    /// Reads a text file in UTF-8.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input): a file that cannot be read, is no UTF-8 (with the
    /// line), is too short for training and test, or has too many different characters.
    pub fn read(path: &Path) -> Result<Self> {
        let mut source = Source::open(path)?;
        let bytes = source.read(BYTES_LIMIT + 1)?;
        if bytes.len() as u64 > BYTES_LIMIT {
            let problem = format!("longer than {BYTES_LIMIT} bytes");
            return Err(bad(path, problem, "train on a part: all is held in memory"));
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::of(text, path),
            Err(error) => {
                let at = error.valid_up_to();
                let line = 1 + bytes[..at].iter().filter(|&&byte| byte == b'\n').count();
                let problem = format!("byte {at} (0x{:02x}) is not UTF-8", bytes[at]);
                let help = "save the file as UTF-8: iconv -f LATIN1 -t UTF-8, if it is Latin-1";
                Err(bad_line(path, line as u64, problem, help))
            }
        }
    }

    /// What a sample looks like.
    pub fn shape(&self) -> Shape {
        Shape::Text { length: LENGTH, vocabulary: self.vocabulary.clone() }
    }

    fn of(text: &str, path: &Path) -> Result<Self> {
        let mut found = std::collections::BTreeSet::new();
        let mut count = 0;
        for character in text.chars() {
            count += 1;
            if found.insert(character) && found.len() > VOCABULARY_LIMIT {
                let problem = format!("more than {VOCABULARY_LIMIT} different characters");
                return Err(bad(path, problem, "the model needs a text of fewer"));
            }
        }
        // A window in the test part, and so in the larger one.
        if count < FEWEST {
            let problem = format!("{count} characters, expected {FEWEST} or more");
            return Err(bad(path, problem, "give a longer text"));
        }
        let vocabulary: Vec<char> = found.into_iter().collect();
        let number = |character: char| {
            // Every character was found above.
            vocabulary.binary_search(&character).unwrap_or_default() as u16
        };
        // A table for those that make up most texts.
        let ascii: [u16; 128] = std::array::from_fn(|byte| number(char::from(byte as u8)));
        let numbers: Vec<u16> = text
            .chars()
            .map(|character| match ascii.get(character as usize) {
                Some(&known) => known,
                None => number(character),
            })
            .collect();
        let (train, test) = numbers.split_at(numbers.len() - numbers.len() / PARTS);
        let [train, test] = [train, test].map(|part| Windows { characters: part.into() });
        Ok(Self { train, test, vocabulary })
    }
}

impl Windows {
    /// All that is in it, for a fingerprint.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.characters.iter().flat_map(|number| number.to_le_bytes()).collect()
    }
}

impl Dataset for Windows {
    fn len(&self) -> usize {
        self.characters.len().saturating_sub(1) / LENGTH
    }

    fn batch(&self, samples: &[usize], _: DType) -> Result<(Tensor, Tensor)> {
        let mut inputs = Vec::with_capacity(samples.len() * LENGTH);
        let mut targets = Vec::with_capacity(samples.len() * LENGTH);
        for &sample in samples {
            if sample >= self.len() {
                return Err(no_such_sample(sample, self.len()));
            }
            let window = &self.characters[sample * LENGTH..=(sample + 1) * LENGTH];
            inputs.extend(window[..LENGTH].iter().map(|&number| u32::from(number)));
            targets.extend(window[1..].iter().map(|&number| u32::from(number)));
        }
        let shape = (samples.len(), LENGTH);
        Ok((
            Tensor::from_vec(inputs, shape, &Device::Cpu)?,
            Tensor::from_vec(targets, shape, &Device::Cpu)?,
        ))
    }
}

static EMBEDDED: &str = include_str!("../../data/persuasion.txt");

/// Characters of a window: a line or two, so that a step stays short on a CPU.
const LENGTH: usize = 64;
/// The test part is one of so many.
const PARTS: usize = 10;
/// Characters of a text at least: a window and the character after it in the test part.
const FEWEST: usize = (LENGTH + 1) * PARTS;
/// Different characters: their scores are computed for every place of every window.
const VOCABULARY_LIMIT: usize = 8192;
/// Bytes of a file: its characters are held in memory.
const BYTES_LIMIT: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_embedded_text_is_whole() {
        let text = Text::embedded().unwrap();
        assert_eq!(text.shape().to_string(), "64 of 75 characters");
        assert_eq!((text.train.len(), text.test.len()), (3030, 336));
    }

    #[test]
    fn the_next_characters_are_the_targets() {
        let letters: String = ('a'..='z').cycle().take(1000).collect();
        let text = Text::of(&letters, Path::new("letters")).unwrap();
        let (inputs, targets) = text.train.batch(&[1, 0], DType::F32).unwrap();
        let [inputs, targets] = [inputs, targets].map(|t| t.to_vec2::<u32>().unwrap());
        let expected = |from: u32| (from..from + 64).map(|at| at % 26).collect::<Vec<u32>>();
        assert_eq!(inputs, [expected(64), expected(0)]);
        assert_eq!(targets, [expected(65), expected(1)]);
        assert!(text.train.batch(&[text.train.len()], DType::F32).is_err());
    }

    #[test]
    fn a_text_that_cannot_be_used() {
        let of = |text: &str| Text::of(text, Path::new("a.txt")).unwrap_err().to_string();
        assert_eq!(of(&"a".repeat(649)), "a.txt: 649 characters, expected 650 or more");
        let many: String = (0x4e00..0x4e00 + 8193).filter_map(char::from_u32).collect();
        assert_eq!(of(&many), "a.txt: more than 8192 different characters");
        // Each part has a window in the shortest text that is taken.
        let text = Text::of(&"ab".repeat(325), Path::new("a.txt")).unwrap();
        assert_eq!((text.train.len(), text.test.len()), (9, 1));
    }

    #[test]
    fn bytes_that_are_no_text_are_told_by_their_line() {
        let folder = crate::data::file::Scratch::new("text");
        let path = folder.write("latin1.txt", b"one\ntwo\ncaf\xe9 au lait\n");
        let error = Text::read(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("latin1.txt:3: byte 11 (0xe9) is not UTF-8"), "{text}");
        let error = Text::read(&folder.write("empty.txt", b"")).unwrap_err();
        assert!(error.to_string().ends_with("empty.txt: the file is empty"), "{error}");
        let error = Text::read(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with("is a directory"), "{error}");
        let error = Text::read(&folder.path().join("none.txt")).unwrap_err();
        assert!(error.to_string().ends_with("there is no such file or directory"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in ".{650,900}") {
            let windows = Text::of(&text, Path::new("any")).unwrap();
            let numbers = [windows.train, windows.test].map(|part| part.characters.to_vec()).concat();
            let back: String =
                numbers.iter().map(|&at| windows.vocabulary[usize::from(at)]).collect();
            prop_assert_eq!(back, text);
        }

        /// Bytes of any kind are an error or a text, never a panic.
        #[test]
        fn any_bytes_are_an_error_or_a_text(
            mut bytes in "[a-z\\n\u{e9}]{600,700}".prop_map(String::into_bytes),
            flips in prop::collection::vec((0usize..700, any::<u8>()), 0..3),
        ) {
            for (at, bits) in flips {
                bytes[at % 600] ^= bits;
            }
            let folder = crate::data::file::Scratch::new("text");
            match Text::read(&folder.write("a.txt", &bytes)) {
                Ok(text) => prop_assert!(text.train.len() >= 9 && text.test.len() == 1),
                Err(error) => prop_assert!(error.to_string().contains("a.txt")),
            }
        }
    }
}
