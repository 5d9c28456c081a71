//! What is wrong, and where: findings about cells, and what those are called.

use serde::Serialize;

/// One thing that is wrong, and what mends it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    pub(super) color: Color,
    pub(super) about: Row,
    /// Who: one of them, or two for each link, the sender first.
    pub(super) cells: Vec<Cell>,
    pub(super) problem: String,
    pub(super) help: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Color {
    Yellow,
    Red,
}

/// What a cell is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Row {
    Version,
    Cpus,
    OpenFiles,
    Receive,
    Send,
    Offload,
    Clock,
    Gpus,
    Nccl,
    RoundTrip,
    Bandwidth,
    Packet,
    Lost,
}

impl Row {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Cpus => "cpus",
            Self::OpenFiles => "open files",
            Self::Receive => "receive buffer",
            Self::Send => "send buffer",
            Self::Offload => "offload",
            Self::Clock => "clock",
            Self::Gpus => "gpus",
            Self::Nccl => "nccl",
            Self::RoundTrip => "round trip",
            Self::Bandwidth => "bandwidth",
            Self::Packet => "path MTU",
            Self::Lost => "packets lost",
        }
    }
}

/// A rank, or the way from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Cell {
    Rank(usize),
    Link(usize, usize),
}

/// The color of a cell, if it has one.
pub(super) fn color(findings: &[Finding], about: Row, cell: Cell) -> Option<Color> {
    let is_meant = |finding: &&Finding| finding.about == about && finding.cells.contains(&cell);
    findings.iter().filter(is_meant).map(|finding| finding.color).max()
}

/// What is red, and where.
pub(super) fn reds(findings: &[Finding]) -> Vec<(Row, Vec<Cell>)> {
    let mut reds: Vec<(Row, Vec<Cell>)> = Vec::new();
    for Finding { about, cells, .. } in findings.iter().filter(|f| f.color == Color::Red) {
        match reds.iter_mut().find(|(known, _)| known == about) {
            Some((_, known)) => known.extend(cells),
            None => reds.push((*about, cells.clone())),
        }
    }
    reds
}

/// `ranks 0, 1 and 2`, `0 -> 1 and 1 -> 0`; many are cut short.
pub(super) fn list_cells(cells: &[Cell], ranks: usize) -> String {
    let word = |cell: &Cell| match cell {
        Cell::Rank(rank) => rank.to_string(),
        Cell::Link(from, to) => format!("{from} -> {to}"),
    };
    let mut words: Vec<String> = cells.iter().take(MOST_CELLS).map(word).collect();
    if cells.len() > MOST_CELLS {
        words.push(format!("{} more", cells.len() - MOST_CELLS));
    }
    let list = match &words[..] {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => words.concat(),
    };
    match (cells.first(), cells.len()) {
        (Some(Cell::Rank(_)), 1) => format!("rank {list}"),
        (Some(Cell::Rank(_)), count) if count == ranks && count > 2 => format!("all {count} ranks"),
        (Some(Cell::Rank(_)), _) => format!("ranks {list}"),
        _ => list,
    }
}

/// The same of several cells is one finding.
#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn add(
        &mut self,
        (color, about, cell): (Color, Row, Cell),
        problem: String,
        help: String,
    ) {
        let is_same = |known: &&mut Finding| {
            (known.color, known.about) == (color, about)
                && (&known.problem, &known.help) == (&problem, &help)
        };
        match self.0.iter_mut().find(is_same) {
            Some(known) => known.cells.push(cell),
            None => self.0.push(Finding { color, about, cells: vec![cell], problem, help }),
        }
    }

    pub(super) fn worst_first(self) -> Vec<Finding> {
        let mut findings = self.0;
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.color));
        findings
    }
}

/// Of one finding; the others are only counted.
const MOST_CELLS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_cells_are_cut_short() {
        let ranks: Vec<Cell> = (0..10).map(Cell::Rank).collect();
        let list = |cells: &[Cell]| list_cells(cells, 10);
        assert_eq!(list(&ranks[..1]), "rank 0");
        assert_eq!(list(&ranks[..2]), "ranks 0 and 1");
        assert_eq!(list(&ranks[..9]), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 1 more");
        assert_eq!(list(&ranks), "all 10 ranks");
        assert_eq!(list(&[Cell::Link(0, 1), Cell::Link(1, 0)]), "0 -> 1 and 1 -> 0");
    }
}
