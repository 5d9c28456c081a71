//! What the ranks must agree on for a call, and how it is compared.
//!
//! Every message carries a rolling hash of all contracts up to its call; the first message of a
//! call on a stream carries the contract itself. A difference is found before a byte is reduced.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::plan::{Algorithm, Request};
use crate::reduce::{ElementType, ReduceOp};
use crate::statistics::CallKey;

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

/// What a call does, where its collective does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// Moves the data of buffers.
    Data = 0,
    /// The all-gather that a `split` makes.
    Split = 1,
    /// Compares a call whose data NCCL moves between GPUs, and moves nothing itself.
    Device = 2,
    /// As `Device`: all calls on GPUs before it are waited for.
    DeviceWait = 3,
    /// As `DeviceWait`, and there are no more.
    DeviceClose = 4,
    /// What ranks tell each other before NCCL connects them.
    Connect = 5,
    /// As `Device`, of a call that is compared first, and again when it is done.
    DeviceNow = 6,
}

/// One call, as all ranks must make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contract {
    /// The communicator.
    pub(crate) group: u64,
    /// The call's number on the communicator, from 0.
    pub(crate) sequence: u64,
    pub(crate) collective: Collective,
    pub(crate) role: Role,
    pub(crate) op: Option<ReduceOp>,
    pub(crate) element: ElementType,
    /// As [`Request::count`] says.
    pub(crate) count: u64,
    /// A hash of all ranks' counts, where they differ from rank to rank; else 0.
    pub(crate) spread: u64,
    pub(crate) label: Option<u64>,
    /// The plan's fingerprint: what it was chosen for, its algorithm and segment length.
    pub(crate) plan: u64,
}

impl Contract {
    /// A hash of all but its number.
    pub(crate) fn digest(&self) -> u64 {
        let bytes = Self { sequence: 0, ..*self }.to_wire();
        bytes.chunks_exact(8).fold(0, |hash, word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            mix(hash ^ u64::from_le_bytes(bytes))
        })
    }

    /// The elements that it moves itself, as [`Request::count`] says.
    pub(crate) fn carried_count(&self) -> u64 {
        self.role.carries_of(self.count)
    }

    /// Under what it is counted, as its data went by `algorithm`.
    pub(crate) fn key(&self, algorithm: Algorithm) -> CallKey {
        let algorithm = if self.role.is_on_device() { Algorithm::Nccl } else { algorithm };
        let collective = match self.role {
            Role::DeviceWait | Role::DeviceClose => Collective::Barrier,
            _ => self.collective,
        };
        CallKey { collective, algorithm }
    }

    /// The bytes on the wire, little-endian.
    pub(crate) fn to_wire(self) -> [u8; CONTRACT_BYTES] {
        let (kind, root) = self.collective.to_wire();
        let mut bytes = [0; CONTRACT_BYTES];
        bytes[0] = kind;
        bytes[1] = self.op.map_or(0, ReduceOp::to_wire);
        bytes[2] = self.element as u8;
        bytes[3] = u8::from(self.label.is_some()) | (self.role as u8) << 1;
        bytes[4..8].copy_from_slice(&root.to_le_bytes());
        let words = [
            self.group,
            self.sequence,
            self.count,
            self.spread,
            self.label.unwrap_or(0),
            self.plan,
        ];
        for (field, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what a peer sent; None if it is not a contract.
    pub(crate) fn from_wire(bytes: &[u8; CONTRACT_BYTES]) -> Option<Self> {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_le_bytes(word)
        };
        let root = (word(0) >> 32) as u32;
        Some(Self {
            group: word(1),
            sequence: word(2),
            collective: Collective::from_wire(bytes[0], root)?,
            op: match bytes[1] {
                0 => None,
                op => Some(ReduceOp::from_wire(op)?),
            },
            element: ElementType::from_wire(bytes[2])?,
            count: word(3),
            spread: word(4),
            role: Role::from_wire(bytes[3] >> 1)?,
            label: (bytes[3] & 1 != 0).then(|| word(5)),
            plan: word(6),
        })
    }
}

impl Role {
    /// The collective whose plan a call of this role follows.
    pub(crate) fn carries(self, collective: Collective) -> Collective {
        if self.is_on_device() { Collective::Barrier } else { collective }
    }

    /// Of so many elements, those that it moves.
    fn carries_of(self, count: u64) -> u64 {
        if self.is_on_device() { 0 } else { count }
    }

    fn is_on_device(self) -> bool {
        matches!(self, Self::Device | Self::DeviceNow | Self::DeviceWait | Self::DeviceClose)
    }

    fn from_wire(number: u8) -> Option<Self> {
        use Role::*;
        [Data, Split, Device, DeviceWait, DeviceClose, Connect, DeviceNow]
            .into_iter()
            .find(|role| *role as u8 == number)
    }
}

impl Collective {
    /// Its name, as the method that makes it.
    pub(crate) fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// All kinds, those with a root from rank 0, in the order of `NAMES`.
    pub(crate) fn kinds() -> impl Iterator<Item = Self> {
        (1..=Self::NAMES.len() as u8).filter_map(|kind| Self::from_wire(kind, 0))
    }

    /// Its place in `NAMES`.
    pub(crate) fn index(self) -> usize {
        usize::from(self.to_wire().0) - 1
    }

    /// In the order of the numbers on the wire.
    pub(crate) const NAMES: [&str; 11] = [
        "all_reduce",
        "broadcast",
        "barrier",
        "reduce_scatter",
        "all_gather",
        "all_gather_v",
        "reduce",
        "gather",
        "scatter",
        "all_to_all",
        "send",
    ];

    /// The rank that a rooted collective comes from or goes to.
    pub(crate) fn root(self) -> Option<u32> {
        use Collective::*;
        match self {
            Broadcast { root } | Reduce { root } | Gather { root } | Scatter { root } => Some(root),
            _ => None,
        }
    }

    /// The same with another number for its root.
    pub(crate) fn with_root(self, number: impl FnOnce(u32) -> u32) -> Self {
        use Collective::*;
        match self {
            Broadcast { root } => Broadcast { root: number(root) },
            Reduce { root } => Reduce { root: number(root) },
            Gather { root } => Gather { root: number(root) },
            Scatter { root } => Scatter { root: number(root) },
            other => other,
        }
    }

    fn to_wire(self) -> (u8, u32) {
        let kind = match self {
            Collective::AllReduce => 1,
            Collective::Broadcast { .. } => 2,
            Collective::Barrier => 3,
            Collective::ReduceScatter => 4,
            Collective::AllGather => 5,
            Collective::AllGatherV => 6,
            Collective::Reduce { .. } => 7,
            Collective::Gather { .. } => 8,
            Collective::Scatter { .. } => 9,
            Collective::AllToAll => 10,
            Collective::Send => 11,
        };
        (kind, self.root().unwrap_or(0))
    }

    fn from_wire(kind: u8, root: u32) -> Option<Self> {
        Some(match kind {
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
        })
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(None))
    }
}

impl Contract {
    /// `all_reduce #418 (sum of f32 x 1048576, src/train.rs:88)`: the call with its number, and
    /// where in the program it was made.
    pub(crate) fn describe(&self, location: Option<&str>) -> String {
        let (name, details) = match self.role {
            Role::Split => ("split", String::new()),
            Role::Connect => ("connect", "on GPUs".into()),
            Role::DeviceWait => ("wait", self.details()),
            Role::DeviceClose => ("close", self.details()),
            Role::Data | Role::Device | Role::DeviceNow => (self.collective.name(), self.details()),
        };
        let within = [details.as_str(), location.unwrap_or_default()];
        let within: Vec<&str> = within.into_iter().filter(|part| !part.is_empty()).collect();
        match within.is_empty() {
            true => format!("{name} #{}", self.sequence),
            false => format!("{name} #{} ({})", self.sequence, within.join(", ")),
        }
    }

    /// `sum of f32 x 10`.
    fn details(&self) -> String {
        let root = match self.collective {
            Collective::Broadcast { root } | Collective::Scatter { root } => {
                Some(format!("from rank {root}"))
            }
            Collective::Reduce { root } | Collective::Gather { root } => {
                Some(format!("to rank {root}"))
            }
            _ => None,
        };
        let op = self.op.map(|op| op.to_string());
        let data = (self.collective != Collective::Barrier)
            .then(|| format!("{} x {}", self.element, self.count));
        let data = match (op, data) {
            (Some(op), Some(data)) => Some(format!("{op} of {data}")),
            (op, data) => op.or(data),
        };
        // Two calls of one total must read differently.
        let parts = (self.spread != 0).then(|| format!("in parts {:08x}", self.spread >> 32));
        let label = self.label.map(|label| format!("label {label}"));
        let place = match self.role {
            Role::DeviceNow => Some("on GPUs, blocking".to_string()),
            _ => self.role.is_on_device().then(|| "on GPUs".to_string()),
        };
        let words = [root, data, parts, place, label];
        words.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// A call as the user made it.
#[derive(Clone, Debug)]
pub(crate) struct CallShape {
    pub(crate) collective: Collective,
    pub(crate) role: Role,
    pub(crate) op: Option<ReduceOp>,
    pub(crate) element: ElementType,
    /// As [`Request::count`] says.
    pub(crate) count: u64,
    /// As [`Request::counts`] says.
    pub(crate) counts: Option<Arc<[u64]>>,
    pub(crate) label: Option<u64>,
    /// Shown in errors, never compared.
    pub(crate) location: &'static Location<'static>,
}

impl CallShape {
    /// What the choice of the plan depends on, among `size` ranks.
    pub(crate) fn request(&self, size: u32) -> Request {
        Request {
            collective: self.carried(),
            size,
            count: self.role.carries_of(self.count),
            element_bytes: self.element.size() as u32,
            counts: self.counts.clone().filter(|_| !self.role.is_on_device()),
        }
    }

    /// The collective whose plan it follows.
    pub(crate) fn carried(&self) -> Collective {
        self.role.carries(self.collective)
    }

    /// The hash of all ranks' counts; 0 where they do not differ.
    pub(crate) fn spread(&self) -> u64 {
        let Some(counts) = &self.counts else { return 0 };
        counts.iter().fold(counts.len() as u64, |hash, end| mix(hash ^ end)).max(1)
    }
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

/// The rolling hash after call `sequence`, from the one before it and the contract's digest.
pub(crate) fn roll(before: u64, digest: u64, sequence: u64) -> u64 {
    mix(mix(before ^ digest) ^ sequence)
}

/// The rolling hash before the first call on a communicator.
pub(crate) fn first_hash(epoch: u64, group: u64) -> u64 {
    mix(mix(epoch) ^ group)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
/// Peers are authenticated, so accidents are what it must tell apart, not attacks.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A multiple of eight, for the hash.
pub(crate) const CONTRACT_BYTES: usize = 56;
/// The longest source location sent along with a contract.
pub(crate) const MAX_LOCATION_BYTES: usize = 120;
