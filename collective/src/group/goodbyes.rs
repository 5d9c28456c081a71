//! Goodbyes: whether the ranks that have left a communicator made as many calls, and the same.

use super::{Accusation, Group};
use crate::verdict::Fault;

impl Group {
    /// A goodbye: the rank at `place` makes no more calls.
    pub(crate) fn note_goodbye(&mut self, place: u32, calls: u64, hash: u64) -> Option<Accusation> {
        self.progress.get_mut(place as usize)?.goodbye = Some((calls, hash));
        self.some_left = true;
        self.judge_goodbye(place)
    }

    /// Whether the rank at `place` has said goodbye.
    pub(crate) fn has_left(&self, place: u32) -> bool {
        self.progress.get(place as usize).is_some_and(|progress| progress.goodbye.is_some())
    }

    /// The rank at `place` has said goodbye over control, and of its pairs before.
    pub(crate) fn note_told(&mut self, place: u32) {
        if let Some(progress) = self.progress.get_mut(place as usize) {
            progress.told = true;
        }
    }

    /// Whether the rank at `place` has said goodbye over control.
    pub(crate) fn has_told(&self, place: u32) -> bool {
        self.progress.get(place as usize).is_some_and(|progress| progress.told)
    }

    /// Whether this rank has closed it, no call is under way, and every other rank has said
    /// goodbye.
    pub(crate) fn is_over(&self) -> bool {
        let others = (0..).zip(&self.progress).filter(|(place, _)| *place != self.place);
        self.closed
            && self.outstanding() == 0
            && others.into_iter().all(|(_, progress)| progress.goodbye.is_some())
    }

    /// This rank makes no more calls: one that has left with more, or does so from now on, is an
    /// error.
    pub(crate) fn close(&mut self) -> Option<Accusation> {
        self.closed = true;
        self.judge_goodbyes()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The first goodbye that is an error by now.
    pub(super) fn judge_goodbyes(&self) -> Option<Accusation> {
        (0..self.progress.len()).find_map(|place| self.judge_goodbye(place as u32))
    }

    /// A rank that has left after fewer calls than were begun here is an error; so is, once this
    /// rank has closed, any other number.
    fn judge_goodbye(&self, place: u32) -> Option<Accusation> {
        let progress = self.progress.get(place as usize)?;
        let (calls, hash) = progress.goodbye?;
        let rank = *self.members.get(place as usize)?;
        let this_rank = *self.members.get(self.place as usize)?;
        if calls < self.begun {
            let call = match self.past(calls) {
                Some(past) => format!("rank {this_rank} made {}", self.describe(past)),
                None => "more were made here".into(),
            };
            return Some(Accusation { culprit: rank, fault: Fault::CallCount { calls, call } });
        }
        if calls > self.begun && self.closed {
            let call = format!("rank {rank} made {calls}{} and closed", self.suffix);
            let fault = Fault::CallCount { calls: self.begun, call };
            return Some(Accusation { culprit: this_rank, fault });
        }
        if calls == self.begun && hash != self.hash {
            let ours = self.history.back().map_or_else(String::new, |past| self.describe(past));
            let theirs = match &progress.standing {
                standing
                    if standing.calls == calls && standing.ended.saturating_add(1) >= calls =>
                {
                    &standing.call
                }
                _ => "something else",
            };
            return Some(self.mismatch(place, calls.saturating_sub(1), &ours, theirs));
        }
        None
    }
}
