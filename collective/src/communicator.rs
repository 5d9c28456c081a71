//! The communicator: one rank's end of the world. The main path starts here.

use std::net::{IpAddr, Ipv4Addr};
use std::panic::Location;
use std::sync::Arc;

use crate::caller::Caller;
use crate::config::{self, Config, NcclSettings};
use crate::contract::Role;
use crate::engine::{Engine, MAX_COMMUNICATORS};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Findings, host_name};
use crate::in_memory::InMemory;
use crate::lanes::Lanes;
use crate::metrics::address::Address;
use crate::metrics::{About, Metrics};
use crate::rendezvous;
use crate::report;
use crate::statistics::Counters;
use crate::verdict::Loss;
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
    pub(crate) kind: Kind,
    rank: usize,
    local_rank: usize,
    local_size: usize,
    /// Where the other ranks find this one.
    address: IpAddr,
    transport: String,
    security: String,
    pub(crate) metrics: Metrics,
    /// None: as the environment says when NCCL is asked for.
    nccl: Option<NcclSettings>,
    /// Only in a world of one; shared with the communicators split off.
    _alone: Option<Arc<Alone>>,
}

/// A world of one: it is over when its last communicator is dropped.
struct Alone(Arc<Counters>);

impl Drop for Alone {
    fn drop(&mut self) {
        self.0.closed();
    }
}

pub(crate) enum Kind {
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
        let found = Findings::from_env();
        match Self::configured(&found)? {
            Some(config) => Self::connect(config),
            None => Err(found.no_environment()).inspect_err(report::has_failed),
        }
    }

    /// Like [`from_env`](Self::from_env), but a world of one where no launcher is found.
    ///
    /// # Errors
    /// As `from_env`, except for a missing environment.
    pub fn from_env_or_single() -> Result<Self> {
        let found = Findings::from_env();
        match Self::configured(&found)? {
            Some(config) => Self::connect(config),
            None => {
                for forgotten in found.forgotten() {
                    report::warn(&forgotten);
                }
                Self::single_from_env()
            }
        }
    }

    /// A world of one, whatever launchers say; how it logs and where it serves its metrics is set by
    /// the environment.
    ///
    /// # Errors
    /// An error that names the variable where one is wrong.
    pub fn single_from_env() -> Result<Self> {
        report::Format::from_env().inspect_err(report::has_failed)?;
        let about = About { job: "default".into(), host: host_name() };
        Self::alone(config::metrics_from_env()?, about)
    }

    /// As a launcher's environment says, where there is one.
    fn configured(found: &Findings) -> Result<Option<Config>> {
        let identity = found.identity();
        identity
            .and_then(|identity| identity.map(Config::from_env).transpose())
            .inspect_err(report::has_failed)
    }

    /// A world of one, without a socket; it serves no metrics.
    pub fn single() -> Self {
        Self::of_one(Metrics::default(), None)
    }

    /// A world of one that serves its metrics at this address.
    fn alone(metrics: Option<Address>, about: About) -> Result<Self> {
        let Some(address) = metrics else { return Ok(Self::single()) };
        let counters = Arc::new(Counters::new(0, 1, "alone"));
        let metrics = Metrics::serve(address, about, counters.clone())?;
        counters.connected(0);
        Ok(Self::of_one(metrics, Some(Arc::new(Alone(counters)))))
    }

    fn of_one(metrics: Metrics, alone: Option<Arc<Alone>>) -> Self {
        Self {
            kind: Kind::Single,
            rank: 0,
            local_rank: 0,
            local_size: 1,
            address: Ipv4Addr::LOCALHOST.into(),
            transport: "alone".into(),
            security: "no network".into(),
            metrics,
            nccl: None,
            _alone: alone,
        }
    }

    /// `size` ranks within this process, in rank order, joined by memory instead of a network:
    /// for tests of programs that use allfold. Give each to a thread of its own. [`InMemory`] has
    /// settings.
    ///
    /// # Errors
    /// [`ErrorKind::System`] if threads cannot be started; [`ErrorKind::Argument`] if `size` is 0.
    pub fn in_memory(size: usize) -> Result<Vec<Self>> {
        InMemory::new(size)?.start()
    }

    /// One rank of a world that was made in memory.
    pub(crate) fn of_memory(world: Arc<World>, lanes: Lanes) -> Self {
        let (rank, size) = (world.rank as usize, world.peers.len());
        Self {
            kind: Kind::Joined(Engine::new(world, lanes, None)),
            rank,
            local_rank: rank,
            local_size: size,
            address: Ipv4Addr::LOCALHOST.into(),
            transport: "memory".into(),
            security: "one process".into(),
            metrics: Metrics::default(),
            nccl: None,
            _alone: None,
        }
    }

    /// Connects with explicit settings.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn connect(config: Config) -> Result<Self> {
        Self::meet(config).inspect_err(report::has_failed)
    }

    fn meet(config: Config) -> Result<Self> {
        let about = About { job: config.job.clone(), host: host_name() };
        let metrics = config.metrics.map(|address| address.for_local_rank(config.local_rank()));
        let metrics = metrics.transpose()?;
        if config.size() == 1 {
            let mut alone = Self::alone(metrics, about)?;
            alone.nccl = Some(config.nccl_settings());
            return Ok(alone);
        }
        let nccl = Some(config.nccl_settings());
        let (rank, local_rank, local_size) =
            (config.rank(), config.local_rank(), config.local_size());
        let counters = Counters::new(rank as u32, config.size(), "quic");
        let counters = Arc::new(counters.of(&about.job, &about.host));
        // Before the ranks meet: a rank that waits for others can be watched as well.
        let metrics = match metrics {
            Some(address) => Metrics::serve(address, about, counters.clone())?,
            None => Metrics::default(),
        };
        let joined = rendezvous::join(config, &counters).inspect_err(|_| counters.closed())?;
        Ok(Self {
            kind: Kind::Joined(Engine::new(joined.world, joined.lanes, joined.memory)),
            rank,
            local_rank,
            local_size,
            address: joined.address,
            transport: joined.transport,
            security: joined.security,
            metrics,
            nccl,
            _alone: None,
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
            Kind::Joined(engine) => engine.members().len(),
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
                vec![Peer::new(0, &host_name(), std::process::id())]
            }
            Kind::Joined(engine) => {
                let peer = |(rank, member): (usize, &u32)| {
                    let peer = engine.world().peers.get(*member as usize)?;
                    Some(Peer { rank, ..peer.clone() })
                };
                engine.members().iter().enumerate().filter_map(peer).collect()
            }
        }
    }

    /// What carries the data, for a header: `quic on 127.0.0.1, 2 lanes`, `memory` or `alone`.
    pub fn transport(&self) -> String {
        self.transport.clone()
    }

    /// Whether all its ranks share memory, so that its all-reduces use no network: they are work
    /// for the ranks' own cores, and nothing is gained by making them beside other work.
    pub fn shares_memory(&self) -> bool {
        match &self.kind {
            Kind::Single => true,
            Kind::Joined(engine) => engine.shares_memory(),
        }
    }

    /// What protects it, for a header: `mutual TLS, secret 3f9a12c4`.
    pub fn security(&self) -> String {
        self.security.clone()
    }

    /// The communicator of those ranks that give the same `color`, ordered by `key`, then by rank;
    /// None for a rank that gives no color. Every rank of this communicator makes the call.
    ///
    /// The new communicator has its own sequence of calls: they may overlap with calls on this one,
    /// from another thread or started and waited for later. Two that share ranks must be used in an
    /// order in which their calls can meet, else it is a [deadlock](ErrorKind::Deadlock). A failure
    /// ends all communicators of the world.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`], on every rank, if one of them has 256 communicators of the world open;
    /// else as [`all_gather`](Self::all_gather).
    #[track_caller]
    pub fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Self>> {
        let (rank, size) = (self.rank(), self.size());
        // Two words a rank: whether it takes part and its slot of shared memory; color and key.
        let mut words = vec![[0u64; 2]; size];
        let is_full = matches!(&self.kind, Kind::Joined(engine) if engine.is_full());
        // Its number and 1.
        let slot = match &self.kind {
            Kind::Joined(engine) if color.is_some() && !is_full => {
                engine.take_slot().map_or(0, |slot| u64::from(slot) + 1)
            }
            _ => 0,
        };
        if let Some(word) = words.get_mut(rank) {
            *word = match color {
                _ if is_full => [NO_ROOM, 0],
                Some(color) => [1 | slot << 32, u64::from(color) << 32 | u64::from(key)],
                None => [0, 0],
            };
        }
        let mut words: Vec<u64> = words.into_flattened();
        let gathered = self.caller(Location::caller()).gather_as(Role::Split, &mut words);
        let full = words.chunks_exact(2).position(|word| word[0] == NO_ROOM);
        if let Kind::Joined(engine) = &self.kind
            && (gathered.is_err() || full.is_some())
            && let Some(slot) = slot.checked_sub(1)
        {
            engine.return_slot(slot as u32);
        }
        let sequence = gathered?;
        if let Some(full) = full {
            let problem = format!(
                "split: rank {full} has {MAX_COMMUNICATORS} communicators open; close some first"
            );
            return Err(ErrorKind::Argument { problem }.into());
        }
        let Some(color) = color else { return Ok(None) };
        let Kind::Joined(engine) = &self.kind else {
            let mut alone = Self::of_one(self.metrics.clone(), self._alone.clone());
            alone.nccl = self.nccl;
            return Ok(Some(alone));
        };
        let mut chosen: Vec<(u32, usize)> = words
            .chunks_exact(2)
            .enumerate()
            .filter(|(_, word)| word[0] as u32 == 1 && word[1] >> 32 == u64::from(color))
            .map(|(rank, word)| (word[1] as u32, rank))
            .collect();
        chosen.sort_unstable();
        let members: Vec<u32> =
            chosen.iter().filter_map(|(_, rank)| engine.members().get(*rank).copied()).collect();
        let slot =
            |(_, rank): &(u32, usize)| (words[2 * rank] >> 32).checked_sub(1).map(|s| s as u32);
        let slots: Vec<Option<u32>> = chosen.iter().map(slot).collect();
        let suffix = match engine.suffix() {
            parent if parent.is_empty() => format!(" on split {color}"),
            parent => format!("{parent}/{color}"),
        };
        let engine = engine.split_off(engine.child_id(sequence, color), &suffix, members, slots);
        let this = engine.world().rank;
        let place = |rank: u32| engine.world().peers.get(rank as usize);
        let host = place(this).map(|peer| peer.host.clone());
        let here = |rank: &&u32| place(**rank).map(|peer| &peer.host) == host.as_ref();
        let on_host: Vec<u32> = engine.members().iter().filter(here).copied().collect();
        let position = |ranks: &[u32]| ranks.iter().position(|rank| *rank == this).unwrap_or(0);
        Ok(Some(Self {
            rank: position(engine.members()),
            local_rank: position(&on_host),
            local_size: on_host.len(),
            address: self.address,
            transport: self.transport.clone(),
            security: self.security.clone(),
            metrics: self.metrics.clone(),
            nccl: self.nccl,
            _alone: None,
            kind: Kind::Joined(engine),
        }))
    }

    /// The same calls with a label that must be equal on all ranks, so that a rank that skipped
    /// one of many calls of the same shape is found at once.
    pub fn labelled(&self, label: u64) -> Labelled<'_> {
        Labelled { communicator: self, label }
    }

    /// Ends the world because this rank's own work fails, such as for want of memory. The error of all
    /// ranks names this one and the `problem`; without it they would only find that this rank makes no
    /// more calls.
    pub fn fail(&self, problem: &str) -> Error {
        let problem = report::printable(problem);
        let Kind::Joined(engine) = &self.kind else {
            return ErrorKind::System { operation: "this rank".into(), problem }.into();
        };
        let world = engine.world();
        world.lose(world.rank, Loss::Failed { problem });
        world.ended()
    }

    /// Waits for outstanding calls and says goodbye. The last communicator of a world that is closed
    /// also waits, at most a second, until the other ranks have read everything this one sent.
    /// `Drop` does the same and reports an error as a warning.
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

    /// What its ranks may use NCCL for.
    ///
    /// # Errors
    /// An error that names the variable where one is wrong.
    #[cfg(feature = "nccl")]
    pub(crate) fn nccl_settings(&self) -> Result<NcclSettings> {
        self.nccl.map_or_else(|| config::nccl_from_env(self.local_rank), Ok)
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    pub(crate) fn caller(&self, location: &'static Location<'static>) -> Caller<'_> {
        Caller { communicator: self, label: None, location }
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
            engine.world().counters.origin.say(&error.to_string(), None);
        }
    }
}

/// A communicator whose calls carry a label; see [`Communicator::labelled`].
pub struct Labelled<'a> {
    communicator: &'a Communicator,
    label: u64,
}

impl Labelled<'_> {
    pub(crate) fn caller(&self, location: &'static Location<'static>) -> Caller<'_> {
        Caller { communicator: self.communicator, label: Some(self.label), location }
    }
}

/// In place of "takes part": this rank can take no more communicators.
const NO_ROOM: u64 = 2;
