//! The ranks' GPUs, as far as calls on them need the same everywhere.

use allfold::nccl::Presence;
use serde::{Deserialize, Serialize};

use super::facts::Facts;
use super::finding::{Cell, Color, Findings, Row};

/// What a rank finds of GPUs, their driver and NCCL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GpuFacts {
    /// Those that its process sees.
    pub(super) names: Vec<String>,
    /// Which of them it would take.
    pub(super) takes: Option<usize>,
    /// The driver's version of CUDA.
    pub(super) cuda: Option<String>,
    /// NCCL's version.
    pub(super) nccl: Option<String>,
    /// Why it cannot make calls on a GPU, and what to do.
    pub(super) problem: Option<String>,
    pub(super) help: Option<String>,
}

impl GpuFacts {
    /// Those of this process, which is number `local_rank` of its host.
    pub(super) fn find(local_rank: usize) -> Self {
        let presence = Presence::find();
        let (problem, help) = presence.check().err().map(|a| (a.problem, a.help)).unzip();
        Self {
            takes: presence.gpu_of(local_rank),
            cuda: presence.driver.ok().map(|version| version.to_string()),
            nccl: presence.nccl.ok().map(|(version, _)| version.to_string()),
            names: presence.gpus,
            problem,
            help,
        }
    }

    pub(super) fn are_there(&self) -> bool {
        !self.names.is_empty()
    }

    /// What the GPU that the rank would take calls itself.
    pub(super) fn name(&self) -> &str {
        self.takes.and_then(|index| self.names.get(index)).map_or("-", String::as_str)
    }

    /// All words that come from the rank.
    pub(super) fn words(&mut self) -> impl Iterator<Item = &mut String> {
        let Self { names, takes: _, cuda, nccl, problem, help } = self;
        names.iter_mut().chain([cuda, nccl, problem, help].into_iter().flatten())
    }
}

/// Nothing is wrong where nobody has a GPU.
pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    if !facts.ranks.iter().any(|rank| rank.gpus.are_there()) {
        return;
    }
    for rank in &facts.ranks {
        let GpuFacts { problem, help, .. } = &rank.gpus;
        let Some((problem, help)) = problem.as_ref().zip(help.as_ref()) else { continue };
        let about = if rank.gpus.are_there() { Row::Nccl } else { Row::Gpus };
        let words = format!("{problem}: calls on GPUs are refused");
        let help = format!("on {}: {help}", rank.host);
        findings.add((Color::Yellow, about, Cell::Rank(rank.rank)), words, help);
    }
    compare(facts, (Color::Red, Row::Nccl), |gpus| gpus.nccl.as_ref(), findings);
    compare(facts, (Color::Yellow, Row::Gpus), |gpus| gpus.cuda.as_ref(), findings);
}

/// Versions beside that of the first rank that has one.
fn compare(
    facts: &Facts,
    (color, about): (Color, Row),
    version: impl Fn(&GpuFacts) -> Option<&String>,
    findings: &mut Findings,
) {
    let able = facts.ranks.iter().filter(|rank| rank.gpus.problem.is_none());
    let mut able = able.filter_map(|rank| Some((rank, version(&rank.gpus)?)));
    let Some((first, right)) = able.next() else { return };
    for (rank, own) in able.filter(|(_, own)| *own != right) {
        let (problem, help) = match about {
            Row::Nccl => (
                format!("NCCL {own}, rank {} has NCCL {right}: they do not connect", first.rank),
                format!(
                    "install NCCL {right} on {} too (libnccl2, or nvidia-nccl-cu12)",
                    rank.host
                ),
            ),
            _ => (
                format!("the driver has CUDA {own}, that of rank {} CUDA {right}", first.rank),
                format!("install the same driver on {} and {}", rank.host, first.host),
            ),
        };
        findings.add((color, about, Cell::Rank(rank.rank)), problem, help);
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::RankFacts;
    use super::super::facts::tests::of_hosts;
    use super::super::finding::Finding;
    use super::super::judgement::judge;
    use super::super::page::page;
    use super::*;

    fn gpus() -> GpuFacts {
        GpuFacts {
            names: vec!["H100".into(), "H200".into()],
            takes: Some(1),
            cuda: Some("13.0".into()),
            nccl: Some("2.28.9".into()),
            ..GpuFacts::default()
        }
    }

    fn with(change: impl Fn(&mut Vec<RankFacts>)) -> (Facts, Vec<Finding>) {
        let mut facts = of_hosts(3);
        facts.ranks.iter_mut().for_each(|rank| rank.gpus = gpus());
        change(&mut facts.ranks);
        let findings = judge(&facts);
        (facts, findings)
    }

    fn absent(problem: &str) -> GpuFacts {
        let (problem, help) = (Some(problem.into()), Some("install it".into()));
        GpuFacts { problem, help, ..GpuFacts::default() }
    }

    #[test]
    fn ranks_with_the_same_are_well_and_so_are_ranks_with_none() {
        let (facts, findings) = with(|_| ());
        assert_eq!(findings, []);
        let page = page(&facts, &findings, false);
        let rows = "\nrank  takes GPU  of  CUDA   NCCL       name\n   \
                    0          1   2  13.0   2.28.9     H200\n";
        assert!(page.contains(rows), "{page}");
        let (facts, findings) = with(|ranks| {
            ranks.iter_mut().for_each(|rank| rank.gpus = absent("there is no CUDA driver"));
        });
        assert_eq!(findings, []);
        assert!(!super::super::page::page(&facts, &findings, false).contains("GPU"));
    }

    #[test]
    fn another_nccl_is_red_and_another_cuda_is_yellow() {
        let (_, findings) = with(|ranks| {
            ranks[1].gpus.nccl = Some("2.19.3".into());
            ranks[2].gpus.cuda = Some("12.4".into());
        });
        let [nccl, cuda] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!((nccl.color, nccl.about), (Color::Red, Row::Nccl));
        assert_eq!(nccl.cells, [Cell::Rank(1)]);
        assert!(nccl.help.starts_with("install NCCL 2.28.9 on h1 too"), "{}", nccl.help);
        assert_eq!((cuda.color, cuda.about), (Color::Yellow, Row::Gpus));
        assert_eq!(cuda.help, "install the same driver on h2 and h0");
    }

    #[test]
    fn a_rank_without_gpu_or_nccl_is_told_beside_those_that_have_one() {
        let (_, findings) = with(|ranks| {
            ranks[0].gpus = absent("there is no CUDA driver");
            ranks[2].gpus = GpuFacts { nccl: None, ..absent("libnccl.so.2 is not found") };
            ranks[2].gpus.names = vec!["H100".into()];
        });
        let colors: Vec<_> = findings.iter().map(|f| (f.color, f.about, &f.cells[..])).collect();
        let yellow = |about, cell| (Color::Yellow, about, cell);
        let (first, last) = ([Cell::Rank(0)], [Cell::Rank(2)]);
        assert_eq!(colors, [yellow(Row::Gpus, &first[..]), yellow(Row::Nccl, &last[..])]);
        assert_eq!(findings[0].help, "on h0: install it");
    }
}
