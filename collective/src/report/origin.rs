//! Who speaks: the rank that a line comes from.
//!
//! Every thread of allfold's serves one rank, and says so when it starts. On other threads it is
//! the process's newest rank, and before there is one, what the environment says.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::writer::{LINES, Weight};
use crate::identity::{Environment, Identity, host_name};

/// A rank, or a process that is none.
#[derive(Debug)]
pub(crate) struct Origin {
    job: Option<String>,
    rank: Option<u32>,
    host: String,
    /// Whether the end of its world is the end of a process: not of a rank in memory.
    is_process: bool,
    /// 0: none yet.
    epoch: AtomicU64,
}

impl Origin {
    pub(crate) fn new(job: &str, rank: u32, host: &str) -> Self {
        Self::of(Some(job.into()), Some(rank), host.into())
    }

    fn of(job: Option<String>, rank: Option<u32>, host: String) -> Self {
        Self { job, rank, host, is_process: true, epoch: AtomicU64::new(0) }
    }

    /// One of several ranks of this process.
    pub(crate) fn in_memory(rank: u32) -> Self {
        Self { is_process: false, ..Self::of(None, Some(rank), host_name()) }
    }

    fn of_environment() -> Self {
        let environment = Environment::of_process();
        let identity = Identity::detect(&environment).ok().flatten();
        let job = environment.get("ALLFOLD_JOB").map(str::to_string);
        let job = job.or_else(|| identity.as_ref()?.job.clone());
        let rank = identity.and_then(|identity| u32::try_from(identity.rank).ok());
        Self::of(job, rank, host_name())
    }

    /// For lines of this process that come from no other rank.
    pub(crate) fn introduce(self: &Arc<Self>) {
        *newest() = Some(self.clone());
    }

    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Relaxed);
    }

    pub(super) fn is_process(&self) -> bool {
        self.is_process
    }

    pub(super) fn job(&self) -> Option<&str> {
        self.job.as_deref()
    }

    pub(super) fn rank(&self) -> Option<u32> {
        self.rank
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// As the metrics show it: JSON's and Prometheus' numbers have 53 bits.
    pub(super) fn epoch(&self) -> Option<u64> {
        Some(self.epoch.load(Relaxed) & ((1 << 53) - 1)).filter(|epoch| *epoch > 0)
    }
}

/// Says which job this process's lines are about, where it is no rank itself.
pub fn name_job(job: &str) {
    Arc::new(Origin::of(Some(job.into()), None, host_name())).introduce();
}

pub(super) fn speak_for(origin: &Arc<Origin>) {
    SPEAKS_FOR.with(|speaker| *speaker.borrow_mut() = Some(origin.clone()));
}

/// One of allfold's threads must not wait for whoever reads the warning.
pub(super) fn warn(message: &str) {
    match of_thread() {
        Some(origin) => hand_over(origin, message, None),
        None => current().say(message, None),
    }
}

/// Has a warning said by the thread that writes.
pub(super) fn hand_over(origin: Arc<Origin>, message: &str, call: Option<&str>) {
    let (message, call) = (message.to_string(), call.map(str::to_string));
    LINES.hand_over(Weight::Warning, move || origin.say(&message, call.as_deref()));
}

/// Of one of allfold's own threads; one that is ending has none.
fn of_thread() -> Option<Arc<Origin>> {
    SPEAKS_FOR.try_with(|speaker| speaker.borrow().clone()).ok().flatten()
}

pub(super) fn current() -> Arc<Origin> {
    of_thread().or_else(|| newest().clone()).unwrap_or_else(|| Arc::new(Origin::of_environment()))
}

fn newest() -> std::sync::MutexGuard<'static, Option<Arc<Origin>>> {
    NEWEST.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static SPEAKS_FOR: RefCell<Option<Arc<Origin>>> = const { RefCell::new(None) };
}
static NEWEST: Mutex<Option<Arc<Origin>>> = Mutex::new(None);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_speaks_for_its_rank_and_no_other() {
        let ranks = [5, 6].map(|rank| Arc::new(Origin::new("job", rank, "host")));
        std::thread::scope(|scope| {
            for rank in &ranks {
                scope.spawn(|| {
                    speak_for(rank);
                    assert_eq!(current().rank(), rank.rank());
                });
            }
        });
    }

    #[test]
    fn there_is_no_epoch_before_the_ranks_have_met() {
        let origin = Origin::new("job", 0, "host");
        assert_eq!(origin.epoch(), None);
        origin.set_epoch(1 << 60 | 7);
        assert_eq!(origin.epoch(), Some(7));
    }
}
