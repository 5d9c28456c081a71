//! Links over QUIC: one connection to each peer of this lane, opened at first use.
//!
//! The lower rank dials. Every connection is checked against the leaf that rank 0's world table
//! names for the rank. On it each flow is one long-lived unidirectional stream.

#[cfg(test)]
mod beginnings;
pub(crate) mod binding;
#[cfg(test)]
mod discovery;
mod drops;
pub(crate) mod endpoint;
#[cfg(test)]
mod incast;
mod race;
pub(crate) mod routes;
mod socket;
pub(crate) mod tuning;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, RecvStream};
use tokio::sync::{mpsc, watch};

use super::{Flow, FlowReceiver, FlowSender, Incoming, LinkState};
use crate::error::Result;
use crate::report;
use crate::statistics::{Counters, LinkStatistics, Refusal, SocketStatistics};
use crate::trust::certificates::{LeafHash, Membership};
use crate::trust::hello::{self, Again, Answer, DialError, Greeted, Hello, Purpose};
use crate::wire::{PREAMBLE_BYTES, Preamble};
use drops::Drops;
use endpoint::{Complaints, OpenEndpoint};
use tuning::Traffic;

/// Where a rank's lane listens, the best address first, and with which certificate.
#[derive(Clone, Debug)]
pub(crate) struct LaneAddress {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) leaf: LeafHash,
}

/// Which lane it is, in which world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneId {
    pub(crate) epoch: u64,
    pub(crate) lane: u16,
    /// Of each rank.
    pub(crate) lanes: u16,
}

impl LaneId {
    /// Of ranks with one lane each.
    #[cfg(test)]
    pub(crate) fn only(epoch: u64) -> Self {
        Self { epoch, lane: 0, lanes: 1 }
    }

    fn traffic(self) -> Traffic {
        Traffic::Data { lanes: self.lanes }
    }
}

/// The connections of one lane.
pub(crate) struct QuicLinks(Rc<Shared>);

struct Shared {
    endpoint: OpenEndpoint,
    membership: Arc<Membership>,
    hello: Hello,
    id: LaneId,
    rank: u32,
    /// The same lane of all ranks.
    addresses: Vec<LaneAddress>,
    connections: RefCell<HashMap<u32, watch::Sender<Option<Connection>>>>,
    /// Of each peer that dialled, the attempt whose welcome it has not confirmed yet.
    welcoming: RefCell<HashMap<u32, Connection>>,
    /// Peers that are dialled in vain: since when, and why.
    in_vain: RefCell<HashMap<u32, (Instant, String)>>,
    flows: mpsc::UnboundedSender<Incoming>,
    counters: Arc<Counters>,
    inbox: tokio::sync::Mutex<mpsc::UnboundedReceiver<Incoming>>,
    closed: Cell<bool>,
    complaints: Complaints,
    drops: Drops,
}

impl QuicLinks {
    /// The links of a lane that listens on `socket`; to be made inside the lane's runtime.
    pub(crate) fn new(
        socket: UdpSocket,
        membership: Arc<Membership>,
        hello: Hello,
        id: LaneId,
        addresses: Vec<LaneAddress>,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        let drops = Drops::of(&socket);
        let (receive_buffer, send_buffer) = (binding::granted(&socket), binding::to_send(&socket));
        let endpoint = endpoint::open(socket, &membership, id.traffic())?;
        let (offload, watched) = (endpoint.offload(), drops.socket());
        counters.listens(move || {
            let (sent_at_once, received_at_once) = offload()?;
            let socket = watched.upgrade()?;
            Some(SocketStatistics {
                lane: id.lane.into(),
                address: routes::plain(socket.local_addr().ok()?),
                buffer_asked: tuning::SOCKET_BUFFER_BYTES,
                receive_buffer,
                send_buffer,
                dropped: drops::dropped(&*socket),
                sent_at_once,
                received_at_once,
            })
        });
        let (flows, inbox) = mpsc::unbounded_channel();
        let shared = Rc::new(Shared {
            endpoint: endpoint.clone(),
            membership,
            rank: hello.rank,
            hello,
            id,
            addresses,
            connections: RefCell::new(HashMap::new()),
            welcoming: RefCell::default(),
            in_vain: RefCell::default(),
            flows,
            counters: counters.clone(),
            inbox: tokio::sync::Mutex::new(inbox),
            closed: Cell::new(false),
            complaints: Complaints::default(),
            drops,
        });
        let door = shared.clone();
        let accepting =
            endpoint::accept(endpoint, shared.membership.clone(), counters, move |greeted| {
                tokio::task::spawn_local(door.clone().welcome(greeted));
            });
        tokio::task::spawn_local(accepting);
        Ok(Self(shared))
    }

    pub(crate) fn want(&self, peer: u32) {
        self.0.clone().connection(peer);
    }

    pub(crate) async fn open_flow(&self, flow: Flow) -> std::result::Result<FlowSender, String> {
        let mut connection = self.0.clone().connection(flow.peer);
        let connection = match connection.wait_for(Option::is_some).await {
            Ok(connection) => connection.clone(),
            Err(_) => None,
        };
        let connection = connection.ok_or("the lane is closing")?;
        // A peer that closes the connection gives its reason in its own words.
        let lost = |error: ConnectionError| report::printable(&error.to_string());
        let mut stream = connection.open_uni().await.map_err(lost)?;
        let Flow { group, tree, .. } = flow;
        let Shared { rank: from, id: LaneId { epoch, lane, .. }, .. } = *self.0;
        let preamble = Preamble { epoch, from, group, tree, lane };
        stream.write_all(&preamble.to_wire()).await.map_err(|error| error.to_string())?;
        Ok(FlowSender::Quic(stream))
    }

    pub(crate) async fn next_incoming(&self) -> Option<Incoming> {
        self.0.inbox.lock().await.recv().await
    }

    /// Tells how the links are that are open, or dialled in vain.
    pub(crate) fn each_state(&self, each: &mut dyn FnMut(LinkState<'_>)) {
        for (peer, connection) in self.0.connections.borrow().iter() {
            if let Some(connection) = &*connection.borrow()
                && connection.close_reason().is_none()
            {
                let received = connection.stats().udp_rx.datagrams;
                each(LinkState::Open { peer: *peer, received });
            }
        }
        for (peer, (since, problem)) in self.0.in_vain.borrow().iter() {
            each(LinkState::Dialling { peer: *peer, since: *since, problem });
        }
    }

    /// Warns if packets are lost for want of a buffer.
    pub(crate) fn look_for_drops(&self) {
        self.0.drops.look();
    }

    pub(crate) async fn close(&self) {
        self.0.closed.set(true);
        self.0.endpoint.close(CLOSED.into(), b"closed");
        // Not `wait_idle`: it would wait three probe timeouts, for peers that have said goodbye.
        tokio::time::sleep(CLOSE_TURN).await;
    }
}

impl Shared {
    /// The connection to `peer`, once there is one; the lower rank sees to it.
    fn connection(self: Rc<Self>, peer: u32) -> watch::Receiver<Option<Connection>> {
        if let Some(sender) = self.connections.borrow().get(&peer) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        self.connections.borrow_mut().insert(peer, sender);
        if self.rank < peer {
            tokio::task::spawn_local(self.dial(peer));
        }
        receiver
    }

    /// Dials until the peer answers. Whether it is late or dead is for the control endpoint.
    async fn dial(self: Rc<Self>, peer: u32) {
        let Some(LaneAddress { addresses, leaf }) = self.addresses.get(peer as usize).cloned()
        else {
            return;
        };
        let since = Instant::now();
        let mut has_warned = false;
        loop {
            let problem = match self.dial_once((peer, leaf), addresses.clone()).await {
                Ok(mut welcomed) => {
                    self.in_vain.borrow_mut().remove(&peer);
                    // Tells the peer that the welcome came before this end gave up on it.
                    let _ = welcomed.sender.finish();
                    return self.joined(peer, welcomed.connection);
                }
                Err(_) if self.closed.get() => return,
                Err(DialError::Final(reason) | DialError::Refused(reason, _)) => {
                    // It would be said many times a second, for as long as nobody ends the world.
                    if !std::mem::replace(&mut has_warned, true) {
                        report::warn(&reason);
                    }
                    reason
                }
                Err(
                    DialError::Elsewhere(reason)
                    | DialError::Retry(reason)
                    | DialError::Busy(reason),
                ) => reason,
            };
            self.in_vain.borrow_mut().insert(peer, (since, problem));
            tokio::time::sleep(DIAL_PAUSE).await;
        }
    }

    async fn dial_once(
        &self,
        (peer, leaf): (u32, LeafHash),
        addresses: Vec<SocketAddr>,
    ) -> std::result::Result<hello::Welcomed, DialError> {
        let mut hello = self.hello.clone();
        hello.purpose = Purpose::Lane { epoch: self.id.epoch, lane: self.id.lane };
        let caller = endpoint::Caller {
            endpoint: &self.endpoint,
            membership: &self.membership,
            traffic: self.id.traffic(),
        };
        caller.dial_any((peer, Some(leaf)), addresses, &hello, DIAL_LIMIT).await
    }

    /// Judges a peer that dialled this lane.
    async fn welcome(self: Rc<Self>, greeted: Greeted) {
        let hello = &greeted.hello;
        let epoch = match hello.purpose {
            Purpose::Lane { epoch, lane } if lane == self.id.lane => epoch,
            _ => return greeted.connection.close(REFUSED.into(), b"a lane takes its data only"),
        };
        let known = self.addresses.get(hello.rank as usize);
        if epoch != self.id.epoch || known.is_none_or(|known| known.leaf != greeted.leaf) {
            self.counters.refused(Refusal::OtherRun);
            let reason = "this lane belongs to another run of the job".to_string();
            self.complaints.say(&format!("refused {}: {reason}", greeted.who()));
            return greeted.refuse(reason, Again::Soon).await;
        }
        let Greeted { hello, connection, mut sender, mut receiver, .. } = greeted;
        // Who dials again has given up on the attempt before.
        let earlier = self.welcoming.borrow_mut().insert(hello.rank, connection.clone());
        if let Some(earlier) = earlier {
            earlier.close(REPLACED.into(), b"dialled again");
        }
        // The dialler ends its stream once it has the welcome; one that gave up never does, and its
        // connection must not be taken for the link. No time limit: a job that was frozen goes on.
        let is_heard = hello::send(&mut sender, &Answer::Welcome).await.is_ok()
            && receiver.read_to_end(0).await.is_ok();
        let mut welcoming = self.welcoming.borrow_mut();
        let latest = welcoming.get(&hello.rank).map(Connection::stable_id);
        if latest != Some(connection.stable_id()) {
            return;
        }
        welcoming.remove(&hello.rank);
        drop(welcoming);
        if is_heard {
            self.joined(hello.rank, connection);
        }
    }

    /// A connection is good: take it for flows, and read those that the peer opens.
    fn joined(self: Rc<Self>, peer: u32, connection: Connection) {
        let sender = self
            .connections
            .borrow_mut()
            .entry(peer)
            .or_insert_with(|| watch::channel(None).0)
            .clone();
        // A peer has one link, as it has one lane.
        if let Some(earlier) = sender.send_replace(Some(connection.clone())) {
            earlier.close(REPLACED.into(), b"replaced");
        }
        // Whoever asks for the round trip must not keep the connection open.
        let connection = Arc::new(connection);
        let link = Arc::downgrade(&connection);
        // The first lane's stands for all.
        if self.id.lane == 0 {
            self.counters.linked(peer, move || link.upgrade().map(|connection| state(&connection)));
        }
        tokio::task::spawn_local(async move {
            while let Ok(stream) = connection.accept_uni().await {
                // Side by side: what is lost of one stream's beginning holds up no other.
                tokio::task::spawn_local(self.clone().take_flow(peer, connection.clone(), stream));
            }
        });
    }

    /// Takes in a stream of `peer`, once its preamble says which flow it is.
    async fn take_flow(self: Rc<Self>, peer: u32, link: Arc<Connection>, mut stream: RecvStream) {
        let mut preamble = [0; PREAMBLE_BYTES];
        if stream.read_exact(&mut preamble).await.is_err() {
            return;
        }
        let is_expected =
            |p: &Preamble| (p.epoch, p.from, p.lane) == (self.id.epoch, peer, self.id.lane);
        match Preamble::from_wire(&preamble).filter(is_expected) {
            Some(Preamble { group, tree, .. }) => {
                let receiver = FlowReceiver::quic(stream);
                let _ = self.flows.send(Incoming { flow: Flow { peer, group, tree }, receiver });
            }
            None => link.close(REFUSED.into(), b"a stream without its preamble"),
        }
    }
}

fn state(connection: &Connection) -> LinkStatistics {
    let path = connection.stats().path;
    LinkStatistics {
        local: connection.local_ip().map(|ip| ip.to_canonical()),
        remote: routes::plain(connection.remote_address()),
        rtt: path.rtt,
        payload: path.current_mtu,
        packets_sent: path.sent_packets,
        packets_lost: path.lost_packets,
        probes_sent: path.sent_plpmtud_probes,
    }
}

/// Close codes, as the peer sees them.
const CLOSED: u32 = 0;
const REFUSED: u32 = 1;
const REPLACED: u32 = 2;
/// One attempt; the handshake's own retransmissions lie within it.
const DIAL_LIMIT: Duration = Duration::from_secs(2);
const DIAL_PAUSE: Duration = Duration::from_millis(50);
/// For the endpoint's task to send the close.
const CLOSE_TURN: Duration = Duration::from_millis(1);
