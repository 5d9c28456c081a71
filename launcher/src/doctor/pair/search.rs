//! The search for the largest packet, by the packets that a link sends, and when it is over.

use std::time::{Duration, Instant};

pub(super) struct Search {
    probes: u64,
    packets: u64,
    /// When it was seen to have sent the last probe, and the answered words since then with which
    /// packets left: neither a thread that sleeps nor a clock alone ends the search.
    since: Instant,
    words: u32,
    /// The largest that has arrived: a full queue may make the link smaller again.
    pub(super) payload: u16,
    is_over: bool,
    /// Something that may fill a queue was sent before it was over: what was lost says nothing.
    is_disturbed: bool,
}

impl Search {
    pub(super) fn new(since: Instant) -> Self {
        let (probes, packets, words, payload) = (0, 0, 0, 0);
        Self { probes, packets, since, words, payload, is_over: false, is_disturbed: false }
    }

    /// Whether there is no more to learn, at a word that was answered: while words go there and
    /// back the search sends something every few round trips.
    pub(super) fn look(&mut self, sent: Sent, now: Instant, round_trip: Duration) -> bool {
        let Sent { probes, packets, payload } = sent;
        self.payload = self.payload.max(payload);
        if probes == 0 || probes != self.probes {
            (self.probes, self.since, self.words) = (probes, now, 0);
        } else if packets > self.packets {
            self.words += 1;
        }
        self.packets = packets;
        let is_quiet =
            now.saturating_duration_since(self.since) >= QUIET + QUIET_TRIPS * round_trip;
        self.is_over = is_quiet && self.words >= QUIET_WORDS;
        self.is_over || self.is_disturbed
    }

    pub(super) fn disturb(&mut self) {
        self.is_disturbed |= !self.is_over;
    }

    /// Whether no larger packet arrives.
    pub(super) fn is_sure(&self) -> bool {
        self.is_over && !self.is_disturbed
    }
}

/// What a link has sent so far.
#[derive(Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) probes: u64,
    pub(super) packets: u64,
    pub(super) payload: u16,
}

/// A lost probe is noticed after three later packets or 9/8 of a round trip, and acknowledgements
/// may wait for 2 ms; a busy host takes its time.
const QUIET: Duration = Duration::from_millis(25);
const QUIET_TRIPS: u32 = 4;
/// A probe is sent three times before it counts as lost, and each takes a word or two.
const QUIET_WORDS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that has sent so many probes, and so many packets.
    fn link(probes: u64, packets: u64) -> Sent {
        Sent { probes, packets, payload: 1_452 }
    }

    #[test]
    fn a_search_is_over_once_it_sends_nothing_more() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut search = Search::new(begun);
        let trip = Duration::from_millis(10);
        // It has not begun.
        assert!(!search.look(Sent::default(), at(400), trip));
        assert!(!search.look(link(0, 1), at(500), trip));
        assert!(!search.look(link(3, 10), at(510), trip));
        for word in 0..20 {
            // Words alone do not end it.
            assert!(!search.look(link(3, 11 + word), at(511 + word), trip));
        }
        assert!(!search.look(link(4, 40), at(574), trip));
        for word in 0..7 {
            // Nor does time alone: this thread has slept.
            assert!(!search.look(link(4, 41 + word), at(5_000), trip));
        }
        // And nor do words with which nothing left.
        assert!(!search.look(link(4, 47), at(5_001), trip));
        assert!(search.look(link(4, 48), at(5_002), trip) && search.is_sure());
        // The path has changed.
        assert!(!search.look(link(5, 49), at(5_003), trip));
    }

    #[test]
    fn a_search_that_a_full_queue_disturbs_says_nothing() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(1);
        let trip = Duration::from_millis(1);
        for is_over in [true, false] {
            let mut search = Search::new(begun);
            search.look(link(3, 1), begun, trip);
            for word in 0..8 * u64::from(is_over) {
                search.look(link(3, 2 + word), later, trip);
            }
            search.disturb();
            // Nobody waits for it any more.
            let smaller = Sent { payload: 1_200, ..link(3, 100) };
            assert!(search.look(smaller, later, trip));
            for word in 0..20 {
                search.look(link(3, 101 + word), later, trip);
            }
            assert_eq!((search.is_sure(), search.payload), (is_over, 1_452));
        }
    }
}
