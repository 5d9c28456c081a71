//! One stream of one rank: where it comes from, how it is shown, and where it is logged.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Stream;
use crate::hosts::words;
use crate::lines::Lines;
use crate::logs::Log;

/// One stream of one rank, and where it goes.
pub(crate) struct Source {
    pub(crate) rank: usize,
    pub(crate) origin: Origin,
    /// None where it is not shown.
    pub(crate) shown: Option<Shape>,
    pub(crate) log: Option<Logged>,
}

impl Source {
    /// Appends to `shown` the lines that `bytes` complete, and logs them.
    pub(super) fn push(&mut self, bytes: &[u8], shown: &mut Vec<u8>) {
        if let Some(shape) = &mut self.shown {
            shape.push(bytes, shown);
        }
        if let Some(logged) = &mut self.log {
            let mut text = Vec::new();
            logged.lines.push(bytes, &mut text);
            logged.log.write(&text);
        }
    }

    /// The same for a last line without an end.
    pub(super) fn finish(&mut self, shown: &mut Vec<u8>) {
        if let Some(shape) = &mut self.shown {
            shape.finish(shown);
        }
        if let Some(logged) = &mut self.log {
            let mut text = Vec::new();
            logged.lines.finish(&mut text);
            logged.log.write(&text);
        }
    }
}

/// Where a source's bytes come from.
pub(crate) enum Origin {
    Pipe(OwnedFd),
    /// By [`super::Output::print`].
    Host(Arc<dyn Printed>),
}

/// Another host that learns what became of what its ranks have printed; it is told so by a printer,
/// which must not wait.
pub(crate) trait Printed: Send + Sync {
    fn tell(&self, stream: Stream, reader: Reader);
}

/// How the launcher that leads gets on with one stream of a host's ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reader {
    /// So many bytes more are done with.
    Took(usize),
    /// Nobody reads what this rank prints there: it shall see a broken pipe.
    Left { rank: usize },
}

/// How a stream is shown.
pub(crate) enum Shape {
    /// To people.
    Lines(Lines),
    /// To the launcher that leads: as it comes, and whose it is.
    Words { rank: usize, stream: Stream },
}

impl Shape {
    fn push(&mut self, bytes: &[u8], shown: &mut Vec<u8>) {
        match self {
            Self::Lines(lines) => lines.push(bytes, shown),
            Self::Words { rank, stream } => words::print(*rank, *stream, bytes, shown),
        }
    }

    fn finish(&mut self, shown: &mut Vec<u8>) {
        match self {
            Self::Lines(lines) => lines.finish(shown),
            Self::Words { .. } => {}
        }
    }
}

/// The lines of a log are the rank's own, without its number.
pub(crate) struct Logged {
    pub(crate) lines: Lines,
    pub(crate) log: Arc<Log>,
}
