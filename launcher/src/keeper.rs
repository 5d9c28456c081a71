//! A small process beside the launcher that outlives it and clears up after it.
//!
//! It reads a pipe whose other end only the launcher holds. When the pipe ends, because the
//! launcher is done or was killed in whatever way, it ends what remains of the job and removes
//! the job's directory.

use std::collections::HashSet;
use std::env;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, PipeWriter, Read, Write, pipe};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, getppid, pidfd_open, setsid};

use crate::directory;
use crate::process::{Process, children};
use crate::program::own_binary;
use crate::remains::Remains;

/// The launcher's end.
pub(crate) struct Keeper {
    child: Child,
    pipe: Option<PipeWriter>,
    variable: Vec<u8>,
    spared: HashSet<Process>,
}

impl Keeper {
    /// Returns once the keeper can no longer be hit by a Ctrl-C. `variable`, `NAME=value`, is in the
    /// environment of every rank, and of nobody else.
    pub(crate) fn start(job: &str, variable: &str) -> io::Result<Self> {
        let (read, write) = pipe()?;
        let mut child = Command::new(own_binary())
            .arg0(format!("allfold keeper of {job}"))
            .arg(SUBCOMMAND)
            // Neither an outer job's marks nor a directory in use; only what a binary that links
            // CUDA may need to start.
            .env_clear()
            .envs(env::var_os(LIBRARIES).map(|folders| (LIBRARIES, folders)))
            .current_dir("/")
            .stdin(read)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut answer = [0; READY.len()];
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_exact(&mut answer)?;
        }
        let keeper = Self {
            child,
            pipe: Some(write),
            variable: variable.into(),
            // No rank has been started: these are the keeper, and what a shell had started that
            // then became this process by exec.
            spared: children(getpid()),
        };
        keeper.tell(LAUNCHER, getpid().as_raw_pid().to_string().as_bytes());
        keeper.tell(VARIABLE, variable.as_bytes());
        Ok(keeper)
    }

    /// The job's directory, told before it is made.
    pub(crate) fn watch_directory(&self, path: &Path) {
        self.tell(DIRECTORY, path.as_os_str().as_bytes());
    }

    /// A rank's process group.
    pub(crate) fn watch_group(&self, group: Pid) {
        self.tell(GROUP, group.as_raw_pid().to_string().as_bytes());
    }

    /// The group is gone, and its number may be used again.
    pub(crate) fn forget_group(&self, group: Pid) {
        self.tell(GONE, group.as_raw_pid().to_string().as_bytes());
    }

    /// What remains of the job, for the launcher to end itself.
    pub(crate) fn remains(&self, groups: HashSet<Pid>) -> Remains {
        Remains {
            variable: self.variable.clone(),
            groups,
            launcher: Some(getpid()),
            spared: self.spared.clone(),
        }
    }

    /// Whether this is its process.
    pub(crate) fn is(&self, pid: Pid) -> bool {
        pid.as_raw_pid() == self.child.id().cast_signed()
    }

    /// Has everything cleared up; returns when it is.
    pub(crate) fn finish(mut self, directory: Option<&Path>) {
        self.pipe = None;
        let begun = Instant::now();
        self.wait(begun + KEEPER_WORK);
        // Nothing happens to one that has ended: it is not yet reaped.
        let _ = self.child.kill();
        if self.child.wait().is_ok_and(|status| status.success()) {
            return;
        }
        // It was killed, stopped or is slow, so the launcher does its work, or the rest of it.
        self.remains(HashSet::new()).end(PATIENCE.saturating_sub(begun.elapsed()));
        if let Some(path) = directory {
            directory::remove(path);
        }
    }

    /// Returns when its process has ended, and at that time in any case.
    fn wait(&self, until: Instant) {
        let Ok(handle) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) else {
            return;
        };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut waits = [PollFd::new(&handle, PollFlags::IN)];
            if poll(&mut waits, Some(&timeout)) != Err(Errno::INTR) {
                return;
            }
        }
    }

    fn tell(&self, word: &[u8], value: &[u8]) {
        if let Some(mut pipe) = self.pipe.as_ref() {
            let line = [word, b" ", value, b"\n"].concat();
            // A keeper that was killed is made good for in `finish`.
            let _ = pipe.write_all(&line);
        }
    }
}

/// The keeper's own main.
pub(crate) fn keep() -> io::Result<()> {
    // Out of the terminal's reach, and of `killall allfold`.
    let _ = setsid();
    let _ = rustix::thread::set_name(c"fold-keeper");
    for signal in survived_signals() {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    // As in `Keeper::start`: nothing of the job is there yet.
    let spared = getppid().map(children).unwrap_or_default();
    io::stdout().write_all(READY)?;
    io::stdout().flush()?;

    let mut remains =
        Remains { variable: Vec::new(), groups: HashSet::new(), launcher: None, spared };
    let mut path = None;
    let mut lines = BufReader::new(io::stdin());
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        obey(line.trim_ascii_end(), &mut remains, &mut path);
        line.clear();
    }
    // Once the launcher is dead its number may be somebody else's.
    remains.launcher = remains.launcher.filter(|launcher| getppid() == Some(*launcher));
    if !remains.variable.is_empty() {
        remains.end(PATIENCE);
    }
    if let Some(path) = path {
        directory::remove(&path);
    }
    Ok(())
}

fn obey(line: &[u8], remains: &mut Remains, path: &mut Option<PathBuf>) {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let (word, value) = (&line[..end], line.get(end + 1..).unwrap_or_default());
    let number = || Pid::from_raw(std::str::from_utf8(value).ok()?.parse().ok()?);
    match word {
        LAUNCHER => remains.launcher = number(),
        VARIABLE => remains.variable = value.to_vec(),
        DIRECTORY => *path = Some(PathBuf::from(OsStr::from_bytes(value))),
        GROUP => remains.groups.extend(number()),
        GONE => {
            if let Some(group) = number() {
                remains.groups.remove(&group);
            }
        }
        _ => {}
    }
}

/// What would end the keeper before the launcher: it must see the launcher's end first.
fn survived_signals() -> [i32; 4] {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM]
}

/// The hidden subcommand.
pub(crate) const SUBCOMMAND: &str = "keeper";
/// Where the loader looks for libraries beside the system's folders.
const LIBRARIES: &str = "LD_LIBRARY_PATH";
const READY: &[u8] = b"ready\n";
const LAUNCHER: &[u8] = b"launcher";
const VARIABLE: &[u8] = b"variable";
const DIRECTORY: &[u8] = b"directory";
const GROUP: &[u8] = b"group";
const GONE: &[u8] = b"gone";
/// How long the launcher waits for it at the end. Mostly nothing is left to do; else it is in the
/// middle of its patience, which the launcher then brings to its end.
const KEEPER_WORK: Duration = Duration::from_secs(3);
/// Between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);
