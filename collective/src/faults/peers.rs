//! Which rank listens at which address, as far as this process knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::rendezvous::Entry;

/// Where a rank's sockets are.
#[derive(Clone, Debug, Default)]
pub(super) struct Sockets {
    pub(super) control: Vec<SocketAddr>,
    pub(super) lanes: Vec<SocketAddr>,
}

/// A rank was met before there was a world table.
pub(crate) fn meet(rank: u32, control: SocketAddr) {
    let mut book = book();
    let known = book.entry(rank).or_default();
    known.lanes.clear();
    if !known.control.contains(&control) {
        known.control.push(control);
    }
}

/// The world table, and where this process has found ranks: in a process with several worlds the
/// last one counts.
pub(crate) fn meet_table(table: &[Entry], found: &BTreeMap<u32, SocketAddr>) {
    let mut book = book();
    book.clear();
    for entry in table {
        let at = |port: u16| entry.ways(found.get(&entry.rank).copied(), port, 0);
        let sockets = Sockets {
            control: at(entry.control_port),
            lanes: entry.lane_ports.iter().copied().flat_map(at).collect(),
        };
        book.insert(entry.rank, sockets);
    }
}

/// What is known of a rank.
pub(super) fn sockets(rank: usize) -> Sockets {
    let rank = u32::try_from(rank).ok();
    rank.and_then(|rank| book().get(&rank).cloned()).unwrap_or_default()
}

/// Whether they are one socket; one that listens everywhere has no address but its port.
pub(super) fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    let anywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    let is_same_ip = one.ip().to_canonical() == other.ip().to_canonical();
    one.port() == other.port() && (anywhere || is_same_ip)
}

fn book() -> MutexGuard<'static, BTreeMap<u32, Sockets>> {
    static BOOK: Mutex<BTreeMap<u32, Sockets>> = Mutex::new(BTreeMap::new());
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}
