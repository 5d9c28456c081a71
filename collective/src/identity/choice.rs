//! Which of the launchers that can be seen started this very process.
//!
//! Launchers start each other: mpirun runs in a batch job, torchrun in a pod. The innermost wins,
//! the others are ignored, with the reason; two that both claim to number this process are
//! refused.

use super::claim::{Claim, unset};
use super::{DETECTORS, Environment, Ignored, run};
use crate::error::{Error, Result};

/// Recognises one launcher.
pub(super) struct Detector {
    pub(super) launcher: &'static str,
    pub(super) scope: Scope,
    pub(super) read: fn(&Environment) -> Result<Reading>,
}

/// What a launcher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Processes, on purpose for allfold.
    Given,
    /// Processes that it starts itself.
    Process,
    /// Something: RANK and WORLD_SIZE are set by many.
    Plain,
    /// Pods, or what else a process is started in.
    Pod,
}

/// What a detector sees of its launcher.
pub(super) enum Reading {
    /// Nothing.
    Absent,
    /// It is there, and did not number this process, which is why; and what to do about it where
    /// the user may have meant otherwise.
    Outer { reason: String, help: Option<String> },
    /// It says who this process is.
    Claim(Box<Claim>),
}

impl From<Claim> for Reading {
    fn from(claim: Claim) -> Self {
        Self::Claim(Box::new(claim))
    }
}

/// Who won, and who did not.
pub(super) struct Choice {
    pub(super) winner: Option<(&'static Detector, Result<Claim>)>,
    pub(super) ignored: Vec<Ignored>,
}

/// A detector, and its launcher's word or what is wrong with it.
type Word = (&'static Detector, Result<Claim>);

pub(super) fn choose(environment: &Environment) -> Choice {
    let (mut words, mut ignored) = hear(environment);
    if words.is_empty() {
        return Choice { winner: None, ignored };
    }
    let (detector, mut word) = words.remove(innermost(&words));
    let mut has_pod = false;
    for (other, said) in words {
        // Pods of one kind often look like those of another, too.
        let is_further = other.scope == Scope::Pod && std::mem::replace(&mut has_pod, true);
        let reason = match (&mut word, said) {
            (_, Err(error)) => error.to_string(),
            (Err(_), Ok(_)) => format!("{} comes first", detector.launcher),
            (Ok(claim), Ok(said)) => {
                let agrees = claim.agrees(&said);
                let within = run::is_within(environment, other.launcher, &said);
                match judge((detector, claim), (other, &said), is_further, within) {
                    // On all ranks, then: where one differs it is refused.
                    Judgement::Both if agrees => {
                        claim.complete_with(&said);
                        SAME.into()
                    }
                    Judgement::Both => {
                        word = Err(refused((detector, claim), (other, &said)));
                        format!("nobody knows whether it or {} is right", detector.launcher)
                    }
                    Judgement::Outer(_) if agrees => SAME.into(),
                    Judgement::Outer(reason) => reason,
                }
            }
        };
        ignored.push(Ignored { launcher: other.launcher.into(), reason, help: None });
    }
    Choice { winner: Some((detector, word)), ignored }
}

/// What all launchers say, and those that are there and say that they do not matter.
fn hear(environment: &Environment) -> (Vec<Word>, Vec<Ignored>) {
    let mut ignored = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    for detector in &DETECTORS {
        match (detector.read)(environment) {
            Ok(Reading::Absent) => {}
            Ok(Reading::Outer { reason, help }) => {
                ignored.push(Ignored { launcher: detector.launcher.into(), reason, help });
            }
            Ok(Reading::Claim(claim)) => words.push((detector, Ok(*claim))),
            Err(error) => words.push((detector, Err(error))),
        }
    }
    (words, ignored)
}

/// The launchers that have numbered this process, for what it starts: theirs are not the numbers of
/// its children. None where there is none.
pub(super) fn numbered_here(environment: &Environment) -> Option<String> {
    let (words, _) = hear(environment);
    let entries = words.iter().filter_map(|(detector, word)| {
        let claim = word.as_ref().ok().filter(|_| detector.scope == Scope::Process)?;
        Some(claim.entry(detector.launcher))
    });
    Some(entries.collect::<Vec<_>>().join("; ")).filter(|entries| !entries.is_empty())
}

/// The first by precedence, except that RANK and WORLD_SIZE may be of a program that each process
/// of an outer launcher's started several times.
fn innermost(words: &[Word]) -> usize {
    let Some(plain) = words.iter().position(|(detector, _)| detector.scope == Scope::Plain) else {
        return 0;
    };
    match (&words[0], &words[plain].1) {
        // Half of the pair: scripts export WORLD_SIZE, and start the ranks by a launcher.
        (_, Err(_)) if plain == 0 => usize::from(words.len() > 1),
        ((first, Ok(outer)), Ok(inner)) if first.scope != Scope::Given && inner.refines(outer) => {
            plain
        }
        _ => 0,
    }
}

/// Of one beside the winner.
enum Judgement {
    /// The other did not start this process.
    Outer(String),
    /// Both claim to number it, which is refused where they differ.
    Both,
}

/// What the winner and another have to do with each other. `within`: where the winner is `allfold
/// run`, whether the other had numbered that itself.
fn judge(
    (winner, claim): (&Detector, &Claim),
    (other, said): (&Detector, &Claim),
    is_further: bool,
    within: bool,
) -> Judgement {
    use Scope::{Given, Plain, Pod, Process};
    let name = winner.launcher;
    let outer = |reason: &str| Judgement::Outer(reason.replace("{}", name));
    match (winner.scope, other.scope) {
        // It has come in between: allfold's launcher started it, and it this process. One that
        // starts single processes numbers nothing.
        (Given, Process)
            if name == run::LAUNCHER
                && !within
                && said.known_size().is_none_or(|size| size > 1) =>
        {
            Judgement::Both
        }
        (Given, _) => outer("{} comes first"),
        // Of its agents torchrun knows only how many there are: it numbers them in its own order.
        (Process, Process) if claim.agents.is_some() && claim.agents == said.known_size() => {
            outer("numbers the agents of {}, not this process")
        }
        (Process, Process) if super::is_resource_manager(other.launcher) => {
            outer("{} started this process within it")
        }
        (Process, Pod) => outer("numbers the pod; {} started this process in it"),
        (Plain, _) if claim.refines(said) => outer("numbers what started this process and others"),
        (Pod, Pod) => outer("{} comes first"),
        (Plain, Pod) if is_further => outer("{} comes first"),
        (Plain, Pod) if said.is_guess => {
            outer("only the pod's name ends in a number, and {} are set")
        }
        (Process, Process | Plain) | (Plain, Process | Pod) | (Pod, Plain | Process) => {
            Judgement::Both
        }
        // These come first in the order, and there is only one plain.
        (_, Given) | (Plain, Plain) => outer("{} comes first"),
    }
}

fn refused((a, claim): (&Detector, &Claim), (b, said): (&Detector, &Claim)) -> Error {
    let by = |detector: &Detector, claim: &Claim| match detector.scope {
        Scope::Plain => claim.numbers(),
        _ => format!("{} ({})", claim.numbers(), detector.launcher),
    };
    let problem = format!("is numbered twice: {}, {}", by(a, claim), by(b, said));
    let help = match (a.scope, b.scope) {
        (Scope::Plain, Scope::Pod) | (Scope::Pod, Scope::Plain) => {
            "remove RANK and WORLD_SIZE from the pods' environment; where each pod starts several \
             ranks, they need LOCAL_RANK and LOCAL_WORLD_SIZE, too"
                .into()
        }
        (Scope::Given, Scope::Process) => format!(
            "start the ranks by {} alone, without allfold run around it, or by allfold run alone",
            b.launcher
        ),
        _ => format!(
            "unset {} or {} on all ranks, whichever is not meant; see docs/launchers.md",
            claim.rank.from, said.rank.from
        ),
    };
    unset("this process", problem, help)
}

pub(super) const SAME: &str = "says the same";
