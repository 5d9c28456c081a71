//! Tests that need what a machine may not have.

use std::io::Write;

/// Says that `test` did not run, and why. The test runner hides what `eprintln!` writes.
pub(crate) fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr().lock(), "skipped: {test}: {reason}");
}
