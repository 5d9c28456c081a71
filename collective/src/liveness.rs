//! Judges silence: pure, with the clock passed in.

pub(crate) mod inquiry;
#[cfg(test)]
mod simulated;

use std::time::{Duration, Instant};

/// Decides when a silent peer counts as dead.
pub(crate) struct Judge {
    dead_after: Option<Duration>,
    own_stall: Duration,
    looked: Instant,
}

impl Judge {
    /// `dead_after` None: silence is never death.
    pub(crate) fn new(dead_after: Option<Duration>, now: Instant) -> Self {
        Self { dead_after, own_stall: OWN_STALL, looked: now }
    }

    /// Of peers that are heard so often: a watcher that misses one of their heartbeats may miss all
    /// that it bears to miss. It must look several times as often.
    pub(crate) fn of_heartbeats(self, heartbeat: Duration) -> Self {
        Self { own_stall: heartbeat.clamp(SHORTEST_STALL, OWN_STALL), ..self }
    }

    /// To be called often. False if this watcher was itself not scheduled for long: then it may
    /// have missed what its peers sent, and must begin to count anew.
    pub(crate) fn is_awake(&mut self, now: Instant) -> bool {
        let awake = now.saturating_duration_since(self.looked) < self.own_stall;
        self.looked = now;
        awake
    }

    /// How long a peer last heard at `heard` has been silent, if that is too long.
    pub(crate) fn silence(&self, heard: Instant, now: Instant) -> Option<Duration> {
        let silence = now.saturating_duration_since(heard);
        self.dead_after.filter(|limit| silence >= *limit).map(|_| silence)
    }
}

/// A watcher that was not scheduled for this long discards its silence counts.
const OWN_STALL: Duration = Duration::from_millis(500);
/// Shorter ones are too common to begin anew after each.
const SHORTEST_STALL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_only_beyond_the_limit() {
        let start = Instant::now();
        let judge = Judge::new(Some(Duration::from_secs(2)), start);
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(judge.silence(start, after(1_999)), None);
        assert_eq!(judge.silence(start, after(2_100)), Some(Duration::from_millis(2_100)));
        assert_eq!(Judge::new(None, start).silence(start, after(3_600_000)), None);
    }

    #[test]
    fn a_watcher_that_slept_does_not_judge() {
        let start = Instant::now();
        let mut judge = Judge::new(Some(Duration::from_secs(2)), start);
        assert!(judge.is_awake(start + Duration::from_millis(100)));
        assert!(!judge.is_awake(start + Duration::from_millis(900)));
        assert!(judge.is_awake(start + Duration::from_millis(1_000)));
    }

    #[test]
    fn what_is_a_stall_goes_by_the_heartbeat() {
        let start = Instant::now();
        let awake_after = |heartbeat, pause| {
            let judge = Judge::new(Some(Duration::from_secs(2)), start);
            let mut judge = judge.of_heartbeats(Duration::from_millis(heartbeat));
            judge.is_awake(start + Duration::from_millis(pause))
        };
        assert!(awake_after(100, 99) && !awake_after(100, 100));
        assert!(awake_after(5_000, 499) && !awake_after(5_000, 500));
        assert!(awake_after(1, 49) && !awake_after(1, 50));
    }
}
