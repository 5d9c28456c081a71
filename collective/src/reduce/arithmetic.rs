//! What integers, f32 and f64 compute, without a branch, so that loops over them vectorise.
//!
//! Every operation commutes to the bit. Where a float result is NaN, `store` makes it canonical,
//! because the payload that hardware picks depends on the operands' order.

/// An element type of `SIZE` bytes, and how the kernels compute with it.
pub(super) trait Number<const SIZE: usize>: Copy {
    /// What an average divides by.
    type Divisor: Copy;

    fn load(bytes: [u8; SIZE]) -> Self;
    fn store(self) -> [u8; SIZE];
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn minimum(self, other: Self) -> Self;
    fn maximum(self, other: Self) -> Self;
    /// `ranks` is at least 1.
    fn divisor(ranks: u32) -> Self::Divisor;
    fn divide(self, divisor: Self::Divisor) -> Self;
}

macro_rules! integer {
    ($($integer:ident in $wide:ident),*) => {$(
        impl Number<{ size_of::<$integer>() }> for $integer {
            // The number of ranks may not fit into the element type.
            type Divisor = $wide;

            #[inline(always)]
            fn load(bytes: [u8; size_of::<$integer>()]) -> Self {
                Self::from_le_bytes(bytes)
            }
            #[inline(always)]
            fn store(self) -> [u8; size_of::<$integer>()] {
                self.to_le_bytes()
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn minimum(self, other: Self) -> Self {
                self.min(other)
            }
            #[inline(always)]
            fn maximum(self, other: Self) -> Self {
                self.max(other)
            }
            #[inline(always)]
            fn divisor(ranks: u32) -> $wide {
                $wide::from(ranks)
            }
            #[inline(always)]
            fn divide(self, divisor: $wide) -> Self {
                // The quotient is no larger than the value, so it fits.
                ($wide::from(self) / divisor) as Self
            }
        }
    )*};
}
integer!(i8 in i64, u8 in u64, i32 in i64, u32 in u64, i64 in i64, u64 in u64);

macro_rules! float {
    ($($float:ident, $nan:ident);*) => {$(
        impl Number<{ size_of::<$float>() }> for $float {
            type Divisor = Self;

            #[inline(always)]
            fn load(bytes: [u8; size_of::<$float>()]) -> Self {
                Self::from_le_bytes(bytes)
            }
            #[inline(always)]
            fn store(self) -> [u8; size_of::<$float>()] {
                let bits = if self.is_nan() { $nan } else { self.to_bits() };
                bits.to_le_bytes()
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn multiply(self, other: Self) -> Self {
                self * other
            }
            #[inline(always)]
            fn minimum(self, other: Self) -> Self {
                // The two selections differ only where the operands are zeros of different sign
                // or one is NaN. Joined, the bits of the zeros give -0, and those of a NaN and
                // anything give a NaN.
                let below = if self < other { self } else { other };
                let not_above = if other < self { other } else { self };
                Self::from_bits(below.to_bits() | not_above.to_bits())
            }
            #[inline(always)]
            fn maximum(self, other: Self) -> Self {
                // As in `minimum`, but the common bits of the zeros give +0, and those of a NaN
                // and anything give nothing of use.
                let above = if self > other { self } else { other };
                let not_below = if other > self { other } else { self };
                let bits = above.to_bits() & not_below.to_bits();
                Self::from_bits(if self.is_nan() | other.is_nan() { $nan } else { bits })
            }
            #[inline(always)]
            fn divisor(ranks: u32) -> Self {
                ranks as Self
            }
            #[inline(always)]
            fn divide(self, divisor: Self) -> Self {
                self / divisor
            }
        }
    )*};
}
float!(f32, CANONICAL_NAN_F32; f64, CANONICAL_NAN_F64);

/// The quiet NaN with no payload, positive.
pub(super) const CANONICAL_NAN_F32: u32 = 0x7fc0_0000;
const CANONICAL_NAN_F64: u64 = 0x7ff8_0000_0000_0000;
