//! Watches calls that do not end: says and counts who is late, ends them at ALLFOLD_TIMEOUT, and tells the
//! collector when nothing moves and every thread waits.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Driver;
use super::silence::Silences;
use crate::contract::Contract;
use crate::deadlock::REPORT_EVERY;
use crate::report;
use crate::verdict::Fault;

/// Since when nothing has moved.
struct Stillness {
    moved: u64,
    since: Instant,
    reported: Option<Instant>,
}

impl Driver {
    /// Looks now and then for as long as calls are under way.
    pub(super) async fn watch(self: Rc<Self>) {
        let limits = self.world.limits;
        let shortest = limits.timeout.map_or(limits.late_after, |t| t.min(limits.late_after));
        let pause = (shortest / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let now = Instant::now();
        let mut still = Stillness { moved: 0, since: now, reported: None };
        let mut silences = Silences::new(limits.dead_after, now);
        loop {
            let begun = self.begun.notified();
            if !self.is_busy() {
                begun.await;
                still.since = Instant::now();
            }
            tokio::time::sleep(pause).await;
            self.look();
            self.count_waits(Instant::now());
            self.look_for_deadlock(&mut still);
            self.look_for_silence(&mut silences);
            if let Some(control) = self.world.control() {
                control.compare_notes(|| self.world.standings());
            }
        }
    }

    fn look(&self) {
        let limits = self.world.limits;
        let now = Instant::now();
        let missed = self.missed(now);
        let mut late = Vec::new();
        let mut over = None;
        for active in self.calls.borrow_mut().values_mut().filter_map(|calls| calls.active.as_mut())
        {
            let Some(since) = active.done.awaited() else { continue };
            // While this rank was itself stopped it has waited for nobody.
            let waited = active.lateness.less_missed(now.saturating_duration_since(since), missed);
            if waited >= active.next_warning {
                active.next_warning *= 2;
                late.push((active.call.contract, waited));
            }
            over =
                over.or(limits.timeout.filter(|t| waited >= *t).map(|t| (active.call.contract, t)));
        }
        for (contract, waited) in late {
            self.world.warn_late(&contract, waited);
        }
        if let Some((contract, timeout)) = over {
            self.time_out(&contract, timeout);
        }
    }

    fn time_out(&self, contract: &Contract, timeout: Duration) {
        let Contract { group, sequence, .. } = *contract;
        let (rank, suffix) = (self.world.rank, self.world.suffix(group));
        let fault = Fault::TimedOut {
            call: format!("{contract}{suffix} on rank {rank}"),
            limit: report::duration(timeout),
            late: self.world.late(group, sequence),
        };
        self.world.raise(rank, fault);
    }

    fn look_for_deadlock(&self, still: &mut Stillness) {
        let now = Instant::now();
        if self.moved.get() != still.moved {
            (still.moved, still.since) = (self.moved.get(), now);
        }
        if now.duration_since(still.since) < self.world.limits.late_after
            || still.reported.is_some_and(|said| now.duration_since(said) < REPORT_EVERY)
        {
            return;
        }
        if let (Some(stuck), Some(control)) = (self.world.stuck(), self.world.control()) {
            still.reported = Some(now);
            control.report_stuck(self.world.collector(), stuck);
        }
    }
}

/// A limit is noticed an eighth late at most.
const LOOKS: u32 = 8;
const SHORTEST_LOOK: Duration = Duration::from_millis(5);
/// Four looks a second cost nothing.
const LONGEST_LOOK: Duration = Duration::from_millis(250);
