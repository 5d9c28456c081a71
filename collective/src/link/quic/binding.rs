//! UDP sockets: bound, and with large buffers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::tuning;
use crate::error::{Error, ErrorKind, Result};

/// Binds a UDP socket with large buffers.
pub(crate) fn bind(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).map_err(|error| refused(address, &error))?;
    enlarge(&socket);
    Ok(socket)
}

/// Binds a UDP socket with large buffers to all addresses of this host, of both families where the
/// system has both.
pub(crate) fn bind_everywhere(port: u16) -> Result<UdpSocket> {
    match bind_both(port) {
        Ok(socket) => {
            enlarge(&socket);
            Ok(socket)
        }
        Err(Errno::ADDRINUSE) => {
            let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            Err(refused(address, &Errno::ADDRINUSE.into()))
        }
        // There is no IPv6 here.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::PERM | Errno::ACCESS) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        Err(error) => {
            let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            Err(refused(address, &error.into()))
        }
    }
}

/// IPv4 comes in as mapped addresses, whatever net.ipv6.bindv6only says.
fn bind_both(port: u16) -> std::result::Result<UdpSocket, Errno> {
    let (family, kind) = (AddressFamily::INET6, SocketType::DGRAM);
    let udp = Some(ipproto::UDP);
    let socket: OwnedFd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, udp)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    rustix::net::bind(&socket, &SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?;
    Ok(socket.into())
}

fn refused(address: SocketAddr, error: &std::io::Error) -> Error {
    let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
    let kind = ErrorKind::Bind {
        address: address.to_string(),
        problem: if in_use { "another process listens there".into() } else { error.to_string() },
        help: in_use.then(|| {
            let port = address.port();
            format!(
                "`ss -ulpn 'sport = :{port}'` shows it: another job, or another rank 0? Choose \
                 another port where this one comes from: ALLFOLD_RENDEZVOUS or MASTER_PORT, \
                 ALLFOLD_PORT, or this rank's entry in --peers"
            )
        }),
    };
    kind.into()
}

/// Asks for large socket buffers; the system grants what it allows.
pub(crate) fn enlarge(socket: &UdpSocket) {
    let _ = sockopt::set_socket_recv_buffer_size(socket, tuning::SOCKET_BUFFER_BYTES);
    let _ = sockopt::set_socket_send_buffer_size(socket, tuning::SOCKET_BUFFER_BYTES);
}

/// What the system lets a socket hold of what it receives.
pub(super) fn granted(socket: &UdpSocket) -> usize {
    // Linux doubles what was asked for, for its own needs.
    sockopt::socket_recv_buffer_size(socket)
        .map_or(tuning::SURE_BUFFER_BYTES, |doubled| doubled / 2)
}

/// What the system lets a socket hold of what it sends.
pub(super) fn to_send(socket: &UdpSocket) -> usize {
    sockopt::socket_send_buffer_size(socket)
        .map_or(tuning::SURE_BUFFER_BYTES, |doubled| doubled / 2)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::link::quic::routes::plain;

    #[test]
    fn what_a_socket_was_granted_is_its_own() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sockopt::set_socket_recv_buffer_size(&socket, 32 * 1024).unwrap();
        assert_eq!(granted(&socket), 32 * 1024);
    }

    #[test]
    fn one_socket_takes_both_families_where_there_are_both() {
        let socket = bind_everywhere(0).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let local = socket.local_addr().unwrap();
        let mut found = [0; 8];
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let Ok(sender) = UdpSocket::bind((ip, 0)) else {
                eprintln!("skipped: one_socket_takes_both_families: no {ip}");
                continue;
            };
            sender.send_to(b"here", (ip, local.port())).unwrap();
            let (length, from) = socket.recv_from(&mut found).unwrap();
            assert_eq!(
                (&found[..length], plain(from)),
                (&b"here"[..], sender.local_addr().unwrap())
            );
        }
        let taken = bind_everywhere(local.port()).unwrap_err().to_string();
        assert!(taken.contains("another process listens there"), "{taken}");
    }
}
