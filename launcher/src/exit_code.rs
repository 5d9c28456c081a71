//! The one table of exit codes, for every subcommand; what the library has too stands there.

/// Done.
pub(crate) const DONE: u8 = 0;
pub(crate) use allfold::error::{
    EXIT_BUG as BUG, EXIT_TRY_AGAIN as TRY_AGAIN, EXIT_USAGE as USAGE,
};

// 1 (a check failed) and 3 (ranks disagree) come from the trainer, the bench and the library.

/// The code of a process that a signal ended, as shells count it: 143 for SIGTERM.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(SIGNAL_BASE + signal).unwrap_or(u8::MAX)
}

const SIGNAL_BASE: i32 = 128;
