//! Why rank 0 is not found where it should be: a few well-behaved packets tell a host that is not
//! there from one on which nobody listens, and from one whose UDP is filtered. Needs no privileges.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::link::quic::endpoint::plainly;

/// How an address answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Packets come back: UDP passes.
    Answers,
    /// The host is up, TCP reaches it, and UDP is dropped.
    Filtered,
    /// The host is up, and nobody listens on that port.
    Refused,
    /// A firewall, or a router on the way, says no.
    Rejected(String),
    /// The system knows no way there.
    NoWay(String),
    /// Neither UDP nor TCP; with the system's word, if it has one.
    Silent(Option<String>),
}

/// What was found out of one of rank 0's addresses: the one that tells most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(super) address: SocketAddr,
    pub(super) sign: Sign,
    /// All that were looked at.
    pub(super) among: Vec<SocketAddr>,
}

impl Diagnosis {
    /// In words, for the middle of a line; None where the address answers, and something else is
    /// wrong. `was_met`: rank 0 did answer once.
    pub(super) fn problem(&self, was_met: bool) -> Option<String> {
        let (ip, port) = (self.address.ip(), self.address.port());
        Some(match &self.sign {
            Sign::Answers => return None,
            Sign::Filtered if was_met => {
                format!("TCP reaches {ip}, but UDP {port} does not answer any more")
            }
            Sign::Filtered => format!(
                "TCP reaches {ip}, UDP does not: UDP {port} is filtered: NetworkPolicy or security \
                 group"
            ),
            Sign::Refused => {
                format!("refused: the host {ip} is up, and nobody listens on UDP {port}")
            }
            Sign::Rejected(why) => {
                format!("a firewall or a router rejects UDP {port} to {ip} ({why})")
            }
            Sign::NoWay(why) => format!("there is no way from this host to {ip} ({why})"),
            Sign::Silent(why) => {
                let why = why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
                format!("nothing answers at {ip}, neither UDP {port} nor TCP{why}")
            }
        })
    }

    /// What to do about it; `host` is rank 0's, as the user wrote it.
    pub(super) fn help(&self, host: &str, was_met: bool) -> Option<String> {
        let (ip, port) = (self.address.ip(), self.address.port());
        let setting = "ALLFOLD_RENDEZVOUS, or MASTER_ADDR and MASTER_PORT";
        Some(match &self.sign {
            Sign::Answers => return None,
            Sign::Filtered if was_met => {
                "rank 0 hangs or is stopped, or a firewall drops its packets: look at its log"
                    .into()
            }
            Sign::Filtered | Sign::Rejected(_) => format!(
                "let UDP {port}, and the ports of all ranks (ALLFOLD_PORT pins them), through both \
                 ways: in Kubernetes a NetworkPolicy with `ports: [{{protocol: UDP, port: {port}}}]`, \
                 else the security group or the host's firewall; if rank 0 is there but stopped, it \
                 looks the same from here"
            ),
            Sign::Refused => format!(
                "rank 0 has not started, has ended, or listens elsewhere: look at its log; {setting} \
                 must name its host and port on every rank; if `ss -ulpn` there shows that it \
                 listens, a firewall or a Service rejects UDP {port}"
            ),
            Sign::NoWay(_) => format!(
                "give an address that this host has a route to in {setting}, or add the route: `ip \
                 route get {ip}` shows what there is"
            ),
            Sign::Silent(_) => format!(
                "is `{host}` ({ip}) the host of rank 0, and is that host up? If it is, a firewall, \
                 NetworkPolicy or security group drops everything; {setting} names it"
            ),
        })
    }
}

/// Looks at these addresses side by side, each for [`PATIENCE`] at most; None without any.
pub(super) async fn look(mut addresses: Vec<SocketAddr>) -> Option<Diagnosis> {
    addresses.truncate(MOST);
    let mut looks = tokio::task::JoinSet::new();
    for address in addresses.clone() {
        let among = addresses.clone();
        looks
            .spawn_local(async move { Diagnosis { address, sign: sign_of(address).await, among } });
    }
    let mut all = looks.join_all().await;
    all.sort_by_key(|one| match one.sign {
        Sign::Answers => 0,
        // Sockets take both families: nobody listens at the others either, and the system's word
        // for that is rare.
        Sign::Refused => 1,
        Sign::Filtered => 2,
        Sign::Rejected(_) => 3,
        Sign::Silent(_) => 4,
        Sign::NoWay(_) => 5,
    });
    all.into_iter().next()
}

async fn sign_of(address: SocketAddr) -> Sign {
    let (udp, tcp) = tokio::join!(udp(address), tcp(address));
    match (udp, tcp) {
        // What the system says itself where no host has that address in this network.
        (Some(Sign::Rejected(why)), false) => Sign::Silent(Some(why)),
        (Some(sign), _) => sign,
        (None, true) => Sign::Filtered,
        (None, false) => Sign::Silent(None),
    }
}

/// What UDP says; None if nothing.
async fn udp(address: SocketAddr) -> Option<Sign> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Only the system's table of routes is asked.
    let connect = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await?;
        Ok(socket)
    };
    let socket = match connect.await {
        Ok(socket) => socket,
        Err(error) => {
            let error: std::io::Error = error;
            return Some(Sign::NoWay(plainly(&error)));
        }
    };
    let ask = async {
        for attempt in 0..ATTEMPTS {
            // Both may be lost: a question, and the system's word that nobody listens.
            match attempt % QUESTION_EVERY {
                0 => socket.send(&question()).await?,
                _ => socket.send(&[0]).await?,
            };
            if let Ok(answer) = timeout(PATIENCE / ATTEMPTS, socket.recv(&mut [0; 64])).await {
                return answer;
            }
        }
        Ok(0)
    };
    match ask.await {
        Ok(0) => None,
        Ok(_) => Some(Sign::Answers),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(Sign::Refused),
        // Also what a firewall of this host says, as it sends.
        Err(error) => Some(Sign::Rejected(plainly(&error))),
    }
}

/// Whether TCP gets an answer, if only that nobody listens.
async fn tcp(address: SocketAddr) -> bool {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

/// A first packet of a version of QUIC that nobody speaks: who does speak QUIC answers which
/// versions it has (RFC 9000, 6; RFC 8999, 5.1), and keeps nothing of it.
fn question() -> [u8; 1200] {
    let mut packet = [0; 1200];
    // A long header, a version reserved for this, and two connection ids of eight bytes.
    packet[..6].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8]);
    packet[6..14].copy_from_slice(b"allfold?");
    packet[14] = 8;
    packet[15..23].copy_from_slice(b"allfold?");
    packet
}

/// Longer than a packet and its answer take around the earth.
pub(super) const PATIENCE: Duration = Duration::from_millis(1_500);
/// Linux says no more than once a second to each host that nobody listens, and who dials takes the
/// most of that: the more are sent, the likelier is one of them to get the word.
const ATTEMPTS: u32 = 8;
const QUESTION_EVERY: u32 = 4;
/// Rank 0's name has one or two.
const MOST: usize = 4;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn diagnosis(address: SocketAddr) -> Diagnosis {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let looking = look(vec![address]);
        tokio::task::LocalSet::new().block_on(&runtime, looking).unwrap()
    }

    #[test]
    fn a_port_on_which_nobody_listens_is_refused() {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let found = diagnosis(address);
        assert_eq!(found.sign, Sign::Refused);
        let words = found.problem(false).unwrap();
        assert!(words.starts_with("refused: the host 127.0.0.1 is up, and nobody"), "{words}");
    }

    #[test]
    fn udp_that_is_silent_where_tcp_answers_is_filtered() {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = tcp.local_addr().unwrap();
        // It takes what comes and says nothing.
        let _mute = std::net::UdpSocket::bind(address).unwrap();
        let found = diagnosis(address);
        assert_eq!(found.sign, Sign::Filtered);
        let words = found.problem(false).unwrap();
        let expected =
            format!("UDP {} is filtered: NetworkPolicy or security group", address.port());
        assert!(words.ends_with(&expected), "{words}");
        assert!(!found.problem(true).unwrap().contains("filtered"), "it did answer once");
        let help = found.help("node-0", false).unwrap();
        assert!(help.contains(&format!("port: {}", address.port())), "{help}");
    }

    #[test]
    fn every_sign_but_an_answer_has_a_help() {
        let address = SocketAddr::from(([10, 0, 0, 7], 29_500));
        let why = || "why".to_string();
        for sign in [
            Sign::Filtered,
            Sign::Refused,
            Sign::Rejected(why()),
            Sign::NoWay(why()),
            Sign::Silent(None),
            Sign::Silent(Some(why())),
        ] {
            let found = Diagnosis { address, sign, among: vec![address] };
            for was_met in [false, true] {
                let (problem, help) = (found.problem(was_met), found.help("node-0", was_met));
                assert!(problem.is_some_and(|words| words.contains("10.0.0.7")), "{found:?}");
                assert!(help.is_some(), "{found:?}");
            }
        }
        let answers = Diagnosis { address, sign: Sign::Answers, among: vec![address] };
        assert_eq!((answers.problem(false), answers.help("node-0", false)), (None, None));
    }
}
