//! The hello after the handshake: who the peer says it is, checked against its certificate.
//!
//! Nothing is trusted before the hello's answer: a TLS 1.3 client believes itself connected before
//! the server has judged its certificate.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connecting, Connection, ConnectionError, RecvStream, SendStream, TransportErrorCode};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::certificates::{ALPN_OF_ALL, LeafHash, Membership};
use super::handshake;
use super::verifier::Seen;
use crate::link::quic::endpoint::Visitor;
use crate::link::quic::routes;
use crate::link::shared_memory::Door;
use crate::report;
use crate::statistics::Refusal;
use crate::wire;

/// What a dialler says first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: String,
    pub(crate) rank: u32,
    pub(crate) incarnation: u128,
    pub(crate) host: String,
    pub(crate) pid: u32,
    /// Where that number is known (see `control/processes.rs`).
    pub(crate) habitat: u64,
    pub(crate) purpose: Purpose,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// To rank 0: take me into the world.
    Join {
        settings: Vec<(String, String)>,
        /// Where this rank says it is, the best first; at most [`MAX_ADDRESSES`].
        addresses: Vec<IpAddr>,
        /// Whether its user has chosen them, so that it is to be found nowhere else.
        chosen: bool,
        control_port: u16,
        /// One for each lane.
        lane_ports: Vec<u16>,
        /// Where ranks of this host find its memory.
        door: Option<Door>,
    },
    /// To another rank: let us watch each other in this epoch.
    Watch { epoch: u64 },
    /// Data in this epoch.
    Lane { epoch: u64, lane: u16 },
}

impl Hello {
    /// The same, of words that a person can be shown: it came from a peer.
    fn printable(self) -> Self {
        let clean = |words: &str| report::printable(words);
        let purpose = match self.purpose {
            Purpose::Join { settings, addresses, chosen, control_port, lane_ports, door } => {
                let both = |(name, value): &(String, String)| (clean(name), clean(value));
                let settings = settings.iter().map(both).collect();
                Purpose::Join { settings, addresses, chosen, control_port, lane_ports, door }
            }
            other => other,
        };
        Self { version: clean(&self.version), host: clean(&self.host), purpose, ..self }
    }
}

/// What the other side answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Welcome,
    Refused { reason: String, again: Again },
}

/// Whether asking again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Again {
    /// Right away: the peer is not ready yet.
    Soon,
    /// In another run of the job.
    Later,
    Never,
    /// The job is done, and needs nobody any more.
    Over,
    /// In another run of the job: this one has waited as long as it should.
    GivenUp,
}

/// A connection whose peer has said who it is and proved it.
pub(crate) struct Greeted {
    pub(crate) hello: Hello,
    pub(crate) leaf: LeafHash,
    pub(crate) connection: Connection,
    /// The stream of the hello; it goes on to carry control messages.
    pub(crate) sender: SendStream,
    pub(crate) receiver: RecvStream,
}

impl Greeted {
    /// `node-7 (pid 41, from 10.0.0.7:4711)`: for warnings.
    pub(crate) fn who(&self) -> String {
        let from = routes::plain(self.connection.remote_address());
        format!("{} (pid {}, from {from})", self.hello.host, self.hello.pid)
    }

    /// Tells the peer why it is not welcome, and stays until it has read that.
    pub(crate) async fn refuse(self, reason: String, again: Again) {
        refuse(self.connection, self.sender, reason, again).await;
    }
}

/// A connection that was dialled and made welcome.
pub(crate) struct Welcomed {
    pub(crate) leaf: LeafHash,
    pub(crate) connection: Connection,
    pub(crate) sender: SendStream,
    pub(crate) receiver: RecvStream,
}

impl Welcomed {
    /// Where the peer is.
    pub(crate) fn address(&self) -> SocketAddr {
        routes::plain(self.connection.remote_address())
    }
}

/// Why dialling did not lead to a welcome.
#[derive(Debug)]
pub(crate) enum DialError {
    /// It would fail again: another secret, another job, another version.
    Final(String),
    /// The peer has a reason against this process.
    Refused(String, Again),
    /// Another rank or another job answers there: the address is somebody else's, for now at least.
    Elsewhere(String),
    /// Nobody answers, or the peer says that it may go better later.
    Retry(String),
    /// Somebody answers there who takes nobody in for now.
    Busy(String),
}

/// A connection on which both sides have shown their certificates, and nothing was said yet. TLS
/// believes itself connected before the server has judged this side's.
pub(crate) struct Shaken {
    pub(crate) leaf: LeafHash,
    pub(crate) address: SocketAddr,
    connection: Connection,
    /// Belongs to the connection's verifier.
    seen: Seen,
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Final(reason)
        | Self::Refused(reason, _)
        | Self::Elsewhere(reason)
        | Self::Retry(reason)
        | Self::Busy(reason)) = self;
        f.write_str(reason)
    }
}

/// Waits until `rank` has proved, on a connection that is being made, that it is that rank. `seen`
/// belongs to the connection's verifier.
pub(crate) async fn shake(
    connecting: Connecting,
    membership: &Membership,
    seen: Seen,
    rank: u32,
) -> Result<Shaken, DialError> {
    let address = routes::plain(connecting.remote_address());
    let connection = connecting
        .await
        .map_err(|error| handshake::why_not_reached(membership, rank, address, &seen, &error))?;
    match identify(&connection, membership, rank) {
        Some(leaf) => Ok(Shaken { leaf, address, connection, seen }),
        None => Err(DialError::Retry(format!("{address}: no name"))),
    }
}

/// Greets `rank`, and waits for its answer.
pub(crate) async fn introduce(
    shaken: Shaken,
    membership: &Membership,
    rank: u32,
    hello: &Hello,
) -> Result<Welcomed, DialError> {
    let Shaken { leaf, address, connection, seen } = shaken;
    let refused = |error: &ConnectionError| {
        handshake::why_not_reached(membership, rank, address, &seen, error)
    };
    let lost = |error: &dyn std::fmt::Display| {
        DialError::Retry(report::printable(&format!("{address}: {error}")))
    };
    let (mut sender, mut receiver) = match connection.open_bi().await {
        Ok(streams) => streams,
        Err(error) => return Err(refused(&error)),
    };
    // One that judges our certificate only now may have hung up; its answer says it.
    let sent = send(&mut sender, hello).await;
    let answer = match sent {
        Ok(()) => receive::<Answer>(&mut receiver, wire::MAX_HELLO_BYTES).await,
        Err(problem) => Err(problem),
    };
    match answer {
        Ok(Answer::Welcome) => Ok(Welcomed { leaf, connection, sender, receiver }),
        Ok(Answer::Refused { reason, again }) => {
            let reason = report::printable(&reason);
            // It is of this job by its certificate, which may be good for several.
            Err(match reason.starts_with(ANOTHER_JOB) {
                true => DialError::Elsewhere(reason),
                false => DialError::Refused(reason, again),
            })
        }
        // The peer judges our certificate only now.
        Err(problem) => match connection.close_reason() {
            Some(error) => Err(refused(&error)),
            None => Err(lost(&problem)),
        },
    }
}

/// Who knocked and is nobody yet: why it is turned away, by kind and for the log; there is nothing
/// to be said where it has hung up by itself, or this end has closed meanwhile.
pub(crate) struct Stranger {
    pub(crate) refusal: Refusal,
    pub(crate) problem: Option<String>,
}

/// Finishes an incoming connection's handshake and reads its hello.
pub(crate) async fn greet(visitor: Visitor, membership: &Membership) -> Result<Greeted, Stranger> {
    let from = visitor.address();
    let mut server_name = None;
    let greeting = async {
        let mut connecting = visitor.accept()?;
        let handshake = handshake_data(&mut connecting).await;
        let protocol = handshake.as_ref().and_then(|data| data.protocol.clone());
        server_name = handshake.and_then(|data| data.server_name);
        let connection = connecting.await?;
        let (sender, mut receiver) = connection.accept_bi().await?;
        let said = receive_bytes(&mut receiver, wire::MAX_HELLO_BYTES).await;
        let said = said.and_then(|said| match protocol.as_deref() == Some(ALPN_OF_ALL) {
            true => wire::decode_beginning(&said).map(Said::InAnotherVersion),
            false => wire::decode_control(&said).map(Said::Hello),
        });
        Ok((connection, sender, receiver, said))
    };
    let outcome = match tokio::time::timeout(HANDSHAKE_LIMIT, greeting).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let limit = report::duration(HANDSHAKE_LIMIT);
            let problem = format!("a connection from {from} said no hello for {limit}");
            return Err(Stranger { refusal: Refusal::NoHello, problem: Some(problem) });
        }
    };
    let (connection, sender, receiver, said) = outcome.map_err(|error: ConnectionError| {
        match handshake::why_not_let_in(membership, from, server_name.as_deref(), &error) {
            Some(problem) => Stranger { refusal: Refusal::Untrusted, problem: Some(problem) },
            None => {
                if has_hung_up(&error) {
                    return Stranger { refusal: Refusal::HungUp, problem: None };
                }
                let problem = (error != ConnectionError::LocallyClosed).then(|| {
                    report::printable(&format!("refused a connection from {from}: {error}"))
                });
                Stranger { refusal: Refusal::NoHello, problem }
            }
        }
    })?;
    let another_job = handshake::another_job(membership, server_name.as_deref());
    // Most reasons read alike at both ends.
    let mut told = None;
    let (refusal, reason) = match (said, another_job) {
        (Err(problem), _) => (Refusal::NoHello, format!("its hello cannot be read: {problem}")),
        // The certificates of a cluster may be good for both.
        (Ok(_), Some(reason)) => {
            let job = membership.names.job();
            told = Some(format!("{ANOTHER_JOB} ({job}), answers there"));
            (Refusal::Untrusted, reason)
        }
        (Ok(Said::InAnotherVersion(Beginning { version, rank })), None) => {
            let (theirs, ours) = (report::printable(&version), env!("CARGO_PKG_VERSION"));
            let own = rank_dialled(server_name.as_deref());
            let reason = format!("rank {rank} runs allfold {theirs}, {own} runs {ours}");
            (Refusal::Untrusted, reason)
        }
        (Ok(Said::Hello(hello)), None) => match identify(&connection, membership, hello.rank) {
            Some(leaf) => {
                let hello = hello.printable();
                return Ok(Greeted { hello, leaf, connection, sender, receiver });
            }
            None => (Refusal::Untrusted, format!("its certificate is not for rank {}", hello.rank)),
        },
    };
    let problem = format!("refused a process at {from}: {reason}");
    refuse(connection, sender, told.unwrap_or(reason), Again::Never).await;
    Err(Stranger { refusal, problem: Some(problem) })
}

/// Whether the peer has ended its attempt without a reason, as one does that was faster at another
/// address.
fn has_hung_up(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            close.error_code.into_inner() == 0 && close.reason.is_empty()
        }
        // So QUIC says the same before the handshake has ended: RFC 9000, 10.2.3.
        ConnectionError::ConnectionClosed(close) => {
            close.error_code == TransportErrorCode::APPLICATION_ERROR
        }
        _ => false,
    }
}

/// Tells the peer why it is not welcome, and stays until it has read that.
async fn refuse(connection: Connection, mut sender: SendStream, reason: String, again: Again) {
    // It may have been a second too late already: it is not waited for here.
    tokio::task::spawn_local(async move {
        let told = async {
            let _ = send(&mut sender, &Answer::Refused { reason, again }).await;
            let _ = sender.finish();
            connection.closed().await
        };
        let _ = tokio::time::timeout(ANSWER_LIMIT, told).await;
    });
}

/// What a dialler may say first.
enum Said {
    Hello(Hello),
    InAnotherVersion(Beginning),
}

/// With what a hello begins in all versions.
#[derive(Serialize, Deserialize)]
struct Beginning {
    version: String,
    rank: u32,
}

/// The protocol, and the name that the peer dialled.
async fn handshake_data(connecting: &mut Connecting) -> Option<Box<HandshakeData>> {
    connecting.handshake_data().await.ok()?.downcast().ok()
}

/// Whom the peer dialled: `r0.37a8eec1ce19687d.allfold` is rank 0.
fn rank_dialled(server_name: Option<&str>) -> String {
    let rank = server_name.and_then(|name| name.split('.').next()?.strip_prefix('r'));
    match rank.and_then(|rank| rank.parse::<u32>().ok()) {
        Some(rank) => format!("rank {rank}"),
        None => "who answers there".into(),
    }
}

/// Sends one control message.
pub(crate) async fn send<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), String> {
    let frame = wire::encode_control(message)?;
    stream.write_all(&frame).await.map_err(|error| error.to_string())
}

/// Receives one control message of at most `limit` bytes.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<T, String> {
    wire::decode_control(&receive_bytes(stream, limit).await?)
}

/// Receives the bytes of one control message, of at most `limit`.
pub(crate) async fn receive_bytes(
    stream: &mut RecvStream,
    limit: usize,
) -> Result<Vec<u8>, String> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(|error| error.to_string())?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limit {
        return Err(format!("a control message of {length} bytes"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(|error| error.to_string())?;
    Ok(body)
}

fn identify(connection: &Connection, membership: &Membership, rank: u32) -> Option<LeafHash> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    membership.identify(identity.first()?, rank)
}

/// With what the words begin for another job in the place of this one.
const ANOTHER_JOB: &str = "another job, under another ALLFOLD_JOB";
/// Where a rank may say that it is. A host with eight cards has as many, each in both families.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// A peer that has not finished its handshake and said hello by then is dropped.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A refused peer hangs up once it has read why.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
