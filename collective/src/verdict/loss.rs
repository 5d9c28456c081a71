//! The ways in which a rank is lost, in words, and what to do about each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::launched::Ending;
use crate::report;

/// How a rank was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Loss {
    /// Nobody hears it any more.
    Silent {
        for_ms: u64,
        habits: Option<Habits>,
    },
    /// The launcher saw its process end.
    Ended(Ending),
    /// Another process on its host saw that its process is gone.
    Gone,
    /// It said so itself, on its way out.
    Departed,
    Panicked,
    /// A thread of the runtime panicked: a bug.
    LanePanicked,
    /// It said that it cannot go on.
    Failed {
        problem: String,
    },
    /// Its connection was closed.
    Closed {
        problem: String,
    },
    /// It left, and data that it had sent is lost.
    Unread {
        by: u32,
    },
}

/// What its host's kernel says of the process of a silent rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Habits {
    /// By a signal or a debugger.
    Stopped,
    /// In a call that no signal interrupts.
    InKernel,
}

impl Loss {
    /// Silence of so long.
    pub(crate) fn silent(silence: Duration, habits: Option<Habits>) -> Self {
        Self::Silent { for_ms: silence.as_millis() as u64, habits }
    }

    /// `stopped answering 2.1 s ago`, as errors say it.
    pub(crate) fn how(&self) -> String {
        match self {
            Loss::Silent { for_ms, habits } => {
                let ago = report::duration(Duration::from_millis(*for_ms));
                match habits {
                    None => format!("stopped answering {ago} ago"),
                    Some(Habits::Stopped) => {
                        format!("stopped answering {ago} ago: its process is stopped")
                    }
                    Some(Habits::InKernel) => format!(
                        "stopped answering {ago} ago: its process is stuck in the kernel, as by a \
                         dead disk or file server"
                    ),
                }
            }
            Loss::Ended(ending) => ending.describe(),
            Loss::Gone => "is gone: its process ended without a goodbye".into(),
            Loss::Departed => Ending::Exit(0).describe(),
            Loss::Panicked => "panicked".into(),
            Loss::LanePanicked => "panicked in a lane".into(),
            Loss::Failed { problem } => format!("failed: {problem}"),
            Loss::Closed { problem } => {
                format!("closed its connection without a goodbye ({problem})")
            }
            Loss::Unread { by } => {
                format!("closed its communicator, and what rank {by} had not read by then is lost")
            }
        }
    }

    /// What to do about it; `rank` is the one that was lost, `host` where it ran.
    pub(crate) fn help(&self, rank: u32, host: &str) -> Option<String> {
        Some(match self {
            Loss::Silent { habits: Some(Habits::Stopped), .. } => format!(
                "`kill -CONT` its process before ALLFOLD_DEAD_AFTER next time, or set that to \
                 `off` on all ranks to stop rank {rank} in a debugger"
            ),
            Loss::Silent { .. } => format!(
                "look whether host {host} is up and reachable, and at what rank {rank} wrote last; \
                 ALLFOLD_DEAD_AFTER, on all ranks, sets for how long silence is borne"
            ),
            Loss::Ended(Ending::OutOfMemory) => format!(
                "give rank {rank} more memory (in Kubernetes: resources.limits.memory), or let it \
                 use less: a smaller batch or model"
            ),
            Loss::Ended(Ending::Signal(KILLED)) => {
                format!("somebody killed it, or the kernel did: see `dmesg` on host {host}")
            }
            Loss::Departed | Loss::Ended(Ending::Exit(0)) => format!(
                "what rank {rank} wrote last may say why; a program that ends well closes its \
                 communicator, or drops it, before"
            ),
            Loss::Gone | Loss::Panicked | Loss::Ended(_) | Loss::Failed { .. } => {
                format!("what rank {rank} wrote last says why")
            }
            Loss::LanePanicked | Loss::Closed { .. } | Loss::Unread { .. } => return None,
        })
    }

    /// The same, of words that a person can be shown.
    pub(super) fn printable(self) -> Self {
        match self {
            Loss::Failed { problem } => Loss::Failed { problem: report::printable(&problem) },
            Loss::Closed { problem } => Loss::Closed { problem: report::printable(&problem) },
            other => other,
        }
    }
}

/// SIGKILL.
const KILLED: i32 = 9;
