//! What can go wrong in the launcher, and the exit code it means.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::exit_code;

/// One line each, in lower case.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line cannot be understood.
    #[error("{problem}")]
    Usage { problem: String, help: Option<String> },

    /// A number of ranks that cannot be started.
    #[error("{ranks} ranks: a job has 1 to {MAX_RANKS} on one host")]
    Ranks { ranks: usize, option: &'static str },

    /// A job within a job.
    #[error("already rank {rank} of {size} under {launcher}")]
    AlreadyLaunched { rank: usize, size: usize, launcher: String, option: &'static str },

    /// No such program.
    #[error("program `{program}` not found")]
    ProgramNotFound { program: String, help: Option<String> },

    /// The file is there but cannot be run.
    #[error("cannot run {program}: {problem}")]
    NotExecutable { program: String, problem: String, help: Option<String> },

    /// A rank's process could not be started.
    #[error("cannot start rank {rank} ({program}): {problem}")]
    Start { rank: usize, program: String, problem: io::Error },

    /// The system refused something.
    #[error("{operation}: {problem}")]
    System { operation: &'static str, problem: io::Error },

    /// The launcher's own stdout or stderr takes nothing more, and not because its reader left.
    #[error("cannot print the ranks' output: {}", reason(&(*problem).into()))]
    Output { problem: Errno },

    /// A file that the user asked for cannot be made.
    #[error("{option}: cannot write {}: {}", path.display(), reason(problem))]
    Unwritable { option: &'static str, path: PathBuf, problem: io::Error },

    /// The job is done, but a log or the events are not whole.
    #[error("{} is incomplete: {problem}", path.display())]
    Incomplete { path: PathBuf, problem: String },

    /// Some cells of `allfold doctor` are red.
    #[error("the doctor finds fault with {}", reds.join("; "))]
    Unhealthy { reds: Vec<String> },

    /// A rank failed, or the user stopped the job.
    #[error("{message}")]
    Job { message: String, help: Option<String>, code: u8 },

    #[error(transparent)]
    Library(#[from] allfold::Error),

    #[error(transparent)]
    Trainer(#[from] allfold_trainer::Error),

    #[error(transparent)]
    Bench(#[from] allfold_bench::Error),
}

impl Error {
    /// For `map_err` on what the system refused.
    pub(crate) fn system(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |problem| Self::System { operation, problem }
    }

    /// The same error of a job, and what else there is to say of it.
    pub(crate) fn with(mut self, more: &str) -> Self {
        if let Self::Job { message, .. } = &mut self {
            message.push_str(more);
        }
        self
    }

    /// The same error of a job, with this help where it has none.
    pub(crate) fn or_help(mut self, hint: Option<String>) -> Self {
        if let Self::Job { help, .. } = &mut self
            && help.is_none()
        {
            *help = hint;
        }
        self
    }

    /// What to do about it.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Usage { help, .. }
            | Self::ProgramNotFound { help, .. }
            | Self::NotExecutable { help, .. }
            | Self::Job { help, .. } => help.clone(),
            Self::Ranks { option, .. } => Some(format!("say how many with {option} N")),
            Self::AlreadyLaunched { option, .. } => Some(format!("drop {option}")),
            Self::Start { problem, .. } | Self::System { problem, .. } => is_temporary(problem)
                .then(|| {
                    "the host is short of processes, descriptors or memory: fewer ranks, or see \
                     `ulimit -a`"
                        .into()
                }),
            Self::Unwritable { problem, .. } => is_temporary(problem)
                .then(|| "too many open files: see `ulimit -n`".into())
                .or_else(|| Some("nothing was started; name a place that can be written".into())),
            Self::Incomplete { .. } => {
                Some("the ranks themselves are done, without a failure".into())
            }
            Self::Unhealthy { .. } => {
                Some("the line after each `help:` on standard output mends it".into())
            }
            Self::Output { .. } => None,
            Self::Library(error) => error.help(),
            Self::Trainer(error) => error.help(),
            Self::Bench(error) => error.help(),
        }
    }

    /// By the one table.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. }
            | Self::Ranks { .. }
            | Self::AlreadyLaunched { .. }
            | Self::ProgramNotFound { .. }
            | Self::NotExecutable { .. }
            | Self::Output { .. } => exit_code::USAGE,
            Self::Incomplete { .. } | Self::Unhealthy { .. } => exit_code::CHECK_FAILED,
            Self::Start { problem, .. }
            | Self::System { problem, .. }
            | Self::Unwritable { problem, .. } => {
                if is_temporary(problem) {
                    exit_code::TRY_AGAIN
                } else {
                    exit_code::USAGE
                }
            }
            Self::Job { code, .. } => *code,
            Self::Library(error) => error.exit_code(),
            Self::Trainer(error) => error.exit_code(),
            Self::Bench(error) => error.exit_code(),
        }
    }
}

/// The system's words, without its number for them.
pub(crate) fn reason(problem: &io::Error) -> String {
    let text = problem.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.into(),
        None => text,
    }
}

fn is_temporary(error: &io::Error) -> bool {
    let temporary = [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
    Errno::from_io_error(error).is_some_and(|errno| temporary.contains(&errno))
}

/// Each takes a process and a few descriptors of the launcher's, so more is a slip of the finger.
pub(crate) const MAX_RANKS: usize = 4096;
