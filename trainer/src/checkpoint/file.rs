//! One safetensors file: tensors, what is said about them, and a digest that finds damage.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The length of the header (u64,
//! little-endian), the header (JSON), the tensors' elements. The digest is the SHA-256 of the
//! whole file with the digest's own 64 digits as zeros.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest::{Context, SHA256};
use candle_core::{DType, Device, Tensor, WithDType};
use safetensors::tensor::{Metadata, TensorInfo};

use crate::digest::hex;
use crate::error::{Error, Result};
use crate::parameters::with_elements;

/// A deep copy of tensors, laid out as in the file.
pub(super) struct Contents {
    tensors: Vec<(String, TensorInfo)>,
    elements: Vec<u8>,
    /// The first tensor that holds an infinity or no number.
    not_finite: Option<String>,
}

impl Contents {
    pub(super) fn copy<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<Self> {
        let mut tensors: Vec<(&str, &Tensor)> = tensors.collect();
        // Wide elements first: every tensor is then aligned to its elements, as the format asks.
        let width = |tensor: &Tensor| tensor.dtype().size_in_bytes();
        tensors.sort_by(|(a, one), (b, two)| width(two).cmp(&width(one)).then(a.cmp(b)));
        let bytes = tensors.iter().map(|(_, tensor)| tensor.elem_count() * width(tensor)).sum();
        let mut copy =
            Self { tensors: Vec::new(), elements: Vec::with_capacity(bytes), not_finite: None };
        for (name, tensor) in tensors {
            let start = copy.elements.len();
            copy.append(name, tensor)?;
            let info = TensorInfo {
                dtype: tensor.dtype().into(),
                shape: tensor.dims().to_vec(),
                data_offsets: (start, copy.elements.len()),
            };
            copy.tensors.push((name.into(), info));
        }
        Ok(copy)
    }

    /// The first tensor that holds an infinity or no number, where one does.
    pub(super) fn not_finite(&self) -> Option<&str> {
        self.not_finite.as_deref()
    }

    fn append(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let bytes = &mut self.elements;
        let mut is_finite = true;
        match tensor.dtype() {
            DType::F32 => append(bytes, tensor, |element: f32| {
                is_finite &= element.is_finite();
                element.to_le_bytes()
            }),
            DType::F64 => append(bytes, tensor, |element: f64| {
                is_finite &= element.is_finite();
                element.to_le_bytes()
            }),
            DType::I64 => append(bytes, tensor, i64::to_le_bytes),
            DType::U32 => append(bytes, tensor, u32::to_le_bytes),
            DType::U8 => append(bytes, tensor, u8::to_le_bytes),
            other => Err(Error::Parameter {
                name: name.into(),
                problem: format!("a checkpoint holds no {}", other.as_str()),
            }),
        }?;
        if !is_finite {
            self.not_finite.get_or_insert_with(|| name.into());
        }
        Ok(())
    }
}

fn append<T: WithDType, const N: usize>(
    bytes: &mut Vec<u8>,
    tensor: &Tensor,
    mut to_bytes: impl FnMut(T) -> [u8; N],
) -> Result<()> {
    with_elements(tensor, |elements: &[T]| {
        let start = bytes.len();
        bytes.resize(start + elements.len() * N, 0);
        for (slot, &element) in bytes[start..].chunks_exact_mut(N).zip(elements) {
            slot.copy_from_slice(&to_bytes(element));
        }
    })
}

/// A file's bytes in two pieces, and its digest.
pub(super) struct Sealed {
    pub(super) head: Vec<u8>,
    pub(super) elements: Vec<u8>,
    pub(super) sha256: String,
}

/// Gives tensors their header; the same input gives the same bytes.
pub(super) fn seal(
    contents: Contents,
    mut metadata: BTreeMap<String, String>,
) -> serde_json::Result<Sealed> {
    let Contents { tensors, elements, .. } = contents;
    metadata.insert(DIGEST.into(), NO_DIGEST.into());
    let mut header =
        BTreeMap::from([("__metadata__".to_string(), serde_json::to_value(metadata)?)]);
    for (name, info) in tensors {
        header.insert(name, serde_json::to_value(info)?);
    }
    let mut text = serde_json::to_string(&header)?;
    let aligned = text.len().next_multiple_of(LENGTH_BYTES);
    text.extend(std::iter::repeat_n(' ', aligned - text.len()));

    let length = (text.len() as u64).to_le_bytes();
    let sha256 = digest(&[&length, text.as_bytes(), &elements]);
    let text = text.replacen(&digest_entry(NO_DIGEST), &digest_entry(&sha256), 1);
    let head = [&length[..], text.as_bytes()].concat();
    Ok(Sealed { head, elements, sha256 })
}

/// A file that is whole.
pub(super) struct Opened<'a> {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) sha256: String,
    tensors: HashMap<String, TensorInfo>,
    elements: &'a [u8],
}

/// Checks length, header and digest.
///
/// # Errors
/// What is wrong, to follow the file's name and a colon.
pub(super) fn open(bytes: &[u8]) -> Result<Opened<'_>, String> {
    let (length, rest) = bytes.split_first_chunk().ok_or("damaged: cut short in its header")?;
    let header_bytes = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .filter(|bytes| *bytes <= HEADER_LIMIT)
        .ok_or("damaged, or no safetensors file: its header is too long")?;
    let (header, elements) =
        rest.split_at_checked(header_bytes).ok_or("damaged: cut short in its header")?;
    // safetensors checks that offsets, shapes and types belong together and leave no gap.
    let header_of: Metadata = serde_json::from_slice(header)
        .map_err(|_| "damaged, or no safetensors file: its header cannot be read")?;
    let (found, expected) = (elements.len(), header_of.data_len());
    if found != expected {
        let word = if found < expected { "cut short: it has" } else { "too long: it has" };
        return Err(format!("damaged, {word} {found} bytes of elements where {expected} belong"));
    }
    let metadata: BTreeMap<String, String> =
        header_of.metadata().clone().unwrap_or_default().into_iter().collect();
    let sha256 = metadata.get(DIGEST).ok_or("not one of allfold's: it has no allfold.sha256")?;
    let is_digest = sha256.len() == NO_DIGEST.len()
        && sha256.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
    let text = std::str::from_utf8(header).unwrap_or_default();
    let entry = text.find(&digest_entry(sha256)).filter(|_| is_digest);
    let entry = entry.ok_or("damaged, or written anew by another program")?;
    // The entry is `"NAME":"DIGITS"`.
    let (before, digits) = header.split_at(entry + DIGEST.len() + 4);
    let after = digits.get(sha256.len()..).unwrap_or_default();
    if digest(&[length, before, NO_DIGEST.as_bytes(), after, elements]) != *sha256 {
        return Err("damaged: its contents do not match its digest".into());
    }
    let tensors =
        header_of.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    Ok(Opened { sha256: sha256.clone(), metadata, tensors, elements })
}

impl Opened<'_> {
    /// The step that it says it is of.
    pub(super) fn step(&self) -> Result<u64, String> {
        let step = self.metadata.get(STEP).and_then(|step| step.parse().ok());
        step.ok_or_else(|| "does not say of which step it is".into())
    }

    /// Copies of its tensors, by name.
    pub(super) fn tensors(&self) -> Result<HashMap<String, Tensor>, String> {
        let mut tensors = HashMap::with_capacity(self.tensors.len());
        for (name, info) in &self.tensors {
            let dtype = DType::try_from(info.dtype).ok();
            let dtype = dtype.filter(|dtype| KNOWN.contains(dtype)).ok_or_else(|| {
                format!("tensor `{}` is of type {}", name.escape_debug(), info.dtype)
            })?;
            let (start, end) = info.data_offsets;
            let elements = self.elements.get(start..end).unwrap_or_default();
            let tensor = Tensor::from_raw_buffer(elements, dtype, &info.shape, &Device::Cpu);
            let tensor = tensor.map_err(|error| Error::from(error).to_string())?;
            tensors.insert(name.clone(), tensor);
        }
        Ok(tensors)
    }
}

/// How the digest stands in the header, which serde_json writes without spaces. A quotation mark
/// within a name or a value has a backslash before it, so nothing else reads like this.
fn digest_entry(sha256: &str) -> String {
    format!("\"{DIGEST}\":\"{sha256}\"")
}

fn digest(pieces: &[&[u8]]) -> String {
    let mut hash = Context::new(&SHA256);
    pieces.iter().for_each(|piece| hash.update(piece));
    hex(hash.finish().as_ref())
}

/// In the metadata: steps taken.
pub(super) const STEP: &str = "allfold.step";
/// In the metadata: [`MODEL`] or [`OPTIMIZER`].
pub(super) const PART: &str = "allfold.part";
/// The part that holds the parameters.
pub(super) const MODEL: &str = "model";
/// The part that holds the optimiser's tensors.
pub(super) const OPTIMIZER: &str = "optimizer";
/// In the metadata: what makes a model this one.
pub(super) const MODEL_PREFIX: &str = "allfold.model.";
/// In the metadata: how it is trained.
pub(super) const SETTINGS_PREFIX: &str = "allfold.settings.";
/// In the model's metadata: the digest of the optimiser's file.
pub(super) const OPTIMIZER_DIGEST: &str = "allfold.optimizer_sha256";
/// In the metadata: the digest of this file.
const DIGEST: &str = "allfold.sha256";
/// What stands for the digest while it is computed.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The length of the header comes first.
const LENGTH_BYTES: usize = 8;
/// A header's length is checked before the header is read: room for 100,000 tensors.
const HEADER_LIMIT: usize = 16 << 20;
/// The element types that are written, and read.
const KNOWN: [DType; 5] = [DType::F32, DType::F64, DType::I64, DType::U32, DType::U8];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(metadata: &[(&str, &str)]) -> Vec<u8> {
        let tensors = [
            ("b", Tensor::new(&[7u8, 8, 9], &Device::Cpu).unwrap()),
            ("a", Tensor::new(&[[1f32, 2.], [3., f32::NAN]], &Device::Cpu).unwrap()),
            ("c", Tensor::new(-3i64, &Device::Cpu).unwrap()),
            ("d", Tensor::zeros((0, 4), DType::F64, &Device::Cpu).unwrap()),
        ];
        let contents = Contents::copy(tensors.iter().map(|(name, of)| (*name, of))).unwrap();
        let metadata = metadata.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let Sealed { head, elements, .. } = seal(contents, metadata.collect()).unwrap();
        [head, elements].concat()
    }

    #[test]
    fn what_was_sealed_is_opened() {
        let tricky = "\"allfold.sha256\":\"0000";
        let bytes = sealed(&[(STEP, "300"), ("a note", tricky)]);
        assert_eq!(bytes, sealed(&[(STEP, "300"), ("a note", tricky)]), "the same bytes again");
        let opened = open(&bytes).unwrap();
        assert_eq!(opened.step(), Ok(300));
        assert_eq!(opened.metadata["a note"], tricky);
        let tensors = opened.tensors().unwrap();
        assert_eq!(tensors.len(), 4);
        assert_eq!(tensors["b"].to_vec1::<u8>().unwrap(), [7, 8, 9]);
        assert_eq!(tensors["c"].to_scalar::<i64>().unwrap(), -3);
        assert_eq!(tensors["d"].dims(), [0, 4]);
        let a = tensors["a"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(a[..3], [1., 2., 3.]);
        assert!(a[3].is_nan());
        // Another reader of the format takes it too, and finds each tensor aligned.
        let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in other.tensors() {
            let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
            assert!(start.is_multiple_of(view.dtype().bitsize() / 8), "{name}");
        }
    }

    #[test]
    fn a_copy_does_not_change_with_its_tensor() {
        let var = candle_core::Var::new(&[1f32], &Device::Cpu).unwrap();
        let copy = Contents::copy([("w", var.as_tensor())].into_iter()).unwrap();
        var.set(&Tensor::new(&[2f32], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(copy.elements, 1f32.to_le_bytes());
    }

    #[test]
    fn unknown_types_are_refused() {
        let half = Tensor::zeros(2, DType::BF16, &Device::Cpu).unwrap();
        let error = Contents::copy([("w", &half)].into_iter()).err().unwrap();
        assert_eq!(error.to_string(), "parameter `w`: a checkpoint holds no bf16");
    }

    #[test]
    fn files_of_others_are_told_from_damaged_ones() {
        let tensor = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let foreign = safetensors::serialize([("w", &tensor)], None).unwrap();
        assert_eq!(open(&foreign).err().unwrap(), "not one of allfold's: it has no allfold.sha256");
        assert!(open(b"PK\x03\x04 a zip of long ago").err().unwrap().contains("no safetensors"));
        assert!(open(b"").err().unwrap().contains("cut short"));
    }

    #[test]
    fn forged_offsets_at_the_end_of_numbers_are_refused() {
        // Each tensor is as large as a shape may be; the last ends at 2^64 - 8.
        let size = 1u64 << 60;
        let mut header = String::from("{");
        for at in 0..16 {
            let (start, end) =
                (at * size, (at * size).wrapping_add(size).wrapping_sub(at / 15 * 8));
            let shape = end.wrapping_sub(start);
            header += &format!(
                "\"{at:02}\":{{\"dtype\":\"U8\",\"shape\":[{shape}],\"data_offsets\":[{start},{end}]}},"
            );
        }
        header.pop();
        header.push('}');
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        assert!(open(&bytes).err().unwrap().contains("cut short"), "{:?}", open(&bytes).err());
    }

    proptest! {
        #[test]
        fn no_cut_is_taken(cut in 0usize..100_000) {
            let bytes = sealed(&[(STEP, "300"), (PART, MODEL)]);
            prop_assert!(open(&bytes[..cut % bytes.len()]).is_err());
        }

        #[test]
        fn no_flip_is_taken(at in 0usize..100_000, bit in 0u8..8) {
            let mut bytes = sealed(&[(STEP, "300"), (PART, MODEL)]);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(open(&bytes).is_err(), "bit {bit} of byte {at}");
        }

        #[test]
        fn other_bytes_are_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            header in any::<bool>(),
        ) {
            let bytes = match header {
                // A plausible length lets the rest be read as a header.
                true => [&(bytes.len() as u64 / 2).to_le_bytes()[..], &bytes].concat(),
                false => bytes,
            };
            prop_assert!(open(&bytes).is_err());
        }
    }
}
