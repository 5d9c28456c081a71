//! What every rank but 0 decides while the ranks meet: finds rank 0, makes ready for the world it
//! proposes, and waits for the commit. Pure: events in, actions out, the clock passed in.

mod events;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::diagnosis;
use super::neighbours::{Mapped, neighbours};
use super::roster::ranks;
use super::search::{Search, Unfound};
use super::table::{self, Entry, scope_of};
use super::watching::watched;
use super::{FIRST_PAUSE, Knock, LAST_PAUSE, Meeting, SAY_EVERY, ended_early, refused};
use crate::config::HostPort;
use crate::control::endpoint::Message;
use crate::error::{Error, ErrorKind, Result};
use crate::report;
use crate::trust::certificates::LeafHash;
use crate::trust::hello::{Again, Purpose};

pub(super) use events::{Action, Event};

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
    search: Search,
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
        let attending = Self {
            probe: now + FIRST_PROBE + phase(&terms),
            search: Search::new(terms.place.clone()),
            terms,
            found: BTreeMap::new(),
            links: BTreeMap::new(),
            missing: None,
            proposal: None,
            mapped: None,
            acknowledged: false,
            early: Vec::new(),
            ahead: Vec::new(),
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
            Event::Named(outcome) => self.search.named(outcome),
            Event::Probed(diagnosis) => self.search.probed(now, diagnosis),
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
        match outcome {
            Ok((at, link)) => {
                self.found.insert(0, at);
                self.pause = FIRST_PAUSE;
                self.search.met();
                self.take(0, link);
                self.out.push(Action::Beat);
            }
            Err(why) => {
                let (word, outcome) = self.search.missed(now, why);
                self.out.extend(word.map(Action::Say));
                outcome?;
                self.look_again();
            }
        }
        Ok(())
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
                let (own, table) =
                    (self.terms.rank, table::check(table, self.terms.size, self.terms.lanes)?);
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
            | Message::Verdict(_)
            | Message::Differs { .. }
            | Message::Trail(_)
            | Message::Calls { .. } => {}
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
                self.search.lose(at.ip(), how);
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
            return self.search.why();
        }
        match (&self.missing, self.not_reached()) {
            (_, Some(problem)) => format!("rank 0 at {place} has met all ranks, but {problem}"),
            (Some(missing), _) if !missing.is_empty() => {
                format!("rank 0 at {place} still waits for {}", ranks(missing))
            }
            _ => format!("rank 0 at {place} has not begun the world yet"),
        }
    }

    /// Which rank this one does not reach in the world that rank 0 proposes, and why.
    fn not_reached(&self) -> Option<String> {
        let (rank, problem) = self.unreached.first_key_value()?;
        let own = self.terms.rank;
        Some(format!("rank {own} does not reach rank {rank}: {problem}"))
    }

    fn give_up(&self, waited: String) -> Error {
        if self.rank_0().is_none() {
            return self.search.give_up(waited);
        }
        let help = self.not_reached().map(|_| PORTS_HELP.into());
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

/// When a rank probes among those of its host: one would take the answers from the other.
fn phase(terms: &Terms) -> Duration {
    let phase = diagnosis::PATIENCE * (terms.local_rank % PHASES) as u32;
    phase.min(terms.connect_timeout / 4)
}

const PORTS_HELP: &str = "UDP must pass between all hosts, both ways, on the ports of all ranks: \
                          ALLFOLD_PORT pins them for a firewall, ALLFOLD_INTERFACE says which \
                          network they use";
/// A rank that starts with the others has met rank 0 by then.
const FIRST_PROBE: Duration = Duration::from_millis(500);
/// For a probe to end.
const PROBE_AHEAD: Duration = diagnosis::PATIENCE.saturating_add(Duration::from_millis(500));
/// Between two words to the user.
const PHASES: usize = 5;
/// For rank 0's word at its deadline to arrive.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// Twenty watchers dial at most; strangers do not get this far.
const MAX_EARLY: usize = 64;
/// A goodbye and a verdict from each of them.
const MAX_AHEAD: usize = 2 * MAX_EARLY;
