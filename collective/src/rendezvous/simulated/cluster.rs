//! A cluster of processes in virtual time: connections, heartbeats, faults, and who restarts whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::process::{FIRST_PORT, Link, Process, Role, Target, leaf_of};
use crate::control::endpoint::Message;
use crate::error::Result as Outcome;
use crate::liveness::Judge;
use crate::rendezvous::attending::{self, Attending};
use crate::rendezvous::gathering::{self, Gathering};
use crate::rendezvous::{Entry, Knock, Meeting, watched};
use crate::simulation::{
    Appetite, Delivery, Fault, FaultPlan, Fitness, FlowId, Health, Kind, MILLISECOND, Network,
    Quality, Random, SECOND, Scheduler, Transit, trace,
};
use crate::trust::hello::{Again, Answer, DialError, Hello, Purpose};

/// What a run is drawn from.
pub(super) struct Shape<'a> {
    pub(super) size: u32,
    /// Second processes of ranks other than 0.
    pub(super) impostors: u32,
    pub(super) faults: u32,
    /// Within how long all processes start.
    pub(super) spread: u64,
    pub(super) quality: Quality,
    pub(super) kinds: &'a [Kind],
}

/// A process has a slot, which is its address too; a new process of a rank takes the old one's.
pub(super) struct Cluster {
    size: u32,
    scheduler: Scheduler<Event>,
    network: Network<Word>,
    plan: FaultPlan,
    health: Health,
    processes: Vec<Process>,
    connections: Vec<Connection>,
    /// The connection of a flow, and which of its sides receives.
    flows: BTreeMap<FlowId, (usize, usize)>,
    ledger: Ledger,
    /// Worlds that have lost a rank.
    doomed: BTreeSet<u64>,
    /// When the last fault will have passed.
    quiet: u64,
    /// When time began.
    zero: Instant,
    /// Something changed that may have ended the run.
    changed: bool,
}

/// Side 0 dialled.
struct Connection {
    slots: [u32; 2],
    incarnations: [u128; 2],
    /// What each side sends on.
    flows: [FlowId; 2],
    /// Which side has closed it.
    closed: [bool; 2],
    /// Which side has read its end.
    ended: [bool; 2],
    /// When a heartbeat last reached each side's host, whether its process ran or not.
    reached: [u64; 2],
}

#[derive(Clone)]
enum Word {
    Hello(Box<Hello>),
    Answer(Answer),
    Message(Message),
    Beat { connection: usize },
}

enum Event {
    Transit(Transit<Word>),
    Start {
        slot: u32,
        life: u32,
    },
    /// The state machine's timer.
    Timer {
        slot: u32,
        life: u32,
    },
    /// Heartbeats are due, and a look at who is silent.
    Look {
        slot: u32,
        life: u32,
    },
    Dial {
        slot: u32,
        life: u32,
        target: Target,
    },
    DialLimit {
        slot: u32,
        life: u32,
        connection: usize,
    },
    /// Its world has lost a rank: it ends with an error.
    Exit {
        slot: u32,
        life: u32,
    },
    Heal {
        from: u32,
        to: u32,
    },
}

impl From<Transit<Word>> for Event {
    fn from(transit: Transit<Word>) -> Self {
        Self::Transit(transit)
    }
}

type Step = Result<(), String>;

impl Cluster {
    pub(super) fn new(seed: u64, shape: &Shape) -> Self {
        let zero = Instant::now();
        let mut scheduler = Scheduler::new(seed ^ 0x6d65_6574_696e_6721);
        let random = scheduler.random();
        let slots = shape.size + shape.impostors;
        let rank_of = |slot, random: &mut Random| match slot < shape.size {
            true => slot,
            false => random.within(1..=u64::from(shape.size - 1)) as u32,
        };
        let processes: Vec<Process> = (0..slots)
            .map(|slot| Process::new(rank_of(slot, random), slot, slot >= shape.size, zero))
            .collect();
        // Half of the runs are hurt while the ranks meet, the others at any time.
        let per_slot = if random.chance(500) { WHILE_MEETING } else { AT_ANY_TIME };
        let appetite = Appetite {
            ranks: slots,
            events: per_slot * u64::from(slots),
            most: shape.faults,
            longest: 6 * SECOND,
            kinds: shape.kinds,
        };
        let plan = FaultPlan::draw(random, &appetite);
        for slot in 0..slots {
            let start = scheduler.random().within(0..=shape.spread);
            scheduler.at(start, Event::Start { slot, life: 0 });
        }
        Self {
            size: shape.size,
            scheduler,
            network: Network::new(shape.quality),
            plan,
            health: Health::new(slots),
            processes,
            connections: Vec::new(),
            flows: BTreeMap::new(),
            ledger: Ledger::default(),
            doomed: BTreeSet::new(),
            quiet: shape.spread,
            zero,
            changed: false,
        }
    }

    /// Runs until all have met, or each has its error where a rank is gone for good.
    pub(super) fn run(mut self) -> Step {
        let mut count = 0;
        while let Some((now, event)) = self.scheduler.next() {
            count += 1;
            while let Some(fault) = self.plan.due(count) {
                self.suffer(fault);
            }
            self.handle(now, event)?;
            if (self.changed || count % CHECK_EVERY == 0) && self.plan.is_over() {
                self.changed = false;
                if now >= self.quiet && (self.have_met() || self.have_failed()) {
                    return Ok(());
                }
                let patience = if self.is_hopeless() { TO_GIVE_UP } else { TO_MEET };
                if now > self.quiet + patience {
                    return Err(format!("no world {} s after the last fault", patience / SECOND));
                }
            }
        }
        // Where the last ones died, nothing is left to happen.
        if self.have_failed() { Ok(()) } else { Err("nothing happens any more".into()) }
    }

    /// All ranks are in one world, and none of them has ended.
    fn have_met(&self) -> bool {
        let mut epochs = BTreeMap::<u64, BTreeSet<u32>>::new();
        for process in &self.processes {
            if let Role::Running { epoch } = process.role {
                epochs.entry(epoch).or_default().insert(process.rank);
            }
        }
        epochs
            .iter()
            .any(|(epoch, ranks)| ranks.len() == self.size as usize && !self.doomed.contains(epoch))
    }

    /// No world can be any more, and every process knows.
    fn have_failed(&self) -> bool {
        self.is_hopeless()
            && self.processes.iter().all(|p| matches!(p.role, Role::Failed | Role::Lost))
    }

    /// A rank has no process, and never will.
    fn is_hopeless(&self) -> bool {
        let gone = |rank| {
            let mut of_rank = self.processes.iter().filter(|process| process.rank == rank);
            of_rank.all(|p| match p.role {
                Role::Lost => true,
                Role::Failed => p.is_impostor,
                _ => false,
            })
        };
        (0..self.size).any(gone)
    }

    fn suffer(&mut self, fault: Fault) {
        let now = self.scheduler.now();
        let mut until = now;
        trace(|| format!("{:>9.4} {fault:?}", seconds(now)));
        match fault {
            Fault::Die { rank: slot, back } => {
                if !self.health.is_alive(slot) {
                    return;
                }
                self.health.die(slot);
                self.network.abandon_all_of(slot);
                let is_back = back.is_some();
                let process = &mut self.processes[slot as usize];
                process.clear(if is_back { Role::Starting } else { Role::Lost });
                if let Some(back) = back {
                    until = now + back;
                    let life = process.life;
                    self.scheduler.at(until, Event::Start { slot, life });
                }
                self.changed = true;
            }
            Fault::Freeze { rank: slot, lasts } => {
                until = now + lasts;
                self.health.freeze(slot, until);
            }
            Fault::Cut { from, to, lasts } => {
                until = now + lasts;
                self.network.cut(from, to);
                self.scheduler.at(until, Event::Heal { from, to });
            }
            Fault::Stall { from, to, lasts } => {
                until = now + lasts;
                self.network.stall(from, to, until);
            }
            Fault::Break { one, other } => {
                for connection in &self.connections {
                    if connection.slots == [one, other] || connection.slots == [other, one] {
                        for flow in connection.flows {
                            self.network.close(&mut self.scheduler, flow);
                        }
                    }
                }
            }
        }
        self.quiet = self.quiet.max(until).max(now);
    }

    fn handle(&mut self, now: u64, event: Event) -> Step {
        let slot = match &event {
            Event::Heal { from, to } => {
                self.network.heal(&mut self.scheduler, *from, *to);
                return Ok(());
            }
            Event::Start { slot, life } => {
                if self.processes[*slot as usize].life == *life {
                    self.start(*slot);
                }
                return Ok(());
            }
            Event::Transit(Transit::Credited(_)) => return Ok(()),
            Event::Transit(Transit::Arrived(flow)) => self.network.ends_of(*flow).1,
            Event::Transit(Transit::Datagram { to, payload, .. }) => {
                if let Word::Beat { connection } = payload {
                    let connection = &mut self.connections[*connection];
                    connection.reached[connection.side(*to)] = now;
                }
                *to
            }
            Event::Timer { slot, life }
            | Event::Look { slot, life }
            | Event::Dial { slot, life, .. }
            | Event::DialLimit { slot, life, .. }
            | Event::Exit { slot, life } => {
                if self.processes[*slot as usize].life != *life {
                    return Ok(());
                }
                *slot
            }
        };
        match self.health.fitness(slot, now) {
            Fitness::Frozen { until } => self.scheduler.at(until, event),
            Fitness::Fit => return self.take(slot, event),
            Fitness::Dead => {
                if let Event::Transit(Transit::Arrived(flow)) = event {
                    self.network.deliver(flow);
                }
            }
        }
        Ok(())
    }

    /// A process that runs takes an event.
    fn take(&mut self, slot: u32, event: Event) -> Step {
        let now = self.scheduler.now();
        match event {
            Event::Transit(Transit::Arrived(flow)) => {
                let Some(delivery) = self.network.deliver(flow) else { return Ok(()) };
                let (id, side) = self.flows[&flow];
                if self.connections[id].closed[side] {
                    return Ok(());
                }
                match delivery {
                    Delivery::End => self.read_end(slot, id, side),
                    Delivery::Payload(Word::Hello(hello)) => self.greeted(slot, id, *hello),
                    Delivery::Payload(Word::Answer(answer)) => self.answered(slot, id, answer),
                    Delivery::Payload(Word::Message(message)) => self.read(slot, id, message),
                    Delivery::Payload(Word::Beat { .. }) => Ok(()),
                }
            }
            Event::Transit(Transit::Datagram { payload: Word::Beat { connection }, .. }) => {
                let links = &mut self.processes[slot as usize].links;
                if let Some(link) = links.values_mut().find(|l| l.connection == connection) {
                    link.heard = now;
                }
                Ok(())
            }
            Event::Timer { .. } => self.timer(slot),
            Event::Look { .. } => self.look(slot),
            Event::Dial { target, .. } => {
                self.dial(slot, target);
                Ok(())
            }
            Event::DialLimit { connection, .. } => {
                self.undialled(slot, connection, DialError::Retry("no answer".into()))
            }
            Event::Exit { .. } => {
                self.leave(slot, "its world lost a rank", true);
                Ok(())
            }
            Event::Transit(_) | Event::Start { .. } | Event::Heal { .. } => Ok(()),
        }
    }

    fn start(&mut self, slot: u32) {
        let now = self.now();
        self.health.revive(slot);
        let bits = [self.scheduler.random().bits(), self.scheduler.random().bits()];
        let incarnation = u128::from(bits[0]) << 64 | u128::from(bits[1]);
        let process = &mut self.processes[slot as usize];
        process.life += 1;
        process.hello.incarnation = incarnation;
        process.judge = Judge::new(Some(DEAD_AFTER), now);
        process.beat_sent = 0;
        let (rank, life, hello) = (process.rank, process.life, process.hello.clone());
        let at = self.scheduler.now();
        trace(|| format!("{:>9.4} slot {slot}, rank {rank}: starts", seconds(at)));
        let mut actions = Vec::new();
        if rank == 0 {
            let mut epochs = Random::new(bits[0] ^ bits[1]);
            let terms = gathering::Terms {
                size: self.size,
                version: hello.version.clone(),
                settings: vec![("ALLFOLD_WORLD_SIZE".into(), "n".into())],
                heartbeat: HEARTBEAT,
                connect_timeout: CONNECT_TIMEOUT,
                place: "rank-0:1000".into(),
                rank_0: address_of(0),
            };
            let own = Entry {
                rank,
                host: hello.host.clone(),
                pid: hello.pid,
                incarnation,
                address: None,
                control_port: FIRST_PORT,
                lane_port: 1,
                leaf: leaf_of(&hello),
            };
            let draw: Box<dyn FnMut() -> Outcome<u64>> = Box::new(move || Ok(epochs.bits()));
            let gathering = Gathering::new(terms, own, draw, now);
            self.processes[slot as usize].role = Role::Gathering(Box::new(gathering));
        } else {
            let terms = attending::Terms {
                rank,
                size: self.size,
                connect_timeout: CONNECT_TIMEOUT,
                place: "rank-0:1000".into(),
            };
            let (attending, first) = Attending::new(terms, now);
            self.processes[slot as usize].role = Role::Attending(Box::new(attending));
            actions = first;
        }
        self.scheduler.after(0, Event::Look { slot, life });
        for action in actions {
            // The first action is to look for rank 0, which cannot fail.
            let _ = self.attending_acts(slot, action, &mut Vec::new());
        }
        self.set_timer(slot);
    }

    /// The process ends, and says so to whom it still can.
    fn leave(&mut self, slot: u32, why: &str, again: bool) {
        let at = self.scheduler.now();
        let rank = self.processes[slot as usize].rank;
        trace(|| format!("{:>9.4} slot {slot}, rank {rank}: ends: {why}", seconds(at)));
        for id in 0..self.connections.len() {
            let connection = &mut self.connections[id];
            if connection.slots.contains(&slot) {
                let side = connection.side(slot);
                if !std::mem::replace(&mut connection.closed[side], true) {
                    let flow = connection.flows[side];
                    // Peers may or may not be given the time to read everything.
                    if self.scheduler.random().chance(700) {
                        self.network.end(&mut self.scheduler, flow);
                    } else {
                        self.network.close(&mut self.scheduler, flow);
                    }
                }
            }
        }
        let again = again && !self.processes[slot as usize].is_impostor;
        let process = &mut self.processes[slot as usize];
        process.clear(if again { Role::Starting } else { Role::Failed });
        let life = process.life;
        if again {
            let pause = self.scheduler.random().within(MILLISECOND..=SECOND);
            self.scheduler.after(pause, Event::Start { slot, life });
        }
        self.changed = true;
    }

    /// The machine's timer has come.
    fn timer(&mut self, slot: u32) -> Step {
        let process = &mut self.processes[slot as usize];
        if process.timer > self.scheduler.now() {
            return Ok(());
        }
        process.timer = 0;
        match &process.role {
            Role::Gathering(gathering) => {
                let asked: Vec<(u32, u64)> = gathering
                    .asked()
                    .filter_map(|rank| Some((rank, process.links.get(&rank)?.heard)))
                    .collect();
                for (rank, heard) in asked {
                    let at = self.zero + Duration::from_nanos(heard);
                    self.gathering_takes(slot, gathering::Event::Heard { rank, at })?;
                }
                self.gathering_takes(slot, gathering::Event::Time)
            }
            Role::Attending(_) => self.attending_takes(slot, attending::Event::Time),
            _ => Ok(()),
        }
    }

    fn set_timer(&mut self, slot: u32) {
        let process = &mut self.processes[slot as usize];
        let wake = match &process.role {
            Role::Gathering(gathering) => gathering.wake(),
            Role::Attending(attending) => attending.wake(),
            _ => return,
        };
        let at = wake.saturating_duration_since(self.zero).as_nanos() as u64;
        if process.timer != at {
            process.timer = at;
            let life = process.life;
            self.scheduler.at(at, Event::Timer { slot, life });
        }
    }

    /// What `Control::beat` does at every tick.
    fn look(&mut self, slot: u32) -> Step {
        let (now, at) = (self.now(), self.scheduler.now());
        let process = &mut self.processes[slot as usize];
        if !process.is_up() {
            return Ok(());
        }
        let life = process.life;
        self.scheduler.after(LOOK_EVERY, Event::Look { slot, life });
        let awake = process.judge.is_awake(now);
        let mut silent = Vec::new();
        for (rank, link) in &mut process.links {
            let heard = self.zero + Duration::from_nanos(link.heard);
            if !awake {
                link.heard = at;
            } else if process.judge.silence(heard, now).is_some() {
                link.heard = at;
                silent.push((*rank, link.connection));
            }
        }
        if at >= process.beat_sent + HEARTBEAT.as_nanos() as u64 {
            process.beat_sent = at;
            self.send_beats(slot);
        }
        for (rank, link) in silent {
            self.ended(slot, rank, link, "silent")?;
        }
        Ok(())
    }

    fn send_beats(&mut self, slot: u32) {
        for link in self.processes[slot as usize].links.values() {
            let connection = &self.connections[link.connection];
            let side = connection.side(slot);
            if !connection.closed[side] && !connection.ended[side] {
                let (to, beat) =
                    (connection.slots[1 - side], Word::Beat { connection: link.connection });
                self.network.datagram(&mut self.scheduler, slot, to, beat);
            }
        }
    }

    fn dial(&mut self, slot: u32, target: Target) {
        let process = &self.processes[slot as usize];
        let mut hello = process.hello.clone();
        let to = match target {
            Target::RankZero => 0,
            Target::Watch { epoch, slot, .. } => {
                hello.purpose = Purpose::Watch { epoch };
                slot
            }
        };
        let life = process.life;
        let flows = [self.network.open(slot, to, u32::MAX), self.network.open(to, slot, u32::MAX)];
        let id = self.connections.len();
        self.connections.push(Connection {
            slots: [slot, to],
            incarnations: [hello.incarnation, 0],
            flows,
            closed: [false; 2],
            ended: [false; 2],
            reached: [0; 2],
        });
        self.flows.extend([(flows[0], (id, 1)), (flows[1], (id, 0))]);
        self.processes[slot as usize].dialling.insert(id, target);
        self.say(slot, id, Word::Hello(Box::new(hello)));
        self.scheduler.after(DIAL_LIMIT, Event::DialLimit { slot, life, connection: id });
    }

    /// A dial did not lead to a welcome.
    fn undialled(&mut self, slot: u32, id: usize, error: DialError) -> Step {
        let Some(target) = self.processes[slot as usize].dialling.remove(&id) else {
            return Ok(());
        };
        self.close(slot, id);
        let event = match target {
            Target::RankZero => attending::Event::RankZero(Err(error)),
            Target::Watch { epoch, rank, .. } => {
                let again = !matches!(error, DialError::Refused(..));
                attending::Event::Unreached { epoch, rank, again }
            }
        };
        self.attending_takes(slot, event)
    }

    fn answered(&mut self, slot: u32, id: usize, answer: Answer) -> Step {
        let process = &mut self.processes[slot as usize];
        match answer {
            Answer::Welcome => {
                let Some(target) = process.dialling.remove(&id) else { return Ok(()) };
                process.dialled.insert(id);
                let peer = self.connections[id].slots[1];
                let event = match target {
                    Target::RankZero => attending::Event::RankZero(Ok((address_of(0), id))),
                    Target::Watch { epoch, rank, .. } => {
                        let leaf = leaf_of(&self.processes[peer as usize].hello);
                        attending::Event::Reached { epoch, rank, link: id, leaf }
                    }
                };
                self.attending_takes(slot, event)
            }
            Answer::Refused { reason, again: Again::Soon } => {
                self.undialled(slot, id, DialError::Retry(reason))
            }
            Answer::Refused { reason, again } => {
                self.undialled(slot, id, DialError::Refused(reason, again))
            }
        }
    }

    fn greeted(&mut self, slot: u32, id: usize, hello: Hello) -> Step {
        let at = self.scheduler.now();
        let process = &mut self.processes[slot as usize];
        self.connections[id].incarnations[1] = process.hello.incarnation;
        let knock = Knock {
            link: id,
            from: address_of(self.connections[id].slots[0]),
            leaf: leaf_of(&hello),
            hello: hello.clone(),
        };
        process.knocking.insert(id, (hello, at));
        match process.role {
            Role::Gathering(_) => self.gathering_takes(slot, gathering::Event::Knocked(knock)),
            Role::Attending(_) => self.attending_takes(slot, attending::Event::Knocked(knock)),
            Role::Running { epoch } => {
                // As `control::running` does.
                let ended = self.doomed.contains(&epoch);
                let again = if ended { Again::Soon } else { Again::Later };
                self.refuse(slot, id, "already running".into(), again);
                Ok(())
            }
            // Nobody listens there.
            Role::Starting | Role::Failed | Role::Lost => Ok(()),
        }
    }

    fn read(&mut self, slot: u32, id: usize, message: Message) -> Step {
        let at = self.scheduler.now();
        let process = &mut self.processes[slot as usize];
        let Some((rank, link)) = process.links.iter_mut().find(|(_, l)| l.connection == id) else {
            return Ok(());
        };
        link.heard = at;
        let rank = *rank;
        match (&process.role, message) {
            (Role::Gathering(_), Message::Prepared { epoch }) => {
                self.gathering_takes(slot, gathering::Event::Prepared { rank, epoch })
            }
            (Role::Attending(_), message) => {
                self.attending_takes(slot, attending::Event::Message(rank, message))
            }
            _ => Ok(()),
        }
    }

    fn read_end(&mut self, slot: u32, id: usize, side: usize) -> Step {
        self.connections[id].ended[side] = true;
        let process = &self.processes[slot as usize];
        if process.dialling.contains_key(&id) {
            return self.undialled(slot, id, DialError::Retry("the connection ended".into()));
        }
        match process.links.iter().find(|(_, link)| link.connection == id) {
            Some((rank, _)) => self.ended(slot, *rank, id, "closed"),
            None => Ok(()),
        }
    }

    /// The link to a rank has ended.
    fn ended(&mut self, slot: u32, rank: u32, link: usize, how: &str) -> Step {
        match self.processes[slot as usize].role {
            Role::Gathering(_) => {
                self.gathering_takes(slot, gathering::Event::Ended { rank, link })
            }
            Role::Attending(_) => {
                self.attending_takes(slot, attending::Event::Ended { rank, link, how: how.into() })
            }
            Role::Running { epoch } => {
                self.doom(epoch);
                Ok(())
            }
            Role::Starting | Role::Failed | Role::Lost => Ok(()),
        }
    }

    /// A world has lost a rank: all in it hear of that soon.
    fn doom(&mut self, epoch: u64) {
        if self.doomed.insert(epoch) {
            for slot in 0..self.processes.len() as u32 {
                self.exit_if_doomed(slot);
            }
        }
    }

    fn exit_if_doomed(&mut self, slot: u32) {
        let process = &self.processes[slot as usize];
        if let Role::Running { epoch } = process.role
            && self.doomed.contains(&epoch)
        {
            let life = process.life;
            let notice = self.scheduler.random().below(3 * SECOND);
            self.scheduler.after(notice, Event::Exit { slot, life });
        }
    }

    fn gathering_takes(&mut self, slot: u32, event: gathering::Event) -> Step {
        let mut pending = vec![event];
        while let Some(event) = pending.pop() {
            let now = self.now();
            let Role::Gathering(gathering) = &mut self.processes[slot as usize].role else {
                return Ok(());
            };
            let ended = matches!(event, gathering::Event::Ended { .. });
            let mut old = None;
            for action in gathering.on(now, event) {
                match action {
                    gathering::Action::Welcome { rank, link } => {
                        if let Some(old) = old.filter(|_| !ended) {
                            self.check_replacement(slot, rank, link, old)?;
                        }
                        if !self.welcome(slot, rank, link) {
                            pending.push(gathering::Event::Ended { rank, link });
                        }
                    }
                    gathering::Action::Refuse { link, reason, again } => {
                        self.refuse(slot, link, reason, again);
                    }
                    gathering::Action::Drop(rank) => {
                        let links = &self.processes[slot as usize].links;
                        old = links.get(&rank).map(|link| link.connection);
                        self.drop_link(slot, rank);
                    }
                    gathering::Action::Post(rank, message) => self.post(slot, rank, message),
                    gathering::Action::PostAll(message) => {
                        if let Message::Prepare { epoch, table } = &message {
                            self.ledger.proposes(*epoch, table)?;
                        }
                        let ranks: Vec<u32> =
                            self.processes[slot as usize].links.keys().copied().collect();
                        ranks.iter().for_each(|rank| self.post(slot, *rank, message.clone()));
                    }
                    gathering::Action::Say(_) => {}
                    gathering::Action::Finish(outcome) => return self.finish(slot, outcome),
                }
            }
        }
        self.set_timer(slot);
        Ok(())
    }

    fn attending_takes(&mut self, slot: u32, event: attending::Event) -> Step {
        let mut pending = vec![event];
        while let Some(event) = pending.pop() {
            let now = self.now();
            let Role::Attending(attending) = &mut self.processes[slot as usize].role else {
                return Ok(());
            };
            for action in attending.on(now, event) {
                if let attending::Action::Finish(outcome, _) = action {
                    return self.finish(slot, outcome);
                }
                self.attending_acts(slot, action, &mut pending)?;
            }
        }
        self.set_timer(slot);
        Ok(())
    }

    fn attending_acts(
        &mut self,
        slot: u32,
        action: attending::Action,
        pending: &mut Vec<attending::Event>,
    ) -> Step {
        let life = self.processes[slot as usize].life;
        match action {
            attending::Action::FindRankZero { after } => {
                let dial = Event::Dial { slot, life, target: Target::RankZero };
                self.scheduler.after(after.as_nanos() as u64, dial);
            }
            attending::Action::Dial { epoch, rank, address, after } => {
                let to = u32::from(address.port() - FIRST_PORT);
                let target = Target::Watch { epoch, rank, slot: to };
                let dial = Event::Dial { slot, life, target };
                self.scheduler.after(after.as_nanos() as u64, dial);
            }
            attending::Action::Take { rank, link } => {
                if self.processes[slot as usize].dialled.remove(&link) {
                    self.add_link(slot, rank, link);
                }
            }
            attending::Action::Discard { link } => {
                self.processes[slot as usize].dialled.remove(&link);
                self.close(slot, link);
            }
            attending::Action::Welcome { rank, link } => {
                if self.welcome(slot, rank, link) {
                    pending.push(attending::Event::Linked { rank, link });
                }
            }
            attending::Action::Refuse { link, reason, again } => {
                self.refuse(slot, link, reason, again);
            }
            attending::Action::Drop(rank) => self.drop_link(slot, rank),
            attending::Action::Post(message) => {
                if let Message::Prepared { epoch } = message {
                    self.check_acknowledgement(slot, epoch)?;
                }
                self.post(slot, 0, message);
            }
            attending::Action::Beat => self.send_beats(slot),
            attending::Action::Say(_) | attending::Action::Finish(..) => {}
        }
        Ok(())
    }

    fn finish(&mut self, slot: u32, outcome: Outcome<Meeting>) -> Step {
        match outcome {
            Ok(meeting) => {
                let at = self.scheduler.now();
                let process = &mut self.processes[slot as usize];
                let (rank, incarnation) = (process.rank, process.hello.incarnation);
                trace(|| {
                    format!(
                        "{:>9.4} slot {slot}, rank {rank}: begins {:x}",
                        seconds(at),
                        meeting.epoch
                    )
                });
                process.role = Role::Running { epoch: meeting.epoch };
                let waiting = std::mem::take(&mut process.knocking);
                self.ledger.commits(rank, incarnation, self.size, &meeting)?;
                for (id, (hello, _)) in waiting {
                    if rank == 0 {
                        self.greeted(slot, id, hello)?;
                    } else {
                        self.close(slot, id);
                    }
                }
                self.changed = true;
                self.exit_if_doomed(slot);
            }
            // Whoever starts it again gives up where a rank is gone for good.
            Err(error) => self.leave(slot, &error.to_string(), !self.is_hopeless()),
        }
        Ok(())
    }

    /// A holder is given the time to be heard, and if it is, keeps its rank. `old` is the holder's
    /// connection, which has not ended.
    fn check_replacement(&self, slot: u32, rank: u32, link: usize, old: usize) -> Step {
        let [holder, newcomer] = [old, link].map(|id| self.connections[id].incarnations[0]);
        let (_, asked) = self.processes[slot as usize].knocking[&link];
        let reached = self.connections[old].reached[1];
        let given = HEARTBEAT.as_nanos() as u64 * 3;
        if holder == newcomer || self.scheduler.now() >= asked.max(reached) + given {
            return Ok(());
        }
        let (asked, reached) = (seconds(asked), seconds(reached));
        Err(format!("rank {rank} was given away: its holder, asked at {asked}, spoke at {reached}"))
    }

    /// Who acknowledges has links to all it watches, and to the processes that rank 0 met.
    fn check_acknowledgement(&mut self, slot: u32, epoch: u64) -> Step {
        let process = &self.processes[slot as usize];
        let rank = process.rank;
        for other in watched(rank, self.size) {
            let Some(link) = process.links.get(&other) else {
                return Err(format!("rank {rank} acknowledged without a link to rank {other}"));
            };
            let connection = &self.connections[link.connection];
            let peer = connection.incarnations[1 - connection.side(slot)];
            self.ledger.is_met(epoch, other, peer)?;
        }
        self.ledger.acknowledges(epoch, rank, process.hello.incarnation);
        Ok(())
    }

    /// Whether the peer that knocked can still be told.
    fn welcome(&mut self, slot: u32, rank: u32, id: usize) -> bool {
        self.processes[slot as usize].knocking.remove(&id);
        let is_open = !self.connections[id].ended[1];
        if is_open {
            self.say(slot, id, Word::Answer(Answer::Welcome));
            self.add_link(slot, rank, id);
        }
        is_open
    }

    fn refuse(&mut self, slot: u32, id: usize, reason: String, again: Again) {
        self.processes[slot as usize].knocking.remove(&id);
        self.say(slot, id, Word::Answer(Answer::Refused { reason, again }));
        let flow = self.connections[id].flows[1];
        self.network.end(&mut self.scheduler, flow);
    }

    fn add_link(&mut self, slot: u32, rank: u32, connection: usize) {
        let heard = self.scheduler.now();
        let links = &mut self.processes[slot as usize].links;
        if let Some(old) = links.insert(rank, Link { connection, heard }) {
            self.close(slot, old.connection);
        }
    }

    fn drop_link(&mut self, slot: u32, rank: u32) {
        if let Some(link) = self.processes[slot as usize].links.remove(&rank) {
            self.close(slot, link.connection);
        }
    }

    fn post(&mut self, slot: u32, rank: u32, message: Message) {
        if let Some(link) = self.processes[slot as usize].links.get(&rank) {
            self.say(slot, link.connection, Word::Message(message));
        }
    }

    fn say(&mut self, slot: u32, id: usize, word: Word) {
        let connection = &self.connections[id];
        let flow = connection.flows[connection.side(slot)];
        // On a connection that has ended it is lost.
        let _ = self.network.send(&mut self.scheduler, flow, word);
    }

    fn close(&mut self, slot: u32, id: usize) {
        let connection = &mut self.connections[id];
        let side = connection.side(slot);
        if !std::mem::replace(&mut connection.closed[side], true) {
            let flows = [connection.flows[side], connection.flows[1 - side]];
            self.network.close(&mut self.scheduler, flows[0]);
            self.network.abandon(flows[1]);
        }
    }

    fn now(&self) -> Instant {
        self.zero + Duration::from_nanos(self.scheduler.now())
    }
}

impl Connection {
    fn side(&self, slot: u32) -> usize {
        usize::from(self.slots[1] == slot)
    }
}

fn address_of(slot: u32) -> IpAddr {
    let [_, _, high, low] = slot.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
}

fn seconds(time: u64) -> f64 {
    time as f64 / SECOND as f64
}

/// The defaults of `config`.
const HEARTBEAT: Duration = Duration::from_millis(500);
const DEAD_AFTER: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const DIAL_LIMIT: u64 = 3 * SECOND;
const LOOK_EVERY: u64 = 100 * MILLISECOND;
/// Events for each process until small worlds have met, more or less, and some times that.
const WHILE_MEETING: u64 = 25;
const AT_ANY_TIME: u64 = 150;
/// Ranks that are gone are noticed within 2 s, a dial fails after 3 s, a world that has lost a rank
/// ends within 3 s, a process returns after 1 s, and some of that happens twice. Well below the
/// deadline, which would start all of them again.
const TO_MEET: u64 = 25 * SECOND;
/// Two deadlines: a rank may start with another's last second, and be told to start again.
const TO_GIVE_UP: u64 = 130 * SECOND;
/// Whether a run has ended is looked at now and then.
const CHECK_EVERY: u64 = 64;
