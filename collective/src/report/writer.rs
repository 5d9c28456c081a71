//! Writes what allfold's own threads have to say, on a thread that none of them waits for: a full
//! pipe, a stopped terminal or a dead file server must hold up neither a heartbeat nor a verdict.
//! The thread ends when there is nothing to write for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Origin;
use crate::error::Error;

/// What there is to say, and for whom.
pub(super) enum Words {
    Warning { origin: Arc<Origin>, message: String, call: Option<String> },
    End { origin: Arc<Origin>, error: Error, call: Option<String> },
}

struct Desk {
    queue: VecDeque<Words>,
    is_writing: bool,
    has_thread: bool,
}

/// Has it written; what no longer fits is not said.
pub(super) fn hand_over(words: Words) {
    let mut desk = desk();
    if desk.queue.len() >= MAX_WAITING {
        return;
    }
    desk.queue.push_back(words);
    if !desk.has_thread {
        let thread = std::thread::Builder::new().name("allfold-words".into()).spawn(write);
        desk.has_thread = thread.is_ok();
    }
    CHANGED.notify_all();
}

/// Waits until all is written, at most `limit`: the program may end next.
pub(super) fn flush(limit: Duration) {
    let is_busy = |desk: &mut Desk| desk.has_thread && (desk.is_writing || !desk.queue.is_empty());
    drop(CHANGED.wait_timeout_while(desk(), limit, is_busy));
}

fn write() {
    let mut held = desk();
    loop {
        let is_empty = |desk: &mut Desk| desk.queue.is_empty();
        held = match CHANGED.wait_timeout_while(held, IDLE, is_empty) {
            Ok((held, _)) => held,
            Err(poisoned) => poisoned.into_inner().0,
        };
        let Some(words) = held.queue.pop_front() else {
            held.has_thread = false;
            return;
        };
        held.is_writing = true;
        drop(held);
        words.say();
        held = desk();
        held.is_writing = false;
        CHANGED.notify_all();
    }
}

impl Words {
    fn say(self) {
        // A subscriber of the program's that panics must not end this thread in the middle.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match self {
            Words::Warning { origin, message, call } => origin.say(&message, call.as_deref()),
            Words::End { origin, error, call } => origin.ends(&error, call.as_deref()),
        }));
    }
}

fn desk() -> MutexGuard<'static, Desk> {
    DESK.lock().unwrap_or_else(PoisonError::into_inner)
}

static DESK: Mutex<Desk> =
    Mutex::new(Desk { queue: VecDeque::new(), is_writing: false, has_thread: false });
static CHANGED: Condvar = Condvar::new();

/// Nobody reads more when nothing has been read for so long.
const MAX_WAITING: usize = 256;
/// A thread costs little, and warnings come seldom.
const IDLE: Duration = Duration::from_secs(1);
