//! What the ranks must agree on for a call, and how it is compared.
//!
//! Every message carries a rolling hash of all contracts up to its call; the first message of a
//! call on a stream carries the contract itself. A difference is found before a byte is reduced.

use std::fmt;
use std::panic::Location;

use crate::plan::{Algorithm, Plan, Request, costs};
use crate::reduce::{ElementType, Kernel, ReduceOp};

/// The kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collective {
    AllReduce,
    ReduceScatter,
    AllGather,
    AllGatherV,
    Broadcast {
        root: u32,
    },
    Reduce {
        root: u32,
    },
    Gather {
        root: u32,
    },
    Scatter {
        root: u32,
    },
    AllToAll,
    Barrier,
    /// One message, from member 0 of a pair to member 1.
    Send,
}

/// One call, as all ranks must make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contract {
    /// The call's number on the communicator, from 0.
    pub(crate) sequence: u64,
    pub(crate) collective: Collective,
    pub(crate) op: Option<ReduceOp>,
    pub(crate) element: ElementType,
    /// Elements of one rank's buffer.
    pub(crate) count: u64,
    pub(crate) label: Option<u64>,
    /// The plan's fingerprint: algorithm, rounds, segment length.
    pub(crate) plan: u64,
}

impl Contract {
    /// The contract and the plan of `rank` for a call.
    pub(crate) fn of_call(call: &CallShape, rank: u32, size: u32, sequence: u64) -> (Self, Plan) {
        let request = Request {
            collective: call.collective,
            size,
            count: call.count,
            element_bytes: call.element.size() as u32,
            counts: None,
        };
        // The lane has one flow to each peer: no double tree.
        let plan =
            costs::choose(&request, rank, &costs::CostTable::default(), Some(Algorithm::Ring));
        let contract = Self {
            sequence,
            collective: call.collective,
            op: call.op,
            element: call.element,
            count: call.count,
            label: call.label,
            plan: plan.fingerprint(costs::segment_elements(call.element.size() as u32)),
        };
        (contract, plan)
    }

    /// The kernel for this contract's reductions; `last` is the step that completes the sum.
    pub(crate) fn kernel(&self, incoming_raw: bool, last: bool, size: u32) -> Kernel {
        let op = self.op.unwrap_or(ReduceOp::Sum);
        Kernel { element: self.element, op, ranks: size, incoming_raw, local_raw: true, last }
    }

    /// The rolling hash after this call, from the one before it.
    pub(crate) fn roll(&self, before: u64) -> u64 {
        self.to_wire().chunks_exact(8).fold(before, |hash, word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            mix(hash ^ u64::from_le_bytes(bytes))
        })
    }

    /// The bytes on the wire, little-endian.
    pub(crate) fn to_wire(self) -> [u8; CONTRACT_BYTES] {
        let (kind, root) = match self.collective {
            Collective::AllReduce => (1, 0),
            Collective::Broadcast { root } => (2, root),
            Collective::Barrier => (3, 0),
            Collective::ReduceScatter => (4, 0),
            Collective::AllGather => (5, 0),
            Collective::AllGatherV => (6, 0),
            Collective::Reduce { root } => (7, root),
            Collective::Gather { root } => (8, root),
            Collective::Scatter { root } => (9, root),
            Collective::AllToAll => (10, 0),
            Collective::Send => (11, 0),
        };
        let mut bytes = [0; CONTRACT_BYTES];
        bytes[0] = kind;
        bytes[1] = self.op.map_or(0, ReduceOp::to_wire);
        bytes[2] = self.element as u8;
        bytes[3] = u8::from(self.label.is_some());
        bytes[4..8].copy_from_slice(&root.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.count.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.label.unwrap_or(0).to_le_bytes());
        bytes[32..40].copy_from_slice(&self.plan.to_le_bytes());
        bytes
    }

    /// Reads what a peer sent; None if it is not a contract.
    pub(crate) fn from_wire(bytes: &[u8; CONTRACT_BYTES]) -> Option<Self> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let root = (word(0) >> 32) as u32;
        Some(Self {
            sequence: word(8),
            collective: match bytes[0] {
                1 => Collective::AllReduce,
                2 => Collective::Broadcast { root },
                3 => Collective::Barrier,
                4 => Collective::ReduceScatter,
                5 => Collective::AllGather,
                6 => Collective::AllGatherV,
                7 => Collective::Reduce { root },
                8 => Collective::Gather { root },
                9 => Collective::Scatter { root },
                10 => Collective::AllToAll,
                11 => Collective::Send,
                _ => return None,
            },
            op: match bytes[1] {
                0 => None,
                op => Some(ReduceOp::from_wire(op)?),
            },
            element: ElementType::from_wire(bytes[2])?,
            count: word(16),
            label: (bytes[3] == 1).then(|| word(24)),
            plan: word(32),
        })
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.collective {
            Collective::AllReduce => f.write_str("all_reduce")?,
            Collective::Broadcast { root } => write!(f, "broadcast from rank {root}")?,
            Collective::Barrier => return f.write_str("barrier").and_then(|()| self.label_to(f)),
            other => write!(f, "{other:?}")?,
        }
        if let Some(op) = self.op {
            write!(f, " {op}")?;
        }
        write!(f, " of {} x {}", self.element, self.count)?;
        self.label_to(f)
    }
}

impl Contract {
    fn label_to(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.map_or(Ok(()), |label| write!(f, " label {label}"))
    }
}

/// A call as the user made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallShape {
    pub(crate) collective: Collective,
    pub(crate) op: Option<ReduceOp>,
    pub(crate) element: ElementType,
    pub(crate) count: u64,
    pub(crate) label: Option<u64>,
    /// Shown in errors, never compared.
    pub(crate) location: &'static Location<'static>,
}

/// A contract with its place in the program, as errors show it.
pub(crate) fn describe(contract: &Contract, location: &str) -> String {
    format!("{contract} ({location})")
}

/// `src/train.rs:88`; long paths lose their beginning.
pub(crate) fn show_location(location: &Location<'_>) -> String {
    let file = location.file();
    let mut start = file.len().saturating_sub(MAX_LOCATION_BYTES - 12);
    while !file.is_char_boundary(start) {
        start += 1;
    }
    format!("{}:{}", &file[start..], location.line())
}

/// The rolling hash before the first call.
pub(crate) fn first_hash(epoch: u64) -> u64 {
    mix(epoch)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
/// Peers are authenticated, so accidents are what it must tell apart, not attacks.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A multiple of eight, for the hash.
pub(crate) const CONTRACT_BYTES: usize = 40;
/// The longest source location sent along with a contract.
pub(crate) const MAX_LOCATION_BYTES: usize = 120;
