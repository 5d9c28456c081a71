//! How calls on a GPU are waited for: by looks at events of CUDA's, and at the world between them.

use std::panic::Location;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaEvent, CudaStream};

use super::{Gpu, LET_GO, Used, at, lock};
use crate::contract::{Collective, Role};
use crate::error::{Error, Result};
use crate::pending::Pending;
use crate::report;
use crate::verdict::Fault;

impl Gpu {
    pub(in crate::nccl) fn wait_at(
        &self,
        stream: &CudaStream,
        location: &'static Location<'static>,
    ) -> Result<()> {
        self.takes(stream)?;
        let _turn = self.enter(location)?;
        self.compare(Role::DeviceWait, location)?;
        self.wait_compared(stream, location)?;
        self.compare(Role::DeviceWait, location)
    }

    /// As [`wait_at`](Self::wait_at), of all streams on which calls were made.
    pub(in crate::nccl) fn end_all(
        &self,
        role: Role,
        location: &'static Location<'static>,
    ) -> Result<()> {
        let _turn = self.enter(location)?;
        self.compare(role, location)?;
        let streams = lock(&self.streams).clone();
        streams.iter().try_for_each(|used| self.wait_compared(&used.stream, location))?;
        self.compare(role, location)
    }

    /// Returns once every rank is seen to have made the same calls, and this one; within the turn of
    /// whoever asks. Made again after a wait, it says that every rank has seen its own kernels end
    /// well: what this one was given, before it knows that the world has ended, may be what another
    /// one's NCCL wrote while it was given up.
    pub(in crate::nccl) fn compare(
        &self,
        role: Role,
        location: &'static Location<'static>,
    ) -> Result<()> {
        let Some(communicator) = &self.communicator else { return Ok(()) };
        let caller = communicator.caller(location);
        let mut call = caller.whole(Collective::Barrier, None, 0);
        call.role = role;
        let Some(engine) = caller.engine() else { return Ok(()) };
        let compared = engine.compare(&caller.shape::<u8>(call)).and_then(|_| {
            // Messages are compared each by itself, and of some no more is known yet.
            let started = std::mem::take(&mut *lock(&self.started));
            started.into_iter().try_for_each(Pending::wait)
        });
        compared.map_err(|error| self.let_go_after(error))
    }

    /// As [`wait_at`](Self::wait_at), of calls that were compared before, or will be at the end.
    pub(in crate::nccl) fn wait_compared(
        &self,
        stream: &CudaStream,
        location: &'static Location<'static>,
    ) -> Result<()> {
        // Those made since, by other threads, stay to be waited for.
        let is_it = |used: &Used| used.stream.cu_stream() == stream.cu_stream();
        let calls = lock(&self.streams).iter().find(|used| is_it(used)).map(|used| used.calls);
        let event = stream.record_event(None).map_err(|error| self.broken("an event", &error))?;
        self.wait_event(&event, location)?;
        lock(&self.streams).retain(|used| !is_it(used) || Some(used.calls) != calls);
        Ok(())
    }

    /// Waits until what this rank has queued is done, a second at most, and compares nothing: for a
    /// program that goes on to end after an error of its own, before it gives up its buffers.
    pub fn settle(&self) {
        let until = Instant::now() + LET_GO;
        self.ends().iter().for_each(|end| wait_until(end, until));
    }

    /// Where the streams on which calls were made are to come to.
    fn ends(&self) -> Vec<CudaEvent> {
        let streams = lock(&self.streams);
        streams.iter().filter_map(|used| used.stream.record_event(None).ok()).collect()
    }

    fn wait_event(&self, event: &CudaEvent, location: &'static Location<'static>) -> Result<()> {
        let world = self.world().cloned();
        let limits = world.as_ref().map(|world| world.limits);
        let begun = Instant::now();
        let mut next_warning = limits.map(|limits| limits.late_after);
        let mut pause = Pause::default();
        let is_given_up =
            || world.as_ref().is_some_and(|world| world.is_over()) || self.pair.is_given_up();
        loop {
            if is_given_up() {
                return Err(self.over());
            }
            match event.try_is_complete() {
                // What was given up a moment ago may be why it is.
                Ok(true) if is_given_up() => return Err(self.over()),
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(self.broken("its stream", &error)),
            }
            let waited = begun.elapsed();
            if let (Some(world), Some(limit)) = (&world, limits.and_then(|limits| limits.timeout))
                && waited >= limit
            {
                let call = format!("waiting for the GPU at {}", at(location));
                let fault = Fault::TimedOut { call, limit: report::duration(limit), late: None };
                world.raise(world.rank, fault);
                continue;
            }
            if let Some(due) = next_warning
                && waited >= due
            {
                next_warning = Some(due * 2);
                report::warn(&format!(
                    "the stream that {} waits for is not done after {}: kernels before its calls are \
                     slow, here or on another rank, or a send and a receive that need each other are \
                     not in one group",
                    at(location),
                    report::duration(waited)
                ));
            }
            pause.take();
        }
    }

    /// Before an error that ends everything is returned, and buffers with it: NCCL is given up, and its
    /// kernels have ended.
    pub(in crate::nccl) fn let_go_after(&self, error: Error) -> Error {
        if !error.is_communicator_usable() {
            self.let_go();
        }
        error
    }

    /// As [`let_go_after`](Self::let_go_after) an error that has ended everything.
    pub(in crate::nccl) fn let_go(&self) {
        // Who holds the communicator lets go when he holds it no more.
        if self.pair.is_held_here() {
            return;
        }
        let until = *self.let_go_by.get_or_init(|| Instant::now() + LET_GO);
        if self.watch.wait_ended(until.saturating_duration_since(Instant::now())) {
            self.ends().iter().for_each(|end| wait_until(end, until));
        }
    }
}

fn wait_until(event: &CudaEvent, until: Instant) {
    let mut pause = Pause::default();
    while Instant::now() < until && matches!(event.try_is_complete(), Ok(false)) {
        pause.take();
    }
}

/// Between two looks at an event: none at first, as most calls take microseconds, and never long
/// beside what has been waited already.
struct Pause(Instant);

impl Default for Pause {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Pause {
    fn take(&mut self) {
        match self.0.elapsed() {
            waited if waited < SPIN => std::hint::spin_loop(),
            waited => std::thread::sleep((waited / 64).min(LONGEST_PAUSE)),
        }
    }
}

/// Longer calls do not feel what a sleep takes to end, about 60 us.
const SPIN: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_micros(500);
