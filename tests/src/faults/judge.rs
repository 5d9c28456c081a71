//! What is promised for a case, and whether the ranks kept it.

use std::fmt;
use std::time::Duration;

use super::case::{Case, Launch, What, When};
use super::world::{RankSeen, SHORT_CONNECT, Seen};

/// What a case came to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// How long it took each survivor to know.
    pub times: Vec<Duration>,
    /// What was not as promised.
    pub problems: Vec<Problem>,
}

/// Something that was not as promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A rank did not end.
    Hang(String),
    /// A rank named another culprit, or none.
    WrongCulprit(String),
    /// A result was wrong.
    WrongResult(String),
    /// It took too long.
    Late(String),
    /// Something else.
    Other(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hang(what) => write!(f, "hang: {what}"),
            Self::WrongCulprit(what) => write!(f, "wrong culprit: {what}"),
            Self::WrongResult(what) => write!(f, "wrong result: {what}"),
            Self::Late(what) => write!(f, "too late: {what}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl Problem {
    /// Whether only a clock says so: on a busy machine it means nothing.
    pub fn is_of_time(&self) -> bool {
        matches!(self, Self::Late(_))
    }
}

/// Judges what was seen of a case.
pub fn judge(case: &Case, seen: &Seen) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(fault) = seen.fault else {
        let all: Vec<String> = (0..seen.ranks.len()).map(|rank| printed(seen, rank)).collect();
        let what = format!("it never came to the moment; {}", all.join("; "));
        verdict.problems.push(Problem::Hang(what));
        return verdict;
    };
    if seen.hung {
        let silent = |(_, rank): &(usize, &RankSeen)| rank.error_at.is_none();
        let ranks = seen.ranks.iter().enumerate().filter(silent).map(|(rank, _)| rank);
        let silent = ranks.filter(|rank| !is_gone(case, *rank));
        let silent: Vec<String> = silent.map(|rank| printed(seen, rank)).collect();
        let what = match silent.is_empty() {
            true => "all had said their error, and not all ended".into(),
            false => format!("no error; {}", silent.join("; ")),
        };
        verdict.problems.push(Problem::Hang(what));
    }
    for (rank, said) in seen.ranks.iter().enumerate() {
        if said.is_wrong {
            verdict.problems.push(Problem::WrongResult(format!("rank {rank}")));
        }
        if said.panicked && rank != case.victim {
            verdict.problems.push(Problem::Other(format!("rank {rank} panicked")));
        }
        if seen.hung && said.error_at.is_none() || is_gone(case, rank) {
            continue;
        }
        judge_rank(case, rank, said, fault, &mut verdict);
    }
    if let Some((error, code)) = &seen.launcher {
        judge_launcher(case, error.as_deref(), *code, &mut verdict);
    }
    verdict
}

/// The last thing that a rank printed: where it hangs.
fn printed(seen: &Seen, rank: usize) -> String {
    let who = format!("rank {rank}: ");
    let mut lines = seen.log.iter().filter_map(|line| line.strip_prefix(&who));
    let count = lines.clone().count();
    match lines.next_back() {
        Some(last) => format!("rank {rank} had printed {count} lines, the last `{last}`"),
        None => format!("rank {rank} had printed nothing"),
    }
}

/// Whether the rank is in no state to say anything.
fn is_gone(case: &Case, rank: usize) -> bool {
    // A launcher ends one that is stopped.
    let ended = case.ends_the_process()
        || case.what == What::Stop && case.launch == Launch::Run
        // It is continued when the others have ended, and its patience too.
        || case.what == What::Stop && case.is_before_the_world();
    rank == case.victim && ended
}

fn judge_rank(case: &Case, rank: usize, said: &RankSeen, fault: u64, verdict: &mut Verdict) {
    let problems = &mut verdict.problems;
    let text = said.error.as_deref().unwrap_or("no error");
    if is_wish(case) {
        if !text.starts_with("stopped by SIGTERM") {
            problems.push(Problem::WrongCulprit(format!("rank {rank}: {text}")));
        }
    } else if !names_culprit(case, rank, text) {
        problems.push(Problem::WrongCulprit(format!("rank {rank}: {text}")));
    }
    let Some(at) = said.error_at else {
        // A launcher may have ended the one that came last of all, before it could say a word.
        if !(case.launch == Launch::Run && case.held_back() == Some(rank)) {
            problems.push(Problem::Other(format!("rank {rank} ended without a word")));
        }
        return;
    };
    let took = Duration::from_nanos(at.saturating_sub(fault));
    // One that was stopped itself has slept, and one that was held back came later.
    if rank != case.victim && case.held_back() != Some(rank) {
        verdict.times.push(took);
        if took > limit(case) {
            let (took, limit) = (seconds(took), seconds(limit(case)));
            problems.push(Problem::Late(format!("rank {rank} knew after {took}, not {limit}")));
        }
    }
    if let Some(again) = said.again {
        if !again.is_same {
            problems.push(Problem::Other(format!("rank {rank} said something else the next time")));
        }
        if again.later > AT_ONCE {
            let took = seconds(again.later);
            problems.push(Problem::Late(format!("rank {rank}: the next call took {took}")));
        }
        if again.drop > DROP_LIMIT {
            let took = seconds(again.drop);
            problems.push(Problem::Late(format!("rank {rank}: the drop took {took}")));
        }
    }
    if let Some(code) = said.code
        && code != if is_wish(case) { 143 } else { 75 }
    {
        problems.push(Problem::Other(format!("rank {rank} ended with code {code}")));
    }
}

/// The launcher names the same rank, and ends as it did.
fn judge_launcher(case: &Case, error: Option<&str>, code: i32, verdict: &mut Verdict) {
    use What::*;
    if !case.ends_the_process() {
        return;
    }
    let text = error.unwrap_or("no error");
    if !text.starts_with(&format!("rank {} (", case.victim)) {
        verdict.problems.push(Problem::WrongCulprit(format!("the launcher: {text}")));
    }
    let expected = match case.what {
        Kill => 137,
        Terminate => 143,
        Abort => 134,
        Panic => 101,
        // It exits 0 while others still need it.
        _ => 75,
    };
    if code != expected {
        let what = format!("the launcher ended with code {code}, not {expected}: {text}");
        verdict.problems.push(Problem::Other(what));
    }
}

/// `train` takes SIGTERM for a wish, which all ranks heed.
fn is_wish(case: &Case) -> bool {
    case.what == What::Terminate && case.when == When::Backward
}

/// Whether the error of `rank` names the right one.
pub fn names_culprit(case: &Case, rank: usize, text: &str) -> bool {
    let Case { what, victim, .. } = *case;
    let neighbour = case.neighbour();
    if case.is_before_the_world() && !is_a_loss(text) {
        return match what {
            What::CutPair | What::CutOneWay => {
                misses(text, victim) || misses(text, neighbour) || misses(text, 0)
            }
            // Whoever is cut off misses all others.
            What::CutAll if rank == victim => true,
            _ => misses(text, victim),
        };
    }
    match what {
        What::CutPair => is_link(text, victim, neighbour),
        // Either end may be taken for the culprit.
        What::CutOneWay => {
            is_link(text, victim, neighbour) || is_about(text, victim) || is_about(text, neighbour)
        }
        What::CutAll if rank == victim => {
            is_about(text, victim)
                && (text.contains("is cut off") || text.contains("was declared dead by"))
        }
        What::Stop if rank == victim => {
            is_about(text, victim) && text.contains("was declared dead by")
        }
        _ => is_about(text, victim),
    }
}

/// Whether a rank was lost, as against one that never came.
fn is_a_loss(text: &str) -> bool {
    text.starts_with("the link between") || rank_at(text).is_some()
}

/// `rank 3 (...`, and not what comes behind it.
fn is_about(text: &str, rank: usize) -> bool {
    rank_at(text) == Some(rank)
}

fn rank_at(text: &str) -> Option<usize> {
    let (rank, _) = text.strip_prefix("rank ")?.split_once(" (")?;
    rank.parse().ok()
}

fn is_link(text: &str, one: usize, other: usize) -> bool {
    let between = |one, other| {
        text.starts_with(&format!("the link between rank {one} ("))
            && text.contains(&format!(") and rank {other} ("))
            && text.contains(") is down: ")
    };
    between(one, other) || between(other, one)
}

/// Whether a rank is among those that did not come, or is rank 0 and was not found.
fn misses(text: &str, rank: usize) -> bool {
    if rank == 0 {
        return text.contains("rank 0 is not found") || text.contains("has not begun the world");
    }
    let before = text.split_once(" did not come").map(|(before, _)| before);
    let named = before.or(text.split_once("still waits for ").map(|(_, after)| after));
    let numbers = named.unwrap_or("").split(|c: char| !c.is_ascii_digit());
    numbers.into_iter().any(|number| number.parse() == Ok(rank))
}

/// How long a survivor may take to know.
pub fn limit(case: &Case) -> Duration {
    let gone = case.ends_the_process();
    match case.launch {
        // Nobody says that a rank will not come back: the others wait as long as they may.
        Launch::Plain if case.is_before_the_world() => SHORT_CONNECT + SILENT,
        Launch::Run if case.is_before_the_world() && !gone => SHORT_CONNECT + SILENT,
        _ if is_wish(case) => SILENT,
        // In `train` a panic ends the process at once, without unwinding.
        _ if case.what == What::Panic && !case.is_before_the_world() => match case.when {
            When::Backward => SEEN,
            _ => TOLD,
        },
        _ if gone => SEEN,
        _ => SILENT,
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// A silent death at the defaults.
const SILENT: Duration = Duration::from_secs(3);
/// A death that the system or a launcher sees.
const SEEN: Duration = Duration::from_millis(500);
/// A panic, which says so itself.
const TOLD: Duration = Duration::from_millis(200);
/// A call after the error waits for nothing.
const AT_ONCE: Duration = Duration::from_millis(50);
/// A drop tells the others once more, at most 0.3 s, and ends threads.
const DROP_LIMIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn case(text: &str) -> Case {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn only_the_right_rank_is_the_culprit() {
        let killed = case("kill/idle/2/4/plain");
        let right = "rank 2 (h, pid 7) was killed by signal 9 (SIGKILL); rank 0 was waiting in ...";
        assert!(names_culprit(&killed, 0, right));
        let wrong = "rank 1 (h, pid 6) stopped answering 2.1 s ago; rank 2 was waiting in ...";
        assert!(!names_culprit(&killed, 0, wrong));
        assert!(!names_culprit(&killed, 0, "no error"));
        let twelve = "rank 12 (h, pid 7) was killed by signal 9 (SIGKILL)";
        assert!(!names_culprit(&case("kill/idle/1/4/plain"), 0, twelve));
    }

    #[test]
    fn a_link_has_two_ends() {
        let cut = case("cut-pair/idle/2/4/plain");
        let right = "the link between rank 2 (h, pid 7) and rank 3 (h, pid 8) is down: ...";
        assert!(names_culprit(&cut, 0, right));
        let turned = right.replace("rank 3", "rank 9").replace("rank 2", "rank 3");
        assert!(names_culprit(&cut, 0, &turned.replace("rank 9", "rank 2")));
        assert!(!names_culprit(&cut, 0, &right.replace("rank 3", "rank 1")));
        assert!(!names_culprit(&cut, 0, "rank 2 (h, pid 7) stopped answering 2.1 s ago"));
        let way = case("cut-one-way/idle/2/4/plain");
        assert!(names_culprit(&way, 0, "rank 3 (h, pid 8) stopped answering 2.1 s ago"));
        assert!(!names_culprit(&way, 0, "rank 1 (h, pid 8) stopped answering 2.1 s ago"));
    }

    #[test]
    fn a_hang_tells_what_the_rank_had_printed() {
        let killed = case("kill/idle/2/3/plain");
        let log = ["rank 0: @ 0 error 5", "rank 1: warning: one", "rank 1: warning: two"];
        let mut seen = Seen { fault: Some(1), hung: true, ..Seen::default() };
        seen.ranks = vec![RankSeen::default(); 3];
        seen.log = log.map(String::from).to_vec();
        seen.ranks[0].error_at = Some(5);
        seen.ranks[0].error = Some("rank 2 (h, pid 7) was killed by signal 9".into());
        let hang = "no error; rank 1 had printed 2 lines, the last `warning: two`";
        assert_eq!(judge(&killed, &seen).problems, [Problem::Hang(hang.into())]);
        seen.fault = None;
        let problems = judge(&killed, &seen).problems;
        let [Problem::Hang(words)] = &problems[..] else { panic!("{problems:?}") };
        assert!(words.starts_with("it never came to the moment; rank 0 had printed 1 lines"));
        assert!(words.ends_with("rank 2 had printed nothing"), "{words}");
    }

    #[test]
    fn whoever_never_came_is_missed() {
        let early = case("kill/gathering/2/4/plain");
        assert!(names_culprit(&early, 0, "rank 2 did not come to h:1 (waited 3 s)"));
        assert!(names_culprit(&early, 1, "rank 0 at h:1 still waits for rank 2 (waited 3 s)"));
        assert!(!names_culprit(&early, 1, "rank 0 at h:1 still waits for rank 1 (waited 3 s)"));
        assert!(!names_culprit(&early, 1, "rank 0 is not found at h:2 (waited 3 s)"));
        let zero = case("kill/gathering/0/4/plain");
        assert!(names_culprit(&zero, 1, "rank 0 is not found at h:1: ... (waited 3 s)"));
        assert!(!names_culprit(&zero, 1, "rank 0 at h:1 still waits for rank 2 (waited 3 s)"));
    }

    #[test]
    fn one_that_was_stopped_or_cut_off_says_its_own_thing() {
        let dead = "rank 2 (h, pid 7) was declared dead by rank 0: it stopped answering 2.1 s ago";
        assert!(names_culprit(&case("stop/idle/2/4/plain"), 2, dead));
        let off = "rank 2 (h, pid 7) is cut off: it has heard no other rank for 2.1 s";
        assert!(names_culprit(&case("cut-all/idle/2/4/plain"), 2, off));
        assert!(!names_culprit(&case("stop/idle/2/4/plain"), 2, off));
    }
}
