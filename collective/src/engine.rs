//! Runs the calls of one communicator, strictly in the order of their sequence numbers.
//!
//! A call agrees on contract and plan and goes to the lanes with its memory. A blocking one lends
//! the caller's slices and sleeps until the lanes have let go of them; one that was started owns its
//! buffer and comes back as a [`Pending`].

#[cfg(feature = "nccl")]
mod on_device;
mod watch;
mod within_host;

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::{self, Borrowed, Held, Lent, Parts};
use crate::contract::{self, CallShape, Collective, Role};
use crate::departure;
use crate::error::{ErrorKind, Result};
use crate::fork::Process;
use crate::group::{Begun, Group, Planned};
use crate::host_memory::{HostMemory, Slot};
use crate::lane::{self, Completion};
use crate::lanes::{Handed, Lanes};
use crate::owned::Owned;
use crate::pending::Pending;
use crate::plan::Hosts;
use crate::plan::costs::{self, Layout};
use crate::reduce::{Element, ElementType};
use crate::verdict::Loss;
use crate::world::{WHOLE_WORLD, World};
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
        let here = within_host(&world, memory.as_ref(), WHOLE_WORLD, &slots);
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

    /// Whether the world has as many communicators as it may.
    pub(crate) fn is_full(&self) -> bool {
        self.runtime.open.load(Ordering::Relaxed) >= MAX_COMMUNICATORS
    }

    /// Adds the communicator of `members`, ranks of the world, this one among them. `id` is equal
    /// on all of them, and no other's.
    /// `slots`: by member, of those that share memory.
    pub(crate) fn split_off(
        &self,
        id: u64,
        suffix: &str,
        members: Vec<u32>,
        slots: Vec<Option<Slot>>,
    ) -> Self {
        let world = self.world();
        let slots: Vec<(u32, Option<Slot>)> = members.iter().copied().zip(slots).collect();
        let place = members.iter().position(|member| *member == world.rank).unwrap_or(0);
        world.add_group(Group::new(world.epoch, id, suffix, members.clone(), place as u32));
        let here = within_host(world, self.runtime.memory.as_ref(), id, &slots);
        world.note_split(id);
        self.runtime.open.fetch_add(1, Ordering::Relaxed);
        Self {
            runtime: self.runtime.clone(),
            group: id,
            members: members.into(),
            busy: Mutex::new(None),
            closed: AtomicBool::new(false),
            here,
        }
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

    /// A slot of this rank's memory for a communicator that is to come.
    pub(crate) fn take_slot(&self) -> Option<Slot> {
        let memory = self.runtime.memory.as_ref()?;
        memory.take_slot(|group| self.world().members(group).is_some())
    }

    /// Gives back a slot whose communicator did not come to be.
    pub(crate) fn return_slot(&self, slot: Slot) {
        if let Some(memory) = &self.runtime.memory {
            memory.return_slot(slot);
        }
    }

    /// A number for the communicator that comes of call `sequence` for the ranks of `color`.
    pub(crate) fn child_id(&self, sequence: u64, color: u32) -> u64 {
        contract::mix(contract::mix(self.group ^ (sequence + 1) << 32) ^ u64::from(color) << 1 | 1)
    }

    /// What the names of its calls end with.
    pub(crate) fn suffix(&self) -> String {
        self.world().suffix(self.group)
    }

    /// Waits for outstanding calls and says goodbye; the last communicator of the world also waits
    /// for the peers' readers and ends the threads. An error that no call has returned, such as a
    /// different number of calls, is returned here.
    pub(crate) fn close(&self) -> Result<()> {
        let (world, runtime) = (self.world(), &self.runtime);
        if !runtime.process.is_this() {
            // The threads live in the process that forked; there is nothing to close here.
            std::mem::forget(runtime.lanes().take());
            return Ok(());
        }
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.flush();
        if let Some(here) = &self.here {
            here.end();
        }
        if world.error().is_none() {
            let goodbyes = world.close_group(self.group);
            if let Some(control) = world.control() {
                goodbyes.iter().for_each(|goodbye| control.say_goodbye(goodbye.clone()));
            }
            if let Some(lanes) = &*runtime.lanes() {
                // The flows of the whole world say it when this rank leaves.
                let mut goodbyes = goodbyes;
                goodbyes.retain(|goodbye| goodbye.group != WHOLE_WORLD);
                lanes.inboxes().say_goodbye(&goodbyes);
            }
        }
        let is_last = runtime.open.fetch_sub(1, Ordering::AcqRel) == 1;
        if is_last {
            runtime.end();
        }
        match world.error() {
            Some(error) if world.tell() => Err(error),
            _ => Ok(()),
        }
    }

    /// The user's code is unwinding: the others must not wait for this rank.
    pub(crate) fn close_in_panic(&self) {
        let world = self.world();
        if self.runtime.process.is_this() {
            world.lose(world.rank, Loss::Panicked);
        }
        let _ = self.close();
    }

    /// Waits until no call is under way, here or on a pair.
    fn flush(&self) {
        let world = self.world();
        for group in std::iter::once(self.group).chain(world.pairs(self.group)) {
            if world.is_idle(group) {
                continue;
            }
            let (done, completion) = lane::completion();
            let here = self.here.as_ref().filter(|_| group == self.group);
            match &*self.runtime.lanes() {
                Some(_) if here.is_some() => {
                    if let Some(here) = here {
                        here.flush(done);
                    }
                }
                Some(lanes) => lanes.inboxes().flush(group, done),
                None => return,
            }
            let last = world.calls(group).map_or(0, |(calls, _)| calls.saturating_sub(1));
            let _waiting = world.note_waiting(group, last);
            let _ = completion.wait();
        }
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

/// Settles where the ranks of a communicator are, which all of them find alike, and returns what it
/// has where this rank shares memory with others of it; `slots`: by member.
fn within_host(
    world: &Arc<World>,
    memory: Option<&Arc<HostMemory>>,
    group: u64,
    slots: &[(u32, Option<Slot>)],
) -> Option<Arc<WithinHost>> {
    let home = |(rank, slot): &(u32, Option<Slot>)| {
        // Who has no slot left does without.
        slot.and(world.peers.get(*rank as usize)?.home)
    };
    let hosts = Hosts::new(slots.iter().map(home));
    let parts = hosts.parts();
    let own = (0..).zip(slots).find(|(_, (rank, _))| *rank == world.rank);
    let (place, (_, slot)) = own?;
    let around: Vec<(u32, Slot)> = hosts
        .around(place)
        .iter()
        .filter_map(|place| slots.get(*place as usize))
        .filter_map(|(rank, slot)| Some((*rank, (*slot)?)))
        .collect();
    if let (Some(memory), Some(slot)) = (memory, slot) {
        memory.give_slot(*slot, group);
    }
    let is_whole = around.len() == slots.len();
    let layout = match () {
        () if is_whole && around.len() > 1 => Layout::Together,
        () if hosts.are_mixed() => Layout::ByHost(Arc::new(hosts)),
        () => Layout::Apart,
    };
    world.lay_out_group(group, layout);
    if around.len() < 2 {
        return None;
    }
    let shared = memory.and_then(|memory| Some((memory.communicator(&around)?, memory.clone())));
    let Some((shared, memory)) = shared else {
        // All ranks have said that they have mapped it. Without it, calls would add up nothing.
        let problem = "the memory of the ranks of its host is not mapped".into();
        world.lose(world.rank, Loss::Failed { problem });
        return None;
    };
    let between = (!is_whole).then_some(parts);
    let ranks = slots.len() as u32;
    let around = around.into_iter().map(|(rank, _)| rank).collect();
    Some(WithinHost::new(world.clone(), (group, ranks), (around, shared, memory), between))
}

impl Runtime {
    fn lanes(&self) -> MutexGuard<'_, Option<Lanes>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the world: waits for the peers' readers, at most a second, and ends the threads.
    fn end(&self) {
        self.world.counters.closed();
        if let Some(control) = self.world.control()
            && self.world.error().is_none()
        {
            self.world.note_left(self.world.rank);
            control.leave();
        }
        let lanes = self.lanes().take();
        if let Some(lanes) = lanes {
            lanes.close();
        }
        if let Some(control) = self.world.control() {
            control.close();
        }
    }
}

/// The right to make a call; given back when dropped, also when unwinding.
struct Turn<'a>(&'a Engine);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Each has flows of its own on every link (see `link/quic/tuning.rs`).
pub(crate) const MAX_COMMUNICATORS: usize = 256;
