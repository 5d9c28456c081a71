//! What a process knows of itself and of its host, without asking anybody.

use std::net::IpAddr;
use std::path::Path;
use std::thread::available_parallelism;

use allfold::{Communicator, Identity, SocketStatistics};
use rustix::process::{Resource, Rlimit, getrlimit};

use super::facts::{OpenFiles, RankFacts, SocketFacts};
use super::gpus::GpuFacts;

/// Of a rank in its world.
pub(super) fn of_rank(world: &Communicator) -> RankFacts {
    let own = world.peers().into_iter().nth(world.rank());
    RankFacts {
        rank: world.rank(),
        host: own.as_ref().map(|peer| peer.host.clone()).unwrap_or_default(),
        address: own.and_then(|peer| peer.address),
        ranks_on_host: world.local_size(),
        sockets: world.stats().sockets.iter().map(socket).collect(),
        ..of_process(world.local_rank())
    }
}

/// Of a rank that has met nobody.
pub(super) fn of_stranger(identity: &Identity) -> RankFacts {
    let host = read("/proc/sys/kernel/hostname").unwrap_or_default();
    let Identity { rank, local_size: ranks_on_host, .. } = *identity;
    RankFacts { rank, host, ranks_on_host, ..of_process(identity.local_rank) }
}

fn of_process(local_rank: usize) -> RankFacts {
    RankFacts {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: allfold::PROTOCOL.into(),
        is_debug_build: cfg!(debug_assertions),
        cpus: available_parallelism().map_or(0, usize::from),
        open_files: open_files(),
        gpus: GpuFacts::find(local_rank),
        rmem_max: number("/proc/sys/net/core/rmem_max"),
        wmem_max: number("/proc/sys/net/core/wmem_max"),
        ..RankFacts::default()
    }
}

fn socket(socket: &SocketStatistics) -> SocketFacts {
    SocketFacts {
        address: socket.address,
        asked: socket.buffer_asked as u64,
        receive: socket.receive_buffer as u64,
        send: socket.send_buffer as u64,
        dropped: socket.dropped,
        sent_at_once: socket.sent_at_once,
        received_at_once: socket.received_at_once,
    }
}

fn open_files() -> OpenFiles {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // The folder itself is open while it is read.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64);
    OpenFiles { open: open.saturating_sub(1), soft: current, hard: maximum }
}

/// The network device by which packets from `own` address to another one leave this host.
pub(super) fn device(own: Option<IpAddr>, address: IpAddr) -> Option<String> {
    if own == Some(address) {
        return Some(LOOPBACK.into());
    }
    let table = match address {
        IpAddr::V4(_) => read("/proc/net/route"),
        IpAddr::V6(_) => read("/proc/net/ipv6_route"),
    };
    device_of(&table?, address)
}

/// By the kernel's main table of routes: the longest prefix wins.
fn device_of(table: &str, address: IpAddr) -> Option<String> {
    let routes = table.lines().filter_map(|line| match address {
        IpAddr::V4(ip) => {
            // Iface Destination Gateway Flags RefCnt Use Metric Mask ...; as they lie in memory.
            let words: Vec<&str> = line.split_whitespace().collect();
            let word = |place| u32::from_str_radix(words.get::<usize>(place)?, 16).ok();
            let (network, mask): (u32, u32) = (word(1)?, word(7)?);
            let is_up = word(3)? & ROUTE_IS_UP != 0;
            let matches = u32::from_ne_bytes(ip.octets()) & mask == network;
            (is_up && matches).then_some((mask.count_ones(), *words.first()?))
        }
        IpAddr::V6(ip) => {
            // Destination, its length, source, its length, next hop, metric, ..., device.
            let words: Vec<&str> = line.split_whitespace().collect();
            let network = u128::from_str_radix(words.first()?, 16).ok()?;
            let length = u32::from_str_radix(words.get(1)?, 16).ok()?;
            let shift = 128u32.checked_sub(length)?;
            let cut = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
            (cut(u128::from(ip)) == cut(network)).then_some((length, *words.last()?))
        }
    });
    // The first of equals has the best metric.
    let best = routes.reduce(|best, other| if other.0 > best.0 { other } else { best });
    best.map(|(_, device)| device.to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// What has an address of this host stays within.
const LOOPBACK: &str = "lo";
/// RTF_UP
const ROUTE_IS_UP: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_names_the_device() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth1\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                     old0\t02004D0A\t00000000\t0000\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        let of = |text: &str| device_of(table, text.parse().unwrap());
        assert_eq!(of("10.77.0.2").as_deref(), Some("eth1"));
        assert_eq!(of("10.78.0.2").as_deref(), Some("eth0"));
        let none = "00000000";
        let table = format!(
            "fd000000000000000000000000000000 40 {zero} 00 {zero} 100 1 0 1     eth1\n\
             {zero} 00 {zero} 00 {zero} 100 1 0 1     eth0\n",
            zero = none.repeat(4)
        );
        let of = |text: &str| device_of(&table, text.parse().unwrap());
        assert_eq!(of("fd00::2").as_deref(), Some("eth1"));
        assert_eq!(of("fd01::2").as_deref(), Some("eth0"));
        assert_eq!(device_of("", "10.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn this_process_has_files_open_and_a_limit() {
        let OpenFiles { open, soft, .. } = open_files();
        assert!(open >= 3, "{open}");
        assert!(soft.is_none_or(|soft| soft > open));
    }
}
