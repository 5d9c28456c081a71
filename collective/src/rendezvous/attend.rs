//! Every rank but 0: finds rank 0, makes ready for the world it proposes, and waits for the commit.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::gather::ranks;
use super::{
    Entry, FIRST_PAUSE, LAST_PAUSE, Me, Meeting, SAY_EVERY, ended_early, refused, watched,
};
use crate::control::endpoint::{Control, Event, Message};
use crate::error::{ErrorKind, Result};
use crate::link::quic::{endpoint, tuning::Traffic};
use crate::report;
use crate::trust::hello::{self, Again, Answer, DialError, Greeted, Hello, Purpose, Welcomed};

/// The outcome of a dialling task.
pub(crate) enum Dialled {
    /// Rank 0, where it was found.
    RankZero(std::result::Result<(IpAddr, Box<Welcomed>), DialError>),
    /// A rank to watch, in this epoch.
    Watch { epoch: u64, rank: u32, welcomed: Box<Welcomed> },
}

/// Attends the gathering at rank 0.
pub(super) async fn attend(
    control: &Rc<Control>,
    me: &Me,
    events: &mut mpsc::UnboundedReceiver<Event>,
) -> Result<Meeting> {
    let mut attending = Attending {
        control,
        me,
        rank_0: None,
        missing: None,
        proposal: None,
        acknowledged: false,
        early: Vec::new(),
        ahead: Vec::new(),
        problem: "nobody answers".into(),
        pause: FIRST_PAUSE,
    };
    attending.run(events).await
}

struct Attending<'a> {
    control: &'a Rc<Control>,
    me: &'a Me,
    /// Where rank 0 was found; None while it is looked for.
    rank_0: Option<IpAddr>,
    /// Who has not come, as rank 0 says.
    missing: Option<Vec<u32>>,
    /// The world that rank 0 proposes.
    proposal: Option<(u64, Vec<Entry>)>,
    acknowledged: bool,
    /// Peers that dialled for an epoch that rank 0 has not proposed here yet.
    early: Vec<Greeted>,
    /// Words of ranks that have had the commit before this one: for the world that begins.
    ahead: Vec<Event>,
    /// Why the last attempt to reach rank 0 failed.
    problem: String,
    pause: Duration,
}

impl Attending<'_> {
    async fn run(&mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Result<Meeting> {
        let began = Instant::now();
        // Rank 0's own deadline comes first where it began with the others, and names the missing.
        let deadline = began + self.control.config.connect_timeout + DEADLINE_GRACE;
        let mut say = tokio::time::interval_at((began + SAY_EVERY).into(), SAY_EVERY);
        self.dial_rank_0(Duration::ZERO);
        loop {
            tokio::select! {
                Some(event) = events.recv() => {
                    if let Some(meeting) = self.notice(event).await? {
                        for event in self.ahead.drain(..) {
                            let _ = self.control.events.send(event);
                        }
                        return Ok(meeting);
                    }
                }
                _ = say.tick() => {
                    let (waiting, so_far) = (self.waiting_for(), report::duration(began.elapsed()));
                    report::warn(&format!("{waiting} ({so_far} so far)"));
                }
                () = tokio::time::sleep_until(deadline.into()) => {
                    let waited = report::duration(began.elapsed());
                    return Err(ErrorKind::ConnectTimeout { problem: self.waiting_for(), waited }.into());
                }
            }
        }
    }

    async fn notice(&mut self, event: Event) -> Result<Option<Meeting>> {
        match event {
            Event::Dialled(Dialled::RankZero(outcome)) => self.reached(outcome)?,
            Event::Dialled(Dialled::Watch { epoch, rank, welcomed }) => {
                if self.epoch() == Some(epoch) {
                    let Welcomed { connection, sender, receiver, .. } = *welcomed;
                    self.control.add_link(rank, connection, sender, receiver);
                    self.acknowledge();
                }
            }
            Event::Greeted(greeted) => self.consider(*greeted).await,
            Event::Message(0, message) => return self.obey(message).await,
            Event::Ended { rank: 0, link, how } if self.is_link(0, link) => {
                self.control.drop_link(0);
                self.rank_0 = None;
                self.forget_proposal();
                self.problem = format!("the connection to it ended ({how:?})");
                self.dial_rank_0(self.pause);
            }
            Event::Ended { rank, link, .. } if self.is_link(rank, link) => {
                // Rank 0 notices too if that rank is gone, and starts over.
                self.control.drop_link(rank);
            }
            Event::Message(_, Message::Goodbye { .. } | Message::Verdict(_))
                if self.acknowledged && self.ahead.len() < MAX_AHEAD =>
            {
                self.ahead.push(event);
            }
            Event::Obituary(obituary) => {
                if let Some(error) = ended_early(&obituary) {
                    return Err(error);
                }
            }
            Event::Ended { .. } | Event::Message(..) => {}
        }
        Ok(None)
    }

    fn reached(
        &mut self,
        outcome: std::result::Result<(IpAddr, Box<Welcomed>), DialError>,
    ) -> Result<()> {
        match outcome {
            Ok((address, welcomed)) => {
                let Welcomed { connection, sender, receiver, .. } = *welcomed;
                self.rank_0 = Some(address);
                self.pause = FIRST_PAUSE;
                self.control.add_link(0, connection, sender, receiver);
                self.control.send_beats();
                Ok(())
            }
            Err(DialError::Retry(problem)) => {
                self.problem = problem;
                self.dial_rank_0(self.pause);
                self.pause = (self.pause * 2).min(LAST_PAUSE);
                Ok(())
            }
            Err(DialError::Final(reason)) => {
                let help = "all ranks need one secret (ALLFOLD_SECRET_FILE, ALLFOLD_SECRET, else \
                            ~/.allfold/secret), one ALLFOLD_JOB and one version of allfold";
                Err(ErrorKind::Refused { reason, retryable: false, help: Some(help.into()) }.into())
            }
            Err(DialError::Refused(reason, again)) => Err(refused(reason, again)),
        }
    }

    async fn obey(&mut self, message: Message) -> Result<Option<Meeting>> {
        match message {
            Message::Missing(missing) => self.missing = Some(missing),
            Message::Prepare { epoch, table } => {
                self.forget_proposal();
                let in_order = table.iter().zip(0..).all(|(entry, rank)| entry.rank == rank);
                if table.len() != self.control.config.size() || !in_order {
                    let rank = 0;
                    let problem =
                        format!("a world table of {} ranks, or out of order", table.len());
                    return Err(ErrorKind::Protocol { rank, problem }.into());
                }
                self.proposal = Some((epoch, table));
                for rank in self.to_watch().filter(|rank| *rank > self.control.rank()) {
                    self.dial_peer(epoch, rank);
                }
                for greeted in std::mem::take(&mut self.early) {
                    self.consider(greeted).await;
                }
                self.acknowledge();
            }
            Message::Restart => self.forget_proposal(),
            Message::Commit { epoch } => {
                if let (Some((proposed, table)), Some(rank_0)) = (self.proposal.take(), self.rank_0)
                    && proposed == epoch
                {
                    return Ok(Some(Meeting { epoch, table, rank_0 }));
                }
            }
            Message::Refused { reason, again } => return Err(refused(reason, again)),
            Message::Prepared { .. }
            | Message::Goodbye { .. }
            | Message::GoodbyeRead
            | Message::Verdict(_) => {}
        }
        Ok(None)
    }

    /// A lower rank dialled to watch this one.
    async fn consider(&mut self, greeted: Greeted) {
        let Purpose::Watch { epoch } = greeted.hello.purpose else {
            let reason = format!("rank {} is not rank 0", self.control.rank());
            return greeted.refuse(reason, Again::Soon).await;
        };
        match &self.proposal {
            Some((current, table)) if *current == epoch => {
                let known = table.iter().find(|entry| entry.rank == greeted.hello.rank);
                if known.is_none_or(|entry| entry.leaf != greeted.leaf) {
                    let reason = "not the process that rank 0 met".to_string();
                    return greeted.refuse(reason, Again::Soon).await;
                }
                let Greeted { hello, connection, mut sender, receiver, .. } = greeted;
                if hello::send(&mut sender, &Answer::Welcome).await.is_ok() {
                    self.control.add_link(hello.rank, connection, sender, receiver);
                    self.acknowledge();
                }
            }
            None if self.early.len() < MAX_EARLY => self.early.push(greeted),
            _ => greeted.refuse("not in this epoch".into(), Again::Soon).await,
        }
    }

    /// Tells rank 0 once all ranks to watch are connected.
    fn acknowledge(&mut self) {
        let Some(epoch) = self.epoch() else { return };
        let connected = self.control.links.borrow();
        if !self.acknowledged && self.to_watch().all(|rank| connected.contains_key(&rank)) {
            drop(connected);
            self.acknowledged = true;
            self.control.post(0, Message::Prepared { epoch });
        }
    }

    fn forget_proposal(&mut self) {
        self.proposal = None;
        self.acknowledged = false;
        self.ahead.clear();
        for rank in self.to_watch() {
            self.control.drop_link(rank);
        }
    }

    /// Looks for rank 0 anew after `pause`: its name may lead elsewhere by then.
    fn dial_rank_0(&self, pause: Duration) {
        let (control, hello, first) =
            (self.control.clone(), self.me.hello.clone(), self.me.address);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            let place = &control.config.rendezvous;
            let found = tokio::net::lookup_host((place.host.as_str(), place.port)).await;
            // The family this rank's socket has.
            let usable = |a: &SocketAddr| a.is_ipv4() == first.is_ipv4();
            let address = found.ok().and_then(|mut all| all.find(usable)).unwrap_or(first);
            let outcome = dial(&control, &hello, 0, address).await;
            let outcome = outcome.map(|welcomed| (address.ip(), Box::new(welcomed)));
            let _ = control.events.send(Event::Dialled(Dialled::RankZero(outcome)));
        });
    }

    /// Dials a rank to watch until it answers or the proposal is forgotten.
    fn dial_peer(&self, epoch: u64, rank: u32) {
        let Some((_, table)) = &self.proposal else { return };
        let Some(entry) = table.iter().find(|entry| entry.rank == rank).cloned() else { return };
        let Some(ip) = entry.address.or(self.rank_0) else { return };
        let (control, mut hello) = (self.control.clone(), self.me.hello.clone());
        hello.purpose = Purpose::Watch { epoch };
        let address = SocketAddr::new(ip, entry.control_port);
        tokio::task::spawn_local(async move {
            for _ in 0..MAX_PEER_DIALS {
                match dial(&control, &hello, rank, address).await {
                    Ok(welcomed) if welcomed.leaf == entry.leaf => {
                        let welcomed = Box::new(welcomed);
                        let dialled = Dialled::Watch { epoch, rank, welcomed };
                        let _ = control.events.send(Event::Dialled(dialled));
                        return;
                    }
                    // It runs in another world by now.
                    Err(DialError::Refused(..)) => return,
                    _ => tokio::time::sleep(FIRST_PAUSE).await,
                }
            }
        });
    }

    fn waiting_for(&self) -> String {
        let place = &self.control.config.rendezvous;
        match (&self.missing, self.rank_0) {
            (_, None) => format!("rank 0 is not found at {place}: {}", self.problem),
            (Some(missing), _) if !missing.is_empty() => {
                format!("rank 0 at {place} still waits for {}", ranks(missing))
            }
            _ => format!("rank 0 at {place} has not begun the world yet"),
        }
    }

    fn epoch(&self) -> Option<u64> {
        self.proposal.as_ref().map(|(epoch, _)| *epoch)
    }

    fn is_link(&self, rank: u32, link: usize) -> bool {
        self.control.links.borrow().get(&rank).is_some_and(|l| l.connection.stable_id() == link)
    }

    /// The ranks to watch; every rank has a link to rank 0 anyway.
    fn to_watch(&self) -> impl Iterator<Item = u32> + use<> {
        let config = &self.control.config;
        watched(config.rank() as u32, config.size() as u32).into_iter().filter(|rank| *rank != 0)
    }
}

async fn dial(
    control: &Control,
    hello: &Hello,
    rank: u32,
    address: SocketAddr,
) -> std::result::Result<Welcomed, DialError> {
    let caller = endpoint::Caller {
        endpoint: &control.endpoint,
        membership: &control.membership,
        traffic: Traffic::Control,
    };
    caller.dial(rank, address, hello, DIAL_LIMIT).await
}

/// One attempt. Rank 0 may need 1.5 s to ask the holder of a rank.
const DIAL_LIMIT: Duration = Duration::from_secs(3);
/// For rank 0's word at its deadline to arrive.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// Twenty watchers dial at most; strangers do not get this far.
const MAX_EARLY: usize = 64;
/// A goodbye and a verdict from each of them.
const MAX_AHEAD: usize = 2 * MAX_EARLY;
/// Rank 0 starts over long before, if the peer is gone.
const MAX_PEER_DIALS: u32 = 100;
