//! One communicator's calls, as one of its ranks sees them: how far it is itself, how far it knows
//! the others to be, and whether their calls are the same. Pure: judges, and tells nobody.

mod agreed;
mod goodbyes;
mod trail;

use std::collections::VecDeque;
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::contract::{self, CallShape, Collective, Contract};
use crate::plan::Plan;
use crate::plan::costs::{Choice, Layout};
use crate::report;
use crate::verdict::Fault;
use agreed::Agreed;

pub(crate) use trail::{Difference, Kept, Search, Shown, Trail, from_bytes, to_bytes};

/// The calls of one communicator on one rank.
#[derive(Debug)]
pub(crate) struct Group {
    id: u64,
    /// Behind each call in words: ` on split 3`; nothing for the whole world.
    suffix: Arc<str>,
    /// The ranks of the world that belong to it, in the order of their ranks in it.
    members: Arc<[u32]>,
    /// This rank's place among them.
    place: u32,
    begun: u64,
    ended: u64,
    /// Calls that have ended before others that were begun before them, in order.
    ended_early: VecDeque<u64>,
    /// After the calls that were begun.
    hash: u64,
    /// Where its ranks are.
    layout: Layout,
    /// This rank makes no more calls.
    closed: bool,
    history: VecDeque<Past>,
    progress: Vec<Progress>,
    /// Whether a rank has said goodbye.
    some_left: bool,
    /// What the latest call was agreed as: the next one is often alike.
    agreed: Option<Agreed>,
}

/// A call that was just begun.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    /// Every call before it has ended.
    pub(crate) is_alone: bool,
    pub(crate) contract: Contract,
    /// The rolling hash after it.
    pub(crate) hash: u64,
}

/// What it takes to make such a call over links.
pub(crate) struct Planned {
    pub(crate) begun: Begun,
    pub(crate) plan: Plan,
    pub(crate) members: Arc<[u32]>,
}

/// A rank of the world at fault, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accusation {
    pub(crate) culprit: u32,
    pub(crate) fault: Fault,
}

/// What a heartbeat says of its sender's calls on one communicator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) group: u64,
    /// Calls begun.
    pub(crate) calls: u64,
    /// The rolling hash after them.
    pub(crate) hash: u64,
    /// Calls ended; fewer than begun if one is under way.
    pub(crate) ended: u64,
    /// The first that has not ended, else the last, in words; empty before the first.
    pub(crate) call: String,
}

/// What is known of another rank's calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) standing: Standing,
    /// When `standing` came.
    pub(crate) heard: Option<Instant>,
    /// Calls made and rolling hash, once it has said goodbye.
    goodbye: Option<(u64, u64)>,
    /// It has said so over control, and of its pairs before.
    told: bool,
}

/// A call that was begun here, kept for comparison with ranks that are behind.
#[derive(Debug)]
struct Past {
    contract: Contract,
    location: &'static Location<'static>,
    hash: u64,
}

impl Group {
    /// `place` is this rank's index in `members`.
    pub(crate) fn new(epoch: u64, id: u64, suffix: &str, members: Vec<u32>, place: u32) -> Self {
        Self {
            id,
            suffix: suffix.into(),
            progress: vec![Progress::default(); members.len()],
            members: members.into(),
            place,
            begun: 0,
            ended: 0,
            ended_early: VecDeque::new(),
            hash: contract::first_hash(epoch, id),
            layout: Layout::Apart,
            closed: false,
            history: VecDeque::new(),
            some_left: false,
            agreed: None,
        }
    }

    /// From now on its ranks meet as they layout.
    pub(crate) fn lay_out(&mut self, layout: Layout) {
        self.layout = layout;
        self.agreed = None;
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn suffix(&self) -> &str {
        &self.suffix
    }

    pub(crate) fn members(&self) -> &Arc<[u32]> {
        &self.members
    }

    /// The place of a rank of the world in this communicator.
    pub(crate) fn place_of(&self, rank: u32) -> Option<u32> {
        // The whole world first: there a rank is its own place.
        match self.members.get(rank as usize) {
            Some(member) if *member == rank => Some(rank),
            _ => (0..).zip(self.members.iter()).find(|(_, m)| **m == rank).map(|(place, _)| place),
        }
    }

    /// Calls begun here, and the rolling hash after them.
    pub(crate) fn calls(&self) -> (u64, u64) {
        (self.begun, self.hash)
    }

    /// Calls begun and not ended, without those that only end after others.
    pub(crate) fn outstanding(&self) -> u64 {
        self.begun - self.ended - self.ended_early.len() as u64
    }

    /// Begins the next call. An accusation if a rank has left that it needs.
    pub(crate) fn begin(
        &mut self,
        shape: &CallShape,
        choice: &Choice,
    ) -> (Begun, Option<Accusation>) {
        let is_alone = self.outstanding() == 0;
        if !self.agreed.as_ref().is_some_and(|agreed| agreed.is_as(shape)) {
            self.agreed = None;
        }
        let ranks = (self.members.len() as u32, self.place, &self.layout);
        let agreed = self.agreed.get_or_insert_with(|| Agreed::new(self.id, shape, choice, ranks));
        let contract = Contract { sequence: self.begun, ..agreed.contract };
        self.begun += 1;
        self.hash = contract::roll(self.hash, agreed.digest, contract.sequence);
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Past { contract, location: shape.location, hash: self.hash });
        let gone = self.some_left.then(|| self.judge_goodbyes()).flatten();
        (Begun { is_alone, contract, hash: self.hash }, gone)
    }

    /// Whether all calls before this one have ended.
    pub(crate) fn is_first(&self, sequence: u64) -> bool {
        self.ended >= sequence
    }

    /// The plan of the call that was begun last, if there was one.
    pub(crate) fn plan(&self) -> Option<&Plan> {
        self.agreed.as_ref().map(|agreed| &agreed.plan)
    }

    /// The call that was begun first has ended, well or not.
    pub(crate) fn end(&mut self) {
        self.ended = (self.ended + 1).min(self.begun);
        while self.ended_early.front() == Some(&self.ended) {
            self.ended_early.pop_front();
            self.ended += 1;
        }
    }

    /// The call that was begun last takes no step: it ends with those before it.
    pub(crate) fn end_last(&mut self) {
        let Some(last) = self.begun.checked_sub(1) else { return };
        match self.ended == last {
            true => self.ended = self.begun,
            false => self.ended_early.push_back(last),
        }
    }

    /// What a heartbeat says of this rank.
    pub(crate) fn standing(&self) -> Standing {
        let under_way = self.past(self.ended).or(self.history.back());
        Standing {
            group: self.id,
            calls: self.begun,
            hash: self.hash,
            ended: self.ended,
            call: under_way.map_or_else(String::new, |past| clip(self.describe(past))),
        }
    }

    /// A heartbeat of the rank at `place`: keeps how far it is, and compares the calls both made.
    pub(crate) fn note_standing(
        &mut self,
        place: u32,
        mut standing: Standing,
        now: Instant,
    ) -> Option<Difference> {
        standing.call = report::printable(&standing.call);
        let sequence = standing.calls.wrapping_sub(1);
        let differs = self.past(sequence).filter(|past| past.hash != standing.hash);
        let difference = differs.map(|past| self.difference_heard(place, past, &standing));
        if let Some(progress) = self.progress.get_mut(place as usize) {
            progress.standing = standing;
            progress.heard = Some(now);
        }
        difference
    }

    /// Compares a message of call `sequence` from the rank at `place` with the call made here, as
    /// far back as it is kept.
    pub(crate) fn compare(
        &self,
        place: u32,
        sequence: u64,
        hash: u64,
        contract: Option<&Shown>,
    ) -> Option<Difference> {
        let past = self.past(sequence).filter(|past| past.hash != hash)?;
        Some(self.difference(place, past, contract))
    }

    /// The ranks that have not begun call `sequence`, with what is known of them.
    /// The whole world has `size` ranks.
    pub(crate) fn late(
        &self,
        sequence: u64,
        size: usize,
    ) -> impl Iterator<Item = (u32, &Progress)> {
        let others = self.members.iter().zip(&self.progress).zip(0..);
        // In a large world a rank hears only some of the others: of the rest it knows nothing.
        let hears_all = size <= ALL_HEARD;
        others
            .filter(move |((_, progress), place)| {
                let is_known = hears_all || progress.heard.is_some();
                *place != self.place && is_known && progress.standing.calls <= sequence
            })
            .map(|((member, progress), _)| (*member, progress))
    }

    /// What is known of the rank at `place`.
    pub(crate) fn progress(&self, place: u32) -> Option<&Progress> {
        self.progress.get(place as usize)
    }

    /// `all_reduce #418 (sum of f32 x 10, src/train.rs:88)`: this rank's call `sequence`, as far
    /// back as it is kept.
    pub(crate) fn describe_call(&self, sequence: u64) -> Option<String> {
        self.past(sequence).map(|past| self.describe(past))
    }

    /// The first call that has not ended, with its number.
    pub(crate) fn under_way(&self) -> Option<(u64, String)> {
        let past = self.past(self.ended)?;
        Some((past.contract.sequence, self.describe(past)))
    }

    /// The rank at `place` made another call than this one under number `sequence`.
    fn mismatch(&self, place: u32, sequence: u64, ours: &str, theirs: &str) -> Accusation {
        let rank = |place: u32| self.members.get(place as usize).copied().unwrap_or(u32::MAX);
        let (this_rank, peer) = (rank(self.place), rank(place));
        // The lower rank first, so that all ranks read the same line.
        let mut sides = [(this_rank, ours), (peer, theirs)];
        sides.sort_by_key(|side| side.0);
        let [first, second] = sides.map(|(rank, call)| format!("rank {rank} called {call}"));
        Accusation { culprit: peer, fault: Fault::Mismatch { sequence, first, second } }
    }

    fn describe(&self, past: &Past) -> String {
        self.words(&past.contract, self.place, &contract::show_location(past.location))
    }

    /// A call as the rank at `place` made it.
    fn words(&self, contract: &Contract, place: u32, location: &str) -> String {
        // Errors number ranks as in the whole world.
        let root = |place: u32| self.members.get(place as usize).copied().unwrap_or(place);
        let collective = contract.collective.with_root(root);
        let mut call = Contract { collective, ..*contract }.describe(Some(location));
        // Both ends of a message have one contract, but the program says it differently.
        if contract.collective == Collective::Send && place == 1 {
            call = call.replacen("send", "recv", 1);
        }
        format!("{call}{}", self.suffix)
    }

    fn past(&self, sequence: u64) -> Option<&Past> {
        let oldest = self.history.front()?.contract.sequence;
        let index = sequence.checked_sub(oldest)?;
        self.history.get(usize::try_from(index).ok()?)
    }
}

/// Words of a heartbeat, which must fit a datagram.
fn clip(mut words: String) -> String {
    if words.len() > MAX_STANDING_WORDS {
        let end = (0..=MAX_STANDING_WORDS).rev().find(|end| words.is_char_boundary(*end));
        words.truncate(end.unwrap_or(0));
        words.push_str("...");
    }
    words
}

/// Three of them, with their numbers, fit the 1,200 bytes that QUIC promises.
const MAX_STANDING_WORDS: usize = 240;
/// Worlds up to this size have a control link between all ranks (see `rendezvous/watching.rs`).
const ALL_HEARD: usize = 8;
/// Calls kept to compare with ranks that are behind; a one-way call may run this far ahead and
/// still have its difference shown in words. All outstanding calls are among them.
const MAX_HISTORY: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_of_the_largest_numbers_upsets_nothing() {
        let mut group = Group::new(1, 0, "", vec![0, 1], 0);
        for calls in [0, 1, u64::MAX - 1, u64::MAX] {
            for ended in [0, 1, u64::MAX - 1, u64::MAX] {
                let standing = Standing { group: 0, calls, hash: 7, ended, call: "it".into() };
                assert_eq!(group.note_standing(1, standing, Instant::now()), None);
                let accusation = group.note_goodbye(1, 0, 7).map(|accusation| accusation.culprit);
                assert_eq!(accusation, Some(1), "{calls} calls, {ended} ended");
                let _ = group.note_goodbye(1, u64::MAX, 7);
                assert!(group.late(u64::MAX, 2).count() <= 1);
            }
        }
    }

    #[test]
    fn a_call_without_steps_ends_with_those_before_it() {
        let mut group = Group::new(1, 0, "", vec![0, 1], 0);
        (group.begun, group.ended) = (3, 1);
        // Two are under way; of the next three, the first and the last take no step.
        group.begun += 1;
        group.end_last();
        group.begun += 1;
        group.begun += 1;
        group.end_last();
        assert_eq!((group.ended, group.outstanding()), (1, 3));
        group.end();
        assert_eq!(group.ended, 2);
        group.end();
        assert_eq!(group.ended, 4);
        group.end();
        assert_eq!((group.ended, group.outstanding()), (6, 0));
        group.begun += 1;
        group.end_last();
        assert_eq!((group.ended, group.outstanding()), (7, 0));
    }

    #[test]
    fn in_a_large_world_those_who_are_not_heard_are_not_late() {
        let mut group = Group::new(7, 1, " on split 1", vec![1, 4, 7, 10], 0);
        group.note_standing(1, Standing::default(), Instant::now());
        let late = |size| group.late(0, size).map(|(rank, _)| rank).collect::<Vec<_>>();
        assert_eq!(late(12), [4], "rank 1 of 12 does not watch 7 and 10");
        assert_eq!(late(ALL_HEARD), [4, 7, 10]);
    }
}
