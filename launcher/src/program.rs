//! The program that the ranks run, looked up once before any rank starts.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};

use crate::error::Error;

/// A file that can be executed, and its arguments.
pub(crate) struct Program {
    path: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
}

impl Program {
    /// Finds `name` as a shell would: with a slash as it is, without by PATH.
    pub(crate) fn find(name: &OsStr, arguments: &[OsString]) -> Result<Self, Error> {
        Ok(Self { path: look_up(name)?, name: name.to_owned(), arguments: arguments.to_vec() })
    }

    /// This program again, with the same arguments.
    pub(crate) fn own_copy() -> Self {
        Self::copy_of(std::env::args_os().collect())
    }

    /// This program with the words of another's command line.
    pub(crate) fn copy_of(words: Vec<OsString>) -> Self {
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_else(|| "allfold".into());
        Self { path: own_binary(), name, arguments: words.collect() }
    }

    /// For another host, where it may be elsewhere: what the user gave, looked up there.
    pub(crate) fn elsewhere(words: &[OsString]) -> Self {
        let name = words.first().cloned().unwrap_or_default();
        Self {
            path: PathBuf::from(&name),
            name,
            arguments: words.iter().skip(1).cloned().collect(),
        }
    }

    /// A command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(&self.name).args(&self.arguments);
        command
    }

    /// Name and arguments as the user gave them.
    pub(crate) fn words(&self) -> Vec<String> {
        let arguments = self.arguments.iter().map(|argument| argument.display().to_string());
        std::iter::once(self.name()).chain(arguments).collect()
    }

    /// The same as the system takes them.
    pub(crate) fn os_words(&self) -> Vec<OsString> {
        std::iter::once(&self.name).chain(&self.arguments).cloned().collect()
    }

    /// The name for messages.
    pub(crate) fn name(&self) -> String {
        self.name.display().to_string()
    }
}

/// The binary of this process, also where the file has been replaced since.
pub(crate) fn own_binary() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "/proc/self/exe".into())
}

fn look_up(name: &OsStr) -> Result<PathBuf, Error> {
    let shown = || name.display().to_string();
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match examine(&path) {
            Ok(()) => Ok(path),
            Err(error) if is_absent(&error) => {
                let help = Some("check the path: it begins in the directory at hand".into());
                Err(Error::ProgramNotFound {
                    program: shown(),
                    help: help.filter(|_| path.is_relative()),
                })
            }
            Err(error) => Err(not_executable(&path, &error)),
        };
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = None;
    for directory in std::env::split_paths(&search) {
        let path = directory.join(name);
        match examine(&path) {
            // An empty entry means the directory at hand, and a slash says so to exec.
            Ok(()) if directory.as_os_str().is_empty() => return Ok(Path::new(".").join(name)),
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                refused.get_or_insert(not_executable(&path, &error));
            }
            Err(_) => {}
        }
    }
    let is_here = examine(Path::new(name)).is_ok();
    Err(refused.unwrap_or_else(|| Error::ProgramNotFound {
        program: shown(),
        help: Some(match is_here {
            true => format!("it is in this directory: ./{}", shown()),
            false => format!("give a path, such as ./{}, or check PATH", shown()),
        }),
    }))
}

fn examine(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(access(path, Access::EXEC_OK)?)
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn not_executable(path: &Path, error: &io::Error) -> Error {
    let program = path.display().to_string();
    if error.kind() == io::ErrorKind::IsADirectory {
        return Error::NotExecutable { program, problem: "it is a directory".into(), help: None };
    }
    let help = path.is_file().then(|| format!("chmod +x {program}"));
    Error::NotExecutable { program, problem: "permission denied".into(), help }
}

/// What execvp takes where PATH is not set.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
