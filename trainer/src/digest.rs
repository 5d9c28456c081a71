//! One number for all parameters, and whether all ranks have the same.

use std::fmt;

use allfold::{Communicator, ReduceOp};
use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use candle_core::{DType, Var, WithDType};

use crate::error::{Error, Result};
use crate::parameters::{describe, with_elements};

/// SHA-256 over the parameters in the order of names: of each, the line that describes it and
/// its elements, little-endian. Prints as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; SHA256_OUTPUT_LEN]);

impl Digest {
    pub(crate) fn of(parameters: &[(String, Var)]) -> Result<Self> {
        let mut hash = Context::new(&SHA256);
        for ((_, var), line) in parameters.iter().zip(describe(parameters)) {
            hash.update(line.as_bytes());
            hash.update(b"\n");
            match var.dtype() {
                DType::F64 => add(&mut hash, var, f64::to_le_bytes)?,
                _ => add(&mut hash, var, f32::to_le_bytes)?,
            }
        }
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(hash.finish().as_ref());
        Ok(Self(bytes))
    }

    /// Compares the digests of all ranks.
    ///
    /// # Errors
    /// [`Error::ParametersDiffer`] on every rank, with the ranks that have each digest.
    pub(crate) fn compare(self, world: &Communicator) -> Result<()> {
        // One slot a rank, of words that an f64 holds exactly: the sum puts all side by side.
        let mut slots = vec![0.0f64; world.size() * WORDS];
        let own = slots.iter_mut().skip(world.rank() * WORDS);
        for (slot, word) in own.zip(self.0.chunks_exact(4)) {
            *slot = word.iter().fold(0.0, |word, &byte| word * 256.0 + f64::from(byte));
        }
        world.all_reduce(&mut slots, ReduceOp::Sum)?;

        let mut groups: Vec<(&[f64], Vec<usize>)> = Vec::new();
        for (rank, words) in slots.chunks_exact(WORDS).enumerate() {
            match groups.iter_mut().find(|(seen, _)| *seen == words) {
                Some((_, ranks)) => ranks.push(rank),
                None => groups.push((words, vec![rank])),
            }
        }
        if groups.len() == 1 {
            return Ok(());
        }
        let groups: Vec<String> = groups
            .iter()
            .map(|(words, ranks)| {
                // The first 8 of 64 digits tell them apart.
                let start = words.first().copied().unwrap_or_default() as u32;
                format!("digest {start:08x}... on {}", in_words(ranks))
            })
            .collect();
        Err(Error::ParametersDiffer { groups: groups.join(", ") })
    }
}

fn add<T: WithDType, const N: usize>(
    hash: &mut Context,
    var: &Var,
    to_bytes: impl Fn(T) -> [u8; N],
) -> Result<()> {
    with_elements(var, |elements: &[T]| {
        let bytes: Vec<u8> = elements.iter().flat_map(|&x| to_bytes(x)).collect();
        hash.update(&bytes);
    })
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ranks in ascending order, such as `rank 3` or `ranks 0-2, 5`.
fn in_words(ranks: &[usize]) -> String {
    let runs: Vec<String> = ranks
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [first, _, .., last] => format!("{first}-{last}"),
            few => few.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
        })
        .collect();
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{word} {}", runs.join(", "))
}

/// A digest in words of 32 bits.
const WORDS: usize = SHA256_OUTPUT_LEN / 4;

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn parameter(name: &str, values: &[f32]) -> (String, Var) {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        (name.into(), Var::from_tensor(&tensor).unwrap())
    }

    #[test]
    fn the_digest_is_sha_256_of_description_and_elements() {
        let digest = Digest::of(&[parameter("w", &[1.0, -2.0])]).unwrap();
        let text = b"`w` f32 [2]\n\x00\x00\x80\x3f\x00\x00\x00\xc0";
        let expected = aws_lc_rs::digest::digest(&SHA256, text);
        assert_eq!(digest.0, expected.as_ref());
        assert_eq!(digest.to_string().len(), 64);
        let renamed = Digest::of(&[parameter("v", &[1.0, -2.0])]).unwrap();
        assert_ne!(digest, renamed);
    }

    #[test]
    fn ranks_in_words() {
        assert_eq!(in_words(&[3]), "rank 3");
        assert_eq!(in_words(&[0, 1, 2, 5, 6]), "ranks 0-2, 5, 6");
    }

    #[test]
    fn a_world_of_one_agrees_with_itself() {
        let digest = Digest::of(&[parameter("w", &[1.0])]).unwrap();
        digest.compare(&Communicator::single()).unwrap();
    }
}
