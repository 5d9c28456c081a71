//! Feeds the state machines, carries out what they decide, and checks it.

use std::time::Duration;

use super::{Cluster, Event, HEARTBEAT, Step, seconds};
use crate::control::endpoint::Message;
use crate::error::Result as Outcome;
use crate::rendezvous::simulated::process::{FIRST_PORT, Role, Target};
use crate::rendezvous::{Mapped, Meeting, attending, gathering, watched};
use crate::simulation::{MILLISECOND, trace};

impl Cluster {
    /// The machine's timer has come.
    pub(super) fn timer(&mut self, slot: u32) -> Step {
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

    pub(super) fn set_timer(&mut self, slot: u32) {
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

    /// The link to a rank has ended.
    pub(super) fn ended(&mut self, slot: u32, rank: u32, link: usize, how: &str) -> Step {
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

    pub(super) fn gathering_takes(&mut self, slot: u32, event: gathering::Event) -> Step {
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
                    gathering::Action::Map { epoch, .. } => self.map(slot, epoch),
                    gathering::Action::Say(_) => {}
                    gathering::Action::Finish(outcome) => return self.finish(slot, outcome),
                }
            }
        }
        self.set_timer(slot);
        Ok(())
    }

    pub(super) fn attending_takes(&mut self, slot: u32, event: attending::Event) -> Step {
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

    pub(super) fn attending_acts(
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
            // What is found out of rank 0's addresses is for people.
            attending::Action::Probe => {}
            attending::Action::Dial { epoch, rank, ways, after, .. } => {
                let to = u32::from(ways[0].port() - FIRST_PORT);
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
            attending::Action::Map { epoch, .. } => self.map(slot, epoch),
            attending::Action::Drop(rank) => self.drop_link(slot, rank),
            attending::Action::Post(message) => {
                if let Message::Prepared { epoch, .. } = message {
                    self.check_acknowledgement(slot, epoch)?;
                }
                self.post(slot, 0, message);
            }
            attending::Action::Beat => self.send_beats(slot),
            attending::Action::Say(_) | attending::Action::Finish(..) => {}
        }
        Ok(())
    }

    /// It takes a while, and does not always work.
    fn map(&mut self, slot: u32, epoch: u64) {
        let life = self.processes[slot as usize].life;
        let random = self.scheduler.random();
        let (after, all) = (random.within(0..=20 * MILLISECOND), !random.chance(100));
        self.scheduler.after(after, Event::Mapped { slot, life, epoch, all });
    }

    pub(super) fn mapped(&mut self, slot: u32, epoch: u64, all: bool) -> Step {
        let failed = (!all).then(|| (slot, "it is not there".into()));
        let mapped = Mapped { arenas: Vec::new(), failed };
        match &self.processes[slot as usize].role {
            Role::Gathering(_) => {
                self.gathering_takes(slot, gathering::Event::Mapped { epoch, mapped })
            }
            Role::Attending(_) => {
                self.attending_takes(slot, attending::Event::Mapped { epoch, mapped })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn finish(&mut self, slot: u32, outcome: Outcome<Meeting>) -> Step {
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
    pub(super) fn check_replacement(&self, slot: u32, rank: u32, link: usize, old: usize) -> Step {
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
    pub(super) fn check_acknowledgement(&mut self, slot: u32, epoch: u64) -> Step {
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
}
