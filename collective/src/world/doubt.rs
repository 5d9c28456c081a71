//! A rank's calls differ from this one's, and which was the first that did is not known here: the
//! two compare all that they have kept, over control, before it is told.
//!
//! Of two ranks the lower one asks and judges, so that there is one verdict. It sends the hashes of
//! its calls, and the other one answers with its own call where they differ first. Where no answer
//! comes soon, what is known is told.

use super::World;
use crate::group::{Accusation, Difference, Kept, Shown, Trail};

/// What this rank knows of the calls of another.
pub(super) struct Doubt {
    peer: u32,
    group: u64,
    kept: Kept,
    /// What is told if nothing better comes; None where only the other rank has found it.
    otherwise: Option<Accusation>,
}

/// What a rank is asked, and asks.
#[derive(Default)]
pub(super) struct Doubts {
    own: Option<Doubt>,
    /// The lower rank that has asked this one first, and has had the answer: it judges, and this one
    /// does not. Each by another pair of calls, the ranks would have different errors.
    judge: Option<u32>,
}

impl World {
    /// Ends the world for a difference from the calls of `peer`; if there may be an earlier one, as
    /// soon as that is found.
    pub(super) fn tell_difference(&self, peer: u32, group: u64, difference: Difference) {
        let Difference { accusation, is_clear } = difference;
        let Some(control) = self.control().filter(|_| !is_clear) else {
            return self.accuse(Some(accusation));
        };
        if self.begin_doubt(peer, group, Some(accusation)) {
            control.compare_calls(self, peer, group);
        }
    }

    /// Whether a difference was found here that is not told yet: it will be.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.state().doubts.own.as_ref().is_some_and(|doubt| doubt.otherwise.is_some())
    }

    /// `peer`, of higher rank, has found a difference: what it is to be sent.
    pub(crate) fn hear_of_difference(&self, peer: u32, group: u64) -> Option<Trail> {
        let is_new = self.rank < peer && self.begin_doubt(peer, group, None);
        is_new.then(|| self.trail(peer)).flatten()
    }

    /// The hashes of the calls that `peer` has made otherwise.
    pub(crate) fn trail(&self, peer: u32) -> Option<Trail> {
        let state = self.state();
        let doubt = state.doubts.own.as_ref().filter(|doubt| doubt.peer == peer)?;
        Some(doubt.kept.trail(doubt.group))
    }

    /// Where this rank's calls differ from those of `peer`: the first and the last that both have
    /// made.
    pub(crate) fn answer(&self, peer: u32, trail: &Trail) -> Vec<Shown> {
        let state = self.state();
        let group = state.groups.get(&trail.group).filter(|group| group.place_of(peer).is_some());
        group.map_or_else(Vec::new, |group| group.first_and_last_but(trail))
    }

    /// As `answer`, to the first rank that asks; the others are to hear its verdict. None for those.
    pub(crate) fn answer_judge(&self, peer: u32, trail: &Trail) -> Option<Vec<Shown>> {
        if peer >= self.rank || !trail.is_within_limits() {
            return None;
        }
        let calls = self.answer(peer, trail);
        let judge = &mut self.state().doubts.judge;
        if calls.is_empty() {
            return Some(calls);
        }
        (*judge.get_or_insert(peer) == peer).then_some(calls)
    }

    /// The calls of `peer` that differ from this rank's, as it shows them.
    pub(crate) fn note_answer(&self, peer: u32, id: u64, calls: &[Shown]) {
        let accusation = {
            let mut state = self.state();
            let asked = state.doubts.own.as_ref().filter(|d| (d.peer, d.group) == (peer, id));
            let Some(doubt) = asked.filter(|_| state.doubts.judge.is_none()) else { return };
            let group = state.groups.get(&id);
            let place = group.and_then(|group| group.place_of(peer));
            let judged =
                group.zip(place).and_then(|(group, place)| group.judge(place, &doubt.kept, calls));
            let accusation = judged.or_else(|| doubt.otherwise.clone());
            if accusation.is_none() {
                state.doubts.own = None;
            }
            accusation
        };
        self.accuse(accusation);
    }

    /// No answer has come: tells what is known.
    pub(crate) fn end_doubt(&self) {
        // It stays: until there is the verdict, nothing else is to be told.
        let otherwise = self.state().doubts.own.as_ref().and_then(|doubt| doubt.otherwise.clone());
        self.accuse(otherwise);
    }

    /// Judges `peer` by calls of its that differ beside those that are `kept`; None if they tell
    /// nothing.
    pub(crate) fn judge(&self, peer: u32, id: u64, by: Judged<'_>) -> Option<Accusation> {
        let state = self.state();
        let group = state.groups.get(&id)?;
        let place = group.place_of(peer)?;
        match by {
            Judged::Shown(kept, calls) => group.judge(place, kept, calls),
            Judged::Forgotten(known, true) => Some(group.judge_forgotten(place, known)),
            Judged::Forgotten(known, false) => Some(group.judge_other(place, known)),
            Judged::After(own) => Some(group.judge_after(place, own)),
        }
    }

    /// The calls of a communicator that are kept.
    pub(crate) fn kept(&self, group: u64) -> Option<Kept> {
        self.state().groups.get(&group).map(|group| group.kept())
    }

    /// True if it is to be asked about. The first that was found here counts.
    fn begin_doubt(&self, peer: u32, id: u64, otherwise: Option<Accusation>) -> bool {
        let mut state = self.state();
        let is_known = state.doubts.own.as_ref().is_some_and(|doubt| {
            let is_same = (doubt.peer, doubt.group) == (peer, id);
            doubt.otherwise.is_some() || is_same && otherwise.is_none()
        });
        if is_known {
            return false;
        }
        let Some(kept) = state.groups.get(&id).map(|group| group.kept()) else { return false };
        state.doubts.own = Some(Doubt { peer, group: id, kept, otherwise });
        true
    }
}

/// By what a rank is judged that has made other calls.
pub(crate) enum Judged<'a> {
    /// Its calls, the earliest first.
    Shown(&'a Kept, &'a [Shown]),
    /// One call of which only this rank knows (true), or only that one.
    Forgotten(&'a Shown, bool),
    /// It has shown none: this rank's.
    After(&'a Shown),
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::contract::{CallShape, Collective, Role};
    use crate::reduce::{ElementType, ReduceOp};
    use crate::verdict::Fault;
    use crate::world::tests::rank_of_three;
    use crate::world::{WHOLE_WORLD, World};

    #[test]
    fn the_lower_of_two_ranks_asks_and_judges() {
        let (first, second) = (rank(0, 9), rank(1, 3));
        let found = tell(&second, &first);
        assert!(second.begin_doubt(0, WHOLE_WORLD, Some(found)));
        assert!(second.is_in_doubt() && !second.begin_doubt(2, WHOLE_WORLD, None));
        let trail = first.hear_of_difference(1, WHOLE_WORLD).unwrap();
        assert_eq!(first.hear_of_difference(1, WHOLE_WORLD), None, "it is asked already");
        assert!(!first.is_in_doubt(), "it has found nothing itself");
        let calls = second.answer_judge(0, &trail).unwrap();
        first.note_answer(1, WHOLE_WORLD, &calls);
        let verdict = first.verdict().unwrap();
        assert!(matches!(verdict.fault, Fault::Mismatch { sequence: 3, .. }), "{verdict:?}");
        second.settle(verdict.clone());
        second.end_doubt();
        assert_eq!(second.verdict(), Some(verdict));
    }

    #[test]
    fn one_of_several_judges() {
        let (ranks, last) = ([rank(0, 9), rank(1, 9)], rank(2, 3));
        for rank in &ranks {
            let found = tell(rank, &last);
            assert!(rank.begin_doubt(2, WHOLE_WORLD, Some(found)));
        }
        let trails = [0, 1].map(|rank: usize| ranks[rank].trail(2).unwrap());
        let calls = last.answer_judge(1, &trails[1]).unwrap();
        assert_eq!(last.answer_judge(0, &trails[0]), None, "rank 1 judges");
        assert_eq!(last.answer_judge(1, &trails[1]), Some(calls.clone()));
        // It was itself asked by a lower one.
        let lower = ranks[0].trail(2).map(|trail| Trail { hashes: vec![7; 10], ..trail });
        assert!(ranks[1].answer_judge(0, &lower.unwrap()).is_some());
        ranks[1].note_answer(2, WHOLE_WORLD, &calls);
        assert_eq!(ranks[1].verdict(), None);
        // Nothing came of it.
        ranks[1].end_doubt();
        assert!(matches!(ranks[1].verdict().unwrap().fault, Fault::Mismatch { sequence: 9, .. }));
    }

    #[test]
    fn a_claim_that_nothing_bears_out_harms_nobody() {
        let (first, second) = (rank(0, 9), rank(1, 9));
        assert_eq!(second.hear_of_difference(0, WHOLE_WORLD), None, "the lower one asks");
        let trail = first.hear_of_difference(1, WHOLE_WORLD).unwrap();
        assert_eq!(second.answer_judge(0, &trail), Some(Vec::new()));
        first.note_answer(1, WHOLE_WORLD, &[]);
        first.note_answer(2, WHOLE_WORLD, &[]);
        first.end_doubt();
        assert_eq!(first.hear_of_difference(1, 77), None, "there is no such communicator");
        assert_eq!((first.verdict(), second.verdict()), (None, None));
    }

    /// A rank that has made ten calls, this one on a longer buffer.
    fn rank(rank: u32, longer: u64) -> World {
        let world = rank_of_three(rank);
        for call in 0..10 {
            let shape = CallShape {
                collective: Collective::AllReduce,
                role: Role::Data,
                op: Some(ReduceOp::Sum),
                element: ElementType::F32,
                count: if call == longer { 11 } else { 10 },
                counts: None,
                label: None,
                location: Location::caller(),
            };
            world.begin(WHOLE_WORLD, &shape).unwrap();
            world.end_call(WHOLE_WORLD);
        }
        world
    }

    /// What a rank makes of another's latest call at once.
    fn tell(own: &World, other: &World) -> Accusation {
        let (hash, shown) = other.kept(WHOLE_WORLD).unwrap().show(9).unwrap();
        let state = own.state();
        let group = state.groups.get(&WHOLE_WORLD).unwrap();
        group.compare(other.rank, 9, hash, Some(&shown)).unwrap().accusation
    }
}
