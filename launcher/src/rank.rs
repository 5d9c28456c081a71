//! A rank's process, from its start until nothing of its group is left.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::supervisor::Event;

/// A rank's process, first of a process group of its own.
///
/// It is not reaped before the end of the job: as long as it is a zombie, nobody else can get
/// its number, and a signal to its group hits no stranger.
pub(crate) struct Rank {
    pub(crate) number: usize,
    pub(crate) pid: Pid,
    pub(crate) child: Child,
    pub(crate) state: State,
}

/// How far it is.
pub(crate) enum State {
    /// Its process is there.
    Running,
    /// The process has ended, but perhaps not all of its group.
    Leaving(Leaving),
    /// Nothing is left.
    Over,
}

/// Since when, and what it was told.
pub(crate) struct Leaving {
    pub(crate) since: Instant,
    pub(crate) sent: Option<Signal>,
}

impl Rank {
    /// A rank that has just been started.
    pub(crate) fn new(number: usize, pid: Pid, child: Child) -> Self {
        let state = State::Running;
        Self { number, pid, child, state }
    }

    /// Signals its process group.
    pub(crate) fn signal(&self, signal: Signal) {
        // It fails only where nobody is left, or has changed to another user.
        let _ = kill_process_group(self.pid, signal);
    }
}

/// Sends an event whenever one of the ranks ends.
pub(crate) fn watch(ranks: &[Rank], events: Sender<Event>) -> io::Result<()> {
    let handles = ranks.iter().map(|rank| pidfd_open(rank.pid, PidfdFlags::empty()));
    let mut handles = handles.collect::<Result<Vec<OwnedFd>, Errno>>()?;
    let watch = move || {
        while !handles.is_empty() {
            let wait = |handle| PollFd::new(handle, PollFlags::IN);
            let mut waits: Vec<PollFd<'_>> = handles.iter().map(wait).collect();
            if !matches!(poll(&mut waits, None), Ok(_) | Err(Errno::INTR)) {
                return;
            }
            let ended: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
            let mut ended = ended.into_iter();
            handles.retain(|_| !ended.next().unwrap_or(false));
            if events.send(Event::ProcessEnded).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("watch".into()).spawn(watch)?;
    Ok(())
}
