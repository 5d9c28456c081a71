//! The user's wish that the job ends, told by a signal.

use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;

/// The user's signal that the job shall end.
pub(crate) struct Stop {
    pub(crate) signal: i32,
    pub(crate) since: Instant,
}

impl Stop {
    /// Whether this signal is no second one: `timeout` and systemd signal a process and its whole
    /// group.
    pub(crate) fn is_same_wish(&self, signal: i32, now: Instant) -> bool {
        let within = if signal == SIGTERM { SAME_WISH } else { SAME_KEY };
        self.signal == signal && now.saturating_duration_since(self.since) < within
    }
}

/// A wish that several programs pass on arrives within milliseconds; a person who asks twice has
/// seen that nothing happened yet. As the trainer counts them.
const SAME_WISH: Duration = Duration::from_secs(1);
/// The same for the others, which a person may ask for twice within a second by pressing Ctrl-C
/// again, and `timeout -s INT` within microseconds.
const SAME_KEY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT};

    use super::*;

    #[test]
    fn a_wish_told_twice_is_one() {
        let since = Instant::now();
        let (soon, later) = (since + Duration::from_millis(20), since + SAME_WISH);
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            let stop = Stop { signal, since };
            assert!(stop.is_same_wish(signal, soon), "{signal}");
            assert!(!stop.is_same_wish(signal, later), "{signal}");
            // Only a Ctrl-C can be meant twice so soon.
            assert_eq!(stop.is_same_wish(signal, since + SAME_KEY), signal == SIGTERM, "{signal}");
            let other = if signal == SIGTERM { SIGINT } else { SIGTERM };
            assert!(!stop.is_same_wish(other, soon), "{signal} and {other}");
        }
    }
}
