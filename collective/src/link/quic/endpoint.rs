//! QUIC endpoints: sockets, configurations, and the door that strangers knock at.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig};

use super::socket::BatchSocket;
use super::tuning::{self, Path, Traffic};
use crate::error::{Error, ErrorKind, Result};
use crate::report;
use crate::statistics::{Counters, Refusal};
use crate::trust::certificates::{Membership, initial_suite};
use crate::trust::hello::{self, DialError, Greeted, Hello, Stranger, Welcomed};
use crate::trust::verifier::Seen;

/// Binds a UDP socket with large buffers.
pub(crate) fn bind(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).map_err(|error| {
        let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
        Error::from(ErrorKind::Bind {
            address: address.to_string(),
            problem: if in_use {
                "another process listens there".into()
            } else {
                error.to_string()
            },
            help: in_use.then(|| {
                let port = address.port();
                format!(
                    "`ss -ulpn 'sport = :{port}'` shows it: another job, or another rank 0? \
                     Choose another port in ALLFOLD_RENDEZVOUS or MASTER_PORT"
                )
            }),
        })
    })?;
    enlarge(&socket);
    Ok(socket)
}

/// Asks for large socket buffers; the system grants what it allows.
pub(crate) fn enlarge(socket: &UdpSocket) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_recv_buffer_size(socket, tuning::SOCKET_BUFFER_BYTES);
    let _ = sockopt::set_socket_send_buffer_size(socket, tuning::SOCKET_BUFFER_BYTES);
}

/// What the system grants a socket to receive into, of what is asked.
pub(crate) fn granted() -> usize {
    static GRANTED: OnceLock<usize> = OnceLock::new();
    *GRANTED.get_or_init(|| {
        let scratch = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let granted = scratch.ok().and_then(|socket| {
            enlarge(&socket);
            rustix::net::sockopt::socket_recv_buffer_size(&socket).ok()
        });
        // Linux doubles what was asked for, for its own needs.
        granted.map_or(tuning::SURE_BUFFER_BYTES, |doubled| doubled / 2)
    })
}

/// An endpoint that dials and accepts members of the job; to be made inside a runtime.
pub(crate) fn open(
    socket: UdpSocket,
    membership: &Membership,
    traffic: Traffic,
) -> Result<Endpoint> {
    let failed = |problem: &dyn std::fmt::Display| Error::system("open a QUIC endpoint", problem);
    let local = socket.local_addr().map_err(|e| failed(&e))?;
    let mut config = EndpointConfig::default();
    let path = Path::new(traffic, local.ip(), granted());
    config.max_udp_payload_size(path.largest_packet).map_err(|e| failed(&e))?;
    let server = server(membership, traffic, path)?;
    socket.set_nonblocking(true).map_err(|e| failed(&e))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    #[cfg(feature = "faults")]
    let socket = crate::faults::open(socket);
    #[cfg(not(feature = "faults"))]
    let socket = quinn::Runtime::wrap_udp_socket(&*runtime, socket);
    let socket = socket.map_err(|e| failed(&e))?;
    let socket = Arc::new(BatchSocket::new(socket, path));
    Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
        .map_err(|e| failed(&e))
}

/// Who dials: from which endpoint, as which member, what for.
pub(crate) struct Caller<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) membership: &'a Membership,
    pub(crate) traffic: Traffic,
}

impl Caller<'_> {
    /// Dials `rank` at `address` and greets it, within `limit`.
    pub(crate) async fn dial(
        &self,
        rank: u32,
        address: SocketAddr,
        hello: &Hello,
        limit: Duration,
    ) -> std::result::Result<Welcomed, DialError> {
        let seen = Seen::default();
        let local = self.endpoint.local_addr().map_or(address.ip(), |local| local.ip());
        let mut path = Path::new(self.traffic, local, granted());
        path.is_loopback |= address.ip().is_loopback();
        let client = client(self.membership, self.traffic, (rank, path), seen.clone())
            .map_err(|error| DialError::Final(error.to_string()))?;
        let connecting = self
            .endpoint
            .connect_with(client, address, &self.membership.name_of(rank))
            .map_err(|error| DialError::Final(format!("cannot dial {address}: {error}")))?;
        let greeting = hello::introduce(connecting, self.membership, &seen, rank, hello);
        match tokio::time::timeout(limit, greeting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(DialError::Retry(format!("{address} does not answer"))),
        }
    }
}

/// The configuration for dialling a rank.
fn client(
    membership: &Membership,
    traffic: Traffic,
    (rank, path): (u32, Path),
    seen: Seen,
) -> Result<ClientConfig> {
    let tls = Arc::new(membership.client(rank, seen)?);
    let crypto = QuicClientConfig::with_initial(tls, initial_suite()?).map_err(no_suite)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(tuning::transport(traffic, path));
    Ok(config)
}

/// Lets members in: finishes handshakes within limits, and hands every peer that has said hello to
/// `each`.
pub(crate) async fn accept(
    endpoint: Endpoint,
    membership: Arc<Membership>,
    counters: Arc<Counters>,
    each: impl Fn(Greeted) + 'static,
) {
    let each = Rc::new(each);
    let half_open = Rc::new(Cell::new(0usize));
    let complaints = Rc::new(Complaints::default());
    while let Some(incoming) = endpoint.accept().await {
        if half_open.get() >= tuning::HALF_OPEN_MAX {
            counters.refused(Refusal::TooMany);
            incoming.refuse();
            continue;
        }
        if half_open.get() >= tuning::HALF_OPEN_BEFORE_RETRY && incoming.may_retry() {
            // Fails only where `may_retry` is false.
            let _ = incoming.retry();
            continue;
        }
        let (membership, each, half_open) = (membership.clone(), each.clone(), half_open.clone());
        let (complaints, counters) = (complaints.clone(), counters.clone());
        half_open.set(half_open.get() + 1);
        tokio::task::spawn_local(async move {
            let greeted = hello::greet(incoming, &membership).await;
            half_open.set(half_open.get() - 1);
            match greeted {
                Ok(greeted) => each(greeted),
                Err(Stranger { refusal, problem }) => {
                    counters.refused(refusal);
                    problem.iter().for_each(|problem| complaints.say(problem));
                }
            }
        });
    }
}

/// Warnings about strangers: whoever knocks again and again must not fill the log.
#[derive(Default)]
pub(crate) struct Complaints {
    last: Cell<Option<Instant>>,
    unsaid: Cell<u32>,
}

impl Complaints {
    pub(crate) fn say(&self, problem: &str) {
        if self.last.get().is_some_and(|last| last.elapsed() < tuning::COMPLAIN_EVERY) {
            return self.unsaid.set(self.unsaid.get().saturating_add(1));
        }
        self.last.set(Some(Instant::now()));
        match self.unsaid.take() {
            0 => report::warn(problem),
            more => report::warn(&format!("{problem} (and {more} more since the last warning)")),
        }
    }
}

fn server(membership: &Membership, traffic: Traffic, path: Path) -> Result<ServerConfig> {
    let crypto = QuicServerConfig::with_initial(Arc::new(membership.server()?), initial_suite()?)
        .map_err(no_suite)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(tuning::transport(traffic, path));
    config.migration(false);
    config.max_incoming(tuning::HALF_OPEN_MAX);
    config.incoming_buffer_size(tuning::KNOCKING_BYTES);
    config.incoming_buffer_size_total(tuning::KNOCKING_BYTES * tuning::HALF_OPEN_MAX as u64);
    Ok(config)
}

fn no_suite(error: quinn::crypto::rustls::NoInitialCipherSuite) -> Error {
    Error::system("set up TLS for QUIC", error)
}
