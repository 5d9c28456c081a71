//! What happens to a job, as one JSON object a line: docs/launcher.md has the schema.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::clock;
use crate::ending::{Ending, How, signal_name};
use crate::error::Error;
use crate::unwritten::Unwritten;

/// The file, if the user wants one.
pub(crate) struct Journal(Option<Pages>);

struct Pages {
    path: PathBuf,
    file: File,
    begun: Instant,
    unwritten: Arc<Unwritten>,
}

/// One thing that happened.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Entry<'a> {
    /// Before the first rank starts.
    JobStarted { job: &'a str, ranks: usize, pid: i32, program: &'a [String] },
    /// A rank's process is there.
    RankStarted {
        rank: usize,
        pid: i32,
        /// Where it is not this one.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<&'a str>,
    },
    /// A rank's process is gone.
    RankEnded {
        rank: usize,
        pid: i32,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<u8>,
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
        /// False where the launcher ended it.
        by_itself: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        said: Option<&'a str>,
    },
    /// The launcher got a signal and passes it on.
    Stopping { signal: String },
    /// All ranks have ended and start anew.
    Restart { restart: usize, of: usize, job: &'a str, after: &'a str },
    /// The last line.
    JobEnded {
        code: u8,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    /// Seconds since the job began, by a clock that nobody sets.
    elapsed: f64,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

impl Journal {
    /// None.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Makes the file, or empties it.
    pub(crate) fn open(path: Option<&Path>, unwritten: &Arc<Unwritten>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        if path == Path::new("-") {
            return Err(Error::Usage {
                problem: "--json-events -: standard output is for what the ranks print".into(),
                help: Some("give a file, or a descriptor of its own: /dev/fd/3".into()),
            });
        }
        let file = File::create(path).map_err(|problem| Error::Unwritable {
            option: "--json-events",
            path: path.to_owned(),
            problem,
        })?;
        let (path, begun, unwritten) = (path.to_owned(), Instant::now(), unwritten.clone());
        Ok(Self(Some(Pages { path, file, begun, unwritten })))
    }

    /// Writes a line.
    pub(crate) fn note(&self, entry: &Entry<'_>) {
        let Some(pages) = &self.0 else {
            return;
        };
        let elapsed = pages.begun.elapsed().as_millis() as f64 / 1000.0;
        let line = Line { time: clock::now(), elapsed, entry };
        let written = serde_json::to_vec(&line).map_err(Into::into).and_then(|mut line| {
            line.push(b'\n');
            (&pages.file).write_all(&line)
        });
        if let Err(problem) = written {
            pages.unwritten.note(&pages.path, &problem);
        }
    }
}

impl<'a> Entry<'a> {
    /// The end of a rank, and what it left as its error.
    pub(crate) fn of_ending(ending: &Ending, said: Option<&'a str>) -> Self {
        let Ending { rank, pid, how, by_itself, .. } = *ending;
        let (code, signal) = match how {
            How::Exit(code) => (Some(code), None),
            How::Signal(signal) => (None, Some(signal_text(signal))),
            How::OutOfMemory => (None, Some(signal_text(signal_hook::consts::SIGKILL))),
        };
        Self::RankEnded { rank, pid, code, signal, by_itself, said }
    }
}

/// `SIGKILL`, or the number of a signal without a name.
pub(crate) fn signal_text(signal: i32) -> String {
    signal_name(signal).map_or_else(|| format!("signal {signal}"), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(entry: &Entry<'_>) -> String {
        serde_json::to_string(&Line { time: "T".into(), elapsed: 1.5, entry }).unwrap()
    }

    #[test]
    fn the_lines() {
        let noticed = Instant::now();
        let ending = Ending { rank: 2, pid: 71, how: How::Signal(9), by_itself: true, noticed };
        assert_eq!(
            json(&Entry::of_ending(&ending, None)),
            r#"{"time":"T","elapsed":1.5,"event":"rank-ended","rank":2,"pid":71,"signal":"SIGKILL","by_itself":true}"#
        );
        let ending = Ending { how: How::Exit(2), by_itself: false, ..ending };
        assert_eq!(
            json(&Entry::of_ending(&ending, Some("no \"x\""))),
            r#"{"time":"T","elapsed":1.5,"event":"rank-ended","rank":2,"pid":71,"code":2,"by_itself":false,"said":"no \"x\""}"#
        );
        assert_eq!(
            json(&Entry::JobEnded { code: 0, error: None }),
            r#"{"time":"T","elapsed":1.5,"event":"job-ended","code":0}"#
        );
    }
}
