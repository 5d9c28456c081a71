//! What each rank prints, in a file of its own.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::unwritten::Unwritten;

/// The log of one rank, for both of its streams.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    is_given_up: AtomicBool,
    unwritten: Arc<Unwritten>,
}

/// The logs of these ranks, empty; `restart` is 0 for the first ones.
pub(crate) fn create(
    directory: &Path,
    ranks: Range<usize>,
    restart: usize,
    unwritten: &Arc<Unwritten>,
) -> Result<Vec<Arc<Log>>, Error> {
    let refuse = |path: &Path| {
        let path = path.to_owned();
        move |problem| Error::Unwritable { option: "--log-dir", path, problem }
    };
    fs::create_dir_all(directory).map_err(refuse(directory))?;
    let open = |rank| {
        let path = path(directory, rank, restart);
        let file = File::create(&path).map_err(refuse(&path))?;
        let (is_given_up, unwritten) = (AtomicBool::new(false), unwritten.clone());
        Ok(Arc::new(Log { path, file, is_given_up, unwritten }))
    };
    ranks.map(open).collect()
}

/// Where it lies. Earlier attempts stay.
pub(crate) fn path(directory: &Path, rank: usize, restart: usize) -> PathBuf {
    directory.join(match restart {
        0 => format!("rank-{rank}.log"),
        _ => format!("rank-{rank}.restart-{restart}.log"),
    })
}

impl Log {
    /// Appends whole lines. One that cannot be written is given up: a hole in the middle would
    /// be worse than an end.
    pub(crate) fn write(&self, lines: &[u8]) {
        if lines.is_empty() || self.is_given_up.load(Ordering::Relaxed) {
            return;
        }
        if let Err(problem) = (&self.file).write_all(lines) {
            self.is_given_up.store(true, Ordering::Relaxed);
            self.unwritten.note(&self.path, &problem);
        }
    }
}
