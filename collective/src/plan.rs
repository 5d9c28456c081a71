//! Plans: the steps of one rank for one call, in closed form.
//!
//! A plan answers "what is step i?" from a few numbers, without a list of steps and without
//! allocation: a ring of 10,000 ranks has 40,000 steps. It names no clock, socket or thread;
//! [`crate::machine`] executes it.

pub(crate) mod chain;
pub(crate) mod costs;
pub(crate) mod ring;

use std::ops::Range;

/// One action of one rank, on a range of elements of the user's buffer.
///
/// A step's range is moved in segments, in order; all steps between one rank and another are done
/// in order of their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) action: Action,
    /// The rank at the other end.
    pub(crate) peer: u32,
    /// Elements of the user's buffer.
    pub(crate) range: Range<u64>,
    /// Segment k of this step waits for segment k of that step, which has the same range.
    pub(crate) after: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Send,
    /// Combine what arrives with the local contribution, in place. `last` marks the step that
    /// completes the sum, where an average divides.
    ReceiveReduce {
        last: bool,
    },
    ReceiveStore,
}

/// The plan of one rank.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Ring(ring::Ring),
    Chain(chain::Chain),
}

impl Plan {
    /// The number of steps.
    pub(crate) fn len(&self) -> u32 {
        match self {
            Plan::Ring(ring) => ring.len(),
            Plan::Chain(chain) => chain.len(),
        }
    }

    /// Step `index`, below `len()`.
    pub(crate) fn step(&self, index: u32) -> Step {
        match self {
            Plan::Ring(ring) => ring.step(index),
            Plan::Chain(chain) => chain.step(index),
        }
    }

    /// The ranks this rank sends to.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = u32> {
        match self {
            Plan::Ring(ring) => Some(ring.next()),
            Plan::Chain(chain) => chain.next(),
        }
        .into_iter()
    }

    /// The ranks this rank receives from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = u32> {
        match self {
            Plan::Ring(ring) => Some(ring.previous()),
            Plan::Chain(chain) => chain.previous(),
        }
        .into_iter()
    }

    /// A number that is equal on all ranks exactly if they follow one plan: part of the contract.
    pub(crate) fn fingerprint(&self, segment_elements: u64) -> u64 {
        let (algorithm, rounds) = match self {
            Plan::Ring(ring) => (1, u64::from(ring.rounds())),
            Plan::Chain(_) => (2, 0),
        };
        // One lane, one stripe and no grouping by host yet: zeros in the low bytes.
        (algorithm << 56) ^ (rounds << 32) ^ (segment_elements << 8)
    }
}

/// The elements of part `index` when `count` elements are cut into `parts` as equal as possible,
/// the longer ones first.
pub(crate) fn chunk(count: u64, parts: u32, index: u32) -> Range<u64> {
    let (parts, index) = (u64::from(parts), u64::from(index));
    let (length, longer) = (count / parts, count % parts);
    let start = index * length + index.min(longer);
    start..start + length + u64::from(index < longer)
}

/// How many segments a step of `elements` takes: at least one, because an empty transfer still
/// sends its header.
pub(crate) fn segments(elements: u64, segment_elements: u64) -> u64 {
    elements.div_ceil(segment_elements).max(1)
}

/// Segment `index` of `range`.
pub(crate) fn segment(range: &Range<u64>, segment_elements: u64, index: u64) -> Range<u64> {
    let start = range.start + (index * segment_elements).min(range.end - range.start);
    start..(start + segment_elements).min(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_and_segments_cover_everything_once(
            count in 0u64..10_000, parts in 1u32..70, segment_elements in 1u64..500,
        ) {
            let mut position = 0;
            for index in 0..parts {
                let range = chunk(count, parts, index);
                prop_assert_eq!(range.start, position);
                let mut inner = range.start;
                for k in 0..segments(range.end - range.start, segment_elements) {
                    let piece = segment(&range, segment_elements, k);
                    prop_assert_eq!(piece.start, inner);
                    prop_assert!(piece.end - piece.start <= segment_elements);
                    inner = piece.end;
                }
                prop_assert_eq!(inner, range.end);
                position = range.end;
            }
            prop_assert_eq!(position, count);
        }
    }
}
