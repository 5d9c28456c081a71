//! The log lines of this program: short, on stderr, from `ALLFOLD_LOG` up, as text or as JSON.

use std::fmt::{self, Debug, Write as _};
use std::io;

use allfold::report::{self, Format};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;

use crate::error::Error;

/// Starts logging for the whole process.
pub(crate) fn start() -> Result<(), Error> {
    let filter = match std::env::var(VARIABLE) {
        Ok(value) if !value.is_empty() => EnvFilter::try_new(&value).map_err(|_| Error::Usage {
            problem: format!("{VARIABLE}={value}: not a level"),
            help: Some("error, warn, info, debug or trace; or `warn,allfold=debug`".into()),
        })?,
        _ => EnvFilter::new(DEFAULT),
    };
    // The error that ends this process is printed by `report`, or by the launcher.
    let filter = match format!("{}=off", report::VERDICT).parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let format = Format::from_env()?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .event_format(Lines(format))
        .finish();
    // It fails only where a subscriber is set already, and then that one gets the events.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// Says one line of the launcher's own, past the filter.
pub(crate) fn say(level: &str, message: &str) {
    // One write, so that it lands between the ranks' lines; a closed stderr is no error.
    let _ = io::Write::write_all(&mut io::stderr(), line(level, message).as_bytes());
}

/// That line, with its end.
pub(crate) fn line(level: &str, message: &str) -> String {
    match Format::from_env().unwrap_or_default() {
        Format::Text => format!("allfold: {message}\n"),
        Format::Json => report::Line { level, message, help: None, call: None }.to_json() + "\n",
    }
}

/// `warning: text name=value`, or an object.
struct Lines(Format);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> tracing_subscriber::fmt::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut words = Words::default();
        event.record(&mut words);
        let level = word(*event.metadata().level());
        let Words { message, call } = words;
        match self.0 {
            Format::Text => writeln!(writer, "{level}: {message}"),
            Format::Json => {
                let (message, call) = (&*message, call.as_deref());
                let line = report::Line { level, message, help: None, call };
                writeln!(writer, "{}", line.to_json())
            }
        }
    }
}

/// What an event says. Who says it is known without it.
#[derive(Default)]
struct Words {
    message: String,
    call: Option<String>,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "call" => self.call = Some(value.into()),
            _ => self.record_debug(field, &format_args!("{value}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "job" | "rank" | "host" | "epoch" => Ok(()),
            "message" => {
                // It is not always the first.
                let fields = std::mem::take(&mut self.message);
                write!(self.message, "{value:?}{fields}")
            }
            name => write!(self.message, " {name}={value:?}"),
        };
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

const VARIABLE: &str = "ALLFOLD_LOG";
const DEFAULT: &str = "warn";
