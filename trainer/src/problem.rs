//! What goes wrong beside a training that goes on.

use std::fmt;
use std::path::{Path, PathBuf};

/// A file that could not be written while training goes on. Prints as one line.
///
/// Whoever gets one warns the user at once and ends the program with exit code 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    what: String,
    path: PathBuf,
    reason: String,
    help: &'static str,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>, path: &Path, reason: &impl fmt::Display) -> Self {
        Self { what: what.into(), path: path.into(), reason: reason.to_string(), help: MAKE_ROOM }
    }

    /// The same, where it is not the disk's fault.
    pub(crate) fn with_help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }

    /// What to do about it.
    pub fn help(&self) -> &'static str {
        self.help
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.what, self.path.display(), self.reason)
    }
}

impl std::error::Error for Problem {}

/// What mostly helps.
const MAKE_ROOM: &str = "training goes on; make room, or see that the folder can be written to";
