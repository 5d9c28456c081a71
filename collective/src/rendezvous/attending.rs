//! What every rank but 0 decides while the ranks meet: finds rank 0, makes ready for the world it
//! proposes, and waits for the commit. Pure: events in, actions out, the clock passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::diagnosis::{self, Diagnosis, Sign};
use super::neighbours::{Mapped, neighbours};
use super::roster::ranks;
use super::table::{Entry, MAX_WAYS, scope_of};
use super::watching::watched;
use super::{FIRST_PAUSE, Knock, LAST_PAUSE, Meeting, SAY_EVERY, ended_early, refused};
use crate::config::HostPort;
use crate::control::endpoint::Message;
use crate::control::launched::Obituary;
use crate::error::{Error, ErrorKind, Result};
use crate::link::shared_memory::Door;
use crate::report;
use crate::trust::certificates::LeafHash;
use crate::trust::handshake::ANOTHER_RANK;
use crate::trust::hello::{Again, DialError, Purpose};

/// Who this rank is, and its patience.
pub(super) struct Terms {
    pub(super) rank: u32,
    pub(super) size: u32,
    /// Of each rank.
    pub(super) lanes: u16,
    pub(super) connect_timeout: Duration,
    /// The rendezvous address, as the user wrote it.
    pub(super) place: HostPort,
    /// The ranks of a host probe one after another.
    pub(super) local_rank: usize,
}

/// Why rank 0 was not found.
pub(crate) enum Unfound {
    /// Nobody knows its name; the resolver's word.
    Unknown(String),
    Dial(DialError),
}

/// Something happened to this rank.
pub(super) enum Event {
    /// The outcome of `FindRankZero`: where it was found, and the connection.
    RankZero(std::result::Result<(SocketAddr, usize), Unfound>),
    /// A look-up of rank 0's name has ended; the resolver's word where it failed.
    Named(std::result::Result<(), String>),
    /// The outcome of `Probe`.
    Probed(Diagnosis),
    /// A `Dial` was made welcome there.
    Reached { epoch: u64, rank: u32, link: usize, leaf: LeafHash, at: SocketAddr },
    /// A `Dial` was not; `again` where it may yet be.
    Unreached { epoch: u64, rank: u32, again: bool, problem: String },
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
    /// Find out why rank 0 does not answer where its name leads.
    Probe,
    /// Dial a rank to watch it, at any of these addresses.
    Dial {
        epoch: u64,
        rank: u32,
        leaf: LeafHash,
        ways: Vec<SocketAddr>,
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

/// Somebody who is not rank 0 of this job, and never will be.
struct Stranger {
    reason: String,
    /// From when on it was always somebody else who answered.
    since: Instant,
    /// How many attempts since then have met nobody.
    unmet: u32,
}

/// A connection to rank 0 that was.
struct Lost {
    at: IpAddr,
    how: String,
}

/// The state of one rank.
pub(super) struct Attending {
    terms: Terms,
    /// Where ranks were found; without rank 0 while that is looked for.
    found: BTreeMap<u32, SocketAddr>,
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
    /// Who else answers in its place, where its name leads.
    stranger: Option<Stranger>,
    /// Strangers that were told of.
    told: BTreeSet<String>,
    /// Nobody knows its name; the resolver's word.
    unknown: Option<String>,
    /// Whether its name has led anywhere.
    was_known: bool,
    /// How the last connection to it ended, if there was one.
    lost: Option<Lost>,
    /// What was found out of its addresses.
    diagnosis: Option<Diagnosis>,
    /// When that was that nobody listens there.
    refused_at: Option<Instant>,
    /// Why ranks that this one dials are not reached.
    unreached: BTreeMap<u32, String>,
    /// How long they are left alone before the next attempt.
    pauses: BTreeMap<u32, Duration>,
    pause: Duration,
    began: Instant,
    say: Instant,
    probe: Instant,
    out: Vec<Action>,
}

impl Attending {
    /// Begins; the first actions.
    pub(super) fn new(terms: Terms, now: Instant) -> (Self, Vec<Action>) {
        // What the system does not need to ask for is known.
        let unknown = terms.place.ip().is_none().then(|| UNANSWERED.to_string());
        let attending = Self {
            probe: now + FIRST_PROBE + phase(&terms),
            terms,
            found: BTreeMap::new(),
            links: BTreeMap::new(),
            missing: None,
            proposal: None,
            mapped: None,
            acknowledged: false,
            early: Vec::new(),
            ahead: Vec::new(),
            problem: "nobody answers".into(),
            stranger: None,
            told: BTreeSet::new(),
            unknown,
            was_known: false,
            lost: None,
            diagnosis: None,
            refused_at: None,
            unreached: BTreeMap::new(),
            pauses: BTreeMap::new(),
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
        self.say.min(self.probe).min(self.deadline())
    }

    fn notice(&mut self, now: Instant, event: Event) -> Result<()> {
        match event {
            Event::RankZero(outcome) => return self.found(now, outcome),
            Event::Named(outcome) => {
                self.was_known |= outcome.is_ok();
                self.unknown = outcome.err();
            }
            Event::Probed(diagnosis) => self.probed(now, diagnosis),
            Event::Reached { epoch, rank, link, leaf, at } => {
                self.reached(epoch, (rank, leaf), link, at);
            }
            Event::Unreached { epoch, rank, again, problem } => {
                if self.epoch() == Some(epoch) {
                    self.unreached.insert(rank, problem);
                    if again {
                        self.dial_again(rank);
                    }
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
            return Err(self.give_up(so_far));
        }
        if now >= self.probe {
            self.probe = self.next_probe(now);
            if self.rank_0().is_none() {
                self.out.push(Action::Probe);
            }
        }
        if now >= self.say {
            self.say = now + SAY_EVERY;
            self.out.push(Action::Say(format!("{} ({so_far} so far)", self.waiting_for())));
        }
        Ok(())
    }

    fn found(
        &mut self,
        now: Instant,
        outcome: std::result::Result<(SocketAddr, usize), Unfound>,
    ) -> Result<()> {
        let error = match outcome {
            Ok((at, link)) => {
                self.found.insert(0, at);
                self.pause = FIRST_PAUSE;
                self.was_known = true;
                (self.unknown, self.diagnosis) = (None, None);
                (self.stranger, self.lost) = (None, None);
                self.take(0, link);
                self.out.push(Action::Beat);
                return Ok(());
            }
            Err(Unfound::Unknown(problem)) => {
                self.unknown = Some(problem);
                self.look_again();
                return Ok(());
            }
            Err(Unfound::Dial(error)) => error,
        };
        // There was somewhere to dial.
        if !std::mem::replace(&mut self.was_known, true) {
            self.unknown = None;
        }
        match error {
            DialError::Retry(problem) | DialError::Busy(problem) => {
                self.problem = problem;
                if let Some(stranger) = &mut self.stranger {
                    stranger.unmet += 1;
                    // One answer may be lost; the name may as well lead elsewhere by now.
                    self.stranger.take_if(|stranger| stranger.unmet >= GONE_AFTER);
                }
                self.look_again();
                Ok(())
            }
            // A name may lead to where rank 0 was, and somebody else is by now.
            DialError::Final(reason) | DialError::Elsewhere(reason)
                if self.terms.place.ip().is_none() =>
            {
                self.meet_stranger(now, reason)?;
                self.look_again();
                Ok(())
            }
            DialError::Final(reason) | DialError::Elsewhere(reason) => {
                Err(not_rank_0(&reason, reason.clone()))
            }
            DialError::Refused(reason, again) => Err(refused(reason, again)),
        }
    }

    /// Says at once what the user may have to mend.
    fn meet_stranger(&mut self, now: Instant, reason: String) -> Result<()> {
        if self.told.len() < MAX_TOLD && self.told.insert(reason.clone()) {
            let place = &self.terms.place;
            self.out.push(Action::Say(format!(
                "rank 0 is not found at {place}: {reason}; it is looked for on, as the name may \
                 lead elsewhere soon"
            )));
        }
        let since = self.stranger.as_ref().map_or(now, |stranger| stranger.since);
        self.stranger = Some(Stranger { reason, since, unmet: 0 });
        match now.saturating_duration_since(since) {
            met if met >= STRANGER_STAYS => Err(self.give_up(report::duration(met))),
            _ => Ok(()),
        }
    }

    /// The system's word that nobody listens is rare, and silence proves little beside it.
    fn probed(&mut self, now: Instant, diagnosis: Diagnosis) {
        let is_silent = matches!(diagnosis.sign, Sign::Filtered | Sign::Silent(_));
        let is_same = self.diagnosis.as_ref().is_some_and(|d| d.among == diagnosis.among);
        let counts = self.refused_at.is_some_and(|at| now < at + REFUSED_COUNTS);
        if is_silent && is_same && counts {
            return;
        }
        self.refused_at = (diagnosis.sign == Sign::Refused).then_some(now);
        self.diagnosis = Some(diagnosis);
    }

    fn look_again(&mut self) {
        self.out.push(Action::FindRankZero { after: self.pause });
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    fn obey(&mut self, message: Message) -> Result<()> {
        // A word from a connection that is lost already: the next one begins anew.
        if self.rank_0().is_none() {
            return Ok(());
        }
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
                    let found = std::mem::take(&mut self.found);
                    let meeting = Meeting { epoch, table, found, costs, shares, mapped };
                    self.out.push(Action::Finish(Ok(meeting), ahead));
                }
            }
            Message::Refused { reason, again } => {
                return Err(self.sent_away(report::printable(&reason), again));
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

    /// By rank 0, after it was made welcome there.
    fn sent_away(&self, reason: String, again: Again) -> Error {
        // Rank 0 cannot know why.
        let (reason, help) = match self.not_reached() {
            Some(problem) => (format!("{reason}; {problem}"), Some(PORTS_HELP.to_string())),
            None => (reason, None),
        };
        match (again, help) {
            // One deadline for all: nobody is to wait anew.
            (Again::GivenUp, help) => {
                let waited = report::duration(self.terms.connect_timeout);
                ErrorKind::ConnectTimeout { problem: reason, waited, help }.into()
            }
            (again, None) => refused(reason, again),
            (again, help) => {
                ErrorKind::Refused { reason, retryable: again != Again::Never, help }.into()
            }
        }
    }

    /// The world table, with hosts that a person can be shown, if it has the right form.
    fn check(&self, mut table: Vec<Entry>) -> Result<Vec<Entry>> {
        let in_order = table.iter().zip(0..).all(|(entry, rank)| entry.rank == rank);
        let lanes = usize::from(self.terms.lanes);
        let problem = if table.len() != self.terms.size as usize || !in_order {
            format!("a world table of {} ranks, or out of order", table.len())
        } else if let Some(entry) = table.iter().find(|entry| entry.lane_ports.len() != lanes) {
            format!("a world table with {} lanes of rank {}", entry.lane_ports.len(), entry.rank)
        } else if let Some(entry) = table.iter().find(|entry| entry.addresses.len() > MAX_WAYS) {
            format!("a world table with {} addresses of rank {}", entry.addresses.len(), entry.rank)
        } else {
            table.iter_mut().for_each(|entry| entry.host = report::printable(&entry.host));
            return Ok(table);
        };
        Err(Error::from(ErrorKind::Protocol { rank: 0, problem }))
    }

    /// A rank that this one dialled to watch it has answered.
    fn reached(&mut self, epoch: u64, (rank, leaf): (u32, LeafHash), link: usize, at: SocketAddr) {
        let Some(entry) = self.entry(epoch, rank) else {
            return self.out.push(Action::Discard { link });
        };
        if entry.leaf == leaf {
            self.unreached.remove(&rank);
            self.found.insert(rank, at);
            self.take(rank, link);
            self.acknowledge();
        } else {
            // Another process than rank 0 met.
            self.out.push(Action::Discard { link });
            self.dial_again(rank);
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
            Some(entry) if entry.leaf == knock.leaf => {
                self.found.insert(rank, knock.from);
                Action::Welcome { rank, link }
            }
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
            if let Some(at) = self.rank_0() {
                let how = format!("the connection to it ended ({how})");
                self.lost = Some(Lost { at: at.ip(), how });
            }
            self.found.clear();
            self.forget_proposal();
            self.out.push(Action::FindRankZero { after: self.pause });
        } else if rank > self.terms.rank {
            // Rank 0 notices too if that rank is gone, and starts over. If only this connection
            // is, nobody else will.
            self.dial_again(rank);
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
        self.unreached.clear();
        self.pauses.clear();
        for rank in self.to_watch() {
            self.forget_link(rank);
        }
    }

    fn forget_link(&mut self, rank: u32) {
        if self.links.remove(&rank).is_some() {
            self.out.push(Action::Drop(rank));
        }
    }

    /// After a pause, which grows: who answers may be another process, and busy.
    fn dial_again(&mut self, rank: u32) {
        let pause = self.pauses.entry(rank).or_insert(FIRST_PAUSE);
        let after = *pause;
        *pause = (after * 2).min(LAST_PAUSE);
        self.dial(rank, after);
    }

    /// Dials a rank to watch, for as long as the proposal stands.
    fn dial(&mut self, rank: u32, after: Duration) {
        let Some((epoch, table)) = &self.proposal else { return };
        let Some(entry) = table.get(rank as usize) else { return };
        let ways = entry.ways(None, entry.control_port, scope_of(self.rank_0()));
        self.out.push(Action::Dial { epoch: *epoch, rank, leaf: entry.leaf, ways, after });
    }

    fn waiting_for(&self) -> String {
        let place = &self.terms.place;
        if self.rank_0().is_none() {
            return format!("rank 0 is not found at {place}: {}", self.why_not_found());
        }
        match (&self.missing, self.not_reached()) {
            (_, Some(problem)) => format!("rank 0 at {place} has met all ranks, but {problem}"),
            (Some(missing), _) if !missing.is_empty() => {
                format!("rank 0 at {place} still waits for {}", ranks(missing))
            }
            _ => format!("rank 0 at {place} has not begun the world yet"),
        }
    }

    fn why_not_found(&self) -> String {
        let seen = self.diagnosis.as_ref().and_then(|d| d.problem(self.was_met()));
        let stranger = self.stranger.as_ref().map(|stranger| stranger.reason.clone());
        let here = || stranger.or(seen).unwrap_or_else(|| self.problem.clone());
        let why = match &self.unknown {
            Some(problem) if self.was_known => {
                format!("its name is unknown by now ({problem}), and where it led: {}", here())
            }
            Some(problem) => format!("its name is unknown so far ({problem})"),
            None => here(),
        };
        match &self.lost {
            Some(lost) => format!("{}; {why}", lost.how),
            None => why,
        }
    }

    /// Whether rank 0 once answered where the diagnosis is of.
    fn was_met(&self) -> bool {
        let seen = self.diagnosis.as_ref().map(|diagnosis| diagnosis.address.ip());
        self.lost.as_ref().is_some_and(|lost| Some(lost.at) == seen)
    }

    /// Which rank this one does not reach in the world that rank 0 proposes, and why.
    fn not_reached(&self) -> Option<String> {
        let (rank, problem) = self.unreached.first_key_value()?;
        let own = self.terms.rank;
        Some(format!("rank {own} does not reach rank {rank}: {problem}"))
    }

    fn give_up(&self, waited: String) -> Error {
        if let Some(problem) = self.unknown.as_ref().filter(|_| !self.was_known) {
            let (name, problem) = (self.terms.place.host.clone(), problem.clone());
            return ErrorKind::UnknownHost { name, problem, waited }.into();
        }
        if let (None, Some(stranger)) = (self.rank_0(), &self.stranger) {
            let problem = format!("{} (tried for {waited})", self.waiting_for());
            return not_rank_0(&stranger.reason, problem);
        }
        let help = match (self.rank_0(), self.not_reached()) {
            (None, _) => self
                .diagnosis
                .as_ref()
                .and_then(|diagnosis| diagnosis.help(&self.terms.place.host, self.was_met())),
            (Some(_), Some(_)) => Some(PORTS_HELP.into()),
            (Some(_), None) => None,
        };
        ErrorKind::ConnectTimeout { problem: self.waiting_for(), waited, help }.into()
    }

    /// Shortly before the next word to the user.
    fn next_probe(&self, now: Instant) -> Instant {
        let words = [self.say, self.say + SAY_EVERY, self.deadline()];
        let ahead = PROBE_AHEAD + phase(&self.terms);
        let moments = words.into_iter().filter_map(|word| word.checked_sub(ahead));
        moments.filter(|moment| *moment > now).min().unwrap_or_else(|| self.deadline())
    }

    fn rank_0(&self) -> Option<SocketAddr> {
        self.found.get(&0).copied()
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

/// The error where somebody answers who is not rank 0 of this job.
fn not_rank_0(who: &str, reason: String) -> Error {
    let help = match who.starts_with(ANOTHER_RANK) {
        true => {
            "ALLFOLD_RENDEZVOUS, or MASTER_ADDR and MASTER_PORT, must name rank 0's host and port \
             on every rank; is its port another rank's ALLFOLD_PORT?"
        }
        false => {
            "all ranks need one secret (ALLFOLD_SECRET_FILE, ALLFOLD_SECRET, else \
             ~/.allfold/secret; in Kubernetes one Secret, and pods that were started after its \
             last change) or certificates of one authority (ALLFOLD_TLS_*), one ALLFOLD_JOB and \
             one version of allfold"
        }
    };
    ErrorKind::Refused { reason, retryable: false, help: Some(help.into()) }.into()
}

/// When a rank probes among those of its host: one would take the answers from the other.
fn phase(terms: &Terms) -> Duration {
    let phase = diagnosis::PATIENCE * (terms.local_rank % PHASES) as u32;
    phase.min(terms.connect_timeout / 4)
}

const PORTS_HELP: &str = "UDP must pass between all hosts, both ways, on the ports of all ranks: \
                          ALLFOLD_PORT pins them for a firewall, ALLFOLD_INTERFACE says which \
                          network they use";
/// Before the first word of the resolver.
const UNANSWERED: &str = "the name server has not answered yet";
/// Attempts in a row that meet nobody where somebody else was.
const GONE_AFTER: u32 = 3;
/// By then a name leads where it should: clusters keep names for 30 s, and caches twice that.
const STRANGER_STAYS: Duration = Duration::from_secs(60);
/// Strangers to be told of.
const MAX_TOLD: usize = 8;
/// A rank that starts with the others has met rank 0 by then.
const FIRST_PROBE: Duration = Duration::from_millis(500);
/// For a probe to end.
const PROBE_AHEAD: Duration = diagnosis::PATIENCE.saturating_add(Duration::from_millis(500));
/// Between two words to the user.
const PHASES: usize = 5;
/// As long as three probes in turn.
const REFUSED_COUNTS: Duration = SAY_EVERY.saturating_mul(3);
/// For rank 0's word at its deadline to arrive.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// Twenty watchers dial at most; strangers do not get this far.
const MAX_EARLY: usize = 64;
/// A goodbye and a verdict from each of them.
const MAX_AHEAD: usize = 2 * MAX_EARLY;
