//! What is wrong, by what the ranks have found: pure. Red is what fails, or makes a whole job slow
//! without need; yellow is worth a look and costs no exit code.

use std::collections::BTreeSet;

use super::facts::{Facts, LinkFacts, NetworkFacts, RankFacts};
use super::finding::{Cell, Color, Finding, Findings, Row, reds};
use super::gpus;

/// All that is wrong, the worst first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::default();
    for rank in &facts.ranks {
        let mut own = facts.links.iter().filter(|l| l.from == rank.rank && l.is_between_hosts());
        versions(rank, facts.ranks.first().unwrap_or(rank), &mut findings);
        cpus(rank, &mut findings);
        open_files(rank, &mut findings);
        sockets(rank, own.next(), &mut findings);
        clock(rank, &mut findings);
    }
    for link in facts.links.iter().filter(|link| link.is_between_hosts()) {
        if let Some(network) = &link.network {
            packet(facts, link, network, &mut findings);
            lost(link, network, &mut findings);
        }
    }
    compare(facts, &mut findings);
    gpus::judge(facts, &mut findings);
    findings.worst_first()
}

/// Pairs whose links are red by what was measured in a moment: another look may not find it.
pub(super) fn suspects(facts: &Facts) -> BTreeSet<(usize, usize)> {
    let reds = reds(&judge(facts)).into_iter();
    let is_of_a_moment = |row: &Row| matches!(row, Row::Bandwidth | Row::Packet | Row::Lost);
    let cells = reds.filter(|(row, _)| is_of_a_moment(row)).flat_map(|(_, cells)| cells);
    let pair = |cell| match cell {
        Cell::Link(from, to) => Some((from.min(to), from.max(to))),
        Cell::Rank(_) => None,
    };
    cells.filter_map(pair).collect()
}

fn versions(rank: &RankFacts, first: &RankFacts, findings: &mut Findings) {
    let cell = Cell::Rank(rank.rank);
    let both = |rank: &RankFacts| format!("allfold {} ({})", rank.version, rank.protocol);
    if both(rank) != both(first) {
        let problem = format!("runs {}, rank 0 runs {}", both(rank), both(first));
        let help = format!("install allfold {} on {} too", first.version, rank.host);
        findings.add((Color::Red, Row::Version, cell), problem, help);
    }
    if rank.is_debug_build {
        let problem = "a debug build, which is several times slower".to_owned();
        findings.add(
            (Color::Yellow, Row::Version, cell),
            problem,
            "cargo build --release, before anything is measured".into(),
        );
    }
}

fn cpus(rank: &RankFacts, findings: &mut Findings) {
    let RankFacts { cpus, ranks_on_host: ranks, host, .. } = rank;
    if (1..*ranks).contains(cpus) {
        let of = if *cpus == 1 { "1 CPU".into() } else { format!("{cpus} CPUs") };
        findings.add(
            (Color::Yellow, Row::Cpus, Cell::Rank(rank.rank)),
            format!("{ranks} ranks on {host} share {of}: they wait for each other's turns"),
            format!("start at most {cpus} there, or give them more CPUs (taskset, cpus of a pod)"),
        );
    }
}

fn open_files(rank: &RankFacts, findings: &mut Findings) {
    let Some(soft) = rank.open_files.soft else { return };
    let open = rank.open_files.open;
    let color = match soft.saturating_sub(open) {
        left if left < FEW_FILES => Color::Red,
        _ if soft < USUAL_FILES => Color::Yellow,
        _ => return,
    };
    // A program may have many open already.
    let enough = open.saturating_add(2 * FEW_FILES).next_multiple_of(USUAL_FILES);
    let help = match rank.open_files.hard {
        Some(hard) if hard < enough => format!(
            "`ulimit -Hn` is {hard}: raise it in /etc/security/limits.conf (LimitNOFILE= of a \
             service, docker's --ulimit nofile={enough}), then `ulimit -n {enough}`"
        ),
        _ => format!("ulimit -n {enough}, in the shell that starts the ranks"),
    };
    let problem = format!("may open {soft} files, and {open} are open already");
    findings.add((color, Row::OpenFiles, Cell::Rank(rank.rank)), problem, help);
}

/// `link` is one of the rank's to another host.
fn sockets(rank: &RankFacts, link: Option<&LinkFacts>, findings: &mut Findings) {
    let cell = Cell::Rank(rank.rank);
    let host = &rank.host;
    let Some(socket) = rank.sockets.iter().min_by_key(|socket| socket.receive) else { return };
    let dropped: u32 = rank.sockets.iter().filter_map(|s| s.dropped).fold(0, u32::saturating_add);
    let kib = |bytes: u64| bytes / 1024;
    let (asked, receive, send) = (socket.asked, socket.receive, socket.send);
    let set = |name: &str| format!("sysctl -w net.core.{name}={asked}, on {host} as root");
    let is_small = receive < asked;
    if dropped >= MANY_DROPPED {
        let problem = format!(
            "the system threw away {dropped} packets, for whose socket it has {} KiB",
            kib(receive)
        );
        let (color, help) = match is_small {
            true => (Color::Red, set("rmem_max")),
            false => (Color::Yellow, format!("the ranks on {host} want for CPUs: start fewer")),
        };
        findings.add((color, Row::Receive, cell), problem, help);
    } else if is_small && link.is_some() {
        let problem = format!(
            "{} KiB were asked for what arrives, the system gave {}: packets may be lost",
            kib(asked),
            kib(receive)
        );
        findings.add((Color::Yellow, Row::Receive, cell), problem, set("rmem_max"));
    }
    let Some(network) = link.and_then(|link| link.network.as_ref()) else { return };
    if send < asked {
        let problem = format!(
            "{} KiB were asked for what is sent, the system gave {}",
            kib(asked),
            kib(send)
        );
        findings.add((Color::Yellow, Row::Send, cell), problem, set("wmem_max"));
    }
    if rank.sockets.iter().any(|socket| socket.sent_at_once < 2) {
        findings.add(
            (Color::Yellow, Row::Offload, cell),
            "the system takes one packet at a time (no GSO), a quarter of the speed".into(),
            format!(
                "ethtool -K {} tx on, on {host}; Linux 4.18 or later has GSO for UDP",
                device(network)
            ),
        );
    }
}

fn clock(rank: &RankFacts, findings: &mut Findings) {
    let Some(clock) = rank.clock else { return };
    let surely = clock.ahead_ns.saturating_abs().saturating_sub(clock.within_ns);
    let color = match surely {
        WRONG_CLOCK_NS.. => Color::Red,
        UNSURE_CLOCK_NS.. => Color::Yellow,
        _ => return,
    };
    let (seconds, how) = (
        clock.ahead_ns.saturating_abs() as f64 / 1e9,
        if clock.ahead_ns < 0 { "behind" } else { "ahead of" },
    );
    findings.add(
        (color, Row::Clock, Cell::Rank(rank.rank)),
        format!("its clock is {seconds:.1} s {how} rank 0's: logs and certificates disagree"),
        format!("timedatectl set-ntp true (or chronyc makestep), on {}", rank.host),
    );
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

fn device(network: &NetworkFacts) -> &str {
    network.device.as_deref().unwrap_or("DEVICE")
}

fn host(facts: &Facts, rank: usize) -> String {
    facts.ranks.get(rank).map_or_else(|| format!("rank {rank}"), |rank| rank.host.clone())
}

/// A rank opens a socket a lane, one for control, a pidfd for each rank beside it; a trainer its
/// data, a checkpoint and its events. With so few left it fails in the middle.
const FEW_FILES: u64 = 128;
/// What Linux gives where nobody has set it.
const USUAL_FILES: u64 = 1_024;
/// As many as the library warns of: a few are lost whenever something else runs.
const MANY_DROPPED: u32 = 100;
/// Lines of different ranks cannot be put in order by time.
const UNSURE_CLOCK_NS: i64 = 100_000_000;
/// A certificate just made is not yet valid, or a token has expired.
const WRONG_CLOCK_NS: i64 = 60_000_000_000;
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
    use super::super::facts::tests::of_hosts;
    use super::super::facts::{Clock, OpenFiles};
    use super::*;

    /// What is found once something is changed.
    fn found(size: usize, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = of_hosts(size);
        change(&mut facts);
        judge(&facts)
    }

    fn network(facts: &mut Facts, from: usize, to: usize) -> &mut NetworkFacts {
        let link = facts.links.iter_mut().find(|l| (l.from, l.to) == (from, to)).unwrap();
        link.network.as_mut().unwrap()
    }

    fn only(findings: Vec<Finding>) -> Finding {
        assert_eq!(findings.len(), 1, "{findings:#?}");
        findings.into_iter().next().unwrap()
    }

    #[test]
    fn nothing_is_wrong_with_a_sound_world() {
        for size in [1, 2, 4, 16] {
            assert_eq!(found(size, |_| ()), [], "{size}");
        }
    }

    #[test]
    fn another_version_is_red() {
        let finding = only(found(3, |facts| facts.ranks[2].version = "0.2.0".into()));
        assert_eq!((finding.color, finding.cells), (Color::Red, vec![Cell::Rank(2)]));
        assert!(finding.problem.contains("allfold 0.2.0"), "{}", finding.problem);
        assert_eq!(finding.help, "install allfold 0.1.0 on h2 too");
    }

    #[test]
    fn few_open_files_are_red_with_the_line_that_mends_it() {
        let limit = |soft, hard| OpenFiles { open: 30, soft: Some(soft), hard };
        let of =
            |soft, hard| found(2, move |facts| facts.ranks[1].open_files = limit(soft, hard)).pop();
        let red = of(100, None).unwrap();
        assert_eq!((red.color, red.about), (Color::Red, Row::OpenFiles));
        assert!(red.help.starts_with("ulimit -n 1024"), "{}", red.help);
        let hard = of(100, Some(100)).unwrap();
        assert!(hard.help.contains("limits.conf"), "{}", hard.help);
        assert_eq!(of(157, None).unwrap().color, Color::Red);
        assert_eq!(of(158, None).unwrap().color, Color::Yellow);
        assert_eq!(of(1_024, None), None);
        // 1,000 are open, which 1,024 would not mend.
        let many = |hard| {
            found(1, move |facts| {
                facts.ranks[0].open_files = OpenFiles { open: 1_000, soft: Some(1_100), hard };
            })
        };
        assert!(only(many(None)).help.starts_with("ulimit -n 2048, in"));
        assert!(only(many(Some(1_500))).help.contains("limits.conf"));
    }

    #[test]
    fn a_small_buffer_is_red_once_it_has_lost_packets() {
        let of = |dropped| {
            found(3, move |facts| {
                for rank in &mut facts.ranks {
                    rank.sockets[0].receive = 212_992;
                    rank.sockets[0].dropped = Some(dropped);
                }
            })
        };
        let small = &of(0)[0];
        assert_eq!((small.color, small.about), (Color::Yellow, Row::Receive));
        let losing = &of(100)[0];
        assert_eq!((losing.color, losing.about), (Color::Red, Row::Receive));
        assert_eq!(losing.help, "sysctl -w net.core.rmem_max=4194304, on h0 as root");
        // Each host has its own line; within a host small buffers do no harm.
        assert_eq!(of(100).len(), 3);
        let within = found(2, |facts| {
            facts.links.clear();
            facts.ranks[0].sockets[0].receive = 212_992;
        });
        assert_eq!(within, []);
    }

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
    fn red_links_are_looked_at_again_and_yellow_ones_are_not() {
        let mut facts = of_hosts(4);
        assert!(suspects(&facts).is_empty());
        facts.ranks[1].open_files.soft = Some(30);
        network(&mut facts, 0, 3).packets_lost = 60;
        assert!(suspects(&facts).is_empty());
        network(&mut facts, 3, 2).packet = 1_290;
        network(&mut facts, 0, 1).packets_lost = 600;
        let slow = facts.links.iter_mut().find(|l| (l.from, l.to) == (2, 0)).unwrap();
        slow.bytes_per_second = 1e6;
        assert_eq!(suspects(&facts), BTreeSet::from([(0, 1), (0, 2), (2, 3)]));
    }

    #[test]
    fn a_long_way_and_a_wrong_clock_are_told() {
        let long = only(found(3, |facts| facts.links[0].round_trip_ns = 30_000_000));
        assert_eq!((long.color, long.about), (Color::Yellow, Row::RoundTrip));
        let of = |ahead_ns| {
            let clock = Clock { ahead_ns, within_ns: 1_000_000 };
            found(2, move |facts| facts.ranks[1].clock = Some(clock)).pop()
        };
        assert_eq!(of(100_000_000), None);
        let late = of(-200_000_000).unwrap();
        assert_eq!(late.color, Color::Yellow);
        assert!(late.problem.starts_with("its clock is 0.2 s behind rank 0's"), "{late:?}");
        assert_eq!(of(61_000_000_000).unwrap().color, Color::Red);
    }

    #[test]
    fn shared_cpus_and_missing_offload_are_yellow() {
        let shared = only(found(1, |facts| {
            (facts.ranks[0].cpus, facts.ranks[0].ranks_on_host) = (2, 4);
        }));
        assert_eq!((shared.color, shared.about), (Color::Yellow, Row::Cpus));
        let alone = only(found(2, |facts| facts.ranks[0].sockets[0].sent_at_once = 1));
        assert_eq!((alone.color, alone.about), (Color::Yellow, Row::Offload));
    }
}
