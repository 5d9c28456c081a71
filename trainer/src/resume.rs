//! Goes on from a checkpoint. Rank 0 alone chooses and reads; the others get it from there.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use allfold::Communicator;

use crate::agreement::broadcast_text;
use crate::checkpoint::{Checkpoint, Folder, Lock, Skipped, Stored};
use crate::data::Data;
use crate::distributed::Distributed;
use crate::error::{Error, Result};
use crate::optimizer::Optimiser;
use crate::options::{Options, Resume};
use crate::settings::{
    ACCUMULATE, BATCH_SIZE, DATA, OPTIMIZER, SEED, STEPS, Settings, VALIDATION, saved_lines, short,
};

/// Where a training starts that was asked to resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// The checkpoint, as rank 0 knows it; none where there is none.
    pub(crate) path: Option<PathBuf>,
    /// Its step.
    pub(crate) step: u64,
    /// Newer ones that cannot be used; known to rank 0.
    pub(crate) skipped: Vec<Skipped>,
    /// Settings that have changed since, such as `seed was 1, is 2`; known to rank 0.
    pub(crate) changes: Vec<String>,
    /// Whether every step of it was of as many samples as those to come.
    pub(crate) counts_epochs: bool,
}

impl Resumed {
    /// The step of the checkpoint, where there is one.
    pub(crate) fn from(&self) -> Option<u64> {
        self.path.is_some().then_some(self.step)
    }

    fn nowhere() -> Self {
        Self { path: None, step: 0, skipped: Vec::new(), changes: Vec::new(), counts_epochs: true }
    }
}

/// Gives all ranks the parameters and the optimiser's state of the newest checkpoint, where that
/// was asked for and there is one. None where it was not asked for. And rank 0's lock on the
/// folder, for as long as it writes there.
/// `described` is the model, `settings` how it is trained. `patience` is how long the folder may be
/// locked by another process, on rank 0.
///
/// # Errors
/// [`Error::Checkpoint`] on every rank, with what rank 0 found wrong; [`Error::Locked`], where there
/// is patience; [`Error::OptimizerState`].
pub(crate) fn resume(
    options: &Options,
    [described, settings]: [&[(String, String)]; 2],
    world: &Communicator,
    optimizer: &mut Distributed<'_, Optimiser>,
    patience: Duration,
) -> Result<(Option<Resumed>, Option<Lock>)> {
    // Whether rank 0 was asked is rank 0's word, so that all make the same calls.
    let mut lock = None;
    let own = match world.rank() {
        0 => find(options, described, settings, (&mut lock, patience)),
        _ => Ok(None),
    };
    let Some((mut resumed, stored)) = tell_all(world, own)? else { return Ok((None, lock)) };
    if let Some(stored) = stored {
        let checkpoint = stored.decode()?;
        checkpoint.fits(described)?;
        checkpoint.restore(optimizer.parameters())?;
        optimizer.inner_mut().restore(&checkpoint.optimizer)?;
        optimizer.set_steps(checkpoint.step);
        resumed.counts_epochs = counts_epochs(&checkpoint, settings);
        (resumed.path, resumed.step) = (Some(stored.path), checkpoint.step);
    }
    Ok((Some(resumed), lock))
}

/// Whether the newest checkpoint is the end of this very training: of the same settings to the last,
/// and of the last step. Of one that is not, all ranks are told when they resume.
///
/// # Errors
/// Where it cannot be read, which does not say what it is.
pub(crate) fn is_at_the_end(options: &Options, data: &Data, ranks: usize) -> Result<bool> {
    let Some(path) = &options.checkpoint else { return Ok(false) };
    let settings = Settings::new(options, ranks, data)?;
    let Some(stored) = Folder::new(path).latest()?.newest else { return Ok(false) };
    let Ok(checkpoint) = stored.decode() else { return Ok(false) };
    let lines = saved_lines(&settings, data);
    let is_same = |(name, here): &(String, String)| {
        name == STEPS || checkpoint.setting(name).is_some_and(|there| there == here)
    };
    Ok(checkpoint.fits(&settings.model_lines(&data.shape)).is_ok()
        && lines.iter().all(is_same)
        && checkpoint.setting(MIXED).is_none()
        && checkpoint.step == settings.steps as u64)
}

/// A rank 0 whose host is gone holds its lock until the file server forgets it.
fn lock_within(patience: Duration, folder: &Folder) -> Result<Option<Lock>> {
    let began = Instant::now();
    let mut say = began;
    loop {
        let locked = match folder.lock() {
            Err(error) if !patience.is_zero() => error,
            done => return done,
        };
        let waited = format!("{:.0} s", began.elapsed().as_secs_f64());
        if began.elapsed() >= patience {
            return Err(Error::Locked { folder: folder.path().display().to_string(), waited });
        }
        if Instant::now() >= say {
            say += SAY_EVERY;
            let limit = patience.as_secs();
            tracing::warn!("{locked}; waiting up to {limit} s for it to end ({waited} so far)");
        }
        thread::sleep(LOOK_EVERY);
    }
}

type Choice = Option<(Resumed, Option<Stored>)>;

/// On rank 0: what there is to go on from.
fn find(
    options: &Options,
    described: &[(String, String)],
    settings: &[(String, String)],
    (lock, patience): (&mut Option<Lock>, Duration),
) -> Result<Choice> {
    let Some(path) = &options.checkpoint else { return Ok(None) };
    let folder = Folder::new(path);
    if options.resume != Some(Resume::Must) {
        // Where it cannot be made, it is told when it is prepared.
        let _ = std::fs::create_dir_all(path);
    }
    *lock = lock_within(patience, &folder)?;
    let Some(resume) = options.resume else {
        folder.must_be_unused()?;
        return Ok(None);
    };
    let found = folder.latest()?;
    if found.newest.is_none() && (resume == Resume::Must || !found.skipped.is_empty()) {
        let (problem, help) = match found.skipped.len() {
            0 => (
                "there is no checkpoint to go on from".to_string(),
                "--resume without `=must` starts fresh where there is none",
            ),
            1 => ("the only checkpoint cannot be used".to_string(), NONE_USABLE),
            many => (format!("none of {many} checkpoints can be used"), NONE_USABLE),
        };
        let skipped: String = found.skipped.iter().map(|it| format!("; {it}")).collect();
        return Err(Error::Checkpoint {
            file: path.display().to_string(),
            problem: problem + &skipped,
            help: help.into(),
        });
    }
    let mut resumed = Resumed { skipped: found.skipped, ..Resumed::nowhere() };
    if let Some(stored) = &found.newest {
        // Here, so that an error names one rank's file and reaches all.
        let checkpoint = stored.decode()?;
        checkpoint.fits(described)?;
        resumed.changes = changes(&checkpoint, settings)?;
    }
    Ok(Some((resumed, found.newest)))
}

/// The settings that are not those of the checkpoint, where it can be gone on from all the same.
///
/// # Errors
/// [`Error::Checkpoint`] where its optimiser or its samples are others.
fn changes(checkpoint: &Checkpoint, settings: &[(String, String)]) -> Result<Vec<String>> {
    let refuse = |problem: String, help: &str| Error::Checkpoint {
        file: checkpoint.path.display().to_string(),
        problem,
        help: help.into(),
    };
    let is_on = |value: &str| value != "0";
    let validates = settings.iter().any(|(name, value)| name == VALIDATION && is_on(value))
        || checkpoint.setting(VALIDATION).is_some_and(is_on);
    let mut changes = Vec::new();
    for (name, here) in settings {
        let there = match checkpoint.setting(name) {
            Some(there) if there != here && name != STEPS => there,
            _ => continue,
        };
        match &**name {
            OPTIMIZER => {
                let problem = format!("of another optimizer: {there} there, {here} here");
                return Err(refuse(problem, "give its --optimizer, or another folder"));
            }
            DATA => {
                let [there, here] = [short(there), short(here)];
                let problem = format!("of other data: sha-256 {there} there, {here} here");
                return Err(refuse(problem, "give the --data that it was trained on"));
            }
            // Samples that it was trained on would be held out as never seen.
            SEED | VALIDATION if validates => {
                let problem = format!(
                    "other samples were held out: {name} was {there}, is {here} with --validation"
                );
                return Err(refuse(problem, "give the --seed and --validation that it had"));
            }
            _ => changes.push(format!("{name} was {there}, is {here}")),
        }
    }
    Ok(changes)
}

/// Whether steps were, and are, equally many samples: then they count epochs.
fn counts_epochs(checkpoint: &Checkpoint, settings: &[(String, String)]) -> bool {
    let is_same = |(name, here): &(String, String)| {
        checkpoint.setting(name).is_none_or(|there| there == here)
    };
    let mut of_batches =
        settings.iter().filter(|(name, _)| [BATCH_SIZE, ACCUMULATE].contains(&&**name));
    checkpoint.setting(MIXED).is_none() && of_batches.all(is_same)
}

/// What rank 0 has found, on every rank.
fn tell_all(world: &Communicator, own: Result<Choice>) -> Result<Choice> {
    let (word, sizes) = match &own {
        Err(Error::Locked { .. }) => (LOCKED, [0; 2]),
        Err(_) => (FAILED, [0; 2]),
        Ok(None) => (NOT_ASKED, [0; 2]),
        Ok(Some((_, None))) => (NOTHING, [0; 2]),
        Ok(Some((_, Some(stored)))) => {
            (FOUND, [stored.model.len() as u64, stored.optimizer.len() as u64])
        }
    };
    let mut words = [word, sizes[0], sizes[1]];
    world.broadcast(&mut words, 0)?;
    let is_root = world.rank() == 0;
    match words {
        [NOT_ASKED, ..] => Ok(None),
        [FAILED, ..] => Err(tell_error(world, own.err())?),
        [LOCKED, ..] => Err(tell_locked(world, own.err())?),
        [FOUND, model, optimizer] => {
            let (resumed, stored) = match own {
                Ok(Some((resumed, Some(stored)))) => (resumed, stored),
                _ => (Resumed::nowhere(), nothing_stored()),
            };
            let path = broadcast_text(world, &stored.path.to_string_lossy(), 0)?;
            let model = broadcast_bytes(world, stored.model, model)?;
            let optimizer = broadcast_bytes(world, stored.optimizer, optimizer)?;
            let path = if is_root { stored.path } else { path.into() };
            Ok(Some((resumed, Some(Stored { path, model, optimizer }))))
        }
        _ => Ok(Some(match own {
            Ok(Some(own)) => own,
            _ => (Resumed::nowhere(), None),
        })),
    }
}

/// Rank 0's error on every rank: for the others it is rank 0's file that is at fault.
fn tell_error(world: &Communicator, own: Option<Error>) -> Result<Error> {
    let [file, problem, help] = match &own {
        Some(Error::Checkpoint { file, problem, help }) => {
            [file.clone(), problem.clone(), help.clone()]
        }
        Some(other) => ["rank 0".into(), other.to_string(), other.help().unwrap_or_default()],
        None => Default::default(),
    };
    let [file, problem, help] = [
        broadcast_text(world, &file, 0)?,
        broadcast_text(world, &problem, 0)?,
        broadcast_text(world, &help, 0)?,
    ];
    Ok(own.unwrap_or(Error::Checkpoint { file, problem, help }))
}

/// The same of a lock, which may be free when they try again.
fn tell_locked(world: &Communicator, own: Option<Error>) -> Result<Error> {
    let [folder, waited] = match &own {
        Some(Error::Locked { folder, waited }) => [folder.clone(), waited.clone()],
        _ => Default::default(),
    };
    let folder = broadcast_text(world, &folder, 0)?;
    Ok(Error::Locked { folder, waited: broadcast_text(world, &waited, 0)? })
}

fn broadcast_bytes(world: &Communicator, own: Vec<u8>, length: u64) -> Result<Vec<u8>> {
    if length > FILE_LIMIT {
        return Err(Error::ListTooLong { bytes: length, limit: FILE_LIMIT });
    }
    let mut bytes = if world.rank() == 0 { own } else { vec![0; length as usize] };
    world.broadcast(&mut bytes, 0)?;
    Ok(bytes)
}

fn nothing_stored() -> Stored {
    Stored { path: PathBuf::new(), model: Vec::new(), optimizer: Vec::new() }
}

/// A setting that is saved where an earlier resume has changed the size of a step.
pub(crate) const MIXED: &str = "mixed batches";
/// A fresh start would mix its checkpoints with those that are there.
const NONE_USABLE: &str = "to start fresh, delete them or give another folder";
/// Nobody asked rank 0 to resume.
const NOT_ASKED: u64 = 0;
/// There is no checkpoint.
const NOTHING: u64 = 1;
/// A checkpoint, and the bytes of its two files.
const FOUND: u64 = 2;
/// Rank 0 has an error.
const FAILED: u64 = 3;
/// Rank 0 did not get the lock.
const LOCKED: u64 = 4;
/// NFS 4 forgets a client after 90 s, and some servers after twice that.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(180);
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Nothing tells when a lock is free.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Bytes of a checkpoint's file: beyond the memory of the hosts that this is for.
const FILE_LIMIT: u64 = 1 << 40;
