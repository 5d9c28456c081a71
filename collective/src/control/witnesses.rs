//! Asks the other ranks about one that is silent, and answers when they ask.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::endpoint::{Control, Event, Message};
use super::processes;
use super::running::in_turns;
use crate::liveness::inquiry::{Finding, Heard, Inquiry, Limits, is_cut_off};
use crate::rendezvous::watched;
use crate::report;
use crate::verdict::{Fault, Habits, Loss};
use crate::world::World;

/// The questions that are on their way.
pub(super) struct Witnesses {
    control: Rc<Control>,
    world: Arc<World>,
    inquiries: RefCell<BTreeMap<u32, Inquiry>>,
}

impl Witnesses {
    pub(super) fn new(control: Rc<Control>, world: Arc<World>) -> Self {
        Self { control, world, inquiries: RefCell::default() }
    }

    /// `rank` is silent: asks those who watch it too, and concludes when they have answered.
    pub(super) fn ask(&self, rank: u32) {
        let now = Instant::now();
        let size = self.world.peers.len() as u32;
        let limits = self.limits();
        let witnesses: Vec<u32> = self
            .control
            .links
            .borrow()
            .iter()
            .filter(|(other, link)| {
                **other != rank
                    && link.silence(now) < limits.dead_after
                    && !self.world.has_left(**other)
                    && watched(**other, size).contains(&rank)
            })
            .map(|(other, _)| *other)
            .collect();
        for witness in &witnesses {
            self.control.post(*witness, Message::Silent { rank });
        }
        let inquiry = Inquiry::new(now, witnesses, limits);
        let patience = inquiry.patience();
        self.inquiries.borrow_mut().insert(rank, inquiry);
        let events = self.control.events.clone();
        tokio::task::spawn_local(async move {
            // Whatever it is, it is concluded only then: what has come before has been read.
            in_turns(patience).await;
            let _ = events.send(Event::Asked(rank));
        });
    }

    /// `asker` does not hear `rank`: says how long ago this rank did.
    pub(super) fn testify(&self, asker: u32, rank: u32) {
        let left = self.world.has_left(rank);
        let ago = self.control.links.borrow().get(&rank).map(|link| link.heard.get().elapsed());
        let ago_ms = ago.map(|ago| ago.as_millis() as u64);
        self.control.post(asker, Message::Heard { rank, ago_ms, left });
    }

    /// `witness` heard `rank` so long ago, or knows that it has left.
    pub(super) fn answer(&self, witness: u32, rank: u32, ago: Option<Duration>, left: bool) {
        {
            let mut inquiries = self.inquiries.borrow_mut();
            let Some(inquiry) = inquiries.get_mut(&rank).filter(|i| i.awaits(witness)) else {
                return;
            };
            inquiry.answer(witness, ago);
            if left {
                // Its goodbye is on its way here, or lost: it needs no more watching.
                inquiries.remove(&rank);
                drop(inquiries);
                return self.world.note_left(rank);
            }
        }
        self.conclude(rank);
    }

    /// Ends the inquiry about `rank` if it has an outcome.
    pub(super) fn conclude(&self, rank: u32) {
        let now = Instant::now();
        let finding = match self.inquiries.borrow().get(&rank) {
            Some(inquiry) => inquiry.finding(now),
            None => return,
        };
        let Some(finding) = finding else { return };
        self.inquiries.borrow_mut().remove(&rank);
        let Some(link) = self.control.links.borrow().get(&rank).cloned() else { return };
        let silence = link.silence(now);
        let limit = self.limits().dead_after;
        // Heard meanwhile, it was only slow.
        if self.world.has_left(rank) || silence < limit {
            return;
        }
        let this = self.world.rank;
        match finding {
            Finding::Overslept => link.listen_anew(now),
            Finding::LinkDown { witness, ago } => {
                let (silence, ago) = (report::duration(silence), report::duration(ago));
                let problem = format!(
                    "rank {this} has heard nothing of rank {rank} for {silence}, but rank \
                     {witness} heard it {ago} ago"
                );
                self.world.raise(rank, Fault::LinkDown { problem });
            }
            Finding::Dead if self.is_cut_off(now) => self.cut_off(now),
            Finding::Dead => {
                let habits = self.world.process_here(rank).and_then(processes::habits);
                self.world.lose(rank, Loss::silent(silence, habits));
            }
        }
    }

    fn is_cut_off(&self, now: Instant) -> bool {
        let host = |rank: u32| self.world.peers.get(rank as usize).map_or("", |peer| &peer.host);
        let links = self.control.links.borrow();
        // Of a process that is known to be stopped no silence speaks against the network.
        let is_stopped = |rank: u32| {
            self.world.process_here(rank).and_then(processes::habits) == Some(Habits::Stopped)
        };
        let others = links.iter().filter(|(rank, _)| !self.world.has_left(**rank));
        let others: Vec<_> = others
            .filter(|(rank, _)| !is_stopped(**rank))
            .map(|(rank, link)| Heard { host: host(*rank), silence: link.silence(now) })
            .collect();
        is_cut_off(host(self.world.rank), &others, self.limits())
    }

    fn limits(&self) -> Limits {
        let config = &self.control.config;
        let dead_after = config.dead_after.unwrap_or(Duration::MAX);
        Limits { heartbeat: config.heartbeat, dead_after }
    }

    fn cut_off(&self, now: Instant) {
        let links = self.control.links.borrow();
        let silences = links.iter().filter(|(rank, _)| !self.world.has_left(**rank));
        let longest = silences.map(|(_, link)| link.silence(now)).max().unwrap_or_default();
        drop(links);
        let silent_ms = longest.as_millis() as u64;
        self.world.raise(self.world.rank, Fault::CutOff { silent_ms });
    }
}
