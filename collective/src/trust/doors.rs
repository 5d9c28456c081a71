//! What the doors of a job withstand: limits before a peer has proved itself, and strangers at a
//! job that goes on.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream, TransportConfig};

use super::certificates::Membership;
use super::hello::{self, DialError, Hello, Purpose, Welcomed};
use super::secret::Secret;
use super::strangers::{PATIENCE, config, of_secrets, on_runtime, open, said_by};
use super::verifier::Seen;
use crate::communicator::Communicator;
use crate::config::Config;
use crate::link::quic::binding;
use crate::link::quic::endpoint::{self, Caller, OpenEndpoint};
use crate::link::quic::tuning::{HALF_OPEN_BEFORE_RETRY, HALF_OPEN_MAX, Traffic};
use crate::link::quic::{LaneAddress, LaneId, QuicLinks};
use crate::reduce::ReduceOp;
use crate::statistics::Counters;
use crate::wire::Preamble;

#[test]
fn an_address_must_prove_itself_above_sixteen_half_open_connections() {
    let secret = Secret::random().unwrap();
    let membership = of_secrets(&[&secret], 0);
    on_runtime(async {
        let firsts = first_packets(&membership, 2 * HALF_OPEN_BEFORE_RETRY).await;
        let (address, _counters) = door(of_secrets(&[&secret], 0));
        let mut answers = Vec::new();
        for (number, first) in firsts.iter().enumerate() {
            let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            socket.send_to(first, address).await.unwrap();
            if number < HALF_OPEN_BEFORE_RETRY {
                // It may be one of two that are answered together.
                answers.push(socket);
                continue;
            }
            let mut answer = [0; 2048];
            let length = socket.recv(&mut answer).await.unwrap();
            assert_eq!(answer[0] & 0xf0, 0xf0, "packet {number}: no retry");
            assert!(length < 200, "an answer to an address that may be another's: {length} bytes");
        }
        for socket in answers {
            let mut answer = [0; 2048];
            if let Ok(length) = socket.try_recv(&mut answer) {
                assert_ne!(answer[0] & 0xf0, 0xf0, "a retry of {length} bytes, too early");
            }
        }
    });
}

#[test]
fn half_open_connections_are_few_and_end_at_their_deadline() {
    let secret = Secret::random().unwrap();
    let guest = of_secrets(&[&secret], 1);
    on_runtime(async {
        let (address, counters) = door(of_secrets(&[&secret], 0));
        let (_, endpoint) = open(&guest);
        let began = Instant::now();
        let mut silent = Vec::new();
        let connect = || {
            let tls = config(guest.client(0, Seen::default()).unwrap());
            endpoint.connect_with(tls, address, &guest.name_of(0)).unwrap()
        };
        for number in 0..HALF_OPEN_MAX {
            let connection = connect().await;
            // Where that takes longer than the deadline there is nothing to be seen.
            if began.elapsed() > Duration::from_secs(4) {
                return;
            }
            silent.push(connection.unwrap_or_else(|error| panic!("{number}: {error}")));
        }
        let refused = connect().await.err().map(|error| error.to_string());
        if began.elapsed() < Duration::from_secs(4) {
            let refused = refused.expect("one too many was let in");
            assert!(refused.contains("refused"), "{refused}");
            assert_eq!(count(&counters, "too_many"), 1);
        }
        // They said no hello: each is dropped at the deadline, and the door is open again.
        for connection in &silent {
            connection.closed().await;
        }
        assert_eq!(count(&counters, "no_hello"), HALF_OPEN_MAX as u64);
        connect().await.expect("the door is open again");
    });
}

#[test]
fn a_job_goes_on_while_others_are_refused_at_each_of_its_doors() {
    let secret = Secret::random().unwrap();
    let line = secret.to_line();
    let (control, lane) = two_ports();
    let settings = |rank| {
        let config = Config::new(rank, 2, &control.to_string()).unwrap().secret(&line).unwrap();
        let mut config = config.job("job").connect_timeout(PATIENCE).timeout(PATIENCE);
        // Rank 0's data is one above.
        config.port = if rank == 0 { control.port() } else { 0 };
        config
    };
    let stop = &AtomicBool::new(false);
    let (met, meeting) = std::sync::mpsc::channel();
    let rank = |number| {
        let world = Communicator::connect(settings(number)).unwrap();
        met.send(()).unwrap();
        loop {
            let mut values = [1u32, u32::from(stop.load(Ordering::Relaxed))];
            world.all_reduce(&mut values, ReduceOp::Sum).unwrap();
            assert_eq!(values[0], 2);
            if values[1] == 2 {
                let refused = world.stats().refused_connections;
                world.close().unwrap();
                return refused;
            }
        }
    };
    std::thread::scope(|scope| {
        let zero = scope.spawn(|| rank(0));
        let stranger = of_secrets(&[&secret], 1);
        let join = Purpose::Join {
            settings: settings(1).job_wide(),
            addresses: Vec::new(),
            chosen: false,
            control_port: 1,
            lane_ports: vec![1],
            door: None,
        };
        let other_version = Hello { version: "9.9.9".into(), purpose: join.clone(), ..said_by(1) };
        let told = refusal(&stranger, control, &other_version);
        let ours = env!("CARGO_PKG_VERSION");
        assert_eq!(told, format!("rank 1 runs allfold 9.9.9, rank 0 runs {ours}"));
        let one = scope.spawn(|| rank(1));
        // A process of an earlier start, with the job's secret, that comes late.
        let stale = |purpose| Hello { version: ours.into(), purpose, ..said_by(1) };
        meeting.recv_timeout(PATIENCE).expect("the ranks have not met");
        let told = refusal(&stranger, control, &stale(join));
        assert!(told.starts_with("the job is already running with rank 1 at "), "{told}");
        let told = refusal(&stranger, control, &stale(Purpose::Watch { epoch: 7 }));
        assert_eq!(told, "this rank is in another world by now");
        let told = refusal(&stranger, lane, &stale(Purpose::Lane { epoch: 7, lane: 0 }));
        assert_eq!(told, "this lane belongs to another run of the job");
        stop.store(true, Ordering::Relaxed);
        let refused = zero.join().unwrap();
        one.join().unwrap();
        for reason in ["rendezvous", "running", "other_run"] {
            let counted = refused.iter().find(|count| count.reason == reason).unwrap();
            assert!(counted.count >= 1, "{refused:?}");
        }
    });
}

#[test]
fn a_member_that_reads_nothing_holds_up_no_other_at_the_door() {
    let secret = Secret::random().unwrap();
    let line = secret.to_line();
    let (place, _) = two_ports();
    let settings = move |rank| {
        let config = Config::new(rank, 3, &place.to_string()).unwrap().secret(&line).unwrap();
        config.job("job").connect_timeout(PATIENCE).timeout(PATIENCE)
    };
    let join = Purpose::Join {
        settings: settings(2).job_wide(),
        addresses: Vec::new(),
        chosen: false,
        control_port: 1,
        lane_ports: vec![1],
        door: None,
    };
    let rank = move |number| {
        let config = settings(number);
        // Not a scope: one that hangs must not keep the test from failing.
        std::thread::spawn(move || Communicator::connect(config).unwrap().close().unwrap())
    };
    let zero = rank(0);
    on_runtime(async {
        let (one, two) = (of_secrets(&[&secret], 1), of_secrets(&[&secret], 2));
        let (_, endpoint) = open(&two);
        let version = env!("CARGO_PKG_VERSION").to_string();
        let hello = Hello { version, purpose: join.clone(), ..said_by(2) };
        let (connection, _stream) = silent_member(&endpoint, &two, place, &hello).await;
        let other_version = Hello { version: "9.9.9".into(), purpose: join, ..said_by(1) };
        for _ in 0..3 {
            let told = told(&one, place, &other_version).await;
            assert!(told.starts_with("rank 1 runs allfold 9.9.9"), "{told}");
        }
        assert_eq!(connection.close_reason(), None);
    });
    for rank in [rank(1), rank(2), zero] {
        rank.join().expect("the ranks that read have met");
    }
}

#[test]
fn a_peer_has_one_data_link_and_one_attempt_at_it() {
    const EPOCH: u64 = 7;
    let secret = Secret::random().unwrap();
    let [host, guest] = [1, 0].map(|rank| Arc::new(of_secrets(&[&secret], rank)));
    on_runtime(async {
        let socket = binding::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        let of = |membership: &Membership| LaneAddress {
            addresses: vec![address],
            leaf: membership.leaf_hash(),
        };
        let addresses = vec![of(&guest), of(&host)];
        let counters = Arc::new(Counters::new(1, 2, "quic"));
        let links =
            QuicLinks::new(socket, host, said_by(1), LaneId::only(EPOCH), addresses, counters)
                .unwrap();
        let (_, endpoint) = open(&guest);
        let caller =
            Caller { endpoint: &endpoint, membership: &guest, traffic: Traffic::Data { lanes: 1 } };
        let hello = Hello { purpose: Purpose::Lane { epoch: EPOCH, lane: 0 }, ..said_by(0) };
        let dial = async || caller.dial(1, address, &hello, PATIENCE).await.unwrap();
        let carries = async |link: &Welcomed, group| {
            let mut stream = link.connection.open_uni().await.unwrap();
            let preamble = Preamble { epoch: EPOCH, from: 0, group, tree: 0, lane: 0 };
            stream.write_all(&preamble.to_wire()).await.unwrap();
            assert_eq!(links.next_incoming().await.unwrap().flow.group, group);
        };
        // It never says that it has heard its welcome, and dials again.
        let first = dial().await;
        let mut second = dial().await;
        first.connection.closed().await;
        second.sender.finish().unwrap();
        carries(&second, 1).await;
        // One link takes the other's place, and only once it stands.
        let mut third = dial().await;
        carries(&second, 2).await;
        third.sender.finish().unwrap();
        second.connection.closed().await;
        carries(&third, 3).await;
    });
}

/// What a process is told that is refused.
fn refusal(guest: &Membership, address: SocketAddr, hello: &Hello) -> String {
    on_runtime(told(guest, address, hello))
}

async fn told(guest: &Membership, address: SocketAddr, hello: &Hello) -> String {
    let (_, endpoint) = open(guest);
    let caller = Caller { endpoint: &endpoint, membership: guest, traffic: Traffic::Control };
    loop {
        match caller.dial(0, address, hello, PATIENCE).await.err().expect("let in") {
            DialError::Refused(told, _) => return told,
            // A reason that may pass; or nobody listens there yet.
            DialError::Retry(told) if !told.contains("127.0.0.1") => return told,
            DialError::Retry(_) | DialError::Busy(_) => {}
            DialError::Final(told) | DialError::Elsewhere(told) => panic!("{told}"),
        }
    }
}

/// A member that says hello to rank 0 and lets it send nothing on that stream.
pub(super) async fn silent_member(
    endpoint: &OpenEndpoint,
    membership: &Membership,
    address: SocketAddr,
    hello: &Hello,
) -> (Connection, (SendStream, RecvStream)) {
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(0u32.into());
    transport.datagram_receive_buffer_size(Some(1 << 16));
    let transport = Arc::new(transport);
    loop {
        let mut client = config(membership.client(0, Seen::default()).unwrap());
        client.transport_config(transport.clone());
        let connecting = endpoint.connect_with(client, address, &membership.name_of(0)).unwrap();
        // Or nobody listens there yet.
        let Ok(connection) = connecting.await else { continue };
        let mut streams = connection.open_bi().await.unwrap();
        hello::send(&mut streams.0, hello).await.unwrap();
        return (connection, streams);
    }
}

/// A door that lets everybody in and keeps them there.
fn door(membership: Membership) -> (SocketAddr, Arc<Counters>) {
    let (address, endpoint) = open(&membership);
    let counters = Arc::new(Counters::new(0, 2, "quic"));
    let inside = Rc::new(std::cell::RefCell::new(Vec::new()));
    let each = move |greeted| inside.borrow_mut().push(greeted);
    let accepting = endpoint::accept(endpoint, Arc::new(membership), counters.clone(), each);
    tokio::task::spawn_local(accepting);
    (address, counters)
}

fn count(counters: &Counters, reason: &str) -> u64 {
    let statistics = counters.stats();
    let counted = statistics.refused_connections.iter().find(|count| count.reason == reason);
    counted.unwrap().count
}

/// The first packets of so many clients, which are recorded and not answered.
async fn first_packets(membership: &Membership, count: usize) -> Vec<Vec<u8>> {
    let tap = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (_, endpoint) = open(membership);
    let (mut packets, mut waiting): (Vec<Vec<u8>>, _) = (Vec::new(), Vec::new());
    let mut bytes = [0; 2048];
    while packets.len() < count {
        let tls = config(membership.client(0, Seen::default()).unwrap());
        let address = tap.local_addr().unwrap();
        // Dropped, it would take leave instead.
        waiting.push(endpoint.connect_with(tls, address, &membership.name_of(0)).unwrap());
        let length = tap.recv(&mut bytes).await.unwrap();
        // Or another packet of one that has been recorded.
        let known = |packet: &Vec<u8>| packet[5..14] == bytes[5..14];
        if length >= 1200 && !packets.iter().any(known) {
            packets.push(bytes[..length].to_vec());
        }
    }
    packets
}

/// Two ports, one above the other, that were free a moment ago.
fn two_ports() -> (SocketAddr, SocketAddr) {
    loop {
        let first = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let Some(next) = first.port().checked_add(1) else { continue };
        let second = SocketAddr::new(first.ip(), next);
        if UdpSocket::bind(second).is_ok() {
            return (first, second);
        }
    }
}
