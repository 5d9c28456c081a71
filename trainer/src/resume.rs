//! Goes on from a checkpoint. Rank 0 alone chooses and reads; the others get it from there.

use std::path::PathBuf;

use allfold::Communicator;

use crate::agreement::broadcast_text;
use crate::checkpoint::{Folder, Skipped, Stored};
use crate::distributed::Distributed;
use crate::error::{Error, Result};
use crate::optimizer::Optimiser;
use crate::options::{Options, Resume};

/// Where a training starts that was asked to resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// The checkpoint, as rank 0 knows it; none where there is none.
    pub(crate) path: Option<PathBuf>,
    /// Its step.
    pub(crate) step: u64,
    /// Newer ones that cannot be used; known to rank 0.
    pub(crate) skipped: Vec<Skipped>,
}

/// Gives all ranks the parameters and the optimiser's state of the newest checkpoint, where that
/// was asked for and there is one. None where it was not asked for.
///
/// # Errors
/// [`Error::Checkpoint`] on every rank, with what rank 0 found wrong; [`Error::OptimizerState`].
pub(crate) fn resume(
    options: &Options,
    described: &[(String, String)],
    world: &Communicator,
    optimizer: &mut Distributed<'_, Optimiser>,
) -> Result<Option<Resumed>> {
    // Whether rank 0 was asked is rank 0's word, so that all make the same calls.
    let own = match world.rank() {
        0 => find(options, described),
        _ => Ok(None),
    };
    let Some((mut resumed, stored)) = tell_all(world, own)? else { return Ok(None) };
    if let Some(stored) = stored {
        let checkpoint = stored.decode()?;
        checkpoint.fits(described)?;
        checkpoint.restore(optimizer.parameters())?;
        optimizer.inner_mut().restore(&checkpoint.optimizer)?;
        optimizer.set_steps(checkpoint.step);
        (resumed.path, resumed.step) = (Some(stored.path), checkpoint.step);
    }
    Ok(Some(resumed))
}

type Choice = Option<(Resumed, Option<Stored>)>;

/// On rank 0: what there is to go on from.
fn find(options: &Options, described: &[(String, String)]) -> Result<Choice> {
    let Some(path) = &options.checkpoint else { return Ok(None) };
    let folder = Folder::new(path);
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
    if let Some(stored) = &found.newest {
        // Here, so that an error names one rank's file and reaches all.
        stored.decode()?.fits(described)?;
    }
    let resumed = Resumed { path: None, step: 0, skipped: found.skipped };
    Ok(Some((resumed, found.newest)))
}

/// What rank 0 has found, on every rank.
fn tell_all(world: &Communicator, own: Result<Choice>) -> Result<Choice> {
    let (word, sizes) = match &own {
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
        [FOUND, model, optimizer] => {
            let (resumed, stored) = match own {
                Ok(Some((resumed, Some(stored)))) => (resumed, stored),
                _ => (Resumed { path: None, step: 0, skipped: Vec::new() }, nothing_stored()),
            };
            let path = broadcast_text(world, &stored.path.to_string_lossy(), 0)?;
            let model = broadcast_bytes(world, stored.model, model)?;
            let optimizer = broadcast_bytes(world, stored.optimizer, optimizer)?;
            let path = if is_root { stored.path } else { path.into() };
            Ok(Some((resumed, Some(Stored { path, model, optimizer }))))
        }
        _ => Ok(Some(match own {
            Ok(Some(own)) => own,
            _ => (Resumed { path: None, step: 0, skipped: Vec::new() }, None),
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
/// Bytes of a checkpoint's file: beyond the memory of the hosts that this is for.
const FILE_LIMIT: u64 = 1 << 40;
