//! Packets that the system dropped because a socket's buffer was full.

use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{endpoint, tuning};
use crate::report;

/// Warns once if a socket that was granted less than was asked for drops packets.
pub(super) struct Drops {
    /// None: nothing to look for.
    socket: Cell<Option<SocketAddr>>,
    looked: Cell<Instant>,
}

impl Drops {
    pub(super) fn of(socket: Option<SocketAddr>) -> Self {
        let is_small = endpoint::granted() < tuning::SOCKET_BUFFER_BYTES;
        Self { socket: Cell::new(socket.filter(|_| is_small)), looked: Cell::new(Instant::now()) }
    }

    pub(super) fn look(&self) {
        let Some(socket) = self.socket.get() else { return };
        if self.looked.get().elapsed() < LOOK_EVERY {
            return;
        }
        self.looked.set(Instant::now());
        let dropped = dropped(socket).unwrap_or(0);
        if dropped >= ENOUGH {
            self.socket.set(None);
            report::warn(&warning(dropped, endpoint::granted()));
        }
    }
}

fn warning(dropped: u64, granted: usize) -> String {
    let (granted, wanted) = (granted / 1024, tuning::SOCKET_BUFFER_BYTES);
    format!(
        "the system has dropped {dropped} packets for this rank, whose socket it lets hold {granted} \
         KiB: they are sent again, which takes time; `sysctl -w net.core.rmem_max={wanted}` on this \
         host, before the job starts"
    )
}

/// How many packets the socket at this address has lost; None where the system does not say.
pub(super) fn dropped(socket: SocketAddr) -> Option<u64> {
    let table = if socket.is_ipv4() { "/proc/net/udp" } else { "/proc/net/udp6" };
    find(&fs::read_to_string(table).ok()?, &in_table(socket))
}

/// The last column of the line of `socket`.
fn find(table: &str, socket: &str) -> Option<u64> {
    let line = table.lines().find(|line| line.split_whitespace().nth(1) == Some(socket))?;
    line.split_whitespace().last()?.parse().ok()
}

/// An address as the kernel writes it there: words of four bytes as this machine orders them.
fn in_table(socket: SocketAddr) -> String {
    let octets = match socket.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.as_chunks().0.iter();
    let address: String =
        words.map(|word: &[u8; 4]| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
    format!("{address}:{:04X}", socket.port())
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A few are lost whenever something else runs on this host.
const ENOUGH: u64 = 100;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use super::*;

    #[test]
    fn a_socket_that_is_not_read_drops_what_it_cannot_hold() {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let Ok(receiver) = UdpSocket::bind((ip, 0)) else {
                eprintln!("skipped: a_socket_that_is_not_read_drops: no {ip}");
                continue;
            };
            rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 16 * 1024).unwrap();
            let address = receiver.local_addr().unwrap();
            assert_eq!(dropped(address), Some(0));
            let sender = UdpSocket::bind((ip, 0)).unwrap();
            for _ in 0..200 {
                sender.send_to(&[0; 8_000], address).unwrap();
            }
            assert!(dropped(address).is_some_and(|dropped| dropped > 100));
            drop(receiver);
            assert_eq!(dropped(address), None);
        }
    }

    #[test]
    fn the_warning_says_what_to_set() {
        assert_eq!(
            warning(1234, 212_992),
            "the system has dropped 1234 packets for this rank, whose socket it lets hold 208 KiB: \
             they are sent again, which takes time; `sysctl -w net.core.rmem_max=4194304` on this \
             host, before the job starts"
        );
    }
}
