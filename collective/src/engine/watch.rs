//! What a call in memory looks after while it waits: warnings, limits, deadlocks, and whom it waits
//! for.

use std::time::{Duration, Instant};

use crate::contract::Contract;
use crate::deadlock::{REPORT_EVERY, Rest};
use crate::group::Begun;
use crate::link::shared_memory::Patience;
#[cfg(feature = "faults")]
use crate::plan::Algorithm;
use crate::report;
use crate::verdict::Fault;
use crate::world::{Waiting, World};

/// Looks after a call that waits long.
pub(super) struct Watch<'a> {
    world: &'a World,
    begun: &'a Begun,
    /// Those that meet, in the world.
    around: &'a [u32],
    /// Of one that was started: since when somebody waits for it.
    awaited: Option<&'a dyn Fn() -> Option<Instant>>,
    since: Instant,
    /// When its turn came.
    begun_at: Instant,
    looked: Instant,
    /// Whom this rank waited for last, and how much of that has been counted.
    counted: (usize, Duration),
    /// Time in which this rank was itself not there to wait.
    missed: Duration,
    next_warning: Duration,
    reported: Option<Instant>,
    /// What the program's other threads do meanwhile.
    rest: Option<Rest>,
    /// Of a blocking call: said only once it takes long.
    waiting: Option<Waiting<'a>>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        world: &'a World,
        (begun, around): (&'a Begun, &'a [u32]),
        since: Instant,
        awaited: Option<&'a dyn Fn() -> Option<Instant>>,
    ) -> Self {
        let next_warning = world.limits.late_after;
        Self {
            world,
            begun,
            around,
            awaited,
            since,
            begun_at: since,
            looked: since,
            counted: (0, Duration::ZERO),
            missed: Duration::ZERO,
            next_warning,
            reported: None,
            rest: None,
            waiting: None,
        }
    }
}

impl Patience for Watch<'_> {
    fn is_over(&self) -> bool {
        self.world.is_over()
    }

    fn waits(&mut self, peer: usize, to_come: bool) {
        let now = Instant::now();
        let waited = self.look(now);
        if to_come && waited >= LONG {
            self.count(peer, waited);
        }
        // One that was started and that nobody waits for is not late.
        if let Some(awaited) = self.awaited {
            match awaited() {
                Some(since) => self.since = since,
                None => return,
            }
        } else if self.waiting.is_none() {
            let Contract { group, sequence, .. } = self.begun.contract;
            self.waiting = Some(self.world.note_waiting(group, sequence));
        }
        let (limits, contract) = (self.world.limits, &self.begun.contract);
        let waited = now.saturating_duration_since(self.since).saturating_sub(self.missed);
        if waited >= self.next_warning {
            while self.next_warning <= waited {
                self.next_warning = (self.next_warning * 2).max(SHORTEST);
            }
            self.world.warn_late(contract, waited);
        }
        if let Some(timeout) = limits.timeout.filter(|timeout| waited >= *timeout) {
            let (rank, suffix) = (self.world.rank, self.world.suffix(contract.group));
            let fault = Fault::TimedOut {
                call: format!("{contract}{suffix} on rank {rank}"),
                limit: report::duration(timeout),
                late: self.world.late(contract.group, contract.sequence),
            };
            self.world.raise(rank, fault);
        }
        let Some(control) = self.world.control() else { return };
        if waited < limits.late_after / 2 {
            return;
        }
        let rest = self.rest.get_or_insert_with(|| Rest::begin(now));
        if waited >= limits.late_after
            && self.reported.is_none_or(|said| now.duration_since(said) >= REPORT_EVERY)
            && let Some(stuck) = self.world.stuck()
            && rest.lasts(now, limits.late_after / 4, &self.world.waiting_threads())
        {
            self.reported = Some(now);
            control.report_stuck(self.world.collector(), stuck);
        }
    }

    fn came(&mut self, peer: usize) {
        let waited = self.look(Instant::now());
        self.count(peer, waited);
        if let Some(rank) = self.rank_of(peer) {
            self.world.counters.waited(rank, waited);
        }
        self.counted = (peer, Duration::ZERO);
    }

    #[cfg(feature = "faults")]
    fn steps(&mut self, index: u32, count: u32) {
        self.tell_step(index, count);
    }
}

impl Watch<'_> {
    /// The call goes on here after it was elsewhere.
    pub(super) fn goes_on(&mut self) {
        self.looked = Instant::now();
        self.rest = None;
        // A thread is noted once, and has been noted for the lane since.
        self.waiting = None;
    }

    #[cfg(feature = "faults")]
    fn tell_step(&self, index: u32, count: u32) {
        let contract = &self.begun.contract;
        crate::faults::happens(|_| {
            crate::faults::Moment::Step(crate::faults::Step {
                rank: self.world.rank as usize,
                communicator: contract.group,
                sequence: contract.sequence,
                collective: contract.collective.name(),
                algorithm: Algorithm::SharedMemory.name(),
                label: contract.label,
                index: index as usize,
                count: count as usize,
                sends: true,
            })
        });
    }

    /// How long the call has taken, but for the time in which this rank was itself stopped.
    fn look(&mut self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = now;
        if gap >= GAP {
            self.missed += gap;
        }
        now.saturating_duration_since(self.begun_at).saturating_sub(self.missed)
    }

    /// This rank has waited so long for `peer` to begin the call.
    fn count(&mut self, peer: usize, waited: Duration) {
        let counted = if self.counted.0 == peer { self.counted.1 } else { Duration::ZERO };
        if let Some(rank) = self.rank_of(peer) {
            self.world.counters.waits(rank, waited.saturating_sub(counted));
        }
        self.counted = (peer, waited);
    }

    /// A rank of the communicator, in the whole world.
    fn rank_of(&self, peer: usize) -> Option<u32> {
        self.around.get(peer).copied()
    }
}

/// As the lane judges its own stops (`lane/lateness.rs`).
const GAP: Duration = Duration::from_millis(500);
/// As the lane's: shorter waits are counted when they end.
const LONG: Duration = Duration::from_secs(1);
/// Between two warnings.
const SHORTEST: Duration = Duration::from_millis(5);
