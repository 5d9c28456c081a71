//! Whether a file that is written at the end could be written, asked before the start.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::Error;

/// Whether the file that `option` names could be written, without leaving a trace.
pub(crate) fn check(option: &'static str, path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let problem = |problem: String| Error::Report { option, path: path.into(), problem };
    match folder.metadata() {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(problem(format!("{} is not a folder", folder.display()))),
        Err(error) => {
            let error = plain(&error);
            return Err(problem(format!("folder {}: {error}", folder.display())));
        }
    }
    if path.is_dir() {
        return Err(problem("is a folder".into()));
    }
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let error = plain(&error.into());
        problem(format!("folder {}: {error}", folder.display()))
    })
}

/// The system's word, in lower case and without its number.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}
