//! How the end of a call reaches whoever waits for it: a thread on a condvar, or a task.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::error::{Error, Result};

/// Makes the two ends of a call's result.
pub(crate) fn completion() -> (Completer, Completion) {
    let slot = Arc::new(Slot::default());
    (Completer(slot.clone()), Completion(slot))
}

/// The lane's end: completes the call, with an error if it is dropped without a result.
pub(crate) struct Completer(Arc<Slot>);

/// The caller's end. Dropped early, it leaves the call to the lane.
pub(crate) struct Completion(Arc<Slot>);

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    /// Since when somebody waits.
    awaited: Option<Instant>,
    waker: Option<Waker>,
}

impl Completer {
    pub(crate) fn set(&self, result: Result<()>) {
        let waker = {
            let mut state = self.0.lock();
            state.result.get_or_insert(result);
            state.waker.take()
        };
        self.0.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Since when somebody waits for the call.
    pub(crate) fn awaited(&self) -> Option<Instant> {
        self.0.lock().awaited
    }

    /// Whom to ask, also once the completer is elsewhere.
    pub(crate) fn asked(&self) -> Asked {
        Asked(self.0.clone())
    }

    /// Somebody waits, if not for this call alone.
    pub(crate) fn note_awaited(&self) {
        self.0.lock().awaited.get_or_insert_with(Instant::now);
    }
}

/// Knows whether somebody waits for a call.
pub(crate) struct Asked(Arc<Slot>);

impl Asked {
    /// Since when somebody waits.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.0.lock().awaited
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        self.set(Err(Error::system("run a call", "its lane has ended")));
    }
}

impl Completion {
    /// Waits for the end of the call.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut state = self.0.lock();
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            state.awaited.get_or_insert_with(Instant::now);
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The end of the call, or its waker is kept.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<()>> {
        let mut state = self.0.lock();
        if let Some(result) = &state.result {
            return Poll::Ready(result.clone());
        }
        state.awaited.get_or_insert_with(Instant::now);
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whether the call has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.0.lock().result.is_some()
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        // Nobody asks any more; if it never ends that must still come out.
        self.0.lock().awaited.get_or_insert_with(Instant::now);
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
