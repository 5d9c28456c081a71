//! The bits of results: identical on all ranks, and the same from version to version for one world
//! size, length, operation and algorithm. docs/algorithms.md says what that promises.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod worlds;

use allfold::{Communicator, InMemory, ReduceOp, Reducible, Result, bf16, f16};
use worlds::{in_shared_memory, over_quic, results};

const ALGORITHMS: [&str; 4] = ["ring", "tree", "recursive-doubling", "halving-doubling"];
const SIZES: [usize; 4] = [2, 3, 5, 8];

/// One digest for each world size, of all operations and floating-point types at three lengths.
/// A change here is a change of the promise: say so in docs/algorithms.md and in the release notes.
const DIGESTS: [(&str, [u64; 4]); 4] = [
    ("ring", [0x5e282e9bd6fe50e7, 0x0202577a7ad634df, 0xdc38d6792d6493f8, 0x198a3b89a41a6195]),
    ("tree", [0x5e282e9bd6fe50e7, 0xb8107e662baa0484, 0xff273a1d40d0a4c3, 0xd8bfc8585e15dc99]),
    (
        "recursive-doubling",
        [0x5e282e9bd6fe50e7, 0xfb54478cb846de2b, 0x24e4b22c275f4012, 0x57f8f9b1469dae23],
    ),
    (
        "halving-doubling",
        [0x5e282e9bd6fe50e7, 0xfb54478cb846de2b, 0x4cf26cfa06769a18, 0xa08e2634a685d5f0],
    ),
];

#[test]
fn results_keep_their_bits_from_version_to_version() {
    let found = ALGORITHMS.map(|name| {
        let digest = |size: usize| {
            let world = InMemory::new(size).unwrap().algorithm(name).unwrap().start().unwrap();
            one_digest(results(world, |rank| everything(rank).unwrap()))
        };
        (name, SIZES.map(digest))
    });
    assert_eq!(found, DIGESTS, "found\n{found:#x?}");
}

/// As above, in memory that the ranks share: in rank order, whatever the length.
const IN_RANK_ORDER: [u64; 4] =
    [0x5e282e9bd6fe50e7, 0xfb54478cb846de2b, 0x49fb0ab3d03cb48f, 0xffbb45e6ab83dac3];

#[test]
fn results_in_shared_memory_keep_their_bits() {
    let digest = |size| one_digest(results(in_shared_memory(size), |r| everything(r).unwrap()));
    let found = SIZES.map(digest);
    assert_eq!(found, IN_RANK_ORDER, "found {found:#x?}");
}

#[test]
fn the_link_and_the_time_do_not_show_in_the_bits() {
    let memory = Communicator::in_memory(3).unwrap();
    let quic = over_quic(3);
    let [first, second] =
        [memory, quic].map(|world| one_digest(results(world, |rank| everything(rank).unwrap())));
    assert_eq!(first, second);
}

/// All ranks found the same.
fn one_digest(digests: Vec<u64>) -> u64 {
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:x?}");
    digests[0]
}

/// A digest of reductions whose every rounding shows.
fn everything(world: &Communicator) -> Result<u64> {
    let mut digest = Digest::default();
    for length in [1, 1_001, 40_000] {
        for &op in ReduceOp::ALL {
            let of = |index: usize| value(world.rank(), index);
            reduce(world, op, length, |i| of(i) as f32, |v| v.to_bits().into(), &mut digest)?;
            reduce(world, op, length, of, f64::to_bits, &mut digest)?;
            reduce(
                world,
                op,
                length,
                |i| f16::from_f32(of(i) as f32),
                |v| v.to_bits().into(),
                &mut digest,
            )?;
            reduce(
                world,
                op,
                length,
                |i| bf16::from_f32(of(i) as f32),
                |v| v.to_bits().into(),
                &mut digest,
            )?;
        }
    }
    Ok(digest.0)
}

fn reduce<T: Reducible>(
    world: &Communicator,
    op: ReduceOp,
    length: usize,
    of: impl Fn(usize) -> T,
    bits: impl Fn(T) -> u64,
    digest: &mut Digest,
) -> Result<()> {
    let mut buffer: Vec<T> = (0..length).map(of).collect();
    world.all_reduce(&mut buffer, op)?;
    buffer.into_iter().for_each(|value| digest.add(bits(value)));
    Ok(())
}

/// Between -2 and 2, with all bits of a double in use; one in a thousand is not a number. To halves
/// it goes by way of f32: `half` rounds a double once or twice, as the processor and features go.
fn value(rank: usize, index: usize) -> f64 {
    let word = mix((rank as u64) << 32 ^ index as u64 ^ 0x5eed);
    match word % 1000 {
        0 => f64::NAN,
        _ => (word >> 11) as f64 / (1u64 << 51) as f64 - 2.0,
    }
}

#[derive(Default)]
struct Digest(u64);

impl Digest {
    fn add(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
