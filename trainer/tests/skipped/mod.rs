//! Tests that need what a machine may not have.

use std::io::Write;
use std::process::Command;

/// Says that `test` did not run, and why. The test runner hides what `eprintln!` writes.
pub(crate) fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr().lock(), "skipped: {test}: {reason}");
}

/// Whether `python3` has these modules; says so where it has not.
pub(crate) fn python_has(test: &str, modules: &[&str]) -> bool {
    let missing = modules.iter().find(|module| {
        let import = Command::new("python3").args(["-c", &format!("import {module}")]).output();
        !import.is_ok_and(|output| output.status.success())
    });
    if let Some(module) = missing {
        skip(test, &format!("python3 has no module {module}"));
    }
    missing.is_none()
}
