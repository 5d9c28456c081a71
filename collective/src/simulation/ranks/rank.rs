//! One simulated rank: its program, which calls as the engine would, and its control endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Event;
use super::data::{Part, Spec};
use super::lane::Lane;
use super::program::{Step, Whom};
use super::wires::{Control, Payload, Wires};
use crate::buffer::{self, Held};
use crate::contract::mix;
use crate::deadlock::REPORT_EVERY;
use crate::group::Group;
use crate::liveness::Judge;
use crate::rendezvous::watched;
use crate::simulation::{FlowId, MILLISECOND, SECOND, trace};
use crate::verdict::{Fault, Loss};
use crate::world::{WHOLE_WORLD, World};

pub(super) struct Rank {
    number: u32,
    pub(super) world: World,
    pub(super) lane: Lane,
    program: Program,
    /// The ranks of this rank's part, once it is split off.
    part: Vec<u32>,
    colour: u32,
    segment: u64,
    /// When each rank with a control link was last heard.
    heard: BTreeMap<u32, Instant>,
    judge: Judge,
    beat_sent: u64,
    still: Stillness,
    /// When its verdict came.
    pub(super) judged: Option<u64>,
    pub(super) ending: Option<Ending>,
    /// When its program ended.
    pub(super) ended: u64,
    /// Calls that returned Ok.
    pub(super) right: u64,
    /// The ranks with a control link that have not read that this one leaves, while it does.
    unread: BTreeSet<u32>,
    /// The ranks that have closed their links.
    closed: BTreeSet<u32>,
    /// Goodbyes that nobody had answered when closing gave up.
    pub(super) unheard: usize,
    /// Calls begun on each communicator, and the hash after them, as last seen.
    seen: BTreeMap<u64, (u64, u64)>,
}

/// How a rank's program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Every call, and closing, returned Ok.
    Well,
    /// Some call, or closing, returned the verdict.
    WithError,
}

struct Program {
    steps: Vec<Step>,
    at: usize,
    state: State,
    started: Vec<Started>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Going,
    /// Until a `Go`.
    Computing,
    /// For the call that was started as the how-manieth.
    Waiting(usize),
    /// For all calls of a communicator, before closing it.
    Flushing(u64),
    /// For the answers to its goodbyes.
    Draining,
    Ended,
}

struct Started {
    group: u64,
    part: Part,
    sequence: u64,
    held: Option<Held<Vec<u64>>>,
}

/// Since when nothing has moved.
struct Stillness {
    moved: u64,
    since: u64,
    reported: u64,
}

impl Rank {
    pub(super) fn new(
        number: u32,
        world: World,
        steps: Vec<Step>,
        colours: &[u32],
        segment: u64,
        wires: &Wires,
    ) -> Self {
        let ranks = colours.len() as u32;
        let colour = colours[number as usize];
        let of_colour = |rank: &u32| colours[*rank as usize] == colour;
        let links = links(number, ranks);
        Self {
            number,
            world,
            lane: Lane::new(number),
            program: Program { steps, at: 0, state: State::Going, started: Vec::new() },
            part: (0..ranks).filter(of_colour).collect(),
            colour,
            segment,
            heard: links.into_iter().map(|link| (link, wires.now())).collect(),
            judge: Judge::new(Some(DEAD_AFTER), wires.now()),
            beat_sent: 0,
            still: Stillness { moved: 0, since: 0, reported: 0 },
            judged: None,
            ending: None,
            ended: 0,
            right: 0,
            unread: BTreeSet::new(),
            closed: BTreeSet::new(),
            unheard: 0,
            seen: BTreeMap::new(),
        }
    }

    /// The program goes on, after computing.
    pub(super) fn go(&mut self) {
        if self.program.state == State::Computing {
            self.program.state = State::Going;
        }
    }

    /// Something arrived on a flow.
    pub(super) fn take(&mut self, wires: &mut Wires, flow: FlowId) {
        let (from, _) = wires.network.ends_of(flow);
        match wires.deliver(flow) {
            Some(Payload::Data(message)) => {
                let Some(key) = wires.data_flow(flow) else { return };
                self.lane.arrived(&self.world, wires, (flow, key), message);
            }
            Some(Payload::Control(message)) => {
                self.heard.insert(from, wires.now());
                self.obey(wires, from, message);
            }
            Some(Payload::Beat(_)) | None => {}
        }
    }

    pub(super) fn hear(&mut self, wires: &Wires, from: u32, payload: Payload) {
        if let Payload::Beat(standings) = payload {
            self.heard.insert(from, wires.now());
            self.world.note_standings(from, standings);
        }
    }

    fn obey(&mut self, wires: &mut Wires, from: u32, message: Control) {
        match message {
            Control::Goodbye { group, calls, hash } => {
                self.world.note_goodbye(from, group, calls, hash);
            }
            Control::Leave => {
                self.world.note_left(from);
                wires.post(self.number, from, Control::LeaveRead);
            }
            Control::LeaveRead => _ = self.unread.remove(&from),
            Control::Stuck(stuck) => self.world.note_stuck(from, stuck, wires.now()),
            Control::Verdict(verdict) => self.world.settle(verdict.printable()),
        }
    }

    /// A rank has closed its links.
    pub(super) fn peer_closed(&mut self, wires: &mut Wires, peer: u32) {
        self.closed.insert(peer);
        self.unread.remove(&peer);
        self.lane.peer_closed(&self.world, wires, peer);
    }

    /// The data link to a rank has broken, and the lane has waited for another verdict in vain.
    pub(super) fn link_broken(&mut self, peer: u32) {
        if self.world.has_left(peer) {
            if self.lane.awaits(peer) {
                self.world.lose(peer, Loss::Unread { by: self.world.rank });
            }
        } else {
            self.world.raise(peer, Fault::LinkDown { problem: "it broke".into() });
        }
    }

    /// The time to wait for answers is up.
    pub(super) fn drain_limit(&mut self) {
        if self.program.state == State::Draining {
            self.unheard = self.lane.unanswered + self.unread.len();
            self.lane.unanswered = 0;
            self.unread.clear();
        }
    }

    /// What `Control::beat` and the lane's watch do now and then.
    pub(super) fn look(&mut self, wires: &mut Wires) {
        let now = wires.now();
        let awake = self.judge.is_awake(now);
        for (link, heard) in &mut self.heard {
            if !awake {
                *heard = now;
            } else if self.judge.silence(*heard, now).is_some() {
                *heard = now;
                if !self.world.has_left(*link) {
                    let silence = now.saturating_duration_since(*heard);
                    self.world.lose(*link, Loss::silent(silence, None));
                }
            }
        }
        let time = wires.scheduler.now();
        if time >= self.beat_sent + HEARTBEAT {
            self.beat(wires);
        }
        self.look_for_deadlock(wires, time);
        wires.scheduler.after(LOOK_EVERY, Event::Look(self.number));
    }

    pub(super) fn beat(&mut self, wires: &mut Wires) {
        self.beat_sent = wires.scheduler.now();
        let standings = self.world.standings();
        for link in self.heard.keys() {
            wires.beat(self.number, *link, standings.clone());
        }
    }

    fn look_for_deadlock(&mut self, wires: &mut Wires, time: u64) {
        if !self.lane.is_busy() || self.lane.moved != self.still.moved {
            (self.still.moved, self.still.since) = (self.lane.moved, time);
        }
        let report_every = REPORT_EVERY.as_nanos() as u64;
        if time - self.still.since < LATE_AFTER || time - self.still.reported < report_every {
            return;
        }
        if let Some(stuck) = self.world.stuck() {
            self.still.reported = time;
            match self.world.collector() {
                own if own == self.number => self.world.note_stuck(own, stuck, wires.now()),
                collector => wires.post(self.number, collector, Control::Stuck(stuck)),
            }
        }
    }

    /// After every event: ends what a verdict ends, and lets the program go on as far as it can.
    pub(super) fn settle(&mut self, wires: &mut Wires) {
        loop {
            self.note_verdict(wires);
            self.collect();
            if !self.proceed(wires) {
                break;
            }
        }
        self.note_verdict(wires);
        self.check_monotony();
    }

    /// Passes a verdict on, once, and lets go of all calls.
    fn note_verdict(&mut self, wires: &mut Wires) {
        let Some(verdict) = self.world.verdict() else { return };
        if self.judged.is_some() {
            return;
        }
        let now = wires.scheduler.now();
        trace(|| format!("{now:>12} rank {} has {verdict:?}", self.number));
        self.judged = Some(now);
        for link in self.heard.keys() {
            wires.post(self.number, *link, Control::Verdict(verdict.clone()));
        }
        self.lane.abort(&self.world);
    }

    /// Checks the results of the calls that have ended.
    fn collect(&mut self) {
        for (group, sequence) in self.lane.ended.drain(..) {
            let is_it = |call: &&mut Started| (call.group, call.sequence) == (group, sequence);
            let call = self.program.started.iter_mut().find(is_it).unwrap();
            let held = call.held.take().expect("a call ended twice");
            let (_, parts) = call.part.buffer();
            let buffer = held.take();
            let (output, wanted) = (&buffer[parts.output], call.part.output());
            let wrong = (0..wanted.len()).find(|at| output[*at] != wanted[*at]);
            assert!(
                wrong.is_none(),
                "call #{sequence} on {group}, {:?}, returned Ok on rank {} with a wrong element \
                 {wrong:?}",
                call.part,
                self.number
            );
            self.right += 1;
        }
    }

    /// One step of the program; false if it waits or has ended.
    fn proceed(&mut self, wires: &mut Wires) -> bool {
        match self.program.state {
            State::Ended | State::Computing => return false,
            State::Waiting(_) | State::Flushing(_) | State::Draining if self.judged.is_some() => {
                self.end(wires, Ending::WithError);
            }
            State::Waiting(call) => {
                if self.program.started[call].held.is_some() {
                    return false;
                }
                self.go_on();
            }
            State::Flushing(group) => {
                if self.busy_group(group).is_some() {
                    return false;
                }
                self.go_on();
                self.close(wires, group);
                match group {
                    WHOLE_WORLD => self.leave(wires),
                    _ => self.flush(WHOLE_WORLD),
                }
            }
            State::Draining => {
                if self.lane.unanswered > 0 || !self.unread.is_empty() {
                    return false;
                }
                self.end(wires, Ending::Well);
            }
            State::Going => {
                let step = self.program.steps.get(self.program.at).cloned();
                self.program.at += 1;
                match step {
                    Some(Step::Start(whom, spec)) => self.start(wires, whom, spec),
                    Some(Step::Wait(call)) => {
                        let Started { group, sequence, .. } = self.program.started[call];
                        self.wait(group, sequence);
                        self.program.state = State::Waiting(call);
                    }
                    Some(Step::Join) => {
                        let part = self.part.clone();
                        let place = part.iter().position(|rank| *rank == self.number).unwrap();
                        let group = Group::new(
                            self.world.epoch,
                            part_id(self.colour),
                            " on a part",
                            part,
                            place as u32,
                        );
                        self.world.add_group(group);
                        // Readers of flows that came early may go on.
                        self.lane.pump(&self.world, wires, part_id(self.colour));
                    }
                    Some(Step::Compute(time)) => {
                        self.program.state = State::Computing;
                        wires.scheduler.after(time, Event::Go(self.number));
                    }
                    None => self.flush(part_id(self.colour)),
                }
            }
        }
        true
    }

    fn start(&mut self, wires: &mut Wires, whom: Whom, mut spec: Spec) {
        let group = match whom {
            Whom::World => WHOLE_WORLD,
            Whom::Part => part_id(self.colour),
            Whom::Pair { from, to } => self.world.pair(WHOLE_WORLD, from, to),
        };
        let Some(members) = self.world.members(group) else {
            return self.end(wires, Ending::WithError);
        };
        let size = members.len() as u32;
        spec.keep_root_below(size);
        let Ok(planned) = self.world.begin_planned(group, &spec.shape()) else {
            self.note_verdict(wires);
            return self.end(wires, Ending::WithError);
        };
        let place = members.iter().position(|member| *member == self.number).unwrap() as u32;
        let part = Part { spec, size, place, hash: planned.begun.hash };
        let (vector, parts) = part.buffer();
        let (held, lent) = buffer::hold(vector, parts);
        let sequence = planned.begun.contract.sequence;
        self.program.started.push(Started { group, part, sequence, held: Some(held) });
        self.lane.queue(&self.world, wires, planned, lent, self.segment);
    }

    /// The program's thread waits.
    fn wait(&self, group: u64, sequence: u64) {
        std::mem::forget(self.world.note_waiting(group, sequence));
    }

    /// The program's thread waits no longer.
    fn go_on(&mut self) {
        drop(self.world.note_waiting(WHOLE_WORLD, 0));
        self.program.state = State::Going;
    }

    /// Waits for the calls of a communicator that is to be closed.
    /// The communicator or one of its pairs, if a call is under way there.
    fn busy_group(&self, group: u64) -> Option<u64> {
        let mut groups = std::iter::once(group).chain(self.world.pairs(group));
        groups.find(|group| !self.world.is_idle(*group))
    }

    fn flush(&mut self, group: u64) {
        if let Some(group) = self.busy_group(group) {
            let last = self.world.calls(group).map_or(0, |(calls, _)| calls.saturating_sub(1));
            self.wait(group, last);
        }
        self.program.state = State::Flushing(group);
    }

    fn close(&mut self, wires: &mut Wires, group: u64) {
        if self.world.verdict().is_some() {
            return;
        }
        let mut goodbyes = self.world.close_group(group);
        for goodbye in &goodbyes {
            let (group, calls, hash) = (goodbye.group, goodbye.calls, goodbye.hash);
            for member in goodbye.members.iter().filter(|member| **member != self.number) {
                wires.post(self.number, *member, Control::Goodbye { group, calls, hash });
            }
        }
        goodbyes.retain(|goodbye| goodbye.group != WHOLE_WORLD);
        self.lane.say_goodbye(&self.world, wires, &goodbyes);
        self.note_verdict(wires);
    }

    /// Waits for the peers' readers.
    fn leave(&mut self, wires: &mut Wires) {
        if self.judged.is_none() {
            for link in self.heard.keys().filter(|link| !self.closed.contains(link)) {
                wires.post(self.number, *link, Control::Leave);
                self.unread.insert(*link);
            }
            self.lane.close(&self.world, wires);
            wires.scheduler.after(DRAIN_LIMIT, Event::DrainLimit(self.number));
        }
        self.program.state = State::Draining;
    }

    fn end(&mut self, wires: &Wires, ending: Ending) {
        let now = wires.scheduler.now();
        trace(|| format!("{now:>12} rank {} ends: {ending:?}", self.number));
        self.program.state = State::Ended;
        self.ending = Some(ending);
        self.ended = now;
    }

    /// Whether it has said its goodbyes.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.program.state, State::Draining | State::Ended)
    }

    /// What it does, for a report.
    pub(super) fn doing(&self) -> String {
        let Program { at, state, steps, started, .. } = &self.program;
        let call = match state {
            State::Waiting(call) => format!("{:?}", started[*call].part.spec),
            _ => String::new(),
        };
        format!("is {state:?} at step {at} of {}, {call}", steps.len())
    }

    /// Calls are numbered upwards, and a number keeps its hash.
    fn check_monotony(&mut self) {
        for group in [WHOLE_WORLD, part_id(self.colour)] {
            let Some(now) = self.world.calls(group) else { continue };
            if let Some(before) = self.seen.insert(group, now) {
                assert!(before.0 < now.0 || before == now, "{before:x?} became {now:x?}");
            }
        }
    }
}

/// The ranks that `rank` has control links to: those it watches, and rank 0.
pub(super) fn links(rank: u32, ranks: u32) -> Vec<u32> {
    if rank == 0 {
        return (1..ranks).collect();
    }
    let mut links = watched(rank, ranks);
    if !links.contains(&0) {
        links.push(0);
    }
    links
}

fn part_id(colour: u32) -> u64 {
    mix(u64::from(colour) + 1)
}

/// The defaults of `config`, and the ticks of `Control::beat` and of the lane.
const HEARTBEAT: u64 = 500 * MILLISECOND;
const DEAD_AFTER: Duration = Duration::from_secs(2);
const LATE_AFTER: u64 = 10 * SECOND;
const LOOK_EVERY: u64 = 100 * MILLISECOND;
const DRAIN_LIMIT: u64 = SECOND;
