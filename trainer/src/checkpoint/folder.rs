//! The folder of a run's checkpoints: files appear whole or not at all.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::file::Sealed;
use super::pair::{Snapshot, Stored};
use crate::error::{Error, Result};
use crate::problem::Problem;

/// A folder that holds checkpoints, or will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

/// What a folder has to go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The newest checkpoint that is whole.
    pub newest: Option<Stored>,
    /// Newer ones that cannot be used, the newest first.
    pub skipped: Vec<Skipped>,
}

/// A checkpoint that cannot be used. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The model's file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// A checkpoint on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Steps taken.
    pub step: u64,
    /// The model's file.
    pub path: PathBuf,
    /// Both files, in bytes.
    pub bytes: u64,
    /// When it was complete.
    pub at: SystemTime,
    /// How long writing it took.
    pub took: Duration,
}

impl Folder {
    /// Names a folder; nothing is read or written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// To be called once at the start: makes the folder, removes what a killed run left half
    /// written, and tries to write.
    ///
    /// # Errors
    /// Why no checkpoint can be written at present: for the user to know at once. Later ones are
    /// tried all the same.
    pub fn prepare(&self) -> Result<(), Problem> {
        let problem = |path: &Path, error: io::Error| {
            Problem::new("checkpoints cannot be written", path, &error)
        };
        fs::create_dir_all(&self.path).map_err(|error| problem(&self.path, error))?;
        if let Some(parent) = self.path.parent().filter(|parent| *parent != Path::new("")) {
            // A folder in which others may not be listed can still be written.
            let _ = sync_folder(parent);
        }
        self.remove_leftovers().map_err(|error| problem(&self.path, error))?;
        let probe = Temporary::create(&self.path, "probe");
        let probe = probe.map_err(|error| problem(&self.path, error))?;
        probe.fill(&[&[0; PROBE_BYTES]]).map_err(|error| problem(&probe.path, error))
    }

    /// Keeps other processes from writing checkpoints here while the answer lives. None where the
    /// folder cannot be written, and on a file system without locks.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where another process has it.
    pub(crate) fn lock(&self) -> Result<Option<Lock>> {
        // A file that is open for writing: network file systems lock nothing else.
        let path = self.path.join(LOCK);
        let Ok(file) = OpenOptions::new().create(true).append(true).open(path) else {
            return Ok(None);
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(Errno::WOULDBLOCK) => Err(Error::Checkpoint {
                file: self.path.display().to_string(),
                problem: "another process writes checkpoints here".into(),
                help: "wait until it has ended, or give another folder".into(),
            }),
            Err(_) => Ok(None),
        }
    }

    /// The steps of which there are checkpoints, whole or not, in ascending order; none where
    /// there is no such folder.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the folder is there and cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>> {
        self.list(MODEL).map_err(|error| Error::Checkpoint {
            file: self.path.display().to_string(),
            problem: format!("the folder cannot be read: {error}"),
            help: "see that the folder can be read, or give another one".into(),
        })
    }

    /// For a run that starts fresh: its first steps would stand beside the last ones of another
    /// run, and a later resume would take those.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where there are checkpoints; as [`Self::steps`].
    pub fn must_be_unused(&self) -> Result<()> {
        let Some(last) = self.steps()?.pop() else {
            return Ok(());
        };
        Err(Error::Checkpoint {
            file: self.path.display().to_string(),
            problem: format!("the folder holds checkpoints of an earlier run, up to step {last}"),
            help: "go on from there with --resume, or give another folder, or delete them".into(),
        })
    }

    /// The newest checkpoint that is whole and undamaged.
    ///
    /// # Errors
    /// As [`Self::steps`]; [`Error::Checkpoint`] where a file cannot be read, which does not say
    /// that it is damaged.
    pub fn latest(&self) -> Result<Found> {
        let mut found = Found::default();
        for step in self.steps()?.into_iter().rev() {
            match self.load(step)? {
                Ok(stored) => {
                    found.newest = Some(stored);
                    break;
                }
                Err(reason) => {
                    found.skipped.push(Skipped { path: self.file(step, MODEL), reason });
                }
            }
        }
        Ok(found)
    }

    /// A checkpoint, or why it is none.
    fn load(&self, step: u64) -> Result<Result<Stored, String>> {
        let (path, second) = (self.file(step, MODEL), self.file(step, OPTIMIZER));
        let model = match read(&path)? {
            Ok(bytes) => bytes,
            Err(reason) => return Ok(Err(reason.into())),
        };
        let optimizer = match read(&second)? {
            Ok(bytes) => bytes,
            Err(reason) => return Ok(Err(format!("its optimiser's file {reason}"))),
        };
        let stored = Stored { path, model, optimizer };
        Ok(stored.check(step).map(|()| stored))
    }

    /// Writes both files; what a failed write leaves is removed.
    pub(super) fn write(&self, snapshot: Snapshot) -> Result<Written, Problem> {
        let start = Instant::now();
        let step = snapshot.step;
        let path = self.file(step, MODEL);
        let what = || format!("no checkpoint of step {step}");
        let [model, optimizer] =
            snapshot.seal().map_err(|error| Problem::new(what(), &path, &error))?;
        self.put(step, &model, &optimizer)
            .map_err(|(file, error)| Problem::new(what(), &file, &error))?;
        let bytes = |sealed: &Sealed| (sealed.head.len() + sealed.elements.len()) as u64;
        Ok(Written {
            step,
            path,
            bytes: bytes(&model) + bytes(&optimizer),
            at: SystemTime::now(),
            took: start.elapsed(),
        })
    }

    /// After a crash at any point both files are there and on the disk, or the model's is not, or
    /// it is the old one, which [`Self::latest`] then takes for what it is.
    fn put(
        &self,
        step: u64,
        model: &Sealed,
        optimizer: &Sealed,
    ) -> Result<(), (PathBuf, io::Error)> {
        let (first, last) = (self.file(step, OPTIMIZER), self.file(step, MODEL));
        // A disk that is full is full before anything that was whole is touched.
        let new_first = self.fill(&first, optimizer).map_err(|error| (first.clone(), error))?;
        let new_last = self.fill(&last, model).map_err(|error| (last.clone(), error))?;
        for (new, file) in [(new_first, first), (new_last, last)] {
            new.rename(&file)
                .and_then(|()| sync_folder(&self.path))
                .map_err(|error| (file, error))?;
        }
        Ok(())
    }

    fn fill(&self, file: &Path, sealed: &Sealed) -> io::Result<Temporary> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let temporary = Temporary::create(&self.path, &name)?;
        temporary.fill(&[&sealed.head, &sealed.elements])?;
        Ok(temporary)
    }

    /// Deletes what is older than the newest `keep` checkpoints up to that of step `newest`.
    /// Later ones are left alone: they are of another run, or damaged, and were said to be.
    pub(crate) fn prune(&self, newest: u64, keep: usize) -> Result<(), Problem> {
        let problem =
            |path: &Path, error| Problem::new("old checkpoints cannot be deleted", path, &error);
        let list = |kind| self.list(kind).map_err(|error| problem(&self.path, error));
        let mut models = list(MODEL)?;
        models.retain(|step| *step <= newest);
        let kept = models.split_off(models.len().saturating_sub(keep.max(1)));
        // The model first: without it the other file means nothing.
        let mut old: Vec<PathBuf> = models.iter().map(|step| self.file(*step, MODEL)).collect();
        let mut optimizers = list(OPTIMIZER)?;
        optimizers.retain(|step| *step < newest && !kept.contains(step));
        old.extend(optimizers.iter().map(|step| self.file(*step, OPTIMIZER)));
        for path in &old {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(problem(path, error));
                }
                _ => {}
            }
        }
        if old.is_empty() {
            return Ok(());
        }
        sync_folder(&self.path).map_err(|error| problem(&self.path, error))
    }

    /// Removes temporary files that no process is writing.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let is_ours = name.to_str().is_some_and(|name| {
                name.starts_with(TEMPORARY_START) && name.ends_with(TEMPORARY_END)
            });
            let path = self.path.join(&name);
            // The lock of a process ends with it, whatever its pid and its host.
            let is_left = || {
                let file = File::open(&path).ok();
                file.is_some_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_ok())
            };
            if is_ours && is_left() {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The steps of which there are files of a kind, in ascending order.
    fn list(&self, kind: &str) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.path) {
            // A file in the folder's place holds no checkpoints either.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(Vec::new());
            }
            entries => entries?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let digits =
                name.to_str().and_then(|name| name.strip_prefix(START)?.strip_suffix(kind));
            // Neither `+1` nor another way to write the same number.
            let step = digits.and_then(|digits| digits.parse().ok());
            steps.extend(step.filter(|step| self.file(*step, kind).file_name() == Some(&name)));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    fn file(&self, step: u64, kind: &str) -> PathBuf {
        self.path.join(format!("{START}{step:08}{kind}"))
    }
}

/// Held by who writes a folder; gone with its process, however that ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {} is not used: {}", self.path.display(), self.reason)
    }
}

/// A file that goes away when it is dropped, unless it was renamed.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(folder: &Path, name: &str) -> io::Result<Self> {
        let name = format!("{TEMPORARY_START}{name}.{}{TEMPORARY_END}", std::process::id());
        let path = folder.join(name);
        let file = File::create(&path)?;
        let temporary = Self { path, file };
        // Where the file system has no locks, leftovers are removed by their pid's next owner.
        let _ = flock(&temporary.file, FlockOperation::NonBlockingLockExclusive);
        Ok(temporary)
    }

    /// Returns when the bytes are on the disk.
    fn fill(&self, pieces: &[&[u8]]) -> io::Result<()> {
        let mut file = &self.file;
        pieces.iter().try_for_each(|piece| file.write_all(piece))?;
        file.sync_all()
    }

    fn rename(&self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone after a rename; what else may fail here, the next run tries again.
        let _ = fs::remove_file(&self.path);
    }
}

/// A file's bytes, or why it has none.
///
/// # Errors
/// [`Error::Checkpoint`] where it may be whole, but not for this process at this time.
fn read(path: &Path) -> Result<Result<Vec<u8>, &'static str>> {
    let bytes = read_regular(path);
    match bytes {
        Ok(bytes) => Ok(bytes.ok_or("is no regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Err("is missing")),
        Err(error) => Err(Error::Checkpoint {
            file: path.display().to_string(),
            problem: format!("cannot be read: {error}"),
            help: "see that it can be read and try again; to go without it, move it away".into(),
        }),
    }
}

/// The bytes of a regular file; none where it is something else, which may have no end.
pub(super) fn read_regular(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // To open a pipe waits for its other end.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems have no such call; they order renames themselves.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// What the names of a checkpoint's files begin with.
const START: &str = "step-";
/// What the name of the model's file ends with.
const MODEL: &str = ".safetensors";
/// What the name of the optimiser's file ends with.
const OPTIMIZER: &str = ".optimizer.safetensors";
/// The file that who writes has locked: empty, and left where it is.
const LOCK: &str = ".allfold-lock";
/// What the names of temporary files begin with: the point keeps them from `*`.
const TEMPORARY_START: &str = ".allfold-";
/// What the names of temporary files end with.
const TEMPORARY_END: &str = ".tmp";
/// A block of most file systems: an empty file may fit where no block does.
const PROBE_BYTES: usize = 4096;
