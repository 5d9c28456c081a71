//! Where a rank listens: rank 0's name, the addresses and ports, the launcher's socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::addresses::{self, Own};
use crate::config::{Config, HostPort};
use crate::control::launched::Launched;
use crate::error::{Error, ErrorKind, Result};
use crate::link::quic::{binding, routes};
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
                binding::enlarge(&socket);
                return Ok((socket, Some(turn)));
            }
            // The program was told to meet elsewhere than the launcher thought.
            Ok(_) => {}
            Err(error) => report::warn(&format!("no socket from the launcher: {error}")),
        }
    }
    Ok((listen.bind_rendezvous(config.rendezvous.port)?, None))
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

/// Where a rank listens, and what it tells of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    /// The job lives on a loopback address, and says so.
    Loopback(IpAddr),
    Everywhere {
        /// To what rank 0's name leads on its own host.
        own: Option<IpAddr>,
    },
}

impl Listen {
    /// As the settings have it.
    ///
    /// # Errors
    /// Where rank 0 is at an address of IPv6, and `here` is none.
    pub(super) fn new(config: &Config, here: &[Own]) -> Result<Self> {
        let place = &config.rendezvous;
        if let Some(ip) = place.ip() {
            let is_possible =
                ip.is_ipv4() || here.is_empty() || here.iter().any(|own| own.ip.is_ipv6());
            return match is_possible {
                true if ip.is_loopback() => Ok(Self::Loopback(ip)),
                true => Ok(Self::Everywhere { own: None }),
                false => Err(no_ipv6(place)),
            };
        }
        let name = place.host.trim_end_matches('.').to_ascii_lowercase();
        // RFC 6761, 6.3: such a name is the host's own everywhere.
        if name == "localhost" || name.ends_with(".localhost") {
            let ip = resolve_soon(place).ok().and_then(|found| Some(found.first()?.ip()));
            let ip = ip.filter(IpAddr::is_loopback);
            return Ok(Self::Loopback(ip.unwrap_or(Ipv4Addr::LOCALHOST.into())));
        }
        if config.rank() != 0 {
            return Ok(Self::Everywhere { own: None });
        }
        let own = match resolve_soon(place) {
            Ok(found) => found.first().map(SocketAddr::ip),
            Err(problem) => {
                report::warn(&format!(
                    "rank 0 cannot resolve its own name `{}` ({problem}); it listens on all \
                     addresses",
                    place.host
                ));
                None
            }
        };
        Ok(Self::Everywhere { own })
    }

    /// What a person should know who waits for other hosts' ranks: Debian's /etc/hosts has a
    /// loopback address for the host's own name. The ranks of other hosts come in by another one.
    pub(super) fn warning(self, config: &Config) -> Option<String> {
        match self {
            Self::Everywhere { own: Some(ip) }
                if ip.is_loopback()
                    && config.rank() == 0
                    && config.local_size() < config.size() =>
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

    /// What the others are told, of the addresses that the user has chosen.
    pub(super) fn told(self, config: &Config, chosen: &[Own]) -> Vec<IpAddr> {
        match self {
            Self::Loopback(ip) => vec![ip],
            Self::Everywhere { own } => {
                // Which of them leads to rank 0; a name that is not known yet says nothing.
                let towards = |ip| routes::source_of(SocketAddr::new(ip, config.rendezvous.port));
                let source = own.or_else(|| towards(config.rendezvous.ip()?).ok());
                addresses::published(chosen, source)
            }
        }
    }

    pub(super) fn is_everywhere(self) -> bool {
        matches!(self, Self::Everywhere { .. })
    }

    /// A socket of a lane. Where the user has chosen a single address, which is all that is told,
    /// it is of that one.
    pub(super) fn bind(self, port: u16, has_chosen: bool, told: &[IpAddr]) -> Result<UdpSocket> {
        match (self, told) {
            (Self::Everywhere { .. }, [only]) if has_chosen => {
                binding::bind(SocketAddr::new(*only, port))
            }
            _ => self.bind_rendezvous(port),
        }
    }

    /// A control socket. Rank 0's own host may have another address for its name than others, and
    /// another rank's packets to rank 0 may have to leave by another interface than is chosen.
    pub(super) fn bind_rendezvous(self, port: u16) -> Result<UdpSocket> {
        match self {
            Self::Loopback(ip) => binding::bind(SocketAddr::new(ip, port)),
            Self::Everywhere { .. } => binding::bind_everywhere(port),
        }
    }
}

fn no_ipv6(place: &HostPort) -> Error {
    let help = "give an IPv4 address, or a name that has one, in ALLFOLD_RENDEZVOUS or \
                MASTER_ADDR; or turn IPv6 on: sysctl net.ipv6.conf.all.disable_ipv6=0";
    let kind = ErrorKind::Setting {
        name: "rendezvous".into(),
        value: Some(place.to_string()),
        problem: "is an IPv6 address, and this host has no IPv6".into(),
        help: Some(help.into()),
    };
    kind.into()
}

/// Where the name leads, as far as the system says soon.
fn resolve_soon(place: &HostPort) -> std::result::Result<Vec<SocketAddr>, String> {
    use std::net::ToSocketAddrs;
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    let place = (place.host.clone(), place.port);
    // A name server that does not answer takes the system half a minute.
    let look_up = move || answer.send((place.0.as_str(), place.1).to_socket_addrs());
    std::thread::Builder::new()
        .name("allfold-resolver".into())
        .spawn(look_up)
        .map_err(|error| error.to_string())?;
    match answered.recv_timeout(RESOLVE_LIMIT) {
        Ok(Ok(found)) => Ok(addresses::of_name(found)),
        Ok(Err(error)) => Err(resolvers_word(&error)),
        Err(_) => Err("the name server does not answer".into()),
    }
}

/// The resolver's words, without what goes before them.
pub(super) fn resolvers_word(error: &std::io::Error) -> String {
    let error = error.to_string();
    error.strip_prefix("failed to lookup address information: ").unwrap_or(&error).to_string()
}

/// A rank's ports: ALLFOLD_PORT + local rank x (1 + lanes), the control endpoint's first, unless a
/// list of all ranks' addresses names that one.
pub(super) fn port_of(config: &Config, which: u16) -> Result<u16> {
    if let (0, Some(port)) = (which, config.identity.port) {
        return Ok(port);
    }
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

/// A rank other than 0 that listened at rank 0's port of the same host would find itself there.
///
/// # Errors
/// Where its settings have it do so.
pub(super) fn check_ports(config: &Config) -> Result<()> {
    let place = &config.rendezvous;
    if config.rank() == 0 || !place.ip().is_some_and(routes::is_here) {
        return Ok(());
    }
    for which in 0..=config.lanes {
        if port_of(config, which)? == place.port {
            return Err(ErrorKind::Setting {
                name: "ALLFOLD_PORT".into(),
                value: Some(place.port.to_string()),
                problem: format!("is rank 0's own port at {place}, and this is another rank there"),
                help: Some(
                    "give it another port, or its place among the ranks of its host in \
                     ALLFOLD_LOCAL_RANK; without ALLFOLD_PORT the system gives a free one"
                        .into(),
                ),
            }
            .into());
        }
    }
    Ok(())
}

pub(super) fn local_port(socket: &UdpSocket) -> Result<u16> {
    let address =
        socket.local_addr().map_err(|error| Error::system("read a socket's address", error))?;
    Ok(address.port())
}

/// A host knows its own name at once, or not at all.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rank: usize, place: &str) -> Config {
        Config::new(rank, 2, place).unwrap()
    }

    fn own(ip: &str) -> Own {
        Own { interface: "eth0".into(), ip: ip.parse().unwrap() }
    }

    fn listen(rank: usize, place: &str) -> Listen {
        Listen::new(&config(rank, place), &[own("10.0.0.7"), own("fd00::7")]).unwrap()
    }

    #[test]
    fn only_a_job_that_says_so_lives_on_loopback() {
        let loopback = |ip: &str| Listen::Loopback(ip.parse().unwrap());
        assert_eq!(listen(1, "127.0.0.1:1"), loopback("127.0.0.1"));
        assert_eq!(listen(0, "127.0.0.5:1"), loopback("127.0.0.5"));
        assert_eq!(listen(0, "[::1]:1"), loopback("::1"));
        for name in ["localhost", "LocalHost.", "node.localhost"] {
            let listen = listen(1, &format!("{name}:1"));
            assert!(matches!(listen, Listen::Loopback(_)), "{name}: {listen:?}");
        }
        for place in ["10.0.0.7:1", "[fd00::7]:1", "no-such-node.invalid:1"] {
            assert_eq!(listen(1, place), Listen::Everywhere { own: None }, "{place}");
        }
    }

    #[test]
    fn an_address_of_ipv6_is_an_error_where_there_is_none() {
        for rank in [0, 1] {
            let error = Listen::new(&config(rank, "[fd00::7]:1"), &[own("10.0.0.7")]).unwrap_err();
            let expected = "rendezvous=[fd00::7]:1: is an IPv6 address, and this host has no IPv6";
            assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 2));
            assert!(error.help().is_some());
        }
    }

    #[test]
    fn a_name_that_leads_only_to_the_own_host_is_told_where_there_may_be_others() {
        let debian = Listen::Everywhere { own: "127.0.1.1".parse().ok() };
        assert_eq!(
            debian.warning(&config(0, "node-0:29500")).unwrap(),
            "rank 0's name `node-0` is 127.0.1.1 on its own host; it listens on all addresses, but \
             ranks on other hosts find it only if `node-0` is another one there"
        );
        assert_eq!(debian.warning(&config(1, "node-0:29500")), None);
        let other = Listen::Everywhere { own: "10.0.0.7".parse().ok() };
        assert_eq!(other.warning(&config(0, "node-0:29500")), None);
        let mut alone = config(0, "node-0:29500");
        alone.identity.local_size = 2;
        assert_eq!(debian.warning(&alone), None);
    }

    #[test]
    fn a_rank_that_listens_everywhere_is_found_at_an_address_that_nobody_named() {
        let everywhere = Listen::Everywhere { own: "127.0.1.1".parse().ok() };
        let socket = everywhere.bind(0, false, &[own("10.0.0.7").ip]).unwrap();
        assert_found_at(&socket, Ipv4Addr::LOCALHOST.into());
    }

    #[test]
    fn a_rank_whose_only_address_is_chosen_listens_there() {
        let everywhere = Listen::Everywhere { own: None };
        let socket = everywhere.bind(0, true, &[own("127.0.0.9").ip]).unwrap();
        assert_eq!(socket.local_addr().unwrap().ip(), own("127.0.0.9").ip);
        assert_found_at(&socket, own("127.0.0.9").ip);
    }

    fn assert_found_at(socket: &UdpSocket, ip: IpAddr) {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = UdpSocket::bind((ip, 0)).unwrap();
        sender.send_to(b"here", (ip, local_port(socket).unwrap())).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 8]).unwrap().0, 4);
    }

    #[test]
    fn a_rank_does_not_take_the_port_of_rank_0_beside_it() {
        let at = |rank, place: &str, port, local_rank| {
            let mut config = config(rank, place);
            (config.port, config.identity.local_rank) = (port, local_rank);
            check_ports(&config)
        };
        let error = at(1, "127.0.0.1:7000", 7_000, 0).unwrap_err();
        assert!(
            error.to_string().starts_with("ALLFOLD_PORT=7000: is rank 0's own port"),
            "{error}"
        );
        assert_eq!(error.exit_code(), 2);
        assert!(error.help().is_some_and(|help| help.contains("ALLFOLD_LOCAL_RANK")));
        for fine in [
            at(0, "127.0.0.1:7000", 7_000, 0),
            at(1, "127.0.0.1:7000", 7_000, 1),
            at(1, "127.0.0.1:7000", 0, 0),
            // Of another host; and where a name leads is not known yet.
            at(1, "192.0.2.7:7000", 7_000, 0),
            at(1, "node-0:7000", 7_000, 0),
        ] {
            fine.unwrap();
        }
    }

    #[test]
    fn a_list_of_addresses_names_the_port_of_the_control_endpoint() {
        let mut config = config(1, "node-0:2222");
        config.identity.port = Some(2_223);
        assert_eq!([0, 1].map(|which| port_of(&config, which).unwrap()), [2_223, 0]);
        config.port = 4_711;
        assert_eq!([0, 1, 2].map(|which| port_of(&config, which).unwrap()), [2_223, 4_712, 4_713]);
    }
}
