//! The links of the control endpoint and what is common to meeting and running: every link has a
//! task that writes, one that reads messages and one that reads heartbeats.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::launched::Obituary;
use crate::config::Config;
use crate::deadlock::Stuck;
use crate::group::{Standing, Trail};
use crate::link::quic::endpoint::OpenEndpoint;
use crate::liveness::Judge;
use crate::plan::costs::CostTable;
use crate::rendezvous::{Entry, Mapped};
use crate::report;
use crate::statistics::Counters;
use crate::trust::certificates::Membership;
use crate::trust::hello::{self, Again, Answer, Greeted};
use crate::verdict::Verdict;
use crate::wire;
use crate::world::World;

/// What goes reliably between control endpoints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Rank 0, while it waits: who has not come yet.
    Missing(Vec<u32>),
    /// Rank 0: everybody has come; make ready for this world.
    Prepare {
        epoch: u64,
        table: Vec<Entry>,
    },
    /// To rank 0: ready.
    Prepared {
        epoch: u64,
        /// It has mapped the memory of all ranks of its home.
        maps: bool,
    },
    /// Rank 0: all are ready; the world begins.
    Commit {
        epoch: u64,
        /// By which all ranks choose their plans.
        costs: CostTable,
        /// By rank: whether it and all others of its home have mapped each other's memory.
        shares: Vec<bool>,
    },
    /// Rank 0: somebody was lost; wait for the next `Prepare`.
    Restart,
    /// Rank 0: this will not become a world.
    Refused {
        reason: String,
        again: Again,
    },
    /// Rank `origin` makes no more calls on a communicator. In worlds where not all ranks have a
    /// link to each other it is passed on, like `Leave`.
    Goodbye {
        origin: u32,
        group: u64,
        members: Vec<u32>,
        calls: u64,
        hash: u64,
    },
    /// Rank `origin` has said all its goodbyes.
    Leave {
        origin: u32,
    },
    LeaveRead,
    /// To the lowest rank: every thread here waits, and no byte moves.
    Stuck(Stuck),
    /// This rank does not hear that one any more: do others?
    Silent {
        rank: u32,
    },
    /// The answer: how long ago it was heard. `left`: it has said all its goodbyes.
    Heard {
        rank: u32,
        ago_ms: Option<u64>,
        left: bool,
    },
    Verdict(Verdict),
    /// To the lower of two ranks: their calls on this communicator differ, as the higher one has seen.
    Differs {
        group: u64,
    },
    /// To the higher: what calls the lower one has made.
    Trail(Trail),
    /// The answer: of its own calls the first that differs, and the last that both have made, as
    /// contracts and source locations; nothing where it has found none.
    Calls {
        group: u64,
        calls: Vec<Vec<u8>>,
    },
}

/// Something happened on the endpoint.
pub(crate) enum Event {
    /// The neighbours' memory is mapped, in the world of this epoch, as far as it can be.
    Mapped { epoch: u64, mapped: Mapped },
    /// A peer dialled and said hello; nobody has answered it yet.
    Greeted(Box<Greeted>),
    /// What a rank said on its link, and the share that this takes of it until it is dealt with.
    Message(u32, Message, Option<Share>),
    /// A link ended: its connection is closed, or its peer was silent for too long.
    Ended { rank: u32, link: usize, how: LinkEnd },
    /// The launcher saw a rank end.
    Obituary(Obituary),
    /// A rank's process on this host has ended.
    Gone(u32),
    /// The time for answers about a silent rank is up.
    Asked(u32),
    /// A dialling task of the rendezvous has something to say.
    Dialled(crate::rendezvous::Dialled),
}

/// A part of what a link may have read and not dealt with; given back when dropped.
pub(crate) type Share = OwnedSemaphorePermit;

#[derive(Clone, Debug)]
pub(crate) enum LinkEnd {
    Silent(Duration),
    Closed(String),
}

/// A heartbeat.
#[derive(Serialize, Deserialize)]
struct Beat {
    /// 0 before the world begins.
    epoch: u64,
    standings: Vec<Standing>,
}

pub(crate) struct Control {
    pub(crate) config: Config,
    pub(crate) membership: Arc<Membership>,
    pub(crate) endpoint: OpenEndpoint,
    pub(crate) counters: Arc<Counters>,
    /// A launcher tells of the ends of this host's ranks.
    pub(crate) is_launched: bool,
    pub(crate) links: RefCell<BTreeMap<u32, Rc<ControlLink>>>,
    pub(crate) world: OnceCell<Arc<World>>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// Something about a link changed that closing may wait for.
    pub(crate) changed: Notify,
}

/// The control connection to one rank.
pub(crate) struct ControlLink {
    pub(crate) connection: Connection,
    outbox: mpsc::UnboundedSender<Bytes>,
    /// Messages posted and not yet written, and what they take.
    unwritten: Cell<usize>,
    unwritten_bytes: Cell<usize>,
    /// When the peer was heard last.
    pub(crate) heard: Cell<Instant>,
    /// Since when its silence counts.
    listening: Cell<Instant>,
    /// Its silence has been told.
    suspected: Cell<bool>,
    pub(crate) leave_read: Cell<bool>,
    /// The peer has told this rank a verdict, so it knows there is one.
    pub(crate) knows_verdict: Cell<bool>,
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkEnd::Silent(silence) => {
                write!(f, "stopped answering {} ago", report::duration(*silence))
            }
            LinkEnd::Closed(problem) => f.write_str(problem),
        }
    }
}

impl Control {
    pub(crate) fn rank(&self) -> u32 {
        self.config.rank() as u32
    }

    /// Takes a greeted connection as the link to `rank`, and makes the peer welcome on it; false if
    /// it has ended meanwhile. A peer that does not read its welcome holds up nobody but itself.
    pub(crate) fn welcome(self: &Rc<Self>, rank: u32, greeted: Greeted) -> bool {
        let Greeted { connection, sender, receiver, .. } = greeted;
        if connection.close_reason().is_some() {
            return false;
        }
        self.add_link(rank, connection, sender, receiver);
        self.say(rank, &Answer::Welcome);
        true
    }

    /// Takes a connection as the link to `rank`, in place of an older one.
    pub(crate) fn add_link(
        self: &Rc<Self>,
        rank: u32,
        connection: Connection,
        sender: SendStream,
        receiver: RecvStream,
    ) {
        let (outbox, frames) = mpsc::unbounded_channel();
        let now = Instant::now();
        let link = Rc::new(ControlLink {
            connection,
            outbox,
            unwritten: Cell::new(0),
            unwritten_bytes: Cell::new(0),
            heard: Cell::new(now),
            listening: Cell::new(now),
            suspected: Cell::new(false),
            leave_read: Cell::new(false),
            knows_verdict: Cell::new(false),
        });
        if let Some(old) = self.links.borrow_mut().insert(rank, link.clone()) {
            old.connection.close(REPLACED.into(), b"replaced");
        }
        tokio::task::spawn_local(self.clone().write(link.clone(), sender, frames));
        tokio::task::spawn_local(self.clone().read(rank, link.clone(), receiver));
        tokio::task::spawn_local(self.clone().hear(rank, link));
        self.changed.notify_waiters();
    }

    /// Forgets the link to `rank` and closes it.
    pub(crate) fn drop_link(&self, rank: u32) {
        if let Some(link) = self.links.borrow_mut().remove(&rank) {
            link.connection.close(REPLACED.into(), b"no longer needed");
        }
    }

    pub(crate) fn post(&self, rank: u32, message: Message) {
        // A peer that asks and never reads the answers gets no more of them.
        let is_answer = matches!(
            message,
            Message::LeaveRead | Message::Heard { .. } | Message::Trail(_) | Message::Calls { .. }
        );
        let unread = self.links.borrow().get(&rank).map_or(0, |link| link.unwritten.get());
        if !is_answer || unread < MAX_UNREAD {
            self.say(rank, &message);
        }
    }

    pub(crate) fn post_all(&self, message: &Message) {
        self.post_some(message, |_| true);
    }

    /// Tells those of the linked ranks that are wanted; all have the message's bytes in common.
    pub(crate) fn post_some(&self, message: &Message, wanted: impl Fn(u32) -> bool) {
        let Ok(frame) = wire::encode_control(message).map(Bytes::from) else { return };
        for (rank, link) in self.links.borrow().iter().filter(|(rank, _)| wanted(**rank)) {
            self.enqueue(*rank, link, frame.clone());
        }
    }

    fn say<T: Serialize>(&self, rank: u32, message: &T) {
        let Ok(frame) = wire::encode_control(message) else { return };
        if let Some(link) = self.links.borrow().get(&rank) {
            self.enqueue(rank, link, frame.into());
        }
    }

    /// Gives a message to the task that writes. A link whose peer reads nothing is lost at last.
    fn enqueue(&self, rank: u32, link: &ControlLink, frame: Bytes) {
        let bytes = link.unwritten_bytes.get() + taken_by(&frame);
        if bytes > max_unwritten(self.config.size()) {
            if !link.is_closed() {
                link.connection.close(REPLACED.into(), b"nothing is read");
                let how = LinkEnd::Closed("it does not read what it is sent".into());
                let link = link.connection.stable_id();
                let _ = self.events.send(Event::Ended { rank, link, how });
            }
            return;
        }
        if link.outbox.send(frame).is_ok() {
            link.unwritten.set(link.unwritten.get() + 1);
            link.unwritten_bytes.set(bytes);
        }
    }

    /// Whether everything posted has been written.
    pub(crate) fn is_written(&self) -> bool {
        self.links.borrow().values().all(|link| link.unwritten.get() == 0 || link.is_closed())
    }

    /// Sends heartbeats and looks for silence, for as long as the endpoint lives.
    pub(crate) async fn beat(self: Rc<Self>) {
        let heartbeat = self.config.heartbeat;
        let judge = Judge::new(self.config.dead_after, Instant::now());
        let mut judge = judge.of_heartbeats(heartbeat);
        let mut sent = Instant::now() - heartbeat;
        let mut tick = tokio::time::interval((heartbeat / LOOKS_PER_HEARTBEAT).min(LONGEST_LOOK));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = Instant::now();
            let awake = judge.is_awake(now);
            let links: Vec<_> =
                self.links.borrow().iter().map(|(rank, link)| (*rank, link.clone())).collect();
            for (rank, link) in links {
                if !awake {
                    link.listen_anew(now);
                } else if let Some(silence) = judge.silence(link.listening.get(), now)
                    && !link.suspected.replace(true)
                {
                    let how = LinkEnd::Silent(silence);
                    let link = link.connection.stable_id();
                    let _ = self.events.send(Event::Ended { rank, link, how });
                }
            }
            if now.duration_since(sent) >= heartbeat {
                sent = now;
                self.send_beats();
            }
        }
    }

    /// One heartbeat to every link, now.
    pub(crate) fn send_beats(&self) {
        let world = self.world.get();
        let beat = Beat {
            epoch: world.map_or(0, |world| world.epoch),
            standings: world.map_or_else(Vec::new, |world| world.standings()),
        };
        let Ok(frame) = wire::encode_control(&beat) else { return };
        let frame = Bytes::from(frame);
        for link in self.links.borrow().values() {
            // The next one comes soon.
            let _ = link.connection.send_datagram(frame.clone());
        }
    }

    async fn write(
        self: Rc<Self>,
        link: Rc<ControlLink>,
        mut sender: SendStream,
        mut frames: mpsc::UnboundedReceiver<Bytes>,
    ) {
        while let Some(frame) = frames.recv().await {
            let taken = taken_by(&frame);
            let written = sender.write_chunk(frame).await;
            link.unwritten.set(link.unwritten.get() - 1);
            link.unwritten_bytes.set(link.unwritten_bytes.get() - taken);
            self.changed.notify_waiters();
            if written.is_err() {
                return;
            }
        }
    }

    async fn read(self: Rc<Self>, rank: u32, link: Rc<ControlLink>, mut receiver: RecvStream) {
        let unhandled = Arc::new(Semaphore::new(MAX_UNHANDLED));
        let end = loop {
            let body = match hello::receive_bytes(&mut receiver, wire::MAX_CONTROL_BYTES).await {
                Ok(body) => body,
                Err(problem) => break problem,
            };
            link.note_heard();
            // Of one that says more than is dealt with, no more is read for now: QUIC tells it so.
            let share = body.len().clamp(LEAST_SHARE, MAX_UNHANDLED) as u32;
            let Ok(share) = unhandled.clone().acquire_many_owned(share).await else { return };
            match wire::decode_control::<Message>(&body) {
                Ok(message) => {
                    let _ = self.events.send(Event::Message(rank, message, Some(share)));
                }
                Err(problem) => break problem,
            }
        };
        let how = LinkEnd::Closed(end);
        let link = link.connection.stable_id();
        let _ = self.events.send(Event::Ended { rank, link, how });
        self.changed.notify_waiters();
    }

    async fn hear(self: Rc<Self>, rank: u32, link: Rc<ControlLink>) {
        while let Ok(datagram) = link.connection.read_datagram().await {
            let Some((_, body)) = datagram.split_first_chunk::<4>() else { continue };
            let Ok(beat) = wire::decode_control::<Beat>(body) else { continue };
            link.note_heard();
            self.counters.heard(rank);
            if let Some(world) = self.world.get()
                && world.epoch == beat.epoch
            {
                world.note_standings(rank, beat.standings);
            }
        }
    }
}

impl ControlLink {
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// How long the peer has been silent while this rank listened.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.listening.get())
    }

    /// This rank was not there to listen, or its suspicion has come to nothing.
    pub(crate) fn listen_anew(&self, now: Instant) {
        self.listening.set(now);
        self.suspected.set(false);
    }

    fn note_heard(&self) {
        let now = Instant::now();
        self.heard.set(now);
        self.listen_anew(now);
    }
}

/// What a frame that waits to be written takes.
fn taken_by(frame: &Bytes) -> usize {
    frame.len() + FRAME_COST
}

/// What a link of a world of `size` may have unwritten.
fn max_unwritten(size: usize) -> usize {
    // A goodbye names the members.
    let goodbyes = size.saturating_mul(2 * size * size_of::<u32>());
    goodbyes.saturating_add(MAX_UNWRITTEN)
}

/// Silence is noticed a fifth of a heartbeat late at most.
const LOOKS_PER_HEARTBEAT: u32 = 5;
/// Well below the pause after which the judge takes its own thread for stalled.
const LONGEST_LOOK: Duration = Duration::from_millis(100);
/// Answers are few in a world that is well.
const MAX_UNREAD: usize = 1024;
/// Four messages of the largest size; to it come two goodbyes of each rank, in large worlds more.
const MAX_UNWRITTEN: usize = 4 * wire::MAX_CONTROL_BYTES;
/// Beside its bytes a frame takes an allocation and a place in the queue.
const FRAME_COST: usize = 64;
/// Read and not dealt with, of each link: one message of the largest size, or
const MAX_UNHANDLED: usize = wire::MAX_CONTROL_BYTES;
/// 1,024 small ones.
const LEAST_SHARE: usize = MAX_UNHANDLED / 1024;
/// Close code of a link that another one has taken the place of.
const REPLACED: u32 = 2;
