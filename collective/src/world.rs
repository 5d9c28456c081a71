//! What the threads of one rank share: who is in the world, how far each has come, and the
//! verdict that ends it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::contract::{self, CallShape, Contract};
use crate::control::ControlHandle;
use crate::error::{Error, ErrorKind, Result};
use crate::lane;
use crate::plan::Plan;
use crate::report;
use crate::verdict::{Fault, Verdict};

/// A rank of the world, as it introduced itself at the start.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its number.
    pub rank: usize,
    /// The host name it gave.
    pub host: String,
    /// Its process id on that host.
    pub pid: u32,
}

/// One rank's view of the world.
pub(crate) struct World {
    pub(crate) rank: u32,
    pub(crate) size: u32,
    pub(crate) epoch: u64,
    pub(crate) peers: Vec<Peer>,
    pub(crate) limits: Limits,
    progress: Mutex<Progress>,
    verdict: OnceLock<(Verdict, Error)>,
    lane: OnceLock<mpsc::UnboundedSender<lane::Command>>,
    control: OnceLock<ControlHandle>,
}

/// How long to wait before saying something, and before giving up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A call that waits longer names the late ranks in a warning.
    pub(crate) late_after: Duration,
    /// A call that waits longer is an error.
    pub(crate) timeout: Option<Duration>,
}

/// What a heartbeat says of its sender's calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// Calls begun.
    pub(crate) calls: u64,
    /// The rolling hash after them.
    pub(crate) hash: u64,
    /// The last of them, in words; empty before the first.
    pub(crate) call: String,
    /// It is under way.
    pub(crate) in_call: bool,
}

struct Progress {
    calls: u64,
    hash: u64,
    /// This rank makes no more calls.
    closed: bool,
    /// The last call in the history is under way.
    in_call: bool,
    history: VecDeque<Past>,
    peers: Vec<PeerProgress>,
}

/// A call that was begun here, kept for comparison with ranks that are behind.
struct Past {
    contract: Contract,
    location: &'static std::panic::Location<'static>,
    hash: u64,
}

impl Past {
    fn describe(&self) -> String {
        contract::describe(&self.contract, &contract::show_location(self.location))
    }
}

#[derive(Clone, Default)]
struct PeerProgress {
    standing: Standing,
    /// When `standing` came.
    heard: Option<Instant>,
    /// Calls made and rolling hash, once it has said goodbye.
    goodbye: Option<(u64, u64)>,
}

impl World {
    pub(crate) fn new(rank: u32, epoch: u64, peers: Vec<Peer>, limits: Limits) -> Self {
        let size = peers.len() as u32;
        let progress = Progress {
            calls: 0,
            hash: contract::first_hash(epoch),
            closed: false,
            in_call: false,
            history: VecDeque::new(),
            peers: vec![PeerProgress::default(); peers.len()],
        };
        Self {
            rank,
            size,
            epoch,
            peers,
            limits,
            progress: Mutex::new(progress),
            verdict: OnceLock::new(),
            lane: OnceLock::new(),
            control: OnceLock::new(),
        }
    }

    /// Joins the threads to the world; a verdict reaches them from here on.
    pub(crate) fn attach(
        &self,
        lane: mpsc::UnboundedSender<lane::Command>,
        control: ControlHandle,
    ) {
        let _ = self.lane.set(lane);
        let _ = self.control.set(control);
    }

    pub(crate) fn control(&self) -> Option<&ControlHandle> {
        self.control.get()
    }

    /// `host, pid 41`: where a rank ran.
    pub(crate) fn place(&self, rank: u32) -> String {
        match self.peers.get(rank as usize) {
            Some(peer) => format!("{}, pid {}", peer.host, peer.pid),
            None => "unknown".into(),
        }
    }

    /// The next call's contract, plan and rolling hash; an error if the world has ended or some
    /// rank has left it.
    pub(crate) fn begin(&self, shape: &CallShape) -> Result<(Contract, Plan, u64)> {
        let (begun, gone) = {
            let mut progress = self.progress();
            let sequence = progress.calls;
            let (contract, plan) = Contract::of_call(shape, self.rank, self.size, sequence);
            let hash = contract.roll(progress.hash);
            progress.calls += 1;
            progress.hash = hash;
            progress.in_call = true;
            if progress.history.len() == MAX_HISTORY {
                progress.history.pop_front();
            }
            progress.history.push_back(Past { contract, location: shape.location, hash });
            let misses = |(calls, their_hash)| {
                calls < progress.calls || (calls == progress.calls && their_hash != hash)
            };
            let gone = progress.peers.iter().position(|p| p.goodbye.is_some_and(misses));
            ((contract, plan, hash), gone)
        };
        if let Some(rank) = gone {
            self.judge_goodbye(rank as u32);
        }
        match self.error() {
            Some(error) => Err(error),
            None => Ok(begun),
        }
    }

    /// The call that `begin` began has ended, well or not.
    pub(crate) fn end_call(&self) {
        self.progress().in_call = false;
    }

    /// Calls begun here, and the rolling hash after them.
    pub(crate) fn calls(&self) -> (u64, u64) {
        let progress = self.progress();
        (progress.calls, progress.hash)
    }

    /// What a heartbeat says of this rank.
    pub(crate) fn standing(&self) -> Standing {
        let progress = self.progress();
        let call = progress.history.back().map_or_else(String::new, Past::describe);
        Standing { calls: progress.calls, hash: progress.hash, call, in_call: progress.in_call }
    }

    /// A heartbeat: keeps how far the peer is, and compares the calls both have made.
    pub(crate) fn note_standing(&self, rank: u32, mut standing: Standing) {
        standing.call = report::printable(&standing.call);
        let mismatch = {
            let mut progress = self.progress();
            let ours = progress
                .past(standing.calls.wrapping_sub(1))
                .map(|past| (past.hash, past.describe()));
            let mismatch = match ours {
                Some((hash, ours)) if hash != standing.hash => Some((standing.clone(), ours)),
                _ => None,
            };
            if let Some(peer) = progress.peers.get_mut(rank as usize) {
                peer.standing = standing;
                peer.heard = Some(Instant::now());
            }
            mismatch
        };
        if let Some((theirs, ours)) = mismatch {
            let sequence = theirs.calls.saturating_sub(1);
            self.raise_mismatch(rank, sequence, &ours, &theirs.call);
        }
    }

    /// A goodbye: the peer makes no more calls.
    pub(crate) fn note_goodbye(&self, rank: u32, calls: u64, hash: u64) {
        if let Some(peer) = self.progress().peers.get_mut(rank as usize) {
            peer.goodbye = Some((calls, hash));
        }
        self.judge_goodbye(rank);
    }

    /// Whether `rank` has said goodbye.
    pub(crate) fn has_left(&self, rank: u32) -> bool {
        self.progress().peers.get(rank as usize).is_some_and(|peer| peer.goodbye.is_some())
    }

    /// A rank that has left after fewer calls than were begun here is an error; so is, once this
    /// rank closes, any other number.
    pub(crate) fn judge_goodbye(&self, rank: u32) {
        let fault = {
            let progress = self.progress();
            let left = progress.peers.get(rank as usize).and_then(|peer| peer.goodbye);
            let Some((calls, hash)) = left else { return };
            if progress.closed && calls > progress.calls {
                drop(progress);
                return self.judge_close();
            }
            if calls < progress.calls {
                let call = progress.past(calls).map_or_else(
                    || "more were made here".to_string(),
                    |past| format!("rank {} made call #{calls}, {}", self.rank, past.describe()),
                );
                Some(Fault::CallCount { calls, call })
            } else if calls == progress.calls && hash != progress.hash {
                let ours = progress.history.back().map_or_else(String::new, Past::describe);
                let theirs = match progress.peers.get(rank as usize).map(|peer| &peer.standing) {
                    Some(standing) if standing.calls == calls => standing.call.clone(),
                    _ => "something else".into(),
                };
                drop(progress);
                return self.raise_mismatch(rank, calls.saturating_sub(1), &ours, &theirs);
            } else {
                None
            }
        };
        if let Some(fault) = fault {
            self.raise(rank, fault);
        }
    }

    /// This rank closes: one that has left with more calls, or does so from now on, is an error.
    pub(crate) fn judge_close(&self) {
        let (calls, more) = {
            let mut progress = self.progress();
            progress.closed = true;
            let left = progress.peers.iter().map(|p| p.goodbye.map_or(0, |goodbye| goodbye.0));
            (progress.calls, left.enumerate().find(|(_, theirs)| *theirs > progress.calls))
        };
        if let Some((rank, theirs)) = more {
            let call = format!("rank {rank} made {theirs} and closed");
            self.raise(self.rank, Fault::CallCount { calls, call });
        }
    }

    /// This rank's call `sequence` in words, as far back as it is kept.
    pub(crate) fn describe_call(&self, sequence: u64) -> Option<(u64, String)> {
        let progress = self.progress();
        progress.past(sequence).map(|past| (past.hash, past.describe()))
    }

    /// `peer` made another call than this rank under number `sequence`.
    pub(crate) fn raise_mismatch(&self, peer: u32, sequence: u64, ours: &str, theirs: &str) {
        // The lower rank first, so that all ranks read the same line.
        let mut sides = [(self.rank, ours), (peer, theirs)];
        sides.sort_by_key(|side| side.0);
        let [first, second] = sides.map(|(rank, call)| format!("rank {rank} called {call}"));
        self.raise(peer, Fault::Mismatch { sequence, first, second });
    }

    /// Ends the world: `culprit` is at fault, as this rank sees it.
    pub(crate) fn raise(&self, culprit: u32, fault: Fault) {
        self.settle(Verdict { epoch: self.epoch, seen_by: self.rank, culprit, fault });
    }

    /// Ends the world with a verdict of this rank or of another; only the first one counts.
    pub(crate) fn settle(&self, verdict: Verdict) {
        if verdict.epoch != self.epoch {
            return;
        }
        let error = self.error_of(&verdict);
        if self.verdict.set((verdict, error)).is_err() {
            return;
        }
        if let Some(lane) = self.lane.get() {
            let _ = lane.send(lane::Command::Abort);
        }
        if let Some((verdict, _)) = self.verdict.get()
            && let Some(control) = self.control.get()
        {
            control.flood(verdict);
        }
    }

    /// The error every call returns, once there is a verdict.
    pub(crate) fn error(&self) -> Option<Error> {
        self.verdict.get().map(|(_, error)| error.clone())
    }

    /// Says which ranks a call has been waiting for.
    pub(crate) fn warn_late(&self, contract: &Contract, waited: Duration) {
        let late = self.late(contract.sequence).unwrap_or_else(|| "no rank stands out".into());
        let location = self.describe_call(contract.sequence).map_or_else(String::new, |c| c.1);
        report::warn(&format!(
            "rank {} has waited {:.0} s in call #{}, {location}: {late}",
            self.rank,
            waited.as_secs_f64(),
            contract.sequence,
        ));
    }

    /// The ranks that have not begun call `sequence`, and what they did last.
    pub(crate) fn late(&self, sequence: u64) -> Option<String> {
        let progress = self.progress();
        let late: Vec<String> = progress
            .peers
            .iter()
            .zip(0u32..)
            .filter(|(peer, rank)| *rank != self.rank && peer.standing.calls <= sequence)
            .map(|(peer, rank)| {
                let place = self.place(rank);
                let doing = match &peer.standing {
                    Standing { calls, call, in_call: true, .. } => {
                        format!("in call #{}, {call}", calls.saturating_sub(1))
                    }
                    Standing { calls, .. } => format!("computing after {calls} calls"),
                };
                match peer.heard.map(|heard| heard.elapsed()) {
                    Some(age) if age < FRESH => format!("rank {rank} ({place}) is {doing}"),
                    Some(age) => {
                        let age = report::duration(age);
                        format!("rank {rank} ({place}) was {doing}, when last heard {age} ago")
                    }
                    None => format!("rank {rank} ({place}) has not been heard"),
                }
            })
            .take(MAX_LATE_NAMED)
            .collect();
        (!late.is_empty()).then(|| late.join("; "))
    }

    fn error_of(&self, verdict: &Verdict) -> Error {
        let rank = verdict.culprit as usize;
        let at = self.place(verdict.culprit);
        match verdict.fault.clone() {
            // This rank was stopped, or cut off, and learns now what the others decided.
            Fault::Lost { how } if verdict.culprit == self.rank && verdict.seen_by != self.rank => {
                let how = format!("was declared dead by rank {}: it {how}", verdict.seen_by);
                ErrorKind::RankLost { rank, at, how, call: None }
            }
            Fault::Lost { how } => {
                let how = how + &self.last_seen(verdict.culprit);
                let call = self.waiting_in();
                ErrorKind::RankLost { rank, at, how, call }
            }
            Fault::Mismatch { sequence, first, second } => {
                ErrorKind::Mismatch { sequence, first, second }
            }
            Fault::CallCount { calls, call } => ErrorKind::CallCount { rank, at, calls, call },
            Fault::TimedOut { call, limit, late } => ErrorKind::TimedOut { call, limit, late },
            Fault::Protocol { problem } => ErrorKind::Protocol { rank, problem },
        }
        .into()
    }

    /// What a rank did last, by its heartbeats.
    fn last_seen(&self, rank: u32) -> String {
        let progress = self.progress();
        match progress.peers.get(rank as usize).map(|peer| &peer.standing) {
            Some(Standing { calls, in_call: true, .. }) => {
                format!(", by its last heartbeat in call #{}", calls.saturating_sub(1))
            }
            Some(Standing { calls, .. }) if *calls > 0 => {
                format!(", by its last heartbeat computing after {calls} calls")
            }
            _ => String::new(),
        }
    }

    /// `rank 0 was waiting in call #418, all_reduce sum of f32 x 1048576 (src/train.rs:88)`.
    fn waiting_in(&self) -> Option<String> {
        let progress = self.progress();
        let call = progress.history.back().filter(|_| progress.in_call)?;
        let (sequence, words) = (call.contract.sequence, call.describe());
        Some(format!("rank {} was waiting in call #{sequence}, {words}", self.rank))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn past(&self, sequence: u64) -> Option<&Past> {
        let oldest = self.history.front()?.contract.sequence;
        let index = sequence.checked_sub(oldest)?;
        self.history.get(usize::try_from(index).ok()?)
    }
}

/// Calls kept to compare with ranks that are behind; a one-way call may run this far ahead and
/// still have its difference shown in words.
const MAX_HISTORY: usize = 256;
/// Heartbeats come twice a second; an older one says what was, not what is.
const FRESH: Duration = Duration::from_millis(1500);
/// More names than this do not help.
const MAX_LATE_NAMED: usize = 8;
