//! What is wrong with a link between hosts, by itself and beside the others.

use std::collections::BTreeSet;

use super::super::facts::{Facts, LinkFacts, NetworkFacts};
use super::super::finding::{Cell, Color, Findings, Row};
use super::device;

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    for link in facts.links.iter().filter(|link| link.is_between_hosts()) {
        if let Some(network) = &link.network {
            packet(facts, link, network, findings);
            lost(link, network, findings);
        }
    }
    compare(facts, findings);
}

fn packet(facts: &Facts, link: &LinkFacts, network: &NetworkFacts, findings: &mut Findings) {
    let Some(system) = network.system_packet.filter(|_| is_narrow(network)) else { return };
    // The search comes within so much of what the path lets through.
    let bytes = network.packet;
    let (device, host) = (device(network), host(facts, link.from));
    let ways: Vec<&NetworkFacts> = facts
        .links
        .iter()
        .filter(|other| other.from == link.from && other.is_between_hosts())
        .filter_map(|other| other.network.as_ref())
        .filter(|other| other.device == network.device)
        .collect();
    let mend = match ways.len() > 1 && ways.iter().all(|way| is_narrow(way)) {
        true if bytes < LEAST_OF_IPV6 => {
            format!("ip link set dev {device} mtu {bytes}, on {host} (which takes IPv6 off it)")
        }
        true => format!("ip link set dev {device} mtu {bytes}, on {host}"),
        // The device's other ways are wider.
        false if network.remote.is_ipv6() && bytes < LEAST_OF_IPV6 => format!(
            "mend the tunnel on the way from {host} to {}: IPv6 wants {LEAST_OF_IPV6} bytes",
            network.remote.ip()
        ),
        false => {
            let peer = network.remote.ip();
            format!(
                "ip route add {peer} dev {device} mtu lock {bytes}, on {host} (and `via` the \
                 gateway, where `ip route get {peer}` names one)"
            )
        }
    };
    findings.add(
        (Color::Red, Row::Packet, Cell::Link(link.from, link.to)),
        format!(
            "packets of more than about {bytes} bytes vanish, and the system sends up to {system}: \
             a black hole for TCP, and smaller packets are slower"
        ),
        format!("{mend}; or let ICMP's `fragmentation needed` through"),
    );
}

/// Whether the path surely lets less through than the sender's system believes.
fn is_narrow(network: &NetworkFacts) -> bool {
    let expected = network.system_packet.map(|system| system.min(LARGEST_PACKET));
    network.is_largest && expected.is_some_and(|bytes| network.packet + PACKET_SLACK < bytes)
}

fn lost(link: &LinkFacts, network: &NetworkFacts, findings: &mut Findings) {
    let (color, least) = match link.lost() {
        _ if network.packets_lost < SOME_LOST => return,
        Some(share) if share >= LOST_RED => (Color::Red, LOST_RED),
        Some(share) if share >= LOST_YELLOW => (Color::Yellow, LOST_YELLOW),
        _ => return,
    };
    findings.add(
        (color, Row::Lost, Cell::Link(link.from, link.to)),
        format!("{} % of packets or more are lost", least * 100.0),
        format!(
            "ip -s link show dev {}, at both ends: errors are a cable or a port, drops a queue \
             that is too short",
            device(network)
        ),
    );
}

/// Links beside each other: one that is far slower than the others makes all wait.
fn compare(facts: &Facts, findings: &mut Findings) {
    let links: Vec<&LinkFacts> = facts.links.iter().filter(|l| l.is_between_hosts()).collect();
    if links.len() < ENOUGH_LINKS {
        return;
    }
    let at = |mut values: Vec<f64>, percent: usize| {
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() * percent / 100).copied().unwrap_or_default()
    };
    // Not the middle one: where one of three ranks is slow, most links are.
    let good_rate = at(links.iter().map(|link| link.bytes_per_second).collect(), 75);
    let good_trip = at(links.iter().map(|link| link.round_trip_ns as f64).collect(), 25);
    let slow: Vec<(&LinkFacts, Color)> = links
        .iter()
        .filter_map(|link| match link.bytes_per_second / good_rate {
            share if share < SLOW_RED => Some((*link, Color::Red)),
            share if share < SLOW_YELLOW => Some((*link, Color::Yellow)),
            _ => None,
        })
        .collect();
    let culprit = common(&slow.iter().map(|(link, _)| (link.from, link.to)).collect::<Vec<_>>());
    for (link, color) in slow {
        let at = match culprit {
            Some(rank) => host(facts, rank),
            None => format!("{} and {}", host(facts, link.from), host(facts, link.to)),
        };
        let device = link.network.as_ref().map_or("DEVICE", device);
        let whose = match culprit {
            Some(rank) => format!("; rank {rank} is an end of every such link"),
            None => String::new(),
        };
        findings.add(
            (color, Row::Bandwidth, Cell::Link(link.from, link.to)),
            format!("far slower than the others, which carry {:.0} MB/s{whose}", good_rate / 1e6),
            format!("ethtool {device}, on {at}: speed and duplex as they should be?"),
        );
    }
    for link in links {
        let trip = link.round_trip_ns;
        if trip >= LONG_TRIP_NS && trip as f64 > LONG_TRIP * good_trip {
            findings.add(
                (Color::Yellow, Row::RoundTrip, Cell::Link(link.from, link.to)),
                format!("far longer than the others' {:.2} ms", good_trip / 1e6),
                "another site, or a full queue on the way? Every call waits for it".into(),
            );
        }
    }
}

/// The one rank that all of several links have in common.
fn common(links: &[(usize, usize)]) -> Option<usize> {
    let pairs: BTreeSet<_> = links.iter().map(|(a, b)| (*a.min(b), *a.max(b))).collect();
    let mut pairs = pairs.into_iter();
    let first = pairs.next()?;
    let second = pairs.next()?;
    let rank = [first.0, first.1].into_iter().find(|rank| [second.0, second.1].contains(rank))?;
    pairs.all(|(a, b)| [a, b].contains(&rank)).then_some(rank)
}

fn host(facts: &Facts, rank: usize) -> String {
    facts.ranks.get(rank).map_or_else(|| format!("rank {rank}"), |rank| rank.host.clone())
}

/// The largest that is looked for between hosts: jumbo frames.
const LARGEST_PACKET: u64 = 9_000;
/// Linux has no IPv6 on an interface with less (RFC 8200, 5).
const LEAST_OF_IPV6: u64 = 1_280;
/// The search ends within 20 bytes, and IPv6's headers are 20 longer than IPv4's.
const PACKET_SLACK: u64 = 48;
/// A few are lost by chance.
const SOME_LOST: u64 = 5;
/// On a sound Ethernet nothing is lost but where a queue overflows, and what is counted fills none.
const LOST_YELLOW: f64 = 0.005;
/// Congestion control takes it for a full queue, and sends a packet or two at a time.
const LOST_RED: f64 = 0.05;
/// Beside the upper quarter: the measurement is short, and pairs share the network. A tenth is what
/// a card has that came up with 1 Gbit/s for 10.
const SLOW_RED: f64 = 0.11;
const SLOW_YELLOW: f64 = 0.33;
/// Three ranks have six.
const ENOUGH_LINKS: usize = 6;
const LONG_TRIP: f64 = 10.0;
/// Less is a rank that was not awake.
const LONG_TRIP_NS: i64 = 2_000_000;

#[cfg(test)]
mod tests {
    use super::super::super::finding::reds;
    use super::super::tests::{found, network, only};
    use super::*;

    #[test]
    fn a_path_that_swallows_packets_is_red_once_that_is_sure() {
        let of = |packet, is_largest, system| {
            found(2, move |facts| {
                let way = network(facts, 0, 1);
                (way.packet, way.is_largest, way.system_packet) = (packet, is_largest, system);
            })
        };
        let both = found(2, |facts| {
            for (from, to) in [(0, 1), (1, 0)] {
                network(facts, from, to).packet = 1_290;
            }
        });
        assert_eq!(reds(&both), [(Row::Packet, vec![Cell::Link(0, 1), Cell::Link(1, 0)])]);
        let finding = only(of(1_290, true, Some(1_500)));
        assert_eq!((finding.color, finding.about), (Color::Red, Row::Packet));
        assert_eq!(finding.cells, [Cell::Link(0, 1)]);
        let help = "ip route add 10.0.0.2 dev eth0 mtu lock 1290, on h0 (and `via` the gateway, \
                    where `ip route get 10.0.0.2` names one); or let ICMP's";
        assert!(finding.help.starts_with(help), "{}", finding.help);
        // IPv6 has no smaller ones, and no interface has IPv6 with smaller ones.
        let narrow = found(2, |facts| {
            let way = network(facts, 0, 1);
            (way.packet, way.remote) = (1_250, "[2001:db8::2]:1".parse().unwrap());
        });
        assert!(only(narrow).help.starts_with("mend the tunnel on the way from h0 to 2001:db8::2"));
        for (bytes, more) in [(1_250, " (which takes IPv6 off it);"), (1_290, ";")] {
            let all = found(3, |facts| {
                for to in [1, 2] {
                    network(facts, 0, to).packet = bytes;
                }
            });
            let expected = format!("ip link set dev eth0 mtu {bytes}, on h0{more}");
            let all = only(all);
            assert!(all.help.starts_with(&expected), "{}", all.help);
        }
        assert_eq!(of(1_290, false, Some(1_500)), []);
        assert_eq!(of(1_290, true, Some(1_300)), []);
        assert_eq!(of(1_290, true, None), []);
        // Larger than what is looked for, and within a host.
        assert_eq!(of(8_980, true, Some(9_216)), []);
        let within = found(2, |facts| {
            let way = network(facts, 0, 1);
            (way.packet, way.local) = (1_290, Some(way.remote.ip()));
        });
        assert_eq!(within, []);
    }

    #[test]
    fn lost_packets_are_red_where_they_are_many() {
        let of = |lost| found(2, move |facts| network(facts, 1, 0).packets_lost = lost).pop();
        assert_eq!(of(49), None);
        assert_eq!(of(50).unwrap().color, Color::Yellow);
        let red = of(500).unwrap();
        assert_eq!((red.color, red.cells), (Color::Red, vec![Cell::Link(1, 0)]));
        assert_eq!(red.problem, "5 % of packets or more are lost");
    }

    #[test]
    fn the_rank_that_all_slow_links_have_in_common_is_named() {
        let slow = |facts: &mut Facts, is_slow: fn(&LinkFacts) -> bool, rate| {
            facts.links.iter_mut().filter(|l| is_slow(l)).for_each(|l| l.bytes_per_second = rate);
        };
        let has_2 = |l: &LinkFacts| l.from == 2 || l.to == 2;
        let red = only(found(3, |facts| slow(facts, has_2, 0.1e9)));
        assert_eq!((red.color, red.cells.len()), (Color::Red, 4));
        assert!(red.problem.contains("rank 2 is an end of every such link"), "{}", red.problem);
        assert_eq!(red.help, "ethtool eth0, on h2: speed and duplex as they should be?");
        let yellow = only(found(3, |facts| slow(facts, has_2, 0.3e9)));
        assert_eq!(yellow.color, Color::Yellow);
        let one = |l: &LinkFacts| (l.from, l.to) == (3, 1);
        let single = only(found(4, |facts| slow(facts, one, 0.1e9)));
        assert!(single.help.contains("on h3 and h1"), "{}", single.help);
        // Two ranks have nothing to be compared with.
        assert_eq!(found(2, |facts| slow(facts, |_| true, 1.0)), []);
    }

    #[test]
    fn a_long_way_is_told() {
        let long = only(found(3, |facts| facts.links[0].round_trip_ns = 30_000_000));
        assert_eq!((long.color, long.about), (Color::Yellow, Row::RoundTrip));
    }
}
