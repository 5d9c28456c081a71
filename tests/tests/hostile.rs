//! Whoever reaches the ports of a job and has no secret: scanners, floods, handshakes that never
//! end. The job's calls stay right and go on, its memory and its log stay small, and members get in.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use allfold_tests::{CAP, Folder, Job, Process, free_address, machine_lock};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

const RANK: &str = env!("CARGO_BIN_EXE_rank-under-test");

#[test]
fn a_running_job_is_not_disturbed_by_strangers() {
    let _one_at_a_time = machine_lock();
    let folder = Folder::new("hostile");
    let end = folder.path().join("end");
    let (job, ports) = job_with_known_ports();
    let start = |rank: usize| {
        let mut command = job.rank(rank, RANK, &["until", end.to_str().unwrap()]);
        command.env("ALLFOLD_PORT", (ports + 4 * rank as u16).to_string());
        Process::start(&mut command)
    };
    let began = Instant::now();
    let mut ranks = [0, 1].map(start);
    ranks[0].wait_for_line("calls 1");
    let before = ranks.each_ref().map(resident_bytes);
    // Control and data of both ranks.
    let doors = [job.rendezvous.parse().unwrap(), at(ports + 1), at(ports + 4), at(ports + 5)];
    for door in doors {
        scan(door);
        half_open(door);
        without_certificate(door);
    }
    ranks[0].wait_for_line("calls ");
    // A member still gets an answer.
    let ended = Process::start(&mut job.rank(1, RANK, &["calls", "1"])).wait();
    ended.assert_error(75, &["already running with rank 1 at "]);
    for (rank, before) in ranks.iter().zip(before) {
        let grown = resident_bytes(rank).saturating_sub(before);
        assert!(grown < MEMORY_LIMIT, "{grown} bytes more");
    }
    std::fs::write(&end, "").unwrap();
    for ended in ranks.map(Process::wait) {
        assert_eq!(ended.code(), 0, "{ended:#?}");
        let errors = ended.errors();
        // One a second on each of a rank's doors, and those of members.
        let most = 2 * (began.elapsed().as_secs() as usize + 1) + 3;
        assert!(errors.len() <= most, "{} warnings: {errors:#?}", errors.len());
        let named = errors
            .iter()
            .any(|line| line.contains("from 127.0.0.1:") || line.contains("at 127.0.0.1:"));
        assert!(named, "nobody was warned: {errors:#?}");
    }
}

#[test]
fn ranks_meet_while_strangers_knock() {
    let _one_at_a_time = machine_lock();
    let job = Job::new(2);
    let zero = Process::start(&mut job.rank(0, RANK, &["calls", "20"]));
    let door = job.rendezvous.parse().unwrap();
    scan(door);
    half_open(door);
    // More have knocked than are let in at once, and none of them goes on.
    let one = Process::start(&mut job.rank(1, RANK, &["calls", "20"]));
    half_open(door);
    for ended in [one.wait(), zero.wait()] {
        assert_eq!(ended.code(), 0, "{ended:#?}");
    }
}

/// What scanners send, and noise.
fn scan(door: SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let dns = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07version\x04bind\0\0\x10\0\x03";
    let stun = b"\0\x01\0\0\x21\x12\xa4\x42abcdefghijkl";
    let client_hello = b"\x16\x03\x01\0\x05\x01\0\0\x01\0";
    let mut unknown_version = vec![0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    unknown_version.resize(1200, 7);
    let mut version_2 = vec![0xd3, 0x6b, 0x33, 0x43, 0xcf, 8];
    version_2.resize(1200, 9);
    // A header of QUIC's first version with nothing behind it that can be opened.
    let mut no_initial = vec![0xc3, 0, 0, 0, 1, 8];
    no_initial.resize(1200, 5);
    let mut short_header = vec![0x43];
    short_header.resize(60, 1);
    let known: [&[u8]; 9] = [
        &[],
        &[0],
        dns,
        stun,
        client_hello,
        &unknown_version,
        &version_2,
        &no_initial,
        &short_header,
    ];
    for bytes in known {
        socket.send_to(bytes, door).unwrap();
    }
    // xorshift (Marsaglia 2003): the same noise each time.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = [0; 1200];
    for number in 0..NOISE {
        for byte in &mut noise {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        socket.send_to(&noise[..1 + number % 1200], door).unwrap();
    }
}

/// Many handshakes that never go on: the first packets of clients that only wanted to be recorded,
/// from many ports.
fn half_open(door: SocketAddr) {
    let firsts = on_runtime(async {
        let tap = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = client();
        let (mut firsts, mut waiting): (Vec<Vec<u8>>, _) = (Vec::new(), Vec::new());
        let mut bytes = [0; 2048];
        while firsts.len() < HALF_OPEN {
            // Dropped, it would take leave instead.
            waiting.push(client.connect(tap.local_addr().unwrap(), "r0.x.allfold").unwrap());
            let length = tap.recv(&mut bytes).await.unwrap();
            // Or another packet of one that has been recorded: by the id of the connection.
            let known = |first: &Vec<u8>| first[5..14] == bytes[5..14];
            if length >= 1200 && !firsts.iter().any(known) {
                firsts.push(bytes[..length].to_vec());
            }
        }
        firsts
    });
    let bind = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let sockets: Vec<UdpSocket> = (0..SOURCES).map(bind).collect();
    for (first, socket) in firsts.iter().zip(sockets.iter().cycle()) {
        socket.send_to(first, door).unwrap();
    }
}

/// Handshakes that go as far as they can without a certificate.
fn without_certificate(door: SocketAddr) {
    on_runtime(async {
        let client = client();
        for _ in 0..WITHOUT_CERTIFICATE {
            let connecting = client.connect(door, "r0.x.allfold").unwrap();
            let limit = Duration::from_millis(200);
            // The client is done before it is judged; it is judged all the same.
            if let Ok(Ok(connection)) = tokio::time::timeout(limit, connecting).await {
                let _ = tokio::time::timeout(limit, connection.closed()).await;
            }
        }
    });
}

fn client() -> Endpoint {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"allfold/3".to_vec()];
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let tls = QuicClientConfig::try_from(tls).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(tls)));
    endpoint
}

/// Accepts whoever answers.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A job whose ranks listen on ports that the test knows: control and data of rank 0, then of rank
/// 1, which is told that it is another host's.
fn job_with_known_ports() -> (Job, u16) {
    loop {
        let rendezvous = free_address();
        let port: u16 = rendezvous.rsplit(':').next().unwrap().parse().unwrap();
        let free = |port| UdpSocket::bind(at(port)).is_ok();
        if [1, 4, 5].into_iter().all(|more| free(port + more)) {
            return (Job { rendezvous, ..Job::new(2) }, port);
        }
    }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn resident_bytes(process: &Process) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn on_runtime<T>(main: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(CAP, main).await }).unwrap()
}

/// Datagrams of noise for each door.
const NOISE: usize = 5_000;
/// Handshakes that stop after their first packet: more than are let in at once.
const HALF_OPEN: usize = 600;
/// Ports that they come from.
const SOURCES: usize = 64;
const WITHOUT_CERTIFICATE: usize = 50;
/// 256 half-open connections on each of a rank's two doors, at some 50 KiB each, and as much again
/// for what the allocator keeps.
const MEMORY_LIMIT: u64 = 64 * 1024 * 1024;
