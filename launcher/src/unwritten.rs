//! A file of the launcher's own, a log or the events, that could not be written.
//!
//! The job goes on without it; the user hears of it at once, and again by the exit code.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, reason};

/// The first such file of a job.
#[derive(Default)]
pub(crate) struct Unwritten(Mutex<Option<(PathBuf, String)>>);

impl Unwritten {
    /// Takes note, and warns the first time.
    pub(crate) fn note(&self, path: &Path, problem: &io::Error) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_some() {
            return;
        }
        let problem = reason(problem);
        // One write, so that it lands between the ranks' lines; a closed stderr is no error.
        let line = format!(
            "allfold: cannot write {}: {problem}; the job goes on without it\n",
            path.display()
        );
        let _ = io::stderr().write_all(line.as_bytes());
        *first = Some((path.to_owned(), problem));
    }

    /// What a job that is done still has to say.
    pub(crate) fn verdict(&self) -> Result<(), Error> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some((path, problem)) => {
                Err(Error::Incomplete { path: path.clone(), problem: problem.clone() })
            }
        }
    }
}
