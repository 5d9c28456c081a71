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
        self.state().doubt.as_ref().is_some_and(|doubt| doubt.otherwise.is_some())
    }

    /// `peer`, of higher rank, has found a difference: what it is to be sent.
    pub(crate) fn hear_of_difference(&self, peer: u32, group: u64) -> Option<Trail> {
        let is_new = self.rank < peer && self.begin_doubt(peer, group, None);
        is_new.then(|| self.trail(peer)).flatten()
    }

    /// The hashes of the calls that `peer` has made otherwise.
    pub(crate) fn trail(&self, peer: u32) -> Option<Trail> {
        let state = self.state();
        let doubt = state.doubt.as_ref().filter(|doubt| doubt.peer == peer)?;
        Some(doubt.kept.trail(doubt.group))
    }

    /// Where this rank's calls differ from those of `peer`: the first and the last that both have
    /// made.
    pub(crate) fn answer(&self, peer: u32, trail: &Trail) -> Vec<Shown> {
        let state = self.state();
        let group = state.groups.get(&trail.group).filter(|group| group.place_of(peer).is_some());
        match group.filter(|_| trail.is_within_limits()) {
            Some(group) => group.first_and_last_but(trail),
            None => Vec::new(),
        }
    }

    /// The calls of `peer` that differ from this rank's, as it shows them.
    pub(crate) fn note_answer(&self, peer: u32, id: u64, calls: &[Shown]) {
        let accusation = {
            let mut state = self.state();
            let Some(doubt) = state.doubt.as_ref().filter(|d| (d.peer, d.group) == (peer, id))
            else {
                return;
            };
            let group = state.groups.get(&id);
            let place = group.and_then(|group| group.place_of(peer));
            let judged =
                group.zip(place).and_then(|(group, place)| group.judge(place, &doubt.kept, calls));
            let accusation = judged.or_else(|| doubt.otherwise.clone());
            if accusation.is_none() {
                state.doubt = None;
            }
            accusation
        };
        self.accuse(accusation);
    }

    /// No answer has come: tells what is known.
    pub(crate) fn end_doubt(&self) {
        // It stays: until there is the verdict, nothing else is to be told.
        let otherwise = self.state().doubt.as_ref().and_then(|doubt| doubt.otherwise.clone());
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
        let is_known = state.doubt.as_ref().is_some_and(|doubt| {
            let is_same = (doubt.peer, doubt.group) == (peer, id);
            doubt.otherwise.is_some() || is_same && otherwise.is_none()
        });
        if is_known {
            return false;
        }
        let Some(kept) = state.groups.get(&id).map(|group| group.kept()) else { return false };
        state.doubt = Some(Doubt { peer, group: id, kept, otherwise });
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
