//! Whom this rank waits for in a call, and how long.
//!
//! Of every flow whose first message depends on nothing but that its sender has begun the call, the
//! time until that message comes is the sender's lateness. It is counted when the message is here;
//! where that takes long, also before, so that whoever looks meanwhile sees who is late.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Active, Driver};
use crate::contract::Collective;
use crate::link::Flow;
use crate::machine::FlowKey;
use crate::plan::{Algorithm, Plan, Request};
use crate::wire::Header;

/// Of one call.
pub(super) struct Lateness {
    /// Time that this rank had missed when the call's turn came.
    missed_before: Duration,
    /// The flows that are awaited; None as long as that does not take long.
    awaited: Option<Vec<Awaited>>,
}

struct Awaited {
    flow: FlowKey,
    /// The rank of the world.
    peer: u32,
    /// So much of the wait has been counted.
    counted: Duration,
}

/// The latest call that each flow has opened: often the message is read before the call's turn
/// comes here, and long before it can be taken.
#[derive(Default)]
pub(super) struct Openings(HashMap<Flow, u64>);

/// Whether this rank was there to wait: while it was stopped it cannot have read what had come.
pub(super) struct Attention {
    looked: Instant,
    missed: Duration,
    /// When each time that was missed ended, and how long it was.
    gaps: VecDeque<(Instant, Duration)>,
}

impl Driver {
    /// A call's turn has come.
    pub(super) fn begin_waiting(&self, now: Instant) -> Lateness {
        Lateness { missed_before: self.missed(now), awaited: None }
    }

    /// A message has come that its sender, it says, sent as soon as it had begun its call: if that
    /// call is under way here, this rank has waited for it.
    pub(super) fn note_arrival(&self, flow: Flow, key: FlowKey, header: &Header, now: Instant) {
        // Only a first message can be, and a flow has one in a call.
        let is_first = header.step == 0 && header.segment == 0 && self.counts_waits();
        if !is_first || !self.openings.borrow_mut().note(flow, header.sequence) {
            return;
        }
        let missed = self.missed(now);
        let mut all = self.calls.borrow_mut();
        let active = all.get_mut(&flow.group).and_then(|calls| calls.active.as_mut());
        let Some(active) = active.filter(|a| a.call.contract.sequence == header.sequence) else {
            return;
        };
        let waited = active.waited(now, missed);
        let mut counted = Duration::ZERO;
        if let Some(awaited) = &mut active.lateness.awaited
            && let Some(place) = awaited.iter().position(|awaited| awaited.flow == key)
        {
            counted = awaited.swap_remove(place).counted;
        }
        self.world.counters.waits(flow.peer, waited.saturating_sub(counted));
        self.world.counters.waited(flow.peer, waited);
    }

    /// A wait counts once, whatever number of lanes make the call.
    fn counts_waits(&self) -> bool {
        self.number == 0
    }

    /// No more comes on a flow.
    pub(super) fn forget_flow(&self, flow: Flow) {
        self.openings.borrow_mut().0.remove(&flow);
    }

    /// Counts the waits of calls that take long.
    pub(super) fn count_waits(&self, now: Instant) {
        if !self.counts_waits() {
            return;
        }
        let missed = self.missed(now);
        for active in self.calls.borrow_mut().values_mut().filter_map(|calls| calls.active.as_mut())
        {
            let waited = active.waited(now, missed);
            if waited < LONG {
                continue;
            }
            if active.lateness.awaited.is_none() {
                active.lateness.awaited = Some(self.awaited(active));
            }
            for awaited in active.lateness.awaited.iter_mut().flatten() {
                self.world.counters.waits(awaited.peer, waited.saturating_sub(awaited.counted));
                awaited.counted = waited;
            }
        }
    }

    /// A call ends without those that it waits for.
    pub(super) fn stop_waiting(&self, lateness: &Lateness) {
        for awaited in lateness.awaited.iter().flatten() {
            self.world.counters.waited(awaited.peer, awaited.counted);
        }
    }

    /// How long somebody has waited who began to at `since`. While this rank was itself stopped it
    /// has waited for nobody.
    pub(super) fn waited(&self, since: Instant, now: Instant) -> Duration {
        let mut attention = self.attention.borrow_mut();
        attention.look(now);
        now.saturating_duration_since(since).saturating_sub(attention.missed_since(since))
    }

    /// Time that this rank has missed.
    pub(super) fn missed(&self, now: Instant) -> Duration {
        self.attention.borrow_mut().look(now)
    }

    /// The flows of a call whose first message would be here if their senders had begun it.
    fn awaited(&self, active: &Active) -> Vec<Awaited> {
        let contract = &active.call.contract;
        let members = &active.call.members;
        // How long the blocks of others are is not in the contract. Between hosts, a rank may itself
        // wait for those of its host.
        let is_unknown = contract.collective == Collective::AllGatherV;
        if is_unknown || active.algorithm == Algorithm::ByHost {
            return Vec::new();
        }
        let request = Request {
            collective: contract.role.carries(contract.collective),
            size: members.len() as u32,
            count: contract.carried_count(),
            element_bytes: contract.element.size() as u32,
            counts: None,
        };
        let segment = self.world.choice.costs.segment_elements(request.element_bytes);
        let place = members.iter().position(|member| *member == self.world.rank);
        let opens = |flow: &FlowKey| {
            let plan = Plan::new(&request, flow.peer, active.algorithm, segment);
            place.is_some_and(|place| plan.opens_unprompted(place as u32, flow.tree))
        };
        let openings = self.openings.borrow();
        let sources = active.call.sources().take(MAX_AWAITED);
        // A flow whose peer has left is forgotten, and expects nothing.
        let missing = sources.filter(|key| active.call.expects(*key)).filter(opens);
        missing
            .filter_map(|key| {
                let peer = *members.get(key.peer as usize)?;
                let flow = Flow { peer, group: contract.group, tree: key.tree };
                let is_here = openings.has(flow, contract.sequence);
                (!is_here).then_some(Awaited { flow: key, peer, counted: Duration::ZERO })
            })
            .collect()
    }
}

impl Active {
    /// Since its turn came, less what this rank has missed meanwhile.
    fn waited(&self, now: Instant, missed: Duration) -> Duration {
        let missed = missed.saturating_sub(self.lateness.missed_before);
        now.saturating_duration_since(self.since).saturating_sub(missed)
    }
}

impl Openings {
    /// A flow's first message of a call is here; false if that was known, or a later call's.
    fn note(&mut self, flow: Flow, sequence: u64) -> bool {
        let is_new = !self.has(flow, sequence);
        if is_new {
            self.0.insert(flow, sequence);
        }
        is_new
    }

    fn has(&self, flow: Flow, sequence: u64) -> bool {
        self.0.get(&flow).is_some_and(|latest| *latest >= sequence)
    }
}

impl Attention {
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: now, missed: Duration::ZERO, gaps: VecDeque::new() }
    }

    /// All time missed so far. Whatever looks rarely where no call is under way misses time that
    /// nobody asks for.
    fn look(&mut self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.looked);
        if gap >= GAP {
            self.missed += gap;
            self.gaps.push_back((now, gap));
            if self.gaps.len() > MAX_GAPS
                && let Some((_, oldest)) = self.gaps.pop_front()
                && let Some((_, second)) = self.gaps.front_mut()
            {
                *second += oldest;
            }
        }
        self.looked = self.looked.max(now);
        self.missed
    }

    /// Time missed from then on.
    fn missed_since(&self, since: Instant) -> Duration {
        let part =
            |(end, gap): &(Instant, Duration)| end.saturating_duration_since(since).min(*gap);
        self.gaps.iter().map(part).sum()
    }
}

/// Shorter waits are counted when they end: two scrapes are further apart.
const LONG: Duration = Duration::from_secs(1);
/// To find out costs as many steps of a plan each as the communicator has ranks.
const MAX_AWAITED: usize = 64;
/// With a call under way the lane looks at least every `LONGEST_LOOK`. Heartbeats go by the same
/// limit: a rank that was not scheduled for so long blames nobody for it.
const GAP: Duration = Duration::from_millis(500);
/// So many that count for waits of any age; older ones are taken for one.
const MAX_GAPS: usize = 64;

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::lane::ring;
    use crate::statistics::LateStatistics;
    use crate::verdict::Loss;
    use crate::wire::MessageKind;
    use crate::world::{Limits, WHOLE_WORLD};

    /// Rank 1 of a ring of three, which receives from rank 0, on a clock that the test moves.
    struct Ring {
        driver: Rc<Driver>,
        now: Instant,
    }

    impl Ring {
        fn with(test: impl FnOnce(&mut Self)) {
            let limits = Limits { late_after: Duration::MAX, timeout: None, dead_after: None };
            ring::with(limits, |driver| test(&mut Self { driver, now: Instant::now() }));
        }

        /// This rank's next call.
        fn call(&mut self) {
            drop(ring::call(&self.driver));
            self.now = self.now.max(Instant::now());
        }

        /// A header from rank 0 that claims to wait for nobody.
        fn header(&self, sequence: u64, segment: u64, step: u32) {
            let flow = Flow { peer: 0, group: WHOLE_WORLD, tree: 0 };
            let header = Header {
                kind: MessageKind::Segment,
                is_unprompted: true,
                contract_bytes: 0,
                payload_bytes: 8,
                epoch: 0,
                sequence,
                hash: 0,
                segment,
                step,
            };
            self.driver.note_arrival(flow, FlowKey { peer: 0, tree: 0 }, &header, self.now);
        }

        /// As the lane does while it is scheduled.
        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now += LOOK;
                self.driver.count_waits(self.now);
            }
        }

        /// How late rank 0 has been in all, to within a look.
        fn late(&self) -> Duration {
            self.waits().total
        }

        /// The waits for rank 0.
        fn waits(&self) -> LateStatistics {
            let peers = self.driver.world.counters.stats().peers;
            peers.into_iter().find(|peer| peer.rank == 0).unwrap().late
        }
    }

    #[test]
    fn whoever_came_first_is_not_late_however_long_the_call_takes() {
        Ring::with(|ring| {
            ring.header(0, 0, 0);
            ring.call();
            ring.pass(5 * LONG);
            assert_eq!(ring.late(), Duration::ZERO);
        });
    }

    #[test]
    fn whoever_does_not_come_is_late_once() {
        Ring::with(|ring| {
            ring.call();
            ring.pass(5 * LONG);
            assert!(ring.late() >= 5 * LONG);
            assert_eq!(ring.waits().count, 0, "it has not ended");
            ring.header(0, 0, 0);
            let late = ring.late();
            assert!(late < 6 * LONG, "{late:?}");
            let waits = ring.waits();
            assert_eq!((waits.count, waits.max), (1, late), "one wait of its whole length");
            ring.pass(5 * LONG);
            assert_eq!(ring.waits(), waits);
        });
    }

    #[test]
    fn a_wait_that_an_error_ends_has_ended() {
        Ring::with(|ring| {
            ring.call();
            ring.pass(3 * LONG);
            ring.driver.world.lose(2, Loss::Gone);
            ring.driver.abort();
            let waits = ring.waits();
            assert_eq!((waits.count, waits.max), (1, waits.total));
            assert!(waits.total >= 3 * LONG);
        });
    }

    #[test]
    fn only_the_first_word_of_a_flow_counts() {
        Ring::with(|ring| {
            ring.call();
            ring.pass(LONG / 2);
            for number in 1..100 {
                ring.header(0, number, 0);
                ring.header(0, 0, number as u32);
            }
            assert_eq!(ring.late(), Duration::ZERO);
            ring.header(0, 0, 0);
            let late = ring.late();
            assert!(late >= LONG / 2);
            ring.pass(LONG / 4);
            for _ in 0..100 {
                ring.header(0, 0, 0);
            }
            assert_eq!(ring.late(), late);
            assert_eq!(ring.driver.openings.borrow().0.len(), 1);
        });
    }

    #[test]
    fn the_word_of_an_earlier_call_does_not_excuse_a_later_one() {
        let flow = Flow { peer: 0, group: WHOLE_WORLD, tree: 0 };
        let mut openings = Openings::default();
        assert!(openings.note(flow, 3));
        assert!(openings.has(flow, 2) && openings.has(flow, 3) && !openings.has(flow, 4));
        assert!(!openings.note(flow, 3) && !openings.note(flow, 2));
        assert!(openings.note(flow, 4) && openings.has(flow, 4));
    }

    #[test]
    fn a_rank_that_was_stopped_blames_nobody_for_it() {
        Ring::with(|ring| {
            ring.call();
            ring.pass(LOOK);
            ring.now += 10 * LONG;
            ring.header(0, 0, 0);
            assert!(ring.late() < LONG, "{:?}", ring.late());
        });
        Ring::with(|ring| {
            ring.call();
            ring.pass(2 * LONG);
            ring.now += 10 * LONG;
            ring.pass(LOOK);
            assert!(ring.late() < 4 * LONG, "{:?}", ring.late());
        });
    }

    #[test]
    fn a_stop_counts_for_nobody_who_waited_before_the_call_had_its_turn() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut attention = Attention::new(start);
        // No call for long, then a stop while one is handed over, and another in it.
        for ms in [10_000, 10_100, 11_000, 11_100] {
            attention.look(after(ms));
        }
        let missed_since = |ms| attention.missed_since(after(ms)).as_millis();
        assert_eq!(missed_since(9_900), 100 + 900);
        assert_eq!(missed_since(10_050), 900);
        assert_eq!(missed_since(10_700), 300);
        assert_eq!(missed_since(11_000), 0);
        // However many there are, none is forgotten.
        let mut attention = Attention::new(start);
        (1..=1_000).for_each(|second| _ = attention.look(after(1_000 * second)));
        assert_eq!(attention.gaps.len(), MAX_GAPS);
        assert_eq!(attention.missed_since(start), Duration::from_secs(1_000));
    }

    /// As the lane at most, and below what counts as missed.
    const LOOK: Duration = Duration::from_millis(250);
}
