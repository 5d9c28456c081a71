//! What a rank's process leaves when it ends: the rest of its group, and processes that become the
//! launcher's own children.

use std::time::Duration;

use rustix::process::{Signal, WaitOptions, getpid, waitpid};

use super::Supervisor;
use crate::process::{has_group, table};
use crate::rank::{Leaving, State};

impl Supervisor<'_> {
    /// Ends what a rank's process has left of its group, and then its output.
    pub(super) fn see_off(&mut self) {
        if !self.ranks.iter().any(|rank| matches!(rank.state, State::Leaving(_))) {
            return;
        }
        let table = table();
        for rank in &mut self.ranks {
            let State::Leaving(leaving) = &rank.state else {
                continue;
            };
            let elapsed = leaving.since.elapsed();
            let is_stuck = elapsed >= longest();
            if is_stuck || !has_group(&table, rank.pid) {
                rank.state = State::Over;
                self.around.output.drain(rank.number);
                self.around.keeper.forget_group(rank.pid);
                continue;
            }
            let due = if elapsed >= LINGER + KILL_AFTER {
                Signal::KILL
            } else if elapsed >= LINGER {
                Signal::TERM
            } else {
                continue;
            };
            if leaving.sent != Some(due) {
                let since = leaving.since;
                rank.signal(due);
                rank.signal(Signal::CONT);
                rank.state = State::Leaving(Leaving { since, sent: Some(due) });
            }
        }
    }

    /// Processes whose parents have ended become the launcher's children; dead ones must not
    /// pile up in a long job.
    pub(super) fn reap_adopted(&self) {
        let own = getpid().as_raw_pid();
        for entry in table() {
            let pid = entry.process.pid;
            if entry.parent == own
                && !entry.is_alive
                && !self.around.keeper.is(pid)
                && !self.ranks.iter().any(|rank| rank.pid == pid)
            {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
}

/// How long after a rank's end something of its group may be there at most.
pub(super) fn longest() -> Duration {
    LINGER + KILL_AFTER + STUCK
}

/// Between SIGTERM and SIGKILL for what a rank leaves.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// What a rank leaves may still have something to write: `exec > >(tee log)`.
const LINGER: Duration = Duration::from_secs(2);
/// For one that even SIGKILL does not end, such as in a hanging file system.
const STUCK: Duration = Duration::from_secs(5);
