//! What the ranks tell each other before and after a link is measured, in fixed forms.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::trust::certificates::LeafHash;

/// Where a rank listens for the measurement, and with which certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) address: SocketAddr,
    pub(super) leaf: LeafHash,
}

impl Card {
    /// A card; all zero stands for a rank that has none to give.
    pub(super) fn to_bytes(card: Option<&Self>) -> [u8; CARD_BYTES] {
        let mut bytes = [0; CARD_BYTES];
        if let Some(Self { address, leaf }) = card {
            bytes[0] = if address.is_ipv4() { 4 } else { 6 };
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes[1..17].copy_from_slice(&ip.octets());
            bytes[17..19].copy_from_slice(&address.port().to_le_bytes());
            bytes[19..].copy_from_slice(leaf);
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; CARD_BYTES]) -> Option<Self> {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[1..17]);
        let ip = Ipv6Addr::from(octets);
        let ip = match bytes[0] {
            4 => IpAddr::V4(ip.to_ipv4_mapped()?),
            6 => IpAddr::V6(ip),
            _ => return None,
        };
        let mut leaf = [0; 32];
        leaf.copy_from_slice(&bytes[19..]);
        let port = u16::from_le_bytes([bytes[17], bytes[18]]);
        Some(Self { address: SocketAddr::new(ip, port), leaf })
    }
}

/// Text of at most so many bytes, zeros behind it.
pub(super) fn text_to_bytes(text: &str) -> [u8; TEXT_BYTES] {
    let mut bytes = [0; TEXT_BYTES];
    for (byte, from) in bytes.iter_mut().zip(text.bytes()) {
        *byte = from;
    }
    bytes
}

pub(super) fn text_from_bytes(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Family, address, port, leaf.
pub(super) const CARD_BYTES: usize = 1 + 16 + 2 + 32;
/// Of a problem in words.
pub(super) const TEXT_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_come_back() {
        for address in ["10.1.2.3:4711", "[fe80::1]:65535"] {
            let card = Card { address: address.parse().unwrap(), leaf: [9; 32] };
            assert_eq!(Card::from_bytes(&Card::to_bytes(Some(&card))), Some(card));
        }
        assert_eq!(Card::from_bytes(&Card::to_bytes(None)), None);
        assert_eq!(Card::from_bytes(&[255; CARD_BYTES]), None);
    }

    #[test]
    fn texts_come_back_as_far_as_there_is_room() {
        for text in ["", "nobody answers"] {
            assert_eq!(text_from_bytes(&text_to_bytes(text)), text);
        }
        assert_eq!(text_from_bytes(&text_to_bytes(&"x".repeat(1000))).len(), TEXT_BYTES);
    }
}
