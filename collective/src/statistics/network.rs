//! What carries a rank's data between hosts: its links and its sockets, as they are now.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The QUIC link that carries the data to a peer, as it is now: the first lane's, which stands for
/// all.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStatistics {
    /// This end; None where the system does not say.
    pub local: Option<IpAddr>,
    /// Where the peer was found, or where it came from.
    pub remote: SocketAddr,
    /// The smoothed round trip.
    pub rtt: Duration,
    /// The largest UDP payload that is sent, as far as the search for it has come.
    pub payload: u16,
    /// Packets sent, also those that were lost and those that the search needed.
    pub packets_sent: u64,
    /// Packets taken for lost and sent again, those of the search not counted.
    pub packets_lost: u64,
    /// Packets sent to find out how large they may be. As long as packets are sent and the search
    /// goes on, this grows with each round trip or two.
    pub probes_sent: u64,
}

/// The UDP socket of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketStatistics {
    /// Which lane's.
    pub lane: usize,
    /// Where it listens.
    pub address: SocketAddr,
    /// The bytes asked of the system for each of its two buffers.
    pub buffer_asked: usize,
    /// What the system gave for received bytes, at most `net.core.rmem_max`.
    pub receive_buffer: usize,
    /// What the system gave for bytes to be sent, at most `net.core.wmem_max`.
    pub send_buffer: usize,
    /// Packets that the system threw away since the socket was made, because the buffer was full;
    /// None where it does not say.
    pub dropped: Option<u32>,
    /// Packets that the system takes at once (GSO); 1: it takes each alone.
    pub sent_at_once: usize,
    /// Packets that the system hands over at once (GRO); 1: each alone.
    pub received_at_once: usize,
}
