//! What is known of the ranks, in words: for warnings and for the error that ends the world.

use std::time::Duration;

use super::{State, World};
use crate::contract::Contract;
use crate::error::{Error, ErrorKind};
use crate::group::{Group, Progress, Standing};
use crate::report;
use crate::verdict::{Fault, Verdict};

impl World {
    /// Says which ranks a call has been waiting for.
    pub(crate) fn warn_late(&self, contract: &Contract, waited: Duration) {
        let (group, sequence) = (contract.group, contract.sequence);
        let late = self.late(group, sequence).unwrap_or_else(|| "no rank stands out".into());
        let state = self.state();
        let words = state.groups.get(&group).and_then(|group| group.describe_call(sequence));
        drop(state);
        report::warn(&format!(
            "rank {} has waited {:.0} s in call #{sequence}, {}: {late}",
            self.rank,
            waited.as_secs_f64(),
            words.unwrap_or_default(),
        ));
    }

    /// The ranks that have not begun call `sequence`, and what they did last.
    pub(crate) fn late(&self, group: u64, sequence: u64) -> Option<String> {
        let state = self.state();
        let late = state.groups.get(&group)?.late(sequence);
        let words = late.map(|(rank, progress)| self.doing(&state, rank, progress));
        let words: Vec<String> = words.take(MAX_LATE_NAMED).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// `rank 3 (node-3, pid 41) is computing after 12 calls`.
    fn doing(&self, state: &State, rank: u32, progress: &Progress) -> String {
        let place = self.place(rank);
        // In which communicator it was heard last, it is now.
        let newest = state
            .groups
            .values()
            .filter_map(|group| group.progress(group.place_of(rank)?))
            .filter(|progress| progress.standing.ended < progress.standing.calls)
            .max_by_key(|progress| progress.heard)
            .unwrap_or(progress);
        let Standing { calls, ended, call, .. } = &newest.standing;
        let doing = match ended < calls {
            true => format!("in call #{ended}, {call}"),
            false => format!("computing after {calls} calls"),
        };
        match newest.heard.map(|heard| heard.elapsed()) {
            Some(age) if age < FRESH => format!("rank {rank} ({place}) is {doing}"),
            Some(age) => {
                let age = report::duration(age);
                format!("rank {rank} ({place}) was {doing}, when last heard {age} ago")
            }
            None => format!("rank {rank} ({place}) has not been heard"),
        }
    }

    pub(super) fn error_of(&self, verdict: &Verdict) -> Error {
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
            Fault::Deadlock { calls } => ErrorKind::Deadlock { calls },
            Fault::TimedOut { call, limit, late } => ErrorKind::TimedOut { call, limit, late },
            Fault::Protocol { problem } => ErrorKind::Protocol { rank, problem },
        }
        .into()
    }

    /// What a rank did last, by its heartbeats.
    fn last_seen(&self, rank: u32) -> String {
        let state = self.state();
        let progress = state
            .groups
            .values()
            .filter_map(|group| group.progress(group.place_of(rank)?))
            .max_by_key(|p| (p.standing.ended < p.standing.calls, p.heard));
        match progress.map(|progress| &progress.standing) {
            Some(Standing { calls, ended, .. }) if ended < calls => {
                format!(", by its last heartbeat in call #{ended}")
            }
            Some(Standing { calls, .. }) if *calls > 0 => {
                format!(", by its last heartbeat computing after {calls} calls")
            }
            _ => String::new(),
        }
    }

    /// `rank 0 was waiting in call #418, all_reduce sum of f32 x 1048576 (src/train.rs:88)`.
    fn waiting_in(&self) -> Option<String> {
        let state = self.state();
        let (sequence, words) = state.groups.values().find_map(Group::under_way)?;
        Some(format!("rank {} was waiting in call #{sequence}, {words}", self.rank))
    }
}

/// Heartbeats come twice a second; an older one says what was, not what is.
const FRESH: Duration = Duration::from_millis(1500);
/// More names than this do not help.
const MAX_LATE_NAMED: usize = 8;
