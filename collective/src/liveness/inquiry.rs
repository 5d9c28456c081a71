//! What a rank makes of another's silence: it asks those who hear it. Pure, the clock passed in.
//!
//! A rank that others still hear is alive, and the link to it is down. Where nobody is heard at
//! all, it is this rank's own host that has lost the network.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::OWN_STALL;

/// A question about one rank, on its way to the witnesses.
pub(crate) struct Inquiry {
    asked: Instant,
    /// Who was heard within this time lives.
    recently: Duration,
    awaited: Vec<u32>,
    /// Until then it may be what lies unread that is missing.
    earliest: Duration,
    /// The witness that heard it last, and how long ago.
    heard: Option<(u32, Duration)>,
}

/// What an inquiry has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Nobody hears it.
    Dead,
    /// `witness` has heard it so long ago.
    LinkDown { witness: u32, ago: Duration },
    /// This rank was itself not scheduled: it must listen anew.
    Overslept,
}

impl Inquiry {
    /// Begins at `now`, with a question to each of `witnesses`.
    pub(crate) fn new(now: Instant, witnesses: Vec<u32>, limits: Limits) -> Self {
        // Two heartbeats; and, of one that has just died, no witness's last is so young.
        let young = limits.dead_after.saturating_sub(limits.heartbeat / 2);
        let recently = limits.heartbeat.saturating_mul(2).min(young);
        // A witness's answer comes behind whatever else has come.
        let earliest = if witnesses.is_empty() { SECOND_LOOK } else { Duration::ZERO };
        Self { asked: now, recently, awaited: witnesses, earliest, heard: None }
    }

    /// When it is to be looked at if no answer comes.
    pub(crate) fn patience(&self) -> Duration {
        if self.awaited.is_empty() { self.earliest } else { ANSWER_LIMIT }
    }

    /// Whether this witness was asked and has not answered.
    pub(crate) fn awaits(&self, witness: u32) -> bool {
        self.awaited.contains(&witness)
    }

    /// A witness answers how long ago it heard the rank; None if it never did.
    pub(crate) fn answer(&mut self, witness: u32, ago: Option<Duration>) {
        let Some(place) = self.awaited.iter().position(|awaited| *awaited == witness) else {
            return;
        };
        self.awaited.swap_remove(place);
        if let Some(ago) = ago.filter(|ago| *ago <= self.recently)
            && self.heard.is_none_or(|(_, best)| ago < best)
        {
            self.heard = Some((witness, ago));
        }
    }

    /// The outcome, once all have answered, one has heard it, or the time is up.
    pub(crate) fn finding(&self, now: Instant) -> Option<Finding> {
        let waited = now.saturating_duration_since(self.asked);
        if let Some((witness, ago)) = self.heard {
            return Some(Finding::LinkDown { witness, ago: ago + waited });
        }
        if waited >= ANSWER_LIMIT + OWN_STALL {
            return Some(Finding::Overslept);
        }
        if self.awaited.is_empty() {
            return (waited >= self.earliest).then_some(Finding::Dead);
        }
        (waited >= ANSWER_LIMIT).then_some(Finding::Dead)
    }
}

/// Another rank, as one that may be cut off sees it.
pub(crate) struct Heard<'a> {
    pub(crate) host: &'a str,
    pub(crate) silence: Duration,
}

/// Whether a rank on `host` has lost the network rather than the others their lives: all of
/// several ranks are silent at once, or, where ranks on its own host are not, all on several other
/// hosts.
pub(crate) fn is_cut_off(host: &str, others: &[Heard<'_>], limits: Limits) -> bool {
    let quiet = limits.dead_after.min(limits.heartbeat.saturating_mul(5) / 2);
    let all_quiet = |mut some: Box<dyn Iterator<Item = &Heard<'_>> + '_>| {
        some.all(|other| other.silence >= quiet)
    };
    if others.len() > 1 && all_quiet(Box::new(others.iter())) {
        return true;
    }
    let elsewhere = || others.iter().filter(|other| other.host != host);
    let hosts: HashSet<&str> = elsewhere().map(|other| other.host).collect();
    hosts.len() > 1 && all_quiet(Box::new(elsewhere()))
}

/// How often ranks speak, and how long silence is borne.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) heartbeat: Duration,
    pub(crate) dead_after: Duration,
}

/// With 2 s of silence before, and a tenth to notice it, still well below the promised 3 s.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_millis(300);
/// Where nobody can be asked: a rank that was itself not scheduled reads within a few turns what
/// has come meanwhile.
const SECOND_LOOK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LIMITS: Limits =
        Limits { heartbeat: MS.saturating_mul(500), dead_after: MS.saturating_mul(2_000) };

    fn inquiry(answers: &[(u32, Option<u32>)]) -> impl Fn(u32) -> Option<Finding> {
        let start = Instant::now();
        let mut inquiry = Inquiry::new(start, vec![1, 2, 3], LIMITS);
        for (witness, ago) in answers {
            inquiry.answer(*witness, ago.map(|ago| MS * ago));
        }
        move |after| inquiry.finding(start + MS * after)
    }

    #[test]
    fn a_rank_that_somebody_hears_is_alive() {
        let found = inquiry(&[(1, Some(2_050)), (2, Some(300)), (3, Some(100))]);
        assert_eq!(found(10), Some(Finding::LinkDown { witness: 3, ago: MS * 110 }));
    }

    #[test]
    fn a_rank_that_nobody_hears_is_dead_once_all_have_answered_or_the_time_is_up() {
        assert_eq!(
            inquiry(&[(1, Some(2_050)), (2, None), (3, Some(1_900))])(5),
            Some(Finding::Dead)
        );
        let one_is_silent = inquiry(&[(1, Some(2_050)), (2, None)]);
        assert_eq!(one_is_silent(299), None);
        assert_eq!(one_is_silent(300), Some(Finding::Dead));
        assert_eq!(one_is_silent(900), Some(Finding::Overslept));
    }

    #[test]
    fn where_nobody_can_be_asked_it_looks_twice() {
        let start = Instant::now();
        let inquiry = Inquiry::new(start, Vec::new(), LIMITS);
        assert_eq!(inquiry.finding(start), None);
        assert_eq!(inquiry.finding(start + inquiry.patience()), Some(Finding::Dead));
        assert_eq!(inquiry.finding(start + MS * 900), Some(Finding::Overslept));
    }

    #[test]
    fn only_those_who_were_asked_are_believed_and_once() {
        let found = inquiry(&[(7, Some(1)), (1, None), (1, Some(1))]);
        assert_eq!(found(10), None);
    }

    #[test]
    fn a_rank_that_hears_nobody_is_cut_off_and_one_that_hears_its_own_host_may_be() {
        let heard = |host, ms| Heard { host, silence: MS * ms };
        let cut_off = |others: &[Heard<'_>]| is_cut_off("a", others, LIMITS);
        assert!(cut_off(&[heard("b", 2_000), heard("c", 1_600)]));
        assert!(!cut_off(&[heard("b", 2_000), heard("c", 600)]));
        // With one other rank nobody can tell.
        assert!(!cut_off(&[heard("b", 2_000)]));
        assert!(cut_off(&[heard("a", 100), heard("b", 2_000), heard("c", 1_600)]));
        // Of two hosts, each would say so.
        assert!(!cut_off(&[heard("a", 100), heard("b", 2_000), heard("b", 1_600)]));
        assert!(cut_off(&[heard("a", 2_000), heard("a", 1_600)]));
    }
}
