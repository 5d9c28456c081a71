//! Named moments in the life of a rank, told to one observer.

use std::cell::Cell;
use std::sync::{Arc, PoisonError, RwLock};

/// Where a rank is. `rank` is its number in the whole world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It knows who it is, and has neither listened nor dialled; on the caller's thread.
    BeforeConnect {
        /// The rank itself.
        rank: usize,
    },
    /// Rank 0: another rank has come. Another rank: rank 0 has made it welcome. The ranks may all
    /// be there by then: a test that wants one missing holds it back.
    Gathering {
        /// The rank itself.
        rank: usize,
    },
    /// Rank 0: another rank is ready for the world that it proposed. Another rank: it is ready,
    /// and its word to rank 0 is posted and not sent yet. Nothing is committed.
    Prepared {
        /// The rank itself.
        rank: usize,
    },
    /// It is about to make a call, which has no number yet; on the caller's thread, where an
    /// observer may panic as the program's own code would.
    Call {
        /// The rank itself.
        rank: usize,
        /// The method that was called: `all_reduce`.
        collective: &'static str,
        /// The call's label, if it has one.
        label: Option<u64>,
    },
    /// A call returns the error that ended the world; on the caller's thread.
    Failed {
        /// The rank itself.
        rank: usize,
    },
    /// In a call, on the thread that moves its bytes: its first segment of a step is about to be
    /// sent, or what has arrived of it is about to be reduced or stored.
    Step(Step),
}

/// A step of the plan that a rank follows in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The rank, in the whole world.
    pub rank: usize,
    /// 0 is the communicator of all ranks; others have numbers without a meaning.
    pub communicator: u64,
    /// The call's number on the communicator, from 0.
    pub sequence: u64,
    /// The method that was called: `all_reduce`.
    pub collective: &'static str,
    /// By which algorithm: `ring`.
    pub algorithm: &'static str,
    /// The call's label, if it has one.
    pub label: Option<u64>,
    /// Which step of this rank's plan: 0 to `count` - 1. Steps of different flows may come in
    /// another order.
    pub index: usize,
    /// The steps of this rank in the call.
    pub count: usize,
    /// Whether it sends.
    pub sends: bool,
}

/// Has the runtime call `observer` at every moment from now on, in place of any other observer.
///
/// It is called on the runtime's own threads, which wait for it: it may end or stop the process,
/// set the [`weather`](super::weather), or wake another thread, but must not call a communicator.
pub fn watch(observer: impl Fn(Moment) + Send + Sync + 'static) {
    set(Some(Arc::new(observer)));
}

/// Ends what [`watch`] began.
pub fn unwatch() {
    set(None);
}

/// This thread works for a rank from now on.
pub(crate) fn enter(rank: u32) {
    RANK.set(rank);
}

/// Tells the observer of a moment, which is given this thread's rank.
pub(crate) fn happens(moment: impl FnOnce(usize) -> Moment) {
    let observer = OBSERVER.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(observer) = observer {
        observer(moment(RANK.get() as usize));
    }
}

/// A call is about to return the error that ended the world.
pub(crate) fn failed(rank: u32) {
    happens(|_| Moment::Failed { rank: rank as usize });
}

fn set(observer: Option<Observer>) {
    *OBSERVER.write().unwrap_or_else(PoisonError::into_inner) = observer;
}

type Observer = Arc<dyn Fn(Moment) + Send + Sync>;

static OBSERVER: RwLock<Option<Observer>> = RwLock::new(None);

thread_local! {
    static RANK: Cell<u32> = const { Cell::new(0) };
}
