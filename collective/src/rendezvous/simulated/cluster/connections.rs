//! Connections between processes: dialling, hellos, links, heartbeats, as `control::endpoint` and
//! the shells of the rendezvous have them.

use std::time::Duration;

use super::{Cluster, DIAL_LIMIT, Event, HEARTBEAT, LOOK_EVERY, Step, Word, address_of};
use crate::control::endpoint::Message;
use crate::rendezvous::search::Unfound;
use crate::rendezvous::simulated::process::{Link, Role, Target, leaf_of};
use crate::rendezvous::{Knock, attending, gathering};
use crate::simulation::FlowId;
use crate::trust::hello::{Again, Answer, DialError, Hello, Purpose};

/// Side 0 dialled.
pub(super) struct Connection {
    pub(super) slots: [u32; 2],
    pub(super) incarnations: [u128; 2],
    /// What each side sends on.
    pub(super) flows: [FlowId; 2],
    /// Which side has closed it.
    pub(super) closed: [bool; 2],
    /// Which side has read its end.
    pub(super) ended: [bool; 2],
    /// When a heartbeat last reached each side's host, whether its process ran or not.
    pub(super) reached: [u64; 2],
}

impl Connection {
    pub(super) fn side(&self, slot: u32) -> usize {
        usize::from(self.slots[1] == slot)
    }
}

impl Cluster {
    /// What `Control::beat` does at every tick.
    pub(super) fn look(&mut self, slot: u32) -> Step {
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

    pub(super) fn send_beats(&mut self, slot: u32) {
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

    pub(super) fn dial(&mut self, slot: u32, target: Target) {
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
    pub(super) fn undialled(&mut self, slot: u32, id: usize, error: DialError) -> Step {
        let Some(target) = self.processes[slot as usize].dialling.remove(&id) else {
            return Ok(());
        };
        self.close(slot, id);
        let event = match target {
            Target::RankZero => attending::Event::RankZero(Err(Unfound::Dial(error))),
            Target::Watch { epoch, rank, .. } => {
                let again = !matches!(error, DialError::Refused(..));
                attending::Event::Unreached { epoch, rank, again, problem: error.to_string() }
            }
        };
        self.attending_takes(slot, event)
    }

    pub(super) fn answered(&mut self, slot: u32, id: usize, answer: Answer) -> Step {
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
                        attending::Event::Reached {
                            epoch,
                            rank,
                            link: id,
                            leaf,
                            at: address_of(peer),
                        }
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

    pub(super) fn greeted(&mut self, slot: u32, id: usize, hello: Hello) -> Step {
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
            Role::Gathering(_) => {
                self.gathering_takes(slot, gathering::Event::Knocked(Box::new(knock)))
            }
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

    pub(super) fn read(&mut self, slot: u32, id: usize, message: Message) -> Step {
        let at = self.scheduler.now();
        let process = &mut self.processes[slot as usize];
        let Some((rank, link)) = process.links.iter_mut().find(|(_, l)| l.connection == id) else {
            return Ok(());
        };
        link.heard = at;
        let rank = *rank;
        match (&process.role, message) {
            (Role::Gathering(_), Message::Prepared { epoch, maps }) => {
                self.gathering_takes(slot, gathering::Event::Prepared { rank, epoch, maps })
            }
            (Role::Attending(_), message) => {
                self.attending_takes(slot, attending::Event::Message(rank, message))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn read_end(&mut self, slot: u32, id: usize, side: usize) -> Step {
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

    /// Whether the peer that knocked can still be told.
    pub(super) fn welcome(&mut self, slot: u32, rank: u32, id: usize) -> bool {
        self.processes[slot as usize].knocking.remove(&id);
        let is_open = !self.connections[id].ended[1];
        if is_open {
            self.say(slot, id, Word::Answer(Answer::Welcome));
            self.add_link(slot, rank, id);
        }
        is_open
    }

    pub(super) fn refuse(&mut self, slot: u32, id: usize, reason: String, again: Again) {
        self.processes[slot as usize].knocking.remove(&id);
        self.say(slot, id, Word::Answer(Answer::Refused { reason, again }));
        let flow = self.connections[id].flows[1];
        self.network.end(&mut self.scheduler, flow);
    }

    pub(super) fn add_link(&mut self, slot: u32, rank: u32, connection: usize) {
        let heard = self.scheduler.now();
        let links = &mut self.processes[slot as usize].links;
        if let Some(old) = links.insert(rank, Link { connection, heard }) {
            self.close(slot, old.connection);
        }
    }

    pub(super) fn drop_link(&mut self, slot: u32, rank: u32) {
        if let Some(link) = self.processes[slot as usize].links.remove(&rank) {
            self.close(slot, link.connection);
        }
    }

    pub(super) fn post(&mut self, slot: u32, rank: u32, message: Message) {
        if let Some(link) = self.processes[slot as usize].links.get(&rank) {
            self.say(slot, link.connection, Word::Message(message));
        }
    }

    pub(super) fn say(&mut self, slot: u32, id: usize, word: Word) {
        let connection = &self.connections[id];
        let flow = connection.flows[connection.side(slot)];
        // On a connection that has ended it is lost.
        let _ = self.network.send(&mut self.scheduler, flow, word);
    }

    pub(super) fn close(&mut self, slot: u32, id: usize) {
        let connection = &mut self.connections[id];
        let side = connection.side(slot);
        if !std::mem::replace(&mut connection.closed[side], true) {
            let flows = [connection.flows[side], connection.flows[1 - side]];
            self.network.close(&mut self.scheduler, flows[0]);
            self.network.abandon(flows[1]);
        }
    }
}
