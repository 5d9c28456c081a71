//! The side of every rank but 0, with connections and timers: feeds what happens to `attending`,
//! and does what it says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::attending::{self, Action, Attending, Terms};
use super::control_thread::Me;
use super::diagnosis::{self, Diagnosis};
use super::neighbours::map;
use super::resolver::Resolver;
use super::search::Unfound;
use super::{Knock, Meeting, addresses, sockets};
use crate::config::HostPort;
#[cfg(feature = "faults")]
use crate::control::endpoint::Message;
use crate::control::endpoint::{Control, Event};
use crate::error::Result;
#[cfg(feature = "faults")]
use crate::faults;
use crate::link::quic::{endpoint, tuning::Traffic};
use crate::report;
use crate::trust::certificates::LeafHash;
use crate::trust::hello::{DialError, Greeted, Hello, Purpose, Welcomed};

/// The outcome of a dialling task.
pub(crate) enum Dialled {
    /// Rank 0, if it was found.
    RankZero(std::result::Result<Box<Welcomed>, Unfound>),
    /// A look-up of rank 0's name has ended; the resolver's word where it failed.
    Named(std::result::Result<(), String>),
    /// What was found out of rank 0's addresses.
    Probed(Diagnosis),
    /// A rank to watch, in this epoch.
    Watch { epoch: u64, rank: u32, outcome: std::result::Result<Box<Welcomed>, DialError> },
}

/// Attends the gathering at rank 0.
pub(super) async fn attend(
    control: &Rc<Control>,
    me: &Me,
    events: &mut mpsc::UnboundedReceiver<Event>,
) -> Result<Meeting> {
    let terms = Terms {
        rank: control.rank(),
        size: control.config.size() as u32,
        lanes: control.config.lanes,
        connect_timeout: control.config.connect_timeout,
        place: control.config.rendezvous.clone(),
        local_rank: control.config.local_rank(),
    };
    let (mut attending, actions) = Attending::new(terms, Instant::now());
    let mut guest = Guest {
        control,
        me,
        resolver: Resolver::new(),
        knocking: BTreeMap::new(),
        dialled: BTreeMap::new(),
    };
    if let Some(outcome) = guest.carry_out(&mut attending, actions).await {
        return outcome;
    }
    loop {
        let event = tokio::select! {
            Some(event) = events.recv() => guest.translate(event),
            () = tokio::time::sleep_until(attending.wake().into()) => attending::Event::Time,
        };
        let actions = attending.on(Instant::now(), event);
        if let Some(outcome) = guest.carry_out(&mut attending, actions).await {
            return outcome;
        }
    }
}

/// Carries out what the attending rank decides.
struct Guest<'a> {
    control: &'a Rc<Control>,
    me: &'a Me,
    /// Of rank 0's name.
    resolver: Rc<Resolver>,
    /// Who has knocked and not been answered, by connection.
    knocking: BTreeMap<usize, Box<Greeted>>,
    /// Who has made this rank welcome and is no link yet, by connection.
    dialled: BTreeMap<usize, Box<Welcomed>>,
}

impl Guest<'_> {
    fn translate(&mut self, event: Event) -> attending::Event {
        match event {
            Event::Greeted(greeted) => {
                let knock = Knock::of(&greeted);
                self.knocking.insert(knock.link, greeted);
                attending::Event::Knocked(knock)
            }
            Event::Message(rank, message, share) => {
                // How many are held over has a limit of its own.
                drop(share);
                #[cfg(feature = "faults")]
                if let Message::Prepare { table, .. } = &message {
                    faults::meet_table(table, &BTreeMap::new());
                }
                attending::Event::Message(rank, message)
            }
            Event::Mapped { epoch, mapped } => attending::Event::Mapped { epoch, mapped },
            Event::Ended { rank, link, how } => {
                attending::Event::Ended { rank, link, how: how.to_string() }
            }
            Event::Obituary(obituary) => attending::Event::Obituary(obituary),
            // Only of a world that has begun.
            Event::Gone(_) | Event::Asked(_) => attending::Event::Time,
            Event::Dialled(Dialled::RankZero(outcome)) => {
                let found = |welcomed: Box<Welcomed>| (welcomed.address(), self.keep(welcomed));
                attending::Event::RankZero(outcome.map(found))
            }
            Event::Dialled(Dialled::Named(what)) => attending::Event::Named(what),
            Event::Dialled(Dialled::Probed(diagnosis)) => attending::Event::Probed(diagnosis),
            Event::Dialled(Dialled::Watch { epoch, rank, outcome }) => match outcome {
                Ok(welcomed) => {
                    let (leaf, at) = (welcomed.leaf, welcomed.address());
                    attending::Event::Reached { epoch, rank, link: self.keep(welcomed), leaf, at }
                }
                Err(error) => {
                    // One that refuses runs in another world by now.
                    let again = !matches!(error, DialError::Refused(..));
                    let problem = error.to_string();
                    attending::Event::Unreached { epoch, rank, again, problem }
                }
            },
        }
    }

    fn keep(&mut self, welcomed: Box<Welcomed>) -> usize {
        let link = welcomed.connection.stable_id();
        self.dialled.insert(link, welcomed);
        link
    }

    /// Does as told, and what comes of it; the outcome of the meeting once it is over.
    async fn carry_out(
        &mut self,
        attending: &mut Attending,
        mut actions: Vec<Action>,
    ) -> Option<Result<Meeting>> {
        while !actions.is_empty() {
            let mut next = Vec::new();
            for action in actions {
                match action {
                    Action::Finish(outcome, ahead) => {
                        for (rank, message) in ahead {
                            let _ = self.control.events.send(Event::Message(rank, message, None));
                        }
                        return Some(outcome);
                    }
                    Action::Welcome { rank, link } => {
                        let greeted = self.knocking.remove(&link);
                        if greeted.is_some_and(|greeted| self.control.welcome(rank, *greeted)) {
                            let linked = attending::Event::Linked { rank, link };
                            next.extend(attending.on(Instant::now(), linked));
                        }
                    }
                    action => self.act(action).await,
                }
            }
            actions = next;
        }
        None
    }

    async fn act(&mut self, action: Action) {
        let control = self.control;
        match action {
            Action::FindRankZero { after } => self.find_rank_0(after),
            Action::Probe => self.probe(),
            Action::Dial { epoch, rank, leaf, ways, after } => {
                self.dial_peer(epoch, (rank, leaf), ways, after);
            }
            Action::Take { rank, link } => {
                if let Some(welcomed) = self.dialled.remove(&link) {
                    let Welcomed { connection, sender, receiver, .. } = *welcomed;
                    control.add_link(rank, connection, sender, receiver);
                }
                #[cfg(feature = "faults")]
                if rank == 0 {
                    faults::happens(|rank| faults::Moment::Gathering { rank });
                }
            }
            Action::Discard { link } => _ = self.dialled.remove(&link),
            Action::Refuse { link, reason, again } => {
                if let Some(greeted) = self.knocking.remove(&link) {
                    greeted.refuse(reason, again).await;
                }
            }
            Action::Map { epoch, doors } => map(control, epoch, doors),
            Action::Drop(rank) => control.drop_link(rank),
            Action::Post(message) => {
                control.post(0, message);
                // The one message of a rank that attends: that it is ready.
                #[cfg(feature = "faults")]
                faults::happens(|rank| faults::Moment::Prepared { rank });
            }
            Action::Beat => control.send_beats(),
            Action::Say(line) => report::warn(&line),
            // Done in `carry_out`.
            Action::Welcome { .. } | Action::Finish(..) => {}
        }
    }

    /// Looks for rank 0 anew after a pause: its name may lead elsewhere by then.
    fn find_rank_0(&self, after: Duration) {
        let (control, hello) = (self.control.clone(), self.me.hello.clone());
        let resolver = self.resolver.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            let (place, events) = (control.config.rendezvous.clone(), control.events.clone());
            let told = move |what| _ = events.send(Event::Dialled(Dialled::Named(what)));
            let outcome = match resolver.look_up(|| ask(place), told).await {
                Ok(ways) => {
                    #[cfg(feature = "faults")]
                    ways.iter().for_each(|way| faults::meet(0, *way));
                    let outcome = dial(&control, &hello, (0, None), ways).await;
                    outcome.map(Box::new).map_err(Unfound::Dial)
                }
                Err(problem) => Err(Unfound::Unknown(problem)),
            };
            let _ = control.events.send(Event::Dialled(Dialled::RankZero(outcome)));
        });
    }

    fn dial_peer(
        &self,
        epoch: u64,
        (rank, leaf): (u32, LeafHash),
        ways: Vec<SocketAddr>,
        after: Duration,
    ) {
        let (control, mut hello) = (self.control.clone(), self.me.hello.clone());
        hello.purpose = Purpose::Watch { epoch };
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            let outcome = dial(&control, &hello, (rank, Some(leaf)), ways).await.map(Box::new);
            let _ = control.events.send(Event::Dialled(Dialled::Watch { epoch, rank, outcome }));
        });
    }

    /// Finds out why rank 0 does not answer.
    fn probe(&self) {
        let (events, known) = (self.control.events.clone(), self.resolver.known());
        tokio::task::spawn_local(async move {
            if let Some(diagnosis) = diagnosis::look(known).await {
                let _ = events.send(Event::Dialled(Dialled::Probed(diagnosis)));
            }
        });
    }
}

/// Where rank 0's name leads, as the system says.
async fn ask(place: HostPort) -> std::result::Result<Vec<SocketAddr>, String> {
    match tokio::net::lookup_host((place.host.as_str(), place.port)).await {
        Ok(found) => Ok(addresses::of_name(found)),
        Err(error) => Err(sockets::resolvers_word(&error)),
    }
}

async fn dial(
    control: &Control,
    hello: &Hello,
    who: (u32, Option<LeafHash>),
    ways: Vec<SocketAddr>,
) -> std::result::Result<Welcomed, DialError> {
    let caller = endpoint::Caller {
        endpoint: &control.endpoint,
        membership: &control.membership,
        traffic: Traffic::Control,
    };
    caller.dial_any(who, ways, hello, DIAL_LIMIT).await
}

/// One attempt. Rank 0 may need 1.5 s to ask the holder of a rank.
const DIAL_LIMIT: Duration = Duration::from_secs(3);
