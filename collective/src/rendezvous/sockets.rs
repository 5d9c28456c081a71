//! Where a rank listens: rank 0's name, the addresses and ports, the launcher's socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{FIRST_PAUSE, LAST_PAUSE, SAY_EVERY};
use crate::config::{Config, HostPort};
use crate::control::launched::Launched;
use crate::error::{Error, ErrorKind, Result};
use crate::link::quic::endpoint;
use crate::report;

/// The socket that the launcher keeps for rank 0, else one of our own at the rendezvous port.
pub(super) fn rendezvous_socket(
    config: &Config,
    launched: Option<&mut Launched>,
    listen: Listen,
) -> Result<(UdpSocket, Option<SocketTurn>)> {
    if let Some(line) = launched {
        match line.rendezvous_socket() {
            Ok(socket) if local_port(&socket)? == config.rendezvous.port => {
                let turn = SocketTurn::take(&config.rendezvous)?;
                endpoint::enlarge(&socket);
                return Ok((socket, Some(turn)));
            }
            // The program was told to meet elsewhere than the launcher thought.
            Ok(_) => {}
            Err(error) => report::warn(&format!("no socket from the launcher: {error}")),
        }
    }
    Ok((listen.bind(config.rendezvous.port)?, None))
}

/// The right to use the launcher's socket: two communicators at once would take each other's
/// packets from it.
pub(super) struct SocketTurn;

impl SocketTurn {
    fn take(place: &HostPort) -> Result<Self> {
        if SOCKET_TAKEN.swap(true, Ordering::AcqRel) {
            return Err(ErrorKind::Bind {
                address: place.to_string(),
                problem: "this process already has a communicator there".into(),
                help: Some("close the first one before making another".into()),
            }
            .into());
        }
        Ok(Self)
    }
}

impl Drop for SocketTurn {
    fn drop(&mut self) {
        SOCKET_TAKEN.store(false, Ordering::Release);
    }
}

static SOCKET_TAKEN: AtomicBool = AtomicBool::new(false);

/// Resolves rank 0's name, again and again until the deadline: a pod's name appears late.
pub(super) fn resolve_patiently(config: &Config) -> Result<SocketAddr> {
    let began = std::time::Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut said = false;
    loop {
        let problem = match resolve(config) {
            Ok(address) => return Ok(address),
            Err(problem) => problem,
        };
        // Rank 0 listens on all addresses, so it can begin without knowing its own name.
        if config.rank() == 0 {
            report::warn(&format!(
                "rank 0 cannot resolve its own name `{}` ({problem}); it listens on all addresses",
                config.rendezvous.host
            ));
            return Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), config.rendezvous.port));
        }
        if began.elapsed() + pause >= config.connect_timeout {
            let waited = report::duration(config.connect_timeout);
            let name = config.rendezvous.host.clone();
            return Err(ErrorKind::UnknownHost { name, problem, waited }.into());
        }
        if !said && began.elapsed() >= SAY_EVERY {
            said = true;
            let name = &config.rendezvous.host;
            report::warn(&format!(
                "rank 0's host `{name}` is unknown so far: {problem}; trying on"
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

pub(super) fn resolve(config: &Config) -> std::result::Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let place = (config.rendezvous.host.as_str(), config.rendezvous.port);
    let addresses = place.to_socket_addrs().map_err(|error| {
        let error = error.to_string();
        error.strip_prefix("failed to lookup address information: ").unwrap_or(&error).to_string()
    })?;
    preferred(addresses).ok_or_else(|| "it has no address".into())
}

/// IPv4 first: a name such as localhost often has both, and only one is listened on. A host may
/// have a loopback address for its own name beside the one that others know.
pub(super) fn preferred(addresses: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    addresses.min_by_key(|address| (address.ip().is_loopback(), address.is_ipv6()))
}

/// Where a rank listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    /// The job lives on a loopback address, and says so.
    Loopback(IpAddr),
    Everywhere {
        /// To what rank 0's name leads here, if that is a loopback address: Debian's /etc/hosts has
        /// one for the host's own name. The ranks of other hosts come in by another one.
        loopback: Option<IpAddr>,
    },
}

impl Listen {
    /// With rank 0 at `host`, which is `address` here.
    pub(super) fn new(host: &str, address: IpAddr) -> Self {
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        // RFC 6761, 6.3: such a name is the host's own everywhere.
        let is_own = name == "localhost" || name.ends_with(".localhost");
        match address {
            ip if ip.is_loopback() && (is_own || name.parse::<IpAddr>().is_ok()) => {
                Self::Loopback(ip)
            }
            ip => Self::Everywhere { loopback: Some(ip).filter(IpAddr::is_loopback) },
        }
    }

    /// What a person should know who waits for other hosts' ranks.
    pub(super) fn warning(self, config: &Config) -> Option<String> {
        match self {
            Self::Everywhere { loopback: Some(ip) }
                if config.rank() == 0 && config.local_size() < config.size() =>
            {
                let name = &config.rendezvous.host;
                Some(format!(
                    "rank 0's name `{name}` is {ip} on its own host; it listens on all addresses, \
                     but ranks on other hosts find it only if `{name}` is another one there"
                ))
            }
            _ => None,
        }
    }

    pub(super) fn bind(self, port: u16) -> Result<UdpSocket> {
        match self {
            Self::Loopback(ip) => endpoint::bind(SocketAddr::new(ip, port)),
            Self::Everywhere { .. } => endpoint::bind_everywhere(port),
        }
    }
}

/// Where a rank finds rank 0; rank 0 itself may not know its own name.
pub(super) fn reachable(rank_0: SocketAddr) -> SocketAddr {
    match rank_0.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), rank_0.port()),
        _ => rank_0,
    }
}

/// A rank's ports: ALLFOLD_PORT + local rank x (1 + lanes), the control endpoint's first.
pub(super) fn port_of(config: &Config, which: u16) -> Result<u16> {
    if config.port == 0 {
        return Ok(0);
    }
    let (local_rank, lanes) = (config.local_rank(), usize::from(config.lanes));
    let own = local_rank.saturating_mul(1 + lanes).saturating_add(which.into());
    let port = usize::from(config.port).saturating_add(own);
    u16::try_from(port).map_err(|_| {
        ErrorKind::Setting {
            name: "ALLFOLD_PORT".into(),
            value: Some(config.port.to_string()),
            problem: format!("leaves no port for local rank {local_rank} with {lanes} lanes"),
            help: Some(
                "a rank's ports begin at ALLFOLD_PORT + local rank x (1 + ALLFOLD_LANES): take a \
                 smaller one"
                    .into(),
            ),
        }
        .into()
    })
}

pub(super) fn local_port(socket: &UdpSocket) -> Result<u16> {
    let address =
        socket.local_addr().map_err(|error| Error::system("read a socket's address", error))?;
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn listen(host: &str, address: &str) -> Listen {
        Listen::new(host, address.parse().unwrap())
    }

    #[test]
    fn only_a_job_that_says_so_lives_on_loopback() {
        for (host, address) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.5", "127.0.0.5"),
            ("::1", "::1"),
            ("localhost", "127.0.0.1"),
            ("LocalHost.", "::1"),
            ("node.localhost", "127.0.0.1"),
        ] {
            assert_eq!(listen(host, address), Listen::Loopback(address.parse().unwrap()), "{host}");
        }
        for (host, address) in
            [("10.0.0.7", "10.0.0.7"), ("node-0", "10.0.0.7"), ("node-0", "fd00::7")]
        {
            assert_eq!(listen(host, address), Listen::Everywhere { loopback: None }, "{host}");
        }
        let debian = "127.0.1.1".parse().ok();
        assert_eq!(listen("node-0", "127.0.1.1"), Listen::Everywhere { loopback: debian });
    }

    #[test]
    fn a_name_that_leads_only_to_the_own_host_is_told_where_there_may_be_others() {
        let config = |rank, host: &str| Config::new(rank, 2, &format!("{host}:29500")).unwrap();
        let debian = listen("node-0", "127.0.1.1");
        assert_eq!(
            debian.warning(&config(0, "node-0")).unwrap(),
            "rank 0's name `node-0` is 127.0.1.1 on its own host; it listens on all addresses, but \
             ranks on other hosts find it only if `node-0` is another one there"
        );
        assert_eq!(debian.warning(&config(1, "node-0")), None);
        assert_eq!(listen("node-0", "10.0.0.7").warning(&config(0, "node-0")), None);
        assert_eq!(listen("localhost", "127.0.0.1").warning(&config(0, "localhost")), None);
        let mut alone = config(0, "node-0");
        alone.identity.local_size = 2;
        assert_eq!(debian.warning(&alone), None);
    }

    #[test]
    fn a_rank_that_listens_everywhere_is_found_at_an_address_that_nobody_named() {
        let socket = listen("node-0", "127.0.1.1").bind(0).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let port = local_port(&socket).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.send_to(b"here", ("127.0.0.1", port)).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 8]).unwrap().0, 4);
    }
}
