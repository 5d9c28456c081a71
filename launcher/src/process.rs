//! The processes of this host, as /proc shows them at one moment.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// With the pid it names one process for good: pids are used again.
    started: u64,
}

impl Process {
    /// Signals this very process; nothing happens where it is gone and its pid used again.
    pub(crate) fn signal(self, signal: Signal) {
        // The descriptor first: while it is open the pid stays the one that was looked at.
        if let Ok(handle) = pidfd_open(self.pid, PidfdFlags::empty())
            && Entry::read(self.pid).is_some_and(|entry| entry.process == self)
        {
            // It may have ended, or belong to another user since a setuid exec.
            let _ = pidfd_send_signal(handle, signal);
        }
    }

    /// Whether its environment holds `NAME=value` exactly.
    pub(crate) fn has_variable(self, variable: &[u8]) -> bool {
        fs::read(directory(self.pid).join("environ")).is_ok_and(|environment| {
            environment.split(|byte| *byte == 0).any(|entry| entry == variable)
        })
    }
}

/// What /proc says of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) process: Process,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    /// False for a zombie.
    pub(crate) is_alive: bool,
}

impl Entry {
    fn read(pid: Pid) -> Option<Self> {
        Self::parse(pid, &fs::read_to_string(directory(pid).join("stat")).ok()?)
    }

    fn parse(pid: Pid, stat: &str) -> Option<Self> {
        // The name stands in parentheses and may hold anything, parentheses and spaces too.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let threads: u32 = fields.get(17)?.parse().ok()?;
        let is_zombie = matches!(fields.first()?, &"Z" | &"X");
        Some(Self {
            process: Process { pid, started: fields.get(19)?.parse().ok()? },
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            // One whose main thread ended before the others looks like a zombie.
            is_alive: !is_zombie || threads > 1,
        })
    }
}

/// All processes. Empty where /proc is not mounted.
pub(crate) fn table() -> Vec<Entry> {
    let Ok(directory) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Entry::read(Pid::from_raw(pid)?))
        .collect()
}

/// The children of `parent`.
pub(crate) fn children(parent: Pid) -> HashSet<Process> {
    let entries = table().into_iter();
    let children = entries.filter(|entry| entry.parent == parent.as_raw_pid());
    children.map(|entry| entry.process).collect()
}

/// Whether somebody in the process group is alive.
pub(crate) fn has_group(table: &[Entry], group: Pid) -> bool {
    let group = group.as_raw_pid();
    table.iter().any(|entry| entry.is_alive && entry.group == group)
}

fn directory(pid: Pid) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_pid().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "4 5 6 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9999 1 2";

    #[test]
    fn a_name_may_hold_anything() {
        let pid = Pid::from_raw(3).unwrap();
        let entry = Entry::parse(pid, &format!("3 (a) Z 9 (b) S {REST}")).unwrap();
        assert_eq!((entry.parent, entry.group, entry.process.started), (4, 5, 9999));
        assert!(entry.is_alive);
        assert!(!Entry::parse(pid, &format!("3 (a) Z {REST}")).unwrap().is_alive);
        assert!(Entry::parse(pid, "3 (a").is_none());
    }

    #[test]
    fn this_process_is_there() {
        let table = table();
        let own = rustix::process::getpid();
        let entry = table.iter().find(|entry| entry.process.pid == own).unwrap();
        assert!(entry.is_alive);
        assert!(has_group(&table, rustix::process::getpgrp()));
        let parent = rustix::process::getppid().map(Pid::as_raw_pid);
        assert_eq!(Some(entry.parent), parent);
    }
}
