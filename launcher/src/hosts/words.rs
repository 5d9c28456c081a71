//! What the launcher that leads and those on the other hosts say to each other, through ssh's
//! standard streams.
//!
//! The one on the host says its version first. Then comes the job's secret, on a line of its own,
//! and from then on both sides send objects, one a line; what ranks print follows its line as it is.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ending::{Ending, How};
use crate::meeting::Meeting;
use crate::options::Bind;
use crate::output::{Reader, Stream};
use crate::report::Report;
use crate::variables::Variable;

/// To a host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// The first one: what to prepare.
    Task(Box<Task>),
    /// All hosts are ready.
    Start { meeting: Meeting },
    /// The user's signal.
    Signal { signal: i32 },
    /// A rank of another host has ended.
    Ended(Ended),
    /// The job has failed in another way.
    Failed,
    /// What became of what ranks have printed.
    Reader { stream: Stream, reader: Reader },
    /// The leader is still there.
    Beat,
}

/// A host's share of a job.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) job: String,
    pub(crate) restart: usize,
    /// The world size.
    pub(crate) world: usize,
    /// The lowest rank of this host.
    pub(crate) first: usize,
    /// How many there are here.
    pub(crate) ranks: usize,
    /// Where rank 0 listens, if it is here; port 0 is any.
    pub(crate) listen: Option<Meeting>,
    pub(crate) directory: OsString,
    pub(crate) program: Wanted,
    pub(crate) variables: Vec<Variable>,
    pub(crate) bind: Bind,
    pub(crate) grace: Option<Duration>,
    /// The ranks whose output is wanted; empty for all.
    pub(crate) only_rank: Vec<usize>,
}

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wanted {
    /// A program of the user's, name and arguments.
    Program(Vec<OsString>),
    /// allfold itself, with these words.
    Copies(Vec<OsString>),
}

/// From a host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Word {
    /// All is there; `port` is rank 0's, if that is here.
    Ready { port: Option<u16> },
    /// It cannot be done here.
    Refused { message: String, help: Option<String>, code: u8 },
    /// A rank's process is there.
    Started { rank: usize, pid: i32 },
    /// So many bytes that a rank has printed follow.
    Printed { rank: usize, stream: Stream, length: usize },
    /// A rank's process is gone; a copy of allfold may have left an error.
    Ended { ended: Ended, report: Option<Report> },
    /// All ranks of this host have ended; these the launcher there had to end.
    Done { put_down: Vec<usize> },
}

/// [`Ending`] but for the time, which is each host's own.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) rank: usize,
    pub(crate) pid: i32,
    pub(crate) how: How,
    pub(crate) by_itself: bool,
}

impl From<Ending> for Ended {
    fn from(Ending { rank, pid, how, by_itself, .. }: Ending) -> Self {
        Self { rank, pid, how, by_itself }
    }
}

impl From<Ended> for Ending {
    fn from(Ended { rank, pid, how, by_itself }: Ended) -> Self {
        Self { rank, pid, how, by_itself, noticed: Instant::now() }
    }
}

/// The first line that a launcher on a host says.
pub(crate) fn greeting() -> String {
    format!("{GREETING}{DIALECT} {VERSION}\n")
}

/// What a line says of the version there; None where it has no greeting, but what a login shell
/// prints. That may stand before the greeting, too: a window's title has no end of line.
pub(crate) fn greeted(line: &[u8]) -> Option<Result<(), String>> {
    let mut places = line.windows(GREETING.len());
    let behind = places.rposition(|part| part == GREETING.as_bytes())? + GREETING.len();
    let line = std::str::from_utf8(line.get(behind..)?).ok()?;
    let (dialect, version) = line.trim_end().split_once(' ')?;
    Some(match dialect == DIALECT && version == VERSION {
        true => Ok(()),
        false => Err(version.into()),
    })
}

/// A line for one of them.
pub(crate) fn line(word: &impl Serialize) -> String {
    // Of these types none can fail: no map has keys that are no text.
    serde_json::to_string(word).unwrap_or_default() + "\n"
}

/// Appends what a rank has printed.
pub(crate) fn print(rank: usize, stream: Stream, bytes: &[u8], out: &mut Vec<u8>) {
    let word = Word::Printed { rank, stream, length: bytes.len() };
    out.extend_from_slice(line(&word).as_bytes());
    out.extend_from_slice(bytes);
}

/// The next line with its end; None at the end of all, also in the middle of a line.
pub(crate) fn read_line(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut line)?;
    match line.ends_with(b"\n") {
        true => Ok(Some(line)),
        false if line.len() as u64 == MAX_LINE => Err(invalid("a line is too long")),
        false => Ok(None),
    }
}

/// The next object; None at the end of all.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let Some(line) = read_line(from)? else { return Ok(None) };
    let word = serde_json::from_slice(&line);
    word.map(Some).map_err(|_| invalid("a word that allfold does not say"))
}

/// What a rank has printed, of the length that its word said.
pub(crate) fn read_printed(from: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
    if length > MAX_PRINTED {
        return Err(invalid("more printed at once than allfold sends"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Grows with every change of these words.
const DIALECT: &str = "2";
const GREETING: &str = "allfold-host ";
/// A task holds the program's arguments and variables, of which the kernel takes 2 MiB in all, and
/// each of their bytes is up to four here.
const MAX_LINE: u64 = 16 << 20;
/// What is read from a pipe at once is less.
const MAX_PRINTED: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_found_behind_what_a_shell_prints() {
        assert_eq!(greeted(greeting().as_bytes()), Some(Ok(())));
        assert_eq!(greeted(b"allfold-host 2 9.0.0\n"), Some(Err("9.0.0".into())));
        assert_eq!(greeted(b"allfold-host 0 0.1.0\n"), Some(Err("0.1.0".into())));
        for shell in [&b"hi"[..], b"\x1b]0;me@h1\x07", b"\xff", b"allfold-host "] {
            let line = [shell, greeting().as_bytes()].concat();
            assert_eq!(greeted(&line), Some(Ok(())), "{}", line.escape_ascii());
        }
        for noise in [&b"Welcome to h1\n"[..], b"\xff\n", b"\n", b"allfold-host\n"] {
            assert_eq!(greeted(noise), None);
        }
    }

    #[test]
    fn what_a_rank_prints_arrives_byte_for_byte() {
        let mut sent = Vec::new();
        print(3, Stream::Err, b"a\n\x00\xff", &mut sent);
        sent.extend_from_slice(line(&Word::Done { put_down: vec![1] }).as_bytes());
        let mut from = &sent[..];
        let Some(Word::Printed { rank: 3, stream: Stream::Err, length: 4 }) =
            read(&mut from).unwrap()
        else {
            panic!("{from:?}");
        };
        assert_eq!(read_printed(&mut from, 4).unwrap(), b"a\n\x00\xff");
        assert!(matches!(read(&mut from).unwrap(), Some(Word::Done { .. })));
        assert!(read::<Word>(&mut from).unwrap().is_none());
    }

    #[test]
    fn what_allfold_does_not_say_is_refused() {
        assert!(read::<Word>(&mut &b"{\"ready\":{\"port\":70000}}\n"[..]).is_err());
        assert!(read::<Word>(&mut &b"hello\n"[..]).is_err());
        assert!(read_printed(&mut io::repeat(0), MAX_PRINTED + 1).is_err());
        let endless = Read::take(io::repeat(b'x'), MAX_LINE + 1);
        assert!(read_line(&mut io::BufReader::new(endless)).is_err());
    }

    #[test]
    fn words_survive_the_way() {
        let ending = Ending {
            rank: 2,
            pid: 71,
            how: How::Signal(9),
            by_itself: true,
            noticed: Instant::now(),
        };
        let report = Some(Report { message: "no".into(), help: None });
        let sent = line(&Word::Ended { ended: ending.into(), report: report.clone() });
        let Some(Word::Ended { ended, report: read_report }) = read(&mut sent.as_bytes()).unwrap()
        else {
            panic!("{sent}");
        };
        let noticed = ending.noticed;
        assert_eq!(Ending { noticed, ..Ending::from(ended) }, ending);
        assert_eq!(read_report, report);
    }
}
