//! Element types and operations: what a call may reduce, and how a segment is reduced as it
//! arrives.
//!
//! Every kernel is commutative to the bit: the result does not depend on which operand is the
//! local one and which the incoming one. That is why plans carry no operand order. Only the
//! association, which plans fix, shows in the bits.

mod arithmetic;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod half_floats;
mod kernels;

use std::fmt;

use half::{bf16, f16};

pub(crate) use kernels::Kernel;

/// How the contributions of the ranks are combined.
///
/// A floating-point result that is not a number has one bit pattern, whatever the operands were:
/// quiet, positive, no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum over all ranks. Floats are added in the order the plan fixes, f16 and bf16 in f32
    /// with one rounding to nearest even for each addition. Integers wrap.
    Sum,
    /// The sum over all ranks, divided by the number of ranks. f32 and f64 divide the complete
    /// sum. f16 and bf16 divide each contribution before it is added, in f32, so that the sum of
    /// f16 values does not overflow. Integers divide the wrapping sum and round toward zero.
    Avg,
    /// The smallest contribution. For floats this is IEEE 754-2019 minimum: NaN if any
    /// contribution is NaN, and -0 is less than +0.
    Min,
    /// The largest contribution. For floats this is IEEE 754-2019 maximum: NaN if any
    /// contribution is NaN, and +0 is greater than -0.
    Max,
    /// The product over all ranks. Floats are multiplied in the order the plan fixes, f16 and
    /// bf16 in f32 with one rounding to nearest even for each multiplication. Integers wrap.
    Prod,
}

/// A plain number that can be moved between ranks: i8, u8, i32, u32, i64, u64, f32, f64, and f16
/// and bf16 of the crate `half`.
pub trait Element: Copy + Send + Sync + 'static + sealed::Sealed {
    /// Its name on the wire.
    #[doc(hidden)]
    const TYPE: ElementType;
}

/// An element that can be reduced: every [`Element`], which is i8, u8, i32, u32, i64, u64, f16,
/// bf16, f32 and f64.
///
/// All ranks hold the same bits afterwards. [`ReduceOp`] says for each operation how integers,
/// 16-bit floats and wider floats behave.
pub trait Reducible: Element {}

/// The element types, as contracts name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(hidden)]
#[repr(u8)]
pub enum ElementType {
    U8 = 1,
    I32 = 2,
    U32 = 3,
    I64 = 4,
    U64 = 5,
    F32 = 6,
    F64 = 7,
    I8 = 8,
    F16 = 9,
    BF16 = 10,
}

impl ElementType {
    /// Every element type.
    pub const ALL: &'static [Self] = {
        use ElementType::*;
        &[I8, U8, I32, U32, I64, U64, F16, BF16, F32, F64]
    };

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            ElementType::I8 | ElementType::U8 => 1,
            ElementType::F16 | ElementType::BF16 => 2,
            ElementType::I32 | ElementType::U32 | ElementType::F32 => 4,
            ElementType::I64 | ElementType::U64 | ElementType::F64 => 8,
        }
    }

    /// The type with this number on the wire.
    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| *t as u8 == number)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ElementType::I8 => "i8",
            ElementType::U8 => "u8",
            ElementType::I32 => "i32",
            ElementType::U32 => "u32",
            ElementType::I64 => "i64",
            ElementType::U64 => "u64",
            ElementType::F16 => "f16",
            ElementType::BF16 => "bf16",
            ElementType::F32 => "f32",
            ElementType::F64 => "f64",
        })
    }
}

impl ReduceOp {
    /// Every operation.
    pub const ALL: &'static [Self] =
        &[ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Min, ReduceOp::Max, ReduceOp::Prod];

    /// The operation with this number on the wire.
    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|op| op.to_wire() == number)
    }

    /// Its number on the wire; 0 stands for a call without an operation.
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            ReduceOp::Sum => 1,
            ReduceOp::Avg => 2,
            ReduceOp::Min => 3,
            ReduceOp::Max => 4,
            ReduceOp::Prod => 5,
        }
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Avg => "avg",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
            ReduceOp::Prod => "prod",
        })
    }
}

/// Combines a segment that arrives in pieces of any length with the local one, in place.
///
/// Packets split elements: the bytes of an element that is not complete yet are carried over to
/// the next piece.
#[derive(Debug, Default)]
pub(crate) struct Reducer {
    done_bytes: usize,
    carry: [u8; MAX_ELEMENT_BYTES],
    carried: usize,
}

impl Reducer {
    /// Combines `incoming` with the next bytes of `local`, the whole segment. The segment's
    /// length and the sum of all pieces are multiples of the element size.
    pub(crate) fn reduce(&mut self, kernel: Kernel, local: &mut [u8], mut incoming: &[u8]) {
        let size = kernel.element.size();
        if self.carried > 0 {
            let missing = (size - self.carried).min(incoming.len());
            let (head, rest) = incoming.split_at(missing);
            self.carry[self.carried..self.carried + missing].copy_from_slice(head);
            self.carried += missing;
            incoming = rest;
            if self.carried < size {
                return;
            }
            let element = self.carry;
            self.whole_elements(kernel, local, &element[..size]);
            self.carried = 0;
        }
        let whole = incoming.len() - incoming.len() % size;
        let (elements, rest) = incoming.split_at(whole);
        self.whole_elements(kernel, local, elements);
        self.carry[..rest.len()].copy_from_slice(rest);
        self.carried = rest.len();
    }

    /// Copies `incoming` over the next bytes of `local`.
    pub(crate) fn store(&mut self, local: &mut [u8], incoming: &[u8]) {
        local[self.done_bytes..self.done_bytes + incoming.len()].copy_from_slice(incoming);
        self.done_bytes += incoming.len();
    }

    fn whole_elements(&mut self, kernel: Kernel, local: &mut [u8], incoming: &[u8]) {
        let local = &mut local[self.done_bytes..self.done_bytes + incoming.len()];
        kernel.combine(local, incoming);
        self.done_bytes += incoming.len();
    }
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $name:ident),*) => {
        $(impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$name;
        }
        impl Reducible for $rust {})*
    };
}
elements!(i8 => I8, u8 => U8, i32 => I32, u32 => U32, i64 => I64, u64 => U64);
elements!(f16 => F16, bf16 => BF16, f32 => F32, f64 => F64);

/// The largest element, in bytes.
const MAX_ELEMENT_BYTES: usize = 8;

#[cfg(test)]
mod tests;
