//! What the launcher says at the end: one error for the whole job, and its exit code.

use crate::ending::{Ending, How, at_fault, signal_name};
use crate::error::Error;
use crate::exit_code;
use crate::report::Report;

/// What happened to a job.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// In the order in which they were noticed.
    pub(crate) endings: Vec<Ending>,
    /// The signal by which the user stopped the job before anything had failed.
    pub(crate) stopped_by: Option<i32>,
    /// The ranks that the launcher had to end.
    pub(crate) put_down: Vec<usize>,
}

/// The result of the job; `reports` holds what copies of ourselves left, by rank.
pub(crate) fn verdict(outcome: &Outcome, reports: &[Option<Report>]) -> Result<(), Error> {
    if let Some(signal) = outcome.stopped_by {
        let name = signal_name(signal).map_or_else(|| format!("signal {signal}"), Into::into);
        return Err(Error::Job {
            message: format!("stopped by {name}"),
            help: None,
            code: exit_code::of_signal(signal),
        });
    }
    let Some(ending) = at_fault(&outcome.endings) else {
        return Ok(());
    };
    let report = tell(ending, reports);
    Err(Error::Job {
        message: report.message + &put_down(&outcome.put_down),
        help: report.help,
        code: ending.how.code(),
    })
}

/// The best words there are for this ending.
fn tell(ending: &Ending, reports: &[Option<Report>]) -> Report {
    let left = || reports.iter().flatten();
    if let Some(own) = reports.get(ending.rank).and_then(Option::as_ref) {
        // Whose it is says nothing where all say the same, or where another rank was at fault.
        let is_everyones = left().all(|report| report == own) && left().count() > 1;
        let is_survivors = ending.how == How::Exit(exit_code::TRY_AGAIN);
        if reports.len() == 1 || is_everyones || is_survivors {
            return own.clone();
        }
        return Report {
            message: format!("rank {}: {}", ending.rank, own.message),
            help: own.help.clone(),
        };
    }
    // A survivor knows in which call the rank was missed.
    let subject = format!("rank {} ", ending.rank);
    let story = left().find(|report| report.message.starts_with(&subject));
    story.cloned().unwrap_or_else(|| Report { message: ending.to_string(), help: help(ending.how) })
}

fn help(how: How) -> Option<String> {
    (how == How::Signal(signal_hook::consts::SIGKILL)).then(|| {
        "if nobody sent it, memory ran out and the kernel chose this process: see `dmesg`".into()
    })
}

fn put_down(ranks: &[usize]) -> String {
    let mut names: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match names.pop() {
        None => String::new(),
        Some(only) if names.is_empty() => format!("; rank {only} did not end and was killed"),
        Some(last) => {
            format!("; ranks {} and {last} did not end and were killed", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(rank: usize, how: How) -> Ending {
        Ending { rank, pid: 100 + rank as i32, how, by_itself: true }
    }

    fn report(message: &str) -> Option<Report> {
        Some(Report { message: message.into(), help: None })
    }

    fn judge(outcome: &Outcome, reports: &[Option<Report>]) -> (String, u8) {
        let error = verdict(outcome, reports).unwrap_err();
        (error.to_string(), error.exit_code())
    }

    #[test]
    fn all_well() {
        let endings = vec![ended(0, How::Exit(0)), ended(1, How::Exit(0))];
        let outcome = Outcome { endings, ..Outcome::default() };
        assert!(verdict(&outcome, &[None, None]).is_ok());
    }

    #[test]
    fn a_stop_of_the_user_is_the_answer() {
        let outcome = Outcome {
            endings: vec![ended(0, How::Exit(9))],
            stopped_by: Some(2),
            put_down: vec![],
        };
        assert_eq!(judge(&outcome, &[None]), ("stopped by SIGINT".into(), 130));
    }

    #[test]
    fn ranks_that_had_to_be_stopped_are_named() {
        let mut outcome =
            Outcome { endings: vec![ended(1, How::Exit(7))], stopped_by: None, put_down: vec![0] };
        let (message, code) = judge(&outcome, &[]);
        assert_eq!(
            message,
            "rank 1 (pid 101) exited with code 7; rank 0 did not end and was killed"
        );
        assert_eq!(code, 7);
        outcome.put_down = vec![0, 2, 3];
        assert!(judge(&outcome, &[]).0.ends_with("; ranks 0, 2 and 3 did not end and were killed"));
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
