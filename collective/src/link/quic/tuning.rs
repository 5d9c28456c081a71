//! Every number of the QUIC links, with its reason.

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Control,
    /// One of so many lanes between the same ranks.
    Data {
        lanes: u16,
    },
    /// As data, with packets of that size if one is given.
    Probe {
        payload: Option<u16>,
    },
}

/// What depends on where a peer is, and on what the system has granted the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The peer is of this host.
    pub(crate) is_near: bool,
    /// The UDP payload of the first packets.
    pub(crate) first_packet: u16,
    /// The largest that is tried, and taken.
    pub(crate) largest_packet: u16,
    /// Sent and not acknowledged.
    pub(crate) flight: u64,
    /// What congestion control begins with.
    pub(crate) first_window: u64,
    /// One acknowledgement for so many packets.
    ack_every: u32,
    /// Between the same ranks: they share what may be under way to a peer on another host, and what
    /// may wait to be read.
    lanes: u32,
}

impl Path {
    /// To a peer of this host or of another one, from a socket that may hold `granted` bytes of what
    /// it receives.
    pub(crate) fn new(traffic: Traffic, is_near: bool, granted: usize) -> Self {
        let lanes = match traffic {
            Traffic::Data { lanes } => u32::from(lanes.max(1)),
            Traffic::Control | Traffic::Probe { .. } => 1,
        };
        let mut path = match is_near {
            true => Self { lanes, ..Self::within_host(granted) },
            false => Self {
                is_near,
                first_packet: SURE_MTU,
                largest_packet: NETWORK_MTU,
                flight: (STREAM_WINDOW / lanes).into(),
                first_window: NETWORK_FIRST_WINDOW,
                ack_every: ACK_EVERY,
                lanes,
            },
        };
        match traffic {
            Traffic::Control => {
                (path.first_packet, path.largest_packet) = (SURE_MTU, CONTROL_MTU);
            }
            Traffic::Probe { payload: Some(payload) } => {
                (path.first_packet, path.largest_packet) = (payload, payload);
            }
            Traffic::Data { .. } | Traffic::Probe { payload: None } => {}
        }
        let most = match path.largest_packet {
            LARGE_PACKET.. => ACK_EVERY_LARGE,
            _ => ACK_EVERY,
        };
        // Else what is under way would wait for an acknowledgement that waits for more.
        let packets = path.flight / u64::from(path.largest_packet);
        // quinn acknowledges when there are more than so many.
        let half = packets.div_ceil(2).saturating_sub(1);
        path.ack_every = half.min(most.into()) as u32;
        path
    }

    /// Within a host a packet is lost only where the socket it is for is full, so that no more is
    /// under way than fits in there. The peer's was granted as much: it is the same system; and every
    /// lane has a socket of its own.
    fn within_host(granted: usize) -> Self {
        let flight = (granted as u64).clamp(LEAST_FLIGHT, LOOPBACK_FLIGHT);
        let largest_packet = (flight / FLIGHT_PACKETS).clamp(SURE_MTU.into(), LOOPBACK_MTU.into());
        Self {
            is_near: true,
            first_packet: (largest_packet as u16).min(LOOPBACK_FIRST_MTU),
            largest_packet: largest_packet as u16,
            flight,
            first_window: flight,
            ack_every: ACK_EVERY,
            lanes: 1,
        }
    }
}

/// The transport settings of connections on that path.
pub(crate) fn transport(traffic: Traffic, path: Path) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    // The control endpoint judges who is dead, and a verdict closes everything. A job that was
    // frozen for minutes goes on; handshakes have a limit of their own.
    config.max_idle_timeout(None);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.initial_rtt(if path.is_near { LOOPBACK_RTT } else { NETWORK_RTT });
    match traffic {
        Traffic::Control => {
            config.max_concurrent_bidi_streams(VarInt::from_u32(1));
            config.max_concurrent_uni_streams(VarInt::from_u32(0));
            // Only the latest heartbeats matter.
            config.datagram_receive_buffer_size(Some(64 * 1024));
            config.datagram_send_buffer_size(8 * 1024);
        }
        Traffic::Data { .. } | Traffic::Probe { .. } => {
            config.max_concurrent_bidi_streams(VarInt::from_u32(1));
            config.max_concurrent_uni_streams(VarInt::from_u32(MAX_FLOWS));
            let window = STREAM_WINDOW / path.lanes;
            config.stream_receive_window(VarInt::from_u32(window));
            // At least the sum of its streams' windows: one unread stream must not starve another.
            let all = u64::from(window) * u64::from(MAX_FLOWS);
            config.receive_window(VarInt::from_u64(all).unwrap_or(VarInt::MAX));
            config.send_window(path.flight);
            config.datagram_receive_buffer_size(None);
            config.initial_mtu(path.first_packet);
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(path.largest_packet);
            discovery.interval(SEARCH_EVERY).black_hole_cooldown(SEARCH_AGAIN);
            config.mtu_discovery_config(Some(discovery));
            let mut acks = AckFrequencyConfig::default();
            acks.ack_eliciting_threshold(VarInt::from_u32(path.ack_every));
            acks.max_ack_delay(Some(ACK_DELAY));
            config.ack_frequency_config(Some(acks));
            let mut congestion = CubicConfig::default();
            congestion.initial_window(path.first_window);
            config.congestion_controller_factory(Arc::new(congestion));
        }
    }
    if let Traffic::Probe { payload: Some(_) } = traffic {
        config.mtu_discovery_config(None);
    }
    Arc::new(config)
}

/// What Linux sends at once at most, in one packet or in a batch of them: IPv4's 65,535 without the
/// headers. `link/quic/socket.rs` sees to it.
pub(crate) const MAX_BATCH_BYTES: usize = 65_507;
/// Of packets that wait: the buffers of four of the largest stay in the cache where 32 do not.
pub(crate) const RECEIVED_AT_ONCE: usize = 4;
/// The largest packets that can be asked of a probe: ten of them fit one batch.
pub(crate) const MAX_PROBE_PAYLOAD: u16 = 6_500;
/// Asked of the system for each socket; it grants what net.core.rmem_max allows.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// net.core.rmem_max where nobody has set it.
pub(crate) const SURE_BUFFER_BYTES: usize = 212_992;
/// Half-open connections beyond this must prove their address first.
pub(crate) const HALF_OPEN_BEFORE_RETRY: usize = 16;
/// A person needs to know that somebody knocks, not each time.
pub(crate) const COMPLAIN_EVERY: Duration = Duration::from_secs(1);
/// What a stranger's first packets may fill: a ClientHello takes one or two. quinn's default is
/// 10 MiB each and 100 MiB together.
pub(crate) const KNOCKING_BYTES: u64 = 16 * 1024;
/// And beyond this they are refused: a handshake holds some 20 KiB.
pub(crate) const HALF_OPEN_MAX: usize = 256;

/// Smaller packets are the ends of messages and acknowledgements.
pub(crate) const FULL_PACKET: usize = SURE_MTU as usize;
/// What every path lets through that QUIC works on (RFC 9000, 14).
const SURE_MTU: u16 = 1_200;
/// Jumbo frames of 9,000 bytes, less the headers of IPv6 and UDP. Discovery finds what there is.
const NETWORK_MTU: u16 = 8_952;
/// quinn's default. Control messages are small.
const CONTROL_MTU: u16 = 1_472;
/// The loopback interface takes 65,536 bytes with all headers. Measured: twice as fast as ten
/// packets of 6,500 in one batch. A segment (`plan/costs.rs`) fits into one packet.
const LOOPBACK_MTU: u16 = 65_000;
/// quinn makes no handshake packets of 16,384 bytes or more: it panics. Discovery goes on from here.
const LOOPBACK_FIRST_MTU: u16 = 16_000;
/// Measured: with 8 MiB it is 10 % slower, because what is sent and what has arrived leave the
/// cache; with 512 KiB packets are waited for. Divided among several lanes it costs 5 %.
const LOOPBACK_FLIGHT: u64 = 1024 * 1024;
/// A packet takes more of a socket's buffer than its bytes, and acknowledgements are for several:
/// so many must be under way at once.
const FLIGHT_PACKETS: u64 = 8;
/// Of the smallest packets. A socket that holds less loses some of them.
const LEAST_FLIGHT: u64 = FLIGHT_PACKETS * SURE_MTU as u64;
/// Packets of this size and more are acknowledged more often.
const LARGE_PACKET: u16 = 16_000;
/// Of which sixteen are under way at most.
const ACK_EVERY_LARGE: u32 = 4;
/// A search that meets with losses of another cause ends at too small a packet, and quinn's 600 s
/// are as long as many jobs. A search in vain is some 30 packets, 5 KB/s; where packets already have
/// the largest size it is none.
const SEARCH_EVERY: Duration = Duration::from_secs(30);
/// After packets were lost as they are where a path lets only small ones through, which is also what
/// a full buffer does to a few bursts; quinn has 60 s. The smallest packets until then leave a queue
/// time to drain, and where only they pass the search finds that out by probes alone.
const SEARCH_AGAIN: Duration = Duration::from_secs(2);
/// Flows from one peer at a time: two trees and a pair on each of the communicators that a world
/// may have open (256). A flow costs memory only while it carries data that nobody reads.
const MAX_FLOWS: u32 = 1024;
/// 10 Gbit/s at 6 ms, or 1 Gbit/s at 60 ms. Larger windows keep more of the data out of the cache.
/// The lanes between two ranks share it, so that more of them take no more memory.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// Measured: an acknowledgement for every 20 packets instead of 2 is worth a quarter of the
/// throughput on loopback.
const ACK_EVERY: u32 = 20;
/// quinn's 25 ms, with so few acknowledgements, let a new connection's first 80 KiB take 80 ms:
/// each window waited for the delay to pass.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// Ten times RFC 9002's: a gradient is no web page, and a switch port buffers more than this.
const NETWORK_FIRST_WINDOW: u64 = 128 * 1024;
/// A data link may lie idle while a rank computes. As often as heartbeats: `lane/silence.rs` goes by
/// it.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Three times this is the first retransmission: a rank that dials before rank 0 listens loses
/// 15 ms. On a busy host a packet is sent twice now and then, which costs nothing.
const LOOPBACK_RTT: Duration = Duration::from_millis(5);
/// quinn's 333 ms would make a lost first packet cost a second.
const NETWORK_RTT: Duration = Duration::from_millis(100);

/// Between the starts of attempts at a peer's addresses: what RFC 8305, 8, recommends as the least.
/// Ranks are near each other.
pub(super) const STAGGER: Duration = Duration::from_millis(100);
/// For the other addresses of one that refuses to lead to somebody else after all.
pub(super) const GRACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::costs::SEGMENT_BYTES;
    use crate::wire::HEADER_BYTES;

    fn within_host(granted: usize) -> Path {
        Path::new(Traffic::Data { lanes: 1 }, true, granted)
    }

    #[test]
    fn what_is_under_way_within_a_host_fits_the_buffer() {
        for granted in [16 << 10, 128 << 10, SURE_BUFFER_BYTES, SOCKET_BUFFER_BYTES, 64 << 20] {
            let path = within_host(granted);
            assert!(path.flight <= granted as u64 && path.first_window <= granted as u64);
            assert!(path.first_packet < 16_384, "a handshake would panic");
        }
    }

    #[test]
    fn half_of_what_is_under_way_is_acknowledged() {
        // From the least that Linux lets net.core.rmem_max be.
        let granted = [2_304, 16 << 10, 64 << 10, 127 << 10, SURE_BUFFER_BYTES, 64 << 20];
        let traffic = [
            Traffic::Data { lanes: 1 },
            Traffic::Data { lanes: 8 },
            Traffic::Probe { payload: Some(MAX_PROBE_PAYLOAD) },
        ];
        for (granted, traffic) in granted.into_iter().flat_map(|g| traffic.map(|t| (g, t))) {
            for is_near in [true, false] {
                let path = Path::new(traffic, is_near, granted);
                let packets = (path.flight / u64::from(path.largest_packet)).max(1);
                let half = packets.div_ceil(2);
                assert!(u64::from(path.ack_every) < half, "{granted}: {path:?}");
            }
        }
    }

    #[test]
    fn more_lanes_have_no_more_under_way_between_hosts() {
        let flight = |lanes| {
            let path = Path::new(Traffic::Data { lanes }, false, 64 << 20);
            path.flight * u64::from(lanes)
        };
        assert_eq!([flight(1), flight(2), flight(8)], [u64::from(STREAM_WINDOW); 3]);
    }

    #[test]
    fn a_segment_fits_one_packet_where_the_buffer_allows() {
        // A long packet header, a stream frame's, and the tag.
        let around = 64;
        let segment = SEGMENT_BYTES as usize + HEADER_BYTES + around;
        assert!(usize::from(within_host(SOCKET_BUFFER_BYTES).largest_packet) >= segment);
    }
}
