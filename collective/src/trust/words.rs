//! Words of others that reach a terminal or a log: nothing in them steers it, whoever sent them.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{ConnectionClose, ConnectionError, TransportErrorCode};

use super::certificates::LeafHash;
use super::handshake;
use super::hello::{self, Again, Answer, DialError, Hello, Purpose};
use super::secret::Secret;
use super::strangers::{PATIENCE, config, of_secrets, on_runtime, open, said_by};
use super::verifier::Seen;
use crate::communicator::Communicator;
use crate::config::Config;
use crate::control::endpoint::Message;
use crate::error::Result;
use crate::link::Flow;
use crate::link::quic::binding;
use crate::link::quic::endpoint::Caller;
use crate::link::quic::tuning::Traffic;
use crate::link::quic::{LaneAddress, LaneId, QuicLinks};
use crate::plan::costs::CostTable;
use crate::rendezvous::Entry;
use crate::statistics::Counters;

#[test]
fn whoever_hangs_up_at_a_door_does_not_write_the_log() {
    let secret = Secret::random().unwrap();
    let [host, guest] = [0, 1].map(|rank| of_secrets(&[&secret], rank));
    let warned = on_runtime(async {
        let (address, door) = open(&host);
        let (_, endpoint) = open(&guest);
        let tls = config(guest.client(0, Seen::default()).unwrap());
        let connecting = endpoint.connect_with(tls, address, &guest.name_of(0)).unwrap();
        let hang_up = async {
            connecting.await.unwrap().close(7u32.into(), CUNNING.as_bytes());
        };
        let greeting = async {
            let incoming = door.accept().await.unwrap();
            hello::greet(incoming, &host).await.err().unwrap().problem.unwrap()
        };
        tokio::join!(hang_up, greeting).1
    });
    assert!(warned.starts_with("refused a connection from 127.0.0.1:"), "{warned:?}");
    assert_harmless(&warned);
}

#[test]
fn whoever_answers_in_place_of_rank_0_does_not_write_the_error() {
    let secret = Secret::random().unwrap();
    let [host, guest] = [0, 1].map(|rank| of_secrets(&[&secret], rank));
    let told = on_runtime(async {
        let (address, door) = open(&host);
        let (_, endpoint) = open(&guest);
        let caller = Caller { endpoint: &endpoint, membership: &guest, traffic: Traffic::Control };
        let hello = said_by(1);
        let hang_up = async {
            let connection = door.accept().await.unwrap().accept().unwrap().await.unwrap();
            connection.close(7u32.into(), CUNNING.as_bytes());
        };
        tokio::join!(caller.dial(0, address, &hello, PATIENCE), hang_up).0.err()
    });
    let Some(DialError::Retry(told)) = told else { panic!("{told:?}") };
    assert!(told.starts_with("127.0.0.1:"), "{told:?}");
    assert_harmless(&told);
}

#[test]
fn the_reason_of_an_alert_is_shown_as_words() {
    let secret = Secret::random().unwrap();
    let membership = of_secrets(&[&secret], 1);
    let from: SocketAddr = "127.0.0.1:4711".parse().unwrap();
    // An alert of TLS, `record_overflow`, of which there is nothing better to say; and none.
    let alerts = [22, 48].map(TransportErrorCode::crypto);
    for error_code in alerts.into_iter().chain([TransportErrorCode::PROTOCOL_VIOLATION]) {
        let error = ConnectionError::ConnectionClosed(ConnectionClose {
            error_code,
            frame_type: None,
            reason: Bytes::from(CUNNING.repeat(1_000)),
        });
        let seen = Seen::default();
        let told = match handshake::why_not_reached(&membership, 0, from, &seen, &error) {
            DialError::Final(told) | DialError::Retry(told) => told,
            other => panic!("{other:?}"),
        };
        let warned = handshake::why_not_let_in(&membership, from, None, &error);
        assert_eq!(warned.is_some(), alerts.contains(&error_code));
        for words in warned.into_iter().chain([told]) {
            assert!(!words.contains(char::is_control) && words.len() < 3 * 1024, "{words:?}");
        }
    }
}

#[test]
fn what_a_hello_says_can_be_shown() {
    let secret = Secret::random().unwrap();
    let [host, guest] = [0, 1].map(|rank| of_secrets(&[&secret], rank));
    let settings = vec![(CUNNING.into(), CUNNING.into())];
    let said = Hello {
        version: CUNNING.into(),
        host: CUNNING.into(),
        purpose: Purpose::Join {
            settings,
            addresses: Vec::new(),
            chosen: false,
            control_port: 1,
            lane_ports: vec![2],
            door: None,
        },
        ..said_by(1)
    };
    let heard = on_runtime(async {
        let (address, door) = open(&host);
        let (_, endpoint) = open(&guest);
        let caller = Caller { endpoint: &endpoint, membership: &guest, traffic: Traffic::Control };
        let greeting = async {
            let incoming = door.accept().await.unwrap();
            let Ok(mut greeted) = hello::greet(incoming, &host).await else { panic!("refused") };
            hello::send(&mut greeted.sender, &Answer::Welcome).await.unwrap();
            greeted.hello
        };
        let (welcomed, heard) = tokio::join!(caller.dial(0, address, &said, PATIENCE), greeting);
        drop(welcomed);
        heard
    });
    let Purpose::Join { settings, control_port: 1, lane_ports, .. } = &heard.purpose else {
        panic!("{heard:?}")
    };
    assert_eq!(lane_ports, &[2]);
    for words in [&heard.version, &heard.host, &settings[0].0, &settings[0].1] {
        assert_harmless(words);
    }
}

#[test]
fn rank_0_shows_the_others_only_words() {
    let refusal = Message::Refused { reason: CUNNING.into(), again: Again::Never };
    let error = met_by(|_, _| vec![refusal.clone()]).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert_harmless(&error.to_string());
    let world = met_by(|zero, one| {
        let entry = |rank: u32, hello: &Hello, leaf| Entry {
            rank,
            host: CUNNING.into(),
            pid: 41,
            habitat: hello.habitat,
            incarnation: hello.incarnation,
            addresses: Vec::new(),
            chosen: false,
            control_port: 1,
            lane_ports: vec![2],
            leaf,
            door: None,
        };
        let table = vec![entry(0, &said_by(0), zero), entry(1, one, zero)];
        let costs = CostTable::default();
        vec![
            Message::Prepare { epoch: 7, table },
            Message::Commit { epoch: 7, costs, shares: vec![false; 2] },
        ]
    })
    .unwrap();
    world.peers().iter().for_each(|peer| assert_harmless(&peer.host));
}

#[test]
fn a_rank_that_closes_a_data_link_does_not_write_the_error() {
    let secret = Secret::random().unwrap();
    let [zero, one] = [0, 1].map(|rank| Arc::new(of_secrets(&[&secret], rank)));
    let problem = on_runtime(async {
        let (address, door) = open(&one);
        let socket = binding::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own =
            LaneAddress { addresses: vec![socket.local_addr().unwrap()], leaf: zero.leaf_hash() };
        let addresses = vec![own, LaneAddress { addresses: vec![address], leaf: one.leaf_hash() }];
        let counters = Arc::new(Counters::new(0, 2, "quic"));
        let links =
            QuicLinks::new(socket, zero, said_by(0), LaneId::only(1), addresses, counters).unwrap();
        let hang_up = async {
            let incoming = door.accept().await.unwrap();
            let Ok(mut greeted) = hello::greet(incoming, &one).await else { panic!("refused") };
            hello::send(&mut greeted.sender, &Answer::Welcome).await.unwrap();
            // The dialler has read it once it ends its stream.
            greeted.receiver.read_to_end(0).await.unwrap();
            greeted.connection.close(7u32.into(), CUNNING.as_bytes());
        };
        let opening = async {
            loop {
                match links.open_flow(Flow { peer: 1, group: 0, tree: 0 }).await {
                    // Before the end of the connection has come.
                    Ok(_) => tokio::task::yield_now().await,
                    Err(problem) if problem == "connection lost" => {}
                    Err(problem) => return problem,
                }
            }
        };
        tokio::join!(hang_up, opening).1
    });
    assert_harmless(&problem);
}

/// What becomes of rank 1 of two whose rank 0 is played: it says these messages, for its own key and
/// rank 1's hello, and stays.
fn met_by(says: impl Fn(LeafHash, &Hello) -> Vec<Message> + Send) -> Result<Communicator> {
    let secret = Secret::random().unwrap();
    let line = secret.to_line();
    let (found, place) = std::sync::mpsc::channel::<SocketAddr>();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            on_runtime(async {
                let zero = of_secrets(&[&secret], 0);
                let (address, door) = open(&zero);
                found.send(address).unwrap();
                let incoming = door.accept().await.unwrap();
                let Ok(greeted) = hello::greet(incoming, &zero).await else { panic!("refused") };
                let mut sender = greeted.sender;
                hello::send(&mut sender, &Answer::Welcome).await.unwrap();
                for message in says(zero.leaf_hash(), &greeted.hello) {
                    hello::send(&mut sender, &message).await.unwrap();
                }
                let _ = stopped.await;
            });
        });
        let place = place.recv_timeout(PATIENCE).unwrap().to_string();
        let config = Config::new(1, 2, &place).unwrap().job("job").secret(&line).unwrap();
        let end = Communicator::connect(config.connect_timeout(PATIENCE));
        let _ = stop.send(());
        end
    })
}

fn assert_harmless(words: &str) {
    assert!(words.contains(HARMLESS), "{words:?}");
    assert!(!words.contains(char::is_control), "{words:?}");
}

/// Clears a terminal, and looks like a line of allfold's own.
const CUNNING: &str = "\x1b[2J\x07\nerror: all is well";
const HARMLESS: &str = "?[2J??error: all is well";
