//! The network between pods: a switch, a cable and addresses for each pod, and what is wrong with
//! it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::Cluster;
use crate::CAP;
use crate::namespaces::{Namespaces, SWITCH, inside, ip, nft};

/// The addresses of pods. IPv4 and IPv6 alike are in DNS where there are both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Both work.
    Both,
    /// There is no other.
    OnlyV4,
    /// There is no other.
    OnlyV6,
    /// No packet between pods arrives over IPv4.
    DeadV4,
    /// No packet between pods arrives over IPv6.
    DeadV6,
}

impl Families {
    fn has_v4(self) -> bool {
        self != Self::OnlyV6
    }

    fn has_v6(self) -> bool {
        self != Self::OnlyV4
    }
}

/// A switch to which pods are plugged.
pub(super) struct Network {
    namespaces: Namespaces,
    cluster: Cluster,
    /// By ordinal, of the pods that exist.
    addresses: Vec<Vec<IpAddr>>,
    /// How many pods have been plugged in: each has addresses of its own.
    plugged: u16,
}

impl Network {
    /// For so many pods.
    pub(super) fn new(
        namespaces: Namespaces,
        cluster: Cluster,
        pods: usize,
    ) -> Result<Self, String> {
        let switch = namespaces.make_switch()?;
        if cluster.families.has_v4() {
            ip(&["-n", &switch, "addr", "add", &format!("{DNS_V4}/24"), "dev", SWITCH])?;
        }
        if cluster.families.has_v6() {
            let address = format!("{DNS_V6}/64");
            ip(&["-n", &switch, "addr", "add", &address, "dev", SWITCH, "nodad"])?;
        }
        Ok(Self { namespaces, cluster, addresses: vec![Vec::new(); pods], plugged: 0 })
    }

    /// Where DNS is.
    pub(super) fn resolver(&self) -> IpAddr {
        if self.cluster.families.has_v4() { DNS_V4.into() } else { DNS_V6.into() }
    }

    /// The namespace of the switch.
    pub(super) fn switch(&self) -> String {
        self.namespaces.name(SWITCH)
    }

    /// The namespace of a pod.
    pub(super) fn name(&self, ordinal: usize) -> String {
        self.namespaces.name(ordinal)
    }

    /// Gives a pod a network, at addresses that no pod had before.
    pub(super) fn plug(&mut self, ordinal: usize) -> Result<&[IpAddr], String> {
        self.plugged += 1;
        self.addresses[ordinal] = self.addresses_of(self.plugged);
        let name = self.namespaces.make(ordinal)?;
        let (switch, port) = (self.switch(), format!("pod{}", self.plugged));
        self.namespaces.plug(ordinal, &port)?;
        for address in &self.addresses[ordinal] {
            let length = if address.is_ipv4() { 24 } else { 64 };
            let address = format!("{address}/{length}");
            let add = ["-n", &name, "addr", "add", &address, "dev", "eth0"];
            // What is unique by its making need not be asked for.
            ip(&[&add[..], if length == 64 { &["nodad"] } else { &[] }].concat())?;
        }
        if let Some(mtu) = self.cluster.path_mtu {
            ip(&["-n", &switch, "link", "set", &port, "mtu", &mtu.to_string()])?;
            // Else packets that the kernel has not cut yet pass as one, of whatever size.
            ip(&["-n", &name, "link", "set", "eth0", "gso_max_segs", "1"])?;
        }
        ip(&["-n", &switch, "link", "set", &port, "up"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        let dead = match self.cluster.families {
            Families::DeadV4 => Some(format!("ip saddr 10.244.0.0/16 ip saddr != {DNS_V4}")),
            Families::DeadV6 => Some(format!("ip6 saddr fd00:244::/64 ip6 saddr != {DNS_V6}")),
            Families::Both | Families::OnlyV4 | Families::OnlyV6 => None,
        };
        if let Some(dead) = dead {
            let chain = format!(
                "table inet dead {{ chain in {{ type filter hook input priority 0; \
                 iif != lo meta l4proto {{ tcp, udp, icmp }} {dead} drop; }}; }}"
            );
            nft(&name, &chain)?;
        }
        if self.cluster.duplicates {
            DUPLICATES.iter().try_for_each(|(bridge, all)| add_bridge(&name, bridge, all))?;
        }
        Ok(&self.addresses[ordinal])
    }

    /// Ends what runs in a pod, and takes its network away.
    pub(super) fn unplug(&self, ordinal: usize) {
        self.namespaces.remove(ordinal);
    }

    /// Whether a datagram arrives, judged by the one that is sent after it.
    ///
    /// # Errors
    /// What does not work here.
    pub(super) fn arrives(
        &self,
        (from, to): (usize, usize),
        is_v6: bool,
        bytes: usize,
        witness_is_v6: bool,
    ) -> Result<bool, String> {
        let at = |is_v6| {
            let of_family = |ip: &&IpAddr| ip.is_ipv6() == is_v6;
            let ip = self.addresses[to].iter().find(of_family).ok_or("no such address")?;
            Ok::<_, String>(SocketAddr::new(*ip, 0))
        };
        let bind = |ordinal: usize, at: SocketAddr| {
            let bind = || UdpSocket::bind(at).map_err(|error| error.to_string());
            inside(&self.namespaces.name(ordinal), bind)
        };
        let send = |is_v6, bytes| {
            let any = if is_v6 {
                Ipv6Addr::UNSPECIFIED.into()
            } else {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            };
            let (receiver, sender) = (bind(to, at(is_v6)?)?, bind(from, SocketAddr::new(any, 0))?);
            let sent = receiver.local_addr().and_then(|at| sender.send_to(&vec![0; bytes], at));
            sent.map_err(|error| error.to_string())?;
            Ok::<_, String>(receiver)
        };
        let (receiver, witness) = (send(is_v6, bytes)?, send(witness_is_v6, 1)?);
        witness
            .set_read_timeout(Some(CAP))
            .and_then(|()| witness.recv(&mut [0]))
            .and_then(|_| receiver.set_nonblocking(true))
            .map_err(|error| error.to_string())?;
        Ok(receiver.recv(&mut [0]).is_ok())
    }

    fn addresses_of(&self, number: u16) -> Vec<IpAddr> {
        let families = self.cluster.families;
        let number = FIRST_POD + number;
        let [third, fourth] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(10, 244, third, fourth).into();
        let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number);
        let v4 = families.has_v4().then_some(v4);
        v4.into_iter().chain(families.has_v6().then_some(v6.into())).collect()
    }
}

/// A bridge that is up, as with a container at it.
fn add_bridge(name: &str, bridge: &str, addresses: &[&str]) -> Result<(), String> {
    let end = format!("{bridge}c");
    ip(&["-n", name, "link", "add", bridge, "type", "bridge"])?;
    for address in addresses {
        let add = ["-n", name, "addr", "add", address, "dev", bridge];
        ip(&[&add[..], if address.contains(':') { &["nodad"] } else { &[] }].concat())?;
    }
    let port = format!("{bridge}p");
    let veth = ["type", "veth", "peer", "name", &end];
    ip(&[&["-n", name, "link", "add", &port], &veth[..]].concat())?;
    ip(&["-n", name, "link", "set", &port, "master", bridge, "up"])?;
    ip(&["-n", name, "link", "set", &end, "up"])?;
    ip(&["-n", name, "link", "set", bridge, "up"])
}

/// Where the cluster's DNS is.
const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 2);
/// So many addresses are not of pods.
const FIRST_POD: u16 = 9;
/// What many hosts have alike: of Docker, of libvirt, of a name server on each node, and of virtual
/// machines whose first interface is one of these and looks like any other.
const DUPLICATES: [(&str, &[&str]); 4] = [
    ("docker0", &["172.17.0.1/16", "fd17::1/64"]),
    ("virbr0", &["192.168.122.1/24"]),
    ("nodelocaldns", &["169.254.20.10/32"]),
    ("enp0s3", &["10.0.2.15/24"]),
];
