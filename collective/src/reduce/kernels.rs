//! The kernels: two segments of bytes become one.
//!
//! A kernel is chosen once per call, by type, operation and flags; each is a plain loop over
//! unaligned little-endian elements without a branch, which the compiler vectorises.

use super::arithmetic::Number;
#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::half_floats::{self, Bf16, F16};
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
        #[cfg(target_arch = "x86_64")]
        if avx2::is_available() {
            // SAFETY: the processor has the instructions that the function is compiled for.
            return unsafe { avx2::combine(self, local, incoming) };
        }
        self.combine_portably(local, incoming);
    }

    /// As [`combine`](Self::combine). It and what it calls is inlined, to be compiled for the
    /// processor that its caller is compiled for.
    #[inline(always)]
    pub(super) fn combine_portably(self, local: &mut [u8], incoming: &[u8]) {
        match self.element {
            ElementType::I8 => self.combine_as::<i8, _>(local, incoming),
            ElementType::U8 => self.combine_as::<u8, _>(local, incoming),
            ElementType::I32 => self.combine_as::<i32, _>(local, incoming),
            ElementType::U32 => self.combine_as::<u32, _>(local, incoming),
            ElementType::I64 => self.combine_as::<i64, _>(local, incoming),
            ElementType::U64 => self.combine_as::<u64, _>(local, incoming),
            ElementType::F16 => half_floats::combine::<F16>(self, local, incoming),
            ElementType::BF16 => half_floats::combine::<Bf16>(self, local, incoming),
            ElementType::F32 => self.combine_as::<f32, _>(local, incoming),
            ElementType::F64 => self.combine_as::<f64, _>(local, incoming),
        }
    }

    #[inline(always)]
    fn combine_as<T: Number<SIZE>, const SIZE: usize>(self, local: &mut [u8], incoming: &[u8]) {
        match self.op {
            ReduceOp::Avg if self.last => {
                let n = T::divisor(self.ranks.max(1));
                each(local, incoming, |a: T, b| a.add(b).divide(n));
            }
            ReduceOp::Sum | ReduceOp::Avg => each(local, incoming, T::add),
            ReduceOp::Min => each(local, incoming, T::minimum),
            ReduceOp::Max => each(local, incoming, T::maximum),
            ReduceOp::Prod => each(local, incoming, T::multiply),
        }
    }
}

/// Each element of `local` becomes `f` of it and the element of `incoming` at its place.
#[inline(always)]
fn each<T: Number<SIZE>, const SIZE: usize>(
    local: &mut [u8],
    incoming: &[u8],
    f: impl Fn(T, T) -> T,
) {
    let (local, _) = local.as_chunks_mut::<SIZE>();
    let (incoming, _) = incoming.as_chunks::<SIZE>();
    for (mine, theirs) in local.iter_mut().zip(incoming) {
        *mine = f(T::load(*mine), T::load(*theirs)).store();
    }
}
