//! Runs the calls of one communicator, strictly in the order of their sequence numbers.
//!
//! A call agrees on contract and plan and goes to the lanes with its memory. A blocking one lends
//! the caller's slices and sleeps until the lanes have let go of them; one that was started owns its
//! buffer and comes back as a [`Pending`].

mod closing;
mod layout;
#[cfg(feature = "nccl")]
mod on_device;
mod splitting;
mod watch;
mod within_host;

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::{self, Borrowed, Held, Lent, Parts};
use crate::contract::{self, CallShape, Collective, Role};
use crate::departure;
use crate::error::{ErrorKind, Result};
use crate::fork::Process;
use crate::group::{Begun, Planned};
use crate::host_memory::{HostMemory, Slot};
use crate::lane::{self, Completion};
use crate::lanes::{Handed, Lanes};
use crate::owned::Owned;
use crate::pending::Pending;
use crate::plan::costs;
use crate::reduce::{Element, ElementType};
use crate::world::{WHOLE_WORLD, World};
pub(crate) use splitting::MAX_COMMUNICATORS;
use within_host::{Between, WithinHost};

/// One communicator of a world with several ranks.
pub(crate) struct Engine {
    runtime: Arc<Runtime>,
    group: u64,
    members: Arc<[u32]>,
    /// The source line of the call under way.
    busy: Mutex<Option<&'static Location<'static>>>,
    closed: AtomicBool,
    /// Where all its ranks share memory.
    here: Option<Arc<WithinHost>>,
}

/// What all communicators of one world share.
struct Runtime {
    world: Arc<World>,
    lanes: Mutex<Option<Lanes>>,
    /// Communicators that are not closed.
    open: AtomicUsize,
    /// The process that connected: a fork has none of its threads.
    process: Process,
    memory: Option<Arc<HostMemory>>,
}

/// A call that is on its way.
struct Issued {
    group: u64,
    sequence: u64,
    completion: Completion,
}

impl Engine {
    /// The communicator of all ranks; with the memory it shares with those of its host.
    pub(crate) fn new(world: Arc<World>, lanes: Lanes, memory: Option<Arc<HostMemory>>) -> Self {
        let members: Arc<[u32]> = (0..world.peers.len() as u32).collect();
        let slots: Vec<(u32, Option<Slot>)> = members.iter().map(|rank| (*rank, Some(0))).collect();
        let here = layout::lay_out(&world, memory.as_ref(), WHOLE_WORLD, &slots);
        let runtime = Runtime {
            world,
            lanes: Mutex::new(Some(lanes)),
            open: AtomicUsize::new(1),
            process: Process::this(),
            memory,
        };
        Self {
            runtime: Arc::new(runtime),
            group: WHOLE_WORLD,
            members,
            busy: Mutex::new(None),
            closed: AtomicBool::new(false),
            here,
        }
    }

    pub(crate) fn world(&self) -> &Arc<World> {
        &self.runtime.world
    }

    /// The ranks of the world that belong to it.
    pub(crate) fn members(&self) -> &[u32] {
        &self.members
    }

    /// Makes one call on borrowed memory and waits for its end; its sequence number.
    pub(crate) fn call(&self, shape: &CallShape, memory: Borrowed<'_>) -> Result<u64> {
        let _turn = self.enter(shape.location)?;
        if let Some(here) = self.meets_here(shape) {
            return self.call_here(here, shape, memory);
        }
        let (loan, lent) = memory.lend();
        let issued = self.issue(self.group, shape, lent)?;
        let result = self.wait(&issued);
        drop(loan);
        result.map(|()| issued.sequence)
    }

    /// Sends and receives at once; either may be absent.
    pub(crate) fn exchange<T: Element>(
        &self,
        send: Option<(u32, &[T])>,
        receive: Option<(u32, &mut [T])>,
        label: Option<u64>,
        location: &'static Location<'static>,
    ) -> Result<()> {
        let _turn = self.enter(location)?;
        let mut nothing: [T; 0] = [];
        let (sent, _loan) = match send {
            Some((to, input)) => {
                let (group, shape) =
                    self.message((T::TYPE, input.len()), Role::Data, (to, true), label, location);
                let (loan, lent) = Borrowed::new(input, &mut nothing).lend();
                (Some(self.issue(group, &shape, lent)?), Some(loan))
            }
            None => (None, None),
        };
        let mut received = Ok(());
        if let Some((from, output)) = receive {
            let (group, shape) =
                self.message((T::TYPE, output.len()), Role::Data, (from, false), label, location);
            let (loan, lent) = Borrowed::new(&[], output).lend();
            received = self.issue(group, &shape, lent).and_then(|issued| self.wait(&issued));
            drop(loan);
        }
        let sent = sent.map_or(Ok(()), |issued| self.wait(&issued));
        received.and(sent)
    }

    /// Starts a call on a buffer of its own.
    pub(crate) fn start<B: Owned>(
        &self,
        shape: &CallShape,
        buffer: B,
        parts: Parts,
    ) -> Result<Pending<B>> {
        let _turn = self.enter(shape.location)?;
        self.start_on(self.group, shape, buffer::hold(buffer, parts))
    }

    /// Starts sending a buffer to a rank of the communicator, or receiving into it.
    pub(crate) fn start_message<B: Owned>(
        &self,
        (peer, sends): (u32, bool),
        mut buffer: B,
        label: Option<u64>,
        location: &'static Location<'static>,
    ) -> Result<Pending<B>> {
        let _turn = self.enter(location)?;
        let length = buffer.elements().len();
        let (group, shape) =
            self.message((B::Element::TYPE, length), Role::Data, (peer, sends), label, location);
        let parts = match sends {
            true => Parts { input: 0..length, output: 0..0 },
            false => Parts { input: 0..0, output: 0..length },
        };
        self.start_on(group, &shape, buffer::hold(buffer, parts))
    }

    /// Whether all its ranks meet in memory.
    pub(crate) fn shares_memory(&self) -> bool {
        let is_free = self.world().choice.forced.is_none();
        is_free && self.here.as_ref().is_some_and(|here| !here.has_other_hosts())
    }

    /// What this rank shares with others of its host.
    pub(crate) fn memory(&self) -> Option<&Arc<HostMemory>> {
        self.runtime.memory.as_ref()
    }

    /// A message to or from a rank of the communicator: the pair it goes over, and its shape.
    fn message(
        &self,
        (element, length): (ElementType, usize),
        role: Role,
        (peer, sends): (u32, bool),
        label: Option<u64>,
        location: &'static Location<'static>,
    ) -> (u64, CallShape) {
        let world = self.world();
        let peer = self.members.get(peer as usize).copied().unwrap_or(world.rank);
        let (from, to) = if sends { (world.rank, peer) } else { (peer, world.rank) };
        let shape = CallShape {
            collective: Collective::Send,
            role,
            op: None,
            element,
            count: length as u64,
            counts: None,
            label,
            location,
        };
        (world.pair(self.group, from, to), shape)
    }

    fn start_on<B: Owned>(
        &self,
        group: u64,
        shape: &CallShape,
        (held, lent): (Held<B>, Lent),
    ) -> Result<Pending<B>> {
        if let Some(here) = self.meets_here(shape).filter(|_| group == self.group) {
            let (begun, between) = self.begin_here(here, shape)?;
            let sequence = begun.contract.sequence;
            let (done, completion) = lane::completion();
            here.start((begun, between), lent, done);
            return Ok(Pending::new(self.world().clone(), (group, sequence), completion, held));
        }
        let Issued { group, sequence, completion } = self.issue(group, shape, lent)?;
        Ok(Pending::new(self.world().clone(), (group, sequence), completion, held))
    }

    /// What a call is made with if its ranks meet in memory.
    fn meets_here(&self, shape: &CallShape) -> Option<&Arc<WithinHost>> {
        let forced = self.world().choice.forced;
        let meets = forced.is_none() && costs::meets_in_memory(shape.carried());
        self.here.as_ref().filter(|_| meets)
    }

    /// Makes a call on this thread.
    fn call_here(
        &self,
        here: &Arc<WithinHost>,
        shape: &CallShape,
        mut memory: Borrowed<'_>,
    ) -> Result<u64> {
        let world = self.world();
        let (begun, between) = self.begin_here(here, shape)?;
        let sequence = begun.contract.sequence;
        if !begun.is_alone {
            let (done, completion) = lane::completion();
            here.flush(done);
            let _waiting = world.note_waiting(self.group, sequence.saturating_sub(1));
            let flushed = completion.wait();
            if flushed.is_err() {
                world.end_call(self.group);
            }
            world.conclude(flushed)?;
        }
        let buffer = memory.output();
        let result = here.call(&begun, between, buffer);
        world.conclude(result).map(|()| sequence)
    }

    /// Agrees on the next call; with what its ranks on different hosts need.
    fn begin_here(&self, here: &WithinHost, shape: &CallShape) -> Result<(Begun, Option<Between>)> {
        let group = self.group;
        if !here.has_other_hosts() {
            let begun = self.begin(shape, |world, shape| world.begin(group, shape))?;
            return Ok((begun, None));
        }
        let Planned { begun, plan, members } =
            self.begin(shape, |world, shape| world.begin_planned(group, shape))?;
        Ok((begun, Some(Between { plan, members, location: shape.location })))
    }

    /// Agrees on the next call of a communicator, by `begin` of the world.
    fn begin<T>(
        &self,
        shape: &CallShape,
        begin: impl FnOnce(&World, &CallShape) -> Result<T>,
    ) -> Result<T> {
        departure::watch_this_thread();
        let world = self.world();
        #[cfg(feature = "faults")]
        crate::faults::happens(|_| crate::faults::Moment::Call {
            rank: world.rank as usize,
            collective: shape.collective.name(),
            label: shape.label,
        });
        begin(world, shape).inspect_err(|error| {
            if !error.is_communicator_usable() {
                world.tell();
                #[cfg(feature = "faults")]
                crate::faults::failed(world.rank);
            }
        })
    }

    /// Agrees on the next call of a communicator and hands it to the lanes.
    fn issue(&self, group: u64, shape: &CallShape, lent: Lent) -> Result<Issued> {
        let world = self.world();
        let planned = self.begin(shape, |world, shape| world.begin_planned(group, shape))?;
        let sequence = planned.begun.contract.sequence;
        let (call, completion) = Handed::new(world, planned, shape.location, lent, true);
        match &*self.runtime.lanes() {
            Some(lanes) => {
                let here =
                    self.here.as_ref().filter(|here| group == self.group && here.is_queued());
                match here {
                    Some(here) => here.forward(call),
                    None => lanes.inboxes().run(call),
                }
            }
            None => return Err(ErrorKind::Closed.into()),
        }
        Ok(Issued { group, sequence, completion })
    }

    fn wait(&self, issued: &Issued) -> Result<()> {
        let _waiting = self.world().note_waiting(issued.group, issued.sequence);
        self.world().conclude(issued.completion.wait())
    }

    fn enter(&self, location: &'static Location<'static>) -> Result<Turn<'_>> {
        if !self.runtime.process.is_this() {
            let (process, connected) = (std::process::id(), self.runtime.process.id);
            return Err(ErrorKind::Forked { process, connected }.into());
        }
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = *busy {
            let (first, second) =
                (contract::show_location(first), contract::show_location(location));
            return Err(ErrorKind::ConcurrentCalls { first, second }.into());
        }
        *busy = Some(location);
        Ok(Turn(self))
    }
}

impl Runtime {
    fn lanes(&self) -> MutexGuard<'_, Option<Lanes>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to make a call; given back when dropped, also when unwinding.
struct Turn<'a>(&'a Engine);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
