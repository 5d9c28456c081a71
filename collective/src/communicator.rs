//! The communicator: one rank's end of the world. The main path starts here.

use std::panic::Location;
use std::sync::Arc;

use crate::config::Config;
use crate::contract::{CallShape, Collective};
use crate::control::{ControlHandle, MemoryControl};
use crate::engine::Engine;
use crate::error::{ErrorKind, Result};
use crate::identity::Identity;
use crate::lane::Lane;
use crate::link::{Links, memory};
use crate::reduce::{Element, ElementType, ReduceOp, Reducible};
use crate::rendezvous;
use crate::report;
use crate::world::{Peer, World};

/// One rank's end of the world; its methods are the collectives.
///
/// Every rank must make the same calls in the same order. A call blocks until it is done, and
/// works from a plain thread, from inside a tokio runtime and from a rayon pool. Two calls at once
/// from two threads are an error.
///
/// After an error other than [`ErrorKind::ConcurrentCalls`] or [`ErrorKind::Argument`] the
/// communicator is of no more use: every later call returns the same error, on every rank, and the
/// contents of the buffer are unspecified.
///
/// Dropping it says goodbye to the other ranks, as [`close`](Self::close) does.
pub struct Communicator {
    kind: Kind,
    rank: usize,
    local_rank: usize,
    local_size: usize,
    transport: String,
    security: String,
}

enum Kind {
    /// A world of one: nothing to send.
    Single,
    Joined(Engine),
}

impl Communicator {
    /// Connects to the other ranks, as the launcher's environment says.
    ///
    /// # Errors
    /// [`ErrorKind::NoEnvironment`] where there is no launcher; an error that names the variable
    /// where one is wrong; [`ErrorKind::ConnectTimeout`] where not all ranks come;
    /// [`ErrorKind::Refused`] where rank 0 has a reason against this process.
    pub fn from_env() -> Result<Self> {
        match Identity::from_env()? {
            Some(identity) => Self::connect(Config::from_env(identity)?),
            None => Err(ErrorKind::NoEnvironment.into()),
        }
    }

    /// Like [`from_env`](Self::from_env), but a world of one where no launcher is found.
    ///
    /// # Errors
    /// As `from_env`, except for a missing environment.
    pub fn from_env_or_single() -> Result<Self> {
        match Identity::from_env()? {
            Some(identity) => Self::connect(Config::from_env(identity)?),
            None => Ok(Self::single()),
        }
    }

    /// A world of one, without a socket.
    pub fn single() -> Self {
        Self {
            kind: Kind::Single,
            rank: 0,
            local_rank: 0,
            local_size: 1,
            transport: "alone".into(),
            security: "no network".into(),
        }
    }

    /// `size` ranks within this process, in rank order, joined by memory instead of a network:
    /// for tests of programs that use allfold. Give each to a thread of its own.
    ///
    /// # Errors
    /// [`ErrorKind::System`] if threads cannot be started; [`ErrorKind::Argument`] if `size` is 0.
    pub fn in_memory(size: usize) -> Result<Vec<Self>> {
        let Some(count) = u32::try_from(size).ok().filter(|count| *count > 0) else {
            let problem = format!("a world of {size} ranks cannot be made in memory");
            return Err(ErrorKind::Argument { problem }.into());
        };
        if count == 1 {
            return Ok(vec![Self::single()]);
        }
        let peer = |rank| Peer { rank, host: "this process".into(), pid: std::process::id() };
        let peers: Vec<Peer> = (0..size).map(peer).collect();
        let limits = crate::config::Limits::from_env()?;
        let worlds: Vec<Arc<World>> = (0..count)
            .map(|rank| Arc::new(World::new(rank, MEMORY_EPOCH, peers.clone(), limits)))
            .collect();
        let controls = MemoryControl::join(&worlds);
        let links = memory::Hub::links(count);
        worlds
            .into_iter()
            .zip(controls)
            .zip(links)
            .map(|((world, control), links)| {
                let lane = Lane::start(world.clone(), move || Ok(Links::Memory(links)))?;
                world.attach(lane.commands(), ControlHandle::Memory(control));
                let rank = world.rank as usize;
                Ok(Self {
                    kind: Kind::Joined(Engine::new(world, lane)),
                    rank,
                    local_rank: rank,
                    local_size: size,
                    transport: "memory".into(),
                    security: "one process".into(),
                })
            })
            .collect()
    }

    /// Connects with explicit settings.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn connect(config: Config) -> Result<Self> {
        if config.size() == 1 {
            return Ok(Self::single());
        }
        let (rank, local_rank, local_size) =
            (config.rank(), config.local_rank(), config.local_size());
        let joined = rendezvous::join(config)?;
        Ok(Self {
            kind: Kind::Joined(Engine::new(joined.world, joined.lane)),
            rank,
            local_rank,
            local_size,
            transport: joined.transport,
            security: joined.security,
        })
    }

    /// This rank's number, 0 to size - 1.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        match &self.kind {
            Kind::Single => 1,
            Kind::Joined(engine) => engine.world().size as usize,
        }
    }

    /// This rank's number on its host.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The number of ranks on this host.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// All ranks in order, this one included.
    pub fn peers(&self) -> Vec<Peer> {
        match &self.kind {
            Kind::Single => {
                let host = crate::identity::host_name();
                vec![Peer { rank: 0, host, pid: std::process::id() }]
            }
            Kind::Joined(engine) => engine.world().peers.clone(),
        }
    }

    /// What carries the data, for a header: `quic on 127.0.0.1`, `memory` or `alone`.
    pub fn transport(&self) -> String {
        self.transport.clone()
    }

    /// What protects it, for a header: `mutual TLS, secret 3f9a12c4`.
    pub fn security(&self) -> String {
        self.security.clone()
    }

    /// Every rank's buffer becomes the combination of all ranks' buffers, bit-identical on all.
    ///
    /// All ranks give the same number of elements, of the same type; it may be 0, and it need not
    /// divide by the number of ranks. The algorithm is a segmented ring, so the order of addition
    /// is fixed for a world size and an element's position; see `docs/algorithms.md`.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] if the ranks' calls differ, [`ErrorKind::RankLost`] if a rank is
    /// gone; see [`ErrorKind`].
    #[track_caller]
    pub fn all_reduce<T: Reducible>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        self.call(None, Collective::AllReduce, Some(op), buffer, Location::caller())
    }

    /// Every rank's buffer becomes the buffer of rank `root`.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if there is no rank `root`; else as
    /// [`all_reduce`](Self::all_reduce). The root, and ranks near it, may return before the
    /// others have made the call.
    #[track_caller]
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.broadcast_labelled(None, buffer, root, Location::caller())
    }

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    #[track_caller]
    pub fn barrier(&self) -> Result<()> {
        self.call::<u8>(None, Collective::Barrier, None, &mut [], Location::caller())
    }

    /// The same calls with a label that must be equal on all ranks, so that a rank that skipped
    /// one of many calls of the same shape is found at once.
    pub fn labelled(&self, label: u64) -> Labelled<'_> {
        Labelled { communicator: self, label }
    }

    /// Says goodbye to all ranks and waits, at most a second, until they have read everything
    /// this one sent. `Drop` does the same and reports an error as a warning.
    ///
    /// # Errors
    /// [`ErrorKind::CallCount`] or [`ErrorKind::Mismatch`] where the ranks made different calls
    /// and it shows only now.
    pub fn close(self) -> Result<()> {
        match &self.kind {
            Kind::Single => Ok(()),
            Kind::Joined(engine) => engine.close(),
        }
    }

    fn broadcast_labelled<T: Element>(
        &self,
        label: Option<u64>,
        buffer: &mut [T],
        root: usize,
        location: &'static Location<'static>,
    ) -> Result<()> {
        let size = self.size();
        match u32::try_from(root) {
            Ok(wire_root) if root < size => {
                let collective = Collective::Broadcast { root: wire_root };
                self.call(label, collective, None, buffer, location)
            }
            _ => {
                let problem = format!("broadcast from rank {root}, but there are {size} ranks");
                Err(ErrorKind::Argument { problem }.into())
            }
        }
    }

    fn call<T: Element>(
        &self,
        label: Option<u64>,
        collective: Collective,
        op: Option<ReduceOp>,
        buffer: &mut [T],
        location: &'static Location<'static>,
    ) -> Result<()> {
        let element: ElementType = T::TYPE;
        let count = buffer.len() as u64;
        let shape = CallShape { collective, op, element, count, label, location };
        match &self.kind {
            Kind::Single => Ok(()),
            Kind::Joined(engine) => engine.call(&shape, buffer),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let Kind::Joined(engine) = &self.kind else {
            return;
        };
        if std::thread::panicking() {
            engine.close_in_panic();
        } else if let Err(error) = engine.close() {
            report::warn(&error.to_string());
        }
    }
}

/// A communicator whose calls carry a label; see [`Communicator::labelled`].
pub struct Labelled<'a> {
    communicator: &'a Communicator,
    label: u64,
}

impl Labelled<'_> {
    /// As [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn all_reduce<T: Reducible>(&self, buffer: &mut [T], op: ReduceOp) -> Result<()> {
        let (label, location) = (Some(self.label), Location::caller());
        self.communicator.call(label, Collective::AllReduce, Some(op), buffer, location)
    }

    /// As [`Communicator::broadcast`].
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn broadcast<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.communicator.broadcast_labelled(Some(self.label), buffer, root, Location::caller())
    }

    /// As [`Communicator::barrier`].
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn barrier(&self) -> Result<()> {
        let location = Location::caller();
        self.communicator.call::<u8>(Some(self.label), Collective::Barrier, None, &mut [], location)
    }
}

/// Within one process there is one world a hub, and nothing stale can reach it.
const MEMORY_EPOCH: u64 = 0;
