//! What rank 0 prints for a person: at most 100 columns, colors where they are wanted.

mod links;

use std::collections::BTreeSet;

use super::facts::{Clock, Facts, RankFacts};
use super::finding::{Cell, Color, Finding, Row, color, list_cells};
use super::schedule::MOST_FOR_ALL;

/// The whole page.
pub(super) fn page(facts: &Facts, findings: &[Finding], is_colored: bool) -> String {
    let mut page = Page { facts, findings, is_colored, text: String::new() };
    page.head();
    page.ranks();
    page.gpus();
    match facts.ranks.len() {
        0..=MOST_FOR_ALL => page.matrices(),
        _ => page.list(),
    }
    page.findings();
    page.text
}

struct Page<'a> {
    facts: &'a Facts,
    findings: &'a [Finding],
    is_colored: bool,
    text: String,
}

impl Page<'_> {
    fn line(&mut self, words: &str) {
        self.text.push_str(words.trim_end());
        self.text.push('\n');
    }

    /// The words in the color that the cell has.
    fn painted(&self, words: &str, about: Row, cell: Cell) -> String {
        self.colored(words, color(self.findings, about, cell))
    }

    fn colored(&self, words: &str, color: Option<Color>) -> String {
        let code = match color {
            Some(Color::Red) => "31;1",
            Some(Color::Yellow) => "33",
            None => return words.to_owned(),
        };
        match self.is_colored {
            true => format!("\x1b[{code}m{words}\x1b[0m"),
            false => words.to_owned(),
        }
    }

    /// There is no world.
    fn has_not_met(&self) -> bool {
        self.facts.met == 0
    }

    fn head(&mut self) {
        let Facts { ranks, transport, security, .. } = self.facts;
        let hosts: BTreeSet<_> = ranks.iter().map(|rank| (&rank.host, rank.address)).collect();
        let number = |count: usize, what| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let Some(RankFacts { rank, version, protocol, .. }) = ranks.first() else { return };
        let alone = format!("allfold {version} ({protocol}) · what rank {rank} knows of itself");
        if self.has_not_met() {
            return self.line(&alone);
        }
        if !self.facts.are_whole() {
            self.line(&format!("{alone}: {} ranks had met", self.facts.met));
            return self.line(&format!("{transport} · {security}"));
        }
        let (ranks, hosts) = (number(ranks.len(), "rank"), number(hosts.len(), "host"));
        self.line(&format!("allfold {version} ({protocol}) · {ranks} on {hosts}"));
        self.line(&format!("{transport} · {security}"));
    }

    fn ranks(&mut self) {
        let ranks = &self.facts.ranks;
        let places: Vec<String> = ranks.iter().map(|rank| self.found_at(rank)).collect();
        let widest = |words: &mut dyn Iterator<Item = usize>, title: &str, most: usize| {
            words.max().unwrap_or(0).clamp(title.len(), most)
        };
        let host = widest(&mut ranks.iter().map(|r| r.host.chars().count()), "host", WIDEST_HOST);
        let place =
            widest(&mut places.iter().map(String::len), "found at", COLUMNS - OTHER_COLUMNS - host);
        self.line("");
        let header = format!(
            "{:>4}  {:host$}  {:place$}  {:>5}  {:>10}  {:>7}  {:>6}  {:>7}  {:>9}",
            "rank", "host", "found at", "cpus", "files", "receive", "send", "offload", "clock"
        );
        self.line(&header);
        for (rank, found_at) in ranks.iter().zip(places).take(MOST_LINES) {
            let cell = Cell::Rank(rank.rank);
            let socket = rank.sockets.iter().min_by_key(|socket| socket.receive);
            let kib = |bytes: Option<u64>| bytes.map_or("-".into(), |b| (b / 1024).to_string());
            let offload = match socket {
                None => "-",
                Some(socket) => match (socket.sent_at_once > 1, socket.received_at_once > 1) {
                    (true, true) => "gso gro",
                    (true, false) => "gso",
                    (false, true) => "gro",
                    (false, false) => "none",
                },
            };
            let files = rank.open_files;
            let soft = files.soft.map_or("any".into(), |soft| soft.to_string());
            let paint = |words: String, about| self.painted(&words, about, cell);
            let line = format!(
                "{}  {:host$}  {:place$}  {}  {}  {}  {}  {}  {}",
                paint(format!("{:>4}", rank.rank), Row::Version),
                cut(&rank.host, host),
                cut(&found_at, place),
                paint(format!("{:>5}", rank.cpus), Row::Cpus),
                paint(format!("{:>10}", format!("{}/{soft}", files.open)), Row::OpenFiles),
                paint(format!("{:>7}", kib(socket.map(|socket| socket.receive))), Row::Receive),
                paint(format!("{:>6}", kib(socket.map(|socket| socket.send))), Row::Send),
                paint(format!("{offload:>7}"), Row::Offload),
                paint(format!("{:>9}", ahead(rank.clock)), Row::Clock),
            );
            self.line(&line);
        }
        self.and_more(ranks.len());
        if let Some(socket) = ranks.iter().find_map(|rank| rank.sockets.first()) {
            let asked = socket.asked / 1024;
            self.line(&format!(
                "      receive, send: socket buffers in KiB, {asked} asked for · clock: ms ahead \
                 of rank 0's"
            ));
        }
    }

    /// Where any rank has one.
    fn gpus(&mut self) {
        let ranks = &self.facts.ranks;
        if !ranks.iter().any(|rank| rank.gpus.are_there()) {
            return;
        }
        self.line("");
        self.line("rank  takes GPU  of  CUDA   NCCL       name");
        for rank in ranks.iter().take(MOST_LINES) {
            let (cell, gpus) = (Cell::Rank(rank.rank), &rank.gpus);
            let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".into());
            let index = gpus.takes.map_or("-".into(), |index| index.to_string());
            let line = format!(
                "{:>4}  {index:>9}  {}  {}  {}  {}",
                rank.rank,
                self.painted(&format!("{:>2}", gpus.names.len()), Row::Gpus, cell),
                cut(&format!("{:<5}", word(&gpus.cuda)), 5),
                self.painted(&cut(&format!("{:<9}", word(&gpus.nccl)), 9), Row::Nccl, cell),
                cut(gpus.name(), WIDEST_NAME),
            );
            self.line(&line);
        }
        self.and_more(ranks.len());
    }

    /// The addresses by which the others reach a rank.
    fn found_at(&self, rank: &RankFacts) -> String {
        let reached = self.facts.links.iter().filter(|link| link.to == rank.rank);
        let places: BTreeSet<_> =
            reached.filter_map(|link| link.network.as_ref()).map(|n| n.remote.ip()).collect();
        let places: Vec<String> = match places.is_empty() {
            true => rank.address.iter().map(ToString::to_string).collect(),
            false => places.iter().map(ToString::to_string).collect(),
        };
        match places.is_empty() {
            true => "-".into(),
            false => places.join(" "),
        }
    }

    fn and_more(&mut self, all: usize) {
        if all > MOST_LINES {
            self.line(&format!("      and {} more: --json has all", all - MOST_LINES));
        }
    }

    fn findings(&mut self) {
        self.line("");
        for Finding { color, about, cells, problem, help } in self.findings {
            let name = if *color == Color::Red { "red" } else { "yellow" };
            let name = self.colored(name, Some(*color));
            // A color takes no column.
            let who = list_cells(cells, self.facts.ranks.len());
            let words = format!("{}, {who}: {problem}", about.name());
            let wrapped = wrap(&words, COLUMNS - INDENT.len(), "yellow: ".len());
            self.line(&format!("{name}: {}", wrapped.join(&format!("\n{INDENT}"))));
            let wrapped = wrap(help, COLUMNS - INDENT.len(), "help: ".len());
            self.line(&format!("{INDENT}help: {}", wrapped.join(&format!("\n{INDENT}"))));
        }
        let count = |color| self.findings.iter().filter(|f| f.color == color).count();
        let verdict = match (count(Color::Red), count(Color::Yellow)) {
            (0, 0) if !self.facts.are_whole() => "nothing is wrong with the rank itself".to_owned(),
            (0, 0) => "all well".to_owned(),
            (0, yellow) => format!("no red cell, {yellow} yellow"),
            (red, 0) => format!("{red} red"),
            (red, yellow) => format!("{red} red, {yellow} yellow"),
        };
        self.line(&verdict);
    }
}

/// Milliseconds, and how sure that is.
fn ahead(clock: Option<Clock>) -> String {
    match clock {
        None => "-".into(),
        Some(Clock { within_ns: 0, .. }) => "0".into(),
        Some(Clock { ahead_ns, within_ns }) => {
            let ms = |ns: i64| short(ns as f64 / 1e6);
            format!("{}±{}", ms(ahead_ns), ms(within_ns))
        }
    }
}

/// Three figures that matter.
fn short(value: f64) -> String {
    match value.abs() {
        // Not -0.00.
        size if size < 0.005 => "0".into(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn cut(words: &str, width: usize) -> String {
    match words.chars().count() > width {
        true => words.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => words.to_owned(),
    }
}

/// Lines of at most `width`, the first of which begins `taken` columns later.
fn wrap(words: &str, width: usize, taken: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut left = width.saturating_sub(taken);
    for word in words.split(' ') {
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if line.is_empty() || length < left => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
                left = left.saturating_sub(length + 1);
            }
            _ => {
                lines.push(word.to_owned());
                left = width.saturating_sub(length);
            }
        }
    }
    lines
}

const COLUMNS: usize = 100;
const INDENT: &str = "    ";
const WIDEST_HOST: usize = 16;
/// Of a GPU.
const WIDEST_NAME: usize = 60;
/// Of the table of ranks, but for the host and where it was found.
const OTHER_COLUMNS: usize = 64;
/// Of ranks and of links; the worst are among them, or named below.
const MOST_LINES: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::facts::tests::of_hosts;
    use super::super::judgement::judge;
    use super::*;

    pub(super) fn of(facts: &Facts, is_colored: bool) -> String {
        page(facts, &judge(facts), is_colored)
    }

    #[test]
    fn a_page_of_three_hosts() {
        let mut facts = of_hosts(3);
        facts.ranks[1].open_files.soft = Some(64);
        facts.ranks[2].clock = Some(Clock { ahead_ns: -1_500_000, within_ns: 50_000 });
        for link in &mut facts.links {
            if link.from + link.to == 1 {
                link.network = None;
            } else if let Some(network) = link.network.as_mut().filter(|_| link.from == 2) {
                (network.packet, network.packets_lost) = (1_290, 100);
            }
        }
        let expected = "\
allfold 0.1.0 (allfold/1) · 3 ranks on 3 hosts
quic between hosts · mutual TLS, secret 3f9a12c4

rank  host  found at   cpus       files  receive    send  offload      clock
   0  h0    10.0.0.1      8     20/1024     4096    4096  gso gro          0
   1  h1    10.0.0.2      8       20/64     4096    4096  gso gro          0
   2  h2    10.0.0.3      8     20/1024     4096    4096  gso gro  -1.50±0.05
      receive, send: socket buffers in KiB, 4096 asked for · clock: ms ahead of rank 0's

round trip, us; m: shared memory
        0     1     2
  0     .   100m  100
  1   100m    .   100
  2   100   100     .

bandwidth from row to column, MB/s
        0     1     2
  0     .  1100m 1100
  1  1100m    .  1100
  2  1100  1100     .

path MTU, bytes
        0     1     2
  0     .        1490
  1           .  1490
  2  1290  1290     .

packets lost, %
        0     1     2
  0     .         0.0
  1           .   0.0
  2   1.0   1.0     .

red: open files, rank 1: may open 64 files, and 20 are open already
    help: ulimit -n 1024, in the shell that starts the ranks
red: path MTU, 2 -> 0 and 2 -> 1: packets of more than about 1290 bytes vanish, and the
    system sends up to 1500: a black hole for TCP, and smaller packets are slower
    help: ip link set dev eth0 mtu 1290, on h2; or let ICMP's `fragmentation needed` through
yellow: packets lost, 2 -> 0 and 2 -> 1: 0.5 % of packets or more are lost
    help: ip -s link show dev eth0, at both ends: errors are a cable or a port, drops a queue that
    is too short
2 red, 1 yellow
";
        let text = of(&facts, false);
        assert_eq!(text, expected, "{text}");
    }

    #[test]
    fn a_rank_that_has_lost_another_says_that_they_had_met() {
        let mut facts = of_hosts(3);
        facts.ranks.truncate(1);
        facts.links.clear();
        let text = of(&facts, false);
        let head = "allfold 0.1.0 (allfold/1) · what rank 0 knows of itself: 3 ranks had met\n\
                    quic between hosts · ";
        assert!(text.starts_with(head), "{text}");
        assert!(text.ends_with("nothing is wrong with the rank itself\n"), "{text}");
        facts.met = 0;
        let text = of(&facts, false);
        let head = text.lines().next().unwrap();
        assert!(head.ends_with("what rank 0 knows of itself"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_a_hundred_columns() {
        for size in [1, 2, 16, 17, 200] {
            let mut facts = of_hosts(size);
            for rank in &mut facts.ranks {
                rank.host = format!("a-very-long-name-of-a-host-{}", rank.rank);
                rank.address = Some("2001:db8:1234:5678:9abc:def0:1234:5678".parse().unwrap());
                rank.open_files.soft = Some(1_048_576);
                rank.clock = Some(Clock { ahead_ns: -123_456_789, within_ns: 12_345_678 });
                rank.sockets[0].dropped = Some(4_000_000_000);
            }
            for link in &mut facts.links {
                link.round_trip_ns = 1_234_567_891;
                link.bytes_per_second = 98_765e6;
                if let Some(network) = &mut link.network {
                    (network.packet, network.is_largest) = (65_028, false);
                }
            }
            for line in of(&facts, false).lines() {
                assert!(line.chars().count() <= COLUMNS, "{line}");
            }
        }
    }

    #[test]
    fn colors_are_around_cells_and_only_where_they_are_wanted() {
        let mut facts = of_hosts(2);
        facts.ranks[1].open_files.soft = Some(64);
        let text = of(&facts, true);
        assert!(text.contains("\x1b[31;1m     20/64\x1b[0m"), "{text}");
        assert!(text.contains("\x1b[31;1mred\x1b[0m: open files"), "{text}");
        assert!(!of(&facts, false).contains('\x1b'));
        assert!(!of(&of_hosts(2), true).contains('\x1b'));
    }
}
