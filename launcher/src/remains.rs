//! Finds and ends what is left of a job.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open};

use crate::process::{Entry, Process, table};

/// What makes a process part of the job.
pub(crate) struct Remains {
    /// `NAME=value`, which every descendant of a rank has in its environment.
    pub(crate) variable: Vec<u8>,
    /// The process groups of the ranks, for those that scrub their environment.
    pub(crate) groups: HashSet<Pid>,
    /// Whose descendants they are, for those that left the group as well.
    pub(crate) launcher: Option<Pid>,
    /// What the launcher's process had started before the job, and the keeper.
    pub(crate) spared: HashSet<Process>,
}

impl Remains {
    /// Kills all that are there now.
    pub(crate) fn kill(&self) {
        for process in self.find(&HashSet::new()) {
            process.signal(Signal::KILL);
        }
    }

    /// Asks all to end, kills after `patience` those that have not, and returns once they are
    /// gone; at most `STUCK` later, for one that even SIGKILL does not end.
    pub(crate) fn end(&self, patience: Duration) {
        let begun = Instant::now();
        // A child of one that has ended is part of the job as well, but nobody's descendant.
        let mut known = HashSet::new();
        let mut asked = HashSet::new();
        loop {
            let here = self.find(&known);
            known.extend(here.iter().copied());
            let elapsed = begun.elapsed();
            if here.is_empty() || elapsed > patience + STUCK {
                return;
            }
            for process in &here {
                if elapsed > patience {
                    process.signal(Signal::KILL);
                } else if asked.insert(*process) {
                    process.signal(Signal::TERM);
                    // One that is stopped must run to end.
                    process.signal(Signal::CONT);
                }
            }
            wait_for_any(&here);
        }
    }

    /// All that are alive, and those of `known` that are.
    fn find(&self, known: &HashSet<Process>) -> Vec<Process> {
        let table = table();
        let is_spared = |entry: &Entry| {
            let pid = entry.process.pid;
            pid == getpid() || self.launcher == Some(pid) || self.spared.contains(&entry.process)
        };
        let groups: HashSet<i32> = self.groups.iter().map(|group| group.as_raw_pid()).collect();

        let mut found = HashSet::new();
        let mut by_parent: HashMap<i32, Vec<&Entry>> = HashMap::new();
        for entry in table.iter().filter(|entry| !is_spared(entry)) {
            by_parent.entry(entry.parent).or_default().push(entry);
            if groups.contains(&entry.group)
                || known.contains(&entry.process)
                || entry.process.has_variable(&self.variable)
            {
                found.insert(entry.process.pid.as_raw_pid());
            }
        }
        let mut parents: Vec<i32> = found.iter().copied().collect();
        parents.extend(self.launcher.map(Pid::as_raw_pid));
        while let Some(parent) = parents.pop() {
            for child in by_parent.get(&parent).into_iter().flatten() {
                let pid = child.process.pid.as_raw_pid();
                if found.insert(pid) {
                    parents.push(pid);
                }
            }
        }
        table
            .iter()
            .filter(|entry| entry.is_alive && found.contains(&entry.process.pid.as_raw_pid()))
            .map(|entry| entry.process)
            .collect()
    }
}

/// Returns when one of them ends; soon in any case, since others may have come.
fn wait_for_any(processes: &[Process]) {
    let handles: Vec<_> = processes
        .iter()
        .filter_map(|process| pidfd_open(process.pid, PidfdFlags::empty()).ok())
        .collect();
    let mut waits: Vec<_> =
        handles.iter().map(|handle| PollFd::new(handle, PollFlags::IN)).collect();
    let _ = poll(&mut waits, Some(&LOOK_AGAIN));
}

const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long to wait for one that is killed: the kernel may be writing its core or its pages.
const STUCK: Duration = Duration::from_secs(5);
