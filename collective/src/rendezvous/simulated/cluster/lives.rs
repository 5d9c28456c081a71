//! How processes start and end, what goes wrong with them, and who starts them again.

use super::{CONNECT_TIMEOUT, Cluster, DEAD_AFTER, Event, HEARTBEAT, seconds};
use crate::config::HostPort;
use crate::error::Result as Outcome;
use crate::liveness::Judge;
use crate::rendezvous::Entry;
use crate::rendezvous::attending::{self, Attending};
use crate::rendezvous::gathering::{self, Gathering};
use crate::rendezvous::simulated::process::{FIRST_PORT, Role, leaf_of};
use crate::simulation::{Fault, MILLISECOND, Random, SECOND, trace};

impl Cluster {
    pub(super) fn suffer(&mut self, fault: Fault) {
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

    pub(super) fn start(&mut self, slot: u32) {
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
                lanes: 1,
                size: self.size,
                version: hello.version.clone(),
                settings: vec![("ALLFOLD_WORLD_SIZE".into(), "n".into())],
                heartbeat: HEARTBEAT,
                connect_timeout: CONNECT_TIMEOUT,
                place: "rank-0:1000".into(),
                listens: String::new(),
                is_in_kubernetes: false,
            };
            let own = Entry {
                rank,
                host: hello.host.clone(),
                pid: hello.pid,
                habitat: 0,
                incarnation,
                addresses: Vec::new(),
                chosen: false,
                control_port: FIRST_PORT,
                lane_ports: vec![1],
                leaf: leaf_of(&hello),
                door: None,
            };
            let draw: Box<dyn FnMut() -> Outcome<u64>> = Box::new(move || Ok(epochs.bits()));
            let gathering = Gathering::new(terms, own, draw, now);
            self.processes[slot as usize].role = Role::Gathering(Box::new(gathering));
        } else {
            let terms = attending::Terms {
                lanes: 1,
                rank,
                size: self.size,
                connect_timeout: CONNECT_TIMEOUT,
                place: HostPort { host: "rank-0".into(), port: 1000 },
                local_rank: 0,
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
    pub(super) fn leave(&mut self, slot: u32, why: &str, again: bool) {
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

    /// A world has lost a rank: all in it hear of that soon.
    pub(super) fn doom(&mut self, epoch: u64) {
        if self.doomed.insert(epoch) {
            for slot in 0..self.processes.len() as u32 {
                self.exit_if_doomed(slot);
            }
        }
    }

    pub(super) fn exit_if_doomed(&mut self, slot: u32) {
        let process = &self.processes[slot as usize];
        if let Role::Running { epoch } = process.role
            && self.doomed.contains(&epoch)
        {
            let life = process.life;
            let notice = self.scheduler.random().below(3 * SECOND);
            self.scheduler.after(notice, Event::Exit { slot, life });
        }
    }
}
