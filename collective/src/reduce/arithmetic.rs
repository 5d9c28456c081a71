//! What each element type computes, without a branch, so that loops over it vectorise.
//!
//! Every operation commutes to the bit. Where a float result is NaN, `store` makes it canonical,
//! because the payload that hardware picks depends on the operands' order.

use half::{bf16, f16};

use super::half_floats;

/// An element type of `SIZE` bytes, and how the kernels compute with it.
pub(super) trait Number<const SIZE: usize> {
    /// What it is computed in.
    type Value: Copy;
    /// What an average divides by.
    type Divisor: Copy;
    /// An average divides each contribution rather than the complete sum.
    const DIVIDES_CONTRIBUTIONS: bool;

    fn load(bytes: [u8; SIZE]) -> Self::Value;
    fn store(value: Self::Value) -> [u8; SIZE];
    fn add(a: Self::Value, b: Self::Value) -> Self::Value;
    fn multiply(a: Self::Value, b: Self::Value) -> Self::Value;
    fn minimum(a: Self::Value, b: Self::Value) -> Self::Value;
    fn maximum(a: Self::Value, b: Self::Value) -> Self::Value;
    /// `ranks` is at least 1.
    fn divisor(ranks: u32) -> Self::Divisor;
    fn divide(value: Self::Value, divisor: Self::Divisor) -> Self::Value;
}

macro_rules! integer {
    ($($integer:ident in $wide:ident),*) => {$(
        impl Number<{ size_of::<$integer>() }> for $integer {
            type Value = $integer;
            // The number of ranks may not fit into the element type.
            type Divisor = $wide;
            const DIVIDES_CONTRIBUTIONS: bool = false;

            #[inline(always)]
            fn load(bytes: [u8; size_of::<$integer>()]) -> $integer {
                $integer::from_le_bytes(bytes)
            }
            #[inline(always)]
            fn store(value: $integer) -> [u8; size_of::<$integer>()] {
                value.to_le_bytes()
            }
            #[inline(always)]
            fn add(a: $integer, b: $integer) -> $integer {
                a.wrapping_add(b)
            }
            #[inline(always)]
            fn multiply(a: $integer, b: $integer) -> $integer {
                a.wrapping_mul(b)
            }
            #[inline(always)]
            fn minimum(a: $integer, b: $integer) -> $integer {
                a.min(b)
            }
            #[inline(always)]
            fn maximum(a: $integer, b: $integer) -> $integer {
                a.max(b)
            }
            #[inline(always)]
            fn divisor(ranks: u32) -> $wide {
                $wide::from(ranks)
            }
            #[inline(always)]
            fn divide(value: $integer, divisor: $wide) -> $integer {
                // The quotient is no larger than the value, so it fits.
                ($wide::from(value) / divisor) as $integer
            }
        }
    )*};
}
integer!(i8 in i64, u8 in u64, i32 in i64, u32 in u64, i64 in i64, u64 in u64);

macro_rules! float {
    ($($float:ident, $nan:ident);*) => {$(
        impl Number<{ size_of::<$float>() }> for $float {
            type Value = $float;
            type Divisor = $float;
            const DIVIDES_CONTRIBUTIONS: bool = false;

            #[inline(always)]
            fn load(bytes: [u8; size_of::<$float>()]) -> $float {
                $float::from_le_bytes(bytes)
            }
            #[inline(always)]
            fn store(value: $float) -> [u8; size_of::<$float>()] {
                let bits = if value.is_nan() { $nan } else { value.to_bits() };
                bits.to_le_bytes()
            }
            #[inline(always)]
            fn add(a: $float, b: $float) -> $float {
                a + b
            }
            #[inline(always)]
            fn multiply(a: $float, b: $float) -> $float {
                a * b
            }
            #[inline(always)]
            fn minimum(a: $float, b: $float) -> $float {
                // The two selections differ only where the operands are equal, which means
                // differently signed zeros, or unordered. Joined, the bits of zeros give -0, and
                // those of a NaN and anything give a NaN.
                let below = if a < b { a } else { b };
                let not_above = if b < a { b } else { a };
                $float::from_bits(below.to_bits() | not_above.to_bits())
            }
            #[inline(always)]
            fn maximum(a: $float, b: $float) -> $float {
                // As in `minimum`, but the common bits of zeros give +0, and those of a NaN and
                // anything give nothing of use.
                let above = if a > b { a } else { b };
                let not_below = if b > a { b } else { a };
                let bits = above.to_bits() & not_below.to_bits();
                $float::from_bits(if a.is_nan() | b.is_nan() { $nan } else { bits })
            }
            #[inline(always)]
            fn divisor(ranks: u32) -> $float {
                ranks as $float
            }
            #[inline(always)]
            fn divide(value: $float, divisor: $float) -> $float {
                value / divisor
            }
        }
    )*};
}
float!(f32, CANONICAL_NAN_F32; f64, CANONICAL_NAN_F64);

macro_rules! half_float {
    ($($half:ident, $widen:ident, $narrow:ident);*) => {$(
        impl Number<2> for $half {
            // Wide enough that each operation on two elements rounds once, to the element type,
            // but for sums of bf16 of very different size, and results below f32's normal range.
            type Value = f32;
            type Divisor = f32;
            // The sum of two f16 may be more than the largest f16, where their average is not.
            const DIVIDES_CONTRIBUTIONS: bool = true;

            #[inline(always)]
            fn load(bytes: [u8; 2]) -> f32 {
                half_floats::$widen(u16::from_le_bytes(bytes))
            }
            #[inline(always)]
            fn store(value: f32) -> [u8; 2] {
                half_floats::$narrow(value).to_le_bytes()
            }
            #[inline(always)]
            fn add(a: f32, b: f32) -> f32 {
                a + b
            }
            #[inline(always)]
            fn multiply(a: f32, b: f32) -> f32 {
                a * b
            }
            #[inline(always)]
            fn minimum(a: f32, b: f32) -> f32 {
                <f32 as Number<4>>::minimum(a, b)
            }
            #[inline(always)]
            fn maximum(a: f32, b: f32) -> f32 {
                <f32 as Number<4>>::maximum(a, b)
            }
            #[inline(always)]
            fn divisor(ranks: u32) -> f32 {
                ranks as f32
            }
            #[inline(always)]
            fn divide(value: f32, divisor: f32) -> f32 {
                // Rounds once; a product with 1/n would round twice, so that n equal
                // contributions could average to something else.
                value / divisor
            }
        }
    )*};
}
half_float!(f16, widen_f16, narrow_f16; bf16, widen_bf16, narrow_bf16);

/// The quiet NaN with no payload, positive.
const CANONICAL_NAN_F32: u32 = 0x7fc0_0000;
const CANONICAL_NAN_F64: u64 = 0x7ff8_0000_0000_0000;
