use half::{bf16, f16};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

proptest! {
    /// Every type and operation with every combination of flags, at once.
    #[test]
    fn kernels_do_what_the_plain_reference_does(
        operands in prop::collection::vec((operand(), operand()), 0..70),
        ranks in ranks(),
        misalignment in 0usize..4,
    ) {
        for kernel in kernels(ranks) {
            let [a, b] = bytes(kernel.element, &operands);
            let want = reference(kernel, &a, &b);
            let mut local = [&vec![0; misalignment], &a[..]].concat();
            let incoming = [&[0][..], &b].concat();
            kernel.combine(&mut local[misalignment..], &incoming[1..]);
            prop_assert_eq!(&local[misalignment..], &want[..], "{:?}", kernel);
        }
    }

    #[test]
    fn operands_may_change_places_to_the_bit(
        operands in prop::collection::vec((operand(), operand()), 0..70),
        ranks in ranks(),
    ) {
        for kernel in kernels(ranks) {
            let [a, b] = bytes(kernel.element, &operands);
            let swapped = Kernel {
                incoming_raw: kernel.local_raw, local_raw: kernel.incoming_raw, ..kernel
            };
            prop_assert_eq!(combined(kernel, &a, &b), combined(swapped, &b, &a), "{:?}", kernel);
        }
    }

    #[test]
    fn processors_with_and_without_wide_registers_agree(
        operands in prop::collection::vec((operand(), operand()), 0..70),
        ranks in ranks(),
    ) {
        for kernel in kernels(ranks) {
            let [mut a, b] = bytes(kernel.element, &operands);
            let want = combined(kernel, &a, &b);
            kernel.combine_portably(&mut a, &b);
            prop_assert_eq!(a, want, "{:?}", kernel);
        }
    }

    #[test]
    fn pieces_of_any_length_give_the_same_bits(
        operands in prop::collection::vec((operand(), operand()), 0..70),
        cuts in prop::collection::vec(1usize..23, 1..50),
        ranks in ranks(),
    ) {
        for kernel in kernels(ranks) {
            let [a, b] = bytes(kernel.element, &operands);
            let mut local = a.clone();
            let mut reducer = Reducer::default();
            let mut rest = &b[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                reducer.reduce(kernel, &mut local, piece);
                rest = after;
            }
            prop_assert_eq!(local, combined(kernel, &a, &b), "{:?}", kernel);
        }
    }

    #[test]
    fn pieces_are_stored_one_behind_the_other(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        cut in 1usize..23,
    ) {
        let mut local = vec![0; bytes.len()];
        let mut reducer = Reducer::default();
        for piece in bytes.chunks(cut) {
            reducer.store(&mut local, piece);
        }
        prop_assert_eq!(local, bytes);
    }
}

#[test]
fn every_nan_has_the_canonical_bits() {
    let signalling_and_negative = [0x7f80_0001u32, 0xffc0_0000, 0xffff_ffff].map(f32::from_bits);
    for nan in signalling_and_negative {
        for &op in ReduceOp::ALL {
            for [a, b] in [[nan, 1.0], [1.0, nan], [nan, -0.0], [0.0, nan], [nan, f32::INFINITY]] {
                assert_eq!(of_two(op, a, b).to_bits(), 0x7fc0_0000, "{op} of {a} and {b}");
                // Signalling NaNs of the other types are among the properties' operands.
                let [a, b] = [f64::from(a), f64::from(b)];
                assert_eq!(of_two(op, a, b).to_bits(), 0x7ff8_0000_0000_0000, "{op}");
                let [half_a, half_b] = [f16::from_f64(a), f16::from_f64(b)];
                assert_eq!(of_two(op, half_a, half_b).to_bits(), 0x7e00, "{op}");
                let [half_a, half_b] = [bf16::from_f64(a), bf16::from_f64(b)];
                assert_eq!(of_two(op, half_a, half_b).to_bits(), 0x7fc0, "{op}");
            }
        }
    }
    let made = of_two(ReduceOp::Sum, f32::INFINITY, f32::NEG_INFINITY);
    assert_eq!(made.to_bits(), 0x7fc0_0000);
    let made = of_two(ReduceOp::Prod, f16::INFINITY, f16::ZERO);
    assert_eq!(made.to_bits(), 0x7e00);
}

#[test]
fn negative_zero_is_less_than_positive_zero() {
    for [a, b] in [[0.0f64, -0.0], [-0.0, 0.0]] {
        assert!(of_two(ReduceOp::Min, a, b).is_sign_negative());
        assert!(of_two(ReduceOp::Max, a, b).is_sign_positive());
        let [a, b] = [a as f32, b as f32];
        assert!(of_two(ReduceOp::Min, a, b).is_sign_negative());
        assert!(of_two(ReduceOp::Max, a, b).is_sign_positive());
        let [a, b] = [f16::from_f32(a), f16::from_f32(b)];
        assert!(of_two(ReduceOp::Min, a, b).is_sign_negative());
        assert!(of_two(ReduceOp::Max, a, b).is_sign_positive());
    }
}

#[test]
fn integers_wrap() {
    assert_eq!(of_two(ReduceOp::Sum, 100i8, 100), -56);
    assert_eq!(of_two(ReduceOp::Sum, 200u8, 100), 44);
    assert_eq!(of_two(ReduceOp::Sum, i32::MAX, 1), i32::MIN);
    assert_eq!(of_two(ReduceOp::Prod, 1u32 << 31, 2), 0);
    assert_eq!(of_two(ReduceOp::Prod, i64::MAX, 2), -2);
    assert_eq!(of_two(ReduceOp::Sum, u64::MAX, 1), 0);
}

#[test]
fn integer_averages_round_toward_zero() {
    assert_eq!(of_two(ReduceOp::Avg, -3i8, -4), -3);
    assert_eq!(of_two(ReduceOp::Avg, 3u8, 4), 3);
    assert_eq!(of_two(ReduceOp::Avg, -3i64, 0), -1);
    assert_eq!(of_two(ReduceOp::Avg, i32::MAX, 1), i32::MIN / 2);
    // More ranks than an element can count: 300 would be 44 as a u8.
    let average = Kernel { ranks: 300, ..complete(ReduceOp::Avg, ElementType::U8) };
    assert_eq!(combined(average, &[200], &[50]), [0]);
    let average = Kernel { ranks: u32::MAX, ..complete(ReduceOp::Avg, ElementType::I32) };
    assert_eq!(combined(average, &[0xff; 4], &[0xff; 4]), [0; 4]);
}

#[test]
fn only_the_last_step_divides_the_sum() {
    let kernel = Kernel { ranks: 3, last: false, ..complete(ReduceOp::Avg, ElementType::F64) };
    let partial = combined(kernel, &1.5f64.to_le_bytes(), &2.0f64.to_le_bytes());
    assert_eq!(partial, 3.5f64.to_le_bytes());
    let average = combined(Kernel { last: true, ..kernel }, &4.0f64.to_le_bytes(), &partial);
    assert_eq!(average, (7.5f64 / 3.0).to_le_bytes());
}

#[test]
fn an_average_of_large_f16_does_not_overflow() {
    let contribution = f16::from_f32(60_000.0).to_le_bytes();
    for ranks in [2, 4, 8, 64] {
        let mut partial = contribution.to_vec();
        for step in 1..ranks {
            let kernel = Kernel {
                element: ElementType::F16,
                op: ReduceOp::Avg,
                ranks,
                incoming_raw: true,
                local_raw: step == 1,
                last: step == ranks - 1,
            };
            kernel.combine(&mut partial, &contribution);
        }
        let average = f16::from_le_bytes([partial[0], partial[1]]).to_f32();
        // Each step rounds by at most half a unit of 2^-11.
        assert!((average / 60_000.0 - 1.0).abs() < ranks as f32 / 2048.0, "{ranks}: {average}");
    }
    let sum = of_two(ReduceOp::Sum, f16::from_f32(60_000.0), f16::from_f32(60_000.0));
    assert_eq!(sum, f16::INFINITY);
}

#[test]
fn numbers_on_the_wire_name_one_type_and_one_operation() {
    use ElementType::*;
    let types = [U8, I32, U32, I64, U64, F32, F64, I8, F16, BF16];
    for (number, element) in (1..).zip(types) {
        assert_eq!(ElementType::from_wire(number), Some(element));
    }
    for (number, &op) in (1..).zip(ReduceOp::ALL) {
        assert_eq!((ReduceOp::from_wire(number), op.to_wire()), (Some(op), number));
    }
    for unknown in [0, 11, 255] {
        assert_eq!((ElementType::from_wire(unknown), ReduceOp::from_wire(unknown)), (None, None));
    }
    let names: Vec<_> = ElementType::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(names.join(" "), "i8 u8 i32 u32 i64 u64 f16 bf16 f32 f64");
    let names: Vec<_> = ReduceOp::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(names.join(" "), "sum avg min max prod");
}

/// What one element is computed with, plainly, and one after the other.
fn reference(kernel: Kernel, local: &[u8], incoming: &[u8]) -> Vec<u8> {
    let Kernel { op, ranks, local_raw, incoming_raw, last, .. } = kernel;
    let divides = op == ReduceOp::Avg && last;
    macro_rules! over {
        ($element:ty, $bits:ty, |$a:ident, $b:ident| $result:expr) => {{
            const SIZE: usize = size_of::<$element>();
            let pairs = local.chunks_exact(SIZE).zip(incoming.chunks_exact(SIZE));
            let each = pairs.flat_map(|(a, b)| {
                let $a = <$element>::from_le_bytes(a.try_into().unwrap());
                let $b = <$element>::from_le_bytes(b.try_into().unwrap());
                let result: $element = $result;
                result.to_le_bytes()
            });
            each.collect()
        }};
    }
    macro_rules! integer {
        ($element:ty) => {
            over!($element, $element, |a, b| match op {
                ReduceOp::Sum | ReduceOp::Avg => {
                    let sum = (i128::from(a) + i128::from(b)) as $element;
                    let divisor = if divides { i128::from(ranks) } else { 1 };
                    (i128::from(sum) / divisor) as $element
                }
                ReduceOp::Min =>
                    if b < a {
                        b
                    } else {
                        a
                    },
                ReduceOp::Max =>
                    if b > a {
                        b
                    } else {
                        a
                    },
                ReduceOp::Prod => i128::from(a).wrapping_mul(i128::from(b)) as $element,
            })
        };
    }
    macro_rules! float {
        ($element:ty, $nan:expr, |$a:ident, $b:ident| $result:expr) => {
            over!($element, $element, |$a, $b| {
                let first_is_lower = match $a.partial_cmp(&$b) {
                    Some(std::cmp::Ordering::Equal) => $a.is_sign_negative(),
                    ordering => ordering == Some(std::cmp::Ordering::Less),
                };
                let result = match op {
                    _ if $a.is_nan() || $b.is_nan() => <$element>::NAN,
                    ReduceOp::Min => {
                        if first_is_lower {
                            $a
                        } else {
                            $b
                        }
                    }
                    ReduceOp::Max => {
                        if first_is_lower {
                            $b
                        } else {
                            $a
                        }
                    }
                    _ => $result,
                };
                if result.is_nan() { <$element>::from_bits($nan) } else { result }
            })
        };
    }
    macro_rules! half {
        ($element:ty, $nan:expr) => {
            float!($element, $nan, |a, b| {
                let share = |raw| if raw && op == ReduceOp::Avg { ranks as f32 } else { 1.0 };
                let (a, b) = (a.to_f32() / share(local_raw), b.to_f32() / share(incoming_raw));
                <$element>::from_f32(if op == ReduceOp::Prod { a * b } else { a + b })
            })
        };
    }
    match kernel.element {
        ElementType::I8 => integer!(i8),
        ElementType::U8 => integer!(u8),
        ElementType::I32 => integer!(i32),
        ElementType::U32 => integer!(u32),
        ElementType::I64 => integer!(i64),
        ElementType::U64 => integer!(u64),
        ElementType::F16 => half!(f16, 0x7e00),
        ElementType::BF16 => half!(bf16, 0x7fc0),
        ElementType::F32 => float!(f32, 0x7fc0_0000, |a, b| match op {
            ReduceOp::Prod => a * b,
            _ => (a + b) / if divides { ranks as f32 } else { 1.0 },
        }),
        ElementType::F64 => float!(f64, 0x7ff8_0000_0000_0000, |a, b| match op {
            ReduceOp::Prod => a * b,
            _ => (a + b) / if divides { f64::from(ranks) } else { 1.0 },
        }),
    }
}

/// Every type, operation and combination of flags.
fn kernels(ranks: u32) -> impl Iterator<Item = Kernel> {
    let ops = |&element| ReduceOp::ALL.iter().map(move |&op| (element, op));
    ElementType::ALL.iter().flat_map(ops).flat_map(move |(element, op)| {
        (0..8).map(move |flags| Kernel {
            element,
            op,
            ranks,
            incoming_raw: flags & 1 != 0,
            local_raw: flags & 2 != 0,
            last: flags & 4 != 0,
        })
    })
}

/// The only step of a call of two ranks.
fn complete(op: ReduceOp, element: ElementType) -> Kernel {
    Kernel { element, op, ranks: 2, incoming_raw: true, local_raw: true, last: true }
}

fn combined(kernel: Kernel, local: &[u8], incoming: &[u8]) -> Vec<u8> {
    let mut local = local.to_vec();
    kernel.combine(&mut local, incoming);
    local
}

/// The result of a call of two ranks.
fn of_two<T: Bytes>(op: ReduceOp, a: T, b: T) -> T {
    T::from_bytes(&combined(complete(op, T::TYPE), &a.to_bytes(), &b.to_bytes()))
}

trait Bytes: Reducible {
    fn to_bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! bytes {
    ($($element:ty),*) => {
        $(impl Bytes for $element {
            fn to_bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        })*
    };
}
bytes!(i8, u8, i32, u32, i64, u64, f16, bf16, f32, f64);

/// Eight bytes to cut an element of any type from: any, or those of a float at an edge of a type.
fn operand() -> impl Strategy<Value = [u8; 8]> {
    let signed = prop_oneof![select(&EDGES), select(&EDGES).prop_map(|edge| -edge)];
    prop_oneof![
        any::<[u8; 8]>(),
        signed.clone().prop_map(f64::to_le_bytes),
        signed.clone().prop_map(|edge| repeated((edge as f32).to_le_bytes())),
        signed.clone().prop_map(|edge| repeated(f16::from_f64(edge).to_le_bytes())),
        signed.prop_map(|edge| repeated(bf16::from_f64(edge).to_le_bytes())),
        select(&SPECIAL_UPPER_BITS).prop_map(|bits| repeated(bits.to_le_bytes())),
        any::<i8>().prop_map(|small| i64::from(small).to_le_bytes()),
    ]
}

fn ranks() -> impl Strategy<Value = u32> {
    prop_oneof![2u32..20, 2u32..=u32::MAX, Just(128), Just(256)]
}

fn repeated<const SIZE: usize>(bytes: [u8; SIZE]) -> [u8; 8] {
    std::array::from_fn(|i| bytes[i % SIZE])
}

/// The local and the incoming elements: the operands' upper bytes, where a float has its sign, or
/// the lower ones of every second.
fn bytes(element: ElementType, operands: &[([u8; 8], [u8; 8])]) -> [Vec<u8>; 2] {
    let size = element.size();
    let cut = |i: usize, bytes: [u8; 8]| {
        let start = if i.is_multiple_of(2) { 8 - size } else { 0 };
        bytes[start..start + size].to_vec()
    };
    let (local, incoming): (Vec<_>, Vec<_>) =
        (operands.iter().enumerate()).map(|(i, (a, b))| (cut(i, *a), cut(i, *b))).unzip();
    [local.concat(), incoming.concat()]
}

/// Ends of the ranges of f16, bf16 and f32, and ordinary numbers.
static EDGES: [f64; 10] =
    [0.0, 1.0, 3.5, 60_000.0, 65_519.0, 65_520.0, 6e-8, 1e38, 1e300, f64::INFINITY];
/// Exponents of ones: infinities, and NaN with and without the quiet bit; then -0.
static SPECIAL_UPPER_BITS: [u16; 9] =
    [0x7c00, 0xfc01, 0x7e01, 0x7f80, 0xff81, 0x7fc1, 0x7ff0, 0xfff1, 0x8000];
