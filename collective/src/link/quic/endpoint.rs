//! QUIC endpoints: configurations, how a rank is dialled, and the door that strangers knock at.

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connecting, ConnectionError, Endpoint, EndpointConfig, Incoming, ServerConfig,
};

use super::binding::granted;
use super::race;
use super::routes::{is_here, plain, source_of};
use super::socket::BatchSocket;
use super::tuning::{self, Path, Traffic};
use crate::error::{Error, Result};
use crate::report;
use crate::statistics::{Counters, Refusal};
use crate::trust::certificates::{LeafHash, Membership, initial_suite};
use crate::trust::hello::{self, Again, DialError, Greeted, Hello, Shaken, Stranger, Welcomed};
use crate::trust::verifier::Seen;

/// An endpoint, and what depends on its socket.
#[derive(Clone)]
pub(crate) struct OpenEndpoint {
    endpoint: Endpoint,
    socket: Arc<BatchSocket>,
    granted: usize,
    /// For peers of this host that come in by another way than a loopback address; none where all
    /// peers are of this host.
    near: Option<Arc<ServerConfig>>,
}

/// Somebody who has dialled, and is not let in yet.
pub(crate) struct Visitor {
    incoming: Incoming,
    near: Option<Arc<ServerConfig>>,
}

/// An endpoint that dials and accepts members of the job; to be made inside a runtime.
pub(crate) fn open(
    socket: UdpSocket,
    membership: &Membership,
    traffic: Traffic,
) -> Result<OpenEndpoint> {
    let failed = |problem: &dyn std::fmt::Display| Error::system("open a QUIC endpoint", problem);
    let local = socket.local_addr().map_err(|e| failed(&e))?;
    let granted = granted(&socket);
    let near_path = Path::new(traffic, true, granted);
    let path = Path::new(traffic, local.ip().is_loopback(), granted);
    let largest_packet = near_path.largest_packet.max(path.largest_packet);
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(largest_packet).map_err(|e| failed(&e))?;
    let near = match path.is_near {
        true => None,
        false => Some(Arc::new(server(membership, traffic, near_path)?)),
    };
    let server = server(membership, traffic, path)?;
    socket.set_nonblocking(true).map_err(|e| failed(&e))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    #[cfg(feature = "faults")]
    let socket = crate::faults::open(socket);
    #[cfg(not(feature = "faults"))]
    let socket = quinn::Runtime::wrap_udp_socket(&*runtime, socket);
    let socket = socket.map_err(|e| failed(&e))?;
    let first_packet = near_path.first_packet.max(path.first_packet);
    let socket = Arc::new(BatchSocket::new(socket, first_packet, largest_packet));
    let endpoint =
        Endpoint::new_with_abstract_socket(config, Some(server), socket.clone(), runtime)
            .map_err(|e| failed(&e))?;
    Ok(OpenEndpoint { endpoint, socket, granted, near })
}

impl OpenEndpoint {
    /// The next one who dials; None when the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<Visitor> {
        Some(Visitor { incoming: self.endpoint.accept().await?, near: self.near.clone() })
    }

    /// Asks how many packets the system takes at once, and hands over at once; None once the
    /// endpoint is gone.
    pub(super) fn offload(&self) -> impl Fn() -> Option<(usize, usize)> + Send + Sync + use<> {
        let socket = Arc::downgrade(&self.socket);
        move || socket.upgrade().map(|socket| socket.offload())
    }
}

impl Deref for OpenEndpoint {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Visitor {
    pub(crate) fn address(&self) -> SocketAddr {
        plain(self.incoming.remote_address())
    }

    /// Begins the handshake, with settings for where it comes from.
    pub(crate) fn accept(self) -> std::result::Result<Connecting, ConnectionError> {
        let ip = self.incoming.remote_address().ip();
        match self.near.filter(|_| is_here(ip)) {
            Some(near) => self.incoming.accept_with(near),
            None => self.incoming.accept(),
        }
    }
}

/// Who dials: from which endpoint, as which member, what for.
pub(crate) struct Caller<'a> {
    pub(crate) endpoint: &'a OpenEndpoint,
    pub(crate) membership: &'a Membership,
    pub(crate) traffic: Traffic,
}

impl Caller<'_> {
    /// Dials `rank` at `address` and greets it, each within `limit`.
    #[cfg(test)]
    pub(crate) async fn dial(
        &self,
        rank: u32,
        address: SocketAddr,
        hello: &Hello,
        limit: Duration,
    ) -> std::result::Result<Welcomed, DialError> {
        self.dial_any((rank, None), vec![address], hello, limit).await.map_err(
            |error| match error {
                DialError::Elsewhere(reason) => DialError::Final(reason),
                error => error,
            },
        )
    }

    /// Dials `rank`, of this key if it is known, at all these addresses side by side, and greets it
    /// at one. The best stand first; each attempt, and the greeting, has so long.
    pub(crate) async fn dial_any(
        &self,
        (rank, leaf): (u32, Option<LeafHash>),
        mut addresses: Vec<SocketAddr>,
        hello: &Hello,
        limit: Duration,
    ) -> std::result::Result<Welcomed, DialError> {
        // What is an address of this host may be one of the peer's host too, such as a bridge's
        // that every host has: packets to it do not leave.
        addresses.sort_by_cached_key(|address| is_here(address.ip()));
        // A process that has refused this one is the same at its other addresses.
        let refused: RefCell<Vec<(LeafHash, String, Again)>> = RefCell::default();
        let connect = async |way: usize| {
            let address = addresses[way];
            let silent = || DialError::Retry(format!("{address} does not answer"));
            let shaking = tokio::time::timeout(limit, self.connect(rank, address));
            let shaken = shaking.await.unwrap_or_else(|_| Err(silent()))?;
            match leaf.is_none_or(|leaf| leaf == shaken.leaf) {
                true => Ok(shaken),
                false => Err(DialError::Elsewhere(format!("another process answers at {address}"))),
            }
        };
        let greet = async |shaken: Shaken| {
            let leaf = shaken.leaf;
            let earlier = refused.borrow().iter().find(|(of, ..)| *of == leaf).cloned();
            if let Some((_, reason, again)) = earlier {
                return Err(DialError::Refused(reason, again));
            }
            let silent = DialError::Retry(format!("{} does not answer", shaken.address));
            let greeting = hello::introduce(shaken, self.membership, rank, hello);
            let outcome = tokio::time::timeout(limit, greeting).await.unwrap_or(Err(silent));
            if let Err(DialError::Refused(reason, again)) = &outcome {
                refused.borrow_mut().push((leaf, reason.clone(), *again));
            }
            outcome
        };
        match race::race(addresses.len(), connect, greet).await {
            Err(DialError::Refused(reason, Again::Soon)) => Err(DialError::Retry(reason)),
            outcome => outcome,
        }
    }

    /// Connects to `rank` at `address`, and says nothing yet.
    async fn connect(
        &self,
        rank: u32,
        address: SocketAddr,
    ) -> std::result::Result<Shaken, DialError> {
        // quinn waits where the system knows at once.
        source_of(address)
            .map_err(|error| DialError::Retry(format!("{address}: {}", plainly(&error))))?;
        let seen = Seen::default();
        let path = Path::new(self.traffic, is_here(address.ip()), self.endpoint.granted);
        let client = client(self.membership, self.traffic, (rank, path), seen.clone())
            .map_err(|error| DialError::Final(error.to_string()))?;
        let connecting = self
            .endpoint
            .connect_with(client, address, &self.membership.name_of(rank))
            .map_err(|error| DialError::Retry(format!("cannot dial {address}: {error}")))?;
        hello::shake(connecting, self.membership, seen, rank).await
    }
}

/// An error of the system in its own words, without its number.
pub(crate) fn plainly(error: &std::io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    let mut letters = words.chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

/// The configuration for dialling a rank.
pub(super) fn client(
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
    endpoint: OpenEndpoint,
    membership: Arc<Membership>,
    counters: Arc<Counters>,
    each: impl Fn(Greeted) + 'static,
) {
    let each = Rc::new(each);
    let half_open = Rc::new(Cell::new(0));
    let complaints = Rc::new(Complaints::default());
    while let Some(visitor) = endpoint.accept().await {
        if half_open.get() >= tuning::HALF_OPEN_MAX {
            counters.refused(Refusal::TooMany);
            visitor.incoming.refuse();
            continue;
        }
        if half_open.get() >= tuning::HALF_OPEN_BEFORE_RETRY && visitor.incoming.may_retry() {
            // Fails only where `may_retry` is false.
            let _ = visitor.incoming.retry();
            continue;
        }
        let (membership, each) = (membership.clone(), each.clone());
        let (complaints, counters) = (complaints.clone(), counters.clone());
        let counted = HalfOpen::new(half_open.clone());
        tokio::task::spawn_local(async move {
            let greeted = hello::greet(visitor, &membership).await;
            drop(counted);
            match greeted {
                Ok(greeted) => each(greeted),
                Err(Stranger { refusal, problem: Some(problem) }) => {
                    counters.refused(refusal);
                    complaints.say(&problem);
                }
                // It may have found this rank at another address; anybody can say so.
                Err(Stranger { refusal: Refusal::HungUp, .. }) => counters.refused(Refusal::HungUp),
                // This end has closed meanwhile.
                Err(Stranger { problem: None, .. }) => {}
            }
        });
    }
}

/// One of the handshakes that have begun and not ended, however they end: tokio keeps a panic to
/// its task.
struct HalfOpen(Rc<Cell<usize>>);

impl HalfOpen {
    fn new(all: Rc<Cell<usize>>) -> Self {
        all.set(all.get() + 1);
        Self(all)
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
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

pub(super) fn server(
    membership: &Membership,
    traffic: Traffic,
    path: Path,
) -> Result<ServerConfig> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_that_panics_is_no_longer_half_open() {
        let half_open = Rc::new(Cell::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let counted = HalfOpen::new(half_open.clone());
            let seen = half_open.clone();
            let handshake = tokio::task::spawn_local(async move {
                let _counted = counted;
                assert_ne!(seen.get(), 1, "on purpose");
            });
            assert!(handshake.await.unwrap_err().is_panic());
        });
        assert_eq!(half_open.get(), 0);
    }
}
