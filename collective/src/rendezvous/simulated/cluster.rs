//! A cluster of processes in virtual time: connections, heartbeats, faults, and who restarts whom.

mod connections;
mod decisions;
mod lives;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::process::{Process, Role, Target};
use crate::control::endpoint::Message;
use crate::simulation::{
    Appetite, Delivery, FaultPlan, Fitness, FlowId, Health, Kind, MILLISECOND, Network, Quality,
    Random, SECOND, Scheduler, Transit,
};
use crate::trust::hello::{Answer, DialError, Hello};
use connections::Connection;

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
    /// It has tried to map its neighbours' memory.
    Mapped {
        slot: u32,
        life: u32,
        epoch: u64,
        all: bool,
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
            | Event::Mapped { slot, life, .. }
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
            Event::Mapped { epoch, all, .. } => self.mapped(slot, epoch, all),
            Event::Exit { .. } => {
                self.leave(slot, "its world lost a rank", true);
                Ok(())
            }
            Event::Transit(_) | Event::Start { .. } | Event::Heal { .. } => Ok(()),
        }
    }

    fn now(&self) -> Instant {
        self.zero + Duration::from_nanos(self.scheduler.now())
    }
}

fn address_of(slot: u32) -> SocketAddr {
    let [_, _, high, low] = slot.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 1))
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
