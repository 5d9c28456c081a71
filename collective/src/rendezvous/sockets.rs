//! Where a rank listens: rank 0's name, the addresses and ports, the launcher's socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
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
    listen: IpAddr,
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
    Ok((bind_at(listen, config.rendezvous.port)?, None))
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
    // IPv4 first: a name such as localhost often has both, and only one is listened on.
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| "it has no address".into())
}

/// Loopback only where the job lives on loopback, else all addresses of the family.
pub(super) fn listen_address(rank_0: SocketAddr) -> IpAddr {
    match rank_0.ip() {
        ip if ip.is_loopback() => ip,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A rank's ports: ALLFOLD_PORT + local rank x (1 + lanes), the control endpoint's first.
pub(super) fn port_of(config: &Config, which: u16) -> u16 {
    if config.port == 0 {
        return 0;
    }
    let local_rank = config.local_rank() as u16;
    config.port.saturating_add(local_rank.saturating_mul(1 + LANES)).saturating_add(which)
}

pub(super) fn bind_at(ip: IpAddr, port: u16) -> Result<UdpSocket> {
    endpoint::bind(SocketAddr::new(ip, port))
}

pub(super) fn local_port(socket: &UdpSocket) -> Result<u16> {
    let address =
        socket.local_addr().map_err(|error| Error::system("read a socket's address", error))?;
    Ok(address.port())
}

/// Data sockets of a rank.
const LANES: u16 = 1;
