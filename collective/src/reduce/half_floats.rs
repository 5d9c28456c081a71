//! f16 and bf16 to f32 and back, in integer arithmetic and selections only, so that loops over
//! them vectorise on every processor and give the same bits there.
//!
//! The conversions of f16 follow Fabian Giesen, "Half to float done quick" and "Float to half
//! done quick" (gist 2156668, public domain).

/// The f32 with the value of this f16; exact. A NaN stays one.
#[inline(always)]
pub(super) fn widen_f16(half: u16) -> f32 {
    let half = u32::from(half);
    let sign = (half & 0x8000) << 16;
    let magnitude = (half & 0x7fff) << 13;
    let exponent = magnitude & F16_EXPONENT;
    let normal = magnitude + REBIAS;
    // The largest exponent stands for infinity and NaN in both types.
    let special = normal + REBIAS;
    // A subnormal's bits behind the exponent of the smallest normal, less that normal.
    let subnormal =
        (f32::from_bits(normal + ONE_EXPONENT) - f32::from_bits(SMALLEST_NORMAL_F16)).to_bits();
    let bits = if exponent == F16_EXPONENT { special } else { normal };
    let bits = if exponent == 0 { subnormal } else { bits };
    f32::from_bits(sign | bits)
}

/// The f16 nearest to this f32, ties to even; beyond the range, infinity. Every NaN becomes the
/// canonical one.
#[inline(always)]
pub(super) fn narrow_f16(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) & 0x8000;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    // Half a unit of the last place that remains, less one where the place is even: what this
    // carries over is rounded up.
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(0xfff + odd) >> 13;
    // The addition itself rounds a subnormal, at the place where its sum with 0.5 ends.
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(SUBNORMAL_ROUNDER)).to_bits();
    let subnormal = subnormal.wrapping_sub(SUBNORMAL_ROUNDER);
    let bits = if magnitude < SMALLEST_NORMAL_F16 { subnormal } else { normal };
    let bits = if magnitude >= BEYOND_F16 { F16_INFINITY } else { bits };
    let bits = if value.is_nan() { CANONICAL_NAN_F16 } else { bits | sign };
    bits as u16
}

/// The f32 with the value of this bf16; exact. A NaN stays one.
#[inline(always)]
pub(super) fn widen_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// The bf16 nearest to this f32, ties to even; beyond the range, infinity. Every NaN becomes the
/// canonical one.
#[inline(always)]
pub(super) fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let odd = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + odd) >> 16;
    (if value.is_nan() { CANONICAL_NAN_BF16 } else { rounded }) as u16
}

/// The quiet NaN with no payload, positive.
const CANONICAL_NAN_F16: u32 = 0x7e00;
const CANONICAL_NAN_BF16: u32 = 0x7fc0;
const F16_INFINITY: u32 = 0x7c00;
/// f16's exponent, where f32 has its own.
const F16_EXPONENT: u32 = 0x7c00 << 13;
/// One step of f32's exponent.
const ONE_EXPONENT: u32 = 1 << 23;
/// The exponents' biases are 15 and 127.
const REBIAS: u32 = (127 - 15) << 23;
/// 2^-14 as f32.
const SMALLEST_NORMAL_F16: u32 = (127 - 14) << 23;
/// 2^16 as f32: from here on all is infinity. What rounds up to it becomes infinity by carry.
const BEYOND_F16: u32 = (127 + 16) << 23;
/// 0.5 as f32: its last place is 2^-24, the smallest f16.
const SUBNORMAL_ROUNDER: u32 = (127 - 1) << 23;
