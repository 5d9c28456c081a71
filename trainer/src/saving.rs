//! Rank 0's side of checkpoints: when one is due, and what became of it.

use std::path::Path;
use std::time::{Instant, UNIX_EPOCH};

use crate::checkpoint::{Folder, Lock, News, Schedule, State, Writer, Written};
use crate::distributed::Distributed;
use crate::error::Result;
use crate::gauges::Gauges;
use crate::optimizer::Optimiser;
use crate::options::Options;
use crate::problem::Problem;

/// Saves a training as it goes on.
pub(crate) struct Saving {
    schedule: Schedule,
    writer: Writer,
    model: Vec<(String, String)>,
    settings: Vec<(String, String)>,
    /// The step of the last checkpoint that was begun.
    last: Option<u64>,
    /// Whether the try at the start failed.
    is_unwritable: bool,
    saved: Saved,
    /// Until the writer has ended.
    _lock: Option<Lock>,
}

/// What became of the checkpoints so far.
#[derive(Default)]
pub(crate) struct Saved {
    /// The last one that was written.
    pub(crate) newest: Option<Written>,
    /// Problems that were not told yet.
    pub(crate) untold: Vec<Problem>,
    /// The number of all problems there were.
    pub(crate) problems: usize,
}

impl Saving {
    /// Deletes what is too old beside the checkpoint of step `resumed`, tries whether the folder
    /// can be written to, and starts the thread that writes.
    ///
    /// # Errors
    /// Where the system starts no thread.
    pub(crate) fn start(
        folder: &Path,
        options: &Options,
        model: Vec<(String, String)>,
        settings: Vec<(String, String)>,
        lock: Option<Lock>,
        resumed: Option<u64>,
    ) -> Result<Self> {
        let folder = Folder::new(folder);
        // Before a disk that is full of them is tried.
        let pruned = resumed.and_then(|step| folder.prune(step, options.keep).err());
        let tried = folder.prepare().err();
        let is_unwritable = tried.is_some();
        let untold: Vec<Problem> = pruned.into_iter().chain(tried).collect();
        Ok(Self {
            schedule: Schedule::new(options.checkpoint_every, Instant::now()),
            writer: Writer::start(folder, options.keep)?,
            model,
            settings,
            last: None,
            is_unwritable,
            _lock: lock,
            saved: Saved {
                newest: None,
                problems: untold.len() - usize::from(is_unwritable),
                untold,
            },
        })
    }

    /// Whether a checkpoint is due after `step`.
    pub(crate) fn is_due(&mut self, step: u64, epoch_ended: bool) -> bool {
        self.schedule.due(step, epoch_ended, Instant::now())
    }

    /// Begins to write one, unless this step's is begun already.
    ///
    /// # Errors
    /// As [`Writer::save`].
    pub(crate) fn save(&mut self, step: u64, optimizer: &Distributed<'_, Optimiser>) -> Result<()> {
        if self.last.replace(step) == Some(step) {
            return Ok(());
        }
        self.writer.save(&State {
            step,
            model: &self.model,
            settings: &self.settings,
            parameters: optimizer.parameters(),
            optimizer: &optimizer.inner().state()?,
        })
    }

    /// What could not be written, as far as it is known and was not told.
    pub(crate) fn news(&mut self, gauges: &Gauges) -> Vec<Problem> {
        self.saved.hear(self.writer.news(), gauges);
        std::mem::take(&mut self.saved.untold)
    }

    /// Waits for the last one.
    pub(crate) fn finish(self, gauges: &Gauges) -> Saved {
        let Self { writer, is_unwritable, mut saved, .. } = self;
        saved.hear(writer.finish(), gauges);
        // The try was no file of the user's: it counts where no other failure does.
        saved.problems = saved.problems.max(usize::from(is_unwritable));
        saved
    }
}

impl Saved {
    fn hear(&mut self, news: Vec<News>, gauges: &Gauges) {
        for news in news {
            match news {
                News::Written(written) => {
                    let since = written.at.duration_since(UNIX_EPOCH).unwrap_or_default();
                    gauges.checkpoint(since.as_secs_f64());
                    self.newest = Some(written);
                }
                News::Failed(problem) => {
                    self.problems += 1;
                    self.untold.push(problem);
                }
            }
        }
    }
}
