//! The kernels: two segments of bytes become one.
//!
//! A kernel is chosen once per call, by type, operation and flags; each is a plain loop over
//! unaligned little-endian elements without a branch, which the compiler vectorises.

use half::{bf16, f16};

use super::arithmetic::Number;
use super::{ElementType, ReduceOp};

/// What one reducing step does with an element that arrives and the local one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    pub(crate) element: ElementType,
    pub(crate) op: ReduceOp,
    /// How many ranks contribute, at least 1: what an average divides by.
    pub(crate) ranks: u32,
    /// What arrives is one rank's untouched contribution, not a partial result.
    pub(crate) incoming_raw: bool,
    /// The local operand is one rank's untouched contribution, not a partial result.
    pub(crate) local_raw: bool,
    /// This step completes the result.
    pub(crate) last: bool,
}

impl Kernel {
    /// `local` becomes local combined with incoming. Both are little-endian, need not be aligned,
    /// and have the same length, a multiple of the element size.
    ///
    /// The operands may change places, together with their raw flags, without a change in the
    /// result's bits.
    pub(crate) fn combine(self, local: &mut [u8], incoming: &[u8]) {
        debug_assert_eq!(local.len(), incoming.len());
        debug_assert!(local.len().is_multiple_of(self.element.size()));
        match self.element {
            ElementType::I8 => self.combine_as::<i8, _>(local, incoming),
            ElementType::U8 => self.combine_as::<u8, _>(local, incoming),
            ElementType::I32 => self.combine_as::<i32, _>(local, incoming),
            ElementType::U32 => self.combine_as::<u32, _>(local, incoming),
            ElementType::I64 => self.combine_as::<i64, _>(local, incoming),
            ElementType::U64 => self.combine_as::<u64, _>(local, incoming),
            ElementType::F16 => self.combine_as::<f16, _>(local, incoming),
            ElementType::BF16 => self.combine_as::<bf16, _>(local, incoming),
            ElementType::F32 => self.combine_as::<f32, _>(local, incoming),
            ElementType::F64 => self.combine_as::<f64, _>(local, incoming),
        }
    }

    #[inline(always)]
    fn combine_as<T: Number<SIZE>, const SIZE: usize>(self, local: &mut [u8], incoming: &[u8]) {
        match self.op {
            ReduceOp::Sum => each::<T, SIZE>(local, incoming, T::add),
            ReduceOp::Avg => self.average::<T, SIZE>(local, incoming),
            ReduceOp::Min => each::<T, SIZE>(local, incoming, T::minimum),
            ReduceOp::Max => each::<T, SIZE>(local, incoming, T::maximum),
            ReduceOp::Prod => each::<T, SIZE>(local, incoming, T::multiply),
        }
    }

    #[inline(always)]
    fn average<T: Number<SIZE>, const SIZE: usize>(self, local: &mut [u8], incoming: &[u8]) {
        let n = T::divisor(self.ranks.max(1));
        let share = |value| T::divide(value, n);
        if T::DIVIDES_CONTRIBUTIONS {
            match (self.local_raw, self.incoming_raw) {
                (false, false) => each::<T, SIZE>(local, incoming, T::add),
                (true, false) => each::<T, SIZE>(local, incoming, |a, b| T::add(share(a), b)),
                (false, true) => each::<T, SIZE>(local, incoming, |a, b| T::add(a, share(b))),
                (true, true) => each::<T, SIZE>(local, incoming, |a, b| T::add(share(a), share(b))),
            }
        } else if self.last {
            each::<T, SIZE>(local, incoming, |a, b| share(T::add(a, b)));
        } else {
            each::<T, SIZE>(local, incoming, T::add);
        }
    }
}

/// Each element of `local` becomes `f` of it and the element of `incoming` at its place.
#[inline(always)]
fn each<T: Number<SIZE>, const SIZE: usize>(
    local: &mut [u8],
    incoming: &[u8],
    f: impl Fn(T::Value, T::Value) -> T::Value,
) {
    let (local, _) = local.as_chunks_mut::<SIZE>();
    let (incoming, _) = incoming.as_chunks::<SIZE>();
    for (mine, theirs) in local.iter_mut().zip(incoming) {
        *mine = T::store(f(T::load(*mine), T::load(*theirs)));
    }
}
