//! The two NCCL communicators of a rank.
//!
//! A communicator whose calls do not block can be given up at any moment, but starts a thread for
//! each call; one whose calls block costs a call nothing more, but can only be given up by whoever
//! is sure that no call is inside it. So there are both, and they share NCCL's abort flag
//! (`splitShare`): the *handle* does not block, makes no calls and is there to give up; the *caller*
//! is split from it, blocks, and makes the calls. Giving up the handle ends what the caller's calls
//! and kernels wait for; then the caller, in which no call is any more, can be given up too.

use std::ffi::c_int;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};

use super::library::{Code, IN_PROGRESS, Nccl, SUCCESS};

/// A communicator of NCCL's that moves between threads: NCCL does not care which thread it is, as
/// long as there is one at a time.
#[derive(Clone, Copy)]
pub(super) struct Comm(pub(super) ncclComm_t);

// SAFETY: NCCL's communicators belong to no thread.
unsafe impl Send for Comm {}

/// See the head of this file.
pub(super) struct Pair {
    nccl: &'static Nccl,
    /// Touched by the watching thread alone.
    handle: Mutex<Option<Comm>>,
    /// Locked while a call is inside it.
    caller: Mutex<Option<Comm>>,
    /// Who makes several calls on it.
    holder: Mutex<Option<ThreadId>>,
    /// Before it is.
    is_given_up: AtomicBool,
    /// Why, where NCCL's own error is.
    problem: OnceLock<String>,
}

/// Why the two did not come to be.
pub(super) enum Failure {
    /// NCCL's words.
    Nccl(String),
    /// Not within the time.
    Late,
    /// The world ended meanwhile.
    Over,
}

impl Pair {
    pub(super) fn new(nccl: &'static Nccl) -> Self {
        Self {
            nccl,
            handle: Mutex::new(None),
            caller: Mutex::new(None),
            holder: Mutex::new(None),
            is_given_up: AtomicBool::new(false),
            problem: OnceLock::new(),
        }
    }

    /// Connects to the other ranks, on the thread whose CUDA context is that of this rank's GPU.
    /// `is_over`: nothing will come of it any more.
    pub(super) fn connect(
        &self,
        id: &ncclUniqueId,
        (rank, size): (usize, usize),
        deadline: Instant,
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), Failure> {
        let functions = &self.nccl.functions;
        let mut handle: ncclComm_t = std::ptr::null_mut();
        let mut config = config(0);
        // SAFETY: both pointers are to variables of this frame, which NCCL does not keep: it has
        // written the handle and copied the configuration when it returns.
        let code = unsafe {
            let (size, rank) = (size as c_int, rank as c_int);
            (functions.comm_init_rank_config)(&mut handle, size, *id, rank, &mut config)
        };
        if !handle.is_null() {
            *lock(&self.handle) = Some(Comm(handle));
        }
        self.settle(code, Comm(handle), deadline, is_over)?;

        let mut caller: ncclComm_t = std::ptr::null_mut();
        let mut config = self::config(1);
        // SAFETY: NCCL writes the caller while the split is in progress, until it is complete or the
        // handle is given up: `settle` returns before this frame ends only then.
        let code =
            unsafe { (functions.comm_split)(handle, 0, rank as c_int, &mut caller, &mut config) };
        if let Err(failure) = self.settle(code, Comm(handle), deadline, is_over) {
            // Before `caller` goes out of scope. What a failed split has left is given up too.
            self.give_up_handle();
            *lock(&self.caller) = Some(Comm(caller)).filter(|comm| !comm.0.is_null());
            return Err(failure);
        }
        if caller.is_null() {
            return Err(Failure::Nccl("its split gave no communicator".into()));
        }
        *lock(&self.caller) = Some(Comm(caller));
        Ok(())
    }

    /// Makes calls on the caller; None once it is given up. What `calls` returns goes through.
    pub(super) fn call<T>(&self, calls: impl FnOnce(Comm) -> T) -> Option<T> {
        let caller = lock(&self.caller);
        caller.map(calls)
    }

    /// As [`call`](Self::call), of a program's code, which may make several.
    pub(super) fn hold<T>(&self, calls: impl FnOnce(Comm) -> T) -> Option<T> {
        self.call(|comm| {
            *lock(&self.holder) = Some(thread::current().id());
            let _held = Held(self);
            calls(comm)
        })
    }

    /// Whether this thread is within [`hold`](Self::hold): until it is not, the caller cannot be given
    /// up.
    pub(super) fn is_held_here(&self) -> bool {
        *lock(&self.holder) == Some(thread::current().id())
    }

    /// What NCCL has found out meanwhile; None where a call is inside it at the moment, or nobody
    /// ever will be again.
    pub(super) fn look(&self) -> Option<Code> {
        let caller = self.caller.try_lock().ok()?;
        caller.map(|comm| self.state(comm))
    }

    /// Ends whatever waits in NCCL for another rank: calls, kernels, the connecting itself. `ended` is
    /// called as soon as they have; NCCL's own threads take half a second more.
    pub(super) fn give_up(&self, ended: impl FnOnce()) {
        self.is_given_up.store(true, Ordering::Release);
        self.give_up_handle();
        let caller = lock(&self.caller).take();
        ended();
        if let Some(Comm(caller)) = caller {
            // SAFETY: it is taken out, so that nobody uses it again, and no call is inside it.
            let _ = unsafe { (self.nccl.functions.comm_abort)(caller) };
        }
    }

    /// Notes why it is about to be given up.
    pub(super) fn blame(&self, problem: String) {
        let _ = self.problem.set(problem);
    }

    /// Why it was given up, where it was for an error of NCCL's own.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.get().map(String::as_str)
    }

    /// Whether calls that have ended since may have ended for that.
    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Takes the caller down where all calls have ended on every rank.
    pub(super) fn close_caller(&self) {
        let functions = &self.nccl.functions;
        let caller = lock(&self.caller).take();
        if let Some(Comm(caller)) = caller {
            // SAFETY: it is taken out, so that nobody uses it again; destroying that fails has freed
            // nothing.
            unsafe {
                let _ = (functions.comm_finalize)(caller);
                if (functions.comm_destroy)(caller) != SUCCESS {
                    let _ = (functions.comm_abort)(caller);
                }
            }
        }
    }

    /// Takes the handle down, after the caller; it has made no call that would have to be waited for.
    pub(super) fn close_handle(&self) {
        self.give_up_handle();
    }

    fn give_up_handle(&self) {
        let handle = lock(&self.handle).take();
        if let Some(Comm(handle)) = handle {
            // SAFETY: it is taken out, so that nobody uses it again; no other thread touches it.
            let _ = unsafe { (self.nccl.functions.comm_abort)(handle) };
        }
    }

    /// Waits for what a call on the handle has begun, which returned `code`: a split returns success
    /// also where it has only begun.
    fn settle(
        &self,
        code: Code,
        handle: Comm,
        deadline: Instant,
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), Failure> {
        let has_begun = matches!(code, SUCCESS | IN_PROGRESS) && !handle.0.is_null();
        let mut code = if has_begun { self.state(handle) } else { code };
        let mut pause = SHORTEST_PAUSE;
        while code == IN_PROGRESS {
            if is_over() {
                return Err(Failure::Over);
            }
            if Instant::now() >= deadline {
                return Err(Failure::Late);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            code = self.state(handle);
        }
        match code {
            SUCCESS => Ok(()),
            code => Err(Failure::Nccl(self.nccl.describe(code))),
        }
    }

    /// What NCCL has found out on one of the two.
    pub(super) fn state(&self, comm: Comm) -> Code {
        let mut state = SUCCESS;
        // SAFETY: the communicator is one that has not been given up, and NCCL writes one number.
        match unsafe { (self.nccl.functions.comm_get_async_error)(comm.0, &mut state) } {
            SUCCESS => state,
            code => code,
        }
    }
}

/// Ends a holding, also while unwinding.
struct Held<'a>(&'a Pair);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *lock(&self.0.holder) = None;
    }
}

/// What NCCL's own initialiser made as of 2.18: later versions take their defaults for what they
/// have beyond it.
fn config(blocking: c_int) -> ncclConfig_t {
    ncclConfig_t {
        // Not the padding behind the last one, which 2.26 takes for a field of its own.
        size: offset_of!(ncclConfig_t, splitShare) + size_of::<c_int>(),
        magic: MAGIC,
        version: VERSION,
        blocking,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: 1,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `NCCL_API_MAGIC` of nccl.h.
const MAGIC: u32 = 0xcafe_beef;
/// 2.18.0.
const VERSION: u32 = 21_800;
/// `NCCL_CONFIG_UNDEF_INT` of nccl.h.
const UNDEFINED: c_int = c_int::MIN;
/// Connecting takes from milliseconds to seconds.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
