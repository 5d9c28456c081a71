//! The control endpoint: heartbeats, verdicts, goodbyes. It has its own socket, thread and
//! runtime, so that a full lane never looks like a dead rank.

mod comparison;
pub(crate) mod endpoint;
mod hearsay;
pub(crate) mod launched;
pub(crate) mod processes;
pub(crate) mod running;
pub(crate) mod witnesses;

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::deadlock::Stuck;
use crate::group::Standing;
use crate::verdict::Verdict;
use crate::world::{Goodbye, World};

/// What a rank's other threads ask of its control endpoint.
pub(crate) enum Command {
    /// The ranks have met: this is the world.
    Serve(Arc<World>),
    /// Tell all ranks of a verdict.
    Flood(Verdict),
    /// Tell the members of a communicator that this rank makes no more calls on it.
    Goodbye(Goodbye),
    /// Tell all ranks that this one has said all its goodbyes.
    Leave,
    /// Tell this rank that every thread here waits.
    Stuck(u32, Stuck),
    /// The calls of this rank and of that one differ on a communicator: find out from where on.
    CompareCalls(u32, u64),
    /// End, once goodbyes are answered and verdicts are out.
    Close,
}

/// How a rank's threads reach its control endpoint.
pub(crate) enum ControlHandle {
    Memory(MemoryControl),
    Network(NetworkControl),
}

impl ControlHandle {
    /// The ranks have met: from now on the endpoint serves `world`, which it is attached to.
    pub(crate) fn serve(&self, world: Arc<World>) {
        if let ControlHandle::Network(control) = self {
            control.send(Command::Serve(world));
        }
    }

    /// Tells all ranks of a verdict.
    pub(crate) fn flood(&self, verdict: &Verdict) {
        match self {
            ControlHandle::Memory(control) => {
                control.each_other(|world| world.settle(verdict.clone()));
            }
            ControlHandle::Network(control) => control.send(Command::Flood(verdict.clone())),
        }
    }

    /// Waits until the verdict has been written to all open connections, at most `limit`.
    pub(crate) fn wait_flooded(&self, limit: Duration) {
        match self {
            // Within a process a verdict has arrived when it was told.
            ControlHandle::Memory(_) => {}
            ControlHandle::Network(control) => control.flooded.wait(limit),
        }
    }

    /// Tells the members of a communicator that this rank makes no more calls on it.
    pub(crate) fn say_goodbye(&self, goodbye: Goodbye) {
        match self {
            ControlHandle::Memory(control) => control.each_other(|world| {
                let Goodbye { group, members, calls, hash } = &goodbye;
                if members.contains(&world.rank) {
                    world.note_goodbye(control.rank, *group, *calls, *hash);
                }
            }),
            ControlHandle::Network(control) => control.send(Command::Goodbye(goodbye)),
        }
    }

    /// Tells all ranks that this one has said all its goodbyes.
    pub(crate) fn leave(&self) {
        match self {
            ControlHandle::Memory(control) => {
                control.each_other(|world| world.note_left(control.rank));
            }
            ControlHandle::Network(control) => control.send(Command::Leave),
        }
    }

    /// Tells `collector` that every thread here waits.
    pub(crate) fn report_stuck(&self, collector: u32, stuck: Stuck) {
        match self {
            ControlHandle::Memory(control) => {
                let world = control.worlds.get(collector as usize);
                if let Some(world) = world.and_then(Weak::upgrade) {
                    world.note_stuck(control.rank, stuck, Instant::now());
                }
            }
            ControlHandle::Network(control) => control.send(Command::Stuck(collector, stuck)),
        }
    }

    /// The calls of `peer` differ from those of `world`, of this rank, on a communicator: has both find
    /// out from where on, which the world then tells.
    pub(crate) fn compare_calls(&self, world: &World, peer: u32, group: u64) {
        match self {
            ControlHandle::Memory(control) => {
                let other = control.worlds.get(peer as usize).and_then(Weak::upgrade);
                let calls = other.zip(world.trail(peer));
                let calls = calls.map(|(other, trail)| other.answer(world.rank, &trail));
                world.note_answer(peer, group, &calls.unwrap_or_default());
            }
            ControlHandle::Network(control) => control.send(Command::CompareCalls(peer, group)),
        }
    }

    /// Where no heartbeats go round: tells the others how far this rank is.
    pub(crate) fn compare_notes(&self, standings: impl Fn() -> Vec<Standing>) {
        if let ControlHandle::Memory(control) = self {
            control.each_other(|world| world.note_standings(control.rank, standings()));
        }
    }

    /// Ends the endpoint, once goodbyes are answered and verdicts are out: about a second at most.
    pub(crate) fn close(&self) {
        if let ControlHandle::Network(control) = self {
            control.close();
        }
    }
}

/// The control endpoint's thread.
pub(crate) struct NetworkControl {
    commands: mpsc::UnboundedSender<Command>,
    flooded: Flooded,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl NetworkControl {
    pub(crate) fn new(
        commands: mpsc::UnboundedSender<Command>,
        flooded: Flooded,
        thread: JoinHandle<()>,
    ) -> Self {
        Self { commands, flooded, thread: Mutex::new(Some(thread)) }
    }

    fn send(&self, command: Command) {
        // An endpoint that has ended has nobody left to tell.
        let _ = self.commands.send(command);
    }

    pub(crate) fn close(&self) {
        self.send(Command::Close);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Set once a verdict has been written to all connections.
#[derive(Clone, Default)]
pub(crate) struct Flooded(Arc<(Mutex<bool>, Condvar)>);

impl Flooded {
    pub(crate) fn set(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn wait(&self, limit: Duration) {
        let flooded = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.0.1.wait_timeout_while(flooded, limit, |flooded| !*flooded);
    }
}

/// The worlds of all ranks of one process, which tell each other directly.
pub(crate) struct MemoryControl {
    rank: u32,
    worlds: Arc<Vec<Weak<World>>>,
}

impl MemoryControl {
    /// One for each of `worlds`, in order.
    pub(crate) fn join(worlds: &[Arc<World>]) -> Vec<Self> {
        let all = Arc::new(worlds.iter().map(Arc::downgrade).collect::<Vec<_>>());
        worlds.iter().map(|world| Self { rank: world.rank, worlds: all.clone() }).collect()
    }

    fn each_other(&self, tell: impl Fn(&World)) {
        for world in self.worlds.iter().filter_map(Weak::upgrade).filter(|w| w.rank != self.rank) {
            tell(&world);
        }
    }
}
