//! Finds worlds in which every rank waits for a call that another one has not made. Pure.
//!
//! A rank whose threads all wait, and where no byte has moved for long, says so to the lowest
//! rank that has not left, with what it waits for and how far it is on every communicator. That one
//! compares.

mod rest;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::engine::MAX_COMMUNICATORS;
use crate::report;

pub(crate) use rest::{Rest, is_only_thread};

/// What a rank says that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stuck {
    /// Calls begun on each of its communicators, and the rolling hash after them.
    pub(crate) calls: Vec<(u64, u64, u64)>,
    pub(crate) waits: Vec<Wait>,
}

impl Stuck {
    /// Whether a rank of a world of `size` can be stuck so.
    pub(crate) fn is_within_limits(&self, size: usize) -> bool {
        // Messages to each other rank and from it: two pairs with each, on every communicator.
        let pairs = 2 * size.saturating_sub(1);
        self.calls.len() <= MAX_KNOWN * (1 + pairs)
            && self.waits.len() <= MAX_WAITS
            && self.waits.iter().all(|wait| wait.members.len() <= size)
    }
}

/// A call that a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wait {
    pub(crate) group: u64,
    pub(crate) sequence: u64,
    /// The ranks of the world that must make the call.
    pub(crate) members: Vec<u32>,
    pub(crate) call: String,
}

/// A thread that waits.
#[derive(Debug)]
struct Waits {
    /// For this communicator and sequence.
    call: (u64, u64),
    /// The kernel's number of it.
    id: u32,
}

/// Which threads of this process make calls, and which of them wait.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    /// The thread that made the last call on each communicator, and whether it still lives.
    callers: HashMap<u64, (ThreadId, Weak<()>)>,
    waiting: HashMap<ThreadId, Waits>,
    /// Communicators that nobody has made a call on yet: any thread may.
    unused: HashSet<u64>,
    /// The latest call's communicator and thread, which are noted: the next one's are often the
    /// same.
    latest: Option<(u64, ThreadId)>,
}

impl Threads {
    /// This thread makes a call on communicator `group`.
    pub(crate) fn calls(&mut self, group: u64) {
        let id = this_thread();
        if self.latest.replace((group, id)) == Some((group, id))
            || self.callers.get(&group).is_some_and(|(thread, _)| *thread == id)
        {
            return;
        }
        // Of a thread whose end destroys its variables there is none: it counts as ended.
        let life = LIFE.try_with(Arc::downgrade).unwrap_or_default();
        self.callers.insert(group, (id, life));
        self.unused.remove(&group);
    }

    /// This thread waits for call `sequence` of communicator `group`.
    pub(crate) fn waits(&mut self, group: u64, sequence: u64) {
        let id = KERNELS_ID.with(|id| *id);
        self.waiting.insert(this_thread(), Waits { call: (group, sequence), id });
    }

    /// This thread goes on.
    pub(crate) fn goes_on(&mut self) {
        self.waiting.remove(&this_thread());
    }

    /// The kernel's numbers of the threads that wait.
    pub(crate) fn waiting_ids(&self) -> Vec<u32> {
        self.waiting.values().map(|waits| waits.id).collect()
    }

    /// There is a new communicator, for which thread is not known.
    pub(crate) fn awaits_caller(&mut self, group: u64) {
        self.unused.insert(group);
    }

    /// Nobody makes calls on that communicator any more.
    pub(crate) fn forget(&mut self, group: u64) {
        self.callers.remove(&group);
        self.unused.remove(&group);
        self.latest = None;
    }

    /// What the threads wait for, if none is left that is known to make other calls.
    pub(crate) fn blocked(&self) -> Option<Blocked> {
        let mut callers = self.callers.values().filter(|(_, life)| life.strong_count() > 0);
        let all = callers.all(|(thread, _)| self.waiting.contains_key(thread));
        (all && !self.waiting.is_empty()).then(|| Blocked {
            calls: self.waiting.values().map(|waits| waits.call).collect(),
            unless_another: !self.unused.is_empty(),
        })
    }
}

/// Every thread that is known to make calls waits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    /// Communicator and sequence.
    pub(crate) calls: Vec<(u64, u64)>,
    /// Any other thread of the program may make the first call on a communicator.
    pub(crate) unless_another: bool,
}

/// One rank's collection of what all ranks say.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    latest: HashMap<u32, Latest>,
}

/// What a rank has said last.
#[derive(Debug)]
struct Latest {
    said: Instant,
    /// Calls begun and the rolling hash after them, by communicator.
    calls: HashMap<u64, (u64, u64)>,
    waits: Vec<Wait>,
}

impl Reports {
    /// What rank `rank` says at `now`. If with that every one of `ranks` waits in vain: each
    /// rank's call, in words.
    pub(crate) fn note(
        &mut self,
        rank: u32,
        report: Stuck,
        now: Instant,
        ranks: impl Iterator<Item = u32>,
    ) -> Option<Vec<String>> {
        let Stuck { calls, waits } = report;
        let calls = calls.into_iter().map(|(group, calls, hash)| (group, (calls, hash))).collect();
        self.latest.insert(rank, Latest { said: now, calls, waits });
        self.latest.retain(|_, latest| now.saturating_duration_since(latest.said) <= FRESH);
        let reports: Option<Vec<(u32, &Latest)>> =
            ranks.map(|rank| self.latest.get(&rank).map(|latest| (rank, latest))).collect();
        let reports = reports?;
        let hopeless = |(rank, latest): &(u32, &Latest)| {
            !latest.waits.is_empty() && latest.waits.iter().all(|wait| self.is_in_vain(*rank, wait))
        };
        if !reports.iter().all(hopeless) {
            return None;
        }
        let named = reports.iter().take(MAX_NAMED).map(|(rank, latest)| {
            let calls: Vec<_> = latest.waits.iter().map(|w| report::printable(&w.call)).collect();
            format!("rank {rank} waits in {}", calls.join(" and "))
        });
        let more = reports.len().saturating_sub(MAX_NAMED);
        let rest = (more > 0).then(|| format!("{more} more ranks wait likewise"));
        Some(named.chain(rest).collect())
    }

    /// Whether some rank that must make the call has not begun it, or has made another one in its
    /// place, which the two would only find if they had anything to send to each other.
    fn is_in_vain(&self, rank: u32, wait: &Wait) -> bool {
        let standing = |rank: &u32| {
            let latest = self.latest.get(rank)?;
            Some(latest.calls.get(&wait.group).copied().unwrap_or_default())
        };
        let ours = standing(&rank);
        wait.members.iter().filter(|member| **member != rank).any(|member| {
            standing(member).is_some_and(|(calls, hash)| {
                let differs = ours.is_some_and(|ours| ours.0 == calls && ours.1 != hash);
                calls <= wait.sequence || differs
            })
        })
    }
}

fn this_thread() -> ThreadId {
    ID.with(|id| *id)
}

thread_local! {
    /// Lives as long as the thread.
    static LIFE: Arc<()> = Arc::new(());
    /// The standard library counts references to tell it.
    static ID: ThreadId = std::thread::current().id();
    static KERNELS_ID: u32 = rest::this_thread();
}

/// How often a stuck rank says so.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Reports that lie closer together than this speak of one moment: each of them covers
/// ALLFOLD_LATE_AFTER, ten seconds, before it.
const FRESH: Duration = Duration::from_millis(2500);
/// Communicators that are open, and as many that only others still have open.
const MAX_KNOWN: usize = 2 * MAX_COMMUNICATORS;
/// One for each thread that waits: more than this many no program has in calls.
const MAX_WAITS: usize = 1024;
/// More than this nobody reads.
pub(crate) const MAX_NAMED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn stuck(calls: &[(u64, u64)], group: u64, sequence: u64, members: &[u32]) -> Stuck {
        let call = format!("call #{sequence} on {group}");
        let wait = Wait { group, sequence, members: members.to_vec(), call };
        let calls = calls.iter().map(|(group, calls)| (*group, *calls, *calls));
        Stuck { calls: calls.collect(), waits: vec![wait] }
    }

    #[test]
    fn two_communicators_in_opposite_order_are_a_deadlock() {
        let now = Instant::now();
        let mut reports = Reports::default();
        let first = stuck(&[(1, 5), (2, 4)], 1, 4, &[0, 1]);
        let second = stuck(&[(1, 4), (2, 5)], 2, 4, &[0, 1]);
        assert_eq!(reports.note(0, first, now, 0..2), None);
        let calls = reports.note(1, second, now + Duration::from_secs(1), 0..2).unwrap();
        assert_eq!(calls, ["rank 0 waits in call #4 on 1", "rank 1 waits in call #4 on 2"]);
    }

    #[test]
    fn a_call_that_all_have_begun_is_slow_not_dead() {
        let now = Instant::now();
        let mut reports = Reports::default();
        let report = stuck(&[(1, 5)], 1, 4, &[0, 1]);
        assert_eq!(reports.note(0, report.clone(), now, 0..2), None);
        assert_eq!(reports.note(1, report, now, 0..2), None);
    }

    #[test]
    fn another_call_under_the_same_number_is_waited_for_in_vain() {
        let now = Instant::now();
        let mut reports = Reports::default();
        let report = stuck(&[(1, 5)], 1, 4, &[0, 1]);
        let other = Stuck { calls: vec![(1, 5, 77)], ..report.clone() };
        assert_eq!(reports.note(0, report, now, 0..2), None);
        assert!(reports.note(1, other, now, 0..2).is_some());
    }

    #[test]
    fn an_old_word_does_not_count() {
        let now = Instant::now();
        let mut reports = Reports::default();
        let first = stuck(&[(1, 5), (2, 4)], 1, 4, &[0, 1]);
        let second = stuck(&[(1, 4), (2, 5)], 2, 4, &[0, 1]);
        assert_eq!(reports.note(0, first.clone(), now, 0..2), None);
        let later = now + Duration::from_secs(3);
        assert_eq!(reports.note(1, second, later, 0..2), None);
        assert!(reports.note(0, first, later, 0..2).is_some());
    }

    #[test]
    fn a_rank_waits_in_no_more_calls_and_for_no_more_ranks_than_there_can_be() {
        let with = |calls: usize, waits: usize, members: u32| {
            let report = stuck(&[(1, 5)], 1, 4, &(0..members).collect::<Vec<_>>());
            Stuck {
                calls: vec![report.calls[0]; calls],
                waits: vec![report.waits[0].clone(); waits],
            }
        };
        // Of three ranks each has two pairs with each of the two others.
        let most = 5 * MAX_KNOWN;
        assert!(with(most, MAX_WAITS, 3).is_within_limits(3));
        assert!(!with(most + 1, 1, 3).is_within_limits(3));
        assert!(!with(1, MAX_WAITS + 1, 3).is_within_limits(3));
        assert!(!with(1, 1, 4).is_within_limits(3));
    }

    #[test]
    fn a_thread_that_computes_may_still_call_one_that_has_ended_may_not() {
        let mut threads = Threads::default();
        assert_eq!(threads.blocked(), None);
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (called, calls) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let mut threads = Threads::default();
            threads.calls(2);
            called.send(threads).unwrap();
            let _ = ended.recv();
        });
        threads.callers.extend(calls.recv().unwrap().callers);
        threads.calls(1);
        threads.waits(1, 0);
        assert_eq!(threads.blocked(), None, "the other thread may call on 2");
        drop(end);
        other.join().unwrap();
        let blocked = Blocked { calls: vec![(1, 0)], unless_another: false };
        assert_eq!(threads.blocked(), Some(blocked));
        threads.awaits_caller(3);
        assert!(threads.blocked().unwrap().unless_another);
        threads.goes_on();
        assert_eq!(threads.blocked(), None);
    }
}
