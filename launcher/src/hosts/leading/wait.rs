//! How long hosts are waited for.

use std::time::{Duration, Instant};

pub(super) struct Wait {
    /// When those that are not ready are given up.
    pub(super) ready: Instant,
    /// When it is said next who they are.
    pub(super) say: Instant,
    /// When all are given up whose ranks have not ended; None while they need not end.
    pub(super) end: Option<Instant>,
}

impl Wait {
    pub(super) fn until_ready(now: Instant) -> Self {
        Self { ready: now + READY, say: now + SAY_AFTER, end: None }
    }

    /// So long nothing could come.
    pub(super) fn shift(&mut self, by: Duration) {
        (self.ready, self.say) = (self.ready + by, self.say + by);
        self.end = self.end.map(|end| end + by);
    }

    /// What is due first.
    pub(super) fn next(&self, has_started: bool) -> Option<Instant> {
        match has_started {
            true => self.end,
            false => Some(self.end.unwrap_or(self.ready).min(self.ready).min(self.say)),
        }
    }
}

/// How long nobody wonders why nothing happens; as long as the library waits with its first line.
pub(super) const SAY_AFTER: Duration = Duration::from_secs(10);
/// How long a host may take to be ready, as the library waits for a rank.
pub(super) const READY: Duration = Duration::from_secs(60);
/// What hosts take to kill their ranks and to say so.
pub(super) const GIVE_UP: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_and_time_in_which_nothing_could_come_does_not_count() {
        let now = Instant::now();
        let mut wait = Wait::until_ready(now);
        assert_eq!(wait.next(false), Some(now + SAY_AFTER));
        assert_eq!(wait.next(true), None);
        wait.say = now + READY * 2;
        assert_eq!(wait.next(false), Some(now + READY));
        wait.end = Some(now + GIVE_UP);
        wait.shift(READY);
        assert_eq!(wait.next(true), Some(now + GIVE_UP + READY));
        assert_eq!(wait.next(false), Some(now + GIVE_UP + READY));
        assert_eq!(wait.ready, now + READY * 2);
    }
}
