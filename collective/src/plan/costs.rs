//! Which algorithm a call uses, and how large its segments are: a pure function of what all ranks
//! know, so that all choose alike.

use super::{Plan, chain::Chain, ring::Ring};
use crate::contract::Collective;

/// The plan of `rank` for a call of `count` elements; `size` is at least 2.
pub(crate) fn choose(collective: Collective, rank: u32, size: u32, count: u64) -> Plan {
    match collective {
        Collective::AllReduce => Plan::Ring(Ring::all_reduce(rank, size, count)),
        Collective::Barrier => Plan::Ring(Ring::barrier(rank, size)),
        Collective::Broadcast { root } => Plan::Chain(Chain::broadcast(rank, size, root, count)),
    }
}

/// Elements of one segment.
pub(crate) fn segment_elements(element_bytes: usize) -> u64 {
    SEGMENT_BYTES / element_bytes as u64
}

/// Large enough that headers (40 bytes) and wake-ups do not count, small enough that a few lie in
/// the L2 cache and that a 2-rank ring of 1 MiB has eight of them to overlap.
const SEGMENT_BYTES: u64 = 64 * 1024;
