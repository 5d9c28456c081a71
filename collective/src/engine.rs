//! Runs the calls of one rank, strictly in the order of their sequence numbers.
//!
//! A blocking call is made on the caller's own thread: it agrees on contract and plan, lends its
//! buffer to the lane, and sleeps until the lane is done with it.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::buffer;
use crate::contract::{self, CallShape, Contract};
use crate::error::{ErrorKind, Result};
use crate::lane::{self, Call, Completion, Lane};
use crate::machine::Machine;
use crate::plan::{Algorithm, costs};
use crate::reduce::Element;
use crate::report;
use crate::verdict::Fault;
use crate::world::World;

pub(crate) struct Engine {
    world: Arc<World>,
    lane: Mutex<Option<Lane>>,
    /// The source line of the call under way.
    busy: Mutex<Option<&'static Location<'static>>>,
    /// A call has returned the error that ended the world.
    told: AtomicBool,
    /// The process that connected: a fork has none of its threads.
    process: u32,
}

impl Engine {
    pub(crate) fn new(world: Arc<World>, lane: Lane) -> Self {
        Self {
            world,
            lane: Mutex::new(Some(lane)),
            busy: Mutex::new(None),
            told: AtomicBool::new(false),
            process: std::process::id(),
        }
    }

    pub(crate) fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Makes one call and waits for its end.
    pub(crate) fn call<T: Element>(&self, shape: &CallShape, data: &mut [T]) -> Result<()> {
        let process = std::process::id();
        if process != self.process {
            return Err(ErrorKind::Forked { process, connected: self.process }.into());
        }
        let _turn = self.enter(shape.location)?;
        let (contract, plan, hash) = self.world.begin(shape).inspect_err(|_| self.tell())?;
        debug_assert!(plan.algorithm() != Algorithm::Tree, "the lane has one flow to each peer");
        let machine = Machine::new(plan, costs::segment_elements(contract.element.size() as u32));
        debug_assert_eq!(machine.relay_elements(), 0, "the lane has no relay yet");
        let (loan, lent) = buffer::lend(data);
        let (done, completion) = lane::completion();
        let location = contract::show_location(shape.location);
        let call = Call { contract, location, hash, machine, buffer: lent, done };
        match &*self.lane.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(lane) => lane.run(call),
            None => return Err(ErrorKind::Closed.into()),
        }
        let result = self.wait(&completion, &contract);
        drop(loan);
        self.world.end_call();
        let Err(error) = result else { return Ok(()) };
        // Without a verdict the lane itself has failed: the others must not wait for this rank.
        if self.world.error().is_none() {
            let how = format!("failed: {error}");
            self.world.raise(self.world.rank, Fault::Lost { how });
        }
        self.tell();
        self.let_verdict_out();
        Err(self.world.error().unwrap_or(error))
    }

    /// Says goodbye, waits for the peers' readers, and ends the threads. An error that no call
    /// has returned, such as a different number of calls, is returned here.
    pub(crate) fn close(&self) -> Result<()> {
        let Some(mut lane) = self.lane.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        if std::process::id() != self.process {
            // The threads live in the process that forked; there is nothing to close here.
            std::mem::forget(lane);
            return Ok(());
        }
        let had_error = self.world.error().is_some();
        let (calls, hash) = self.world.calls();
        if !had_error {
            self.world.judge_close();
            if let Some(control) = self.world.control() {
                control.say_goodbye(calls, hash);
            }
        }
        lane.close();
        if let Some(control) = self.world.control() {
            control.close();
        }
        match self.world.error() {
            Some(error) if !self.told.load(Ordering::Relaxed) => Err(error),
            _ => Ok(()),
        }
    }

    /// The user's code is unwinding: the others must not wait for this rank.
    pub(crate) fn close_in_panic(&self) {
        self.world.raise(self.world.rank, Fault::Lost { how: "panicked".into() });
        let _ = self.close();
    }

    fn enter(&self, location: &'static Location<'static>) -> Result<Turn<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = *busy {
            let (first, second) =
                (contract::show_location(first), contract::show_location(location));
            return Err(ErrorKind::ConcurrentCalls { first, second }.into());
        }
        *busy = Some(location);
        Ok(Turn(self))
    }

    fn wait(&self, completion: &Completion, contract: &Contract) -> Result<()> {
        let limits = self.world.limits;
        let mut patience = Patience::new(limits.late_after);
        loop {
            if let Some(result) = completion.wait(patience.wait(limits.timeout)) {
                return result;
            }
            if patience.is_warning_due() {
                self.world.warn_late(contract, patience.began.elapsed());
            }
            if let Some(timeout) = limits.timeout
                && patience.began.elapsed() >= timeout
            {
                self.world.raise(
                    self.world.rank,
                    Fault::TimedOut {
                        call: format!(
                            "call #{}, {contract}, on rank {}",
                            contract.sequence, self.world.rank
                        ),
                        limit: report::duration(timeout),
                        late: self.world.late(contract.sequence),
                    },
                );
            }
        }
    }

    fn tell(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// A program may end right after an error: the others must have been told by then.
    fn let_verdict_out(&self) {
        if let Some(control) = self.world.control() {
            control.wait_flooded(FLOOD_LIMIT);
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

/// When a call began and which warning comes next: one after `late_after`, then with back-off.
struct Patience {
    began: Instant,
    next_warning: Duration,
}

impl Patience {
    fn new(late_after: Duration) -> Self {
        Self { began: Instant::now(), next_warning: late_after }
    }

    /// How long to wait before looking again.
    fn wait(&self, timeout: Option<Duration>) -> Duration {
        let next = timeout.map_or(self.next_warning, |timeout| timeout.min(self.next_warning));
        next.saturating_sub(self.began.elapsed()).max(Duration::from_millis(1))
    }

    /// Whether a warning is due now.
    fn is_warning_due(&mut self) -> bool {
        let due = self.began.elapsed() >= self.next_warning;
        if due {
            self.next_warning *= 2;
        }
        due
    }
}

/// Writing a verdict to open connections takes microseconds; a peer that does not take it is not
/// waited for.
const FLOOD_LIMIT: Duration = Duration::from_millis(50);
