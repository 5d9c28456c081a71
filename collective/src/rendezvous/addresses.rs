//! Where a rank says that it is: the addresses of this host's interfaces, the most likely ones
//! first, and those among which the user has chosen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::config::Interfaces;
use crate::error::{ErrorKind, Result};
use crate::trust::hello::MAX_ADDRESSES;

/// An address of one of this host's interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) interface: String,
    pub(super) ip: IpAddr,
}

/// The addresses of all interfaces that are up.
pub(super) fn of_this_host() -> Vec<Own> {
    // Without them a rank is still found where rank 0 sees it.
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let own = all.filter(|one| one.flags.contains(InterfaceFlags::IFF_UP)).filter_map(|one| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let ip = v4.or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))?;
        Some(Own { interface: one.interface_name, ip })
    });
    own.collect()
}

/// Those that the setting chooses; all without it.
///
/// # Errors
/// Where it chooses none, which there are.
pub(super) fn chosen(all: &[Own], setting: Option<&Interfaces>) -> Result<Vec<Own>> {
    let Some(setting) = setting else { return Ok(all.to_vec()) };
    // Who leaves interfaces out does not mean that loopback ones are enough.
    let is_alone = all.iter().all(|own| own.ip.is_loopback());
    let is_meant = |own: &&Own| is_alone || !setting.is_all_but() || !own.ip.is_loopback();
    let taken = all.iter().filter(|own| setting.takes(&own.interface, own.ip));
    let chosen: Vec<Own> = taken.filter(is_meant).cloned().collect();
    if chosen.is_empty() {
        let problem = "names no interface of this host that is up and has an address".into();
        return Err(ErrorKind::Setting {
            name: "ALLFOLD_INTERFACE".into(),
            value: Some(setting.to_string()),
            problem,
            help: Some(format!("there are {}", listed(all))),
        }
        .into());
    }
    Ok(chosen)
}

/// What the others are told: the best first, families in turn. `source` is the one from which
/// packets to rank 0 leave.
pub(super) fn published(chosen: &[Own], source: Option<IpAddr>) -> Vec<IpAddr> {
    let mut good: Vec<&Own> = chosen.iter().filter(|own| may_be_told(own.ip)).collect();
    if good.is_empty() {
        // A host without a network: its ranks are all there are.
        good = chosen.iter().filter(|own| own.ip.is_loopback()).collect();
    }
    good.sort_by_key(|own| {
        let is_source = source == Some(own.ip);
        (!is_source, is_bridge(&own.interface), is_makeshift(own.ip))
    });
    let ips: Vec<IpAddr> = good.into_iter().map(|own| own.ip).collect();
    let mut told = in_turn(&ips);
    told.truncate(MAX_ADDRESSES);
    told
}

/// Both families in turn, as RFC 8305, 4, has it, beginning with that of the first.
pub(super) fn in_turn(ips: &[IpAddr]) -> Vec<IpAddr> {
    let first_is_v4 = ips.first().is_some_and(IpAddr::is_ipv4);
    let (first, other): (Vec<IpAddr>, Vec<IpAddr>) =
        ips.iter().partition(|ip| ip.is_ipv4() == first_is_v4);
    let (mut first, mut other) = (first.into_iter(), other.into_iter());
    let mut turns = Vec::new();
    loop {
        let (one, two) = (first.next(), other.next());
        if one.is_none() && two.is_none() {
            return turns;
        }
        for ip in one.into_iter().chain(two) {
            if !turns.contains(&ip) {
                turns.push(ip);
            }
        }
    }
}

/// The addresses of a name, those that lead away from this host first, families in turn. IPv4
/// begins: a name such as localhost has both, and only one is listened on.
pub(super) fn of_name(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = found.collect();
    all.sort_by_key(SocketAddr::is_ipv6);
    // A host may have a loopback address for its own name beside the one that others know.
    let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|way| way.ip().is_loopback());
    let ips = [others, own].map(|part| part.iter().map(SocketAddr::ip).collect::<Vec<_>>());
    let turns = ips.iter().flat_map(|ips| in_turn(ips));
    let addresses = turns.filter_map(|ip| all.iter().find(|way| way.ip() == ip).copied());
    addresses.take(MAX_ADDRESSES).collect()
}

/// `eth0 (10.0.0.7, fd00::7), lo (127.0.0.1, ::1)`
pub(super) fn listed(all: &[Own]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for own in all {
        if !names.contains(&own.interface.as_str()) {
            names.push(&own.interface);
        }
    }
    let of = |name: &&str| {
        let ips = all.iter().filter(|own| own.interface == **name).map(|own| own.ip.to_string());
        format!("{name} ({})", ips.collect::<Vec<_>>().join(", "))
    };
    match names.is_empty() {
        true => "none".into(),
        false => names.iter().map(of).collect::<Vec<_>>().join(", "),
    }
}

/// Whether other hosts could find anything there.
fn may_be_told(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        // It means nothing without the name of the other host's interface.
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    };
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !is_link_local
}

/// 169.254.0.0/16: of two hosts on one cable, or of a name server that every host has.
fn is_makeshift(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if Ipv4Addr::is_link_local(&ip))
}

/// Whether containers and virtual machines of this host have this interface for their own network:
/// others seldom come in by it, and often have one with the same address.
fn is_bridge(interface: &str) -> bool {
    BRIDGES.iter().any(|start| interface.starts_with(start))
}

/// How Docker, libvirt, Podman, LXD and the networks of Kubernetes call theirs.
const BRIDGES: [&str; 13] = [
    "docker",
    "br-",
    "virbr",
    "podman",
    "lxcbr",
    "lxdbr",
    "cni",
    "flannel",
    "cali",
    "cilium",
    "weave",
    "kube-",
    "nodelocaldns",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn own(interface: &str, ip: &str) -> Own {
        Own { interface: interface.into(), ip: ip.parse().unwrap() }
    }

    fn ips(ips: &[&str]) -> Vec<IpAddr> {
        ips.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn host() -> Vec<Own> {
        vec![
            own("lo", "127.0.0.1"),
            own("lo", "::1"),
            own("docker0", "172.17.0.1"),
            own("eth0", "10.0.0.7"),
            own("eth0", "fd00::7"),
            own("eth0", "fe80::7"),
            own("nodelocaldns", "169.254.20.10"),
            own("ib0", "10.1.0.7"),
        ]
    }

    #[test]
    fn what_is_told_begins_with_what_is_likely() {
        let told = published(&host(), "10.1.0.7".parse().ok());
        let expected = ips(&["10.1.0.7", "fd00::7", "10.0.0.7", "172.17.0.1", "169.254.20.10"]);
        assert_eq!(told, expected);
        let told = published(&host(), "fd00::7".parse().ok());
        assert_eq!(told[..3], ips(&["fd00::7", "10.0.0.7", "10.1.0.7"]));
        // From an address that the user has not chosen.
        let told = published(&[own("eth0", "10.0.0.7")], "10.1.0.7".parse().ok());
        assert_eq!(told, ips(&["10.0.0.7"]));
    }

    #[test]
    fn a_host_without_a_network_tells_its_loopback_addresses() {
        let alone = [own("lo", "127.0.0.1"), own("lo", "::1"), own("eth0", "fe80::1")];
        assert_eq!(published(&alone, None), ips(&["127.0.0.1", "::1"]));
        assert_eq!(published(&[], None), ips(&[]));
    }

    #[test]
    fn no_more_are_told_than_a_peer_takes() {
        let many: Vec<Own> = (1..=99).map(|n| own("eth0", &format!("10.0.0.{n}"))).collect();
        assert_eq!(published(&many, "10.0.0.98".parse().ok()).len(), MAX_ADDRESSES);
        assert_eq!(published(&many, "10.0.0.98".parse().ok())[0], ips(&["10.0.0.98"])[0]);
    }

    #[test]
    fn a_name_is_tried_in_both_families_and_elsewhere_first() {
        let found = ["[::1]:1", "127.0.1.1:1", "[fd00::7]:1", "10.0.0.7:1", "10.0.0.8:1"];
        let found = found.iter().map(|text| text.parse::<SocketAddr>().unwrap());
        let order: Vec<String> = of_name(found).iter().map(SocketAddr::to_string).collect();
        assert_eq!(order, ["10.0.0.7:1", "[fd00::7]:1", "10.0.0.8:1", "127.0.1.1:1", "[::1]:1"]);
    }

    #[test]
    fn interfaces_are_chosen_by_name_address_or_block() {
        let choose = |text: &str| {
            let setting = Interfaces::parse(text).unwrap();
            chosen(&host(), Some(&setting)).map(|own| published(&own, None))
        };
        assert_eq!(choose("eth0").unwrap(), ips(&["10.0.0.7", "fd00::7"]));
        assert_eq!(choose("ens5, ib0").unwrap(), ips(&["10.1.0.7"]));
        assert_eq!(choose("10.0.0.7").unwrap(), ips(&["10.0.0.7"]));
        assert_eq!(choose("10.0.0.0/15").unwrap(), ips(&["10.0.0.7", "10.1.0.7"]));
        assert_eq!(choose("fd00::/8").unwrap(), ips(&["fd00::7"]));
        let all_but = ips(&["10.0.0.7", "fd00::7", "10.1.0.7"]);
        assert_eq!(choose("^docker0,nodelocaldns,lo").unwrap(), all_but);
        let nothing = choose("^eth0,docker0,nodelocaldns,ib0").unwrap_err();
        assert!(nothing.to_string().contains("names no interface of this host"), "{nothing}");
        assert_eq!(choose("lo").unwrap(), ips(&["127.0.0.1", "::1"]));
        let error = choose("eth1").unwrap_err();
        assert!(error.to_string().starts_with("ALLFOLD_INTERFACE=eth1: names no interface"));
        let help = error.help().unwrap();
        assert!(
            help.starts_with("there are lo (127.0.0.1, ::1), docker0 (172.17.0.1), "),
            "{help}"
        );
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn this_host_has_a_loopback_interface() {
        let all = of_this_host();
        assert!(all.iter().any(|own| own.ip.is_loopback()), "{all:?}");
    }
}
