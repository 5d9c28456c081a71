//! What the threads of one rank share: who is in the world, how far each has come on every
//! communicator, and the verdict that ends it all.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::contract::{self, CallShape, Contract};
use crate::control::ControlHandle;
use crate::deadlock::{Reports, Stuck, Threads, Wait};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Accusation, Begun, Group, Progress, Standing};
use crate::lane;
use crate::plan::costs::Choice;
use crate::report;
use crate::verdict::{Fault, Verdict};
use crate::wire::Header;

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
    pub(crate) epoch: u64,
    pub(crate) peers: Vec<Peer>,
    pub(crate) limits: Limits,
    /// How plans are chosen, alike on all ranks.
    pub(crate) choice: Choice,
    state: Mutex<State>,
    verdict: OnceLock<(Verdict, Error)>,
    /// A call has returned the error that ended the world.
    told: AtomicBool,
    lane: OnceLock<mpsc::UnboundedSender<lane::Command>>,
    control: OnceLock<ControlHandle>,
}

/// How long to wait before saying something, and before giving up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A call that waits longer names the late ranks in a warning; ranks that all wait longer, in
    /// vain, are a deadlock.
    pub(crate) late_after: Duration,
    /// A call that waits longer is an error.
    pub(crate) timeout: Option<Duration>,
}

struct State {
    groups: HashMap<u64, Group>,
    /// Goodbyes on communicators that this rank has not made yet.
    early: Vec<EarlyGoodbye>,
    /// Communicators that all members have closed: words about them may still come.
    over: VecDeque<u64>,
    /// Which ranks have left the world.
    left: Vec<bool>,
    threads: Threads,
    /// On rank 0.
    stuck: Reports,
    /// The next communicator of which a heartbeat speaks.
    turn: usize,
}

impl State {
    fn forget_what_is_over(&mut self) {
        let Self { groups, over, .. } = self;
        groups.retain(|id, group| {
            let keep = *id == WHOLE_WORLD || !group.is_over();
            if !keep {
                over.push_back(*id);
            }
            keep
        });
        over.drain(..over.len().saturating_sub(MAX_OVER));
    }
}

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

struct EarlyGoodbye {
    rank: u32,
    group: u64,
    calls: u64,
    hash: u64,
}

impl World {
    pub(crate) fn new(
        rank: u32,
        epoch: u64,
        peers: Vec<Peer>,
        limits: Limits,
        choice: Choice,
    ) -> Self {
        let members = (0..peers.len() as u32).collect();
        let whole = Group::new(epoch, WHOLE_WORLD, "", members, rank);
        let state = State {
            groups: HashMap::from([(WHOLE_WORLD, whole)]),
            early: Vec::new(),
            over: VecDeque::new(),
            left: vec![false; peers.len()],
            threads: Threads::default(),
            stuck: Reports::default(),
            turn: 0,
        };
        Self {
            rank,
            epoch,
            peers,
            limits,
            choice,
            state: Mutex::new(state),
            verdict: OnceLock::new(),
            told: AtomicBool::new(false),
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

    /// Adds a communicator.
    pub(crate) fn add_group(&self, mut group: Group) {
        let mut accusation = None;
        {
            let mut state = self.state();
            let id = group.id();
            let (known, early) =
                std::mem::take(&mut state.early).into_iter().partition(|early| early.group == id);
            state.early = early;
            let known: Vec<EarlyGoodbye> = known;
            for EarlyGoodbye { rank, calls, hash, .. } in known {
                if let Some(place) = group.place_of(rank) {
                    accusation = accusation.or(group.note_goodbye(place, calls, hash));
                }
            }
            state.groups.entry(id).or_insert(group);
        }
        self.accuse(accusation);
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
        self.add_group(Group::new(self.epoch, id, &suffix, vec![from, to], place));
        id
    }

    /// The next call's contract, plan and rolling hash on communicator `group`; an error if the
    /// world has ended or some rank has left it.
    pub(crate) fn begin(&self, group: u64, shape: &CallShape) -> Result<Begun> {
        let (begun, gone) = {
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
                let begun = group.begin(shape, &self.choice);
                let id = group.id();
                state.threads.calls(id);
                begun
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
            None => Ok(begun),
        }
    }

    /// The oldest call under way on a communicator has ended, well or not.
    pub(crate) fn end_call(&self, group: u64) {
        if let Some(group) = self.state().groups.get_mut(&group) {
            group.end();
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
        let mut others: Vec<u64> =
            state.groups.keys().copied().filter(|id| *id != WHOLE_WORLD).collect();
        others.sort_unstable();
        let shown = others.len().min(MAX_STANDINGS - 1);
        let turn = state.turn;
        state.turn = turn.wrapping_add(shown);
        let turns = (0..shown).map(|at| others[(turn + at) % others.len()]);
        let ids = std::iter::once(WHOLE_WORLD).chain(turns);
        ids.filter_map(|id| state.groups.get(&id).map(Group::standing)).collect()
    }

    /// A heartbeat: keeps how far the peer is, and compares the calls both have made.
    pub(crate) fn note_standings(&self, rank: u32, standings: Vec<Standing>) {
        let now = Instant::now();
        let mut accusation = None;
        for standing in standings.into_iter().take(MAX_STANDINGS) {
            let mut state = self.state();
            if let Some(group) = state.groups.get_mut(&standing.group)
                && let Some(place) = group.place_of(rank)
            {
                accusation = accusation.or(group.note_standing(place, standing, now));
            }
        }
        self.accuse(accusation);
    }

    /// A message of a call: another call than the one made here under its number is a mismatch.
    /// True if it is of a call that was begun here.
    pub(crate) fn compare(
        &self,
        from: u32,
        group: u64,
        header: &Header,
        contract: Option<&(Contract, String)>,
    ) -> bool {
        let accusation = {
            let state = self.state();
            let Some(group) = state.groups.get(&group) else { return false };
            let Some(place) = group.place_of(from) else { return false };
            if header.sequence >= group.calls().0 {
                return false;
            }
            group.compare(place, header.sequence, header.hash, contract)
        };
        self.accuse(accusation);
        true
    }

    /// A goodbye over control: the peer makes no more calls on a communicator, and has said so of
    /// its pairs before.
    pub(crate) fn note_goodbye(&self, rank: u32, group: u64, calls: u64, hash: u64) {
        self.note_flow_goodbye(rank, group, calls, hash);
        let accusation = {
            let mut state = self.state();
            let mut accusation = None;
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
            let Some(known) = groups.get_mut(&group) else {
                if early.len() < MAX_EARLY && !over.contains(&group) {
                    early.push(EarlyGoodbye { rank, group, calls, hash });
                }
                return;
            };
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
            for (from, to) in others.flat_map(|&m| [(self.rank, m), (m, self.rank)]) {
                let pair = pair_id(id, from, to);
                threads.forget(pair);
                if let Some(pair) = groups.get_mut(&pair) {
                    accusation = accusation.or(pair.close());
                    goodbyes.push(Goodbye::on(pair));
                }
                if let Some(lost) =
                    early.iter().find(|early| early.group == pair && early.calls > 0)
                {
                    let EarlyGoodbye { rank, calls, .. } = lost;
                    let call = format!("rank {rank} sent it {calls} messages and closed");
                    let fault = Fault::CallCount { calls: 0, call };
                    accusation = accusation.or(Some(Accusation { culprit: self.rank, fault }));
                }
            }
            early.retain(|early| {
                let pair = |(from, to)| pair_id(id, from, to) == early.group;
                !pair((self.rank, early.rank)) && !pair((early.rank, self.rank))
            });
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

    /// This thread waits for a call, until the answer is dropped.
    pub(crate) fn waiting(&self, group: u64, sequence: u64) -> Waiting<'_> {
        self.state().threads.waits(group, sequence);
        Waiting(self)
    }

    /// What this rank says to rank 0 if every thread that could make a call waits for one.
    pub(crate) fn stuck(&self) -> Option<Stuck> {
        let state = self.state();
        let blocked = state.threads.blocked()?;
        let waits = blocked.into_iter().filter_map(|(id, sequence)| {
            let group = state.groups.get(&id)?;
            let call = group.describe_call(sequence)?;
            Some(Wait { group: id, sequence, members: group.members().to_vec(), call })
        });
        let waits: Vec<Wait> = waits.collect();
        let calls = state.groups.iter().map(|(id, group)| (*id, group.calls().0)).collect();
        (!waits.is_empty()).then_some(Stuck { calls, waits })
    }

    /// On rank 0: a rank says at `now` that it cannot go on.
    pub(crate) fn note_stuck(&self, rank: u32, stuck: Stuck, now: Instant) {
        let calls = {
            let mut state = self.state();
            let State { stuck: reports, left, .. } = &mut *state;
            let here = (0..).zip(left.iter()).filter(|(_, left)| !**left).map(|(rank, _)| rank);
            reports.note(rank, stuck, now, here)
        };
        if let Some(calls) = calls {
            self.raise(self.rank, Fault::Deadlock { calls });
        }
    }

    /// Ends the world for what was found, if anything was.
    pub(crate) fn accuse(&self, accusation: Option<Accusation>) {
        if let Some(Accusation { culprit, fault }) = accusation {
            self.raise(culprit, fault);
        }
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

    /// What a call returns that ended with `result`. Its error is the world's.
    pub(crate) fn conclude(&self, result: Result<()>) -> Result<()> {
        let Err(error) = result else { return Ok(()) };
        // Without a verdict the lane itself has failed: the others must not wait for this rank.
        if self.error().is_none() {
            let how = format!("failed: {error}");
            self.raise(self.rank, Fault::Lost { how });
        }
        self.tell();
        // A program may end right after an error: the others must have been told by then.
        if let Some(control) = self.control() {
            control.wait_flooded(FLOOD_LIMIT);
        }
        Err(self.error().unwrap_or(error))
    }

    /// A call returns the error that ended the world. True the first time.
    pub(crate) fn tell(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// The error every call returns, once there is a verdict.
    pub(crate) fn error(&self) -> Option<Error> {
        self.verdict.get().map(|(_, error)| error.clone())
    }

    /// Why the world ended, if it did.
    #[cfg(test)]
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.verdict.get().map(|(verdict, _)| verdict)
    }

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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread waits for as long as this lives.
pub(crate) struct Waiting<'a>(&'a World);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().threads.goes_on();
    }
}

/// Equal on both ends, and another for every pair.
fn pair_id(group: u64, from: u32, to: u32) -> u64 {
    contract::mix(contract::mix(group ^ PAIRS) ^ (u64::from(from) << 32 | u64::from(to)))
}

/// The communicator of all ranks.
pub(crate) const WHOLE_WORLD: u64 = 0;
/// Sets the pairs' numbers apart from those of communicators.
const PAIRS: u64 = 0x7061_6972;
/// All of them are kept for comparison (see `group.rs`).
const MAX_OUTSTANDING: u64 = 1024;
/// A heartbeat fits the smallest datagram that QUIC promises, 1,200 bytes, with three calls in
/// words of some 200 bytes each.
const MAX_STANDINGS: usize = 3;
/// Goodbyes for communicators that this rank has still to make.
const MAX_EARLY: usize = 65_536;
/// A goodbye comes twice, over control and behind the data; these are closed long before the
/// second one can still be on its way.
const MAX_OVER: usize = 4096;
/// Heartbeats come twice a second; an older one says what was, not what is.
const FRESH: Duration = Duration::from_millis(1500);
/// More names than this do not help.
const MAX_LATE_NAMED: usize = 8;
/// Writing a verdict to open connections takes microseconds; a peer that does not take it is not
/// waited for.
const FLOOD_LIMIT: Duration = Duration::from_millis(50);
