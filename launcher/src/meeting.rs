//! Where the ranks meet: the host and the port of rank 0.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meeting {
    /// A name, or an address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Meeting {
    /// The loopback address, where that is what the host's name means on every host.
    pub(crate) fn loopback(&self) -> Option<IpAddr> {
        let name = self.host.trim_end_matches('.').to_ascii_lowercase();
        match name.parse::<IpAddr>() {
            Ok(address) => Some(address).filter(IpAddr::is_loopback),
            Err(_) => (name == "localhost").then_some(Ipv4Addr::LOCALHOST.into()),
        }
    }
}

impl From<SocketAddr> for Meeting {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for Meeting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = split_host(text)?;
        let port = match port.map(str::parse) {
            None => DEFAULT_PORT,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err("the port must be 1 to 65535"),
        };
        Ok(Self { host: host.into(), port })
    }
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A host, and what stands behind its last colon.
pub(crate) fn split_host(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    let (host, rest) = match text.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(rest) => (address, Some(rest)),
            None => return Err("a colon is missing behind the bracket"),
        },
        None => match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err("an IPv6 address stands in brackets");
            }
            Some((host, rest)) => (host, Some(rest)),
            None => (text, None),
        },
    };
    if host.is_empty() { Err("names no host") } else { Ok((host, rest)) }
}

/// As the library's, and torchrun's.
const DEFAULT_PORT: u16 = 29500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for (text, host, port, shown) in [
            ("h0:4711", "h0", 4711, "h0:4711"),
            ("h0", "h0", 29500, "h0:29500"),
            ("10.0.0.7:1", "10.0.0.7", 1, "10.0.0.7:1"),
            ("[fd00::1]:2222", "fd00::1", 2222, "[fd00::1]:2222"),
            ("[::1]", "::1", 29500, "[::1]:29500"),
        ] {
            let meeting: Meeting = text.parse().unwrap();
            assert_eq!((meeting.host.as_str(), meeting.port), (host, port), "{text}");
            assert_eq!(meeting.to_string(), shown);
        }
        for (text, problem) in [
            ("", "names no host"),
            (":1", "names no host"),
            ("fd00::1", "an IPv6 address stands in brackets"),
            ("[::1]2", "a colon is missing behind the bracket"),
            ("h0:0", "the port must be 1 to 65535"),
            ("h0:65536", "the port must be 1 to 65535"),
            ("h0:", "the port must be 1 to 65535"),
        ] {
            assert_eq!(text.parse::<Meeting>(), Err(problem), "{text}");
        }
    }

    #[test]
    fn only_what_is_loopback_everywhere_is() {
        let loopback = |host: &str| Meeting { host: host.into(), port: 1 }.loopback().is_some();
        assert!(loopback("127.0.0.1") && loopback("::1") && loopback("LocalHost."));
        assert!(!loopback("h0") && !loopback("10.0.0.7"));
    }
}
