//! How the end of a call reaches whoever waits for it: a thread on a condvar, or a task.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::statistics::CallKey;
use crate::world::World;

/// Makes the two ends of a call's result.
pub(crate) fn completion() -> (Completer, Completion) {
    completion_with(None)
}

/// As [`completion`]; with what is to be done just before anybody is woken.
pub(crate) fn completion_with(ending: Option<Ending>) -> (Completer, Completion) {
    let slot = Arc::new(Slot::default());
    {
        let mut state = slot.lock();
        (state.open, state.ending) = (1, ending);
    }
    (Completer { slot: slot.clone(), has_ended: false }, Completion(slot))
}

/// A lane's end: completes the call, with an error if it is dropped without a result.
pub(crate) struct Completer {
    slot: Arc<Slot>,
    has_ended: bool,
}

/// The caller's end. Dropped early, it leaves the call to the lane.
pub(crate) struct Completion(Arc<Slot>);

/// The end of a communicator's call: it is counted, and the next one need not wait for it.
pub(crate) struct Ending {
    pub(crate) world: Arc<World>,
    pub(crate) group: u64,
    pub(crate) key: CallKey,
}

impl Ending {
    fn note(self, is_ok: bool, begun: Option<Instant>) {
        let Self { world, group, key } = self;
        if is_ok {
            world.counters.call(key, begun.map_or(Duration::ZERO, |begun| begun.elapsed()));
        }
        world.end_call(group);
    }
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Completers that have not ended their parts.
    open: usize,
    /// The first error of a part, until all have ended.
    failed: Option<Error>,
    ending: Option<Ending>,
    /// Since when a part of it is under way.
    begun: Option<Instant>,
    result: Option<Result<()>>,
    /// Since when somebody waits.
    awaited: Option<Instant>,
    /// Waited so long, it is time for a warning.
    next_warning: Duration,
    waker: Option<Waker>,
}

impl Completer {
    /// Another completer of the same call, which then ends when all of them have ended it.
    pub(crate) fn another(&self) -> Self {
        self.slot.lock().open += 1;
        Self { slot: self.slot.clone(), has_ended: false }
    }

    /// Ends this completer's part of the call. The last one to do so ends the call, with the first
    /// error there was.
    pub(crate) fn set(mut self, result: Result<()>) {
        self.end_part(result);
    }

    /// A part of the call is under way since then.
    pub(crate) fn note_begun(&self, now: Instant) {
        self.slot.lock().begun.get_or_insert(now);
    }

    /// Since when somebody waits for the call.
    pub(crate) fn awaited(&self) -> Option<Instant> {
        self.slot.lock().awaited
    }

    /// Whom to ask, also once the completer is elsewhere.
    pub(crate) fn asked(&self) -> Asked {
        Asked(self.slot.clone())
    }

    /// Somebody waits, if not for this call alone.
    pub(crate) fn note_awaited(&self) {
        self.slot.lock().awaited.get_or_insert_with(Instant::now);
    }

    /// Whether it is time for a warning, after `waited`: the first after `patience`, then each time
    /// that it has doubled; once, whichever of the call's completers asks.
    pub(crate) fn is_warning_due(&self, waited: Duration, patience: Duration) -> bool {
        let mut state = self.slot.lock();
        let mut next = state.next_warning.max(patience);
        let is_due = waited >= next;
        while next <= waited {
            next = next.saturating_mul(2);
        }
        state.next_warning = next;
        is_due
    }

    #[cfg(test)]
    pub(super) fn next_warning(&self) -> Duration {
        self.slot.lock().next_warning
    }

    fn end_part(&mut self, result: Result<()>) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let waker = {
            let mut state = self.slot.lock();
            state.open -= 1;
            if let Err(error) = result {
                state.failed.get_or_insert(error);
            }
            if state.open > 0 {
                return;
            }
            let result = state.failed.take().map_or(Ok(()), Err);
            // Under the lock: a later call, which may begin once this one has ended, must not end
            // before this one's end can be seen.
            if let Some(ending) = state.ending.take() {
                ending.note(result.is_ok(), state.begun);
            }
            state.result = Some(result);
            state.waker.take()
        };
        self.slot.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
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
        self.end_part(Err(Error::system("run a call", "its lane has ended")));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_call_ends_when_all_its_parts_have_and_with_the_first_error() {
        let (first, end) = completion();
        let (second, third) = (first.another(), first.another());
        first.set(Ok(()));
        second.set(Err(ErrorKind::Closed.into()));
        assert!(!end.is_done());
        third.set(Err(Error::system("run it", "later")));
        assert!(matches!(end.wait().unwrap_err().kind(), ErrorKind::Closed));
    }

    #[test]
    fn a_part_that_is_dropped_is_an_error_once_the_others_have_ended() {
        let (first, end) = completion();
        let second = first.another();
        drop(first);
        assert!(!end.is_done());
        second.set(Ok(()));
        assert!(end.wait().is_err());
    }

    #[test]
    fn each_warning_is_due_once_however_many_parts_ask() {
        let (first, _end) = completion();
        let second = first.another();
        let (patience, second_long) = (Duration::from_secs(10), Duration::from_secs(1));
        let due = |part: &Completer, waited| part.is_warning_due(waited, patience);
        assert!(!due(&first, patience - second_long));
        assert!(due(&second, patience) && !due(&first, patience + second_long));
        assert!(due(&first, 5 * patience) && !due(&second, 5 * patience + second_long));
        assert!(due(&second, 8 * patience));
    }
}
