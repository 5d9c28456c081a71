//! Ranks that meet in memory have made different calls: they look for the first one together.

use std::time::{Duration, Instant};

use super::super::watch::Watch;
use super::WithinHost;
use crate::group::{self, Accusation, Begun, Kept, Search, Shown};
use crate::link::shared_memory::Stop;
use crate::verdict::Fault;
use crate::world::Judged;

/// What a rank shows of a call.
struct Card {
    /// The rank of the world that it is for.
    to: u32,
    /// The rolling hash after it.
    hash: u64,
    /// The first call that its rank keeps.
    oldest: u64,
    call: Shown,
}

impl Card {
    fn of(kept: &Kept, sequence: u64, to: u32) -> Option<Self> {
        let (hash, call) = kept.show(sequence)?;
        Some(Self { to, hash, oldest: kept.oldest(), call })
    }

    fn sequence(&self) -> u64 {
        self.call.0.sequence
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Self { to, hash, oldest, call } = self;
        let words = [u64::from(*to), *hash, *oldest].map(u64::to_le_bytes);
        [&words.concat()[..], &group::to_bytes(call)].concat()
    }

    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut word = || {
            let (word, rest) = bytes.split_first_chunk::<8>()?;
            bytes = rest;
            Some(u64::from_le_bytes(*word))
        };
        let (to, hash, oldest) = (word()?, word()?, word()?);
        Some(Self { to: u32::try_from(to).ok()?, hash, oldest, call: group::from_bytes(bytes)? })
    }
}

/// The rank that this one compares its calls with, as it finds it, in turns.
struct Talk<'a, 'b> {
    within: &'a WithinHost,
    /// Among those that meet here, and in the world.
    place: usize,
    peer: u32,
    kept: Kept,
    round: u64,
    watch: &'a mut Watch<'b>,
}

impl Talk<'_, '_> {
    /// Shows a call of this rank, and sees the other's, which may be for a third one. None if that has
    /// gone on.
    fn show(&mut self, sequence: u64) -> Result<Option<(Card, Card)>, Stop> {
        let Some(own) = Card::of(&self.kept, sequence, self.peer) else { return Ok(None) };
        let shared = self.within.shared();
        let theirs = shared.explain(self.round, &own.to_bytes(), self.place, self.watch)?;
        self.round += 1;
        Ok(theirs.as_deref().and_then(Card::from_bytes).map(|theirs| (own, theirs)))
    }

    /// Whether call `sequence` differs, and the other's.
    fn look(&mut self, sequence: u64) -> Result<Option<(bool, Shown)>, Stop> {
        let shown = self.show(sequence)?;
        let shown = shown.filter(|(_, theirs)| theirs.sequence() == sequence);
        Ok(shown.map(|(own, theirs)| (own.hash != theirs.hash, theirs.call)))
    }
}

/// What has been found of a difference.
struct Found {
    accusation: Option<Accusation>,
    /// The other rank has answered to the end.
    is_all: bool,
}

impl WithinHost {
    /// The rank at `place` makes another call, or made another one before: the verdict shows the first
    /// that differs, as far as both still know it.
    pub(super) fn tell_difference(&self, begun: &Begun, place: usize, watch: &mut Watch<'_>) {
        let (world, group) = (&*self.world, self.group);
        let Some(peer) = self.around.get(place).copied() else { return };
        let Some(kept) = world.kept(group) else { return };
        let kept = kept.with(begun);
        let mut talk = Talk { within: self, place, peer, kept, round: 0, watch };
        let Ok(Found { accusation, is_all }) = talk.find(begun.contract.sequence) else { return };
        let since = Instant::now();
        // The two who speak with each other find more.
        while !is_all && !world.is_over() && since.elapsed() < TELL_LIMIT {
            std::thread::park_timeout(LOOK);
        }
        if accusation.is_none() {
            let problem = "it shows another call than the one it makes".into();
            world.raise(peer, Fault::Protocol { problem });
        }
        world.accuse(accusation);
    }
}

impl Talk<'_, '_> {
    /// Looks for the first call that differs.
    fn find(&mut self, sequence: u64) -> Result<Found, Stop> {
        let (world, group, peer) = (self.within.world.clone(), self.within.group, self.peer);
        let judge = |by: Judged<'_>| world.judge(peer, group, by);
        let Some((own, theirs)) = self.show(sequence)? else {
            let met = self.kept.show(sequence);
            let accusation = met.and_then(|(_, met)| judge(Judged::After(&met)));
            return Ok(Found { accusation, is_all: false });
        };
        if theirs.to != world.rank {
            // It looks for the call with a third rank, whose verdict is to be that of all.
            let (ours, other) = (own.call.0, theirs.call.0);
            let accusation = match ours.sequence == other.sequence && ours != other {
                true => judge(Judged::Shown(&self.kept, &[theirs.call])),
                false => judge(Judged::After(&own.call)),
            };
            return Ok(Found { accusation, is_all: false });
        }
        let from = own.oldest.max(theirs.oldest);
        let last = own.sequence().min(theirs.sequence());
        let last_look = match own.sequence() == theirs.sequence() {
            true => Some((own.hash != theirs.hash, theirs.call)),
            // Of two calls that met, the one with the lower number has the other's before it.
            false if from <= last => self.look(last)?,
            false => {
                let is_own = own.sequence() == last;
                let known = if is_own { own.call } else { theirs.call };
                let accusation = judge(Judged::Forgotten(&known, is_own));
                return Ok(Found { accusation, is_all: true });
            }
        };
        let (differs, last_call) = match last_look {
            Some(look) => look,
            None => {
                let accusation = judge(Judged::After(&own.call));
                return Ok(Found { accusation, is_all: false });
            }
        };
        if !differs {
            return Ok(Found { accusation: None, is_all: true });
        }
        let mut first_call = last_call.clone();
        let mut search = Search::new(from, last);
        let mut is_all = true;
        while let Some(probe) = search.probe() {
            let Some((differs, call)) = self.look(probe)? else {
                is_all = false;
                break;
            };
            search.note(probe, differs);
            if differs {
                first_call = call;
            }
        }
        let accusation = judge(Judged::Shown(&self.kept, &[first_call, last_call]));
        Ok(Found { accusation, is_all })
    }
}

/// How long a rank waits for what two others find, whose search takes milliseconds.
const TELL_LIMIT: Duration = Duration::from_millis(500);
/// Between two looks: the job is lost anyway.
const LOOK: Duration = Duration::from_millis(1);
