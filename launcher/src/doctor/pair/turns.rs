//! How many bytes a pair sends at once, in one direction, and the rate that comes of it.

use std::time::Duration;

use super::{LITTLE_BYTES, MOST_BYTES, PIECE_BYTES, rate};

/// Few bytes at first, then as many as take a few round trips, so that a link that turns slow all
/// of a sudden (a limit on what goes beyond a burst) is left soon.
pub(super) struct Turns {
    round_trip: Duration,
    bytes: i64,
    took: Duration,
    /// What the last turn carried.
    last: Option<i64>,
    last_rate: f64,
}

impl Turns {
    pub(super) fn new(round_trip_ns: i64) -> Self {
        let round_trip = Duration::from_nanos(u64::try_from(round_trip_ns).unwrap_or(0));
        Self { round_trip, bytes: 0, took: Duration::ZERO, last: None, last_rate: 0.0 }
    }

    /// The bytes of the next turn; None once the time is spent.
    pub(super) fn next(&self, spent: Duration, share: Duration) -> Option<i64> {
        let Some(last) = self.last else { return Some(LITTLE_BYTES) };
        let left = MOST_BYTES as i64 - self.bytes;
        if spent >= share || left <= 0 {
            return None;
        }
        let carries = |time: Duration| (self.last_rate * time.as_secs_f64()) as i64;
        let enough = carries(SHORTEST_TURN).min(PIECE_BYTES as i64);
        let bytes = carries(TURN_TRIPS * self.round_trip).max(enough).min(carries(share - spent));
        Some(bytes.min(last.saturating_mul(GROWTH)).max(LITTLE_BYTES).min(left))
    }

    pub(super) fn note(&mut self, bytes: i64, took_ns: i64) {
        let took = Duration::from_nanos(took_ns.max(1) as u64);
        self.bytes += bytes;
        self.took += took;
        (self.last, self.last_rate) = (Some(bytes), rate(bytes as usize, took));
    }

    /// Bytes a second.
    pub(super) fn rate(&self) -> f64 {
        rate(self.bytes as usize, self.took)
    }
}

/// A turn: that much more than the wait for it, else so long, and then at most [`PIECE_BYTES`]:
/// not so much that a link that turns from 10 Gbit/s to 10 Mbit/s takes more than a second for it.
const TURN_TRIPS: u32 = 4;
const SHORTEST_TURN: Duration = Duration::from_millis(1);
/// The second turn is two of what a link of the runtime sends before the first answer
/// (`NETWORK_FIRST_WINDOW`).
const GROWTH: i64 = 16;

#[cfg(test)]
mod tests {
    use super::super::nanoseconds;
    use super::*;

    /// How long one direction takes over a link that carries `burst` bytes at 5 GB/s and all
    /// others at `bytes_per_second`, with so long a round trip, and what it says.
    fn sent(burst: f64, bytes_per_second: f64, trip: Duration, share: Duration) -> (f64, Turns) {
        let mut turns = Turns::new(nanoseconds(trip));
        let (mut spent, mut burst) = (0.0, burst);
        while let Some(bytes) = turns.next(Duration::from_secs_f64(spent), share) {
            let fast = burst.min(bytes as f64);
            burst -= fast;
            let took = fast / 5e9 + (bytes as f64 - fast) / bytes_per_second;
            turns.note(bytes, (took * 1e9) as i64);
            spent += took + trip.as_secs_f64();
        }
        (spent, turns)
    }

    #[test]
    fn a_direction_takes_little_more_than_its_time() {
        let trip = Duration::from_micros(100);
        let share = Duration::from_millis(60);
        // 10 Mbit/s beyond a burst, and a link of 100 kB/s.
        for burst in [0.0, 1e5, 1e6, 30e6, 60e6] {
            let (spent, turns) = sent(burst, 1.25e6, trip, share);
            assert!(spent < 2.0, "{burst}: {spent} s, {} bytes", turns.bytes);
        }
        let (spent, turns) = sent(0.0, 1e5, trip, share);
        assert!(spent < 0.2, "{spent} s");
        assert!((turns.rate() / 1e5 - 1.0).abs() < 0.01);
        // A fast one is used: most of the time, or all the bytes there may be.
        for bytes_per_second in [1e8, 1e9, 5e9] {
            let (spent, turns) = sent(0.0, bytes_per_second, trip, share);
            assert!(spent < 0.07, "{spent} s");
            let most = (bytes_per_second * 0.06).min(MOST_BYTES as f64);
            assert!(turns.bytes as f64 > most * 0.5, "{} of {most}", turns.bytes);
            assert!((turns.rate() / bytes_per_second - 1.0).abs() < 0.01);
        }
    }
}
