//! A file of the launcher's own, a log or the events, that could not be written.
//!
//! The job goes on without it; the user hears of it at once, and again by the exit code.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, reason};
use crate::log;

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
        let path_shown = path.display();
        log::say(
            "warning",
            &format!("cannot write {path_shown}: {problem}; the job goes on without it"),
        );
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
