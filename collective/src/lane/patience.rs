//! Watches calls that do not end: says and counts who is late, ends them at ALLFOLD_TIMEOUT, and tells the
//! collector when nothing moves and every thread waits.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Driver;
use super::silence::Silences;
use crate::contract::Contract;
use crate::deadlock::{REPORT_EVERY, Rest};
use crate::report;
use crate::verdict::Fault;
use crate::world::Limits;

/// Since when nothing has moved, on any lane.
struct Stillness {
    moved: u64,
    since: Instant,
    /// What the program's other threads do meanwhile; None as long as that does not take long.
    rest: Option<Rest>,
    reported: Option<Instant>,
}

impl Driver {
    /// Looks now and then for as long as calls are under way.
    pub(super) async fn watch(self: Rc<Self>) {
        let limits = self.world.limits;
        let shortest = limits.timeout.map_or(limits.late_after, |t| t.min(limits.late_after));
        let pause = (shortest / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let now = Instant::now();
        let mut still = Stillness { moved: 0, since: now, rest: None, reported: None };
        let mut silences = Silences::new(limits.dead_after, now);
        loop {
            let begun = self.begun.notified();
            if !self.is_busy() {
                begun.await;
                (still.since, still.rest) = (Instant::now(), None);
            }
            tokio::time::sleep(pause).await;
            self.look(Instant::now());
            self.count_waits(Instant::now());
            self.look_for_deadlock(&mut still);
            self.look_for_silence(&mut silences);
            self.links.look_for_drops();
            if let Some(control) = self.world.control() {
                control.compare_notes(|| self.world.standings());
            }
        }
    }

    fn look(&self, now: Instant) {
        let limits = self.world.limits;
        let mut late = Vec::new();
        let mut over = None;
        for calls in self.calls.borrow_mut().values_mut() {
            let Some(since) = calls.awaited() else { continue };
            let Some(active) = calls.active.as_mut() else { continue };
            let contract = &active.call.contract;
            // Whom it waits for may be in one before it still, and the lane that has that one says so.
            if !self.world.is_first(contract.group, contract.sequence) {
                continue;
            }
            // A warning is of this call alone, which may have begun behind many others.
            let (waited, waited_in_it) =
                (self.waited(since, now), self.waited(since.max(active.since), now));
            if active.done.is_warning_due(waited_in_it, first_warning(&limits)) {
                late.push((active.call.contract, waited_in_it));
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
        let moved = self.world.moved();
        if moved != still.moved {
            (still.moved, still.since, still.rest) = (moved, now, None);
        }
        let (still_for, patience) = (now.duration_since(still.since), self.world.limits.late_after);
        if still_for < patience / 2 {
            return;
        }
        let rest = still.rest.get_or_insert_with(|| Rest::begin(now));
        if still_for < patience
            || still.reported.is_some_and(|said| now.duration_since(said) < REPORT_EVERY)
        {
            return;
        }
        let (Some(stuck), Some(control)) = (self.world.stuck(), self.world.control()) else {
            return;
        };
        // A thread that computes may be about to make the call that is missing.
        if rest.lasts(now, patience / 4, &self.world.waiting_threads()) {
            still.reported = Some(now);
            control.report_stuck(self.world.collector(), stuck);
        }
    }
}

/// How long a call is waited for before the first warning.
fn first_warning(limits: &Limits) -> Duration {
    limits.late_after.max(SHORTEST_LOOK)
}

/// A limit is noticed an eighth late at most.
const LOOKS: u32 = 8;
const SHORTEST_LOOK: Duration = Duration::from_millis(5);
/// Four looks a second cost nothing.
const LONGEST_LOOK: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::lane::ring;
    use crate::verdict::Verdict;
    use crate::world::WHOLE_WORLD;

    const LATE: Duration = Duration::from_secs(10);

    fn limits(timeout: Option<Duration>) -> Limits {
        Limits { late_after: LATE, timeout, dead_after: None }
    }

    /// Somebody waits from now on.
    fn ask(call: &crate::lane::Completion) {
        assert!(call.poll(&Context::from_waker(Waker::noop())).is_pending());
    }

    fn next_warning(driver: &Driver) -> Duration {
        driver.calls.borrow()[&WHOLE_WORLD].active.as_ref().unwrap().done.next_warning()
    }

    #[test]
    fn who_waits_behind_a_started_call_waits_for_that_one() {
        let timeout = 2 * LATE;
        ring::with(limits(Some(timeout)), |driver| {
            let (_started, behind) = (ring::call(&driver), ring::call(&driver));
            ask(&behind);
            let now = Instant::now();
            // In steps, as one long one would be this rank's own stop.
            let looks = |from: Duration, to: Duration| {
                let at = |look| from + LONGEST_LOOK * look;
                (0..).map(at).take_while(|at| *at < to).for_each(|at| driver.look(now + at));
            };
            looks(Duration::ZERO, LATE);
            assert_eq!(next_warning(&driver), LATE);
            looks(LATE, timeout);
            assert_eq!(next_warning(&driver), 2 * LATE, "a warning");
            assert_eq!(driver.world.verdict(), None);
            driver.look(now + timeout);
            let fault = driver.world.verdict().map(|Verdict { fault, .. }| fault.clone());
            let Some(Fault::TimedOut { call, .. }) = fault else { panic!("{fault:?}") };
            assert!(call.starts_with("all_reduce #0"), "{call}");
        });
    }

    #[test]
    fn a_late_look_gives_one_warning_and_no_patience_gives_no_endless_ones() {
        let impatient = Limits { late_after: Duration::ZERO, ..limits(None) };
        ring::with(impatient, |driver| {
            let call = ring::call(&driver);
            ask(&call);
            let now = Instant::now() + LONGEST_LOOK;
            driver.look(now);
            let next = next_warning(&driver);
            assert!(next > LONGEST_LOOK, "{next:?}");
            driver.look(now);
            assert_eq!(next_warning(&driver), next);
        });
    }
}
