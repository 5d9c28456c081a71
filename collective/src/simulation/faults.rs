//! What goes wrong, drawn from the seed, and what state the ranks are in.

use std::collections::VecDeque;

use super::random::Random;

/// One fault. Durations are in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process of a rank ends without a word.
    Die {
        /// Whose process.
        rank: u32,
        /// After how long a new process takes its place; None: never.
        back: Option<u64>,
    },
    /// A rank is not scheduled for a while.
    Freeze {
        /// Who sleeps.
        rank: u32,
        /// How long.
        lasts: u64,
    },
    /// One direction between two ranks carries nothing for a while.
    Cut {
        /// The sender.
        from: u32,
        /// The receiver.
        to: u32,
        /// How long.
        lasts: u64,
    },
    /// One direction between two ranks holds everything back for a while.
    Stall {
        /// The sender.
        from: u32,
        /// The receiver.
        to: u32,
        /// How long.
        lasts: u64,
    },
    /// The connections between two ranks end; both notice.
    Break {
        /// One of them.
        one: u32,
        /// The other.
        other: u32,
    },
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Fault::Die`] with a new process later.
    Restart,
    /// [`Fault::Die`] for good.
    Death,
    /// [`Fault::Freeze`].
    Freeze,
    /// [`Fault::Cut`], in one or both directions.
    Cut,
    /// [`Fault::Stall`].
    Stall,
    /// [`Fault::Break`].
    Break,
}

/// What a plan is drawn from.
#[derive(Clone, Debug)]
pub struct Appetite<'a> {
    /// How many ranks there are.
    pub ranks: u32,
    /// The faults come somewhere in the first so many events.
    pub events: u64,
    /// At most so many faults.
    pub most: u32,
    /// No freeze, cut, stall or absence is longer, in nanoseconds.
    pub longest: u64,
    /// Which kinds.
    pub kinds: &'a [Kind],
}

/// The faults of one run, in the order of the events at which they happen.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    faults: VecDeque<(u64, Fault)>,
}

impl FaultPlan {
    /// Draws a plan.
    pub fn draw(random: &mut Random, appetite: &Appetite) -> Self {
        let mut faults = Vec::new();
        for _ in 0..random.within(0..=u64::from(appetite.most)) {
            let event = random.within(1..=appetite.events.max(1));
            let Some(kind) = random.pick(appetite.kinds) else { break };
            let rank = random.below(u64::from(appetite.ranks)) as u32;
            let step = random.within(1..=u64::from(appetite.ranks).saturating_sub(1).max(1));
            let other = (rank + step as u32) % appetite.ranks.max(1);
            // Short ones are as likely as long ones.
            let scale = appetite.longest >> random.below(SCALES);
            let lasts = random.within(1..=scale.max(1));
            let fault = match kind {
                Kind::Restart => Fault::Die { rank, back: Some(lasts) },
                Kind::Death => Fault::Die { rank, back: None },
                Kind::Freeze => Fault::Freeze { rank, lasts },
                Kind::Cut => Fault::Cut { from: rank, to: other, lasts },
                Kind::Stall => Fault::Stall { from: rank, to: other, lasts },
                Kind::Break => Fault::Break { one: rank, other },
            };
            if matches!(kind, Kind::Cut) && random.chance(500) {
                faults.push((event, Fault::Cut { from: other, to: rank, lasts }));
            }
            faults.push((event, fault));
        }
        faults.sort_by_key(|(event, _)| *event);
        Self { faults: faults.into() }
    }

    /// The next fault that happens no later than at the event of this number; to be asked again
    /// until there is none.
    pub fn due(&mut self, event: u64) -> Option<Fault> {
        match self.faults.front() {
            Some((at, _)) if *at <= event => self.faults.pop_front().map(|(_, fault)| fault),
            _ => None,
        }
    }

    /// Nothing more goes wrong.
    pub fn stop(&mut self) {
        self.faults.clear();
    }

    /// Whether no fault is left.
    pub fn is_over(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Which ranks live, and which of them are frozen.
#[derive(Clone, Debug)]
pub struct Health {
    /// Until when each is frozen; None: dead.
    ranks: Vec<Option<u64>>,
}

/// What can be done with an event for a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fitness {
    /// It takes the event now.
    Fit,
    /// It takes the event then: schedule it again.
    Frozen {
        /// When it wakes.
        until: u64,
    },
    /// The event is lost.
    Dead,
}

impl Health {
    /// All ranks live.
    pub fn new(ranks: u32) -> Self {
        Self { ranks: vec![Some(0); ranks as usize] }
    }

    /// The state of a rank.
    pub fn fitness(&self, rank: u32, now: u64) -> Fitness {
        match self.ranks.get(rank as usize) {
            Some(Some(until)) if *until > now => Fitness::Frozen { until: *until },
            Some(Some(_)) => Fitness::Fit,
            _ => Fitness::Dead,
        }
    }

    /// Whether the rank is not dead; it may be frozen.
    pub fn is_alive(&self, rank: u32) -> bool {
        matches!(self.ranks.get(rank as usize), Some(Some(_)))
    }

    /// Freezes a rank that lives; a longer freeze under way stays.
    pub fn freeze(&mut self, rank: u32, until: u64) {
        if let Some(Some(frozen)) = self.ranks.get_mut(rank as usize) {
            *frozen = until.max(*frozen);
        }
    }

    /// The rank's process ends.
    pub fn die(&mut self, rank: u32) {
        if let Some(state) = self.ranks.get_mut(rank as usize) {
            *state = None;
        }
    }

    /// The rank has a new process.
    pub fn revive(&mut self, rank: u32) {
        if let Some(state) = self.ranks.get_mut(rank as usize) {
            *state = Some(0);
        }
    }
}

/// From a 2^-11th of the longest duration: a millisecond where that is two seconds.
const SCALES: u64 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 6] =
        [Kind::Restart, Kind::Death, Kind::Freeze, Kind::Cut, Kind::Stall, Kind::Break];

    #[test]
    fn a_plan_is_the_seeds_and_keeps_its_bounds() {
        let appetite = Appetite { ranks: 3, events: 100, most: 8, longest: 1_000, kinds: &ALL };
        let mut seen = 0;
        for seed in 0..200 {
            let mut plan = FaultPlan::draw(&mut Random::new(seed), &appetite);
            let again = FaultPlan::draw(&mut Random::new(seed), &appetite);
            assert_eq!(plan.faults, again.faults);
            assert!(plan.due(0).is_none());
            while let Some(fault) = plan.due(100) {
                seen += 1;
                match fault {
                    Fault::Die { rank, back } => assert!(rank < 3 && back.unwrap_or(0) <= 1_000),
                    Fault::Freeze { rank, lasts } => assert!(rank < 3 && lasts <= 1_000),
                    Fault::Cut { from, to, lasts } | Fault::Stall { from, to, lasts } => {
                        assert!(from < 3 && to < 3 && from != to && lasts <= 1_000);
                    }
                    Fault::Break { one, other } => assert!(one < 3 && other < 3 && one != other),
                }
            }
            assert!(plan.is_over());
        }
        assert!(seen > 400, "{seen}");
    }

    #[test]
    fn a_rank_freezes_wakes_dies_and_returns() {
        let mut health = Health::new(2);
        health.freeze(1, 50);
        health.freeze(1, 20);
        assert_eq!(health.fitness(1, 30), Fitness::Frozen { until: 50 });
        assert_eq!((health.fitness(1, 50), health.fitness(0, 0)), (Fitness::Fit, Fitness::Fit));
        health.die(1);
        health.freeze(1, 90);
        assert!(!health.is_alive(1) && health.fitness(1, 60) == Fitness::Dead);
        health.revive(1);
        assert_eq!(health.fitness(1, 60), Fitness::Fit);
    }
}
