//! The hello after the handshake: who the peer says it is, checked against its certificate.
//!
//! Nothing is trusted before the hello's answer: a TLS 1.3 client believes itself connected before
//! the server has judged its certificate.

use std::time::Duration;

use quinn::{Connecting, Connection, ConnectionError, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::certificates::{LeafHash, Membership};
use super::handshake;
use super::verifier::Seen;
use crate::link::quic::endpoint::{self, Visitor};
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
            Purpose::Join { settings, control_port, lane_ports, door } => {
                let both = |(name, value): &(String, String)| (clean(name), clean(value));
                let settings = settings.iter().map(both).collect();
                Purpose::Join { settings, control_port, lane_ports, door }
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
        let from = endpoint::plain(self.connection.remote_address());
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

/// Why dialling did not lead to a welcome.
#[derive(Debug)]
pub(crate) enum DialError {
    /// It would fail again: another secret, another job, another version.
    Final(String),
    /// The peer has a reason against this process.
    Refused(String, Again),
    /// Nobody answers, or the peer says that it may go better later.
    Retry(String),
}

/// Greets `rank` on a connection that is being made, and waits for its answer. `seen` belongs to
/// the connection's verifier.
pub(crate) async fn introduce(
    connecting: Connecting,
    membership: &Membership,
    seen: &Seen,
    rank: u32,
    hello: &Hello,
) -> Result<Welcomed, DialError> {
    let address = endpoint::plain(connecting.remote_address());
    let refused = |error: &ConnectionError| {
        handshake::why_not_reached(membership, rank, address, seen, error)
    };
    let lost = |error: &dyn std::fmt::Display| {
        DialError::Retry(report::printable(&format!("{address}: {error}")))
    };
    let connection = connecting.await.map_err(|error| refused(&error))?;
    let (mut sender, mut receiver) = connection.open_bi().await.map_err(|e| lost(&e))?;
    // One that judges our certificate only now may have hung up; its answer says it.
    let sent = send(&mut sender, hello).await;
    let answer = match sent {
        Ok(()) => receive::<Answer>(&mut receiver, wire::MAX_HELLO_BYTES).await,
        Err(problem) => Err(problem),
    };
    match answer {
        Ok(Answer::Welcome) => {
            let leaf = identify(&connection, membership, rank).ok_or_else(|| lost(&"no name"))?;
            Ok(Welcomed { leaf, connection, sender, receiver })
        }
        Ok(Answer::Refused { reason, again }) => {
            let reason = report::printable(&reason);
            Err(match again {
                Again::Soon => DialError::Retry(reason),
                again => DialError::Refused(reason, again),
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
/// to be said where this end has closed meanwhile.
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
        server_name = name_dialled(&mut connecting).await;
        let connection = connecting.await?;
        let (sender, mut receiver) = connection.accept_bi().await?;
        let said = receive::<Hello>(&mut receiver, wire::MAX_HELLO_BYTES).await;
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
            told = Some(format!("another job, under another ALLFOLD_JOB ({job}), answers there"));
            (Refusal::Untrusted, reason)
        }
        (Ok(hello), None) => match identify(&connection, membership, hello.rank) {
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

/// The name that the peer dialled.
async fn name_dialled(connecting: &mut Connecting) -> Option<String> {
    let data = connecting.handshake_data().await.ok()?;
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.server_name
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

/// A peer that has not finished its handshake and said hello by then is dropped.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// A refused peer hangs up once it has read why.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
