//! The judge under the seeded scheduler: ranks that watch each other die and freeze, and links
//! delay, as `Control::beat` would see it.

use std::time::{Duration, Instant};

use super::Judge;
use crate::simulation::{
    Appetite, Fault, FaultPlan, Fitness, Health, Kind, MILLISECOND, Network, Quality, Random,
    SECOND, Scheduler, Transit, seeds, trace,
};

#[test]
fn the_dead_are_found_and_the_living_are_not() {
    seeds(&KEPT, 0..3_000, |seed| {
        let ranks = Random::new(seed).within(2..=8) as u32;
        Watch::new(seed, ranks).run()
    });
}

struct Watch {
    scheduler: Scheduler<Event>,
    network: Network<()>,
    health: Health,
    zero: Instant,
    ranks: Vec<Rank>,
}

struct Rank {
    judge: Judge,
    beat_sent: u64,
    /// From when on it counts each other rank's silence.
    heard: Vec<u64>,
    /// When it truly heard each other rank last, and whether it has declared that one dead since.
    spoke: Vec<(u64, bool)>,
    /// Until when it was frozen or its heartbeats were held back.
    hindered: u64,
    /// Until when it was frozen for long, if ever.
    stalled: Option<u64>,
    /// Until when it was last frozen.
    woke: u64,
}

enum Event {
    Transit(Transit<()>),
    Look(u32),
}

impl From<Transit<()>> for Event {
    fn from(transit: Transit<()>) -> Self {
        Self::Transit(transit)
    }
}

impl Watch {
    fn new(seed: u64, ranks: u32) -> Self {
        let mut scheduler = Scheduler::new(seed ^ 0x6c69_7665_6e65_7373);
        (0..ranks).for_each(|rank| scheduler.at(u64::from(rank), Event::Look(rank)));
        let zero = Instant::now();
        let most = scheduler.random().within(MILLISECOND..=LONGEST_DELAY / 2);
        let rank = || Rank {
            judge: Judge::new(Some(Duration::from_nanos(DEAD_AFTER)), zero),
            beat_sent: 0,
            heard: vec![0; ranks as usize],
            spoke: vec![(0, false); ranks as usize],
            hindered: 0,
            stalled: None,
            woke: 0,
        };
        Self {
            scheduler,
            network: Network::new(Quality {
                least: 1,
                most,
                slow_per_mille: 20,
                longest: LONGEST_DELAY,
                lost_per_mille: 0,
            }),
            health: Health::new(ranks),
            zero,
            ranks: (0..ranks).map(|_| rank()).collect(),
        }
    }

    fn run(mut self) -> Result<(), String> {
        let appetite = Appetite {
            ranks: self.ranks.len() as u32,
            events: 400 * self.ranks.len() as u64,
            most: 5,
            longest: 4 * SECOND,
            kinds: &[Kind::Death, Kind::Freeze, Kind::Freeze, Kind::Stall],
        };
        let mut plan = FaultPlan::draw(self.scheduler.random(), &appetite);
        let (mut count, mut quiet) = (0, 0);
        while let Some((now, event)) = self.scheduler.next() {
            count += 1;
            while let Some(fault) = plan.due(count) {
                quiet = self.suffer(now, fault).max(quiet);
            }
            let rank = match &event {
                Event::Look(rank) => *rank,
                Event::Transit(Transit::Datagram { to, .. }) => *to,
                Event::Transit(_) => continue,
            };
            match (self.health.fitness(rank, now), event) {
                (Fitness::Dead, _) => {}
                (Fitness::Frozen { until }, event) => self.scheduler.at(until, event),
                (Fitness::Fit, Event::Look(_)) => self.look(now, rank)?,
                (Fitness::Fit, Event::Transit(Transit::Datagram { from, .. })) => {
                    let rank = &mut self.ranks[rank as usize];
                    rank.heard[from as usize] = now;
                    rank.spoke[from as usize] = (now, false);
                }
                (Fitness::Fit, Event::Transit(_)) => {}
            }
            if plan.is_over() && now > quiet + 2 * DEAD_AFTER {
                return Ok(());
            }
        }
        // All are dead.
        Ok(())
    }

    fn suffer(&mut self, now: u64, fault: Fault) -> u64 {
        trace(|| format!("{now:>12} {fault:?}"));
        match fault {
            Fault::Die { rank, .. } => self.health.die(rank),
            Fault::Freeze { rank, lasts } => {
                let until = now + lasts;
                self.health.freeze(rank, until);
                let frozen = &mut self.ranks[rank as usize];
                frozen.hindered = frozen.hindered.max(until);
                frozen.woke = frozen.woke.max(until);
                if lasts > OWN_STALL + LOOK_EVERY {
                    frozen.stalled = frozen.stalled.max(Some(until));
                }
                return until;
            }
            Fault::Stall { from, to, lasts } => {
                self.network.stall(from, to, now + lasts);
                let held_back = &mut self.ranks[from as usize].hindered;
                *held_back = (*held_back).max(now + lasts);
                return now + lasts;
            }
            Fault::Cut { .. } | Fault::Break { .. } => {}
        }
        now
    }

    fn look(&mut self, now: u64, rank: u32) -> Result<(), String> {
        self.scheduler.after(LOOK_EVERY, Event::Look(rank));
        let at = |time| self.zero + Duration::from_nanos(time);
        let (all, me) = (self.ranks.len() as u32, rank as usize);
        let awake = self.ranks[me].judge.is_awake(at(now));
        for other in (0..all).filter(|other| *other != rank) {
            let it = other as usize;
            let heard = self.ranks[me].heard[it];
            if !awake {
                self.ranks[me].heard[it] = now;
            } else if self.ranks[me].judge.silence(at(heard), at(now)).is_some() {
                self.may_declare(now, rank, other)?;
                self.ranks[me].heard[it] = now;
                self.ranks[me].spoke[it].1 = true;
            }
            let (spoke, declared) = self.ranks[me].spoke[it];
            // A watcher that slept may begin to count when it wakes, and not later.
            let silent_since = spoke.max(self.ranks[me].woke);
            if !declared && now > silent_since + DEAD_AFTER + LOOK_EVERY {
                return Err(format!("rank {rank} has not noticed that rank {other} is silent"));
            }
        }
        if now >= self.ranks[me].beat_sent + HEARTBEAT {
            self.ranks[me].beat_sent = now;
            for other in (0..all).filter(|other| *other != rank) {
                self.network.datagram(&mut self.scheduler, rank, other, ());
            }
        }
        Ok(())
    }

    /// Whether what happened allows `rank` to declare `other` dead.
    fn may_declare(&self, now: u64, rank: u32, other: u32) -> Result<(), String> {
        if let Some(stalled) = self.ranks[rank as usize].stalled
            && now < stalled + DEAD_AFTER
        {
            return Err(format!("rank {rank} slept until {stalled}, and judged rank {other}"));
        }
        let first_beat = LOOK_EVERY + HEARTBEAT + LONGEST_DELAY;
        let well = self.ranks[other as usize].hindered + first_beat + OWN_STALL;
        if self.health.is_alive(other) && now > well {
            return Err(format!("rank {rank} declared rank {other} dead, which is well"));
        }
        Ok(())
    }
}

/// The defaults of `config`, and the ticks of `Control::beat`.
const HEARTBEAT: u64 = 500 * MILLISECOND;
const DEAD_AFTER: u64 = 2 * SECOND;
const LOOK_EVERY: u64 = 100 * MILLISECOND;
const OWN_STALL: u64 = 500 * MILLISECOND;
/// Three late heartbeats in a row stay below the limit.
const LONGEST_DELAY: u64 = 400 * MILLISECOND;
/// Seeds that once failed.
const KEPT: [u64; 0] = [];
