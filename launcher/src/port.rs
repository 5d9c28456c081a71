//! The rendezvous port: one number, free in UDP for allfold and in TCP for the program.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

/// A number that nobody else can take.
pub(crate) struct Port {
    /// Stays bound for the whole job and is handed to rank 0, so that there is no race.
    pub(crate) udp: UdpSocket,
    /// Bound until the ranks start: a program may listen on MASTER_PORT itself.
    pub(crate) tcp: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Port {
    /// Finds one on 127.0.0.1.
    pub(crate) fn find() -> io::Result<Self> {
        Self::at(Some(Ipv4Addr::LOCALHOST.into()), 0)
    }

    /// Takes this one, or any for 0, at a loopback address; without one at all addresses.
    pub(crate) fn at(loopback: Option<IpAddr>, port: u16) -> io::Result<Self> {
        let mut last_error = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..if port == 0 { ATTEMPTS } else { 1 } {
            let udp = match loopback {
                Some(ip) => UdpSocket::bind((ip, port))?,
                None => everywhere(port)?,
            };
            let address = udp.local_addr()?;
            match TcpListener::bind(address) {
                Ok(tcp) => return Ok(Self { udp, tcp, address }),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }
}

/// IPv4 comes in as mapped addresses, whatever net.ipv6.bindv6only says.
fn everywhere(port: u16) -> io::Result<UdpSocket> {
    let both = || {
        let (family, kind) = (AddressFamily::INET6, SocketType::DGRAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(ipproto::UDP))?;
        sockopt::set_ipv6_v6only(&socket, false)?;
        bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))?;
        Ok(UdpSocket::from(socket))
    };
    match both() {
        // There is no IPv6 here.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::PERM | Errno::ACCESS) => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        }
        bound => Ok(bound?),
    }
}

/// Each is random, so only a host without free ports fails as often.
const ATTEMPTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_taken_in_both() {
        let port = Port::find().unwrap();
        assert!(UdpSocket::bind(port.address).is_err());
        assert!(TcpListener::bind(port.address).is_err());
    }

    #[test]
    fn one_that_is_taken_is_refused() {
        let port = Port::at(None, 0).unwrap();
        let again = Port::at(None, port.address.port()).err().unwrap();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port.address.port());
        assert!(UdpSocket::bind(everywhere).is_err(), "IPv4 is left out");
    }
}
