//! Second claims of a rank: its holder is asked, and heard or found silent. Pure: the
//! clock passed in.

use std::time::{Duration, Instant};

use super::Knock;
use crate::liveness::Judge;

/// Processes that claim a rank whose holder is being asked.
pub(super) struct Challenges {
    waiting: Vec<Challenge>,
    judge: Judge,
    looked: Instant,
    look_every: Duration,
}

struct Challenge {
    knock: Knock,
    /// Since when the holder has been asked.
    asked: Instant,
}

impl Challenges {
    pub(super) fn new(heartbeat: Duration, now: Instant) -> Self {
        Self {
            waiting: Vec::new(),
            judge: Judge::new(Some(heartbeat * ASKED_HEARTBEATS), now),
            looked: now,
            look_every: (heartbeat / LOOKS_PER_HEARTBEAT).min(LONGEST_LOOK),
        }
    }

    /// From now on the holder of the rank is asked.
    pub(super) fn add(&mut self, now: Instant, knock: Knock) {
        if self.waiting.is_empty() {
            // The pause until now was no stall.
            self.judge.is_awake(now);
            self.looked = now;
        }
        self.waiting.push(Challenge { knock, asked: now });
    }

    /// The ranks whose holders are being asked.
    pub(super) fn asked(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().map(|challenge| challenge.knock.hello.rank)
    }

    /// When to look at them again, if any is being asked.
    pub(super) fn wake(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.looked + self.look_every)
    }

    /// Whether it is time to judge the holders by [`Self::silent`].
    pub(super) fn look(&mut self, now: Instant) -> bool {
        if self.wake().is_none_or(|wake| now < wake) {
            return false;
        }
        self.looked = now;
        let is_awake = self.judge.is_awake(now);
        if !is_awake {
            // The holders may have been heard meanwhile: they are asked anew.
            self.waiting.iter_mut().for_each(|challenge| challenge.asked = now);
        }
        is_awake
    }

    /// A rank whose holder was asked and has not been heard.
    pub(super) fn silent(&self, now: Instant) -> Option<u32> {
        let mut silent = self.waiting.iter().filter(|c| self.judge.silence(c.asked, now).is_some());
        silent.next().map(|challenge| challenge.knock.hello.rank)
    }

    /// The holder was heard at that time: those who claimed its rank before, in order.
    pub(super) fn heard(&mut self, rank: u32, at: Instant) -> Vec<Knock> {
        self.take(|challenge| challenge.knock.hello.rank == rank && at > challenge.asked)
    }

    /// All who claim the rank, in order.
    pub(super) fn of(&mut self, rank: u32) -> Vec<Knock> {
        self.take(|challenge| challenge.knock.hello.rank == rank)
    }

    fn take(&mut self, which: impl Fn(&Challenge) -> bool) -> Vec<Knock> {
        let all = std::mem::take(&mut self.waiting);
        let (taken, others): (Vec<_>, Vec<_>) = all.into_iter().partition(which);
        self.waiting = others;
        taken.into_iter().map(|challenge| challenge.knock).collect()
    }
}

/// The holder of a rank that another process claims has this many heartbeats to be heard: two may
/// be lost.
const ASKED_HEARTBEATS: u32 = 3;
/// A newcomer waits for the answer.
const LOOKS_PER_HEARTBEAT: u32 = 10;
/// Well below the pause after which the judge takes its own thread for stalled.
const LONGEST_LOOK: Duration = Duration::from_millis(100);
