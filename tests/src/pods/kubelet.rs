//! What keeps the container of a pod running: it starts again whatever it returned, after a
//! back-off, until the pod is deleted.

use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::namespaces::{first_child, kill_all};
use crate::{CAP, Process};

/// What happens to the containers of one name, in order; it outlives the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A container has started.
    Started,
    /// It has printed this; standard error's lines begin with `! `.
    Line(String),
    /// It has ended with this code.
    Ended(i32),
}

/// Reads a pod's happenings, and waits for them.
#[derive(Default)]
pub(super) struct Diary {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    happenings: Vec<(Instant, Happening)>,
    /// How many of them a test has looked at.
    read: usize,
    /// What runs: the one that waits for the program, which is its first child.
    runs: Option<u32>,
    is_deleted: bool,
}

impl Diary {
    /// All so far, and when each was seen.
    pub(super) fn happenings(&self) -> Vec<(Instant, Happening)> {
        self.state().happenings.clone()
    }

    /// Waits for a happening that follows what was waited for before.
    ///
    /// # Errors
    /// It did not come within `limit`.
    pub(super) fn wait_for(
        &self,
        limit: Duration,
        mut is_it: impl FnMut(&Happening) -> bool,
    ) -> Result<Happening, ()> {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        loop {
            while let Some((_, happening)) = state.happenings.get(state.read) {
                let happening = happening.clone();
                state.read += 1;
                if is_it(&happening) {
                    return Ok(happening);
                }
            }
            state = self.wait(state, deadline).ok_or(())?;
        }
    }

    /// The program that runs now, if there is one; waits until the container has become it.
    pub(super) fn program(&self, name: &str) -> Option<Pid> {
        let deadline = Instant::now() + CAP;
        loop {
            let program = first_child(self.state().runs?).ok();
            let is_begun = |pid: &Pid| {
                let path = format!("/proc/{}/comm", pid.as_raw_pid());
                std::fs::read_to_string(path).is_ok_and(|comm| comm.trim_end() == name)
            };
            if program.as_ref().is_some_and(is_begun) {
                return program;
            }
            assert!(Instant::now() < deadline, "{name} does not begin: {:#?}", self.happenings());
            std::thread::yield_now();
        }
    }

    /// Until nothing runs; false where something still does after `limit`.
    fn has_ended_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        while state.runs.is_some() {
            match self.wait(state, deadline) {
                Some(next) => state = next,
                None => return false,
            }
        }
        true
    }

    /// Starts a container, unless the pod is deleted.
    fn begin(&self, command: &mut Command) -> Option<Process> {
        let mut state = self.state();
        if state.is_deleted {
            return None;
        }
        let process = Process::start(command);
        state.runs = Some(process.id());
        state.note(Happening::Started);
        self.changed.notify_all();
        Some(process)
    }

    /// Sits the back-off out, unless the pod is deleted.
    fn sit_out(&self, back_off: Duration) {
        let deadline = Instant::now() + back_off;
        let mut state = self.state();
        while !state.is_deleted {
            match self.wait(state, deadline) {
                Some(next) => state = next,
                None => return,
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Until something changes; none where nothing does before the deadline.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Option<MutexGuard<'a, State>> {
        let left = deadline.checked_duration_since(Instant::now())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, happening: Happening) {
        self.happenings.push((Instant::now(), happening));
    }
}

/// A pod as its kubelet sees it.
pub(super) struct Pod {
    diary: Arc<Diary>,
    /// What the program is called.
    program: String,
    /// Of its network.
    namespace: String,
    kubelet: Option<JoinHandle<()>>,
}

impl Pod {
    /// Starts the container, and again whenever it ends: at once the first time, as the kubelet
    /// does, then after 1, 2, 4, ... times `back_off`. `sign` is told whether it runs.
    pub(super) fn start(
        diary: Arc<Diary>,
        program: String,
        namespace: String,
        mut command: Command,
        back_off: Duration,
        sign: impl Fn(bool) + Send + 'static,
    ) -> Self {
        diary.change(|state| state.is_deleted = false);
        let its = diary.clone();
        // Where this thread ends, the kernel ends what it has started.
        let kubelet = std::thread::spawn(move || {
            let mut wait = Duration::ZERO;
            while let Some(mut process) = its.begin(&mut command) {
                sign(true);
                while let Some(line) = process.next_line() {
                    its.change(|state| state.note(Happening::Line(line)));
                }
                let code = process.wait().code();
                sign(false);
                its.change(|state| {
                    state.runs = None;
                    state.note(Happening::Ended(code));
                });
                its.sit_out(wait);
                wait = if wait.is_zero() { back_off } else { (wait * 2).min(back_off * LONGEST) };
            }
        });
        Self { diary, program, namespace, kubelet: Some(kubelet) }
    }

    /// Sends the program a signal.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(program) = self.diary.program(&self.program) {
            // It may end meanwhile.
            let _ = kill_process(program, signal);
        }
    }

    /// The program that runs, if it does.
    pub(super) fn id(&self) -> Option<Pid> {
        self.diary.program(&self.program)
    }

    /// Ends it: SIGTERM, and after `grace` SIGKILL; without a grace SIGKILL at once.
    pub(super) fn end(mut self, grace: Duration) {
        self.end_within(grace);
    }

    fn end_within(&mut self, grace: Duration) {
        let Some(kubelet) = self.kubelet.take() else { return };
        self.diary.change(|state| state.is_deleted = true);
        if !grace.is_zero() {
            self.signal(Signal::TERM);
        }
        let mut limit = grace;
        // What is just starting may not be seen the first time.
        while !self.diary.has_ended_within(limit) && !kubelet.is_finished() {
            kill_all(&self.namespace);
            limit = BETWEEN_KILLS;
        }
        // A kubelet that panicked has said why.
        let _ = kubelet.join();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.end_within(Duration::ZERO);
    }
}

/// The longest back-off in first ones: 300 s beside 10 s.
const LONGEST: u32 = 30;
/// What is killed ends sooner.
const BETWEEN_KILLS: Duration = Duration::from_millis(200);
