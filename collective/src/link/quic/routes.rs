//! Where packets to an address go: whether they leave this host, and from which of its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// From which of this host's addresses packets to that one leave; an error where there is no way
/// to it.
pub(crate) fn source_of(address: SocketAddr) -> std::io::Result<IpAddr> {
    let mut address = plain(address);
    address.set_port(ANY_PORT);
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let scratch = UdpSocket::bind((any, 0))?;
    // Nothing is sent: it only asks for the way.
    scratch.connect(address)?;
    Ok(scratch.local_addr()?.ip())
}

/// Whether packets to this address stay within the host: it is one of its own. The system then
/// sends them from that address, and to others from another one.
pub(crate) fn is_here(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || source_of(SocketAddr::new(ip, ANY_PORT)).is_ok_and(|source| source == ip)
}

/// A peer's address: one of IPv4 also where the socket is of both families. A link-local one keeps
/// the interface that it is of.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(_) => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// Any but 0 names a place to connect to.
const ANY_PORT: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_host_are_told_from_others() {
        // Of a block for documentation: it is nobody's.
        for far in ["203.0.113.1", "::ffff:203.0.113.1", "2001:db8::1"] {
            assert!(!is_here(far.parse().unwrap()), "{far}");
        }
        for near in ["127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"] {
            assert!(is_here(near.parse().unwrap()), "{near}");
        }
        let scratch = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let source = scratch.connect(("203.0.113.1", ANY_PORT)).and_then(|()| scratch.local_addr());
        match source {
            Ok(own) => assert!(is_here(own.ip()), "{own}"),
            Err(error) => eprintln!("skipped: addresses_of_this_host, one of a network: {error}"),
        }
    }
}
