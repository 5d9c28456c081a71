//! f16 and bf16: sums, products and averages in f32, smallest and largest on the bits.
//!
//! Conversions are integer arithmetic and selections only, so that loops over them vectorise on
//! every processor and give the same bits there. Those of f16 follow Fabian Giesen, "Half to
//! float done quick" and "Float to half done quick" (gist 2156668, public domain).

use super::ReduceOp;
use super::kernels::Kernel;

/// A float of 16 bits; its bits stand in the lower half of a u32.
pub(super) trait HalfFloat {
    /// The bits of infinity; every larger magnitude is a NaN.
    const INFINITY: i16;
    /// The quiet NaN with no payload, positive.
    const CANONICAL_NAN: u32;

    /// The f32 of the same value; exact. A NaN stays one.
    fn widen(half: u32) -> f32;
    /// The nearest value, ties to even; beyond the range, infinity. Every NaN becomes canonical.
    fn narrow(value: f32) -> u32;
}

/// IEEE 754 binary16.
pub(super) struct F16;
/// The upper half of an f32.
pub(super) struct Bf16;

/// See [`Kernel::combine`].
///
/// An average divides each contribution before it is added: the sum of two f16 may lie beyond the
/// largest f16 where their average does not. It divides instead of multiplying by 1/n, because
/// that would round twice: even 41 times the nearest f32 to 1/41 is not 1.
#[inline(always)]
pub(super) fn combine<H: HalfFloat>(kernel: Kernel, local: &mut [u8], incoming: &[u8]) {
    let n = kernel.ranks.max(1) as f32;
    match (kernel.op, kernel.local_raw, kernel.incoming_raw) {
        (ReduceOp::Sum, ..) | (ReduceOp::Avg, false, false) => {
            each_in_f32::<H>(local, incoming, |a, b| a + b);
        }
        (ReduceOp::Avg, true, false) => each_in_f32::<H>(local, incoming, |a, b| a / n + b),
        (ReduceOp::Avg, false, true) => each_in_f32::<H>(local, incoming, |a, b| a + b / n),
        (ReduceOp::Avg, true, true) => each_in_f32::<H>(local, incoming, |a, b| a / n + b / n),
        (ReduceOp::Min, ..) => each_in_order::<H>(local, incoming, i16::min),
        (ReduceOp::Max, ..) => each_in_order::<H>(local, incoming, i16::max),
        (ReduceOp::Prod, ..) => each_in_f32::<H>(local, incoming, |a, b| a * b),
    }
}

/// Each element of `local` becomes `f` of it and the element of `incoming` at its place, rounded.
#[inline(always)]
fn each_in_f32<H: HalfFloat>(local: &mut [u8], incoming: &[u8], f: impl Fn(f32, f32) -> f32) {
    let narrowed = |a, b| H::narrow(f(H::widen(a), H::widen(b)));
    // Two elements at once fill the same bits as two f32 do one after the other: nothing has to be
    // packed or unpacked.
    let (pairs, odd) = local.as_chunks_mut::<4>();
    let (incoming_pairs, incoming_odd) = incoming.as_chunks::<4>();
    for (mine, theirs) in pairs.iter_mut().zip(incoming_pairs) {
        let (a, b) = (u32::from_le_bytes(*mine), u32::from_le_bytes(*theirs));
        let low = narrowed(a & 0xffff, b & 0xffff);
        let high = narrowed(a >> 16, b >> 16);
        *mine = (low | high << 16).to_le_bytes();
    }
    let (odd, _) = odd.as_chunks_mut::<2>();
    let (incoming_odd, _) = incoming_odd.as_chunks::<2>();
    for (mine, theirs) in odd.iter_mut().zip(incoming_odd) {
        let (a, b) = (u16::from_le_bytes(*mine), u16::from_le_bytes(*theirs));
        *mine = (narrowed(u32::from(a), u32::from(b)) as u16).to_le_bytes();
    }
}

/// Each element of `local` becomes `choose` of it and the element of `incoming` at its place,
/// both as integers in the same order as the floats, -0 below +0; NaN if one is NaN.
#[inline(always)]
fn each_in_order<H: HalfFloat>(
    local: &mut [u8],
    incoming: &[u8],
    choose: impl Fn(i16, i16) -> i16,
) {
    // The magnitude of a negative float counts downwards. Its own inverse.
    let ordered = |bits: i16| bits ^ (bits >> 15 & i16::MAX);
    let (local, _) = local.as_chunks_mut::<2>();
    let (incoming, _) = incoming.as_chunks::<2>();
    for (mine, theirs) in local.iter_mut().zip(incoming) {
        let (a, b) = (i16::from_le_bytes(*mine), i16::from_le_bytes(*theirs));
        let chosen = ordered(choose(ordered(a), ordered(b)));
        let larger_magnitude = (a & i16::MAX).max(b & i16::MAX);
        let nan = larger_magnitude > H::INFINITY;
        *mine = (if nan { H::CANONICAL_NAN as i16 } else { chosen }).to_le_bytes();
    }
}

impl HalfFloat for F16 {
    const INFINITY: i16 = 0x7c00;
    const CANONICAL_NAN: u32 = 0x7e00;

    #[inline(always)]
    fn widen(half: u32) -> f32 {
        let sign = (half & 0x8000) << 16;
        let magnitude = (half & 0x7fff) << 13;
        let exponent = magnitude & F16_EXPONENT;
        let normal = magnitude + REBIAS;
        // The largest exponent stands for infinity and NaN in both types.
        let special = normal + REBIAS;
        // A subnormal's bits behind the exponent of the smallest normal, less that normal.
        let offset = f32::from_bits(normal + ONE_EXPONENT);
        let subnormal = (offset - f32::from_bits(SMALLEST_NORMAL_F16)).to_bits();
        let bits = if exponent == F16_EXPONENT { special } else { normal };
        let bits = if exponent == 0 { subnormal } else { bits };
        f32::from_bits(sign | bits)
    }

    #[inline(always)]
    fn narrow(value: f32) -> u32 {
        let sign = (value.to_bits() >> 16) & 0x8000;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        // Half a unit of the last place that remains, less one where the place is even: what this
        // carries over is rounded up.
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(0xfff + odd) >> 13;
        // The addition itself rounds a subnormal, at the last place of 0.5.
        let offset = f32::from_bits(magnitude) + f32::from_bits(SUBNORMAL_ROUNDER);
        let subnormal = offset.to_bits().wrapping_sub(SUBNORMAL_ROUNDER);
        let bits = if magnitude < SMALLEST_NORMAL_F16 { subnormal } else { normal };
        let bits = if magnitude >= BEYOND_F16 { F16::INFINITY as u32 } else { bits };
        if value.is_nan() { F16::CANONICAL_NAN } else { bits | sign }
    }
}

impl HalfFloat for Bf16 {
    const INFINITY: i16 = 0x7f80;
    const CANONICAL_NAN: u32 = 0x7fc0;

    #[inline(always)]
    fn widen(half: u32) -> f32 {
        f32::from_bits(half << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> u32 {
        let bits = value.to_bits();
        let odd = (bits >> 16) & 1;
        let rounded = bits.wrapping_add(0x7fff + odd) >> 16;
        if value.is_nan() { Bf16::CANONICAL_NAN } else { rounded }
    }
}

/// f16's exponent, at the place where f32 has its own.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_as_the_crate_half_does() {
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            assert!(same(F16::widen(u32::from(bits)), want), "f16 {bits:#06x}");
            let want = half::bf16::from_bits(bits).to_f32();
            assert!(same(Bf16::widen(u32::from(bits)), want), "bf16 {bits:#06x}");
        }
    }

    /// Every upper half of an f32, with lower halves on, below and above the ties of both types.
    #[test]
    fn floats_narrow_as_the_crate_half_does() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001]
                .into_iter()
                .chain([0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xf001, 0xffff])
            {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let (f16, bf16) = if value.is_nan() {
                    (0x7e00, 0x7fc0)
                } else {
                    (half::f16::from_f32(value).to_bits(), half::bf16::from_f32(value).to_bits())
                };
                assert_eq!(F16::narrow(value), u32::from(f16), "f16 of {:#x}", value.to_bits());
                assert_eq!(Bf16::narrow(value), u32::from(bf16), "bf16 of {:#x}", value.to_bits());
            }
        }
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }
}
