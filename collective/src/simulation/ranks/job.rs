//! All ranks of a job, and the loop that lets them act.

use std::sync::Arc;
use std::time::Duration;

use super::program::Programs;
use super::rank::{Ending, Rank, links};
use super::wires::Wires;
use super::{Event, Scenario};
use crate::plan::costs::{Choice, CostTable};
use crate::simulation::{Fault, FaultPlan, Fitness, Health, MILLISECOND, SECOND, Transit, trace};
use crate::statistics::Counters;
use crate::verdict::Verdict;
use crate::world::{Limits, Peer, World};

pub(super) struct Job {
    wires: Wires,
    ranks: Vec<Rank>,
    health: Health,
    faults: FaultPlan,
    suffered: Vec<Suffered>,
    /// When the last fault came to an end.
    quiet: u64,
}

/// What has happened to a rank.
#[derive(Clone, Debug, Default)]
struct Suffered {
    died: Option<u64>,
    /// It had said its goodbyes by then.
    left: bool,
    /// How long it was frozen, cut off or held back, all together.
    hindered: u64,
}

/// What became of a job.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) ranks: Vec<Fate>,
    /// Calls that returned Ok.
    pub(super) right: u64,
}

#[derive(Debug)]
pub(super) struct Fate {
    /// None: it died.
    pub(super) ending: Option<Ending>,
    pub(super) ended: u64,
    pub(super) verdict: Option<Verdict>,
    /// Goodbyes that nobody had answered when closing gave up.
    pub(super) unheard: usize,
    /// How long it was frozen, cut off or held back; None: it died.
    pub(super) hindered: Option<u64>,
}

impl Job {
    pub(super) fn new(
        seed: u64,
        scenario: &Scenario,
        programs: Programs,
        faults: FaultPlan,
    ) -> Self {
        let mut wires = Wires::new(seed, scenario.quality, scenario.window);
        let size = scenario.size.ranks;
        for from in 0..size {
            for to in links(from, size) {
                wires.open_control(from, to);
            }
        }
        let costs = CostTable {
            segment_bytes: scenario.size.segment * ELEMENT_BYTES,
            ..CostTable::default()
        };
        let choice = Choice { costs, forced: scenario.forced, lanes: 1 };
        let limits =
            Limits { late_after: Duration::from_secs(10), timeout: None, dead_after: None };
        let peer = |rank| Peer::new(rank, "simulated", 0);
        let peers: Vec<Peer> = (0..size as usize).map(peer).collect();
        let Programs { colours, steps } = programs;
        let ranks = (0..).zip(steps).map(|(number, steps)| {
            trace(|| format!("rank {number}: {steps:?}"));
            let counters = Arc::new(Counters::new(number, peers.len(), "simulated"));
            let choice = choice.clone();
            let world = World::new(number, EPOCH, peers.clone(), limits, choice, counters);
            let mut rank = Rank::new(number, world, steps, &colours, scenario.size.segment, &wires);
            rank.lane.hesitates = scenario.hesitates;
            rank
        });
        let mut ranks: Vec<Rank> = ranks.collect();
        for (number, rank) in (0..).zip(&mut ranks) {
            let random = wires.scheduler.random();
            let (start, look) = (random.below(5 * MILLISECOND), random.below(100 * MILLISECOND));
            wires.scheduler.at(start, Event::Go(number));
            wires.scheduler.at(look, Event::Look(number));
            rank.beat(&mut wires);
        }
        let suffered = vec![Suffered::default(); ranks.len()];
        Self { wires, ranks, health: Health::new(size), faults, suffered, quiet: 0 }
    }

    /// Runs the job to its end, and says what became of it; an error if it has none.
    pub(super) fn run(mut self) -> Result<Outcome, String> {
        let mut events = 0;
        while let Some((now, event)) = self.wires.scheduler.next() {
            events += 1;
            while let Some(fault) = self.faults.due(events) {
                self.suffer(now, &fault);
            }
            if let Event::Heal(from, to) = event {
                self.wires.network.heal(&mut self.wires.scheduler, from, to);
                continue;
            }
            let rank = self.rank_of(&event);
            match self.health.fitness(rank, now) {
                Fitness::Dead => {}
                Fitness::Frozen { until } => self.wires.scheduler.at(until, event),
                Fitness::Fit => self.act(rank, event),
            }
            if self.is_over() {
                return Ok(self.outcome());
            }
            self.check_deaths(now)?;
            if now > self.quiet + PATIENCE {
                return Err(self.stuck());
            }
        }
        Err(self.stuck())
    }

    fn rank_of(&self, event: &Event) -> u32 {
        match event {
            Event::Transit(Transit::Arrived(flow)) => self.wires.network.ends_of(*flow).1,
            Event::Transit(Transit::Credited(flow)) => self.wires.network.ends_of(*flow).0,
            Event::Transit(Transit::Datagram { to, .. }) => *to,
            Event::Rest(flow) => flow.to,
            Event::Answered(flow) => flow.from,
            Event::Heal(from, _) => *from,
            Event::Go(rank)
            | Event::Look(rank)
            | Event::Wake(rank, _)
            | Event::Closed(rank, _)
            | Event::Broken(rank, _)
            | Event::DrainLimit(rank) => *rank,
        }
    }

    fn act(&mut self, number: u32, event: Event) {
        let (rank, wires) = (&mut self.ranks[number as usize], &mut self.wires);
        if rank.ending.is_some() {
            return;
        }
        match event {
            Event::Transit(Transit::Arrived(flow)) => rank.take(wires, flow),
            Event::Transit(Transit::Credited(flow)) => {
                wires.network.credit(flow);
                if let Some(flow) = wires.data_flow(flow) {
                    rank.lane.pump(&rank.world, wires, flow.group);
                }
            }
            Event::Transit(Transit::Datagram { from, payload, .. }) => {
                rank.hear(wires, from, payload);
            }
            Event::Rest(flow) => rank.lane.rest_arrived(&rank.world, wires, flow),
            Event::Wake(_, group) => rank.lane.wake(&rank.world, wires, group),
            Event::Go(_) => rank.go(),
            Event::Look(_) => rank.look(wires),
            Event::Answered(flow) => rank.lane.answered(flow),
            Event::Closed(_, peer) => rank.peer_closed(wires, peer),
            Event::DrainLimit(_) => rank.drain_limit(),
            Event::Broken(_, peer) => rank.link_broken(peer),
            Event::Heal(..) => {}
        }
        rank.settle(wires);
        if rank.ending == Some(Ending::Well) {
            let now = self.wires.scheduler.now();
            for other in 0..self.ranks.len() as u32 {
                self.wires.scheduler.at(now + MILLISECOND, Event::Closed(other, number));
            }
        }
    }

    fn suffer(&mut self, now: u64, fault: &Fault) {
        trace(|| format!("{now:>12} {fault:?}"));
        let (hindered, lasts): (&[u32], u64) = match fault {
            Fault::Die { rank, .. } => {
                if self.health.is_alive(*rank) && self.ranks[*rank as usize].ending.is_none() {
                    self.health.die(*rank);
                    self.wires.network.abandon_all_of(*rank);
                    let suffered = &mut self.suffered[*rank as usize];
                    suffered.died = Some(now);
                    suffered.left = self.ranks[*rank as usize].is_leaving();
                    for other in 0..self.ranks.len() as u32 {
                        self.wires.scheduler.at(now + LINK_BROKEN, Event::Broken(other, *rank));
                    }
                }
                (&[], 0)
            }
            Fault::Freeze { rank, lasts } => {
                self.health.freeze(*rank, now + lasts);
                (&[*rank], *lasts)
            }
            Fault::Cut { from, to, lasts } => {
                self.wires.network.cut(*from, *to);
                let heal = Event::Heal(*from, *to);
                self.wires.scheduler.at(now + lasts, heal);
                (&[*from, *to], *lasts)
            }
            Fault::Stall { from, to, lasts } => {
                self.wires.network.stall(*from, *to, now + lasts);
                (&[*from, *to], *lasts)
            }
            Fault::Break { .. } => (&[], 0),
        };
        for rank in hindered {
            self.suffered[*rank as usize].hindered += lasts;
        }
        self.quiet = self.quiet.max(now + lasts);
    }

    fn is_over(&self) -> bool {
        (0..)
            .zip(&self.ranks)
            .all(|(number, rank)| rank.ending.is_some() || !self.health.is_alive(number))
    }

    /// Every surviving rank knows of a death within the promised time of it, or of the end of
    /// whatever else went wrong meanwhile. Except of the death of a rank that has said its
    /// goodbyes, or whose watchers have all ended: those take as long as a link takes to break.
    fn check_deaths(&self, now: u64) -> Result<(), String> {
        let size = self.ranks.len() as u32;
        let is_here =
            |rank: u32| self.health.is_alive(rank) && self.ranks[rank as usize].ending.is_none();
        for (dead, suffered) in (0..).zip(&self.suffered) {
            let Some(died) = suffered.died.filter(|_| !suffered.left) else { continue };
            if now <= self.quiet.max(died) + PROMISED || !links(dead, size).into_iter().any(is_here)
            {
                continue;
            }
            let unaware = (0..size)
                .find(|rank| is_here(*rank) && self.ranks[*rank as usize].judged.is_none());
            if let Some(rank) = unaware {
                let doing = self.ranks[rank as usize].doing();
                return Err(format!(
                    "rank {rank} {doing} and knows nothing 3 s after rank {dead} died at {died} ns"
                ));
            }
        }
        Ok(())
    }

    fn outcome(self) -> Outcome {
        let ranks = self.ranks.into_iter().zip(self.suffered);
        let mut right = 0;
        let fates = ranks.map(|(rank, Suffered { died, hindered, .. })| {
            right += rank.right;
            Fate {
                ending: rank.ending,
                ended: rank.ended,
                unheard: rank.unheard,
                verdict: rank.world.verdict().cloned(),
                hindered: died.is_none().then_some(hindered),
            }
        });
        Outcome { ranks: fates.collect(), right }
    }

    fn stuck(&self) -> String {
        let open = (0..)
            .zip(&self.ranks)
            .filter(|(number, rank)| self.health.is_alive(*number) && rank.ending.is_none());
        let names: Vec<String> =
            open.map(|(number, rank)| format!("rank {number} {}", rank.doing())).collect();
        let unread = self.wires.unread();
        format!("stuck for ever, with {unread} unread messages: {}", names.join("; "))
    }
}

const ELEMENT_BYTES: u64 = 8;
const EPOCH: u64 = 0x5eed;
/// What the promise allows from a death to the last rank's error.
const PROMISED: u64 = 3 * SECOND;
/// QUIC's idle timeout of 30 s, and the lane's patience with a broken link.
const LINK_BROKEN: u64 = 32_600 * MILLISECOND;
/// A deadlock is found after ten seconds, and is told within a few more.
const PATIENCE: u64 = 40 * SECOND;
