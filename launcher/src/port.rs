//! The rendezvous port: one number, free in UDP for allfold and in TCP for the program.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

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
        let mut last_error = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..ATTEMPTS {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = udp.local_addr()?;
            match TcpListener::bind(address) {
                Ok(tcp) => return Ok(Self { udp, tcp, address }),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
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
}
