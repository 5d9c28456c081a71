//! A call that is inside NCCL, which connects ranks at their first calls and waits for them there:
//! warnings, ALLFOLD_TIMEOUT and the search for deadlocks, as for calls on the host.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::deadlock::{REPORT_EVERY, Rest};
use crate::report;
use crate::verdict::Fault;
use crate::world::{Waiting, World};

/// The call, if there is one; only one at a time is.
#[derive(Default)]
pub(super) struct Inside(Mutex<Option<Entry>>);

#[derive(Clone, Copy)]
struct Entry {
    since: Instant,
    /// Its communicator and sequence; of a group, those of its last call.
    number: (u64, u64),
}

impl Inside {
    /// This thread goes into NCCL, until what this gives is dropped.
    pub(super) fn enter<'a>(&'a self, world: &'a World, number: (u64, u64)) -> Entered<'a> {
        *self.entry() = Some(Entry { since: Instant::now(), number });
        let (group, sequence) = number;
        Entered { inside: self, _waiting: world.note_waiting(group, sequence) }
    }

    fn entry(&self) -> MutexGuard<'_, Option<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread is in NCCL for as long as this lives.
pub(super) struct Entered<'a> {
    inside: &'a Inside,
    _waiting: Waiting<'a>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.inside.entry() = None;
    }
}

/// What another thread does about a call that stays inside.
#[derive(Default)]
pub(super) struct Patience {
    call: Option<Long>,
}

/// A call that has been inside for some time.
struct Long {
    since: Instant,
    looked: Instant,
    /// Time in which this rank was itself not there to wait.
    missed: Duration,
    next_warning: Duration,
    reported: Option<Instant>,
    /// What the program's other threads do meanwhile.
    rest: Option<Rest>,
}

impl Patience {
    /// To be called now and then.
    pub(super) fn look(&mut self, inside: &Inside, world: &World) {
        let Some(Entry { since, number }) = *inside.entry() else {
            self.call = None;
            return;
        };
        let limits = world.limits;
        let now = Instant::now();
        let new = || Long {
            since,
            looked: now,
            missed: Duration::ZERO,
            next_warning: limits.late_after,
            reported: None,
            rest: None,
        };
        let call = self.call.take().filter(|call| call.since == since).unwrap_or_else(new);
        let call = self.call.insert(call);
        let gap = now.saturating_duration_since(call.looked);
        call.looked = now;
        if gap >= GAP {
            call.missed += gap;
        }
        let waited = now.saturating_duration_since(since).saturating_sub(call.missed);
        let (group, sequence) = number;
        if waited >= call.next_warning {
            call.next_warning = (waited * 2).max(SHORTEST);
            world.warn_inside(number, waited);
        }
        if let Some(limit) = limits.timeout.filter(|limit| waited >= *limit) {
            let words = world.describe_call(group, sequence).unwrap_or_default();
            let fault = Fault::TimedOut {
                call: format!("{words} on rank {}", world.rank),
                limit: report::duration(limit),
                late: world.late(group, sequence),
            };
            return world.raise(world.rank, fault);
        }
        if waited < limits.late_after / 2 {
            return;
        }
        let rest = call.rest.get_or_insert_with(|| Rest::begin(now));
        if waited >= limits.late_after
            && call.reported.is_none_or(|said| now.duration_since(said) >= REPORT_EVERY)
            && let (Some(stuck), Some(control)) = (world.stuck(), world.control())
            && rest.lasts(now, limits.late_after / 4, &world.waiting_threads())
        {
            call.reported = Some(now);
            control.report_stuck(world.collector(), stuck);
        }
    }
}

/// As calls in memory judge this rank's own stops (`engine/watch.rs`).
const GAP: Duration = Duration::from_millis(500);
/// Between two warnings.
const SHORTEST: Duration = Duration::from_millis(5);
