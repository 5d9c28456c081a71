//! An address as users write it: a host, or a host and a port.

use std::net::IpAddr;

use crate::error::{Error, ErrorKind, Result};
use crate::identity::Environment;

/// Where rank 0 answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl HostPort {
    /// The address, where it is one and no name.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// As [`read`](Self::read), for a rendezvous.
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self> {
        Self::read(text, default_port).map_err(|problem| {
            let help = "it comes from ALLFOLD_RENDEZVOUS, else MASTER_ADDR and MASTER_PORT";
            Error::from(ErrorKind::Setting {
                name: "rendezvous".into(),
                value: Some(text.into()),
                problem: problem.into(),
                help: Some(help.into()),
            })
        })
    }

    /// `host`, `host:port`, `address:port` or `[address]:port`.
    pub(crate) fn read(text: &str, default_port: u16) -> Result<Self, &'static str> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, rest)) => match rest.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return Err("a colon is missing behind the bracket"),
            },
            None => match text.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err("an IPv6 address stands in brackets: [address]:port");
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            return Err("names no host; give host:port");
        }
        let port = match port.map(str::parse) {
            None => default_port,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err("the port must be 1 to 65535"),
        };
        Ok(Self { host: host.into(), port })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The port of an address that is given without one.
pub(crate) fn default_port(environment: &Environment) -> Result<u16> {
    Ok(environment.port()?.unwrap_or(DEFAULT_PORT))
}

/// PyTorch's default too, so that firewalls that let it through fit.
pub(crate) const DEFAULT_PORT: u16 = 29_500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_forms() {
        let parse =
            |text| HostPort::parse(text, 4711).map(|a| (a.host, a.port)).map_err(|e| e.to_string());
        assert_eq!(parse("node-0"), Ok(("node-0".into(), 4711)));
        assert_eq!(parse("10.0.0.1:29500"), Ok(("10.0.0.1".into(), 29500)));
        assert_eq!(parse("[fe80::1]:4711"), Ok(("fe80::1".into(), 4711)));
        assert_eq!(parse("[fe80::1]"), Ok(("fe80::1".into(), 4711)));
        assert!(parse("fe80::1").unwrap_err().contains("brackets"));
        assert!(parse("[fe80::1]4711").unwrap_err().contains("a colon is missing"));
        assert!(parse("node-0:port").unwrap_err().contains("1 to 65535"));
        assert!(parse("node-0:0").unwrap_err().contains("1 to 65535"));
        assert!(parse(":4711").unwrap_err().contains("names no host"));
    }
}
