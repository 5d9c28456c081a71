//! A lane: the thread that moves the bytes of calls over its links, driven by the machine.
//!
//! One current-thread runtime. For every flow from a peer there is a reading task, for every flow
//! to a peer a writing task; they meet in the active call and never wait for each other except
//! through the machine. So a send never blocks a receive.

mod reading;
mod writing;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::buffer::{Lent, SegmentPool};
use crate::contract::Contract;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::machine::{FlowKey, Machine, Transfer};
use crate::reduce::Reducer;
use crate::verdict::Fault;
use crate::world::World;

/// What the caller's thread asks of a lane.
pub(crate) enum Command {
    Run(Box<Call>),
    /// There is a verdict: let go of the call and its buffer.
    Abort,
    /// Say goodbye on every flow, wait for the answers, close the links.
    Close,
}

/// One call, handed to the lane.
pub(crate) struct Call {
    pub(crate) contract: Contract,
    /// Where in the program, for the peers' errors.
    pub(crate) location: String,
    /// The rolling hash after this call.
    pub(crate) hash: u64,
    pub(crate) machine: Machine,
    pub(crate) buffer: Lent,
    pub(crate) done: Completer,
}

/// The lane's thread.
pub(crate) struct Lane {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    /// Starts the thread; `links` is called on it, inside its runtime.
    pub(crate) fn start(
        world: Arc<World>,
        links: impl FnOnce() -> Result<Links> + Send + 'static,
    ) -> Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (started, result) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("allfold-lane-0".into())
            .spawn(move || {
                let runtime =
                    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                        Ok(runtime) => runtime,
                        Err(error) => {
                            let _ =
                                started.send(Err(Error::system("start a lane's runtime", error)));
                            return;
                        }
                    };
                tokio::task::LocalSet::new().block_on(&runtime, async move {
                    match links() {
                        Ok(links) => {
                            let _ = started.send(Ok(()));
                            Driver::new(world, links).run(inbox).await;
                        }
                        Err(error) => {
                            let _ = started.send(Err(error));
                        }
                    }
                });
            })
            .map_err(|error| Error::system("start a lane's thread", error))?;
        let ended = || Error::system("start a lane", "its thread ended");
        result.recv().map_err(|_| ended())??;
        Ok(Self { commands, thread: Some(thread) })
    }

    pub(crate) fn commands(&self) -> mpsc::UnboundedSender<Command> {
        self.commands.clone()
    }

    pub(crate) fn run(&self, call: Call) {
        // A lane that has ended drops the call, which completes it with an error.
        let _ = self.commands.send(Command::Run(Box::new(call)));
    }

    /// Says goodbye, drains and ends the thread; takes at most about a second.
    pub(crate) fn close(&mut self) {
        let _ = self.commands.send(Command::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes the two ends of a call's result.
pub(crate) fn completion() -> (Completer, Completion) {
    let slot = Arc::new(Slot::default());
    (Completer(slot.clone()), Completion(slot))
}

/// The lane's end: completes the call, with an error if it is dropped without a result.
pub(crate) struct Completer(Arc<Slot>);

/// The end of the caller's thread.
pub(crate) struct Completion(Arc<Slot>);

#[derive(Default)]
struct Slot {
    result: Mutex<Option<Result<()>>>,
    changed: Condvar,
}

impl Completer {
    fn set(&self, result: Result<()>) {
        let mut slot = self.0.result.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(result);
        self.0.changed.notify_all();
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        self.set(Err(Error::system("run a call", "its lane has ended")));
    }
}

impl Completion {
    /// Waits up to `limit`; None if the call goes on.
    pub(crate) fn wait(&self, limit: Duration) -> Option<Result<()>> {
        let slot = self.0.result.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, _) = self
            .0
            .changed
            .wait_timeout_while(slot, limit, |result| result.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        slot.clone()
    }
}

/// Everything the tasks of a lane share.
struct Driver {
    world: Arc<World>,
    links: Links,
    active: RefCell<Option<Active>>,
    /// Something happened that a waiting task may have waited for.
    changed: Notify,
    pool: RefCell<SegmentPool>,
    /// The peers that have a writing task.
    writers: RefCell<HashSet<u32>>,
    /// Writing tasks that still have to say goodbye and be answered.
    unanswered: Cell<usize>,
    closing: Cell<bool>,
}

/// The call under way.
struct Active {
    call: Call,
    /// Segments that are arriving, by peer.
    arriving: Vec<Arriving>,
    /// Peers that have had the contract.
    told: HashSet<u32>,
}

struct Arriving {
    peer: u32,
    transfer: Transfer,
    reducer: Reducer,
}

impl Driver {
    fn new(world: Arc<World>, links: Links) -> Rc<Self> {
        Rc::new(Self {
            world,
            links,
            active: RefCell::new(None),
            changed: Notify::new(),
            pool: RefCell::new(SegmentPool::default()),
            writers: RefCell::new(HashSet::new()),
            unanswered: Cell::new(0),
            closing: Cell::new(false),
        })
    }

    async fn run(self: Rc<Self>, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let driver = self.clone();
        self.spawn(async move {
            while let Some(incoming) = driver.links.next_incoming().await {
                driver.spawn(driver.clone().read_flow(incoming));
            }
        });
        loop {
            match inbox.recv().await {
                Some(Command::Run(call)) => self.begin(*call),
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

    fn begin(self: &Rc<Self>, call: Call) {
        if let Some(error) = self.world.error() {
            return call.end(Err(error));
        }
        for FlowKey { peer, .. } in call.machine.sources() {
            self.links.want(peer);
        }
        for FlowKey { peer, .. } in call.machine.destinations() {
            if self.writers.borrow_mut().insert(peer) {
                self.unanswered.set(self.unanswered.get() + 1);
                self.spawn(self.clone().write_flow(peer));
            }
        }
        *self.active.borrow_mut() =
            Some(Active { call, arriving: Vec::new(), told: HashSet::new() });
        self.changed.notify_waiters();
    }

    fn abort(&self) {
        let active = self.active.borrow_mut().take();
        if let (Some(active), Some(error)) = (active, self.world.error()) {
            active.call.end(Err(error));
        }
        self.changed.notify_waiters();
    }

    /// Wakes whoever waits for progress, and ends the call if that was its last.
    fn progressed(&self) {
        let mut slot = self.active.borrow_mut();
        if slot.as_ref().is_some_and(|active| active.call.machine.is_done())
            && let Some(active) = slot.take()
        {
            active.call.end(Ok(()));
        }
        drop(slot);
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
            let how = format!("has a broken data link to rank {}: {problem}", self.world.rank);
            self.world.raise(peer, Fault::Lost { how });
        }
    }

    /// A flow from `from` broke. If that rank has left, its last bytes may be lost with the flow:
    /// nobody else notices, so it is an error as soon as a call waits for them.
    async fn flow_broke(&self, from: u32, problem: String) {
        self.link_failed(from, problem).await;
        loop {
            let changed = self.changed.notified();
            if self.closing.get() || self.world.error().is_some() {
                return;
            }
            let awaited = self
                .active
                .borrow()
                .as_ref()
                .is_some_and(|a| a.call.machine.expects(reading::flow(from)));
            if awaited {
                let how = format!(
                    "closed its communicator, and what rank {} had not read by then is lost",
                    self.world.rank
                );
                return self.world.raise(from, Fault::Lost { how });
            }
            changed.await;
        }
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

/// Dropped by a panic, it raises one.
struct Alarm(Arc<World>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.raise(self.0.rank, Fault::Lost { how: "panicked in a lane".into() });
        }
    }
}

impl Call {
    /// Lets go of the buffer, then wakes the caller.
    fn end(self, result: Result<()>) {
        let Call { buffer, done, .. } = self;
        drop(buffer);
        done.set(result);
    }
}

/// How long a broken link may stand without a verdict from the control endpoint, which finds a
/// silent death within 2.2 s; together below the promised 3 s.
const LINK_GRACE: Duration = Duration::from_millis(2600);
/// How long closing waits for the peers' readers.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
