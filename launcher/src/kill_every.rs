//! `train --kill-every`: ends ranks by SIGKILL in turn, to show that the training ends well.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// When the next rank is killed, and which.
pub(crate) struct KillEvery {
    every: Duration,
    ranks: usize,
    /// As many as there are restarts: the last start is left in peace.
    limit: usize,
    killed: Cell<usize>,
    next: Cell<Instant>,
}

impl KillEvery {
    /// Time counts from `now`.
    pub(crate) fn new(every: Duration, ranks: usize, limit: usize, now: Instant) -> Self {
        Self { every, ranks, limit, killed: Cell::new(0), next: Cell::new(now + every) }
    }

    /// When the next is due; None after the last.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.killed.get() < self.limit).then(|| self.next.get())
    }

    /// The rank whose turn it is, and which of how many kills that is; None where none is due.
    pub(crate) fn turn(&self, now: Instant) -> Option<(usize, String)> {
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        let kill = self.killed.get() + 1;
        self.killed.set(kill);
        self.next.set(now + self.every);
        // Rank 0 last: it is the one whose loss looks worst.
        let rank = kill % self.ranks;
        Some((rank, format!("{kill} of {}", self.limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_in_turn_until_the_restarts_are_used_up() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let kills = KillEvery::new(10 * second, 3, 4, start);
        assert_eq!(kills.turn(start + 9 * second), None);
        let mut ranks = Vec::new();
        for at in 0..100 {
            ranks.extend(kills.turn(start + at * second).map(|(rank, _)| (at, rank)));
        }
        assert_eq!(ranks, [(10, 1), (20, 2), (30, 0), (40, 1)]);
        assert_eq!(kills.due(), None);
    }
}
