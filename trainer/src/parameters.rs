//! The parameters of a model in one order on all ranks.

use std::sync::PoisonError;

use candle_core::{Device, Storage, Tensor, Var, WithDType};
use candle_nn::VarMap;

use crate::error::Result;

/// All variables with their names, in the order of names, numbers in them as numbers: `dense10`
/// after `dense2`.
///
/// candle's `VarMap::all_vars()` has another order in every process (it is a `HashMap`): two
/// variables of one shape would be summed with each other.
pub(crate) fn by_name(vars: &VarMap) -> Vec<(String, Var)> {
    let map = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let mut parameters: Vec<(String, Var)> =
        map.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    parameters.sort_by_cached_key(|(name, _)| (parts(name), name.clone()));
    parameters
}

/// A name as text and numbers in turn.
fn parts(name: &str) -> Vec<(String, u64)> {
    let is_end = |(one, next): (char, char)| one.is_ascii_digit() && !next.is_ascii_digit();
    let ends = name.char_indices().zip(name.chars().skip(1));
    let mut start = 0;
    let mut parts = Vec::new();
    let cuts = ends.filter(|((_, one), next)| is_end((*one, *next))).map(|((at, _), _)| at + 1);
    for end in cuts.chain([name.len()]) {
        let part = &name[start..end];
        let text = part.trim_end_matches(|letter: char| letter.is_ascii_digit());
        // What is no number, or one too long, is told apart by its text.
        let (text, number) = match part[text.len()..].parse() {
            Ok(number) => (text, number),
            Err(_) => (part, 0),
        };
        parts.push((text.to_string(), number));
        start = end;
    }
    parts
}

/// Name, element type and shape of each parameter in one line each.
pub(crate) fn describe(parameters: &[(String, Var)]) -> Vec<String> {
    parameters
        .iter()
        .map(|(name, var)| {
            let (name, dtype) = (name.escape_debug(), var.dtype().as_str());
            format!("`{name}` {dtype} {:?}", var.dims())
        })
        .collect()
}

/// The elements of a tensor in the host's memory, and no others: candle's own way there takes all
/// that lies beside them, such as the rest of a bucket.
pub(crate) fn on_host(tensor: &Tensor) -> Result<Tensor> {
    if tensor.device().is_cpu() {
        return Ok(tensor.clone());
    }
    // CUDA runs no kernel on nothing.
    if tensor.elem_count() == 0 {
        return Ok(Tensor::zeros(tensor.shape(), tensor.dtype(), &Device::Cpu)?);
    }
    Ok(tensor.force_contiguous()?.to_device(&Device::Cpu)?)
}

/// Lets `read` see the elements of a tensor in row order.
pub(crate) fn with_elements<T: WithDType, R>(
    tensor: &Tensor,
    read: impl FnOnce(&[T]) -> R,
) -> Result<R> {
    let tensor = on_host(tensor)?.to_dtype(T::DTYPE)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let start = layout.start_offset();
    match &*storage {
        Storage::Cpu(storage) => {
            let elements = storage.as_slice::<T>()?;
            Ok(read(&elements[start..start + layout.shape().elem_count()]))
        }
        _ => Err(candle_core::Error::Msg("a tensor on the CPU is not there".into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use candle_nn::VarBuilder;

    #[test]
    fn names_decide_the_order() {
        let map = VarMap::new();
        let vars = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        for name in ["b", "c", "a"] {
            vars.get((2, 3), name).unwrap();
        }
        assert_eq!(
            describe(&by_name(&map)),
            ["`a` f32 [2, 3]", "`b` f32 [2, 3]", "`c` f32 [2, 3]"]
        );
    }

    #[test]
    fn numbers_in_names_count() {
        let mut names = ["b10.w", "b9.w", "b09.w", "b", "b10.a", "b2", "b2.10", "b2.9", "7"];
        names.sort_by_key(|name| (parts(name), *name));
        assert_eq!(names, ["7", "b", "b2", "b2.9", "b2.10", "b09.w", "b9.w", "b10.a", "b10.w"]);
        let long = "99999999999999999999999.w";
        assert_eq!(parts(long), [("99999999999999999999999".into(), 0), (".w".into(), 0)]);
    }

    #[test]
    fn elements_come_in_row_order() {
        let tensor = Tensor::arange(0f32, 6f32, &Device::Cpu).unwrap();
        let tensor = tensor.reshape((2, 3)).unwrap();
        let elements = |tensor: &Tensor| with_elements(tensor, <[f32]>::to_vec).unwrap();
        assert_eq!(elements(&tensor.t().unwrap()), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(elements(&tensor.get(1).unwrap()), [3., 4., 5.]);
    }
}
