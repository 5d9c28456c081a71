//! Who has come: the state of rank 0 while it gathers the others. Pure, without clock or socket.

use std::collections::{BTreeMap, BTreeSet};

use super::table::Entry;

/// The claims on the ranks of a world.
pub(super) struct Roster {
    size: u32,
    claims: BTreeMap<u32, Entry>,
    /// While the world is being prepared: its epoch, and who is ready.
    preparing: Option<(u64, BTreeMap<u32, bool>)>,
}

/// What becomes of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Taken,
    /// Another process holds the rank: ask it.
    Held,
}

impl Roster {
    /// Rank 0's own entry is the first claim.
    pub(super) fn new(size: u32, own: Entry) -> Self {
        Self { size, claims: BTreeMap::from([(own.rank, own)]), preparing: None }
    }

    /// A process claims the rank of `entry`; the same process may claim it again.
    pub(super) fn claim(&mut self, entry: Entry) -> Claim {
        match self.claims.get(&entry.rank) {
            Some(holder) if holder.incarnation != entry.incarnation => Claim::Held,
            _ => {
                self.claims.insert(entry.rank, entry);
                Claim::Taken
            }
        }
    }

    /// Who holds a rank.
    pub(super) fn holder(&self, rank: u32) -> Option<&Entry> {
        self.claims.get(&rank)
    }

    /// The holder of a rank is gone. True if a world was being prepared, which cannot be any more.
    pub(super) fn leave(&mut self, rank: u32) -> bool {
        self.claims.remove(&rank).is_some() && self.preparing.take().is_some()
    }

    pub(super) fn missing(&self) -> Vec<u32> {
        (0..self.size).filter(|rank| !self.claims.contains_key(rank)).collect()
    }

    /// Everybody has come and nothing is being prepared yet.
    pub(super) fn is_complete(&self) -> bool {
        self.claims.len() == self.size as usize && self.preparing.is_none()
    }

    /// Begins to prepare a world; its table.
    pub(super) fn prepare(&mut self, epoch: u64) -> Vec<Entry> {
        self.preparing = Some((epoch, BTreeMap::new()));
        self.claims.values().cloned().collect()
    }

    /// By rank: whether it, like all others of its home, has mapped the memory of these.
    pub(super) fn shares(&self) -> Vec<bool> {
        let home = |rank: &u32| self.claims.get(rank).and_then(|e| Some(e.door?.home));
        let Some((_, ready)) = &self.preparing else { return Vec::new() };
        let apart: BTreeSet<u64> =
            ready.iter().filter(|(_, maps)| !**maps).filter_map(|(rank, _)| home(rank)).collect();
        let share = |rank: &u32| home(rank).is_some_and(|home| !apart.contains(&home));
        self.claims.keys().map(share).collect()
    }

    /// A rank is ready for the world of `epoch`; true if now all are.
    pub(super) fn ready(&mut self, rank: u32, epoch: u64, maps: bool) -> bool {
        match &mut self.preparing {
            Some((current, ready)) if *current == epoch && self.claims.contains_key(&rank) => {
                ready.insert(rank, maps);
                ready.len() == self.size as usize
            }
            _ => false,
        }
    }
}

/// `rank 3`, `ranks 1, 2, 5 and 12 more`.
pub(super) fn ranks(ranks: &[u32]) -> String {
    let shown: Vec<String> = ranks.iter().take(MAX_NAMED).map(u32::to_string).collect();
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    let rest = ranks.len().saturating_sub(MAX_NAMED);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{word} {}{more}", shown.join(", "))
}

/// A line of a log.
const MAX_NAMED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rank: u32, incarnation: u128) -> Entry {
        Entry {
            rank,
            host: format!("host-{rank}"),
            pid: 40 + rank,
            habitat: 0,
            incarnation,
            addresses: Vec::new(),
            chosen: false,
            control_port: 1,
            lane_ports: vec![2],
            leaf: [0; 32],
            door: None,
        }
    }

    #[test]
    fn a_world_begins_when_all_are_ready() {
        let mut roster = Roster::new(3, entry(0, 10));
        assert_eq!(roster.missing(), [1, 2]);
        assert_eq!(roster.claim(entry(2, 12)), Claim::Taken);
        assert_eq!(roster.claim(entry(1, 11)), Claim::Taken);
        assert!(roster.is_complete());
        assert_eq!(roster.prepare(7).len(), 3);
        assert!(!roster.is_complete(), "a world was prepared twice");
        assert!(!roster.ready(0, 7, true));
        assert!(!roster.ready(1, 7, true));
        assert!(!roster.ready(1, 7, true), "a rank counted twice");
        assert!(!roster.ready(2, 6, true), "a stale acknowledgement counted");
        assert!(roster.ready(2, 7, true));
    }

    #[test]
    fn a_loss_while_preparing_starts_over() {
        let mut roster = Roster::new(2, entry(0, 10));
        roster.claim(entry(1, 11));
        roster.prepare(7);
        assert!(roster.leave(1));
        assert!(!roster.ready(1, 7, true));
        assert_eq!(roster.missing(), [1]);
        assert!(!roster.leave(1));
        assert_eq!(roster.claim(entry(1, 13)), Claim::Taken);
        assert!(roster.is_complete());
    }

    #[test]
    fn a_second_process_does_not_take_a_held_rank() {
        let mut roster = Roster::new(2, entry(0, 10));
        roster.claim(entry(1, 11));
        assert_eq!(roster.claim(entry(1, 12)), Claim::Held);
        assert_eq!(roster.holder(1).map(|holder| holder.incarnation), Some(11));
        assert_eq!(roster.claim(entry(1, 11)), Claim::Taken, "the same process came back");
    }
}
