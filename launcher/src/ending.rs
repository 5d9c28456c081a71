//! How a rank's process ended, and which rank is at fault for the job.

use std::fmt;
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitIdStatus};
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGKILL;

use crate::exit_code;

/// The end of one rank's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) rank: usize,
    pub(crate) pid: i32,
    pub(crate) how: How,
    /// False once the launcher itself has begun to end the ranks.
    pub(crate) by_itself: bool,
    /// When the launcher saw it.
    pub(crate) noticed: Instant,
}

/// Exit code or signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    /// It exited with this code.
    Exit(u8),
    /// It was killed by this signal.
    Signal(i32),
    /// The kernel killed it for want of memory, by SIGKILL.
    OutOfMemory,
}

impl How {
    /// From the kernel's word.
    pub(crate) fn of(status: &WaitIdStatus) -> Self {
        match status.terminating_signal() {
            Some(signal) => Self::Signal(signal),
            // The kernel keeps 8 bits.
            None => Self::Exit(status.exit_status().unwrap_or(0) as u8),
        }
    }

    /// Whether it says itself that another rank was at fault.
    fn is_survivors(self) -> bool {
        self == Self::Exit(exit_code::TRY_AGAIN)
    }

    /// Whether the other one, though noticed first, may be what came of this. Nobody is killed by
    /// another's end, and a panic is seldom answered by one; but to end with 1 is how most programs
    /// answer any error, another rank's loss among them.
    fn explains(self, other: Self) -> bool {
        match (self, other) {
            (Self::Signal(_) | Self::OutOfMemory, Self::Exit(_)) => true,
            (Self::Exit(code), Self::Exit(other)) => code == PANIC && other == ANY_ERROR,
            _ => false,
        }
    }

    /// The exit code that stands for it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Signal(signal) => exit_code::of_signal(signal),
            Self::OutOfMemory => exit_code::of_signal(SIGKILL),
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(exit_code::TRY_AGAIN) => {
                f.write_str("exited with code 75 (another rank or the network)")
            }
            Self::Exit(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => {
                write!(f, "was killed by signal {signal}")?;
                match signal_name(*signal) {
                    Some(name) => write!(f, " ({name})"),
                    None => Ok(()),
                }
            }
            Self::OutOfMemory => {
                f.write_str("was killed by the kernel: out of memory (signal 9, exit code 137)")
            }
        }
    }
}

impl Ending {
    /// The line on the launcher's socket.
    pub(crate) fn to_line(self) -> String {
        let Self { rank, pid, .. } = self;
        match self.how {
            How::Exit(code) => format!("lost {rank} pid {pid} exit {code}\n"),
            How::Signal(signal) => format!("lost {rank} pid {pid} signal {signal}\n"),
            How::OutOfMemory => format!("lost {rank} pid {pid} memory {SIGKILL}\n"),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} (pid {}) {}", self.rank, self.pid, self.how)
    }
}

/// Endings noticed together have no order. One that was killed comes first, because survivors
/// exit and are hardly ever killed by what happened to another; and survivors come last.
pub(crate) fn order_simultaneous(endings: &mut [Ending]) {
    endings.sort_by_key(|ending| match ending.how {
        How::Signal(_) | How::OutOfMemory => 0,
        How::Exit(PANIC) => 1,
        How::Exit(exit_code::TRY_AGAIN) => 3,
        How::Exit(_) => 2,
    });
}

/// The ending that decides the job's exit code, given all of them in order; None when all is well.
///
/// A survivor is never at fault: 75 says that another rank was, so any other code goes before it,
/// and what the launcher ended itself does not count. Of endings that lie close together the first
/// is not always the cause: a survivor that knows by then may end before the one that it knows of.
pub(crate) fn at_fault(endings: &[Ending]) -> Option<&Ending> {
    let failed =
        endings.iter().filter(|ending| ending.by_itself && ending.how.code() != exit_code::DONE);
    let mut causes = failed.clone().filter(|ending| !ending.how.is_survivors());
    let first = causes.next().or_else(|| failed.clone().next())?;
    let together = causes.filter(|ending| ending.noticed.duration_since(first.noticed) < TOGETHER);
    Some(
        together
            .fold(first, |cause, other| if other.how.explains(cause.how) { other } else { cause }),
    )
}

/// The signal's name, such as SIGKILL.
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    let name = match Signal::from_named_raw(signal)? {
        Signal::HUP => "SIGHUP",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::ILL => "SIGILL",
        Signal::TRAP => "SIGTRAP",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::FPE => "SIGFPE",
        Signal::KILL => "SIGKILL",
        Signal::USR1 => "SIGUSR1",
        Signal::SEGV => "SIGSEGV",
        Signal::USR2 => "SIGUSR2",
        Signal::PIPE => "SIGPIPE",
        Signal::ALARM => "SIGALRM",
        Signal::TERM => "SIGTERM",
        Signal::XCPU => "SIGXCPU",
        Signal::XFSZ => "SIGXFSZ",
        Signal::SYS => "SIGSYS",
        _ => return None,
    };
    Some(name)
}

/// A survivor has its error at once where the other says itself that it fails, and that one has
/// still to unwind, to close and perhaps to write a core.
const TOGETHER: Duration = Duration::from_secs(1);
/// Of a Rust program that panicked.
const PANIC: u8 = 101;
/// Of a Rust program whose `main` returned an error, of Python for any exception.
const ANY_ERROR: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(rank: usize, how: How, by_itself: bool) -> Ending {
        Ending { rank, pid: 100 + rank as i32, how, by_itself, noticed: Instant::now() }
    }

    fn code(endings: &[Ending]) -> Option<(usize, u8)> {
        at_fault(endings).map(|ending| (ending.rank, ending.how.code()))
    }

    #[test]
    fn the_rank_at_fault_gives_the_code() {
        use How::{Exit, Signal};
        let done = ending(0, Exit(0), true);
        assert_eq!(code(&[]), None);
        assert_eq!(code(&[done, ending(1, Exit(0), true)]), None);
        assert_eq!(code(&[done, ending(1, Exit(7), true)]), Some((1, 7)));
        assert_eq!(code(&[ending(3, Signal(9), true)]), Some((3, 137)));
        // survivors
        let survivor = ending(1, Exit(75), true);
        assert_eq!(code(&[survivor, ending(2, Signal(11), true)]), Some((2, 139)));
        assert_eq!(code(&[ending(2, Exit(3), true), survivor]), Some((2, 3)));
        assert_eq!(code(&[done, survivor, ending(2, Exit(75), true)]), Some((1, 75)));
        // the first of two
        assert_eq!(code(&[ending(2, Exit(4), true), ending(0, Exit(5), true)]), Some((2, 4)));
        // what the launcher ended
        assert_eq!(code(&[survivor, ending(2, Signal(15), false)]), Some((1, 75)));
        assert_eq!(code(&[done, ending(2, Signal(9), false)]), None);
    }

    #[test]
    fn a_survivor_that_ends_first_is_not_blamed_for_what_it_knew() {
        use How::{Exit, Signal};
        let now = Instant::now();
        let blamed = |endings: &[(How, u64)]| {
            let endings: Vec<Ending> = (0..)
                .zip(endings)
                .map(|(rank, (how, ms))| Ending {
                    noticed: now + Duration::from_millis(*ms),
                    ..ending(rank, *how, true)
                })
                .collect();
            at_fault(&endings).map(|ending| ending.rank)
        };
        assert_eq!(blamed(&[(Exit(1), 0), (Exit(75), 5), (Exit(101), 300)]), Some(2));
        assert_eq!(blamed(&[(Exit(75), 0), (Exit(101), 5), (Signal(9), 300)]), Some(2));
        assert_eq!(blamed(&[(Exit(1), 0), (Exit(101), 1_000)]), Some(0), "long after");
        // These said first what they had to say.
        assert_eq!(blamed(&[(Exit(7), 0), (Exit(101), 300)]), Some(0));
        assert_eq!(blamed(&[(Exit(1), 0), (Exit(3), 300)]), Some(0));
        assert_eq!(blamed(&[(Signal(6), 0), (Signal(9), 300), (Exit(101), 301)]), Some(0));
        assert_eq!(blamed(&[(Exit(75), 0), (Exit(75), 5), (Exit(1), 2_000)]), Some(2));
    }

    #[test]
    fn killed_goes_before_exited_when_noticed_together() {
        let mut endings = [
            ending(3, How::Exit(75), true),
            ending(0, How::Exit(1), true),
            ending(1, How::Exit(2), true),
            ending(2, How::Signal(9), true),
            ending(4, How::Exit(101), true),
        ];
        order_simultaneous(&mut endings);
        assert_eq!(endings.map(|ending| ending.rank), [2, 4, 0, 1, 3]);
    }

    #[test]
    fn lines_and_words() {
        let killed = ending(2, How::Signal(9), true);
        assert_eq!(killed.to_line(), "lost 2 pid 102 signal 9\n");
        assert_eq!(killed.to_string(), "rank 2 (pid 102) was killed by signal 9 (SIGKILL)");
        let starved = ending(3, How::OutOfMemory, true);
        assert_eq!(starved.to_line(), "lost 3 pid 103 memory 9\n");
        assert_eq!(starved.how.code(), 137);
        assert!(starved.to_string().contains("was killed by the kernel: out of memory"));
        let exited = ending(1, How::Exit(7), true);
        assert_eq!(exited.to_line(), "lost 1 pid 101 exit 7\n");
        assert_eq!(exited.to_string(), "rank 1 (pid 101) exited with code 7");
        assert_eq!(How::Signal(40).to_string(), "was killed by signal 40");
    }
}
