//! Writes what allfold's own threads have to say, on threads that none of them waits for: a full
//! pipe, a stopped terminal or a dead file server must hold up neither a heartbeat nor a verdict.
//! A thread ends when there is nothing to write for a while.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where words wait for their thread.
pub(super) struct Desk {
    /// Its thread's name.
    name: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queue: VecDeque<Words>,
    is_writing: bool,
    has_thread: bool,
    /// The process whose thread that is: a fork has none.
    process: u32,
}

type Words = Box<dyn FnOnce() + Send>;

/// Whether words must be said although many wait before them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Where nobody reads, one of many.
    Warning,
    /// The only one of its kind in the life of a world.
    End,
}

impl Desk {
    const fn new(name: &'static str) -> Self {
        let queue = VecDeque::new();
        let state = State { queue, is_writing: false, has_thread: false, process: 0 };
        Self { name, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Has `say` called on the desk's thread, behind all before it.
    pub(super) fn hand_over(&'static self, weight: Weight, say: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        let room = if weight == Weight::End { MAX_ENDS } else { 0 } + MAX_WAITING;
        if state.queue.len() >= room {
            return;
        }
        state.queue.push_back(Box::new(say));
        if !state.has_thread {
            let thread = std::thread::Builder::new().name(self.name.into());
            state.has_thread = thread.spawn(|| self.write()).is_ok();
        }
        self.changed.notify_all();
    }

    /// Waits until all is written, at most until then: the program may end next.
    fn flush(&self, until: Instant) {
        let is_busy =
            |state: &mut State| state.has_thread && (state.is_writing || !state.queue.is_empty());
        let limit = until.saturating_duration_since(Instant::now());
        drop(self.changed.wait_timeout_while(self.state(), limit, is_busy));
    }

    fn write(&self) {
        let mut held = self.state();
        loop {
            let is_empty = |state: &mut State| state.queue.is_empty();
            held = match self.changed.wait_timeout_while(held, IDLE, is_empty) {
                Ok((held, _)) => held,
                Err(poisoned) => poisoned.into_inner().0,
            };
            let Some(say) = held.queue.pop_front() else {
                held.has_thread = false;
                return;
            };
            held.is_writing = true;
            drop(held);
            // A subscriber of the program's that panics must not end this thread in the middle.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(say));
            held = self.state();
            held.is_writing = false;
            self.changed.notify_all();
        }
    }

    /// As this process has it: what waited in the one that it was forked from is said there.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let process = std::process::id();
        if state.process != process {
            let queue = VecDeque::new();
            *state = State { queue, is_writing: false, has_thread: false, process };
        }
        state
    }
}

/// Waits until all is written, at most `limit`.
pub(super) fn flush(limit: Duration) {
    let until = Instant::now() + limit;
    FILES.flush(until);
    LINES.flush(until);
}

/// For standard error, or the program's subscriber.
pub(super) static LINES: Desk = Desk::new("allfold-words");
/// For the files in which a cluster looks for the end of a rank. They wait for no reader.
pub(super) static FILES: Desk = Desk::new("allfold-ends");

/// Nobody reads more when nothing has been read for so long.
const MAX_WAITING: usize = 256;
/// A program may make worlds again and again while nobody reads how they end.
const MAX_ENDS: usize = 256;
/// A thread costs little, and warnings come seldom.
const IDLE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A desk whose thread is stuck until the sender is dropped.
    fn stuck() -> (&'static Desk, Sender<()>) {
        let desk: &Desk = Box::leak(Box::new(Desk::new("allfold-test")));
        let (end, ended) = channel::<()>();
        let (begins, begun) = channel();
        desk.hand_over(Weight::Warning, move || {
            begins.send(()).unwrap();
            let _ = ended.recv();
        });
        begun.recv().unwrap();
        (desk, end)
    }

    /// Counts `words` on the desk.
    fn said(desk: &'static Desk, weight: Weight, words: usize) -> Receiver<()> {
        let (say, said) = channel();
        for _ in 0..words {
            let say = say.clone();
            desk.hand_over(weight, move || say.send(()).unwrap());
        }
        said
    }

    #[test]
    fn an_end_is_said_however_many_warnings_wait() {
        let (desk, end) = stuck();
        let warnings = said(desk, Weight::Warning, 2 * MAX_WAITING);
        let ends = said(desk, Weight::End, 1);
        drop(end);
        ends.recv().unwrap();
        assert_eq!(warnings.iter().count(), MAX_WAITING);
    }

    #[test]
    fn words_that_panic_stop_no_others() {
        let (desk, end) = stuck();
        desk.hand_over(Weight::Warning, || panic!("a subscriber of the program's"));
        let others = said(desk, Weight::Warning, 3);
        drop(end);
        assert_eq!(others.iter().count(), 3);
    }

    #[test]
    fn a_fork_has_no_thread_and_starts_one() {
        let (desk, end) = stuck();
        // As a fork finds it.
        desk.state.lock().unwrap().process = std::process::id() + 1;
        said(desk, Weight::Warning, 1).recv().unwrap();
        drop(end);
    }
}
