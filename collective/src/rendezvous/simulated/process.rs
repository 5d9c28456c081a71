//! A process of the simulated cluster: what stands around the state machines in `gather` and
//! `attend`, without connections.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::error::Result;
use crate::liveness::Judge;
use crate::rendezvous::attending::Attending;
use crate::rendezvous::gathering::Gathering;
use crate::trust::hello::{Hello, Purpose};

pub(super) struct Process {
    pub(super) rank: u32,
    /// A second process of its rank, which nobody starts again.
    pub(super) is_impostor: bool,
    /// Grows with every start and end, so that what was meant for an earlier one is known.
    pub(super) life: u32,
    pub(super) hello: Hello,
    pub(super) role: Role,
    pub(super) links: BTreeMap<u32, Link>,
    /// Connections that wait for their hello's answer.
    pub(super) dialling: BTreeMap<usize, Target>,
    /// Connections that were made welcome and are no link yet.
    pub(super) dialled: BTreeSet<usize>,
    /// Peers that knocked and were not answered, and when.
    pub(super) knocking: BTreeMap<usize, (Hello, u64)>,
    pub(super) judge: Judge,
    pub(super) beat_sent: u64,
    /// When the state machine's timer is set for.
    pub(super) timer: u64,
}

pub(super) enum Role {
    /// To be started, for the first time or again.
    Starting,
    Gathering(Box<Gathering<Draw>>),
    Attending(Box<Attending>),
    /// It has met the others.
    Running {
        epoch: u64,
    },
    /// It ended with an error and is not started again.
    Failed,
    /// It died and does not return.
    Lost,
}

/// Draws epochs.
pub(super) type Draw = Box<dyn FnMut() -> Result<u64>>;

/// The control link to a rank.
pub(super) struct Link {
    pub(super) connection: usize,
    /// In virtual time.
    pub(super) heard: u64,
}

/// What a connection is dialled for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    RankZero,
    Watch { epoch: u64, rank: u32, slot: u32 },
}

impl Process {
    pub(super) fn new(rank: u32, slot: u32, is_impostor: bool, now: Instant) -> Self {
        let purpose = Purpose::Join {
            settings: vec![("ALLFOLD_WORLD_SIZE".into(), "n".into())],
            addresses: Vec::new(),
            chosen: false,
            control_port: FIRST_PORT + slot as u16,
            lane_ports: vec![1],
            door: None,
        };
        Self {
            rank,
            is_impostor,
            life: 0,
            hello: Hello {
                version: "1".into(),
                rank,
                incarnation: 0,
                host: format!("host-{slot}"),
                pid: slot,
                habitat: 0,
                purpose,
            },
            role: Role::Starting,
            links: BTreeMap::new(),
            dialling: BTreeMap::new(),
            dialled: BTreeSet::new(),
            knocking: BTreeMap::new(),
            judge: Judge::new(None, now),
            beat_sent: 0,
            timer: 0,
        }
    }

    /// Whether it is there to take part or to say no.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.role, Role::Gathering(_) | Role::Attending(_) | Role::Running { .. })
    }

    /// Its memory is gone; what was under way for it is for nobody now.
    pub(super) fn clear(&mut self, role: Role) {
        self.life += 1;
        self.role = role;
        self.links.clear();
        self.dialling.clear();
        self.dialled.clear();
        self.knocking.clear();
    }
}

/// A leaf is as random as the incarnation.
pub(super) fn leaf_of(hello: &Hello) -> [u8; 32] {
    let mut leaf = [0; 32];
    leaf[..16].copy_from_slice(&hello.incarnation.to_le_bytes());
    leaf
}

/// Port of the first slot's control endpoint.
pub(super) const FIRST_PORT: u16 = 1_000;
