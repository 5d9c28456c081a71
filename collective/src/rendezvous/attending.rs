//! What every rank but 0 decides while the ranks meet: finds rank 0, makes ready for the world it
//! proposes, and waits for the commit. Pure: events in, actions out, the clock passed in.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::roster::ranks;
use super::{
    Entry, FIRST_PAUSE, Knock, LAST_PAUSE, Mapped, Meeting, SAY_EVERY, ended_early, neighbours,
    refused, watched,
};
use crate::control::endpoint::Message;
use crate::control::launched::Obituary;
use crate::error::{Error, ErrorKind, Result};
use crate::link::shared_memory::Door;
use crate::report;
use crate::trust::certificates::LeafHash;
use crate::trust::hello::{Again, DialError, Purpose};

/// Who this rank is, and its patience.
pub(super) struct Terms {
    pub(super) rank: u32,
    pub(super) size: u32,
    /// Of each rank.
    pub(super) lanes: u16,
    pub(super) connect_timeout: Duration,
    /// The rendezvous address, as the user wrote it.
    pub(super) place: String,
}

/// Something happened to this rank.
pub(super) enum Event {
    /// The outcome of `FindRankZero`: where it was found, and the connection.
    RankZero(std::result::Result<(IpAddr, usize), DialError>),
    /// A `Dial` was made welcome.
    Reached { epoch: u64, rank: u32, link: usize, leaf: LeafHash },
    /// A `Dial` was not; `again` where it may yet be.
    Unreached { epoch: u64, rank: u32, again: bool },
    /// This rank has tried to map the memory of its neighbours.
    Mapped { epoch: u64, mapped: Mapped },
    /// A peer dialled and said hello; it waits for `Welcome` or `Refuse`.
    Knocked(Knock),
    /// A `Welcome` was sent, and the connection is the rank's link.
    Linked { rank: u32, link: usize },
    /// What a rank said on its link.
    Message(u32, Message),
    /// A link ended; `how` is for people.
    Ended { rank: u32, link: usize, how: String },
    /// The launcher saw a rank end.
    Obituary(Obituary),
    /// It is [`Attending::wake`] or later.
    Time,
}

/// What this rank must do, in this order.
pub(super) enum Action {
    /// Look for rank 0 after a pause, and greet it.
    FindRankZero {
        after: Duration,
    },
    /// Dial a rank to watch it.
    Dial {
        epoch: u64,
        rank: u32,
        address: SocketAddr,
        after: Duration,
    },
    /// Take a connection that was dialled as the rank's link.
    Take {
        rank: u32,
        link: usize,
    },
    /// Close a connection that was dialled.
    Discard {
        link: usize,
    },
    /// Tell the peer that knocked that it is welcome, and take its connection as the rank's link.
    Welcome {
        rank: u32,
        link: usize,
    },
    Refuse {
        link: usize,
        reason: String,
        again: Again,
    },
    /// Map the memory behind these doors.
    Map {
        epoch: u64,
        doors: Vec<(u32, Door)>,
    },
    /// Close the rank's link and forget it.
    Drop(u32),
    /// To rank 0.
    Post(Message),
    /// A heartbeat to all, now.
    Beat,
    /// A warning for the log.
    Say(String),
    /// The meeting is over. The messages came ahead of the commit and are for the world that
    /// begins.
    Finish(Result<Meeting>, Vec<(u32, Message)>),
}

/// The state of one rank.
pub(super) struct Attending {
    terms: Terms,
    /// Where rank 0 was found; None while it is looked for.
    rank_0: Option<IpAddr>,
    /// The connection of every rank this one has a link to.
    links: BTreeMap<u32, usize>,
    /// Who has not come, as rank 0 says.
    missing: Option<Vec<u32>>,
    /// The world that rank 0 proposes.
    proposal: Option<(u64, Vec<Entry>)>,
    /// Memory that this rank has mapped for it.
    mapped: Option<Mapped>,
    acknowledged: bool,
    /// Peers that dialled for an epoch that rank 0 has not proposed here yet.
    early: Vec<Knock>,
    /// Words of ranks that have had the commit before this one: for the world that begins.
    ahead: Vec<(u32, Message)>,
    /// Why the last attempt to reach rank 0 failed.
    problem: String,
    pause: Duration,
    began: Instant,
    say: Instant,
    out: Vec<Action>,
}

impl Attending {
    /// Begins; the first actions.
    pub(super) fn new(terms: Terms, now: Instant) -> (Self, Vec<Action>) {
        let attending = Self {
            terms,
            rank_0: None,
            links: BTreeMap::new(),
            missing: None,
            proposal: None,
            mapped: None,
            acknowledged: false,
            early: Vec::new(),
            ahead: Vec::new(),
            problem: "nobody answers".into(),
            pause: FIRST_PAUSE,
            began: now,
            say: now + SAY_EVERY,
            out: Vec::new(),
        };
        (attending, vec![Action::FindRankZero { after: Duration::ZERO }])
    }

    /// Takes an event; what is to be done about it.
    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        if let Err(error) = self.notice(now, event) {
            self.out.push(Action::Finish(Err(error), Vec::new()));
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Time`] is due.
    pub(super) fn wake(&self) -> Instant {
        self.say.min(self.deadline())
    }

    fn notice(&mut self, now: Instant, event: Event) -> Result<()> {
        match event {
            Event::RankZero(outcome) => return self.found(outcome),
            Event::Reached { epoch, rank, link, leaf } => self.reached(epoch, rank, link, leaf),
            Event::Unreached { epoch, rank, again } => {
                if again && self.epoch() == Some(epoch) {
                    self.dial(rank, FIRST_PAUSE);
                }
            }
            Event::Knocked(knock) => self.consider(knock),
            Event::Linked { rank, link } => {
                self.links.insert(rank, link);
                self.acknowledge();
            }
            Event::Mapped { epoch, mapped } => {
                if self.epoch() == Some(epoch) {
                    self.mapped = Some(mapped);
                    self.acknowledge();
                }
            }
            Event::Message(0, message) => return self.obey(message),
            Event::Message(rank, message) => {
                let for_the_world = matches!(
                    message,
                    Message::Goodbye { .. } | Message::Leave { .. } | Message::Verdict(_)
                );
                if for_the_world && self.acknowledged && self.ahead.len() < MAX_AHEAD {
                    self.ahead.push((rank, message));
                }
            }
            Event::Ended { rank, link, how } => {
                if self.links.get(&rank) == Some(&link) {
                    self.lose(rank, &how);
                }
            }
            Event::Obituary(obituary) => {
                if let Some(error) = ended_early(&obituary) {
                    return Err(error);
                }
            }
            Event::Time => return self.pass(now),
        }
        Ok(())
    }

    fn pass(&mut self, now: Instant) -> Result<()> {
        let so_far = report::duration(now - self.began);
        if now >= self.deadline() {
            let (problem, waited) = (self.waiting_for(), so_far);
            return Err(ErrorKind::ConnectTimeout { problem, waited }.into());
        }
        if now >= self.say {
            self.say = now + SAY_EVERY;
            self.out.push(Action::Say(format!("{} ({so_far} so far)", self.waiting_for())));
        }
        Ok(())
    }

    fn found(&mut self, outcome: std::result::Result<(IpAddr, usize), DialError>) -> Result<()> {
        match outcome {
            Ok((address, link)) => {
                self.rank_0 = Some(address);
                self.pause = FIRST_PAUSE;
                self.take(0, link);
                self.out.push(Action::Beat);
                Ok(())
            }
            Err(DialError::Retry(problem)) => {
                self.problem = problem;
                self.out.push(Action::FindRankZero { after: self.pause });
                self.pause = (self.pause * 2).min(LAST_PAUSE);
                Ok(())
            }
            Err(DialError::Final(reason)) => {
                let help = "all ranks need one secret (ALLFOLD_SECRET_FILE, ALLFOLD_SECRET, else \
                            ~/.allfold/secret; in Kubernetes one Secret, and pods that were \
                            started after its last change) or certificates of one authority \
                            (ALLFOLD_TLS_*), one ALLFOLD_JOB and one version of allfold";
                Err(ErrorKind::Refused { reason, retryable: false, help: Some(help.into()) }.into())
            }
            Err(DialError::Refused(reason, again)) => Err(refused(reason, again)),
        }
    }

    fn obey(&mut self, message: Message) -> Result<()> {
        // A word from a connection that is lost already: the next one begins anew.
        let Some(rank_0) = self.rank_0 else { return Ok(()) };
        match message {
            Message::Missing(missing) => self.missing = Some(missing),
            Message::Prepare { epoch, table } => {
                self.forget_proposal();
                let (own, table) = (self.terms.rank, self.check(table)?);
                self.out.push(Action::Map { epoch, doors: neighbours(&table, own) });
                self.proposal = Some((epoch, table));
                for rank in self.to_watch().filter(|rank| *rank > own) {
                    self.dial(rank, Duration::ZERO);
                }
                for knock in std::mem::take(&mut self.early) {
                    self.consider(knock);
                }
                self.acknowledge();
            }
            Message::Restart => self.forget_proposal(),
            Message::Commit { epoch, costs, shares } if self.epoch() == Some(epoch) => {
                if !costs.is_within_limits() {
                    let problem = "a table of costs beyond all limits".into();
                    return Err(ErrorKind::Protocol { rank: 0, problem }.into());
                }
                if shares.len() != self.terms.size as usize {
                    let problem = format!("a commit of {} ranks", shares.len());
                    return Err(ErrorKind::Protocol { rank: 0, problem }.into());
                }
                if let Some((_, table)) = self.proposal.take() {
                    let ahead = std::mem::take(&mut self.ahead);
                    let mapped = self.mapped.take().unwrap_or_default();
                    let meeting = Meeting { epoch, table, rank_0, costs, shares, mapped };
                    self.out.push(Action::Finish(Ok(meeting), ahead));
                }
            }
            Message::Refused { reason, again } => {
                return Err(refused(report::printable(&reason), again));
            }
            Message::Commit { .. }
            | Message::Prepared { .. }
            | Message::Goodbye { .. }
            | Message::Leave { .. }
            | Message::LeaveRead
            | Message::Stuck(_)
            | Message::Silent { .. }
            | Message::Heard { .. }
            | Message::Verdict(_) => {}
        }
        Ok(())
    }

    /// The world table, with hosts that a person can be shown, if it has the right form.
    fn check(&self, mut table: Vec<Entry>) -> Result<Vec<Entry>> {
        let in_order = table.iter().zip(0..).all(|(entry, rank)| entry.rank == rank);
        let lanes = usize::from(self.terms.lanes);
        let problem = if table.len() != self.terms.size as usize || !in_order {
            format!("a world table of {} ranks, or out of order", table.len())
        } else if let Some(entry) = table.iter().find(|entry| entry.lane_ports.len() != lanes) {
            format!("a world table with {} lanes of rank {}", entry.lane_ports.len(), entry.rank)
        } else {
            table.iter_mut().for_each(|entry| entry.host = report::printable(&entry.host));
            return Ok(table);
        };
        Err(Error::from(ErrorKind::Protocol { rank: 0, problem }))
    }

    /// A rank that this one dialled to watch it has answered.
    fn reached(&mut self, epoch: u64, rank: u32, link: usize, leaf: LeafHash) {
        let Some(entry) = self.entry(epoch, rank) else {
            return self.out.push(Action::Discard { link });
        };
        if entry.leaf == leaf {
            self.take(rank, link);
            self.acknowledge();
        } else {
            // Another process than rank 0 met.
            self.out.push(Action::Discard { link });
            self.dial(rank, FIRST_PAUSE);
        }
    }

    /// A lower rank dialled to watch this one.
    fn consider(&mut self, knock: Knock) {
        let (rank, link) = (knock.hello.rank, knock.link);
        let refuse = |reason| Action::Refuse { link, reason, again: Again::Soon };
        let Purpose::Watch { epoch } = knock.hello.purpose else {
            return self.out.push(refuse(format!("rank {} is not rank 0", self.terms.rank)));
        };
        if self.proposal.is_none() && self.early.len() < MAX_EARLY {
            return self.early.push(knock);
        }
        let action = match self.entry(epoch, rank) {
            Some(entry) if entry.leaf == knock.leaf => Action::Welcome { rank, link },
            None if self.epoch() != Some(epoch) => refuse("not in this epoch".into()),
            _ => refuse("not the process that rank 0 met".into()),
        };
        self.out.push(action);
    }

    fn take(&mut self, rank: u32, link: usize) {
        self.links.insert(rank, link);
        self.out.push(Action::Take { rank, link });
    }

    fn lose(&mut self, rank: u32, how: &str) {
        self.forget_link(rank);
        if rank == 0 {
            self.rank_0 = None;
            self.forget_proposal();
            self.problem = format!("the connection to it ended ({how})");
            self.out.push(Action::FindRankZero { after: self.pause });
        } else if rank > self.terms.rank {
            // Rank 0 notices too if that rank is gone, and starts over. If only this connection
            // is, nobody else will.
            self.dial(rank, FIRST_PAUSE);
        }
    }

    /// Tells rank 0 once all ranks to watch are connected.
    fn acknowledge(&mut self) {
        let Some(epoch) = self.epoch() else { return };
        let Some(maps) = self.mapped.as_ref().map(Mapped::is_all) else { return };
        if !self.acknowledged && self.to_watch().all(|rank| self.links.contains_key(&rank)) {
            self.acknowledged = true;
            self.out.push(Action::Post(Message::Prepared { epoch, maps }));
        }
    }

    fn forget_proposal(&mut self) {
        self.proposal = None;
        self.mapped = None;
        self.acknowledged = false;
        self.ahead.clear();
        for rank in self.to_watch() {
            self.forget_link(rank);
        }
    }

    fn forget_link(&mut self, rank: u32) {
        if self.links.remove(&rank).is_some() {
            self.out.push(Action::Drop(rank));
        }
    }

    /// Dials a rank to watch, for as long as the proposal stands.
    fn dial(&mut self, rank: u32, after: Duration) {
        let Some((epoch, table)) = &self.proposal else { return };
        let Some(entry) = table.get(rank as usize) else { return };
        let Some(ip) = entry.address.or(self.rank_0) else { return };
        let address = SocketAddr::new(ip, entry.control_port);
        self.out.push(Action::Dial { epoch: *epoch, rank, address, after });
    }

    fn waiting_for(&self) -> String {
        let place = &self.terms.place;
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

    /// A rank's entry in the world of `epoch`, if that is the one proposed.
    fn entry(&self, epoch: u64, rank: u32) -> Option<&Entry> {
        let (proposed, table) = self.proposal.as_ref()?;
        (*proposed == epoch).then(|| table.get(rank as usize)).flatten()
    }

    /// The ranks to watch; every rank has a link to rank 0 anyway.
    fn to_watch(&self) -> impl Iterator<Item = u32> + use<> {
        watched(self.terms.rank, self.terms.size).into_iter().filter(|rank| *rank != 0)
    }

    fn deadline(&self) -> Instant {
        // Rank 0's own comes first where it began with the others, and names the missing.
        self.began + self.terms.connect_timeout + DEADLINE_GRACE
    }
}

/// For rank 0's word at its deadline to arrive.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// Twenty watchers dial at most; strangers do not get this far.
const MAX_EARLY: usize = 64;
/// A goodbye and a verdict from each of them.
const MAX_AHEAD: usize = 2 * MAX_EARLY;
