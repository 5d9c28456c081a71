//! The world table: where each rank is, and by which ways another one reaches it.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::link::shared_memory::Door;
use crate::report;
use crate::trust::certificates::LeafHash;
use crate::trust::hello::MAX_ADDRESSES;

/// One rank in the world table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) rank: u32,
    pub(crate) host: String,
    pub(crate) pid: u32,
    pub(crate) habitat: u64,
    pub(crate) incarnation: u128,
    /// Where rank 0 sees it, unless that is a loopback address, which only its own host reaches;
    /// then where it says that it is. At most [`MAX_WAYS`].
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether its user has chosen them: it is nowhere else.
    pub(crate) chosen: bool,
    pub(crate) control_port: u16,
    /// One for each lane.
    pub(crate) lane_ports: Vec<u16>,
    pub(crate) leaf: LeafHash,
    pub(crate) door: Option<Door>,
}

impl Entry {
    /// The ways to one of its ports: first where it was found already. Link-local addresses of IPv6
    /// are those of the interface `scope` of this host.
    pub(crate) fn ways(&self, found: Option<SocketAddr>, port: u16, scope: u32) -> Vec<SocketAddr> {
        let at_port = |mut address: SocketAddr| {
            address.set_port(port);
            address
        };
        let found = found.filter(|found| !self.chosen || self.addresses.contains(&found.ip()));
        let mut ways: Vec<SocketAddr> = found.map(at_port).into_iter().collect();
        for ip in &self.addresses {
            if ways.iter().any(|way| way.ip() == *ip) {
                continue;
            }
            ways.push(match ip {
                IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                    SocketAddrV6::new(*ip, port, 0, scope).into()
                }
                ip => SocketAddr::new(*ip, port),
            });
        }
        ways
    }
}

/// A world table from rank 0, with hosts that a person can be shown, if it has the right form: of
/// so many ranks, with so many lanes each.
pub(super) fn check(mut table: Vec<Entry>, size: u32, lanes: u16) -> Result<Vec<Entry>> {
    let in_order = table.iter().zip(0..).all(|(entry, rank)| entry.rank == rank);
    let lanes = usize::from(lanes);
    let problem = if table.len() != size as usize || !in_order {
        format!("a world table of {} ranks, or out of order", table.len())
    } else if let Some(entry) = table.iter().find(|entry| entry.lane_ports.len() != lanes) {
        format!("a world table with {} lanes of rank {}", entry.lane_ports.len(), entry.rank)
    } else if let Some(entry) = table.iter().find(|entry| entry.addresses.len() > MAX_WAYS) {
        format!("a world table with {} addresses of rank {}", entry.addresses.len(), entry.rank)
    } else {
        table.iter_mut().for_each(|entry| entry.host = report::printable(&entry.host));
        return Ok(table);
    };
    Err(Error::from(ErrorKind::Protocol { rank: 0, problem }))
}

/// The interface of this host through which a link-local address of IPv6 leads; 0 for others.
pub(super) fn scope_of(address: Option<SocketAddr>) -> u32 {
    match address {
        Some(SocketAddr::V6(address)) => address.scope_id(),
        _ => 0,
    }
}

/// Of a rank: where rank 0 sees it, and where it says that it is.
pub(super) const MAX_WAYS: usize = 1 + MAX_ADDRESSES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_has_chosen_its_addresses_is_found_at_no_other() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut entry = Entry {
            rank: 1,
            host: "node-1".into(),
            pid: 41,
            habitat: 0,
            incarnation: 1,
            addresses: vec![at("10.1.0.7:1").ip(), at("[fe80::7]:1").ip()],
            chosen: false,
            control_port: 1,
            lane_ports: vec![2],
            leaf: [0; 32],
            door: None,
        };
        let ways = |entry: &Entry| entry.ways(Some(at("10.0.0.7:9")), 2, 3);
        assert_eq!(ways(&entry), ["10.0.0.7:2", "10.1.0.7:2", "[fe80::7%3]:2"].map(at));
        entry.chosen = true;
        assert_eq!(ways(&entry), ["10.1.0.7:2", "[fe80::7%3]:2"].map(at));
    }
}
