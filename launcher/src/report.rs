//! How an error reaches the user: one `error:` line and, where there is something to do, `help:`.
//!
//! A copy of ourselves leaves its error for the launcher, which prints one for the whole job.

use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::path::{Path, PathBuf};

use allfold::report::Format;
use serde::{Deserialize, Serialize};

use crate::environment::REPORT;
use crate::error::Error;
use crate::exit_code;

/// An error in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl From<&Error> for Report {
    fn from(error: &Error) -> Self {
        Self {
            message: one_line(&error.to_string()),
            help: error.help().map(|help| one_line(&help)),
        }
    }
}

impl Report {
    /// Prints it, or leaves it where the launcher that started this copy will look; and where the
    /// cluster will.
    pub(crate) fn deliver(&self) {
        allfold::report::leave(&self.message, self.help.as_deref());
        if let Some(path) = std::env::var_os(REPORT)
            && std::fs::write(path, self.to_text()).is_ok()
        {
            return;
        }
        // One write, so that the lines of several ranks do not mix; a closed stderr is no error.
        let _ = io::stderr().write_all(self.lines().as_bytes());
    }

    /// As the user reads it.
    fn lines(&self) -> String {
        let (message, help) = (&*self.message, self.help.as_deref());
        // Where the setting itself is wrong, this is text.
        match Format::from_env().unwrap_or_default() {
            Format::Json => {
                allfold::report::Line { level: "error", message, help, call: None }.to_json() + "\n"
            }
            Format::Text => {
                let help = help.map(|help| format!("help: {help}\n")).unwrap_or_default();
                format!("error: {message}\n{help}")
            }
        }
    }

    /// Whether it says that this rank is the culprit.
    pub(crate) fn names(&self, rank: usize) -> bool {
        self.message.starts_with(&format!("rank {rank} ("))
    }

    /// What a copy left at `path`.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        Self::from_text(&std::fs::read_to_string(path).ok()?)
    }

    fn to_text(&self) -> String {
        format!("{}\n{}\n", self.message, self.help.as_deref().unwrap_or_default())
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        Some(Self {
            message: lines.next()?.into(),
            help: lines.next().filter(|help| !help.is_empty()).map(Into::into),
        })
    }
}

/// Tells the launcher that started this copy that nothing is left to do but to end.
pub(crate) fn note_done() {
    if let Some(path) = std::env::var_os(REPORT) {
        // Without it a rank may yet be killed, and the job goes on from its checkpoint.
        let _ = std::fs::write(done_beside(Path::new(&path)), "");
    }
}

/// Whether the copy whose report is at `path` has said so.
pub(crate) fn is_done(path: &Path) -> bool {
    done_beside(path).exists()
}

fn done_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".done");
    name.into()
}

/// Whether this process is one of the copies that `train -n 4` or `bench` started.
pub(crate) fn is_copy() -> bool {
    std::env::var_os(REPORT).is_some()
}

/// A panic becomes one line and the code of a bug, on whatever thread; RUST_BACKTRACE changes
/// nothing.
pub(crate) fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        let message = panic_message(info);
        // `allfold train | head`: print! panics where other programs die of SIGPIPE.
        if message.starts_with("failed printing to std") && message.contains("Broken pipe") {
            std::process::exit(exit_code::of_signal(signal_hook::consts::SIGPIPE).into());
        }
        let place = info.location().map(|at| format!(" at {at}")).unwrap_or_default();
        Report { message: one_line(&format!("bug: {message}{place}")), help: None }.deliver();
        std::process::exit(exit_code::BUG.into());
    }));
}

fn panic_message<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}

fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_copy_leaves_is_read_again() {
        for help in [None, Some("do this".to_owned())] {
            let report = Report { message: "no such model".into(), help };
            assert_eq!(Report::from_text(&report.to_text()), Some(report));
        }
        assert_eq!(Report::from_text(""), None);
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(one_line("a\n  b\n\nc\n"), "a b c");
    }
}
