//! The one table of exit codes, for every subcommand; what the library has too stands there.

/// Done.
pub(crate) const DONE: u8 = 0;
/// Something is not as it should be: here, a log that is not whole.
pub(crate) const CHECK_FAILED: u8 = 1;
/// The ranks disagree.
pub(crate) const DISAGREE: u8 = 3;
pub(crate) use allfold::error::{
    EXIT_BUG as BUG, EXIT_TRY_AGAIN as TRY_AGAIN, EXIT_USAGE as USAGE,
};

// 1 and 3 come from the trainer, the bench and the library as well.

/// The code of a process that a signal ended, as shells count it: 143 for SIGTERM.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(SIGNAL_BASE + signal).unwrap_or(u8::MAX)
}

const SIGNAL_BASE: i32 = 128;
