//! The control endpoint: heartbeats, verdicts, goodbyes. Apart from the lanes, so that a full
//! lane never looks like a dead rank.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::world::{Verdict, World};

/// How a rank's threads reach its control endpoint.
pub(crate) enum ControlHandle {
    Memory(MemoryControl),
}

impl ControlHandle {
    /// Tells all ranks of a verdict.
    pub(crate) fn flood(&self, verdict: &Verdict) {
        match self {
            ControlHandle::Memory(control) => {
                control.each_other(|world| world.settle(verdict.clone()));
            }
        }
    }

    /// Waits until the verdict has been written to all open connections, at most `limit`.
    pub(crate) fn wait_flooded(&self, _limit: Duration) {
        match self {
            // Within a process a verdict has arrived when it was told.
            ControlHandle::Memory(_) => {}
        }
    }

    /// Ends the endpoint, once goodbyes are answered and verdicts are out.
    pub(crate) fn close(&self) {
        match self {
            ControlHandle::Memory(_) => {}
        }
    }

    /// Tells all ranks that this one makes no more calls.
    pub(crate) fn say_goodbye(&self, calls: u64, hash: u64) {
        match self {
            ControlHandle::Memory(control) => {
                control.each_other(|world| world.note_goodbye(control.rank, calls, hash));
            }
        }
    }
}

/// The worlds of all ranks of one process, which tell each other directly.
#[derive(Clone)]
pub(crate) struct MemoryControl {
    rank: u32,
    worlds: Arc<Mutex<Vec<Weak<World>>>>,
}

impl MemoryControl {
    /// One for each of `worlds`, in order.
    pub(crate) fn join(worlds: &[Arc<World>]) -> Vec<Self> {
        let all = Arc::new(Mutex::new(worlds.iter().map(Arc::downgrade).collect()));
        worlds.iter().map(|world| Self { rank: world.rank, worlds: all.clone() }).collect()
    }

    fn each_other(&self, tell: impl Fn(&World)) {
        let worlds = self.worlds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for world in worlds.iter().filter_map(Weak::upgrade).filter(|w| w.rank != self.rank) {
            tell(&world);
        }
    }
}
