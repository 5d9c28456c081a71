//! Worlds within one process, for tests: ranks as threads, memory for a network.

use std::sync::Arc;
use std::time::Duration;

use crate::communicator::Communicator;
use crate::config::{self, Limits};
use crate::control::{ControlHandle, MemoryControl};
use crate::error::{ErrorKind, Result};
use crate::lanes::Lanes;
use crate::link::{Links, memory};
use crate::plan::costs::Choice;
use crate::statistics::Counters;
use crate::world::{Peer, World};

/// Settings of a world within this process; [`Communicator::in_memory`] is one with none.
#[derive(Clone, Debug)]
pub struct InMemory {
    size: u32,
    limits: Limits,
    choice: Choice,
}

impl InMemory {
    /// A world of `size` ranks, with ALLFOLD_LATE_AFTER, ALLFOLD_TIMEOUT,
    /// ALLFOLD_ALGORITHM and ALLFOLD_LANES from the environment.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] if `size` is 0; [`ErrorKind::Setting`] where a variable is wrong.
    pub fn new(size: usize) -> Result<Self> {
        let Some(size) = u32::try_from(size).ok().filter(|size| *size > 0) else {
            let problem = format!("a world of {size} ranks cannot be made in memory");
            return Err(ErrorKind::Argument { problem }.into());
        };
        Ok(Self { size, limits: Limits::from_env()?, choice: config::choice_from_env()? })
    }

    /// How long a call may take before it is an error. Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limits.timeout = Some(limit);
        self
    }

    /// As [`Config::late_after`](crate::Config::late_after).
    pub fn late_after(mut self, wait: Duration) -> Self {
        self.limits.late_after = wait;
        self
    }

    /// As [`Config::algorithm`](crate::Config::algorithm).
    ///
    /// # Errors
    /// As there.
    pub fn algorithm(mut self, name: &str) -> Result<Self> {
        self.choice.forced = config::parse_algorithm(name)?;
        Ok(self)
    }

    /// As [`Config::lanes`](crate::Config::lanes); here a lane is only a thread.
    ///
    /// # Errors
    /// As there.
    pub fn lanes(mut self, lanes: usize) -> Result<Self> {
        self.choice.lanes = config::check_lanes(lanes as u64)?;
        Ok(self)
    }

    /// For allfold's own tests: segments and stripes of so many bytes, so that short calls have
    /// many of them.
    #[doc(hidden)]
    pub fn pieces(mut self, segment: u64, stripe: u64) -> Self {
        (self.choice.costs.segment_bytes, self.choice.costs.stripe_bytes) = (segment, stripe);
        self
    }

    /// The ranks, in order.
    ///
    /// # Errors
    /// [`ErrorKind::System`] if threads cannot be started.
    pub fn start(&self) -> Result<Vec<Communicator>> {
        if self.size == 1 {
            return Ok(vec![Communicator::single()]);
        }
        let peer = |rank| Peer::new(rank, "this process", std::process::id());
        let peers: Vec<Peer> = (0..self.size as usize).map(peer).collect();
        let world = |rank| {
            let counters = Arc::new(Counters::new(rank, peers.len(), "memory"));
            let choice = self.choice.clone();
            World::new(rank, MEMORY_EPOCH, peers.clone(), self.limits, choice, counters)
        };
        let worlds: Vec<Arc<World>> = (0..self.size).map(|rank| Arc::new(world(rank))).collect();
        let controls = MemoryControl::join(&worlds);
        let hubs = (0..self.choice.lanes).map(|_| memory::Hub::links(self.size));
        let mut hubs: Vec<_> = hubs.map(Vec::into_iter).collect();
        worlds
            .into_iter()
            .zip(controls)
            .map(|(world, control)| {
                let links = hubs.iter_mut().filter_map(Iterator::next);
                let links = links.map(|links| move || Ok(Links::Memory(links)));
                let lanes = Lanes::start(&world, links)?;
                world.attach(lanes.inboxes().clone(), ControlHandle::Memory(control));
                Ok(Communicator::of_memory(world, lanes))
            })
            .collect()
    }
}

/// Within one process there is one world a hub, and nothing stale can reach it.
const MEMORY_EPOCH: u64 = 0;
