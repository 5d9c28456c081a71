//! The communicators of one rank and their pairs: calls begun, goodbyes, ends.

use std::sync::Arc;
use std::time::Instant;

use super::{State, WHOLE_WORLD, World};
use crate::contract::{self, CallShape, Contract};
use crate::engine::MAX_COMMUNICATORS;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Accusation, Begun, Group, Planned, Standing};
use crate::plan::costs::Layout;
use crate::verdict::Fault;
use crate::wire::Header;

/// What a rank says when it makes no more calls on a communicator.
#[derive(Clone, Debug)]
pub(crate) struct Goodbye {
    pub(crate) group: u64,
    pub(crate) members: Arc<[u32]>,
    pub(crate) calls: u64,
    pub(crate) hash: u64,
}

impl Goodbye {
    fn on(group: &Group) -> Self {
        let (calls, hash) = group.calls();
        Self { group: group.id(), members: group.members().clone(), calls, hash }
    }
}

/// A goodbye on a communicator that this rank has not made yet.
pub(super) struct EarlyGoodbye {
    calls: u64,
    hash: u64,
}

impl World {
    /// Adds a communicator.
    pub(crate) fn add_group(&self, mut group: Group) {
        let mut accusation = None;
        {
            let mut state = self.state();
            let id = group.id();
            for (place, rank) in (0..).zip(group.members().clone().iter()) {
                let early = state.early.get_mut(*rank as usize).and_then(|of| of.remove(&id));
                if let Some(EarlyGoodbye { calls, hash }) = early {
                    accusation = accusation.or(group.note_goodbye(place, calls, hash));
                }
            }
            state.groups.entry(id).or_insert(group);
        }
        self.accuse(accusation);
    }

    /// Where the ranks of a communicator are: known alike on all of them, before its first call.
    pub(crate) fn lay_out_group(&self, group: u64, layout: Layout) {
        if let Some(group) = self.state().groups.get_mut(&group) {
            group.lay_out(layout);
        }
    }

    /// The pair of communicator `group` that carries messages from one rank of the world to
    /// another; made at first use.
    pub(crate) fn pair(&self, group: u64, from: u32, to: u32) -> u64 {
        let id = pair_id(group, from, to);
        let suffix = {
            let state = self.state();
            if state.groups.contains_key(&id) {
                return id;
            }
            let on = state.groups.get(&group).map_or("", |group| group.suffix());
            format!(" from rank {from} to rank {to}{on}")
        };
        let place = u32::from(self.rank == to);
        let mut pair = Group::new(self.epoch, id, &suffix, vec![from, to], place);
        {
            let mut state = self.state();
            let peer = if self.rank == to { from } else { to };
            // One that has closed the communicator without a word of this pair makes no call on it.
            let told = |group: &Group| group.place_of(peer).is_some_and(|p| group.has_told(p));
            if state.groups.get(&group).is_some_and(told)
                && !state.early.get(peer as usize).is_some_and(|of| of.contains_key(&id))
            {
                let _ = pair.note_goodbye(1 - place, 0, contract::first_hash(self.epoch, id));
            }
            state.pairs.entry(group).or_default().push(id);
        }
        self.add_group(pair);
        id
    }

    /// The pairs of a communicator that this rank has made.
    pub(crate) fn pairs(&self, group: u64) -> Vec<u64> {
        self.state().pairs.get(&group).cloned().unwrap_or_default()
    }

    /// The next call's contract, plan and rolling hash on communicator `group`; an error if the
    /// world has ended or some rank has left it.
    pub(crate) fn begin(&self, group: u64, shape: &CallShape) -> Result<Begun> {
        self.begin_and(group, shape, |_| ()).map(|(begun, ())| begun)
    }

    /// As `begin`; with all that a lane needs.
    pub(crate) fn begin_planned(&self, group: u64, shape: &CallShape) -> Result<Planned> {
        let planned = |group: &Group| (group.plan().cloned(), group.members().clone());
        let (begun, (plan, members)) = self.begin_and(group, shape, planned)?;
        let plan = plan.ok_or_else(|| Error::from(ErrorKind::Closed))?;
        Ok(Planned { begun, plan, members })
    }

    /// Numbers a call whose data go another way, and which takes no step here: its contract is in
    /// the hash of every later call.
    #[cfg_attr(not(feature = "nccl"), expect(dead_code))]
    pub(crate) fn note(&self, group: u64, shape: &CallShape) -> Result<Begun> {
        let begun = self.begin(group, shape)?;
        if let Some(group) = self.state().groups.get_mut(&group) {
            group.end_last();
        }
        Ok(begun)
    }

    fn begin_and<T>(
        &self,
        group: u64,
        shape: &CallShape,
        and: impl FnOnce(&Group) -> T,
    ) -> Result<(Begun, T)> {
        let (begun, gone, and) = {
            let mut state = self.state();
            let Some(group) = state.groups.get_mut(&group) else {
                return Err(ErrorKind::Closed.into());
            };
            if group.outstanding() >= MAX_OUTSTANDING {
                let problem = format!(
                    "{MAX_OUTSTANDING} calls are outstanding on this communicator; wait for some"
                );
                return Err(ErrorKind::Argument { problem }.into());
            }
            if self.verdict.get().is_none() {
                let (begun, gone) = group.begin(shape, &self.choice);
                let (id, and) = (group.id(), and(group));
                state.threads.calls(id);
                (begun, gone, and)
            } else {
                drop(state);
                return Err(self.error().unwrap_or_else(|| ErrorKind::Closed.into()));
            }
        };
        if gone.is_some() {
            self.end_call(begun.contract.group);
        }
        self.accuse(gone);
        match self.error() {
            Some(error) => Err(error),
            None => Ok((begun, and)),
        }
    }

    /// Whether all calls before this one have ended.
    pub(crate) fn is_first(&self, group: u64, sequence: u64) -> bool {
        self.state().groups.get(&group).is_none_or(|group| group.is_first(sequence))
    }

    /// The oldest call under way on a communicator has ended, well or not.
    pub(crate) fn end_call(&self, group: u64) {
        let mut state = self.state();
        if let Some(group) = state.groups.get_mut(&group) {
            group.end();
            if group.is_over() {
                state.forget_what_is_over();
            }
        }
    }

    /// Calls begun here on a communicator, and the rolling hash after them; None if this rank does
    /// not have it (yet).
    pub(crate) fn calls(&self, group: u64) -> Option<(u64, u64)> {
        self.state().groups.get(&group).map(Group::calls)
    }

    /// The members of a communicator.
    pub(crate) fn members(&self, group: u64) -> Option<Arc<[u32]>> {
        self.state().groups.get(&group).map(|group| group.members().clone())
    }

    /// What is appended to the name of a communicator's calls.
    pub(crate) fn suffix(&self, group: u64) -> String {
        self.state().groups.get(&group).map_or_else(String::new, |group| group.suffix().into())
    }

    /// Whether no call is under way on a communicator.
    pub(crate) fn is_idle(&self, group: u64) -> bool {
        self.state().groups.get(&group).is_none_or(|group| group.outstanding() == 0)
    }

    /// What a heartbeat says of this rank: the whole world first, then in turn some of the others.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let mut state = self.state();
        let State { groups, turn, .. } = &mut *state;
        let others = groups.iter().filter(|(id, _)| **id != WHOLE_WORLD);
        let (busy, idle): (Vec<_>, Vec<_>) = others.partition(|(_, group)| group.outstanding() > 0);
        let ids = |groups: Vec<(&u64, &Group)>| groups.into_iter().map(|(id, _)| *id).collect();
        let ids = std::iter::once(WHOLE_WORLD).chain(turn.next(ids(busy), ids(idle)));
        ids.filter_map(|id| groups.get(&id).map(Group::standing)).collect()
    }

    /// A heartbeat: keeps how far the peer is, and compares the calls both have made.
    pub(crate) fn note_standings(&self, rank: u32, standings: Vec<Standing>) {
        let now = Instant::now();
        let mut found = None;
        for standing in standings.into_iter().take(MAX_STANDINGS) {
            let mut state = self.state();
            if let Some(group) = state.groups.get_mut(&standing.group)
                && let Some(place) = group.place_of(rank)
            {
                let difference = group.note_standing(place, standing, now);
                found = found.or(difference.map(|difference| (group.id(), difference)));
            }
        }
        if let Some((group, difference)) = found {
            self.tell_difference(rank, group, difference);
        }
    }

    /// A message of a call: another call than the one made here under its number is a mismatch.
    pub(crate) fn compare(
        &self,
        from: u32,
        group: u64,
        header: &Header,
        contract: Option<&(Contract, String)>,
    ) {
        let difference = {
            let state = self.state();
            let Some(group) = state.groups.get(&group) else { return };
            let Some(place) = group.place_of(from) else { return };
            group.compare(place, header.sequence, header.hash, contract)
        };
        if let Some(difference) = difference {
            self.tell_difference(from, group, difference);
        }
    }

    /// A goodbye over control: the peer makes no more calls on a communicator, and has said so of
    /// its pairs before.
    pub(crate) fn note_goodbye(&self, rank: u32, group: u64, calls: u64, hash: u64) {
        self.note_flow_goodbye(rank, group, calls, hash);
        let accusation = {
            let mut state = self.state();
            let mut accusation = None;
            if let Some(group) = state.groups.get_mut(&group)
                && let Some(place) = group.place_of(rank)
            {
                group.note_told(place);
            }
            // A pair that the peer never made has had no calls from it.
            for (from, to) in [(self.rank, rank), (rank, self.rank)] {
                if let Some(pair) = state.groups.get_mut(&pair_id(group, from, to))
                    && let Some(place) = pair.place_of(rank)
                    && !pair.has_left(place)
                {
                    let first = contract::first_hash(self.epoch, pair.id());
                    accusation = accusation.or(pair.note_goodbye(place, 0, first));
                }
            }
            accusation
        };
        self.accuse(accusation);
    }

    /// A goodbye on a flow, behind the last message of its communicator.
    pub(crate) fn note_flow_goodbye(&self, rank: u32, group: u64, calls: u64, hash: u64) {
        let accusation = {
            let mut state = self.state();
            let State { groups, early, over, .. } = &mut *state;
            if over.contains(&group) {
                return;
            }
            if !groups.contains_key(&group) {
                // Messages on a communicator that this rank has closed without receiving them.
                let is_pair = |id: &u64| pair_id(*id, rank, self.rank) == group;
                let mut closed = groups.iter().filter(|(_, group)| group.is_closed());
                if calls > 0 && closed.any(|(id, _)| is_pair(id)) {
                    drop(state);
                    return self.accuse(Some(unread(self.rank, rank, calls)));
                }
                if let Some(of) = early.get_mut(rank as usize)
                    && (of.len() < MAX_EARLY || of.contains_key(&group))
                {
                    of.insert(group, EarlyGoodbye { calls, hash });
                }
                return;
            }
            let Some(known) = groups.get_mut(&group) else { return };
            let Some(place) = known.place_of(rank) else { return };
            let accusation = known.note_goodbye(place, calls, hash);
            state.forget_what_is_over();
            accusation
        };
        self.accuse(accusation);
    }

    /// This rank makes no more calls on a communicator and its pairs. What it says to the others,
    /// of the pairs first.
    pub(crate) fn close_group(&self, id: u64) -> Vec<Goodbye> {
        self.end_doubt();
        let mut accusation = None;
        let mut goodbyes = Vec::new();
        {
            let mut state = self.state();
            let State { groups, early, threads, .. } = &mut *state;
            threads.forget(id);
            let Some(members) = groups.get(&id).map(|group| group.members().clone()) else {
                return goodbyes;
            };
            let others = members.iter().filter(|member| **member != self.rank);
            for (peer, from, to) in others.flat_map(|&m| [(m, self.rank, m), (m, m, self.rank)]) {
                let pair = pair_id(id, from, to);
                threads.forget(pair);
                if let Some(pair) = groups.get_mut(&pair) {
                    accusation = accusation.or(pair.close());
                    goodbyes.push(Goodbye::on(pair));
                }
                let lost = early.get_mut(peer as usize).and_then(|of| of.remove(&pair));
                if let Some(EarlyGoodbye { calls: calls @ 1.., .. }) = lost {
                    accusation = accusation.or(Some(unread(self.rank, peer, calls)));
                }
            }
            if let Some(group) = groups.get_mut(&id)
                && !group.is_closed()
            {
                accusation = accusation.or(group.close());
                goodbyes.push(Goodbye::on(group));
            }
            state.forget_what_is_over();
        }
        self.accuse(accusation);
        goodbyes
    }

    /// The peer has left the world.
    pub(crate) fn note_left(&self, rank: u32) {
        if let Some(left) = self.state().left.get_mut(rank as usize) {
            *left = true;
        }
    }

    /// Whether `rank` has left the world.
    pub(crate) fn has_left(&self, rank: u32) -> bool {
        self.state().left.get(rank as usize).copied().unwrap_or(false)
    }
}

/// Whose turn it is in a heartbeat, which cannot speak of all communicators.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The next of those with calls under way, and of those without.
    next: [usize; 2],
    /// Those without have a place of their own.
    is_idles: bool,
}

impl Turn {
    /// Those with calls under way go first, so that what is known of them is young; but every
    /// second time they leave room for one of the others.
    fn next(&mut self, busy: Vec<u64>, idle: Vec<u64>) -> Vec<u64> {
        let room = MAX_STANDINGS - 1;
        let busy_room = if self.is_idles && !idle.is_empty() { room - 1 } else { room };
        self.is_idles = !self.is_idles;
        let mut chosen = Vec::new();
        for ((mut ids, next), room) in
            [busy, idle].into_iter().zip(&mut self.next).zip([busy_room, room])
        {
            let shown = ids.len().min(room - chosen.len().min(room));
            ids.sort_unstable();
            chosen.extend((0..shown).map(|at| ids[(*next + at) % ids.len()]));
            *next = next.wrapping_add(shown);
        }
        chosen
    }
}

impl State {
    fn forget_what_is_over(&mut self) {
        let Self { groups, over, pairs, .. } = self;
        groups.retain(|id, group| {
            let keep = *id == WHOLE_WORLD || !group.is_over();
            if !keep {
                over.push_back(*id);
                pairs.remove(id);
            }
            keep
        });
        over.drain(..over.len().saturating_sub(MAX_OVER));
    }
}

/// `reader` closed without receiving what `sender` sent it.
fn unread(reader: u32, sender: u32, calls: u64) -> Accusation {
    let call = format!("rank {sender} sent it {calls} messages and closed");
    Accusation { culprit: reader, fault: Fault::CallCount { calls: 0, call } }
}

/// Equal on both ends, and another for every pair.
fn pair_id(group: u64, from: u32, to: u32) -> u64 {
    contract::mix(contract::mix(group ^ PAIRS) ^ (u64::from(from) << 32 | u64::from(to)))
}

/// Sets the pairs' numbers apart from those of communicators.
const PAIRS: u64 = 0x7061_6972;
/// All of them are kept for comparison (see `group.rs`).
const MAX_OUTSTANDING: u64 = 1024;
/// A heartbeat fits the smallest datagram that QUIC promises, 1,200 bytes, with three calls in
/// words of some 200 bytes each.
const MAX_STANDINGS: usize = 3;
/// Goodbyes of one rank for communicators that this one has still to make: as many as it may have
/// open, with two pairs each, and as much again.
const MAX_EARLY: usize = 6 * MAX_COMMUNICATORS;
/// A goodbye comes twice, over control and behind the data; these are closed long before the
/// second one can still be on its way.
const MAX_OVER: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::of_three;

    #[test]
    fn a_rank_that_says_goodbye_without_end_crowds_out_only_itself() {
        let world = of_three();
        for group in 100..100_000 {
            world.note_goodbye(2, group, 0, 7);
        }
        assert_eq!(world.state().early[2].len(), MAX_EARLY);
        // Another rank's goodbye, of calls that were never made here.
        world.note_goodbye(1, 9, 0, 7);
        world.add_group(Group::new(1, 9, "", vec![0, 1], 0));
        assert_eq!(world.verdict().expect("it was forgotten").culprit, 1);
    }

    #[test]
    fn goodbyes_of_ranks_that_do_not_exist_are_no_harm() {
        let world = of_three();
        world.note_goodbye(3, 9, 0, 7);
        world.note_goodbye(u32::MAX, 9, u64::MAX, 7);
        world.add_group(Group::new(1, 9, "", vec![0, 1, 2], 0));
        assert!(world.verdict().is_none());
    }

    #[test]
    fn heartbeats_speak_of_calls_under_way_first_and_of_all_in_turn() {
        let mut turn = Turn::default();
        let idle: Vec<u64> = (10..20).collect();
        let mut seen: Vec<u64> = Vec::new();
        for _ in 0..10 {
            let said = turn.next(vec![5], idle.clone());
            assert_eq!((said.len(), said[0]), (MAX_STANDINGS - 1, 5));
            seen.extend(&said[1..]);
        }
        seen.sort_unstable();
        assert_eq!(seen, idle);
        // Of more calls than there is room for, each is spoken of soon; the others are not left out.
        let said: Vec<_> = (0..8).map(|_| turn.next(vec![5, 6], idle.clone())).collect();
        for pair in said.windows(2) {
            assert!([5, 6].iter().all(|id| pair.concat().contains(id)), "{said:?}");
            assert!(pair.concat().iter().any(|id| *id >= 10), "{said:?}");
        }
        assert_eq!(turn.next(vec![], vec![3]), [3]);
        assert!(turn.next(vec![], vec![]).is_empty());
    }
}
