//! What rank 0 decides while it gathers the others: claims, refusals, prepare, commit, restart.
//! Pure: events in, actions out, the clock passed in.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::challenges::Challenges;
use super::neighbours::{Mapped, neighbours};
use super::roster::{Claim, Roster, ranks};
use super::table::{Entry, MAX_WAYS};
use super::{Knock, Meeting, SAY_EVERY, ended_early};
use crate::control::endpoint::Message;
use crate::control::launched::Obituary;
use crate::error::{Error, ErrorKind, Result};
use crate::link::shared_memory::Door;
use crate::plan::costs::CostTable;
use crate::report;
use crate::trust::hello::{Again, MAX_ADDRESSES, Purpose};

/// What all ranks must agree with, and rank 0's own patience.
pub(super) struct Terms {
    pub(super) size: u32,
    /// Of each rank.
    pub(super) lanes: u16,
    pub(super) version: String,
    pub(super) settings: Vec<(String, String)>,
    pub(super) heartbeat: Duration,
    pub(super) connect_timeout: Duration,
    /// The rendezvous address, as the user wrote it.
    pub(super) place: String,
    /// Where rank 0 listens, in words.
    pub(super) listens: String,
    /// Somebody else says how many processes there are than how many ranks.
    pub(super) is_in_kubernetes: bool,
}

/// Something happened to rank 0.
pub(super) enum Event {
    /// A peer dialled and said hello; it waits for `Welcome` or `Refuse`.
    Knocked(Box<Knock>),
    /// A rank is ready for the world of `epoch`.
    Prepared { rank: u32, epoch: u64, maps: bool },
    /// This rank has tried to map the memory of its neighbours.
    Mapped { epoch: u64, mapped: Mapped },
    /// When a rank that [`Gathering::asked`] names was last heard.
    Heard { rank: u32, at: Instant },
    /// A link ended, or the welcome for it did not get through.
    Ended { rank: u32, link: usize },
    /// The launcher saw a rank end.
    Obituary(Obituary),
    /// It is [`Gathering::wake`] or later.
    Time,
}

/// What rank 0 must do, in this order.
pub(super) enum Action {
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
    /// Close the rank's link and forget it.
    Drop(u32),
    Post(u32, Message),
    PostAll(Message),
    /// Map the memory behind these doors.
    Map {
        epoch: u64,
        doors: Vec<(u32, Door)>,
    },
    /// A warning for the log.
    Say(String),
    /// The gathering is over.
    Finish(Result<Meeting>),
}

/// The state of rank 0. `D` draws epochs.
pub(super) struct Gathering<D> {
    terms: Terms,
    roster: Roster,
    /// The connection of every rank that has come.
    links: BTreeMap<u32, usize>,
    /// Where they came from.
    found: BTreeMap<u32, SocketAddr>,
    /// Why ranks were refused that have not come since.
    turned_away: BTreeMap<u32, String>,
    /// The world that is being prepared.
    prepared: Option<(u64, Vec<Entry>)>,
    /// Memory that this rank has mapped for it.
    mapped: Mapped,
    /// Processes that claim a rank whose holder is being asked.
    challenges: Challenges,
    draw: D,
    began: Instant,
    tell: Instant,
    say: Instant,
    out: Vec<Action>,
}

impl<D: FnMut() -> Result<u64>> Gathering<D> {
    /// Begins with rank 0's own entry.
    pub(super) fn new(terms: Terms, own: Entry, draw: D, now: Instant) -> Self {
        Self {
            roster: Roster::new(terms.size, own),
            links: BTreeMap::new(),
            found: BTreeMap::new(),
            turned_away: BTreeMap::new(),
            prepared: None,
            mapped: Mapped::default(),
            challenges: Challenges::new(terms.heartbeat, now),
            draw,
            began: now,
            tell: now + TELL_EVERY,
            say: now + SAY_EVERY,
            out: Vec::new(),
            terms,
        }
    }

    /// Takes an event; what is to be done about it.
    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        if let Err(error) = self.notice(now, event) {
            self.out.push(Action::Finish(Err(error)));
        } else if self.roster.is_complete() {
            match (self.draw)() {
                Ok(epoch) => self.prepare(epoch),
                Err(error) => self.out.push(Action::Finish(Err(error))),
            }
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Time`] is due.
    pub(super) fn wake(&self) -> Instant {
        let next = self.tell.min(self.deadline());
        self.challenges.wake().map_or(next, |wake| next.min(wake))
    }

    /// The ranks whose holders are being asked: [`Event::Heard`] is due for them before every
    /// [`Event::Time`].
    pub(super) fn asked(&self) -> impl Iterator<Item = u32> {
        self.challenges.asked()
    }

    fn notice(&mut self, now: Instant, event: Event) -> Result<()> {
        match event {
            Event::Knocked(knock) => self.consider(now, *knock),
            Event::Prepared { rank, epoch, maps } => self.ready(rank, epoch, maps),
            Event::Mapped { epoch, mapped } => {
                // It may be late, and of a world that came to nothing.
                if self.prepared.as_ref().is_some_and(|(prepared, _)| *prepared == epoch) {
                    let is_all = mapped.is_all();
                    self.mapped = mapped;
                    self.ready(0, epoch, is_all);
                }
            }
            Event::Heard { rank, at } => {
                let challengers = self.challenges.heard(rank, at);
                self.refuse_all(challengers);
            }
            Event::Ended { rank, link } => {
                if self.links.get(&rank) == Some(&link) {
                    self.lose(rank);
                    self.reconsider(now, rank);
                }
            }
            // Under a launcher nobody comes back.
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
        if now >= self.deadline() {
            return Err(self.give_up());
        }
        self.look(now);
        if now < self.tell {
            return Ok(());
        }
        self.tell = now + TELL_EVERY;
        let missing = self.roster.missing();
        if missing.is_empty() {
            return Ok(());
        }
        if now >= self.say {
            self.say = now + SAY_EVERY;
            let so_far = report::duration(now - self.began);
            let (missing, place) = (ranks(&missing), &self.terms.place);
            self.out
                .push(Action::Say(format!("waiting for {missing} at {place} ({so_far} so far)")));
        }
        self.out.push(Action::PostAll(Message::Missing(missing)));
        Ok(())
    }

    /// Takes a newcomer in, or tells it why not, or asks the holder of its rank first.
    fn consider(&mut self, now: Instant, knock: Knock) {
        let rank = knock.hello.rank;
        let Purpose::Join { settings, addresses, chosen, control_port, lane_ports, door } =
            &knock.hello.purpose
        else {
            let reason = "rank 0 is not part of that world any more".to_string();
            return self.out.push(Action::Refuse { link: knock.link, reason, again: Again::Soon });
        };
        if let Some(reason) = self.disagreement(rank, &knock.hello.version, settings) {
            if rank < self.terms.size {
                self.turned_away.insert(rank, reason.clone());
            }
            return self.out.push(Action::Refuse { link: knock.link, reason, again: Again::Never });
        }
        if lane_ports.len() != usize::from(self.terms.lanes) {
            let (ports, lanes) = (lane_ports.len(), self.terms.lanes);
            let reason = format!("rank {rank} names {ports} data ports for {lanes} lanes");
            return self.out.push(Action::Refuse { link: knock.link, reason, again: Again::Never });
        }
        if addresses.len() > MAX_ADDRESSES {
            let named = addresses.len();
            let reason = format!("rank {rank} names {named} addresses, more than {MAX_ADDRESSES}");
            return self.out.push(Action::Refuse { link: knock.link, reason, again: Again::Never });
        }
        let seen = Some(knock.from.ip()).filter(|ip| match ip {
            _ if addresses.contains(ip) => true,
            // Of one cable: nobody takes it who has another.
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                addresses.iter().all(IpAddr::is_loopback)
            }
            // By which packets to rank 0 leave is not what its user has chosen.
            ip => !chosen && !ip.is_loopback() || addresses.is_empty(),
        });
        let told = addresses.iter().copied().filter(|ip| Some(*ip) != seen);
        let from = knock.from;
        let entry = Entry {
            rank,
            host: knock.hello.host.clone(),
            pid: knock.hello.pid,
            habitat: knock.hello.habitat,
            incarnation: knock.hello.incarnation,
            addresses: seen.into_iter().chain(told).collect(),
            chosen: *chosen,
            control_port: *control_port,
            lane_ports: lane_ports.clone(),
            // A process has one leaf for control and data.
            leaf: knock.leaf,
            door: *door,
        };
        match self.roster.claim(entry.clone()) {
            Claim::Held if rank == 0 => self.refuse_second(knock),
            Claim::Held => self.challenges.add(now, knock),
            Claim::Taken => {
                if self.links.contains_key(&rank) {
                    // The same process on a new connection: what it was told on the old one may
                    // be lost. And it lives, so nobody else can be this rank.
                    self.lose(rank);
                    self.roster.claim(entry);
                    let challengers = self.challenges.of(rank);
                    self.refuse_all(challengers);
                }
                self.turned_away.remove(&rank);
                self.found.insert(rank, from);
                self.welcome(rank, knock.link);
            }
        }
    }

    /// What a newcomer has set otherwise than this rank.
    fn disagreement(
        &self,
        rank: u32,
        version: &str,
        settings: &[(String, String)],
    ) -> Option<String> {
        let ours = &self.terms.version;
        if version != ours {
            return Some(format!("rank {rank} runs allfold {version}, rank 0 runs {ours}"));
        }
        for (name, value) in &self.terms.settings {
            let theirs = settings.iter().find(|(other, _)| other == name).map(|(_, v)| v.as_str());
            if theirs != Some(value) {
                let theirs = theirs.unwrap_or("unknown");
                return Some(format!("{name} is {value} on rank 0, but {theirs} on rank {rank}"));
            }
        }
        let size = self.terms.size;
        (rank >= size).then(|| format!("rank {rank} in a world of {size}"))
    }

    fn welcome(&mut self, rank: u32, link: usize) {
        self.links.insert(rank, link);
        self.out.push(Action::Welcome { rank, link });
        let missing = self.roster.missing();
        if !missing.is_empty() {
            self.out.push(Action::Post(rank, Message::Missing(missing)));
        }
    }

    /// Judges the holders that are being asked.
    fn look(&mut self, now: Instant) {
        if self.challenges.look(now) {
            while let Some(rank) = self.challenges.silent(now) {
                self.lose(rank);
                self.reconsider(now, rank);
            }
        }
    }

    /// The rank is free: whoever asked for it first may have it.
    fn reconsider(&mut self, now: Instant, rank: u32) {
        for knock in self.challenges.of(rank) {
            self.consider(now, knock);
        }
    }

    fn refuse_all(&mut self, challengers: Vec<Knock>) {
        challengers.into_iter().for_each(|knock| self.refuse_second(knock));
    }

    fn refuse_second(&mut self, knock: Knock) {
        let rank = knock.hello.rank;
        let holder = self.roster.holder(rank);
        let (host, pid) = holder.map_or(("unknown", 0), |entry| (entry.host.as_str(), entry.pid));
        let reason = format!(
            "rank {rank} is already held by {host}, pid {pid}: two processes have the same \
             ALLFOLD_RANK, or two jobs meet here under the same ALLFOLD_JOB"
        );
        self.out.push(Action::Refuse { link: knock.link, reason, again: Again::Never });
    }

    fn lose(&mut self, rank: u32) {
        self.found.remove(&rank);
        if self.links.remove(&rank).is_some() {
            self.out.push(Action::Drop(rank));
        }
        if self.roster.leave(rank) {
            self.prepared = None;
            self.out.push(Action::PostAll(Message::Restart));
        }
    }

    fn prepare(&mut self, epoch: u64) {
        // 0 means "no world yet" in heartbeats.
        let epoch = epoch.max(1);
        let mut table = self.roster.prepare(epoch);
        let most = most_addresses(self.terms.size);
        table.iter_mut().for_each(|entry| entry.addresses.truncate(most));
        self.out.push(Action::PostAll(Message::Prepare { epoch, table: table.clone() }));
        self.out.push(Action::Map { epoch, doors: neighbours(&table, 0) });
        self.prepared = Some((epoch, table));
    }

    fn ready(&mut self, rank: u32, epoch: u64, maps: bool) {
        if self.roster.ready(rank, epoch, maps)
            && let Some((epoch, table)) = self.prepared.take()
        {
            let costs = match self.found.values().all(|from| from.ip().is_loopback()) {
                true => CostTable::default(),
                false => CostTable::network(),
            };
            let shares = self.roster.shares();
            let commit = Message::Commit { epoch, costs: costs.clone(), shares: shares.clone() };
            self.out.push(Action::PostAll(commit));
            let (found, mapped) = (self.found.clone(), std::mem::take(&mut self.mapped));
            let meeting = Meeting { epoch, table, found, costs, shares, mapped };
            self.out.push(Action::Finish(Ok(meeting)));
        }
    }

    fn give_up(&mut self) -> Error {
        let missing = self.roster.missing();
        let place = &self.terms.place;
        let problem = if missing.is_empty() {
            format!("the ranks could not connect to each other before the deadline at {place}")
        } else {
            let (refused, absent): (Vec<u32>, Vec<u32>) =
                missing.iter().partition(|rank| self.turned_away.contains_key(rank));
            let came = refused.first().and_then(|rank| self.turned_away.get_key_value(rank));
            let came = came.map(|(rank, reason)| {
                let others = match &refused[1..] {
                    [] => String::new(),
                    [other] => format!("; so was rank {other}"),
                    others => format!("; so were {}", ranks(others)),
                };
                format!("rank {rank} came to {place} and was refused: {reason}{others}")
            });
            let absent =
                (!absent.is_empty()).then(|| format!("{} did not come to {place}", ranks(&absent)));
            absent.into_iter().chain(came).collect::<Vec<_>>().join("; ")
        };
        let (reason, again) = (problem.clone(), Again::GivenUp);
        self.out.push(Action::PostAll(Message::Refused { reason, again }));
        let waited = report::duration(self.terms.connect_timeout);
        let help = (!missing.is_empty() && self.turned_away.is_empty()).then(|| {
            format!(
                "look at the log of each: it says whether it started, and what it finds at {place}; \
                 rank 0 listens {}; {}{}ALLFOLD_CONNECT_TIMEOUT sets the wait",
                self.terms.listens,
                self.perhaps_fewer(&missing),
                match self.terms.is_in_kubernetes {
                    true => "`spec.replicas` must be the world size (`kubectl get pods` shows \
                             which there are); ",
                    false => "",
                }
            )
        });
        ErrorKind::ConnectTimeout { problem, waited, help }.into()
    }

    /// Where the last ranks are missing, and no others: there may never have been so many.
    fn perhaps_fewer(&self, missing: &[u32]) -> String {
        let size = self.terms.size;
        match missing.first() {
            Some(first) if first + missing.len() as u32 == size => format!(
                "where no more than {first} were to start, the world size is {first}, not {size} \
                 (ALLFOLD_WORLD_SIZE); "
            ),
            _ => String::new(),
        }
    }

    fn deadline(&self) -> Instant {
        self.began + self.terms.connect_timeout
    }
}

/// Of each rank in a world table, which must fit into `MAX_CONTROL_BYTES`: a rank takes some 200
/// bytes, and an address up to 20.
fn most_addresses(size: u32) -> usize {
    match size {
        0..=8_192 => MAX_WAYS,
        8_193..=32_768 => 4,
        _ => 1,
    }
}

/// How often the waiting ranks are told who is missing.
const TELL_EVERY: Duration = Duration::from_secs(1);
