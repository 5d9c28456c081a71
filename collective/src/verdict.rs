//! Why a world ended: what the first rank to know tells all others.

use serde::{Deserialize, Serialize};

use crate::report;

/// Why a world ended, as it goes from rank to rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) epoch: u64,
    pub(crate) seen_by: u32,
    /// The rank at fault.
    pub(crate) culprit: u32,
    pub(crate) fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// It died or went silent; `how` says what happened and when.
    Lost { how: String },
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
        let fault = match self.fault {
            Fault::Lost { how } => Fault::Lost { how: report::printable(&how) },
            Fault::Mismatch { sequence, first, second } => Fault::Mismatch {
                sequence,
                first: report::printable(&first),
                second: report::printable(&second),
            },
            Fault::CallCount { calls, call } => {
                Fault::CallCount { calls, call: report::printable(&call) }
            }
            Fault::Deadlock { calls } => Fault::Deadlock {
                calls: calls.iter().map(|call| report::printable(call)).collect(),
            },
            Fault::TimedOut { call, limit, late } => Fault::TimedOut {
                call: report::printable(&call),
                limit: report::printable(&limit),
                late: late.map(|late| report::printable(&late)),
            },
            Fault::Protocol { problem } => Fault::Protocol { problem: report::printable(&problem) },
        };
        Self { fault, ..self }
    }
}
