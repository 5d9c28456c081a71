//! Tests: all ranks send to one at once, whose socket holds far less than they have under way.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::sync::Barrier;

use super::{LaneAddress, LaneId, QuicLinks, binding, drops};
use crate::link::Flow;
use crate::plan::costs::SEGMENT_BYTES;
use crate::statistics::Counters;
use crate::trust::Credentials;
use crate::trust::certificates::Membership;
use crate::trust::hello::{Hello, Purpose};
use crate::trust::secret::{Secret, Secrets};

#[test]
fn all_send_to_one_whose_socket_overflows() {
    let secret = Secret::random().unwrap().to_line();
    let ends: Vec<End> = (0..=SENDERS).map(|rank| End::new(rank, &secret)).collect();
    let addresses: Vec<LaneAddress> = ends.iter().map(End::address).collect();
    // Nobody hangs up before all have been answered.
    let end = Arc::new(Barrier::new(ends.len()));
    std::thread::scope(|scope| {
        for rank in ends {
            let (addresses, end) = (addresses.clone(), end.clone());
            scope.spawn(move || on_runtime(rank.run(addresses, end)));
        }
    });
}

/// A rank that has a lane and nothing else.
pub(super) struct End {
    rank: u32,
    socket: UdpSocket,
    membership: Arc<Membership>,
}

impl End {
    fn new(rank: u32, secret: &str) -> Self {
        let end = Self::at(Ipv4Addr::LOCALHOST.into(), rank, secret);
        if rank == 0 {
            // The senders know their own sockets only, and have more under way than this one holds.
            sockopt::set_socket_recv_buffer_size(&end.socket, BUFFER_BYTES).unwrap();
        }
        end
    }

    /// Everywhere, if the address is no loopback address.
    pub(super) fn at(ip: IpAddr, rank: u32, secret: &str) -> Self {
        let socket = match ip.is_loopback() {
            true => binding::bind((ip, 0).into()).unwrap(),
            false => binding::bind_everywhere(0).unwrap(),
        };
        let secrets = Secrets::from_lines(secret, "the test").unwrap();
        let membership = Membership::new(&Credentials::Secrets(secrets), "lanes", rank).unwrap();
        Self { rank, socket, membership: Arc::new(membership) }
    }

    pub(super) fn address(&self) -> LaneAddress {
        let address = self.socket.local_addr().unwrap();
        LaneAddress { addresses: vec![address], leaf: self.membership.leaf_hash() }
    }

    /// Its links, to be made inside a runtime.
    pub(super) fn links(self, addresses: Vec<LaneAddress>) -> QuicLinks {
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            rank: self.rank,
            incarnation: self.rank.into(),
            host: "here".into(),
            pid: 1,
            habitat: 0,
            purpose: Purpose::Lane { epoch: 0, lane: 0 },
        };
        let counters = Arc::new(Counters::new(self.rank, addresses.len(), "quic"));
        QuicLinks::new(self.socket, self.membership, hello, LaneId::only(0), addresses, counters)
            .unwrap()
    }

    async fn run(self, addresses: Vec<LaneAddress>, end: Arc<Barrier>) {
        let own = self.socket.try_clone().unwrap();
        let rank = self.rank;
        let links = self.links(addresses);
        match rank {
            0 => receive(&links).await,
            rank => send(&links, rank).await,
        }
        end.wait().await;
        if rank == 0 {
            let dropped = drops::dropped(&own);
            assert!(dropped.is_some_and(|dropped| dropped > 0), "nothing overflowed: {dropped:?}");
        }
        links.close().await;
    }
}

async fn send(links: &QuicLinks, rank: u32) {
    let mut flow = links.open_flow(Flow { peer: 0, group: 0, tree: 0 }).await.unwrap();
    for number in 0..SEGMENTS {
        flow.write(segment(rank, number).into()).await.unwrap();
    }
    flow.finish();
    flow.answered().await;
}

async fn receive(links: &QuicLinks) {
    let mut readers = Vec::new();
    for rank in 1..=SENDERS {
        // The lower rank dials.
        links.want(rank);
    }
    for _ in 0..SENDERS {
        let mut incoming = links.next_incoming().await.unwrap();
        readers.push(tokio::task::spawn_local(async move {
            let mut found = vec![0; SEGMENT_BYTES as usize];
            for number in 0..SEGMENTS {
                incoming.receiver.exact(&mut found).await.unwrap();
                let expected = segment(incoming.flow.peer, number);
                assert!(found == expected, "segment {number} of rank {}", incoming.flow.peer);
            }
            incoming.receiver.answer();
            incoming.flow.peer
        }));
    }
    let mut senders = Vec::new();
    for reader in readers {
        senders.push(reader.await.unwrap());
    }
    senders.sort_unstable();
    assert_eq!(senders, (1..=SENDERS).collect::<Vec<_>>());
}

fn segment(rank: u32, number: u8) -> Vec<u8> {
    let byte = |index: u64| (index % 251) as u8 ^ number ^ (rank as u8) << 5;
    (0..SEGMENT_BYTES).map(byte).collect()
}

pub(super) fn on_runtime(main: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let main = async { tokio::time::timeout(PATIENCE, main).await };
    tokio::task::LocalSet::new().block_on(&runtime, main).expect("no end");
}

const SENDERS: u32 = 7;
/// 4 MiB from each.
const SEGMENTS: u8 = 65;
/// Two packets of a sender, each of which has sixteen under way.
const BUFFER_BYTES: usize = 64 * 1024;
/// A stall is an end that never comes.
const PATIENCE: Duration = Duration::from_secs(60);
