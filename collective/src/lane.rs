//! A lane: the thread that moves the bytes of calls over its links, driven by the machine.
//!
//! One current-thread runtime. For every flow from a peer there is a reading task, for every flow
//! to a peer a writing task; they meet in the call under way on their communicator and never wait
//! for each other except through the machine. So a send never blocks a receive.

mod completion;
mod lateness;
mod patience;
mod reading;
#[cfg(test)]
mod ring;
mod silence;
pub(crate) mod wakefulness;
mod writing;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use crate::active::ActiveCall;
use crate::buffer::{CallMemory, Lent, SegmentPool};
use crate::contract::Contract;
use crate::error::{Error, Result};
use crate::link::{Flow, Links};
use crate::machine::{FlowKey, Machine};
use crate::plan::Algorithm;
use crate::report;
use crate::verdict::{Fault, Loss};
use crate::world::{Goodbye, World};

pub(crate) use completion::{Asked, Completer, Completion, Ending, completion, completion_with};
use lateness::{Attention, Lateness, Openings};

/// What the caller's thread asks of a lane.
pub(crate) enum Command {
    Run(Box<Call>),
    /// This lane has no stripe of that call of the communicator: its part ends when all calls before
    /// have ended here, so that calls end in their order.
    Pass(u64, Completer),
    /// Complete this once no call of the communicator is under way.
    Flush(u64, Completer),
    /// Say goodbye on the flows of these communicators.
    Goodbye(Vec<Goodbye>),
    /// There is a verdict: let go of all calls and their memory.
    Abort,
    /// Say goodbye on every flow, wait for the answers, close the links.
    Close,
}

/// One call, or this lane's stripe of it.
pub(crate) struct Call {
    pub(crate) contract: Contract,
    /// Where in the program, for the peers' errors.
    pub(crate) location: String,
    /// The rolling hash after this call.
    pub(crate) hash: u64,
    /// The communicator's ranks in the world.
    pub(crate) members: Arc<[u32]>,
    pub(crate) algorithm: Algorithm,
    pub(crate) machine: Machine,
    pub(crate) lent: Lent,
    pub(crate) done: Completer,
}

/// Starts the thread of a lane; `links` is called on it, inside its runtime.
pub(crate) fn start(
    world: Arc<World>,
    number: u16,
    links: impl FnOnce() -> Result<Links> + Send + 'static,
) -> Result<(mpsc::UnboundedSender<Command>, JoinHandle<()>)> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (started, result) = std::sync::mpsc::sync_channel(1);
    let main = move || {
        #[cfg(feature = "faults")]
        crate::faults::enter(world.rank);
        report::speak_for(&world.counters.origin);
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = started.send(Err(Error::system("start a lane's runtime", error)));
                return;
            }
        };
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            match links() {
                Ok(links) => {
                    let _ = started.send(Ok(()));
                    Driver::new(world, number, links).run(inbox).await;
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        });
    };
    let thread = std::thread::Builder::new()
        .name(format!("allfold-lane-{number}"))
        .spawn(main)
        .map_err(|error| Error::system("start a lane's thread", error))?;
    let ended = || Error::system("start a lane", "its thread ended");
    result.recv().map_err(|_| ended())??;
    Ok((commands, thread))
}

/// Everything the tasks of a lane share.
struct Driver {
    world: Arc<World>,
    /// Of the rank's lanes. The first takes part in every call.
    number: u16,
    links: Links,
    /// By communicator.
    calls: RefCell<HashMap<u64, Calls>>,
    /// A call has begun.
    begun: Notify,
    /// A call was asked for, or went on.
    stirred: Notify,
    /// Something happened that a waiting task may have waited for.
    changed: Notify,
    pool: RefCell<SegmentPool>,
    /// Relay memory of calls that have ended, to be used again.
    relays: RefCell<Vec<Vec<u8>>>,
    /// The flows that have a writing task.
    writers: RefCell<HashSet<Flow>>,
    /// Closed communicators whose flows still have to say goodbye: calls and hash.
    goodbyes: RefCell<HashMap<u64, (u64, u64)>>,
    /// Writing tasks that still have to say goodbye and be answered.
    unanswered: Cell<usize>,
    closing: Cell<bool>,
    /// Somebody waited for the call that ended last.
    was_awaited: Cell<bool>,
    /// Segments sent and received.
    moved: Cell<u64>,
    /// Of the flows from peers.
    openings: RefCell<Openings>,
    attention: RefCell<Attention>,
}

/// The calls of one communicator.
#[derive(Default)]
struct Calls {
    active: Option<Active>,
    /// The next ones, in order.
    queue: VecDeque<Queued>,
    /// To be completed when nothing is under way.
    flushes: Vec<Completer>,
}

/// A call that waits for its turn.
enum Queued {
    Call(Box<Call>),
    /// Of which this lane has no stripe.
    Pass(Completer),
}

impl Queued {
    fn done(&self) -> &Completer {
        match self {
            Queued::Call(call) => &call.done,
            Queued::Pass(done) => done,
        }
    }
}

/// The call under way.
struct Active {
    call: ActiveCall,
    done: Completer,
    algorithm: Algorithm,
    lateness: Lateness,
    /// When its turn came.
    since: Instant,
}

impl Calls {
    /// Since when somebody waits for the call under way, or for one behind it: that one cannot
    /// begin before.
    fn awaited(&self) -> Option<Instant> {
        let active = self.active.as_ref().map(|active| &active.done);
        let queued = self.queue.iter().map(Queued::done);
        active.into_iter().chain(queued).filter_map(Completer::awaited).min()
    }
}

impl Driver {
    fn new(world: Arc<World>, number: u16, links: Links) -> Rc<Self> {
        Rc::new(Self {
            world,
            number,
            links,
            calls: RefCell::new(HashMap::new()),
            begun: Notify::new(),
            stirred: Notify::new(),
            changed: Notify::new(),
            pool: RefCell::new(SegmentPool::default()),
            relays: RefCell::new(Vec::new()),
            writers: RefCell::new(HashSet::new()),
            goodbyes: RefCell::new(HashMap::new()),
            unanswered: Cell::new(0),
            closing: Cell::new(false),
            was_awaited: Cell::new(false),
            moved: Cell::new(0),
            openings: RefCell::default(),
            attention: RefCell::new(Attention::new(Instant::now())),
        })
    }

    async fn run(self: Rc<Self>, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let driver = self.clone();
        self.spawn(async move {
            while let Some(incoming) = driver.links.next_incoming().await {
                driver.spawn(driver.clone().read_flow(incoming));
            }
        });
        self.spawn(self.clone().watch());
        self.spawn(self.clone().stay_awake());
        loop {
            match inbox.recv().await {
                Some(Command::Run(call)) => {
                    self.stirred.notify_one();
                    self.queue(call.contract.group, Queued::Call(call));
                }
                Some(Command::Pass(group, done)) => self.queue(group, Queued::Pass(done)),
                Some(Command::Flush(group, done)) => self.flush(group, done),
                Some(Command::Goodbye(goodbyes)) => self.say_goodbye(goodbyes),
                Some(Command::Abort) => self.abort(),
                Some(Command::Close) | None => break,
            }
        }
        self.close(inbox).await;
    }

    /// Starts a task of this lane. tokio keeps a panic to its task, and a call would wait for it
    /// for ever: here it ends the world.
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let alarm = Alarm(self.world.clone());
        tokio::task::spawn_local(async move {
            let _alarm = alarm;
            task.await;
        });
    }

    /// Takes a call in; it begins when all before it on its communicator have ended.
    fn queue(self: &Rc<Self>, group: u64, call: Queued) {
        if let Some(error) = self.world.error() {
            return call.fail(&error);
        }
        self.calls.borrow_mut().entry(group).or_default().queue.push_back(call);
        self.advance(group);
    }

    fn flush(&self, group: u64, done: Completer) {
        let mut all = self.calls.borrow_mut();
        match all.get_mut(&group) {
            Some(calls) if calls.active.is_some() => {
                let queued = calls.queue.iter().map(Queued::done);
                queued
                    .chain(calls.active.iter().map(|a| &a.done))
                    .for_each(Completer::note_awaited);
                calls.flushes.push(done);
            }
            _ => done.set(Ok(())),
        }
    }

    fn say_goodbye(&self, goodbyes: Vec<Goodbye>) {
        let writers = self.writers.borrow();
        let has_flow = |group: u64| writers.iter().any(|flow| flow.group == group);
        let goodbyes = goodbyes.into_iter().filter(|goodbye| has_flow(goodbye.group));
        let words = goodbyes.map(|goodbye| (goodbye.group, (goodbye.calls, goodbye.hash)));
        self.goodbyes.borrow_mut().extend(words);
        drop(writers);
        self.changed.notify_waiters();
    }

    /// Ends the communicator's call if it is done, and begins the next.
    fn advance(self: &Rc<Self>, group: u64) {
        loop {
            let mut all = self.calls.borrow_mut();
            let Some(calls) = all.get_mut(&group) else { return };
            match &calls.active {
                Some(active) if !active.call.is_done() => return,
                Some(_) => {
                    let ended = calls.active.take();
                    drop(all);
                    if let Some(active) = ended {
                        self.end(active, Ok(()));
                    }
                }
                None => match calls.queue.pop_front() {
                    Some(Queued::Call(call)) => {
                        let active = self.activate(*call);
                        calls.active = Some(active);
                        self.begun.notify_one();
                        self.changed.notify_waiters();
                    }
                    Some(Queued::Pass(done)) => {
                        drop(all);
                        done.set(Ok(()));
                    }
                    None => {
                        for done in all.remove(&group).into_iter().flat_map(|calls| calls.flushes) {
                            done.set(Ok(()));
                        }
                        return;
                    }
                },
            }
        }
    }

    /// Makes a call the one under way: its flows are opened, its relay is ready.
    fn activate(self: &Rc<Self>, call: Call) -> Active {
        let Call { contract, location, hash, members, algorithm, machine, lent, done } = call;
        let flow = |key: FlowKey| Flow {
            peer: members.get(key.peer as usize).copied().unwrap_or(self.world.rank),
            group: contract.group,
            tree: key.tree,
        };
        for key in machine.sources() {
            self.links.want(flow(key).peer);
        }
        for key in machine.destinations() {
            if self.writers.borrow_mut().insert(flow(key)) {
                self.unanswered.set(self.unanswered.get() + 1);
                self.spawn(self.clone().write_flow(flow(key), key));
            }
        }
        let element_bytes = contract.element.size();
        let mut relay = Vec::new();
        let relay_bytes = machine.relay_elements() as usize * element_bytes;
        if relay_bytes > 0 {
            relay = self.relays.borrow_mut().pop().unwrap_or_default();
            relay.resize(relay_bytes, 0);
        }
        let memory = CallMemory::new(lent, relay, element_bytes);
        let call = ActiveCall::new(contract, location, hash, members, machine, memory);
        let since = Instant::now();
        // It takes part in every call, so that its turns are the communicator's.
        if self.number == 0 {
            done.note_begun(since);
        }
        let lateness = self.begin_waiting(since);
        Active { call, done, algorithm, lateness, since }
    }

    /// Lets go of the user's memory, then wakes the caller.
    fn end(&self, active: Active, result: Result<()>) {
        let Active { call, done, .. } = active;
        self.was_awaited.set(done.awaited().is_some());
        let relay = call.into_relay();
        if relay.capacity() > 0 && self.relays.borrow().len() < MAX_RELAYS {
            self.relays.borrow_mut().push(relay);
        }
        done.set(result);
    }

    fn abort(&self) {
        if let Some(error) = self.world.error() {
            for calls in self.calls.take().into_values() {
                if let Some(active) = calls.active {
                    self.stop_waiting(&active.lateness);
                    self.end(active, Err(error.clone()));
                }
                calls.queue.into_iter().for_each(|call| call.fail(&error));
                calls.flushes.into_iter().for_each(|done| done.set(Err(error.clone())));
            }
        }
        self.changed.notify_waiters();
    }

    /// Whether any call is under way.
    fn is_busy(&self) -> bool {
        self.calls.borrow().values().any(|calls| calls.active.is_some())
    }

    /// Wakes whoever waits for progress, and goes on to the next call if that was the last of this
    /// one.
    fn progressed(self: &Rc<Self>, group: u64) {
        self.moved.set(self.moved.get() + 1);
        self.world.note_moved();
        self.stirred.notify_one();
        self.advance(group);
        self.changed.notify_waiters();
    }

    /// A flow to or from `peer` broke. Whether the peer is dead is for the control endpoint to
    /// say; only if it has no verdict for long is the link itself the fault.
    async fn link_failed(&self, peer: u32, problem: String) {
        let fine =
            || self.closing.get() || self.world.has_left(peer) || self.world.error().is_some();
        if fine() {
            return;
        }
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if fine() {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(LINK_GRACE, waiting).await.is_err() && !fine() {
            self.world.raise(peer, Fault::LinkDown { problem });
        }
    }

    /// A flow from a peer broke. If that rank has left, its last bytes may be lost with the flow:
    /// nobody else notices, so it is an error as soon as a call waits for them.
    async fn flow_broke(&self, flow: Flow, problem: String) {
        self.link_failed(flow.peer, problem).await;
        loop {
            let changed = self.changed.notified();
            if self.closing.get() || self.world.error().is_some() {
                return;
            }
            if self.is_awaited(flow) {
                return self.world.lose(flow.peer, Loss::Unread { by: self.world.rank });
            }
            changed.await;
        }
    }

    fn is_awaited(&self, flow: Flow) -> bool {
        let all = self.calls.borrow();
        let active = all.get(&flow.group).and_then(|calls| calls.active.as_ref());
        active.is_some_and(|active| {
            let place = active.call.members.iter().position(|member| *member == flow.peer);
            let key = place.map(|place| FlowKey { peer: place as u32, tree: flow.tree });
            key.is_some_and(|key| active.call.expects(key))
        })
    }

    async fn close(&self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        self.closing.set(true);
        self.abort();
        let drained = async {
            loop {
                let changed = self.changed.notified();
                if self.unanswered.get() == 0 || self.world.error().is_some() {
                    return;
                }
                tokio::select! {
                    () = changed => {}
                    // A verdict, which `changed` does not know of.
                    Some(_) = inbox.recv() => {}
                }
            }
        };
        // Past the limit the peers' readers are late; what they have not read is lost to them,
        // and they will say so.
        let _ = tokio::time::timeout(DRAIN_LIMIT, drained).await;
        self.links.close().await;
    }
}

impl Queued {
    /// Lets go of the user's memory, then wakes the caller.
    fn fail(self, error: &Error) {
        let done = match self {
            Queued::Call(call) => {
                drop(call.lent);
                call.done
            }
            Queued::Pass(done) => done,
        };
        done.set(Err(error.clone()));
    }
}

/// Dropped by a panic, it raises one.
struct Alarm(Arc<World>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lose(self.0.rank, Loss::LanePanicked);
        }
    }
}

/// How long a broken link may stand without a verdict from the control endpoint, which finds a
/// silent death within 2.2 s; together below the promised 3 s.
const LINK_GRACE: Duration = Duration::from_millis(2600);
/// How long closing waits for the peers' readers.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Relay memory kept for later calls: with the plans' limit below 4 MiB.
const MAX_RELAYS: usize = 8;
