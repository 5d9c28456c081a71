//! What the ranks tell each other of their GPUs before NCCL connects them, also where some of them
//! have none.

use serde::{Deserialize, Serialize};

use super::choice::{self, Choice};
use super::presence::Absence;
use crate::caller::Caller;
use crate::contract::Role;
use crate::error::Result;
use crate::report;

/// A rank's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Word {
    /// It can take part.
    Ready {
        /// NCCL's version.
        nccl: String,
        gpu: Choice,
    },
    /// It cannot.
    Absent { problem: String, help: String },
}

impl Word {
    pub(super) fn of(absence: &Absence) -> Self {
        let clip = |words: &str| words.chars().take(MAX_WORDS).collect();
        Self::Absent { problem: clip(&absence.problem), help: clip(&absence.help) }
    }
}

/// Tells the others, and returns where all of them can use NCCL together.
///
/// # Errors
/// [`ErrorKind::NoGpu`](crate::ErrorKind::NoGpu), the same on every rank.
pub(super) fn agree(caller: Caller<'_>, own: Word) -> Result<()> {
    let words = exchange(caller, &own)?;
    let place = |peer: crate::world::Peer| format!("{}, pid {}", peer.host, peer.pid);
    let places: Vec<String> = caller.communicator.peers().into_iter().map(place).collect();
    Ok(choice::judge(&words, &places)?)
}

/// Every rank's word.
fn exchange(caller: Caller<'_>, word: &Word) -> Result<Vec<Word>> {
    let mut own = serde_json::to_vec(word).unwrap_or_default();
    own.resize(WORD_BYTES.max(own.len()), b' ');
    let mut all = vec![0u8; WORD_BYTES * caller.communicator.size()];
    let place = WORD_BYTES * caller.communicator.rank()..;
    all[place].iter_mut().zip(own.iter().take(WORD_BYTES)).for_each(|(into, byte)| *into = *byte);
    caller.gather_as(Role::Connect, &mut all)?;
    let unreadable = || Word::Absent {
        problem: "what it says of its GPU cannot be read".into(),
        help: "run the same version of allfold on every host".into(),
    };
    let read = |bytes: &[u8]| match serde_json::from_slice(bytes) {
        Ok(Word::Absent { problem, help }) => {
            Word::Absent { problem: report::printable(&problem), help: report::printable(&help) }
        }
        Ok(Word::Ready { nccl, gpu }) => Word::Ready {
            nccl: report::printable(&nccl),
            gpu: Choice { name: report::printable(&gpu.name), ..gpu },
        },
        Err(_) => unreadable(),
    };
    Ok(all.chunks_exact(WORD_BYTES).map(read).collect())
}

/// Room for a word.
const WORD_BYTES: usize = 4096;
/// Of what a driver or a loader says, in characters: twice that fits a word however they are
/// written.
const MAX_WORDS: usize = 400;
