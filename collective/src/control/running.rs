//! The control endpoint once the world has begun: passes verdicts on, exchanges goodbyes, judges
//! losses, and refuses newcomers with a reason.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::endpoint::{Control, Event, LinkEnd, Message};
use super::hearsay::{Hearsay, word_of};
use super::launched::{Ending, Obituary};
use super::witnesses::Witnesses;
use super::{Command, Flooded, comparison, processes};
use crate::rendezvous::ALL_WATCH_ALL;
use crate::report;
use crate::statistics::Refusal;
use crate::trust::hello::{Again, Greeted, Purpose};
use crate::verdict::Loss;
use crate::world::{Goodbye, World};

/// Serves the world until `Close`.
pub(crate) async fn serve(
    control: Rc<Control>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    mut events: mpsc::UnboundedReceiver<Event>,
    flooded: Flooded,
) {
    let world = loop {
        match commands.recv().await {
            Some(Command::Serve(world)) => break world,
            Some(Command::Close) | None => return shut(&control).await,
            Some(_) => {}
        }
    };
    let _ = control.world.set(world.clone());
    control.send_beats();
    let witnesses = Witnesses::new(control.clone(), world.clone());
    let running = Rc::new(Running {
        control,
        world,
        flooded,
        witnesses,
        left: Cell::new(None),
        hearsay: RefCell::default(),
        mourned: RefCell::default(),
    });
    running.watch_processes();
    let mut closing = false;
    while !closing {
        tokio::select! {
            command = commands.recv() => closing = running.obey(command),
            Some(event) = events.recv() => running.notice(event),
        }
    }
    // The peers' answers to a goodbye, and their goodbyes, still come as events.
    let drained = running.drained();
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => break,
            // A goodbye that comes only now may lead to a verdict.
            Some(command) = commands.recv() => {
                running.obey(Some(command));
            }
            Some(event) = events.recv() => running.notice(event),
        }
    }
    if running.world.error().is_some() {
        while let Ok(command) = commands.try_recv() {
            running.obey(Some(command));
        }
        tokio::time::sleep(SEND_TURN).await;
    }
    shut(&running.control).await;
}

struct Running {
    control: Rc<Control>,
    world: Arc<World>,
    flooded: Flooded,
    witnesses: Witnesses,
    /// When this rank left.
    left: Cell<Option<Instant>>,
    hearsay: RefCell<Hearsay>,
    /// The ranks of whose ends the launcher has told.
    mourned: RefCell<HashSet<u32>>,
}

impl Running {
    /// Carries out a command; true if it is the last.
    fn obey(&self, command: Option<Command>) -> bool {
        match command {
            Some(Command::Flood(verdict)) => {
                self.control.post_all(&Message::Verdict(verdict));
                let (control, flooded) = (self.control.clone(), self.flooded.clone());
                tokio::task::spawn_local(async move {
                    wait_until(&control, || control.is_written()).await;
                    // Written is not sent yet: the endpoint's own task does that next.
                    tokio::time::sleep(SEND_TURN).await;
                    flooded.set();
                });
                false
            }
            Some(Command::Goodbye(Goodbye { group, members, calls, hash })) => {
                let (origin, members) = (self.world.rank, members.to_vec());
                self.spread(None, Message::Goodbye { origin, group, members, calls, hash });
                false
            }
            Some(Command::Leave) => {
                self.left.set(Some(Instant::now()));
                self.spread(None, Message::Leave { origin: self.world.rank });
                false
            }
            Some(Command::Stuck(collector, stuck)) => {
                match collector == self.world.rank {
                    true => self.world.note_stuck(collector, stuck, Instant::now()),
                    false => self.control.post(collector, Message::Stuck(stuck)),
                }
                false
            }
            Some(Command::CompareCalls(peer, group)) => {
                comparison::begin(&self.control, &self.world, peer, group);
                false
            }
            Some(Command::Serve(_)) => false,
            Some(Command::Close) | None => true,
        }
    }

    fn notice(self: &Rc<Self>, event: Event) {
        match event {
            Event::Message(rank, message, _) if !self.may_say(rank, &message) => {}
            Event::Message(rank, Message::Verdict(verdict), _) => {
                if let Some(link) = self.control.links.borrow().get(&rank) {
                    link.knows_verdict.set(true);
                }
                self.control.changed.notify_waiters();
                self.world.settle(verdict.printable());
            }
            Event::Message(
                rank,
                message @ (Message::Goodbye { .. } | Message::Leave { .. }),
                _,
            ) => {
                self.hear_goodbye(rank, message);
            }
            Event::Message(rank, Message::Stuck(stuck), _) => {
                self.world.note_stuck(rank, stuck, Instant::now());
            }
            Event::Message(rank, Message::LeaveRead, _) => {
                if let Some(link) = self.control.links.borrow().get(&rank) {
                    link.leave_read.set(true);
                }
                self.control.changed.notify_waiters();
            }
            Event::Message(rank, Message::Silent { rank: about }, _) => {
                self.witnesses.testify(rank, about);
            }
            Event::Message(rank, Message::Heard { rank: about, ago_ms, left }, _) => {
                self.witnesses.answer(rank, about, ago_ms.map(Duration::from_millis), left);
                if self.world.has_left(about) {
                    self.believe(about);
                }
            }
            Event::Message(rank, Message::Differs { group }, _) => {
                comparison::hear(&self.control, &self.world, rank, group);
            }
            Event::Message(rank, Message::Trail(trail), _) => {
                comparison::answer(&self.control, &self.world, rank, &trail);
            }
            Event::Message(rank, Message::Calls { group, calls }, _) => {
                comparison::conclude(&self.world, rank, group, &calls);
            }
            Event::Asked(rank) => self.witnesses.conclude(rank),
            Event::Gone(rank) => self.process_ended(rank),
            Event::Ended { rank, link, how } => self.link_ended(rank, link, how),
            Event::Obituary(obituary) => self.rank_ended(&obituary),
            // Late words of the rendezvous.
            Event::Message(..) | Event::Dialled(_) | Event::Mapped { .. } => {}
            Event::Greeted(greeted) => {
                tokio::task::spawn_local(refuse(self.world.clone(), *greeted));
            }
        }
    }

    /// Whether the words are possible from `rank`: where all have links to each other nobody speaks
    /// for others, nowhere for this rank, and every rank that is named is one of the world.
    fn may_say(&self, rank: u32, message: &Message) -> bool {
        let size = self.world.peers.len();
        let speaks_for = |origin: u32| {
            let for_others = size > ALL_WATCH_ALL as usize && origin != self.world.rank;
            origin == rank || for_others && (origin as usize) < size
        };
        match message {
            Message::Goodbye { origin, members, .. } => {
                speaks_for(*origin) && members.len() <= size
            }
            Message::Leave { origin } => speaks_for(*origin),
            Message::Verdict(verdict) => {
                (verdict.culprit as usize) < size && (verdict.seen_by as usize) < size
            }
            _ => true,
        }
    }

    /// A goodbye, from its origin or passed on by another rank.
    fn hear_goodbye(&self, from: u32, message: Message) {
        let Some(word) = word_of(&message) else { return };
        let (origin, _) = word;
        if origin != from {
            if self.hearsay.borrow().is_stale(word) {
                return;
            }
            if self.speaks_itself(origin) {
                return self.hearsay.borrow_mut().keep(from, word, message);
            }
            // What came before it, first.
            self.believe(origin);
        }
        self.take_goodbye(from, message);
    }

    /// Whether a rank's own goodbyes are still to come, over a link.
    fn speaks_itself(&self, rank: u32) -> bool {
        let links = self.control.links.borrow();
        links.get(&rank).is_some_and(|link| !link.is_closed()) && !self.world.has_left(rank)
    }

    /// Takes what others said of a rank that says no more itself.
    fn believe(&self, rank: u32) {
        let kept = self.hearsay.borrow_mut().take(rank);
        for (from, message) in kept {
            if word_of(&message).is_some_and(|word| !self.hearsay.borrow().is_stale(word)) {
                self.take_goodbye(from, message);
            }
        }
    }

    fn take_goodbye(&self, from: u32, message: Message) {
        match message {
            Message::Goodbye { origin, group, ref members, calls, hash } => {
                if members.contains(&self.world.rank) {
                    self.world.note_goodbye(origin, group, calls, hash);
                }
                self.spread(Some(from), message);
            }
            Message::Leave { origin } => {
                self.world.note_left(origin);
                self.spread(Some(from), message);
                if origin == from {
                    self.hearsay.borrow_mut().complete(origin);
                    self.control.post(from, Message::LeaveRead);
                }
                self.control.changed.notify_waiters();
            }
            _ => {}
        }
    }

    /// Tells the other ranks of a goodbye: in small worlds each has a link, in large ones every rank
    /// passes it on, once. On every link a rank's goodbyes keep their order.
    fn spread(&self, from: Option<u32>, message: Message) {
        let Some(word) = word_of(&message) else { return };
        let (origin, _) = word;
        if self.world.peers.len() <= ALL_WATCH_ALL as usize {
            if from.is_none() {
                self.control.post_all(&message);
            }
            return;
        }
        if !self.hearsay.borrow_mut().note(word) {
            return;
        }
        self.control.post_some(&message, |rank| Some(rank) != from && rank != origin);
    }

    fn link_ended(self: &Rc<Self>, rank: u32, link: usize, how: LinkEnd) {
        let current = self.control.links.borrow().get(&rank).map(|l| l.connection.stable_id());
        if current != Some(link) || self.world.has_left(rank) {
            return;
        }
        match how {
            LinkEnd::Silent(_) => self.witnesses.ask(rank),
            // Its goodbye or a verdict may still be on its way through another rank.
            LinkEnd::Closed(problem) => {
                self.lose_after(CLOSE_GRACE, rank, Loss::Closed { problem });
            }
        }
    }

    fn rank_ended(self: &Rc<Self>, obituary: &Obituary) {
        let Obituary { rank, ending, .. } = *obituary;
        // A rank that this one does not watch has said its goodbye to others only: they judge.
        if !self.control.links.borrow().contains_key(&rank) {
            return;
        }
        let grace = match ending {
            Ending::Signal(_) | Ending::OutOfMemory => Duration::ZERO,
            // It may have said goodbye and ended well: its last packets may not be read yet.
            Ending::Exit(_) => EXIT_GRACE,
        };
        self.mourned.borrow_mut().insert(rank);
        self.lose_after(grace, rank, Loss::Ended(ending));
    }

    /// The process of `rank`, on this host, is gone.
    fn process_ended(self: &Rc<Self>, rank: u32) {
        if !self.control.is_launched {
            return self.lose_after(GONE_GRACE, rank, Loss::Gone);
        }
        // Its launcher knows more, unless what it started is another process, which lives on.
        let running = self.clone();
        tokio::task::spawn_local(async move {
            in_turns(OBITUARY_GRACE).await;
            if !running.mourned.borrow().contains(&rank) {
                running.lose_after(Duration::ZERO, rank, Loss::Gone);
            }
        });
    }

    /// Sees the ends of the ranks' processes on this host.
    fn watch_processes(&self) {
        for rank in self.control.links.borrow().keys().copied() {
            let Some(pid) = self.world.process_here(rank) else { continue };
            let events = self.control.events.clone();
            tokio::task::spawn_local(async move {
                processes::ended(pid).await;
                let _ = events.send(Event::Gone(rank));
            });
        }
    }

    /// Declares `rank` lost unless it turns out that it said goodbye.
    fn lose_after(self: &Rc<Self>, grace: Duration, rank: u32, loss: Loss) {
        let this = self.clone();
        tokio::task::spawn_local(async move {
            in_turns(grace).await;
            this.believe(rank);
            if !this.world.has_left(rank) {
                this.world.lose(rank, loss);
            }
        });
    }

    /// Every peer has read this rank's goodbye or knows the verdict, or has closed; or the time is
    /// up.
    async fn drained(&self) {
        let verdict = self.world.error().is_some();
        // The lanes have drained since the goodbye: both share one limit.
        let since = self.left.get().map_or(Duration::ZERO, |left| left.elapsed());
        let limit = if verdict { VERDICT_LIMIT } else { DRAIN_LIMIT.saturating_sub(since) };
        let done = || {
            self.control.is_written()
                && self.control.links.borrow().values().all(|link| {
                    link.is_closed() || link.leave_read.get() || link.knows_verdict.get()
                })
        };
        let _ = tokio::time::timeout(limit, wait_until(&self.control, done)).await;
    }
}

/// Before an endpoint that found no world closes: gives the peers time to read why.
pub(crate) async fn linger(control: &Control) {
    let read = || control.links.borrow().values().all(|link| link.is_closed());
    let _ = tokio::time::timeout(VERDICT_LIMIT, wait_until(control, read)).await;
}

/// Waits, in turns: after each, what has come meanwhile has been read, also where this thread was not
/// scheduled for long.
pub(super) async fn in_turns(grace: Duration) {
    for _ in 0..GRACE_TURNS {
        tokio::time::sleep(grace / GRACE_TURNS).await;
    }
}

/// Waits for something about the links.
async fn wait_until(control: &Control, done: impl Fn() -> bool) {
    loop {
        let changed = control.changed.notified();
        if done() {
            return;
        }
        changed.await;
    }
}

/// Tells a newcomer why there is no place for it.
async fn refuse(world: Arc<World>, greeted: Greeted) {
    let rank = greeted.hello.rank;
    if world.has_left(rank) || world.error().is_some() {
        // It wants to meet for the next world before this rank has closed the last one.
        let reason = "rank 0 has not closed its last communicator yet".to_string();
        return greeted.refuse(reason, Again::Soon).await;
    }
    world.counters.refused(Refusal::Running);
    if matches!(greeted.hello.purpose, Purpose::Watch { .. }) {
        // A late attempt for a world that was given up before this one began.
        let reason = "this rank is in another world by now".to_string();
        return greeted.refuse(reason, Again::Later).await;
    }
    let reason = format!("the job is already running with rank {rank} at {}", world.place(rank));
    report::warn(&format!("refused {}: {reason}", greeted.who()));
    greeted.refuse(reason, Again::Later).await;
}

/// Closes all connections, so that the peers need not wait for silence.
async fn shut(control: &Control) {
    control.endpoint.close(0u32.into(), b"closed");
    // Not `wait_idle`: it would wait three probe timeouts for peers that need nothing more.
    tokio::time::sleep(SEND_TURN).await;
}

/// For the endpoint's task to send what was just written.
const SEND_TURN: Duration = Duration::from_millis(1);
/// Another rank's flood or goodbye takes a round trip.
const CLOSE_GRACE: Duration = Duration::from_millis(300);
/// A goodbye is answered before its sender exits, unless this rank was not scheduled for a second.
const EXIT_GRACE: Duration = Duration::from_millis(300);
/// The same; all it had sent lies in this rank's socket by then.
const GONE_GRACE: Duration = Duration::from_millis(150);
/// The launcher tells within milliseconds.
const OBITUARY_GRACE: Duration = Duration::from_millis(300);
const GRACE_TURNS: u32 = 5;
/// As on the lanes: a rank that does not answer for a second is left to itself.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// After a verdict the drop is prompt; the others hear of it from each other too.
const VERDICT_LIMIT: Duration = Duration::from_millis(300);
