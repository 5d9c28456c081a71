//! Programs in Python that read what was written here.

use std::process::Command;

use crate::skipped::skip;

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
