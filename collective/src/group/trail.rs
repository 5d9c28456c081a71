//! Where the calls of two ranks differ first: what each keeps of its own, the search in both, and
//! the words for it. A difference may be found long after it was made: calls that are only noted are
//! compared by a later one, which is the same on both ranks.

use std::panic::Location;

use serde::{Deserialize, Serialize};

use super::{Accusation, Begun, Group, MAX_HISTORY, Past, Standing};
use crate::contract::{self, CONTRACT_BYTES, Contract, MAX_LOCATION_BYTES, Role};
use crate::wire;

/// Looks for the first call after which two rolling hashes differ: from there on all do.
#[derive(Debug)]
pub(crate) struct Search {
    /// No later one is first.
    differs: u64,
    /// No earlier one is, of those that both ranks keep.
    from: u64,
}

impl Search {
    /// Among the calls from `from` on, which both ranks keep, to one after which they differ.
    pub(crate) fn new(from: u64, differs: u64) -> Self {
        Self { differs, from: from.min(differs) }
    }

    /// The call to look at next; None once the first is found.
    pub(crate) fn probe(&self) -> Option<u64> {
        (self.from < self.differs).then(|| self.from + (self.differs - self.from) / 2)
    }

    /// What a look at call `probe` has shown.
    pub(crate) fn note(&mut self, probe: u64, differs: bool) {
        match differs {
            true => self.differs = probe,
            false => self.from = probe + 1,
        }
    }

    /// The first call that is known to differ.
    pub(crate) fn first(&self) -> u64 {
        self.differs
    }
}

/// What a rank shows of one of its calls: the contract, and where in the program.
pub(crate) type Shown = (Contract, String);

/// The calls that a rank keeps, as they were when another's were found to differ: it may make more
/// meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    calls: Vec<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    contract: Contract,
    location: Option<&'static Location<'static>>,
    hash: u64,
}

/// The rolling hashes after the calls that a rank keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trail {
    pub(crate) group: u64,
    /// The call that the first of them is after.
    pub(crate) oldest: u64,
    pub(crate) hashes: Vec<u64>,
}

/// That the calls of another rank differ, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// What is known of it here.
    pub(crate) accusation: Accusation,
    /// It shows two calls that differ, and none before them is likely to.
    pub(crate) is_clear: bool,
}

impl Kept {
    /// Of these and `begun`, which is under way.
    pub(crate) fn with(mut self, begun: &Begun) -> Self {
        let Begun { contract, hash, .. } = *begun;
        if self.call(contract.sequence).is_none() {
            self.calls = vec![Known { contract, location: None, hash }];
        }
        self
    }

    /// The number of the first.
    pub(crate) fn oldest(&self) -> u64 {
        self.calls.first().map_or(u64::MAX, |known| known.contract.sequence)
    }

    /// The rolling hash after call `sequence`, and what is shown of it.
    pub(crate) fn show(&self, sequence: u64) -> Option<(u64, Shown)> {
        let known = self.call(sequence)?;
        Some((known.hash, (known.contract, known.location())))
    }

    pub(crate) fn trail(&self, group: u64) -> Trail {
        let hashes = self.calls.iter().map(|known| known.hash).collect();
        Trail { group, oldest: self.oldest(), hashes }
    }

    fn call(&self, sequence: u64) -> Option<&Known> {
        let index = sequence.checked_sub(self.oldest())?;
        self.calls.get(usize::try_from(index).ok()?)
    }
}

impl Known {
    fn location(&self) -> String {
        self.location.map_or_else(String::new, contract::show_location)
    }
}

impl Trail {
    pub(crate) fn is_within_limits(&self) -> bool {
        self.hashes.len() <= MAX_HISTORY
    }

    fn hash(&self, sequence: u64) -> Option<u64> {
        let index = sequence.checked_sub(self.oldest)?;
        self.hashes.get(usize::try_from(index).ok()?).copied()
    }

    fn last(&self) -> Option<u64> {
        self.oldest.checked_add(self.hashes.len() as u64)?.checked_sub(1)
    }
}

impl Group {
    /// The calls that are kept.
    pub(crate) fn kept(&self) -> Kept {
        let known = |past: &Past| Known {
            contract: past.contract,
            location: Some(past.location),
            hash: past.hash,
        };
        Kept { calls: self.history.iter().map(known).collect() }
    }

    /// Of this rank's calls the first that differs from another's, and the last that both have made;
    /// nothing if that does not differ, or is not kept by both.
    pub(crate) fn first_and_last_but(&self, trail: &Trail) -> Vec<Shown> {
        let Some(oldest) = self.history.front().map(|past| past.contract.sequence) else {
            return Vec::new();
        };
        let Some(last) = trail.last().map(|last| last.min(self.begun.saturating_sub(1))) else {
            return Vec::new();
        };
        let from = trail.oldest.max(oldest);
        let differs = |sequence: u64| {
            let ours = self.past(sequence).map(|past| past.hash);
            ours.is_some() && ours != trail.hash(sequence)
        };
        if from > last || !differs(last) {
            return Vec::new();
        }
        let mut search = Search::new(from, last);
        while let Some(probe) = search.probe() {
            search.note(probe, differs(probe));
        }
        let shown = |sequence: u64| {
            let past = self.past(sequence)?;
            Some((past.contract, contract::show_location(past.location)))
        };
        [search.first(), last].into_iter().filter_map(shown).collect()
    }

    /// Judges the rank at `place` by calls of its that differ, the earliest first, beside those
    /// that this rank has `kept`. None if they tell nothing.
    pub(crate) fn judge(&self, place: u32, kept: &Kept, theirs: &[Shown]) -> Option<Accusation> {
        for (contract, location) in theirs {
            let ours = kept.call(contract.sequence)?;
            if ours.contract != *contract {
                let theirs = self.words(contract, place, location);
                let ours = self.words(&ours.contract, self.place, &ours.location());
                return Some(self.mismatch(place, contract.sequence, &ours, &theirs));
            }
        }
        // The difference lies before the earliest call that both keep.
        let earliest = theirs.first()?.0.sequence;
        let (contract, location) = theirs.last()?;
        let ours = kept.call(contract.sequence)?;
        let how = format!("after another call before #{earliest}, of which no more is known");
        let both = [(self.place, &*ours.location()), (place, &**location)];
        let words = both.map(|(place, location)| self.words(contract, place, location));
        Some(self.mismatch_before(place, contract.sequence, words, &how))
    }

    /// The rank at `place` made another call than this one of this rank's, and keeps it no more.
    pub(crate) fn judge_forgotten(&self, place: u32, (ours, location): &Shown) -> Accusation {
        let words = self.words(ours, self.place, location);
        self.mismatch(place, ours.sequence, &words, FORGOTTEN)
    }

    /// The rank at `place` made this call, and this rank another one, which it keeps no more.
    pub(crate) fn judge_other(&self, place: u32, (theirs, location): &Shown) -> Accusation {
        let words = self.words(theirs, place, location);
        self.mismatch(place, theirs.sequence, FORGOTTEN, &words)
    }

    /// The rank at `place` made other calls up to this one of this rank's.
    pub(crate) fn judge_after(&self, place: u32, (ours, location): &Shown) -> Accusation {
        let words = self.words(ours, self.place, location);
        self.mismatch(place, ours.sequence, &words, OTHERS)
    }

    /// What is known of a difference from the call that the rank at `place` shows under the number of
    /// this rank's.
    pub(super) fn difference(&self, place: u32, ours: &Past, theirs: Option<&Shown>) -> Difference {
        let sequence = ours.contract.sequence;
        let words = self.describe(ours);
        match theirs {
            Some((contract, location)) if *contract != ours.contract => {
                let theirs = self.words(contract, place, location);
                let accusation = self.mismatch(place, sequence, &words, &theirs);
                Difference { accusation, is_clear: !self.is_behind_noted(sequence) }
            }
            Some((contract, location)) => {
                let theirs = self.words(contract, place, location);
                let accusation = self.mismatch_before(place, sequence, [words, theirs], UNKNOWN);
                Difference { accusation, is_clear: false }
            }
            None => {
                let accusation = self.mismatch(place, sequence, &words, OTHERS);
                Difference { accusation, is_clear: false }
            }
        }
    }

    /// What is known of a difference from the rank at `place`, by the words of its heartbeat. That
    /// rank itself knows which call it was first.
    pub(super) fn difference_heard(&self, place: u32, ours: &Past, heard: &Standing) -> Difference {
        let sequence = ours.contract.sequence;
        let words = self.describe(ours);
        // They are of that call only where it is the one under way.
        let is_it = heard.ended >= sequence;
        let accusation = match is_it && heard.call == super::clip(words.clone()) {
            true => self.mismatch_before(place, sequence, [words, heard.call.clone()], UNKNOWN),
            false => {
                let theirs = if is_it { &heard.call } else { "other calls up to it" };
                self.mismatch(place, sequence, &words, theirs)
            }
        };
        Difference { accusation, is_clear: false }
    }

    /// Both made call `sequence`, this rank and the one at `place`, in these words, and the
    /// difference lies before it. Both read the same line: the lower one's call stands in full.
    fn mismatch_before(
        &self,
        place: u32,
        sequence: u64,
        [ours, theirs]: [String; 2],
        how: &str,
    ) -> Accusation {
        let same = format!("the same, {how}");
        let rank = |place: u32| self.members.get(place as usize);
        match rank(self.place) < rank(place) {
            true => self.mismatch(place, sequence, &ours, &same),
            false => self.mismatch(place, sequence, &same, &theirs),
        }
    }

    /// Whether a call right before this one may have been only noted, and not compared.
    fn is_behind_noted(&self, sequence: u64) -> bool {
        let before = sequence.checked_sub(1).and_then(|before| self.past(before));
        before.is_some_and(|past| past.contract.role == Role::Device)
    }
}

/// As it goes to another rank.
pub(crate) fn to_bytes((contract, location): &Shown) -> Vec<u8> {
    [&contract.to_wire()[..], location.as_bytes()].concat()
}

/// Reads what a peer has shown; None where it is nothing that ranks show.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Shown> {
    let is_short = bytes.len() <= CONTRACT_BYTES + MAX_LOCATION_BYTES;
    is_short.then(|| wire::read_contract(bytes)).flatten()
}

/// Of a difference in calls that are not looked for.
const UNKNOWN: &str = "after other calls before it";
const OTHERS: &str = "other calls before it";
const FORGOTTEN: &str = "another call, of which no more is known";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::contract::{CallShape, Collective};
    use crate::plan::costs::{Choice, CostTable};
    use crate::reduce::{ElementType, ReduceOp};
    use crate::verdict::Fault;

    proptest! {
        #[test]
        fn the_first_difference_is_found(from in 0..5_000u64, kept in 1..1_025u64, at: u64) {
            let (last, first) = (from + kept - 1, from + at % kept);
            let mut search = Search::new(from, last);
            let mut looks = 0;
            while let Some(probe) = search.probe() {
                prop_assert!((from..last).contains(&probe));
                search.note(probe, probe >= first);
                looks += 1;
            }
            prop_assert_eq!(search.first(), first);
            prop_assert!(looks <= 10, "{} looks at {} calls", looks, kept);
        }

        #[test]
        fn two_ranks_find_the_same_call(differs in 0..1_500u64, ahead in 0..1_200u64) {
            let ranks = [rank(0, None, 1_500), rank(1, Some(differs), 1_500 + ahead)];
            // Both have made 1,500, and the second keeps the last 1,024 of its own.
            let oldest = (1_500 + ahead).saturating_sub(MAX_HISTORY as u64);
            let lines = found(&ranks);
            let words = match differs >= oldest {
                true => format!(
                    "rank 0 called all_reduce #{differs} (sum of f32 x 10, LINE), but rank 1 called \
                     all_reduce #{differs} (sum of f32 x 11, LINE)"
                ),
                false if oldest >= 1_500 => "nothing".into(),
                false => format!(
                    "rank 0 called all_reduce #1499 (sum of f32 x 10, LINE), but rank 1 called the \
                     same, after another call before #{oldest}, of which no more is known"
                ),
            };
            prop_assert_eq!(lines, [words.clone(), words]);
        }

        #[test]
        fn no_trail_upsets_a_rank(oldest: u64, near in 0..10u64, hashes: Vec<u64>) {
            let group = rank(0, None, 5);
            for oldest in [oldest, near, u64::MAX - near] {
                let trail = Trail { group: 7, oldest, hashes: hashes.clone() };
                for (contract, _) in group.first_and_last_but(&trail) {
                    prop_assert!(contract.sequence < 5);
                }
            }
        }
    }

    #[test]
    fn ranks_that_are_alike_find_nothing() {
        let ranks = [rank(0, None, 40), rank(1, None, 50)];
        assert_eq!(found(&ranks), ["nothing", "nothing"]);
        let nothing = Group::new(1, 7, "", vec![0, 1], 0);
        assert!(nothing.first_and_last_but(&ranks[1].kept().trail(7)).is_empty());
        assert!(ranks[1].first_and_last_but(&nothing.kept().trail(7)).is_empty());
    }

    #[test]
    fn what_is_known_at_once_reads_alike_on_both_ranks() {
        let ranks = [rank(0, Some(3), 10), rank(1, None, 10)];
        let lines: Vec<String> = [(0, 1), (1, 0)]
            .into_iter()
            .map(|(own, other)| {
                let (hash, shown) = ranks[other].kept().show(9).unwrap();
                let other = other as u32;
                let difference = ranks[own].compare(other, 9, hash, Some(&shown)).unwrap();
                assert!(!difference.is_clear, "the calls are the same");
                line(Some(difference.accusation))
            })
            .collect();
        let words = "rank 0 called all_reduce #9 (sum of f32 x 10, LINE), but rank 1 called the same, \
                     after other calls before it";
        assert_eq!(lines, [words, words]);
        // Of the call itself both lines are known, and none before it was only noted.
        let (hash, shown) = ranks[0].kept().show(3).unwrap();
        assert!(ranks[1].compare(0, 3, hash, Some(&shown)).unwrap().is_clear);
    }

    /// What each of two ranks finds by asking the other.
    fn found([first, second]: &[Group; 2]) -> [String; 2] {
        [(first, second), (second, first)].map(|(own, other)| {
            let kept = own.kept();
            let calls = other.first_and_last_but(&kept.trail(7));
            let calls: Vec<Shown> =
                calls.iter().map(|call| from_bytes(&to_bytes(call)).unwrap()).collect();
            line(own.judge(other.place, &kept, &calls))
        })
    }

    fn line(accusation: Option<Accusation>) -> String {
        let Some(Accusation { fault, .. }) = accusation else { return "nothing".into() };
        let Fault::Mismatch { first, second, .. } = fault else { panic!("{fault:?}") };
        let whole = format!("{first}, but {second}");
        let at = contract::show_location(location());
        whole.replace(&at, "LINE")
    }

    /// A rank of two that has made so many calls, one of them on a longer buffer.
    fn rank(place: u32, differs: Option<u64>, calls: u64) -> Group {
        let mut group = Group::new(1, 7, "", vec![0, 1], place);
        let choice = Choice { costs: CostTable::default(), forced: None, lanes: 1 };
        for call in 0..calls {
            let shape = CallShape {
                collective: Collective::AllReduce,
                role: Role::Data,
                op: Some(ReduceOp::Sum),
                element: ElementType::F32,
                count: if differs == Some(call) { 11 } else { 10 },
                counts: None,
                label: None,
                location: location(),
            };
            let _ = group.begin(&shape, &choice);
        }
        group
    }

    fn location() -> &'static Location<'static> {
        Location::caller()
    }
}
