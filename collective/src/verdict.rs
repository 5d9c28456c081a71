//! Why a world ended: what the first rank to know tells all others.

mod loss;

use serde::{Deserialize, Serialize};

use crate::deadlock::MAX_NAMED;
use crate::report;

pub(crate) use loss::{Habits, Loss};

/// Why a world ended, as it goes from rank to rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) epoch: u64,
    pub(crate) seen_by: u32,
    /// The rank at fault.
    pub(crate) culprit: u32,
    pub(crate) fault: Fault,
    /// Which ranks waited in which calls, as `seen_by` knew it.
    pub(crate) waiting: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// It died or went silent.
    Lost {
        loss: Loss,
        /// What it did when it was heard last.
        last: Option<String>,
    },
    /// It is alive, but nothing comes from it to the rank that says so.
    LinkDown { problem: String },
    /// It hears nobody.
    CutOff { silent_ms: u64 },
    /// Two ranks made different calls.
    Mismatch { sequence: u64, first: String, second: String },
    /// It closed after `calls` calls, and `call` still needed it.
    CallCount { calls: u64, call: String },
    /// Every rank waits for a call that another has not made: each rank's call.
    Deadlock { calls: Vec<String> },
    /// A call took longer than ALLFOLD_TIMEOUT.
    TimedOut { call: String, limit: String, late: Option<String> },
    /// It sent what allfold never sends.
    Protocol { problem: String },
}

impl Verdict {
    /// The same, of words that a person can be shown: it came from a peer.
    pub(crate) fn printable(self) -> Self {
        let clean = |words: &str| report::printable(words);
        let fault = match self.fault {
            Fault::Lost { loss, last } => {
                Fault::Lost { loss: loss.printable(), last: last.as_deref().map(clean) }
            }
            Fault::LinkDown { problem } => Fault::LinkDown { problem: clean(&problem) },
            Fault::CutOff { silent_ms } => Fault::CutOff { silent_ms },
            Fault::Mismatch { sequence, first, second } => {
                Fault::Mismatch { sequence, first: clean(&first), second: clean(&second) }
            }
            Fault::CallCount { calls, call } => Fault::CallCount { calls, call: clean(&call) },
            Fault::Deadlock { calls } => Fault::Deadlock {
                calls: calls.iter().take(MAX_NAMED + 1).map(|call| clean(call)).collect(),
            },
            Fault::TimedOut { call, limit, late } => Fault::TimedOut {
                call: clean(&call),
                limit: clean(&limit),
                late: late.as_deref().map(clean),
            },
            Fault::Protocol { problem } => Fault::Protocol { problem: clean(&problem) },
        };
        Self { fault, waiting: self.waiting.as_deref().map(clean), ..self }
    }
}
