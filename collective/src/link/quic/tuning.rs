//! Every number of the QUIC links, with its reason.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    Control,
    Data,
    /// As data, with packets of that size if one is given.
    Probe {
        payload: Option<u16>,
    },
}

/// The transport settings towards `peer`.
pub(crate) fn transport(traffic: Traffic, peer: IpAddr) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    // The control endpoint judges who is dead, and a verdict closes everything. A job that was
    // frozen for minutes goes on; handshakes have a limit of their own.
    config.max_idle_timeout(None);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    if peer.is_loopback() {
        config.initial_rtt(LOOPBACK_RTT);
    } else {
        config.initial_rtt(NETWORK_RTT);
    }
    match traffic {
        Traffic::Control => {
            config.max_concurrent_bidi_streams(VarInt::from_u32(1));
            config.max_concurrent_uni_streams(VarInt::from_u32(0));
            // Only the latest heartbeats matter.
            config.datagram_receive_buffer_size(Some(64 * 1024));
            config.datagram_send_buffer_size(8 * 1024);
        }
        Traffic::Data | Traffic::Probe { .. } => {
            config.max_concurrent_bidi_streams(VarInt::from_u32(1));
            config.max_concurrent_uni_streams(VarInt::from_u32(MAX_FLOWS));
            config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
            // At least the sum of its streams' windows: one unread stream must not starve another.
            let all = u64::from(STREAM_WINDOW) * u64::from(MAX_FLOWS);
            config.receive_window(VarInt::from_u64(all).unwrap_or(VarInt::MAX));
            config.send_window(u64::from(STREAM_WINDOW));
            config.datagram_receive_buffer_size(None);
            if peer.is_loopback() {
                config.initial_mtu(LOOPBACK_MTU);
            }
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(LOOPBACK_MTU);
            config.mtu_discovery_config(Some(discovery));
            let mut acks = AckFrequencyConfig::default();
            acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
            acks.max_ack_delay(Some(ACK_DELAY));
            config.ack_frequency_config(Some(acks));
            let mut congestion = CubicConfig::default();
            congestion.initial_window(if peer.is_loopback() {
                LOOPBACK_FIRST_WINDOW
            } else {
                NETWORK_FIRST_WINDOW
            });
            config.congestion_controller_factory(Arc::new(congestion));
        }
    }
    if let Traffic::Probe { payload: Some(payload) } = traffic {
        config.initial_mtu(payload);
        config.mtu_discovery_config(None);
    }
    Arc::new(config)
}

/// Ten segments of it fit one sendmsg of at most 65,507 bytes. More, and Linux refuses the batch
/// while quinn-udp takes it for sent: all of it would be lost in silence.
pub(crate) const LOOPBACK_MTU: u16 = 6_500;
/// quinn's default for the endpoint, 1,472, would cap every packet.
pub(crate) const MAX_UDP_PAYLOAD: u16 = LOOPBACK_MTU;
/// Asked of the system for each socket; it grants what net.core.rmem_max allows.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Half-open connections beyond this must prove their address first.
pub(crate) const HALF_OPEN_BEFORE_RETRY: usize = 16;
/// A person needs to know that somebody knocks, not each time.
pub(crate) const COMPLAIN_EVERY: Duration = Duration::from_secs(1);
/// What a stranger's first packets may fill: a ClientHello takes one or two. quinn's default is
/// 10 MiB each and 100 MiB together.
pub(crate) const KNOCKING_BYTES: u64 = 16 * 1024;
/// And beyond this they are refused: a handshake holds some 20 KiB.
pub(crate) const HALF_OPEN_MAX: usize = 256;

/// Flows from one peer at a time: two trees and a pair on each of the communicators that a world
/// may have open (256). A flow costs memory only while it carries data that nobody reads.
const MAX_FLOWS: u32 = 1024;
/// 10 Gbit/s at 6 ms, or 1 Gbit/s at 60 ms. Larger windows keep more of the data out of the cache.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// Measured: an acknowledgement for every 20 packets instead of 2 is worth a quarter of the
/// throughput on loopback.
const ACK_EVERY: u32 = 20;
/// quinn's 25 ms, with so few acknowledgements, let a new connection's first 80 KiB take 80 ms:
/// each window waited for the delay to pass.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// Nothing is congested within a host but the socket buffer, and that holds this much.
const LOOPBACK_FIRST_WINDOW: u64 = 1024 * 1024;
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
