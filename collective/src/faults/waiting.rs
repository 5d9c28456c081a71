//! Datagrams that are on their way: delayed, or held back until another one has passed.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::weather::Fate;

/// In the order in which they are due. `D` is what waits.
#[derive(Debug)]
pub(super) struct Waiting<D> {
    due: BTreeMap<Key, D>,
    /// Those that are held back, by peer.
    held: HashMap<SocketAddr, Vec<Key>>,
    /// When the last one that was delayed is due, by peer: jitter keeps the order.
    latest: HashMap<SocketAddr, Instant>,
    count: u64,
}

type Key = (Instant, u64);

impl<D> Waiting<D> {
    pub(super) fn new() -> Self {
        Self { due: BTreeMap::new(), held: HashMap::new(), latest: HashMap::new(), count: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Takes in one copy of a datagram from or to `peer`, at `now`.
    pub(super) fn push(&mut self, peer: SocketAddr, fate: Fate, now: Instant, datagram: D) {
        if fate.is_held {
            let key = self.insert(now + fate.delay + HELD_LIMIT, datagram);
            self.held.entry(peer).or_default().push(key);
            return;
        }
        let latest = self.latest.entry(peer).or_insert(now);
        *latest = (*latest).max(now + fate.delay);
        let due = *latest;
        self.insert(due, datagram);
        self.release(peer, due);
    }

    /// One has passed at `now`: those held back follow it. Whether there were any.
    pub(super) fn release(&mut self, peer: SocketAddr, now: Instant) -> bool {
        let held = self.held.remove(&peer).unwrap_or_default();
        for key in &held {
            if let Some(datagram) = self.due.remove(key) {
                self.insert(now, datagram);
            }
        }
        !held.is_empty()
    }

    /// The next one that is due at `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<D> {
        let entry = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|(key, _)| key.0)
    }

    fn insert(&mut self, due: Instant, datagram: D) -> Key {
        self.count += 1;
        let key = (due, self.count);
        self.due.insert(key, datagram);
        key
    }
}

/// Where nothing follows, what is held back comes after this: well below the first retransmission
/// on a network, so that it is late and not lost.
const HELD_LIMIT: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    const PASSES: Fate = Fate { copies: 1, delay: Duration::ZERO, is_held: false, wrong: None };

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn what_is_held_comes_after_the_next_to_the_same_peer() {
        let (now, mut waiting) = (Instant::now(), Waiting::new());
        waiting.push(peer(1), Fate { is_held: true, ..PASSES }, now, "held");
        waiting.push(peer(2), PASSES, now, "elsewhere");
        assert_eq!(waiting.take(now), Some("elsewhere"));
        assert_eq!(waiting.take(now), None);
        waiting.push(peer(1), PASSES, now, "next");
        assert_eq!((waiting.take(now), waiting.take(now)), (Some("next"), Some("held")));
        assert!(waiting.is_empty());
    }

    #[test]
    fn what_is_held_comes_by_itself_in_the_end() {
        let (now, mut waiting) = (Instant::now(), Waiting::new());
        waiting.push(peer(1), Fate { is_held: true, ..PASSES }, now, "held");
        assert_eq!(waiting.next(), Some(now + HELD_LIMIT));
        assert_eq!(waiting.take(now + HELD_LIMIT), Some("held"));
    }

    #[test]
    fn jitter_keeps_the_order() {
        let (now, mut waiting) = (Instant::now(), Waiting::new());
        let after = |ms| Fate { delay: Duration::from_millis(ms), ..PASSES };
        waiting.push(peer(1), after(9), now, 1);
        waiting.push(peer(1), after(5), now, 2);
        waiting.push(peer(2), after(5), now, 3);
        let later = now + Duration::from_millis(9);
        let order: Vec<_> = std::iter::from_fn(|| waiting.take(later)).collect();
        assert_eq!(order, [3, 1, 2]);
    }
}
