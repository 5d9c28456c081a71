//! What is wrong with a rank, its host and its sockets.

use super::super::facts::{Facts, LinkFacts, RankFacts};
use super::super::finding::{Cell, Color, Findings, Row};
use super::device;

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    for rank in &facts.ranks {
        let mut own = facts.links.iter().filter(|l| l.from == rank.rank && l.is_between_hosts());
        versions(rank, facts.ranks.first().unwrap_or(rank), findings);
        cpus(rank, findings);
        open_files(rank, findings);
        sockets(rank, own.next(), findings);
        clock(rank, findings);
    }
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

#[cfg(test)]
mod tests {
    use super::super::super::facts::{Clock, OpenFiles};
    use super::super::tests::{found, only};
    use super::*;

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
    fn a_wrong_clock_is_told() {
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
