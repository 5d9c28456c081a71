//! What allfold says to the person who runs the job: to `tracing` where the program set a
//! subscriber, else to standard error, as text or as JSON (`ALLFOLD_LOG_FORMAT`). Public for
//! programs that print lines of their own beside it.

mod last_words;
mod origin;
mod writer;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Environment, invalid};

use writer::Weight;

pub use last_words::{leave, take_back};
pub(crate) use origin::Origin;
pub use origin::name_job;

/// How lines are written, by `ALLFOLD_LOG_FORMAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object a line, for programs.
    Json,
}

impl Format {
    /// As the environment says.
    ///
    /// # Errors
    /// [`ErrorKind::Setting`](crate::ErrorKind::Setting) for another word than `text` and `json`.
    pub fn from_env() -> Result<Self> {
        Self::read(&Environment::of_process())
    }

    pub(crate) fn read(environment: &Environment) -> Result<Self> {
        match environment.get(VARIABLE) {
            None | Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some(other) => Err(invalid(VARIABLE, other, "must be text or json")),
        }
    }
}

/// One line of a log.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// `error`, `warning`, `info`, `debug` or `trace`.
    pub level: &'a str,
    /// What there is to say.
    pub message: &'a str,
    /// What to do about it.
    pub help: Option<&'a str>,
    /// The call that it is about.
    pub call: Option<&'a str>,
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    level: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u32>,
    host: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<&'a str>,
}

impl Line<'_> {
    /// As `ALLFOLD_LOG_FORMAT=json` writes it, without the line's end: an object of `time` (RFC
    /// 3339 in UTC), `level`, `message`, `help`, `job`, `rank`, `host`, `epoch` (as the metric
    /// `allfold_epoch`) and `call`; what is not known is left out. Who speaks is the rank that the
    /// thread belongs to, else this process's newest, else whom the environment names.
    pub fn to_json(self) -> String {
        self.to_json_of(&origin::current())
    }

    fn to_json_of(self, origin: &Origin) -> String {
        let Self { level, message, help, call } = self;
        let object = Object {
            time: humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
            level,
            message,
            help,
            job: origin.job(),
            rank: origin.rank(),
            host: origin.host(),
            epoch: origin.epoch(),
            call,
        };
        // Strings and numbers always are.
        serde_json::to_string(&object).unwrap_or_default()
    }
}

/// One line for the person who runs the job.
pub(crate) fn warn(message: &str) {
    origin::warn(message);
}

/// As [`warn`], about a call of this rank; it may be the program's own thread that looks after it,
/// which must not wait for whoever reads the warning either.
pub(crate) fn warn_of_call(origin: &std::sync::Arc<Origin>, message: &str, call: &str) {
    origin::hand_over(origin.clone(), message, Some(call));
}

/// One line that is worth knowing and needs nothing done.
pub(crate) fn info(message: &str) {
    let origin = origin::current();
    let (job, rank, host, epoch) = origin.fields();
    // Without a subscriber a library stays quiet about what went well.
    tracing::info!(job, rank, host, epoch, "{message}");
}

/// On a thread of allfold's: whatever it says, it says for this rank.
pub(crate) fn speak_for(origin: &std::sync::Arc<Origin>) {
    origin::speak_for(origin);
}

/// The world of `origin` has ended. Says so without waiting for whoever reads it.
pub(crate) fn has_ended(origin: &std::sync::Arc<Origin>, error: &Error, call: Option<String>) {
    if origin.is_process() {
        let error = error.clone();
        writer::FILES.hand_over(Weight::End, move || leave_end(&error));
    }
    let (origin, error) = (origin.clone(), error.clone());
    writer::LINES.hand_over(Weight::End, move || origin.ends(&error, call.as_deref()));
}

/// Waits, for a short time, until what allfold's threads had to say is written: the program may end
/// now.
pub(crate) fn flush() {
    writer::flush(FLUSH_LIMIT);
}

/// This process has no world, for this reason.
pub(crate) fn has_failed(error: &Error) {
    let origin = origin::current();
    // That all is done is no cause of an end.
    if origin.is_process() && !matches!(error.kind(), ErrorKind::Done { .. }) {
        leave_end(error);
    }
    origin.ends(error, None);
}

/// The line that ends a rank goes where its cluster looks for it.
fn leave_end(error: &Error) {
    leave(&error.to_string(), error.help().as_deref());
}

impl Origin {
    /// On this very thread, which may have to wait for who reads it: not for allfold's own.
    pub(crate) fn say(&self, message: &str, call: Option<&str>) {
        if tracing::dispatcher::has_been_set() {
            let (job, rank, host, epoch) = self.fields();
            tracing::warn!(job, rank, host, epoch, call, "{message}");
        } else {
            self.line(&Line { level: "warning", message, help: None, call });
        }
    }

    /// Says the line that ends a rank. The program returns the error to its user, so that as text it
    /// is not said twice.
    pub(crate) fn ends(&self, error: &Error, call: Option<&str>) {
        let (message, help) = (&*error.to_string(), error.help());
        if tracing::dispatcher::has_been_set() {
            let (job, rank, host, epoch) = self.fields();
            let help = help.as_deref();
            tracing::error!(target: VERDICT, job, rank, host, epoch, call, help, "{message}");
        } else if Format::from_env().is_ok_and(|format| format == Format::Json) {
            self.line(&Line { level: "error", message, help: help.as_deref(), call });
        }
    }

    fn fields(&self) -> (Option<&str>, Option<u32>, &str, Option<u64>) {
        (self.job(), self.rank(), self.host(), self.epoch())
    }

    fn line(&self, line: &Line) {
        use std::io::Write;
        let text = match Format::from_env().unwrap_or_default() {
            Format::Text => format!("allfold: {}: {}\n", line.level, line.message),
            Format::Json => line.to_json_of(self) + "\n",
        };
        // In one write, so that lines of several ranks do not mix; a closed stderr is no error.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// Words of a peer, as they may be shown: nothing in them steers a terminal or fills a screen.
pub(crate) fn printable(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { '?' } else { c }).take(MAX_WORDS).collect()
}

/// `90 s`, `0.5 s`, `2.1 s`: as errors show durations.
pub(crate) fn duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 10.0 || seconds.fract() == 0.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// The target of the event that ends a rank: a program that prints the error itself leaves it out.
pub const VERDICT: &str = "allfold::verdict";
/// Where nobody reads, an error comes later by this.
const FLUSH_LIMIT: std::time::Duration = std::time::Duration::from_millis(200);
/// The longest description of two calls with their source lines is below half of this.
const MAX_WORDS: usize = 1024;
const VARIABLE: &str = "ALLFOLD_LOG_FORMAT";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_says_who_speaks() {
        let origin = Origin::new("a \"job\"", 3, "node-3");
        origin.set_epoch(u64::MAX);
        let line = Line { level: "warning", message: "two\nlines", help: None, call: Some("#7") };
        let json = line.to_json_of(&origin);
        let (time, rest) = json.split_once("Z\",").unwrap();
        assert_eq!(time.len(), r#"{"time":"2026-01-31T23:59:58.123"#.len(), "{time}");
        assert_eq!(
            rest,
            r#""level":"warning","message":"two\nlines","job":"a \"job\"","rank":3,"#.to_owned()
                + r#""host":"node-3","epoch":9007199254740991,"call":"#
                + "\"#7\"}"
        );
    }

    #[test]
    fn a_format_has_a_name() {
        let read = |word| Format::read(&Environment::from([(VARIABLE, word)]));
        assert_eq!(read("text").unwrap(), Format::Text);
        assert_eq!(read("").unwrap(), Format::Text);
        assert_eq!(read("json").unwrap(), Format::Json);
        let error = read("xml").unwrap_err();
        assert_eq!(error.to_string(), "ALLFOLD_LOG_FORMAT=xml: must be text or json");
        assert_eq!(error.exit_code(), 2);
    }
}
