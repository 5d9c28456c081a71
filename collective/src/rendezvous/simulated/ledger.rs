//! What must hold at every step of a meeting, whatever goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use crate::rendezvous::{Entry, Meeting};

/// What the ranks have said and done so far.
#[derive(Default)]
pub(super) struct Ledger {
    /// Who has acknowledged each epoch: rank and incarnation.
    ready: BTreeMap<u64, BTreeSet<(u32, u128)>>,
    /// The incarnations of each proposed world, in order of rank.
    proposed: BTreeMap<u64, Vec<u128>>,
    /// And of each committed one.
    committed: BTreeMap<u64, Vec<u128>>,
}

impl Ledger {
    /// Rank 0 proposes a world.
    pub(super) fn proposes(&mut self, epoch: u64, table: &[Entry]) -> Result<(), String> {
        let table = table.iter().map(|entry| entry.incarnation).collect();
        match self.proposed.insert(epoch, table) {
            Some(_) => Err(format!("epoch {epoch:x} was proposed twice")),
            None => Ok(()),
        }
    }

    /// Whether a process is the one that was proposed for its rank.
    pub(super) fn is_met(&self, epoch: u64, rank: u32, incarnation: u128) -> Result<(), String> {
        match self.proposed.get(&epoch).and_then(|table| table.get(rank as usize)) {
            Some(proposed) if *proposed == incarnation => Ok(()),
            _ => Err(format!("in epoch {epoch:x} a link to rank {rank} is to another process")),
        }
    }

    /// A rank says that it is ready.
    pub(super) fn acknowledges(&mut self, epoch: u64, rank: u32, incarnation: u128) {
        self.ready.entry(epoch).or_default().insert((rank, incarnation));
    }

    /// A rank begins a world.
    pub(super) fn commits(
        &mut self,
        rank: u32,
        incarnation: u128,
        size: u32,
        meeting: &Meeting,
    ) -> Result<(), String> {
        let epoch = meeting.epoch;
        let problem = |what: &str| Err(format!("rank {rank} began epoch {epoch:x}: {what}"));
        let table: Vec<u128> = meeting.table.iter().map(|entry| entry.incarnation).collect();
        if !meeting.table.iter().map(|entry| entry.rank).eq(0..size) {
            return problem("the table does not name every rank once");
        }
        if table[rank as usize] != incarnation {
            return problem("the table names another process for it");
        }
        if self.proposed.get(&epoch) != Some(&table) {
            return problem("it is not the table that rank 0 proposed");
        }
        let ready = self.ready.entry(epoch).or_default();
        if let Some(other) = (1..size).find(|r| !ready.contains(&(*r, table[*r as usize]))) {
            return problem(&format!("rank {other} had not acknowledged it"));
        }
        if *self.committed.entry(epoch).or_insert_with(|| table.clone()) != table {
            return problem("another rank began it with another table");
        }
        Ok(())
    }
}
