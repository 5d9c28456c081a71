//! The element types that can be measured and checked.

use allfold::nccl::cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use allfold::{Reducible, bf16, f16};

use crate::choices::DataType;

/// An element type, and the whole numbers it holds.
pub(crate) trait Number: Reducible + Default + DeviceRepr + ValidAsZeroBits {
    /// Its name in nccl-tests.
    const DATATYPE: DataType;
    /// An integer's width; a float's whole numbers of so many bits are exact.
    const BITS: u32;
    const KIND: Kind;

    /// The number itself; of an integer the low bits, of a float that is too short the nearest.
    fn whole(value: i64) -> Self;
    /// What an average over `ranks` ranks makes of contributions that add up to `total`; where it
    /// [`divides first`](Kind::ShortFloat), of contributions that are so many times the world size.
    fn average(total: i64, ranks: usize) -> Self;
    /// Its bits, for a comparison that tells NaN from NaN and -0 from 0.
    fn bits(self) -> u64;
    fn from_bits(bits: u64) -> Self;
}

/// What decides which sums and averages are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Wraps, so that every sum and product is exact in its low bits.
    Signed,
    /// The same.
    Unsigned,
    /// An average divides the complete sum.
    Float,
    /// An average divides each contribution before it is added.
    ShortFloat,
}

macro_rules! integers {
    ($($integer:ident: $bits:ident, $name:ident, $kind:ident);*) => {$(
        impl Number for $integer {
            const DATATYPE: DataType = DataType::$name;
            const BITS: u32 = Self::BITS;
            const KIND: Kind = Kind::$kind;

            fn whole(value: i64) -> Self {
                value as Self
            }
            fn average(total: i64, ranks: usize) -> Self {
                // Wider than both, because the world size may not fit into the type.
                (i128::from(total as Self) / ranks as i128) as Self
            }
            fn bits(self) -> u64 {
                u64::from(self as $bits)
            }
            fn from_bits(bits: u64) -> Self {
                bits as Self
            }
        }
    )*};
}
integers!(
    i8: u8, Int8, Signed; u8: u8, Uint8, Unsigned;
    i32: u32, Int32, Signed; u32: u32, Uint32, Unsigned;
    i64: u64, Int64, Signed; u64: u64, Uint64, Unsigned
);

macro_rules! floats {
    ($($float:ident: $bits:ident, $name:ident);*) => {$(
        impl Number for $float {
            const DATATYPE: DataType = DataType::$name;
            const BITS: u32 = Self::MANTISSA_DIGITS;
            const KIND: Kind = Kind::Float;

            fn whole(value: i64) -> Self {
                value as Self
            }
            fn average(total: i64, ranks: usize) -> Self {
                total as Self / ranks as Self
            }
            fn bits(self) -> u64 {
                u64::from(self.to_bits())
            }
            fn from_bits(bits: u64) -> Self {
                Self::from_bits(bits as $bits)
            }
        }
    )*};
}
floats!(f32: u32, Float; f64: u64, Double);

macro_rules! short_floats {
    ($($float:ident: $name:ident),*) => {$(
        impl Number for $float {
            const DATATYPE: DataType = DataType::$name;
            const BITS: u32 = Self::MANTISSA_DIGITS;
            const KIND: Kind = Kind::ShortFloat;

            fn whole(value: i64) -> Self {
                Self::from_f32(value as f32)
            }
            fn average(total: i64, ranks: usize) -> Self {
                // What a contribution of one world size is in this type.
                let one = Self::whole(ranks as i64).to_f32();
                Self::from_f32(total as f32 * one / ranks as f32)
            }
            fn bits(self) -> u64 {
                u64::from(self.to_bits())
            }
            fn from_bits(bits: u64) -> Self {
                Self::from_bits(bits as u16)
            }
        }
    )*};
}
short_floats!(f16: Half, bf16: Bfloat16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_kept() {
        fn kept<T: Number>() {
            let mask = u64::MAX >> (64 - 8 * size_of::<T>());
            for bits in [0, 1, 0x8000_0000_0000_0000, 0x7fa1_7fa1_7fa1_7fa1, u64::MAX] {
                assert_eq!(T::from_bits(bits).bits(), bits & mask, "{:?} {bits:x}", T::DATATYPE);
            }
        }
        kept::<i8>();
        kept::<u8>();
        kept::<i32>();
        kept::<u32>();
        kept::<i64>();
        kept::<u64>();
        kept::<f16>();
        kept::<bf16>();
        kept::<f32>();
        kept::<f64>();
    }

    #[test]
    fn averages_of_integers_wrap_and_are_cut_off() {
        assert_eq!(i8::average(-7, 2), -3);
        // 300 wraps to 44.
        assert_eq!(u8::average(300, 4), 11);
        assert_eq!(i8::average(100, 1000), 0);
        assert_eq!(u64::average(-1, 1), u64::MAX);
        assert_eq!(i64::average(i64::MIN, 2), i64::MIN / 2);
        assert_eq!(f16::average(3, 7), f16::from_f32(3.0));
    }
}
