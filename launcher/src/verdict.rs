//! What the launcher says at the end: one error for the whole job, and its exit code.

use rustix::io::Errno;
use signal_hook::consts::SIGTERM;

use crate::ending::{Ending, How, at_fault};
use crate::error::Error;
use crate::exit_code;
use crate::job::Kind;
use crate::journal::signal_text;
use crate::report::Report;

/// What happened to a job.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// In the order in which they were noticed.
    pub(crate) endings: Vec<Ending>,
    /// The signal by which the user stopped the job before anything had failed.
    pub(crate) stopped_by: Option<i32>,
    /// Whether the user has stopped it, also after a failure.
    pub(crate) is_stopped: bool,
    /// What kept the ranks' output from being printed, such as a full disk.
    pub(crate) unprinted: Option<Errno>,
    /// The ranks that the launcher had to end.
    pub(crate) put_down: Vec<usize>,
}

/// The result of the job; `reports` holds what copies of ourselves left, by rank.
pub(crate) fn verdict(
    kind: Kind,
    outcome: &Outcome,
    reports: &[Option<Report>],
) -> Result<(), Error> {
    if let Some(signal) = outcome.stopped_by
        && !(kind == Kind::Copies && signal == SIGTERM && has_heeded(outcome, reports))
    {
        return Err(stopped(signal, outcome));
    }
    // The ranks die of it, by SIGPIPE or in their own way.
    if let Some(problem) = outcome.unprinted {
        return Err(Error::Output { problem });
    }
    let Some(ending) = at_fault(&outcome.endings) else {
        return Ok(());
    };
    let code = ending.how.code();
    if let Some(report) = told(ending, reports) {
        let message = report.message + &put_down(outcome);
        return Err(Error::Job { message, help: report.help, code });
    }
    let message = match blamed(outcome, ending) {
        Blamed::Itself => ending.to_string() + &put_down(outcome),
        Blamed::Left(left) => {
            let Ending { rank, pid, .. } = left;
            format!("rank {rank} (pid {pid}) exited while others still needed it")
                + &put_down(outcome)
        }
        Blamed::PutDown(names) => format!(
            "{names} did not end after another rank or the network failed, and {} killed",
            if outcome.put_down.len() == 1 { "was" } else { "were" }
        ),
    };
    Err(Error::Job { message, help: help(ending.how), code })
}

/// Whether every rank has ended by itself and well, or said why not: a copy of ourselves that was
/// done and waited ends with 0, and one that was stopped knows how far it came.
fn has_heeded(outcome: &Outcome, reports: &[Option<Report>]) -> bool {
    outcome.put_down.is_empty()
        && outcome.endings.iter().all(|ending| match ending.how {
            How::Exit(exit_code::DONE) => true,
            How::Exit(exit_code::TRY_AGAIN) | How::Signal(_) | How::OutOfMemory => false,
            How::Exit(_) => matches!(reports.get(ending.rank), Some(Some(_))),
        })
}

/// For a job that the user has stopped by this signal.
pub(crate) fn stopped(signal: i32, outcome: &Outcome) -> Error {
    Error::Job {
        message: format!("stopped by {}{}", signal_text(signal), put_down(outcome)),
        help: None,
        code: exit_code::of_signal(signal),
    }
}

/// Whether to start all ranks anew.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    MayHelp,
    /// It would end the same way; why.
    Useless(&'static str),
    /// Nothing failed, or the user wants an end.
    Unwanted,
}

impl Restart {
    /// `failed` is the exit code where no rank is at fault but what they ran on.
    pub(crate) fn of(kind: Kind, outcome: &Outcome, failed: Option<u8>) -> Self {
        if outcome.is_stopped || outcome.unprinted.is_some() {
            return Self::Unwanted;
        }
        match failed {
            Some(exit_code::TRY_AGAIN) => return Self::MayHelp,
            Some(_) => return Self::Unwanted,
            None => {}
        }
        match at_fault(&outcome.endings).map(|ending| ending.how) {
            None => Self::Unwanted,
            // A program of the user's may mean anything by it.
            Some(How::Exit(exit_code::CHECK_FAILED)) if kind == Kind::Copies => Self::Useless(
                "exit code 1 means that the training is done, or that its loss was not finite",
            ),
            Some(How::Exit(exit_code::USAGE)) => Self::Useless("exit code 2 is bad usage or input"),
            Some(How::Exit(exit_code::DISAGREE)) => {
                Self::Useless("exit code 3 means that the ranks' programs disagree")
            }
            Some(How::Exit(code)) if code == exit_code::of_signal(SIGTERM) => {
                Self::Useless("exit code 143 means that somebody stopped it")
            }
            Some(_) => Self::MayHelp,
        }
    }
}

/// Whom the launcher's own words name.
enum Blamed {
    /// The rank whose exit code the job has.
    Itself,
    /// One that was done before the others.
    Left(Ending),
    /// Those that hung, as the start of a sentence.
    PutDown(String),
}

/// A survivor's 75 says that another was at fault, and often the launcher has seen which.
fn blamed(outcome: &Outcome, ending: &Ending) -> Blamed {
    if ending.how != How::Exit(exit_code::TRY_AGAIN) {
        return Blamed::Itself;
    }
    // All failures are 75, and this is the first of them.
    let mut before = outcome.endings.iter().take_while(|other| *other != ending);
    if let Some(left) = before.find(|other| other.how == How::Exit(exit_code::DONE)) {
        return Blamed::Left(*left);
    }
    let name = |rank: &usize| match outcome.endings.iter().find(|ending| ending.rank == *rank) {
        Some(ending) => format!("{rank} (pid {})", ending.pid),
        None => rank.to_string(),
    };
    match listed(outcome.put_down.iter().map(name).collect()) {
        None => Blamed::Itself,
        Some(names) => Blamed::PutDown(names),
    }
}

/// The ranks' own words for this ending, where they have left some.
fn told(ending: &Ending, reports: &[Option<Report>]) -> Option<Report> {
    let left = || reports.iter().flatten();
    if let Some(own) = reports.get(ending.rank).and_then(Option::as_ref) {
        // Whose it is says nothing where all say the same, or where another rank was at fault.
        let is_everyones = left().all(|report| report == own) && left().count() > 1;
        let is_survivors = ending.how == How::Exit(exit_code::TRY_AGAIN);
        if reports.len() == 1 || is_everyones || is_survivors {
            return Some(own.clone());
        }
        return Some(Report {
            message: format!("rank {}: {}", ending.rank, own.message),
            help: own.help.clone(),
        });
    }
    // A survivor knows in which call the rank was missed.
    let subject = format!("rank {} ", ending.rank);
    let story = left().find(|report| report.message.starts_with(&subject));
    story.cloned().map(|story| Report { help: story.help.or_else(|| help(ending.how)), ..story })
}

fn help(how: How) -> Option<String> {
    Some(match how {
        How::Signal(signal_hook::consts::SIGKILL) => {
            "if nobody sent it, memory ran out and the kernel chose this process: see `dmesg`"
                .into()
        }
        How::OutOfMemory => {
            "give the job more memory (in Kubernetes: resources.limits.memory), or \
                             let it use less: fewer ranks on this host, a smaller batch or model"
                .into()
        }
        _ => return None,
    })
}

/// What became of those that the launcher had to end.
fn put_down(outcome: &Outcome) -> String {
    let has_exited = |rank: &usize| {
        let mut endings = outcome.endings.iter();
        endings.any(|ending| ending.rank == *rank && matches!(ending.how, How::Exit(_)))
    };
    let (asked, killed): (Vec<usize>, Vec<usize>) =
        outcome.put_down.iter().copied().partition(has_exited);
    let named = |ranks: &[usize]| listed(ranks.iter().map(usize::to_string).collect());
    let mut words = String::new();
    if let Some(names) = named(&killed) {
        let were = if killed.len() == 1 { "was" } else { "were" };
        words.push_str(&format!("; {names} did not end and {were} killed"));
    }
    if let Some(names) = named(&asked) {
        words.push_str(&format!("; {names} ended only when told to by SIGTERM"));
    }
    words
}

/// `rank 3`, `ranks 0, 2 and 3`; None where there is none.
fn listed(mut names: Vec<String>) -> Option<String> {
    let last = names.pop()?;
    Some(match names.len() {
        0 => format!("rank {last}"),
        _ => format!("ranks {} and {last}", names.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(rank: usize, how: How) -> Ending {
        let noticed = std::time::Instant::now();
        Ending { rank, pid: 100 + rank as i32, how, by_itself: true, noticed }
    }

    fn report(message: &str) -> Option<Report> {
        Some(Report { message: message.into(), help: None })
    }

    fn judge(outcome: &Outcome, reports: &[Option<Report>]) -> (String, u8) {
        let error = verdict(Kind::Copies, outcome, reports).unwrap_err();
        (error.to_string(), error.exit_code())
    }

    #[test]
    fn all_well() {
        let endings = vec![ended(0, How::Exit(0)), ended(1, How::Exit(0))];
        let outcome = Outcome { endings, ..Outcome::default() };
        assert!(verdict(Kind::Program, &outcome, &[None, None]).is_ok());
    }

    #[test]
    fn a_stop_of_the_user_is_the_answer() {
        let outcome = Outcome {
            endings: vec![ended(0, How::Exit(9))],
            stopped_by: Some(2),
            ..Outcome::default()
        };
        let error = verdict(Kind::Program, &outcome, &[]).unwrap_err();
        assert_eq!((error.to_string(), error.exit_code()), ("stopped by SIGINT".into(), 130));
    }

    #[test]
    fn copies_that_heed_a_stop_have_the_last_word() {
        let ended_by = |hows: [How; 2]| Outcome {
            endings: vec![ended(0, hows[0]), ended(1, hows[1])],
            stopped_by: Some(SIGTERM),
            is_stopped: true,
            ..Outcome::default()
        };
        let story = || report("stopped by SIGTERM after step 7");
        let saved = ended_by([How::Exit(143), How::Exit(143)]);
        let words = "stopped by SIGTERM after step 7";
        assert_eq!(judge(&saved, &[story(), story()]), (words.into(), 143));
        let done = ended_by([How::Exit(0), How::Exit(0)]);
        assert!(verdict(Kind::Copies, &done, &[None, None]).is_ok());
        let interrupted = Outcome { stopped_by: Some(2), ..ended_by([How::Exit(0); 2]) };
        assert_eq!(judge(&interrupted, &[None, None]), ("stopped by SIGINT".into(), 130));
        // A program of the user's says nothing of why it ends.
        assert!(verdict(Kind::Program, &done, &[None, None]).is_err());
        for other in [How::Signal(15), How::Exit(exit_code::TRY_AGAIN)] {
            let some = ended_by([How::Exit(143), other]);
            assert_eq!(judge(&some, &[story(), None]), ("stopped by SIGTERM".into(), 143));
        }
        // Nor does a copy that was stopped before it began.
        assert_eq!(judge(&saved, &[None, None]), ("stopped by SIGTERM".into(), 143));
        let slow = Outcome { put_down: vec![1], ..done };
        assert!(judge(&slow, &[None, None]).0.starts_with("stopped by SIGTERM; rank 1 "));
    }

    #[test]
    fn only_what_may_go_better_is_started_anew() {
        let of_kind =
            |kind, endings| Restart::of(kind, &Outcome { endings, ..Outcome::default() }, None);
        let of = |endings| of_kind(Kind::Program, endings);
        assert_eq!(of(vec![ended(0, How::Exit(0))]), Restart::Unwanted);
        for how in [How::Signal(9), How::Signal(15), How::Exit(1), How::Exit(75), How::Exit(101)] {
            assert_eq!(of(vec![ended(1, how)]), Restart::MayHelp, "{how:?}");
        }
        for code in [2, 3, 143] {
            let endings = vec![ended(0, How::Exit(75)), ended(1, How::Exit(code))];
            assert!(matches!(of(endings), Restart::Useless(_)), "{code}");
        }
        // A training says by 1 that it is done, or would end so again.
        let endings = vec![ended(1, How::Exit(0)), ended(0, How::Exit(1))];
        assert!(matches!(of_kind(Kind::Copies, endings), Restart::Useless(_)));
        for how in [How::Signal(9), How::Exit(75), How::Exit(101)] {
            assert_eq!(of_kind(Kind::Copies, vec![ended(1, how)]), Restart::MayHelp, "{how:?}");
        }
        let endings = vec![ended(1, How::Signal(9))];
        let stopped = Outcome { endings, is_stopped: true, ..Outcome::default() };
        assert_eq!(Restart::of(Kind::Program, &stopped, None), Restart::Unwanted);
        // A host that is lost, whether its ranks were heard of or not.
        let lost = |outcome: &Outcome, code| Restart::of(Kind::Program, outcome, Some(code));
        let put_down = Ending { by_itself: false, ..ended(0, How::Signal(15)) };
        let survived = Outcome { endings: vec![put_down], ..Outcome::default() };
        for outcome in [Outcome::default(), survived] {
            assert_eq!(lost(&outcome, exit_code::TRY_AGAIN), Restart::MayHelp);
            assert_eq!(lost(&outcome, exit_code::USAGE), Restart::Unwanted);
        }
        assert_eq!(lost(&stopped, exit_code::TRY_AGAIN), Restart::Unwanted);
    }

    #[test]
    fn ranks_that_had_to_be_stopped_are_named() {
        let mut outcome = Outcome {
            endings: vec![ended(1, How::Exit(7))],
            put_down: vec![0],
            ..Outcome::default()
        };
        let (message, code) = judge(&outcome, &[]);
        assert_eq!(
            message,
            "rank 1 (pid 101) exited with code 7; rank 0 did not end and was killed"
        );
        assert_eq!(code, 7);
        outcome.put_down = vec![0, 2, 3];
        assert!(judge(&outcome, &[]).0.ends_with("; ranks 0, 2 and 3 did not end and were killed"));
        outcome.endings.push(Ending { by_itself: false, ..ended(2, How::Exit(0)) });
        assert!(judge(&outcome, &[]).0.ends_with(
            "; ranks 0 and 3 did not end and were killed; rank 2 ended only when told to by SIGTERM"
        ));
    }

    #[test]
    fn a_survivor_is_not_blamed_for_what_another_did() {
        let left = vec![ended(1, How::Exit(0)), ended(2, How::Exit(75)), ended(0, How::Exit(75))];
        let outcome = Outcome { endings: left, ..Outcome::default() };
        let words = "rank 1 (pid 101) exited while others still needed it";
        assert_eq!(judge(&outcome, &[]), (words.into(), 75));

        // done after the first failure, and so not the cause
        let late = vec![ended(2, How::Exit(75)), ended(1, How::Exit(0))];
        let outcome = Outcome { endings: late, ..Outcome::default() };
        assert!(judge(&outcome, &[]).0.starts_with("rank 2 (pid 102) exited with code 75"));

        let killed = |rank| Ending { by_itself: false, ..ended(rank, How::Signal(15)) };
        let hung = vec![ended(2, How::Exit(75)), killed(0), killed(1)];
        let mut outcome = Outcome { endings: hung, put_down: vec![1], ..Outcome::default() };
        let words = "rank 1 (pid 101) did not end after another rank or the network failed, and \
                     was killed";
        assert_eq!(judge(&outcome, &[]), (words.into(), 75));
        outcome.put_down = vec![0, 1];
        assert!(judge(&outcome, &[]).0.starts_with("ranks 0 (pid 100) and 1 (pid 101) did not"));
        let story = report("rank 1 (pid 101, this host) stopped answering");
        let words = "rank 1 (pid 101, this host) stopped answering; ranks 0 and 1 did not end and \
                     were killed";
        assert_eq!(judge(&outcome, &[None, None, story]), (words.into(), 75));
    }

    #[test]
    fn a_killed_rank_keeps_the_hint_beside_the_survivors_words() {
        let endings = vec![ended(1, How::Signal(9)), ended(0, How::Exit(75))];
        let outcome = Outcome { endings, ..Outcome::default() };
        let story = report("rank 1 (pid 101, this host) was killed by signal 9 (SIGKILL)");
        let error = verdict(Kind::Copies, &outcome, &[story, None]).unwrap_err();
        assert!(error.help().unwrap().contains("memory ran out"));
    }

    #[test]
    fn one_error_for_all_copies() {
        let killed = Outcome {
            endings: vec![
                ended(2, How::Signal(9)),
                ended(0, How::Exit(75)),
                ended(1, How::Exit(75)),
            ],
            ..Outcome::default()
        };
        let story = report("rank 2 (pid 102, this host) was killed by SIGKILL; in all_reduce #7");
        let reports = [story.clone(), story.clone(), None];
        assert_eq!(judge(&killed, &reports), (story.clone().unwrap().message, 137));
        // survivors that tell something else do not stand for it
        let reports = [report("no answer"), None, None];
        assert_eq!(judge(&killed, &reports).0, "rank 2 (pid 102) was killed by signal 9 (SIGKILL)");

        let failed = Outcome {
            endings: vec![ended(1, How::Exit(2)), ended(0, How::Exit(75))],
            ..Outcome::default()
        };
        let reports = [report("rank 1 (pid 101) is gone"), report("no such file")];
        assert_eq!(judge(&failed, &reports), ("rank 1: no such file".into(), 2));
        let reports = [report("no such file"), report("no such file")];
        assert_eq!(judge(&failed, &reports), ("no such file".into(), 2));
        let lost = Outcome {
            endings: vec![ended(1, How::Exit(75)), ended(0, How::Exit(75))],
            ..Outcome::default()
        };
        let reports = [report("the other"), report("host x is cut off")];
        assert_eq!(judge(&lost, &reports), ("host x is cut off".into(), 75));
    }
}
