//! Tests: how links and flows between two ranks begin.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use quinn::{Connection, SendStream};

use super::incast::{End, on_runtime};
use super::{LaneAddress, QuicLinks};
use crate::trust::secret::Secret;
use crate::wire::Preamble;

#[test]
fn a_stream_whose_beginning_is_late_holds_up_no_other() {
    on_runtime(async {
        let (links, peer) = pair(Ipv4Addr::LOCALHOST.into());
        let connection = dialled(&links).await;
        let mut late = begin(&connection, &preamble(1)[..5]).await;
        let _punctual = begin(&connection, &preamble(2)).await;
        let first = peer.next_incoming().await.unwrap();
        assert_eq!((first.flow.peer, first.flow.tree), (0, 2));
        late.write_all(&preamble(1)[5..]).await.unwrap();
        assert_eq!(peer.next_incoming().await.unwrap().flow.tree, 1);
    });
}

#[test]
fn a_stream_of_another_world_ends_the_link() {
    on_runtime(async {
        let (links, _peer) = pair(Ipv4Addr::LOCALHOST.into());
        let connection = dialled(&links).await;
        let other = Preamble { epoch: 1, from: 0, group: 0, tree: 0, lane: 0 };
        let _stream = begin(&connection, &other.to_wire()).await;
        let reason = connection.closed().await.to_string();
        assert!(reason.contains("a stream without its preamble"), "{reason}");
    });
}

#[test]
fn peers_of_this_host_are_near_by_whatever_address() {
    let scratch = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let own = scratch.connect(("203.0.113.1", 9)).and_then(|()| scratch.local_addr());
    let Ok(own) = own else {
        eprintln!("skipped: peers_of_this_host_are_near: it has no address but loopback");
        return;
    };
    for ip in [own.ip(), Ipv4Addr::LOCALHOST.into()] {
        on_runtime(async move {
            let (links, peer) = pair(ip);
            let dialler = dialled(&links).await;
            let mut stream = begin(&dialler, &preamble(0)).await;
            stream.write_all(&[0; 1 << 20]).await.unwrap();
            peer.next_incoming().await.unwrap();
            let door = dialled(&peer).await;
            for end in [dialler, door] {
                // More than a network has, from the first packet on.
                let packet = end.stats().path.current_mtu;
                assert!(packet >= 16_000, "{packet} bytes at {ip}");
            }
        });
    }
}

/// The links of two ranks at an address; the first one dials.
fn pair(ip: IpAddr) -> (QuicLinks, QuicLinks) {
    let secret = Secret::random().unwrap().to_line();
    let ends = [0, 1].map(|rank| End::at(ip, rank, &secret));
    let address = |end: &End| {
        let LaneAddress { addresses, leaf } = end.address();
        let at = |address: SocketAddr| SocketAddr::new(ip, address.port());
        LaneAddress { addresses: addresses.into_iter().map(at).collect(), leaf }
    };
    let addresses: Vec<LaneAddress> = ends.iter().map(address).collect();
    let [dialler, door] = ends.map(|end| end.links(addresses.clone()));
    (dialler, door)
}

/// The connection to the other one.
async fn dialled(links: &QuicLinks) -> Connection {
    let peer = 1 - links.0.rank;
    let mut connection = links.0.clone().connection(peer);
    connection.wait_for(Option::is_some).await.unwrap().clone().unwrap()
}

async fn begin(connection: &Connection, bytes: &[u8]) -> SendStream {
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

fn preamble(tree: u16) -> Vec<u8> {
    Preamble { epoch: 0, from: 0, group: 0, tree, lane: 0 }.to_wire().to_vec()
}
