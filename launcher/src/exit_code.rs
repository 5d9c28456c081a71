//! The one table of exit codes, for every subcommand.

/// Done.
pub(crate) const DONE: u8 = 0;
/// Usage or input: it would fail again.
pub(crate) const USAGE: u8 = 2;
/// Another rank or the network: try again.
pub(crate) const TRY_AGAIN: u8 = 75;
/// A bug.
pub(crate) const BUG: u8 = 101;

// 1 (a check failed) and 3 (ranks disagree) come from the trainer, the bench and the library.

/// The code of a process that a signal ended, as shells count it: 143 for SIGTERM.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(SIGNAL_BASE + signal).unwrap_or(u8::MAX)
}

const SIGNAL_BASE: i32 = 128;
