//! Writes checkpoints while training goes on.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use super::State;
use super::folder::{Folder, Written};
use super::pair::Snapshot;
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Saves checkpoints on a thread of its own. Rank 0 has one; no other rank needs it.
///
/// Every state that is given is written: one at a time, and the next [`Self::save`] waits for the
/// one before it, so that a slow disk slows the training down instead of dropping checkpoints. At
/// most one copy of the state is in memory.
#[derive(Debug)]
pub struct Writer {
    folder: Folder,
    snapshots: Option<Sender<Snapshot>>,
    reports: Receiver<Report>,
    thread: Option<JoinHandle<()>>,
    is_writing: bool,
    news: Vec<News>,
}

/// What became of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It is on the disk.
    Written(Written),
    /// It is not, or an older one could not be deleted. Each is told once; the program's exit code
    /// is 1.
    Failed(Problem),
}

/// All that is told of one snapshot.
type Report = Vec<News>;

impl Writer {
    /// Starts the thread; keeps the newest `keep` checkpoints, at least one.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the system starts no thread.
    pub fn start(folder: Folder, keep: usize) -> Result<Self> {
        let (snapshots, jobs) = mpsc::channel::<Snapshot>();
        let (report, reports) = mpsc::channel();
        let of_thread = folder.clone();
        let thread = thread::Builder::new().name("checkpoints".into()).spawn(move || {
            for snapshot in jobs {
                if report.send(write(&of_thread, keep, snapshot)).is_err() {
                    return;
                }
            }
        });
        let thread = thread.map_err(|error| Error::Checkpoint {
            file: folder.path().display().to_string(),
            problem: format!("cannot start a thread that writes: {error}"),
            help: "raise the limit of processes (ulimit -u)".into(),
        })?;
        Ok(Self {
            folder,
            snapshots: Some(snapshots),
            reports,
            thread: Some(thread),
            is_writing: false,
            news: Vec::new(),
        })
    }

    /// Waits until the checkpoint before is written, copies the state, and returns while it is
    /// being written. Parameters that are not finite are not written, and push out no older ones:
    /// nothing could go on from them.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a tensor of a type that checkpoints do not hold. A write that
    /// fails is no error here: see [`Self::news`].
    pub fn save(&mut self, state: &State<'_>) -> Result<()> {
        self.wait();
        let snapshot = Snapshot::copy(state)?;
        if let Some(name) = snapshot.not_finite() {
            let what = format!("no checkpoint of step {}", state.step);
            let reason = format!("parameter `{name}` is not finite");
            let problem = Problem::new(what, self.folder.path(), &reason);
            self.news.push(News::Failed(problem.with_help(NOT_FINITE)));
            return Ok(());
        }
        let sender = self.snapshots.as_ref();
        self.is_writing = sender.is_some_and(|sender| sender.send(snapshot).is_ok());
        if !self.is_writing {
            self.thread_is_gone();
        }
        Ok(())
    }

    /// What has become of checkpoints since the last call; does not wait.
    pub fn news(&mut self) -> Vec<News> {
        while let Ok(report) = self.reports.try_recv() {
            self.is_writing = false;
            self.news.extend(report);
        }
        std::mem::take(&mut self.news)
    }

    /// Waits for the last checkpoint; what has become of checkpoints since [`Self::news`].
    pub fn finish(mut self) -> Vec<News> {
        self.wait();
        std::mem::take(&mut self.news)
    }

    fn wait(&mut self) {
        if !self.is_writing {
            return;
        }
        self.is_writing = false;
        match self.reports.recv() {
            Ok(report) => self.news.extend(report),
            Err(_) => self.thread_is_gone(),
        }
    }

    fn thread_is_gone(&mut self) {
        let what = "no more checkpoints";
        let reason = &"the thread that writes them panicked";
        self.news.push(News::Failed(Problem::new(what, self.folder.path(), reason)));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After an error, too, what is being written gets done.
        self.snapshots = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(folder: &Folder, keep: usize, snapshot: Snapshot) -> Report {
    match folder.write(snapshot) {
        Ok(written) => {
            let pruned = folder.prune(written.step, keep).err();
            let news = [Some(News::Written(written)), pruned.map(News::Failed)];
            news.into_iter().flatten().collect()
        }
        Err(problem) => vec![News::Failed(problem)],
    }
}

/// What to do where there is nothing worth saving.
const NOT_FINITE: &str = "go on from the one before it, with a lower --lr";
