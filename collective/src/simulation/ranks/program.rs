//! What each rank of a job does, drawn from the seed; and how one of them does something else.

use std::sync::Arc;

use super::data::Spec;
use super::rank::links;
use crate::contract::Collective;
use crate::reduce::ReduceOp;
use crate::simulation::{MILLISECOND, Random};

/// Where a call is made. Ranks are those of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whom {
    World,
    /// The communicator that was split off, of this rank's colour.
    Part,
    /// A message from one rank to another, on the world.
    Pair {
        from: u32,
        to: u32,
    },
}

/// One thing that a rank's program does.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Start(Whom, Spec),
    /// Waits for the call that was started as the how-manieth.
    Wait(usize),
    /// Makes the communicator that was split off usable.
    Join,
    /// Does something else, for so many nanoseconds.
    Compute(u64),
}

/// The programs of all ranks.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// Which communicator each rank is split off into.
    pub(super) colours: Vec<u32>,
    pub(super) steps: Vec<Vec<Step>>,
}

/// How large a job is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) ranks: u32,
    pub(super) calls: u64,
    /// Elements of a segment; lengths are drawn around its multiples.
    pub(super) segment: u64,
}

impl Programs {
    pub(super) fn draw(random: &mut Random, size: Size) -> Self {
        let one_colour = random.chance(300);
        let colour = |random: &mut Random| if one_colour { 0 } else { random.below(2) as u32 };
        let colours: Vec<u32> = (0..size.ranks).map(|_| colour(random)).collect();
        let mut writers: Vec<Writer> = (0..size.ranks).map(|_| Writer::default()).collect();
        let split = Spec { splits: true, ..spec(Collective::AllGather, 2) };
        for writer in &mut writers {
            writer.start(random, Whom::World, split.clone(), true);
            writer.steps.push(Step::Join);
        }
        for _ in 0..size.calls {
            let blocks = random.chance(300);
            match random.below(10) {
                0..6 => {
                    let spec = draw(random, size.ranks, size.segment);
                    writers.iter_mut().for_each(|writer| {
                        writer.start(random, Whom::World, spec.clone(), blocks);
                    });
                }
                6..8 => {
                    let colour = random.below(2) as u32;
                    let of_colour = |rank: &u32| colours[*rank as usize] == colour;
                    let members: Vec<u32> = (0..size.ranks).filter(of_colour).collect();
                    if members.is_empty() {
                        continue;
                    }
                    let spec = draw(random, members.len() as u32, size.segment);
                    for rank in members {
                        let writer = &mut writers[rank as usize];
                        writer.start(random, Whom::Part, spec.clone(), blocks);
                    }
                }
                _ => {
                    let from = random.below(u64::from(size.ranks)) as u32;
                    let step = random.within(1..=u64::from(size.ranks) - 1) as u32;
                    let to = (from + step) % size.ranks;
                    let length = length(random, 1, size.segment);
                    let message = spec(Collective::Send, length);
                    for rank in [from, to] {
                        let pair = Whom::Pair { from, to };
                        writers[rank as usize].start(random, pair, message.clone(), blocks);
                    }
                }
            }
        }
        Self { colours, steps: writers.into_iter().map(Writer::finish).collect() }
    }

    /// Lets one rank do something else than the others; what, in words.
    pub(super) fn diverge(&mut self, random: &mut Random) -> String {
        let ranks = self.steps.len() as u32;
        let rank = random.below(u64::from(ranks)) as usize;
        let (colours, steps) = (&self.colours, &mut self.steps[rank]);
        // Not the split itself: without its communicator a rank has no more to say. And nothing
        // among ranks without control links: between them heartbeats compare nothing, goodbyes
        // are not heard, and of two that await each other's first message nobody knows.
        let linked = |from: u32, to: u32| links(from, ranks).contains(&to);
        let part = |from: u32| {
            let of_part =
                (0..ranks).filter(move |to| colours[*to as usize] == colours[from as usize]);
            of_part.filter(move |to| *to != from)
        };
        let part_is_linked = part(rank as u32).all(|to| linked(rank as u32, to));
        let is_heard = |step: &Step| match step {
            Step::Start(Whom::Pair { from, to }, _) => linked(*from, *to),
            Step::Start(Whom::Part, _) => part_is_linked,
            Step::Start(Whom::World, _) => true,
            _ => false,
        };
        let starts: Vec<usize> = (2..steps.len()).filter(|at| is_heard(&steps[*at])).collect();
        let Some(&at) = random.pick(&starts) else { return "nothing".into() };
        let later = starts.iter().find(|other| **other > at).copied();
        let what = match random.below(6) {
            0 => {
                // Its waits wait for other calls then, which is a divergence as well.
                steps.remove(at);
                "skips a call"
            }
            1 => {
                let again = steps[at].clone();
                steps.insert(at, again);
                "makes a call twice"
            }
            2 | 3 => {
                if let Some(later) = later {
                    steps.swap(at, later);
                }
                "swaps two calls"
            }
            _ => {
                if let Step::Start(_, spec) = &mut steps[at] {
                    change(random, spec);
                }
                "makes another call"
            }
        };
        // Every wait is for a call that was started before it.
        let mut started = 0;
        for step in steps {
            match step {
                Step::Start(..) => started += 1,
                Step::Wait(call) => *call = (*call).min(started - 1),
                _ => {}
            }
        }
        format!("rank {rank} {what} at step {at}")
    }

    /// How many calls all ranks make together.
    pub(super) fn calls(&self) -> u64 {
        let steps = self.steps.iter().flatten();
        steps.filter(|step| matches!(step, Step::Start(..))).count() as u64
    }

    /// Whether some two ranks make different calls on a communicator that both belong to.
    pub(super) fn differ(&self) -> bool {
        let calls = |rank: usize, whom: Whom| {
            self.steps[rank].iter().filter_map(move |step| match step {
                Step::Start(at, spec) if *at == whom => Some(spec),
                _ => None,
            })
        };
        let differ = |one: usize, other: usize, whom: Whom| {
            let (mut ours, mut theirs) = (calls(one, whom), calls(other, whom));
            loop {
                match (ours.next(), theirs.next()) {
                    (None, None) => return false,
                    (Some(ours), Some(theirs)) if ours.agrees(theirs) => {}
                    _ => return true,
                }
            }
        };
        let size = self.steps.len();
        let mut pairs = (0..size).flat_map(|from| (0..size).map(move |to| (from, to)));
        pairs.any(|(from, to)| {
            let pair = Whom::Pair { from: from as u32, to: to as u32 };
            from != to
                && (differ(from, to, Whom::World)
                    || differ(from, to, pair)
                    || self.colours[from] == self.colours[to] && differ(from, to, Whom::Part))
        })
    }
}

/// Writes one rank's program.
#[derive(Default)]
struct Writer {
    steps: Vec<Step>,
    started: usize,
    /// Calls that it has not waited for.
    outstanding: Vec<usize>,
}

impl Writer {
    fn start(&mut self, random: &mut Random, whom: Whom, spec: Spec, blocks: bool) {
        if random.chance(100) {
            self.steps.push(Step::Compute(random.within(1..=20 * MILLISECOND)));
        }
        let in_place = random.chance(500);
        self.steps.push(Step::Start(whom, Spec { in_place, ..spec }));
        self.outstanding.push(self.started);
        self.started += 1;
        if blocks {
            self.wait(self.outstanding.len() - 1);
        }
        while self.outstanding.len() >= MOST_OUTSTANDING || random.chance(100) {
            if self.outstanding.is_empty() {
                return;
            }
            let which = random.below(self.outstanding.len() as u64) as usize;
            self.wait(which);
        }
    }

    fn wait(&mut self, which: usize) {
        let call = self.outstanding.remove(which);
        self.steps.push(Step::Wait(call));
    }

    /// The rest is left to closing, but for messages: closing does not wait for them.
    fn finish(mut self) -> Vec<Step> {
        let starts = self.steps.iter().filter_map(|step| match step {
            Step::Start(whom, _) => Some(matches!(whom, Whom::Pair { .. })),
            _ => None,
        });
        let is_message: Vec<bool> = starts.collect();
        let messages = self.outstanding.into_iter().filter(|call| is_message[*call]);
        self.steps.extend(messages.map(Step::Wait));
        self.steps
    }
}

fn spec(collective: Collective, count: u64) -> Spec {
    Spec { collective, splits: false, op: None, count, counts: None, label: None, in_place: false }
}

/// Any collective of `ranks` ranks.
fn draw(random: &mut Random, ranks: u32, segment: u64) -> Spec {
    let root = random.below(u64::from(ranks)) as u32;
    let ranks = u64::from(ranks);
    let block = length(random, 1, segment).min(MOST_ELEMENTS / ranks);
    let mut drawn = match random.below(14) {
        0..4 => spec(Collective::AllReduce, length(random, ranks, segment)),
        4 => spec(Collective::ReduceScatter, block),
        5 => spec(Collective::AllGather, block),
        6 => {
            let lengths = (0..ranks).map(|_| random.below(2 * segment + 2));
            let mut end = 0;
            let ends: Arc<[u64]> = lengths
                .map(|length| {
                    end += length;
                    end
                })
                .collect();
            Spec { counts: Some(ends), ..spec(Collective::AllGatherV, end) }
        }
        7 | 8 => spec(Collective::Broadcast { root }, length(random, 1, segment)),
        9 => spec(Collective::Reduce { root }, length(random, 1, segment)),
        10 => spec(Collective::Gather { root }, block),
        11 => spec(Collective::Scatter { root }, block),
        12 => spec(Collective::AllToAll, block),
        _ => spec(Collective::Barrier, 0),
    };
    let reduces = matches!(
        drawn.collective,
        Collective::AllReduce | Collective::ReduceScatter | Collective::Reduce { .. }
    );
    drawn.op = reduces.then(|| random.pick(&OPS).copied()).flatten();
    drawn.label = random.chance(300).then(|| random.below(3));
    drawn
}

/// Elements around a boundary of chunks or segments.
fn length(random: &mut Random, ranks: u64, segment: u64) -> u64 {
    let boundary = match random.below(6) {
        0 => 0,
        1 => ranks,
        2 => segment,
        3 => ranks * segment,
        // Around the relay's eight, and beyond.
        4 => segment * random.within(7..=24),
        _ => ranks * segment * random.within(1..=4),
    };
    (boundary + random.below(3)).saturating_sub(1).min(MOST_ELEMENTS)
}

/// Makes another call of one.
fn change(random: &mut Random, spec: &mut Spec) {
    use Collective::*;
    match random.below(4) {
        0 => spec.label = Some(spec.label.map_or(7, |label| label + 1)),
        1 if !matches!(spec.collective, Barrier | AllGatherV) => spec.count += 1,
        2 if spec.op == Some(ReduceOp::Max) => spec.op = Some(ReduceOp::Sum),
        2 if spec.op.is_some() => spec.op = Some(ReduceOp::Max),
        _ => match &mut spec.collective {
            Broadcast { root } | Reduce { root } | Gather { root } | Scatter { root } => {
                *root = if *root == 0 { 1 } else { 0 };
            }
            Send => spec.count += 1,
            _ => *spec = self::spec(Broadcast { root: 0 }, spec.count + 1),
        },
    }
}

const OPS: [ReduceOp; 5] =
    [ReduceOp::Sum, ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Max, ReduceOp::Prod];
/// As many as the trainer's buckets.
const MOST_OUTSTANDING: usize = 8;
/// In large worlds calls stay short: what many elements could show, small worlds show.
const MOST_ELEMENTS: u64 = 2_000;
