//! What is wrong, by what the ranks have found: pure. Red is what fails, or makes a whole job slow
//! without need; yellow is worth a look and costs no exit code.

mod links;
mod ranks;

use std::collections::BTreeSet;

use super::facts::{Facts, NetworkFacts};
use super::finding::{Cell, Finding, Findings, Row, reds};
use super::gpus;

/// All that is wrong, the worst first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::default();
    ranks::judge(facts, &mut findings);
    links::judge(facts, &mut findings);
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

/// As a line that mends it names it.
fn device(network: &NetworkFacts) -> &str {
    network.device.as_deref().unwrap_or("DEVICE")
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::of_hosts;
    use super::*;

    /// What is found once something is changed.
    pub(super) fn found(size: usize, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = of_hosts(size);
        change(&mut facts);
        judge(&facts)
    }

    pub(super) fn network(facts: &mut Facts, from: usize, to: usize) -> &mut NetworkFacts {
        let link = facts.links.iter_mut().find(|l| (l.from, l.to) == (from, to)).unwrap();
        link.network.as_mut().unwrap()
    }

    pub(super) fn only(findings: Vec<Finding>) -> Finding {
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
}
