//! What is known of the ranks, in words: for warnings and for the error that ends the world.

use std::collections::BTreeMap;
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
        let call = self.describe_call(group, sequence).unwrap_or_default();
        let (rank, waited) = (self.rank, report::duration(waited));
        let message = format!("rank {rank} has waited {waited} in {call}: {late}");
        report::warn_of_call(&self.counters.origin, &message, &call);
    }

    #[cfg(feature = "nccl")]
    /// Says that this rank has been in a call of NCCL's for long.
    pub(crate) fn warn_inside(&self, (group, sequence): (u64, u64), waited: Duration) {
        let late = self.late(group, sequence);
        let late = late.unwrap_or_else(|| "all ranks have made it".into());
        let call = self.describe_call(group, sequence).unwrap_or_default();
        let (rank, waited) = (self.rank, report::duration(waited));
        let message = format!(
            "rank {rank} has waited {waited} for NCCL to begin {call}: {late}; NCCL_DEBUG=INFO shows \
             what NCCL does"
        );
        report::warn_of_call(&self.counters.origin, &message, &call);
    }

    /// This rank's call in words, as far back as it is kept.
    pub(crate) fn describe_call(&self, group: u64, sequence: u64) -> Option<String> {
        self.state().groups.get(&group)?.describe_call(sequence)
    }

    /// The ranks that have not begun call `sequence`, and what they did last.
    pub(crate) fn late(&self, group: u64, sequence: u64) -> Option<String> {
        let state = self.state();
        let late = state.groups.get(&group)?.late(sequence, self.peers.len());
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
            true => format!("in {call}"),
            false if *calls == 1 => "computing after 1 call".into(),
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
        let Verdict { seen_by, culprit, fault, waiting: call, .. } = verdict.clone();
        let rank = culprit as usize;
        let at = self.place(culprit);
        match fault {
            // This rank was stopped, or cut off, and learns now what the others decided.
            Fault::Lost { loss, .. } if culprit == self.rank && seen_by != self.rank => {
                let how = format!("was declared dead by rank {seen_by}: it {}", loss.how());
                let help = "this process was stopped, not scheduled or cut off for longer than \
                            ALLFOLD_DEAD_AFTER, which is to be equal on all ranks";
                ErrorKind::RankLost { rank, at, how, call: None, help: Some(help.into()) }
            }
            Fault::Lost { loss, last } => {
                // Who leaves does not know what the others wait in.
                let call = call.or_else(|| self.waiting(Some(culprit)));
                let last = last.map_or_else(String::new, |last| format!(", last heard {last}"));
                let how = loss.how() + &last;
                let host = self.peers.get(rank).map_or("unknown", |peer| &peer.host);
                ErrorKind::RankLost { rank, at, how, call, help: loss.help(culprit, host) }
            }
            Fault::LinkDown { problem: how } => ErrorKind::LinkDown {
                rank: seen_by as usize,
                at: self.place(seen_by),
                peer: rank,
                peer_at: at,
                how,
                call,
            },
            Fault::CutOff { silent_ms } => {
                let silence = report::duration(Duration::from_millis(silent_ms));
                let how = format!("it has heard no other rank for {silence}");
                ErrorKind::CutOff { rank, at, how, call }
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

    /// What another rank did last, by its heartbeats: `in all_reduce #418`.
    pub(super) fn last_seen(&self, rank: u32) -> Option<String> {
        let state = self.state();
        let progress = state
            .groups
            .values()
            .filter_map(|group| group.progress(group.place_of(rank)?))
            .max_by_key(|p| (p.standing.ended < p.standing.calls, p.heard));
        match &progress?.standing {
            Standing { calls, ended, call, .. } if ended < calls => {
                // The source lines stand behind the ranks that were waiting.
                Some(format!("in {}", call.split_once(" (").map_or(&**call, |(name, _)| name)))
            }
            Standing { calls, .. } if *calls > 0 => Some(format!("computing after {calls} calls")),
            _ => None,
        }
    }

    /// The call that this rank is in.
    pub(super) fn call_under_way(&self) -> Option<String> {
        let state = self.state();
        state.groups.values().find_map(Group::under_way).map(|(_, words)| words)
    }

    /// `rank 0, 1, 2 were waiting in all_reduce #418 (sum of f32 x 1048576, src/train.rs:88)`: all
    /// but `culprit`, as far as this rank knows.
    pub(super) fn waiting(&self, culprit: Option<u32>) -> Option<String> {
        let state = self.state();
        let mut calls: BTreeMap<(u64, u64), (Vec<u32>, String)> = BTreeMap::new();
        for (id, group) in &state.groups {
            for (place, &rank) in (0..).zip(group.members().iter()) {
                if Some(rank) == culprit || state.left.get(rank as usize) == Some(&true) {
                    continue;
                }
                let under_way = if rank == self.rank {
                    group.under_way()
                } else {
                    let standing = group.progress(place).map(|progress| &progress.standing);
                    standing
                        .filter(|standing| standing.ended < standing.calls)
                        .map(|standing| (standing.ended, standing.call.clone()))
                };
                if let Some((sequence, words)) = under_way {
                    let (ranks, _) =
                        calls.entry((*id, sequence)).or_insert_with(|| (Vec::new(), words));
                    ranks.push(rank);
                }
            }
        }
        let mut calls: Vec<_> = calls.into_values().collect();
        calls.sort_by_key(|(ranks, _)| std::cmp::Reverse(ranks.len()));
        let words = calls.iter().take(MAX_CALLS_NAMED).map(|(ranks, call)| {
            let were = if ranks.len() == 1 { "was" } else { "were" };
            format!("{} {were} waiting in {call}", listed(ranks))
        });
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| words.join(" and "))
    }
}

/// `rank 0, 1, 2`, or `rank 0, 1, ... and 96 more`.
fn listed(ranks: &[u32]) -> String {
    let named: Vec<String> = ranks.iter().take(MAX_WAITING_NAMED).map(u32::to_string).collect();
    match ranks.len().saturating_sub(MAX_WAITING_NAMED) {
        0 => format!("rank {}", named.join(", ")),
        more => format!("rank {} and {more} more", named.join(", ")),
    }
}

/// Heartbeats come twice a second; an older one says what was, not what is.
const FRESH: Duration = Duration::from_millis(1500);
/// More names than this do not help.
const MAX_LATE_NAMED: usize = 8;
const MAX_WAITING_NAMED: usize = 16;
/// Those in which most ranks were.
const MAX_CALLS_NAMED: usize = 2;
