//! The part of the page that is about links: tables of all, or a list where there are many ranks.

use std::fmt::Write as _;

use super::super::facts::LinkFacts;
use super::super::finding::{Cell, Row};
use super::{MOST_LINES, Page, short};

impl Page<'_> {
    /// All links, each figure in a table of its own.
    pub(super) fn matrices(&mut self) {
        let links = &self.facts.links;
        if links.is_empty() {
            return;
        }
        let is_shared = links.iter().any(|link| link.network.is_none());
        let legend = if is_shared { "; m: shared memory" } else { "" };
        let (divisor, unit) = time_unit(links);
        let mark = |link: &LinkFacts| if link.network.is_none() { 'm' } else { ' ' };
        let trip = |link: &LinkFacts| (short(link.round_trip_ns as f64 / divisor), mark(link));
        self.matrix(&format!("round trip, {unit}{legend}"), Row::RoundTrip, &trip);
        let (divisor, unit) = rate_unit(links);
        let rate = |link: &LinkFacts| (short(link.bytes_per_second / divisor), mark(link));
        self.matrix(&format!("bandwidth from row to column, {unit}"), Row::Bandwidth, &rate);
        if links.iter().all(|link| link.network.is_none()) {
            self.line("");
            self.line("no network: all ranks share memory (ALLFOLD_TRANSPORT=quic measures one)");
            return;
        }
        let is_open = links.iter().filter_map(|link| link.network.as_ref()).any(|n| !n.is_largest);
        let legend = if is_open { "; +: or more, the search has not ended" } else { "" };
        let packet = |link: &LinkFacts| match &link.network {
            Some(network) => {
                (network.packet.to_string(), if network.is_largest { ' ' } else { '+' })
            }
            None => (String::new(), ' '),
        };
        self.matrix(&format!("path MTU, bytes{legend}"), Row::Packet, &packet);
        if links.iter().any(|link| link.lost().is_some_and(|lost| lost > 0.0)) {
            let lost = |link: &LinkFacts| {
                (link.lost().map_or(String::new(), |lost| format!("{:.1}", lost * 100.0)), ' ')
            };
            self.matrix("packets lost, %", Row::Lost, &lost);
        }
    }

    /// A cell is of five columns and its mark.
    fn matrix(&mut self, title: &str, about: Row, show: &dyn Fn(&LinkFacts) -> (String, char)) {
        let size = self.facts.ranks.len();
        self.line("");
        self.line(title);
        let columns: String = (0..size).map(|to| format!("{to:>5} ")).collect();
        self.line(&format!("    {columns}"));
        for from in 0..size {
            let mut line = format!("{from:>3} ");
            for to in 0..size {
                let (words, mark) =
                    self.facts.link(from, to).map_or_else(|| (".".into(), ' '), show);
                let padding = " ".repeat(5usize.saturating_sub(words.chars().count()));
                let words = self.painted(&words, about, Cell::Link(from, to));
                // Writing to a string cannot fail.
                let _ = write!(line, "{padding}{words}{mark}");
            }
            self.line(&line);
        }
    }

    /// Of the ring, the slowest first.
    pub(super) fn list(&mut self) {
        let mut links: Vec<&LinkFacts> = self.facts.links.iter().collect();
        links.sort_by(|a, b| a.bytes_per_second.total_cmp(&b.bytes_per_second));
        self.line("");
        self.line("neighbours in the ring, the slowest first");
        self.line(&format!(
            "{:>5} {:>5}  {:>13}  {:>10}  {:>8}  {:>6}  over",
            "from", "to", "bandwidth", "round trip", "path MTU", "lost"
        ));
        for link in links.iter().take(MOST_LINES) {
            let cell = Cell::Link(link.from, link.to);
            let paint = |words: String, about| self.painted(&words, about, cell);
            let network = link.network.as_ref();
            let mtu = network.map_or("-".into(), |n| {
                format!("{}{}", n.packet, if n.is_largest { "" } else { "+" })
            });
            let lost = link.lost().map_or("-".into(), |lost| format!("{:.1} %", lost * 100.0));
            let line = format!(
                "{:>5} {:>5}  {}  {}  {}  {}  {}",
                link.from,
                link.to,
                paint(format!("{:>8} MB/s", short(link.bytes_per_second / 1e6)), Row::Bandwidth),
                paint(format!("{:>7} us", short(link.round_trip_ns as f64 / 1e3)), Row::RoundTrip),
                paint(format!("{mtu:>8}"), Row::Packet),
                paint(format!("{lost:>6}"), Row::Lost),
                network.map_or("shared memory".into(), |n| n.remote.ip().to_string()),
            );
            self.line(&line);
        }
        self.and_more(links.len());
    }
}

/// So that no cell has more than five digits.
fn time_unit(links: &[LinkFacts]) -> (f64, &'static str) {
    let longest = links.iter().map(|link| link.round_trip_ns).max().unwrap_or(0);
    if longest < 100_000_000 { (1e3, "us") } else { (1e6, "ms") }
}

fn rate_unit(links: &[LinkFacts]) -> (f64, &'static str) {
    let fastest = links.iter().map(|link| link.bytes_per_second).fold(0.0, f64::max);
    if fastest < 99_999e6 { (1e6, "MB/s") } else { (1e9, "GB/s") }
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::tests::of_hosts;
    use super::super::tests::of;

    #[test]
    fn a_world_beyond_sixteen_is_a_list() {
        let mut facts = of_hosts(40);
        facts.links.retain(|link| link.from.abs_diff(link.to) == 1);
        let slow = facts.links.iter_mut().find(|link| link.from == 7).unwrap();
        slow.bytes_per_second = 1e6;
        let text = of(&facts, false);
        let after = text.split("the slowest first").nth(1).unwrap();
        let first = after.lines().nth(2).unwrap();
        assert_eq!(first.split_whitespace().next(), Some("7"), "{text}");
        assert!(text.contains("and 14 more: --json has all"), "{text}");
    }
}
