//! Element types, operations, and the kernels that combine two buffers.

use std::fmt;

/// How the contributions of the ranks are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum over all ranks.
    Sum,
    /// The sum over all ranks, then divided by the number of ranks.
    Avg,
}

/// A plain number that can be moved between ranks.
pub trait Element: Copy + Send + Sync + 'static + sealed::Sealed {
    /// Its name on the wire.
    #[doc(hidden)]
    const TYPE: ElementType;
}

/// An element that can be reduced: f32 and f64.
///
/// Sums are added in the ring's fixed order, so all ranks hold the same bits; a result that is
/// not a number has one canonical bit pattern.
pub trait Reducible: Element {}

/// The element types, as contracts name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(hidden)]
#[repr(u8)]
pub enum ElementType {
    U8 = 1,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl ElementType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            ElementType::U8 => 1,
            ElementType::I32 | ElementType::U32 | ElementType::F32 => 4,
            ElementType::I64 | ElementType::U64 | ElementType::F64 => 8,
        }
    }

    /// The type with this number on the wire.
    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        use ElementType::*;
        [U8, I32, U32, I64, U64, F32, F64].into_iter().find(|t| *t as u8 == number)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ElementType::U8 => "u8",
            ElementType::I32 => "i32",
            ElementType::U32 => "u32",
            ElementType::I64 => "i64",
            ElementType::U64 => "u64",
            ElementType::F32 => "f32",
            ElementType::F64 => "f64",
        })
    }
}

impl ReduceOp {
    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        match number {
            1 => Some(ReduceOp::Sum),
            2 => Some(ReduceOp::Avg),
            _ => None,
        }
    }

    pub(crate) fn to_wire(self) -> u8 {
        match self {
            ReduceOp::Sum => 1,
            ReduceOp::Avg => 2,
        }
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Avg => "avg",
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

/// What to do with an incoming partial result and the local contribution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    pub(crate) element: ElementType,
    /// The last step of an average divides by the world size.
    pub(crate) divide_by: Option<u32>,
}

impl Kernel {
    /// `local` becomes local + incoming (then divided). Both have the same length, a multiple of
    /// the element size. Addition commutes and NaN is made canonical, so the operands' order,
    /// lower rank first, does not show in the bits.
    fn combine(self, local: &mut [u8], incoming: &[u8]) {
        match (self.element, self.divide_by) {
            (ElementType::F32, None) => add_f32(local, incoming, |sum| sum),
            (ElementType::F32, Some(n)) => add_f32(local, incoming, |sum| sum / n as f32),
            (ElementType::F64, None) => add_f64(local, incoming, |sum| sum),
            (ElementType::F64, Some(n)) => add_f64(local, incoming, |sum| sum / f64::from(n)),
            // The public interface only reduces `Reducible` elements.
            _ => debug_assert!(false, "no kernel for {}", self.element),
        }
    }
}

macro_rules! float_kernel {
    ($name:ident, $float:ty, $nan:expr) => {
        // Plain loops over unaligned little-endian loads: the compiler vectorises them.
        #[inline(always)]
        fn $name(local: &mut [u8], incoming: &[u8], finish: impl Fn($float) -> $float) {
            const SIZE: usize = size_of::<$float>();
            let (local, _) = local.as_chunks_mut::<SIZE>();
            let (incoming, _) = incoming.as_chunks::<SIZE>();
            for (mine, theirs) in local.iter_mut().zip(incoming) {
                let sum = finish(<$float>::from_le_bytes(*mine) + <$float>::from_le_bytes(*theirs));
                let sum = if sum.is_nan() { <$float>::from_bits($nan) } else { sum };
                *mine = sum.to_le_bytes();
            }
        }
    };
}
float_kernel!(add_f32, f32, CANONICAL_NAN_F32);
float_kernel!(add_f64, f64, CANONICAL_NAN_F64);

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $name:ident),*) => {
        $(impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$name;
        })*
    };
}
elements!(u8 => U8, i32 => I32, u32 => U32, i64 => I64, u64 => U64, f32 => F32, f64 => F64);
impl Reducible for f32 {}
impl Reducible for f64 {}

/// The largest element, in bytes.
const MAX_ELEMENT_BYTES: usize = 8;
/// The quiet NaN with no payload, positive.
const CANONICAL_NAN_F32: u32 = 0x7fc0_0000;
const CANONICAL_NAN_F64: u64 = 0x7ff8_0000_0000_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_of_any_length_give_the_same_sums(
            values in prop::collection::vec((any::<f32>(), any::<f32>()), 0..200),
            cuts in prop::collection::vec(1usize..23, 1..50),
        ) {
            let kernel = Kernel { element: ElementType::F32, divide_by: None };
            let mut local: Vec<u8> = values.iter().flat_map(|v| v.0.to_le_bytes()).collect();
            let incoming: Vec<u8> = values.iter().flat_map(|v| v.1.to_le_bytes()).collect();
            let mut reducer = Reducer::default();
            let mut rest = &incoming[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                reducer.reduce(kernel, &mut local, piece);
                rest = after;
            }
            for (bytes, (a, b)) in local.chunks_exact(4).zip(&values) {
                let sum = f32::from_le_bytes(bytes.try_into().unwrap());
                let want = a + b;
                if want.is_nan() {
                    prop_assert_eq!(sum.to_bits(), CANONICAL_NAN_F32);
                } else {
                    prop_assert_eq!(sum.to_bits(), want.to_bits());
                }
            }
        }
    }

    #[test]
    fn an_average_divides_the_sum() {
        let kernel = Kernel { element: ElementType::F64, divide_by: Some(3) };
        let mut local = 1.0f64.to_le_bytes().to_vec();
        Reducer::default().reduce(kernel, &mut local, &6.5f64.to_le_bytes());
        assert_eq!(f64::from_le_bytes(local.try_into().unwrap()), 7.5 / 3.0);
    }
}
