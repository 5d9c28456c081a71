//! Where metrics are served: the setting, and the socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use crate::error::{Error, ErrorKind, Result};

/// The value of `ALLFOLD_METRICS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// None: all of this host's.
    ip: Option<IpAddr>,
    port: u16,
}

impl Address {
    /// `:9200`, `0.0.0.0:9200`, `[::]:9200`, `localhost:9200`; None for `off`.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        if text == "off" {
            return Ok(None);
        }
        let address = match text.strip_prefix("localhost:") {
            Some(port) => Self::of(Some(Ipv4Addr::LOCALHOST.into()), port),
            None => match text.strip_prefix(':') {
                Some(port) => Self::of(None, port),
                None => text.parse().ok().map(|address: SocketAddr| Self {
                    ip: Some(address.ip()),
                    port: address.port(),
                }),
            },
        };
        address.map(Some).ok_or_else(|| unreadable(text))
    }

    fn of(ip: Option<IpAddr>, port: &str) -> Option<Self> {
        Some(Self { ip, port: port.parse().ok()? })
    }

    /// That of the rank with this number on its host: one port further for each. Port 0 stays.
    pub(crate) fn for_local_rank(self, local_rank: usize) -> Result<Self> {
        if self.port == 0 {
            return Ok(self);
        }
        let port = u16::try_from(usize::from(self.port) + local_rank).map_err(|_| {
            let problem = format!(
                "is too high: local rank {local_rank} takes the port {local_rank} further, and \
                 ports end at 65535"
            );
            setting(&self.to_string(), &problem, "choose a lower port, or port 0 for any")
        })?;
        Ok(Self { port, ..self })
    }

    /// A socket that listens there.
    pub(crate) fn listen(self) -> Result<TcpListener> {
        let bound = match self.ip {
            Some(ip) => TcpListener::bind((ip, self.port)),
            // On Linux this listens on IPv4 too; a host without IPv6 has only that.
            None => TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port)).or_else(|error| {
                match error.kind() {
                    std::io::ErrorKind::AddrInUse => Err(error),
                    _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.port)),
                }
            }),
        };
        bound.map_err(|error| self.refused(&error))
    }

    fn refused(self, error: &std::io::Error) -> Error {
        let (problem, help) = match error.kind() {
            std::io::ErrorKind::AddrInUse => (
                "another process listens there".into(),
                format!(
                    "`ss -ltnp 'sport = :{}'` shows it; choose another port in ALLFOLD_METRICS, or \
                     port 0 for any. Each rank of a host takes the port plus its local rank",
                    self.port
                ),
            ),
            std::io::ErrorKind::AddrNotAvailable => (
                "this host has no such address".into(),
                "`ip address` lists them; ALLFOLD_METRICS=:9200 listens on all".into(),
            ),
            std::io::ErrorKind::PermissionDenied => (
                error.to_string(),
                "ports below 1024 are the system's; choose a higher one in ALLFOLD_METRICS".into(),
            ),
            _ => (error.to_string(), "choose another address in ALLFOLD_METRICS".into()),
        };
        ErrorKind::ServeMetrics { address: self.to_string(), problem, help }.into()
    }
}

/// As it was written.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

fn unreadable(text: &str) -> Error {
    let problem = "is no address to listen on";
    let help = match text.parse::<u16>() {
        Ok(port) => format!("write :{port} for all addresses, or 127.0.0.1:{port}"),
        Err(_) => {
            "write :9200 for all addresses, or one of this host's: 127.0.0.1:9200, [::1]:9200"
                .into()
        }
    };
    setting(text, problem, &help)
}

fn setting(value: &str, problem: &str, help: &str) -> Error {
    ErrorKind::Setting {
        name: "ALLFOLD_METRICS".into(),
        value: Some(value.into()),
        problem: problem.into(),
        help: Some(help.into()),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_forms_and_shown_as_written() {
        for text in [":9200", "0.0.0.0:9200", "[::]:9200", "127.0.0.1:0", "[::1]:65535"] {
            assert_eq!(Address::parse(text).unwrap().unwrap().to_string(), text);
        }
        let localhost = Address::parse("localhost:9200").unwrap().unwrap();
        assert_eq!(localhost.to_string(), "127.0.0.1:9200");
        assert_eq!(Address::parse("off").unwrap(), None);
        for wrong in ["9200", ":", ":x", ":65536", "::1:9200", "node-0:9200", "127.0.0.1", ":-1"] {
            let error = Address::parse(wrong).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("ALLFOLD_METRICS={wrong}: is no address to listen on")
            );
            assert_eq!(error.exit_code(), 2);
        }
        let help = Address::parse("9200").unwrap_err().help().unwrap();
        assert!(help.contains(":9200"), "{help}");
    }

    #[test]
    fn each_local_rank_has_a_port_of_its_own() {
        let port = |text, rank| {
            let address = Address::parse(text).unwrap().unwrap();
            address.for_local_rank(rank).map(|address| address.port).map_err(|e| e.to_string())
        };
        assert_eq!(port(":9200", 0), Ok(9200));
        assert_eq!(port(":9200", 3), Ok(9203));
        assert_eq!(port(":0", 3), Ok(0));
        assert_eq!(port(":65535", 0), Ok(65535));
        assert!(port(":65535", 1).unwrap_err().contains("ports end at 65535"));
    }
}
