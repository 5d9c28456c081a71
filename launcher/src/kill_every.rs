//! `train --kill-every`: ends ranks by SIGKILL in turn, to show that the training ends well.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::duration;

/// When the next rank is killed, and which.
pub(crate) struct KillEvery {
    every: Duration,
    ranks: usize,
    /// As many as there are restarts: the last start is left in peace.
    limit: usize,
    killed: Cell<usize>,
    /// None after the last.
    next: Cell<Option<Instant>>,
}

impl KillEvery {
    /// Time counts from `now`.
    pub(crate) fn new(every: Duration, ranks: usize, limit: usize, now: Instant) -> Self {
        Self { every, ranks, limit, killed: Cell::new(0), next: Cell::new(Some(now + every)) }
    }

    /// All ranks are started, after so many restarts: a failure of their own takes one, too.
    pub(crate) fn starts(&self, restart: usize) {
        if restart >= self.limit {
            self.next.set(None);
        }
    }

    /// That nobody was killed, where the job was too short for it.
    pub(crate) fn unseen(&self) -> Option<String> {
        let every = duration::text(self.every);
        (self.killed.get() == 0).then(|| {
            format!(
                "--kill-every: nobody was killed, the job was done within {every}; a shorter time \
                 or more --epochs show it"
            )
        })
    }

    /// When the next is due; None after the last.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.get()
    }

    /// The rank whose turn it is, and which of how many kills that is; None where none is due, and
    /// from then on where the training `is_done`.
    pub(crate) fn turn(&self, now: Instant, is_done: &dyn Fn() -> bool) -> Option<(usize, String)> {
        self.due().filter(|due| *due <= now)?;
        if is_done() {
            self.next.set(None);
            return None;
        }
        let kill = self.killed.get() + 1;
        self.killed.set(kill);
        self.next.set(Some(now + self.every));
        // Rank 0 last: it is the one whose loss looks worst.
        let rank = kill % self.ranks;
        Some((rank, format!("{kill} of {}", self.limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second and the rank of every kill, where each has the ranks started again.
    fn kills(
        kills: &KillEvery,
        start: Instant,
        restarts: usize,
        done_at: u32,
    ) -> Vec<(u32, usize)> {
        let second = Duration::from_secs(1);
        let mut ranks = Vec::new();
        kills.starts(restarts);
        for at in 0..100 {
            if let Some((rank, _)) = kills.turn(start + at * second, &|| at >= done_at) {
                ranks.push((at, rank));
                kills.starts(restarts + ranks.len());
            }
        }
        ranks
    }

    #[test]
    fn each_in_turn_until_the_restarts_are_used_up() {
        let start = Instant::now();
        let every = || KillEvery::new(Duration::from_secs(10), 3, 4, start);
        assert_eq!(every().turn(start + Duration::from_secs(9), &|| false), None);
        let all = every();
        assert_eq!(kills(&all, start, 0, 100), [(10, 1), (20, 2), (30, 0), (40, 1)]);
        assert_eq!((all.due(), all.unseen()), (None, None));
        // Two restarts are used up by failures of the job's own.
        assert_eq!(kills(&every(), start, 2, 100), [(10, 1), (20, 2)]);
        let none = every();
        none.starts(4);
        assert_eq!(none.due(), None);
        assert!(none.unseen().is_some_and(|message| message.contains("within 10 s")));
    }

    #[test]
    fn nobody_is_killed_who_is_done() {
        let start = Instant::now();
        let every = KillEvery::new(Duration::from_secs(10), 3, 4, start);
        assert_eq!(kills(&every, start, 0, 20), [(10, 1)]);
        assert_eq!(every.due(), None);
    }
}
