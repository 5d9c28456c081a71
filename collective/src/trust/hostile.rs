//! A member of the job that has the secret, takes part, and then sends what allfold never sends.
//! The other ranks end with an error that names it; none panics, hangs or runs out of memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};

use super::Credentials;
use super::certificates::Membership;
use super::hello::{self, Answer, Hello, Purpose};
use super::secret::{Secret, Secrets};
use crate::communicator::{Communicator, Kind};
use crate::config::Config;
use crate::contract;
use crate::control::endpoint::Message;
use crate::control::{ControlHandle, MemoryControl};
use crate::error::{ErrorKind, Result};
use crate::lanes::Lanes;
use crate::link::memory::{Hub, MemoryLinks};
use crate::link::quic::binding;
use crate::link::quic::endpoint::{self, Caller, OpenEndpoint};
use crate::link::quic::tuning::Traffic;
use crate::link::{Flow, Links};
use crate::plan::Algorithm;
use crate::plan::costs::{Choice, CostTable};
use crate::reduce::ReduceOp;
use crate::rendezvous;
use crate::simulation::Random;
use crate::statistics::Counters;
use crate::verdict::{Fault, Loss, Verdict};
use crate::wire::{self, HEADER_BYTES, Header, MessageKind, Preamble};
use crate::world::{Limits, Peer, World};

#[test]
fn every_changed_byte_of_a_frame_ends_in_an_error_that_names_its_sender() {
    let mut random = Random::new(SEED);
    let frame = recorded_frame();
    for position in 0..frame.len().min(HEADER_BYTES + 96) {
        for flip in [1, 0x80, random.below(255) as u8 + 1] {
            let mut changed = frame.to_vec();
            changed[position] ^= flip;
            let what = format!("seed {SEED}: byte {position} ^ {flip:#x}");
            assert_named(&play(&[changed]), &what);
        }
    }
}

#[test]
fn frames_that_are_cut_short_repeated_or_out_of_order_name_their_sender() {
    let frame = recorded_frame();
    let header = Header::from_wire(frame.first_chunk().unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = header;
        change(&mut header);
        let mut bytes = header.to_wire().to_vec();
        bytes.extend_from_slice(&frame[HEADER_BYTES..]);
        bytes
    };
    for end in (0..frame.len()).step_by(7) {
        assert_named(&play(&[frame[..end].to_vec()]), &format!("cut at {end}"));
    }
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("twice on one flow", vec![[&frame[..], &frame[..]].concat()]),
        ("on two flows of one name", vec![frame.to_vec(), frame.to_vec()]),
        ("a hundred flows of one name", vec![frame[..60].to_vec(); 100]),
        ("the largest payload", vec![with(&|h| h.payload_bytes = wire::MAX_PAYLOAD_BYTES)]),
        ("beyond it", vec![with(&|h| h.payload_bytes = wire::MAX_PAYLOAD_BYTES + 1)]),
        ("four gigabytes", vec![with(&|h| h.payload_bytes = u32::MAX)]),
        ("no payload", vec![with(&|h| h.payload_bytes = 0)]),
        ("a contract of 64 KiB", vec![with(&|h| h.contract_bytes = u16::MAX)]),
        ("another epoch", vec![with(&|h| h.epoch ^= 1)]),
        ("the last call there can be", vec![with(&|h| h.sequence = u64::MAX)]),
        ("the last step there can be", vec![with(&|h| h.step = u32::MAX)]),
        ("the last segment there can be", vec![with(&|h| h.segment = u64::MAX)]),
        ("another history", vec![with(&|h| h.hash ^= 1)]),
        ("a goodbye in the middle", vec![with(&|h| h.kind = MessageKind::Goodbye)]),
        (
            "a goodbye after no end of calls",
            vec![with(&|h| (h.kind, h.sequence) = (MessageKind::Goodbye, u64::MAX))],
        ),
    ];
    for (what, flows) in cases {
        assert_named(&play(&flows), what);
    }
}

#[test]
fn a_member_that_breaks_the_protocol_on_a_connection_is_named() {
    use Attack::{Control, Datagram, Stream, Streams};
    let long = |length: u32| [&length.to_le_bytes()[..], &[0; 64]].concat();
    let message = |message: &Message| wire::encode_control(message).unwrap();
    let goodbye = |origin, group, members: Vec<u32>, calls| {
        message(&Message::Goodbye { origin, group, members, calls, hash: 7 })
    };
    let preamble = |preamble: Preamble| preamble.to_wire().to_vec();
    let lane = |change: fn(&mut Preamble)| {
        move |epoch| {
            let mut fields = Preamble { epoch, from: 2, group: 0, tree: 0, lane: 0 };
            change(&mut fields);
            preamble(fields)
        }
    };
    let garbage: Vec<u8> = (0..200u8).collect();
    let attacks = [
        Control(long(u32::MAX)),
        Control(long(wire::MAX_CONTROL_BYTES as u32 + 1)),
        Control(long(wire::MAX_CONTROL_BYTES as u32)),
        Control(long(64)),
        Control(vec![0; 4]),
        Control(message(&Message::Leave { origin: 2 })[..5].to_vec()),
        Control(message(&Message::Leave { origin: u32::MAX })),
        Control(message(&Message::Restart)),
        Control(message(&Message::Commit {
            epoch: 1,
            costs: CostTable::default(),
            shares: Vec::new(),
        })),
        Control(message(&Message::Missing((0..65_536).collect()))),
        Control(goodbye(u32::MAX, 0, vec![0, 1], 1)),
        Control(goodbye(2, 0, (0..100_000).collect(), u64::MAX)),
        Control(goodbye(2, u64::MAX, vec![0], 3)),
        Control((0..20_000).flat_map(|group| goodbye(2, group + 9, vec![0], 3)).collect()),
        Control(message(&Message::Verdict(Verdict {
            epoch: 1,
            seen_by: u32::MAX,
            culprit: u32::MAX,
            fault: Fault::Protocol { problem: "of another epoch".into() },
            waiting: None,
        }))),
        Control(message(&Message::Silent { rank: u32::MAX })),
        Control(message(&Message::Heard { rank: u32::MAX, ago_ms: Some(u64::MAX), left: true })),
        Control(message(&Message::Heard { rank: 0, ago_ms: Some(0), left: true })),
        Datagram(garbage.clone()),
        Datagram(Vec::new()),
        Datagram([&32u32.to_le_bytes()[..], &[0xff; 32]].concat()),
        Stream(Box::new(lane(|_| {}))),
        Stream(Box::new(lane(|p| p.epoch ^= 1))),
        Stream(Box::new(lane(|p| p.from = 1))),
        Stream(Box::new(lane(|p| p.lane = 9))),
        Stream(Box::new(lane(|p| p.group = u64::MAX))),
        Stream(Box::new(|_| b"AFst".to_vec())),
        Stream(Box::new(move |_| garbage.clone())),
        Streams(2_000),
    ];
    let before = resident_bytes();
    for (number, attack) in attacks.into_iter().enumerate() {
        let ends = with_impostor(3, attack, call_on);
        for (rank, end) in ends.iter().enumerate() {
            let error = end.as_ref().unwrap_err();
            let text = error.to_string();
            let named = matches!(
                error.kind(),
                ErrorKind::RankLost { rank: 2, .. }
                    | ErrorKind::Protocol { rank: 2, .. }
                    | ErrorKind::CallCount { rank: 2, .. }
                    | ErrorKind::Mismatch { .. }
            );
            assert!(named && text.contains("rank 2"), "attack {number}, rank {rank}: {text}");
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < MEMORY_LIMIT, "{grown} bytes more");
}

#[test]
fn in_a_large_world_a_member_says_no_goodbye_for_a_rank_that_says_it_itself() {
    let message = |message: &Message| wire::encode_control(message).unwrap();
    let (members, hash) = ((0..9).collect(), 7);
    // Whoever believes this blames rank 1, which has made its first call.
    let goodbye = Message::Goodbye { origin: 1, group: 0, members, calls: 0, hash };
    let forged = [message(&goodbye), message(&Message::Leave { origin: 1 })].concat();
    for (rank, end) in with_impostor(9, Attack::Control(forged), call_on).iter().enumerate() {
        let error = end.as_ref().unwrap_err();
        let named = matches!(error.kind(), ErrorKind::RankLost { rank: 2, .. });
        assert!(named, "{rank} of the other ranks: {error}");
    }
}

#[test]
fn in_a_large_world_a_goodbye_that_only_one_rank_has_heard_reaches_all() {
    let outlive = |world: Communicator| {
        let Kind::Joined(engine) = &world.kind else { panic!("a world of one") };
        while !engine.world().has_left(2) {
            if let Some(error) = engine.world().error() {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        world.close()
    };
    for (rank, end) in with_impostor(9, Attack::LeaveByAnother, outlive).iter().enumerate() {
        assert!(end.is_ok(), "{rank} of the other ranks: {end:?}");
    }
}

/// How the other ranks' calls ended.
type Ends = Vec<Result<()>>;

fn assert_named(ends: &Ends, what: &str) {
    for end in ends {
        let error = end.as_ref().expect_err(what);
        let text = error.to_string();
        assert!(text.contains("rank 2"), "{what}: {text}");
        let typed = matches!(
            error.kind(),
            ErrorKind::Protocol { rank: 2, .. }
                | ErrorKind::Mismatch { .. }
                | ErrorKind::CallCount { rank: 2, .. }
        );
        assert!(typed, "{what}: {error:?}");
    }
}

/// The call that all ranks make.
fn call(rank: &Communicator) -> Result<()> {
    rank.all_reduce(&mut [1.0f32; ELEMENTS], ReduceOp::Sum)
}

/// Calls until the world ends.
fn call_on(world: Communicator) -> Result<()> {
    loop {
        call(&world)?;
    }
}

/// What rank 2 of three sends rank 0 first in that call, its payload and all.
fn recorded_frame() -> Bytes {
    let world = InProcess::new(0);
    std::thread::scope(|scope| {
        for rank in &world.ranks {
            scope.spawn(|| call(rank));
        }
        let frame = on_runtime(async {
            loop {
                let mut incoming = world.links.next_incoming().await.unwrap();
                if incoming.flow.peer == 2 {
                    return incoming.receiver.piece(usize::MAX).await.unwrap();
                }
            }
        });
        world.worlds[1].lose(0, Loss::Gone);
        frame
    })
}

/// Rank 2 sends rank 0 these bytes on so many flows, and then, on another, what nobody can take for
/// a message: so that also what is no harm comes to an end.
fn play(flows: &[Vec<u8>]) -> Ends {
    let world = InProcess::new(2);
    std::thread::scope(|scope| {
        let ends: Vec<_> = world.ranks.iter().map(|rank| scope.spawn(|| call(rank))).collect();
        on_runtime(async {
            let mut open = Vec::new();
            let last: &[u8] = &[9; HEADER_BYTES];
            for (bytes, tree) in flows.iter().map(|f| (&f[..], 0)).chain([(last, 1)]) {
                let flow = world.links.open_flow(Flow { peer: 0, group: 0, tree });
                let mut flow = flow.unwrap();
                // One that is not read any more has done its part.
                let _ = flow.write(Bytes::copy_from_slice(bytes)).await;
                open.push(flow);
            }
        });
        ends.into_iter().map(|end| end.join().expect("no panic")).collect()
    })
}

/// Three ranks in this process, of which one is played by the test.
struct InProcess {
    worlds: Vec<Arc<World>>,
    /// The other two.
    ranks: Vec<Communicator>,
    /// The played one's.
    links: MemoryLinks,
}

impl InProcess {
    fn new(played: u32) -> Self {
        let limits = Limits { late_after: PATIENCE, timeout: Some(PATIENCE), dead_after: None };
        let choice =
            Choice { costs: CostTable::default(), forced: Some(Algorithm::Ring), lanes: 1 };
        let peers: Vec<Peer> = (0..3).map(|rank| Peer::new(rank, "host", 1)).collect();
        let world = |rank| {
            let counters = Arc::new(Counters::new(rank, 3, "memory"));
            Arc::new(World::new(rank, 0, peers.clone(), limits, choice.clone(), counters))
        };
        let worlds: Vec<_> = (0..3).map(world).collect();
        let controls = MemoryControl::join(&worlds);
        let mut kept = None;
        let mut ranks = Vec::new();
        for ((world, control), links) in worlds.iter().zip(controls).zip(Hub::links(3)) {
            if world.rank == played {
                kept = Some(links);
                continue;
            }
            let lanes = Lanes::start(world, [move || Ok(Links::Memory(links))]).unwrap();
            world.attach(lanes.inboxes().clone(), ControlHandle::Memory(control));
            ranks.push(Communicator::of_memory(world.clone(), lanes));
        }
        Self { worlds, ranks, links: kept.unwrap() }
    }
}

/// What the impostor does once the world has begun, to rank 0.
enum Attack {
    /// No harm: a goodbye to one rank only, and the end.
    LeaveByAnother,
    /// On the control stream.
    Control(Vec<u8>),
    /// As a heartbeat.
    Datagram(Vec<u8>),
    /// As the beginning of a flow of the epoch.
    Stream(Box<dyn Fn(u64) -> Vec<u8> + Send>),
    /// So many flows, each for a communicator that does not exist.
    Streams(usize),
}

/// A world over QUIC whose rank 2 is played: it takes part until the world has begun, does what it
/// does, and is gone.
fn with_impostor(size: usize, attack: Attack, program: fn(Communicator) -> Result<()>) -> Ends {
    let secret = Secret::random().unwrap().to_line();
    let place = {
        // Free a moment ago, which is as good as it gets.
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.local_addr().unwrap()
    };
    let settings = |rank| {
        let config = Config::new(rank, size, &place.to_string()).unwrap().secret(&secret).unwrap();
        // Data links are what it attacks.
        let config = config.transport("quic").unwrap();
        config.connect_timeout(PATIENCE).timeout(PATIENCE)
    };
    let rank = |rank| program(Communicator::connect(settings(rank))?);
    std::thread::scope(|scope| {
        let others = (0..size).filter(|rank| *rank != 2);
        let ends: Vec<_> = others.map(|number| scope.spawn(move || rank(number))).collect();
        let secrets = Secrets::from_lines(&secret, "the test").unwrap();
        on_runtime(Impostor::take_part(settings(2), secrets, place, attack));
        ends.into_iter().map(|end| end.join().expect("no panic")).collect()
    })
}

struct Impostor {
    membership: Membership,
    control: OpenEndpoint,
    lane: OpenEndpoint,
}

impl Impostor {
    async fn take_part(config: Config, secrets: Secrets, place: SocketAddr, attack: Attack) {
        let membership = Membership::new(&Credentials::Secrets(secrets), &config.job, 2).unwrap();
        let open = |traffic| {
            let socket = binding::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let port = socket.local_addr().unwrap().port();
            (endpoint::open(socket, &membership, traffic).unwrap(), port)
        };
        let ((control, control_port), (lane, lane_port)) =
            (open(Traffic::Control), open(Traffic::Data { lanes: 1 }));
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            rank: 2,
            incarnation: 41,
            host: "host".into(),
            pid: 41,
            habitat: 0,
            purpose: Purpose::Join {
                settings: config.job_wide(),
                addresses: Vec::new(),
                chosen: false,
                control_port,
                lane_ports: vec![lane_port],
                door: None,
            },
        };
        let impostor = Self { membership, control, lane };
        let (connection, mut sender, mut receiver) = impostor.knock(0, place, &hello).await;
        let (epoch, table) = loop {
            match hello::receive(&mut receiver, wire::MAX_CONTROL_BYTES).await.unwrap() {
                Message::Prepare { epoch, table } => break (epoch, table),
                Message::Missing(_) | Message::Restart => {}
                other => panic!("{other:?}"),
            }
        };
        let _watcher = Self::let_in(&impostor.control, &impostor.membership).await;
        let mut watched = Vec::new();
        for rank in rendezvous::watched(2, table.len() as u32).into_iter().filter(|rank| *rank > 2)
        {
            let address = SocketAddr::new(place.ip(), table[rank as usize].control_port);
            let hello = Hello { purpose: Purpose::Watch { epoch }, ..hello.clone() };
            watched.push(impostor.knock(rank, address, &hello).await);
        }
        hello::send(&mut sender, &Message::Prepared { epoch, maps: false }).await.unwrap();
        // What rank 0 hears before is of no world.
        let commit = hello::receive::<Message>(&mut receiver, wire::MAX_CONTROL_BYTES).await;
        assert!(matches!(commit, Ok(Message::Commit { .. })), "{commit:?}");
        // Rank 0 of three sends its first data to rank 1 only; to be dialled, rank 2 waits for both.
        let mut lanes = Vec::new();
        for _ in 0..if table.len() == 3 { 2 } else { 0 } {
            lanes.push(Self::let_in(&impostor.lane, &impostor.membership).await);
        }
        let data = lanes.iter().find(|lane| lane.0 == 0).map(|lane| &lane.1);
        if let Attack::LeaveByAnother = attack {
            let (_, sender, receiver) = &mut watched[0];
            let (members, hash) = ((0..9).collect(), contract::first_hash(epoch, 0));
            let goodbye = Message::Goodbye { origin: 2, group: 0, members, calls: 0, hash };
            hello::send(sender, &goodbye).await.unwrap();
            hello::send(sender, &Message::Leave { origin: 2 }).await.unwrap();
            let read = hello::receive(receiver, wire::MAX_CONTROL_BYTES).await;
            assert!(matches!(read, Ok(Message::LeaveRead)), "{read:?}");
        }
        let _ = impostor.attack(epoch, attack, (&connection, &mut sender), data).await;
        // What was sent arrives before the end does.
        let _ = tokio::time::timeout(HURRY, connection.closed()).await;
        impostor.control.close(0u32.into(), b"gone");
        impostor.lane.close(0u32.into(), b"gone");
        let _ = tokio::time::timeout(HURRY, impostor.control.wait_idle()).await;
    }

    async fn attack(
        &self,
        epoch: u64,
        attack: Attack,
        (control, sender): (&Connection, &mut SendStream),
        data: Option<&Connection>,
    ) -> std::result::Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let data = || data.ok_or("no data link to rank 0");
        match attack {
            Attack::LeaveByAnother => Ok(()),
            Attack::Control(bytes) => sender.write_all(&bytes).await.map_err(|e| failed(&e)),
            Attack::Datagram(bytes) => {
                control.send_datagram(Bytes::from(bytes)).map_err(|e| failed(&e))
            }
            Attack::Stream(bytes) => {
                let mut stream = data()?.open_uni().await.map_err(|e| failed(&e))?;
                stream.write_all(&bytes(epoch)).await.map_err(|e| failed(&e))
            }
            Attack::Streams(count) => {
                for group in 0..count as u64 {
                    let opening = tokio::time::timeout(HURRY, data()?.open_uni());
                    // Beyond the limit on flows there is none.
                    let Ok(stream) = opening.await else { break };
                    let mut stream = stream.map_err(|e| failed(&e))?;
                    let group = group + 1;
                    let preamble = Preamble { epoch, from: 2, group, tree: 0, lane: 0 };
                    stream.write_all(&preamble.to_wire()).await.map_err(|e| failed(&e))?;
                    // Its end must not free the place.
                    std::mem::forget(stream);
                }
                Ok(())
            }
        }
    }

    /// Becomes a link of `rank`, as soon as that is there.
    async fn knock(
        &self,
        rank: u32,
        place: SocketAddr,
        hello: &Hello,
    ) -> (Connection, SendStream, RecvStream) {
        let caller = Caller {
            endpoint: &self.control,
            membership: &self.membership,
            traffic: Traffic::Control,
        };
        loop {
            if let Ok(welcomed) = caller.dial(rank, place, hello, PATIENCE).await {
                return (welcomed.connection, welcomed.sender, welcomed.receiver);
            }
        }
    }

    /// Makes the next one that dials welcome.
    async fn let_in(door: &OpenEndpoint, membership: &Membership) -> (u32, Connection, SendStream) {
        let incoming = door.accept().await.unwrap();
        let Ok(mut greeted) = hello::greet(incoming, membership).await else { panic!("refused") };
        hello::send(&mut greeted.sender, &Answer::Welcome).await.unwrap();
        (greeted.hello.rank, greeted.connection, greeted.sender)
    }
}

/// This process's memory, as the system counts it.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn on_runtime<T>(main: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let main = async { tokio::time::timeout(PATIENCE, main).await };
    tokio::task::LocalSet::new().block_on(&runtime, main).expect("no end")
}

const ELEMENTS: usize = 300;
/// The seed of the bytes that are changed.
const SEED: u64 = 5;
/// No test waits longer.
const PATIENCE: Duration = Duration::from_secs(15);
/// For what may come or not.
const HURRY: Duration = Duration::from_millis(100);
/// One control message of the largest size on each of two ranks, what the links hold, and room for
/// the tests beside this one.
const MEMORY_LIMIT: u64 = 256 * 1024 * 1024;
